"""The cache of query embeddings: bounded, exact, and unseen but for what it saves."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from app.cache import OVERHEAD_BYTES, Asked, QueryCache
from model.embedding import OUTPUTS, Embedding
from tests.fakes import FakeModel, FakeTokens
from tests.http_helpers import serving

DOCUMENTS = {"documents": [{"id": str(n), "text": f"word{n} other{n % 3}"} for n in range(8)]}


def _answer(width: int) -> tuple[Embedding, FakeTokens]:
    return Embedding(tokens=2, dense=np.zeros(width, np.float32)), FakeTokens(
        np.array([0, 2], np.int32), (), 2
    )


def _asked(text: str, **fields: object) -> Asked:
    return Asked(text, **{"max_length": 512, "outputs": frozenset(OUTPUTS), **fields})  # type: ignore[arg-type]


def test_the_one_unused_for_longest_goes_and_bytes_are_bounded() -> None:
    cache = QueryCache(4 * (OVERHEAD_BYTES + 1100))
    for name in "abcd":
        cache.put(_asked(name), _answer(256))
    assert cache.get(_asked("a")) is not None  # used again
    cache.put(_asked("e"), _answer(256))
    assert [cache.get(_asked(name)) is not None for name in "abcde"] == [True, False, True, True, True]
    assert (
        cache.get(_asked("a", max_length=8)) is None and cache.get(_asked("a", outputs=frozenset())) is None
    )
    for name in "fghijkl":
        cache.put(_asked(name), _answer(int(np.random.default_rng(0).integers(1, 400))))
        assert 0 < cache.bytes <= 4 * (OVERHEAD_BYTES + 1100)
    before = cache.bytes
    cache.put(_asked("l"), _answer(100))
    cache.put(_asked("l"), _answer(100))
    cache.put(_asked("huge"), _answer(10**6))
    assert cache.get(_asked("huge")) is None and cache.bytes <= before + 400
    nothing = QueryCache(0)
    nothing.put(_asked("a"), _answer(1))
    assert nothing.get(_asked("a")) is None and nothing.bytes == 0


def test_a_query_asked_again_needs_no_forward_pass(tmp_path: Path) -> None:
    model = FakeModel()
    with serving(tmp_path, model, query_cache_bytes=1 << 20) as client:
        client.post("/collections/default/documents", json=DOCUMENTS)

        def ask(query: object, **fields: object) -> dict[str, object]:
            answer = client.post("/search", json={"query": query, **fields})
            assert answer.status_code == 200 and "inference;dur=" in answer.headers["Server-Timing"]
            body: dict[str, object] = answer.json()
            return body

        first = ask("word3 other0", explain=True)
        passes = len(model.batches)
        assert ask("word3 other0", explain=True) == first
        assert ask("word3 other0", mode="dense")["usage"] == first["usage"]
        assert len(model.batches) == passes
        many = ask(["word3 other0", "word5", "word5"])
        assert model.batches[passes:] == [[3]]  # the one that was not known, once
        assert many["usage"] == {"tokens": 4 + 3 + 3, "texts": 3}
        # What was asked for is found with documents that came later.
        client.post(
            "/collections/default/documents", json={"documents": [{"id": "x", "text": "word3 other0"}]}
        )
        hits = ask("word3 other0", top_k=2)["hits"]
        assert {hit["id"] for hit in hits} == {"3", "x"}  # type: ignore[attr-defined]
        page = client.get("/metrics").text
        # The first query was looked for five times, and found all but the first; another one once.
        assert "trivec_cache_hits_total 4.0" in page and "trivec_cache_misses_total 2.0" in page


def test_a_query_that_failed_is_not_remembered(tmp_path: Path) -> None:
    model = FakeModel(broken=False)
    with serving(tmp_path, model, query_cache_bytes=1 << 20) as client:
        client.post("/collections/default/documents", json=DOCUMENTS)
        model.broken = True
        assert client.post("/search", json={"query": "word3"}).status_code == 500
        model.broken = False
        assert client.post("/search", json={"query": "word3"}).json()["hits"][0]["id"] == "3"
