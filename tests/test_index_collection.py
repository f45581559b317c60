"""A collection from outside: documents in, hits out, and what is refused."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest

from app.index.collection import Collection, CollectionSettings, Database, Document, SearchRequest
from app.index.errors import (
    CollectionExists,
    CollectionNotFound,
    DocumentInvalid,
    IndexFault,
    ModelMismatch,
    NameInvalid,
    QueryInvalid,
    StorageUnavailable,
)
from app.index.filters import parse
from model.embedding import Embedding, LexicalWeights
from model.scoring import FusionWeights
from tests.index_helpers import COLBERT, FINGERPRINT, WIDTH, blend, embedding, made, opened, truth, unit


@pytest.fixture
def database(tmp_path: Path) -> Database:
    with opened(tmp_path) as database:
        yield database


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _filled(
    database: Database, rng: np.random.Generator, count: int
) -> tuple[Collection, dict[str, Document]]:
    collection = made(database)
    documents = {
        f"d{place:03}": Document(
            f"d{place:03}", f"text {place}", embedding(rng), {"even": place % 2 == 0, "place": place}
        )
        for place in range(count)
    }
    collection.upsert(list(documents.values()))
    return collection, documents


def test_what_goes_in_comes_out(database: Database, rng: np.random.Generator) -> None:
    collection = made(database)
    one = Document("ü/../\x00", "a\x00b 😀", embedding(rng), {"a": {"b": [1, 2.5, None, "ß"]}, "c": True})
    assert collection.upsert([one]) == [1]
    stored = collection.get(one.id)
    assert stored is not None
    assert (stored.text, stored.metadata, stored.tokens) == (one.text, one.metadata, one.embedding.tokens)
    assert (stored.truncated, stored.seq, stored.outputs) == (
        one.embedding.truncated,
        1,
        one.embedding.outputs,
    )
    again = collection.embedding(one.id)
    assert again is not None and again.sparse is not None and one.embedding.sparse is not None
    np.testing.assert_array_equal(again.dense, one.embedding.dense)
    np.testing.assert_array_equal(again.sparse.indices, one.embedding.sparse.indices)
    np.testing.assert_array_equal(again.sparse.values, one.embedding.sparse.values)
    np.testing.assert_array_equal(again.colbert, one.embedding.colbert)
    for absent in ("other", "", "\ud800"):
        assert collection.get(absent) is None
        assert collection.embedding(absent) is None
    stats = collection.stats()
    assert (stats.count, stats.last_seq, stats.dense_bytes) == (1, 1, 4 * WIDTH)
    assert stats.text_bytes == len(one.text.encode())
    assert stats.sparse_bytes == 8 * len(one.embedding.sparse)


def test_a_replacement_replaces_everything(database: Database, rng: np.random.Generator) -> None:
    collection = made(database)
    first = Document("d", "old", embedding(rng), {"old": 1})
    second = Document("d", "new", embedding(rng, ("colbert",)), {"new": 1})
    assert collection.upsert([first, Document("e", "e", embedding(rng))]) == [1, 2]
    assert collection.upsert([second]) == [3]
    stored = collection.get("d")
    assert stored is not None
    assert (stored.text, stored.metadata, stored.seq) == ("new", {"new": 1}, 3)
    assert stored.outputs == {"dense", "sparse"}
    query = embedding(rng)
    assert [hit.id for hit in collection.search(SearchRequest(query, filter=parse({"old": 1})))] == []
    (hit,) = collection.search(SearchRequest(query, filter=parse({"new": 1})))
    assert (hit.text, hit.scores.colbert, hit.ranks.colbert) == ("new", None, None)
    assert hit.scores.dense == pytest.approx(truth(query, second.embedding)["dense"], abs=1e-6)


def test_of_one_id_in_a_batch_the_last_wins(database: Database, rng: np.random.Generator) -> None:
    collection = made(database)
    batch = [Document(one, text, embedding(rng)) for one, text in (("a", "1"), ("b", "2"), ("a", "3"))]
    assert collection.upsert(batch) == [1, 2, 1]
    assert [(one.id, one.text) for one in collection.documents()] == [("a", "3"), ("b", "2")]
    assert collection.upsert([]) == []


def test_deletion(database: Database, rng: np.random.Generator) -> None:
    collection, documents = _filled(database, rng, 9)
    assert collection.delete(["d001", "d001", "nobody", "\ud800"]) == 1
    assert collection.delete(["d001"]) == 0
    assert collection.delete_where(parse({"place": {"$gte": 7}})) == 2
    assert collection.delete_where(parse({"place": {"$gte": 7}})) == 0
    left = [f"d{place:03}" for place in (0, 2, 3, 4, 5, 6)]
    assert list(collection.ids()) == left
    hits = collection.search(SearchRequest(documents["d001"].embedding, top_k=100))
    assert sorted(hit.id for hit in hits) == left
    assert collection.stats().last_seq == 9 + 3
    assert collection.upsert([documents["d001"]]) == [13]


@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_a_change_is_found_when_the_call_returns(
    database: Database, rng: np.random.Generator, mode: str
) -> None:
    collection = made(database)
    axis = np.eye(WIDTH, dtype=np.float32)

    def document(place: int) -> Document:
        term = LexicalWeights(np.array([place], np.int32), np.array([1.0], np.float32))
        return Document(f"d{place}", "", Embedding(2, dense=axis[place], sparse=term))

    def first(place: int) -> list[str]:
        hits = collection.search(SearchRequest(document(place).embedding, mode=mode, top_k=1, candidates=1))
        return [hit.id for hit in hits if hit.score > 0]

    for place in range(WIDTH):
        assert first(place) == []
        collection.upsert([document(place)])
        assert first(place) == [f"d{place}"]
    collection.upsert([Document("d3", "", document(4).embedding), Document("d4", "", document(3).embedding)])
    assert (first(3), first(4)) == (["d4"], ["d3"])
    # d4 is dead, what is left must still fill the one place that the leg has.
    collection.delete(["d4"])
    assert (
        len(collection.search(SearchRequest(document(3).embedding, mode="dense", top_k=1, candidates=1))) == 1
    )
    collection.delete_where(parse({}))
    assert first(5) == []


@pytest.mark.parametrize("fusion", ["weighted", "rrf"])
@pytest.mark.parametrize("mode", ["hybrid", "dense", "sparse", "colbert"])
def test_scores_are_the_equations(
    database: Database, rng: np.random.Generator, mode: str, fusion: str
) -> None:
    collection, documents = _filled(database, rng, 60)
    use = FusionWeights(0.5, 0.3, 0.1)
    query = embedding(rng)
    for exact in (True, False):
        request = SearchRequest(
            query,
            mode=mode,
            fusion=fusion,
            weights=use,
            top_k=7,
            candidates=9,
            exact=exact,
            with_embeddings=True,
        )
        hits = collection.search(request)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        for hit in hits:
            document = documents[hit.id]
            expected = truth(query, document.embedding)
            for leg in ("dense", "sparse", "colbert"):
                assert getattr(hit.scores, leg) == pytest.approx(expected[leg], abs=1e-5)
            if mode != "hybrid":
                assert hit.score == getattr(hit.scores, mode)
            elif fusion == "weighted":
                assert hit.score == pytest.approx(blend(expected, use), abs=1e-5)
            assert (hit.text, hit.metadata) == (document.text, document.metadata)
            assert hit.embedding is not None and hit.embedding.outputs == document.embedding.outputs
        if exact and mode != "sparse" and fusion == "weighted":
            truths = [truth(query, one.embedding) for one in documents.values()]
            best = sorted(
                (blend(one, use) if mode == "hybrid" else one[mode] for one in truths), reverse=True
            )
            assert [hit.score for hit in hits] == pytest.approx(best[:7], abs=1e-5)
            assert [hit.ranks.dense for hit in hits if mode == "dense"] == list(range(1, 8))[
                : 7 * (mode == "dense")
            ]


def test_equals_come_by_id(database: Database, rng: np.random.Generator) -> None:
    collection = made(database)
    one = embedding(rng)
    ids = ["b", "a", "ä", "c", "B"]
    collection.upsert([Document(name, "", one) for name in ids])
    for mode in ("hybrid", "dense", "colbert"):
        hits = collection.search(SearchRequest(one, mode=mode))
        assert [hit.id for hit in hits] == sorted(ids)
        assert {hit.ranks.dense for hit in hits} == {1}


def test_the_candidates_are_the_union_of_both_legs(database: Database) -> None:
    collection = made(database)
    axis = np.eye(WIDTH, dtype=np.float32)
    term = LexicalWeights(np.array([5], np.int32), np.array([1.0], np.float32))
    other = LexicalWeights(np.array([6], np.int32), np.array([1.0], np.float32))
    collection.upsert(
        [Document(f"far{place}", "", Embedding(2, dense=axis[1], sparse=other)) for place in range(9)]
    )
    collection.upsert([Document("near", "", Embedding(2, dense=axis[0], sparse=other))])
    collection.upsert([Document("term", "", Embedding(2, dense=-axis[0], sparse=term))])
    query = Embedding(2, dense=axis[0], sparse=term)
    hits = {hit.id: hit for hit in collection.search(SearchRequest(query, top_k=2, candidates=1))}
    # Both have both true scores, whichever leg put them up.
    assert hits["near"].scores.dense == 1.0 and hits["near"].scores.sparse == 0.0
    assert hits["near"].ranks.sparse is None
    assert "term" not in hits  # -0.4 + 0.2: a fair comparison puts it last
    (only,) = collection.search(SearchRequest(query, mode="sparse", candidates=2, top_k=2))
    assert (only.id, only.scores.dense) == ("term", -1.0)


def test_a_filter_never_starves_a_search(database: Database, rng: np.random.Generator) -> None:
    collection, _ = _filled(database, rng, 80)
    query = embedding(rng)
    for source, allowed in (({"even": True}, 40), ({"place": {"$lt": 3}}, 3), ({"place": {"$lt": 0}}, 0)):
        for top_k in (1, 5, 50):
            hits = collection.search(SearchRequest(query, top_k=top_k, candidates=1, filter=parse(source)))
            assert len(hits) == min(top_k, allowed)
    # Documents that no leg can put up fill the page still.
    collection.upsert([Document(f"x{place}", "", embedding(rng, ("dense", "sparse"))) for place in range(20)])
    hits = collection.search(SearchRequest(query, candidates=1, filter=parse({"even": {"$exists": False}})))
    assert len(hits) == 10


def test_absent_outputs(database: Database, rng: np.random.Generator) -> None:
    collection, documents = _filled(database, rng, 5)
    collection.upsert([Document("bare", "", embedding(rng, ("dense", "colbert")))])
    query = embedding(rng, ("colbert",))
    hits = {hit.id: hit for hit in collection.search(SearchRequest(query, exact=True))}
    assert len(hits) == 6
    assert hits["bare"].scores.dense is None
    for name, one in documents.items():
        expected = blend(truth(query, one.embedding), FusionWeights(0.4, 0.2, 0.0))
        assert hits[name].score == pytest.approx(expected, abs=1e-5)
    assert "bare" not in {hit.id for hit in collection.search(SearchRequest(query, mode="dense"))}
    with pytest.raises(QueryInvalid, match="colbert"):
        collection.search(SearchRequest(query, mode="colbert"))
    only = dataclasses.replace(embedding(rng), dense=None, sparse=None)
    assert len(collection.search(SearchRequest(only, mode="colbert", top_k=2, candidates=2))) == 2


def _with(part: str, value: object) -> Embedding:
    return dataclasses.replace(embedding(np.random.default_rng(0)), **{part: value})


_NAN = np.full(WIDTH, np.nan, np.float32)
_FAULTS = [
    ("dense", _with("dense", np.ones(WIDTH + 1, np.float32))),
    ("dense", _with("dense", np.ones((1, WIDTH), np.float32))),
    ("dense", _with("dense", _NAN)),
    ("dense", _with("dense", np.full(WIDTH, 1e30, np.float32))),
    ("colbert", _with("colbert", np.ones((2, COLBERT - 1), np.float32))),
    ("colbert", _with("colbert", np.ones((0, COLBERT), np.float32))),
    ("colbert", _with("colbert", np.full((1, COLBERT), np.inf, np.float32))),
    ("sparse", _with("sparse", LexicalWeights(np.array([1], np.int32), np.array([3e38], np.float32)))),
    ("tokens", _with("tokens", -1)),
]


@pytest.mark.parametrize(("part", "wrong"), _FAULTS)
def test_vectors_that_do_not_fit(
    database: Database, rng: np.random.Generator, part: str, wrong: Embedding
) -> None:
    collection = made(database)
    with pytest.raises(DocumentInvalid, match=part) as caught:
        collection.upsert([Document("fine", "", embedding(rng)), Document("wrong", "", wrong)])
    assert (caught.value.document_id, caught.value.part) == ("wrong", part)
    assert collection.stats().count == collection.stats().last_seq == 0
    with pytest.raises(QueryInvalid, match=part):
        collection.search(SearchRequest(wrong))


def test_documents_that_do_not_fit(database: Database, rng: np.random.Generator) -> None:
    half = made(database, "half", CollectionSettings())
    one = embedding(rng)
    for document, part in (
        (Document("", "", one), "id"),
        (Document("ä" * 257, "", one), "id"),
        (Document("\ud800", "", one), "id"),
        (Document(7, "", one), "id"),  # type: ignore[arg-type]
        (Document("a", "\udfff", one), "text"),
        (Document("a", None, one), "text"),  # type: ignore[arg-type]
        (Document("a", "", one, {"a": float("nan")}), "metadata"),
        (Document("a", "", one, {"a": {1, 2}}), "metadata"),
        (Document("a", "", Embedding(3)), "embedding"),
        (Document("a", "", _with("colbert", np.full((1, COLBERT), 7e4, np.float32))), "colbert"),
    ):
        with pytest.raises(DocumentInvalid) as caught:
            half.check(document)
        assert caught.value.part == part
    half.check(Document("ä" * 256, "", one))


def test_requests_that_do_not_fit(database: Database, rng: np.random.Generator) -> None:
    collection, _ = _filled(database, rng, 2)
    one = embedding(rng)
    for wrong in ({"mode": "x"}, {"fusion": "x"}, {"top_k": 0}, {"candidates": 0}):
        with pytest.raises(QueryInvalid, match=next(iter(wrong))):
            collection.search(SearchRequest(one, **wrong))
    with pytest.raises(QueryInvalid, match="no such vectors"):
        collection.search(SearchRequest(Embedding(3)))
    with pytest.raises(QueryInvalid):
        collection.documents(after="\ud800")


def test_names(database: Database) -> None:
    for name in ("a", "0", "a-b_c", "a" * 64):
        assert made(database, name).name == name
    for name in ("", "A", "-a", "_a", "a" * 65, "a\n", "a/b", "..", "ä", "a b"):
        with pytest.raises(NameInvalid):
            made(database, name)
    assert [one.name for one in database.list()] == sorted(["a", "0", "a-b_c", "a" * 64])


def test_creating_twice_and_dropping(database: Database, rng: np.random.Generator) -> None:
    collection, _ = _filled(database, rng, 3)
    assert made(database) is collection
    with pytest.raises(CollectionExists):
        made(database, settings=CollectionSettings(fusion=FusionWeights(1, 1, 1)))
    with pytest.raises(ModelMismatch):
        database.create(
            "c", collection.info.settings, fingerprint="f2", hidden_size=WIDTH, colbert_dim=COLBERT
        )
    other = made(database, "other")
    other.upsert([Document("d000", "theirs", embedding(rng))])
    database.drop("c")
    for use in (
        lambda: database.get("c"),
        lambda: database.drop("c"),
        lambda: collection.get("d000"),
        lambda: collection.stats(),
        lambda: collection.delete(["d000"]),
        lambda: collection.upsert([Document("a", "", embedding(rng))]),
        lambda: collection.search(SearchRequest(embedding(rng))),
    ):
        with pytest.raises(CollectionNotFound):
            use()
    assert made(database).stats().count == 0
    assert [one.text for one in other.documents()] == ["theirs"]


def test_settings_and_documents_survive_a_restart(tmp_path: Path, rng: np.random.Generator) -> None:
    settings = CollectionSettings(colbert="float16", fusion=FusionWeights(1, 0.3, 0))
    query = embedding(rng)
    with opened(tmp_path) as database:
        collection = made(database, settings=settings)
        collection.upsert(
            [Document(f"d{place}", str(place), embedding(rng), {"p": place}) for place in range(30)]
        )
        collection.delete(["d3"])
        info, stats = collection.info, collection.stats()
        before = collection.search(SearchRequest(query, top_k=30))
    with pytest.raises(StorageUnavailable):
        collection.search(SearchRequest(query))
    with opened(tmp_path) as database:
        collection = database.get("c")
        assert (collection.info, collection.stats()) == (info, stats)
        assert collection.search(SearchRequest(query, top_k=30)) == before
        assert collection.upsert([Document("new", "", embedding(rng))]) == [stats.last_seq + 1]


def test_another_model_may_look_but_not_search(tmp_path: Path, rng: np.random.Generator) -> None:
    with opened(tmp_path) as database:
        _filled(database, rng, 3)
    with opened(tmp_path, "f2") as database:
        collection = database.get("c")
        for use in (
            lambda: collection.search(SearchRequest(embedding(rng))),
            lambda: collection.upsert([Document("a", "", embedding(rng))]),
        ):
            with pytest.raises(ModelMismatch, match=FINGERPRINT) as caught:
                use()
            assert (caught.value.made_with, caught.value.in_use) == (FINGERPRINT, "f2")
        assert collection.get("d000") is not None
        assert collection.delete(["d000"]) == 1
        assert collection.stats().count == 2
        assert len(list(collection.ids())) == 2


def test_a_document_is_wholly_old_or_wholly_new(database: Database, rng: np.random.Generator) -> None:
    """Each version's vectors score its own number, so a mixture of two versions shows."""
    collection = made(database)
    axis, colbert = unit(rng, WIDTH), unit(rng, 1, COLBERT)
    term = np.array([1], np.int32)
    versions, done = 60, threading.Event()
    acknowledged: list[int] = [0]
    faults: list[Exception] = []

    def version(number: int) -> Embedding:
        scale = np.float32(number + 1)
        return Embedding(
            number, dense=axis * scale, sparse=LexicalWeights(term, scale[None]), colbert=colbert * scale
        )

    def batch(number: int) -> list[Document]:
        return [Document(f"d{place}", str(number), version(number), {"v": number}) for place in range(20)]

    collection.upsert(batch(0))

    def search(candidates: int) -> None:
        query = version(0)
        try:
            while not done.is_set():
                seen = acknowledged[-1]
                hits = collection.search(
                    SearchRequest(query, top_k=5, candidates=candidates, filter=parse({"v": {"$gte": 0}}))
                )
                assert len(hits) == 5
                for hit in hits:
                    number = int(hit.text)
                    assert number >= seen
                    assert hit.metadata == {"v": number} and hit.tokens == number
                    for score in (hit.scores.dense, hit.scores.sparse, hit.scores.colbert):
                        assert score == pytest.approx(number + 1, rel=1e-4)
        except (AssertionError, IndexFault) as error:
            faults.append(error)

    threads = [threading.Thread(target=search, args=(candidates,)) for candidates in (5, 10, 100)]
    for thread in threads:
        thread.start()
    for number in range(1, versions):
        collection.upsert(batch(number))
        acknowledged.append(number)
        if number % 5 == 0:
            collection.upsert([Document("passing", str(number), version(number), {"v": -1})])
            collection.delete(["passing"])
    done.set()
    for thread in threads:
        thread.join()
    assert not faults, faults[0]
