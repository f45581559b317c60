"""Kernels: imported when they are needed, compiled elsewhere, ready before a request."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from app.index import compiled, deferred, kernels, warming
from app.index.collection import WARMING
from app.index.deferred import Deferred
from app.index.warming import COMMAND, ROOT, Warmer, warm_up
from tests.index_helpers import opened

KERNELS = sorted(
    path for path in (ROOT / "app" / "index").glob("*.py") if "app.index.compiled import" in path.read_text()
)


def script(code: str, *arguments: object, **environment: str) -> str:
    """What a fresh process prints; it must end well."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_warm_up_leaves_no_files(tmp_path: Path) -> None:
    with opened(tmp_path) as database:
        before = sorted(tmp_path.iterdir())
        warm_up(tmp_path, ["2bit", "float16"])
        assert sorted(tmp_path.iterdir()) == before
        assert database.list() == []


def test_what_a_killed_warm_up_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / f"{WARMING}abc"
    left.mkdir()
    (left / "trivec.sqlite3").write_bytes(b"x")
    opened(tmp_path).close()
    assert not left.exists()


SEARCHES = """
import sys
from importlib import import_module
from pathlib import Path
import numpy as np
from app.index import compiled, deferred, vectors
from app.index.collection import CollectionSettings, Database, Document, SearchRequest
from app.index.filters import parse
from app.index.warming import CODES, FLOATS, warm_up
from tests.index_helpers import COLBERT, FINGERPRINT, WIDTH, embedding

def loaded():
    return {
        (name, key, str(types))
        for name in deferred.__all__
        for key, value in vars(import_module(f"app.index.{name}")).items()
        for types in getattr(value, "signatures", ())
    }

folder = Path(sys.argv[1])
warm_up(folder, [FLOATS, CODES])
before = loaded()
vectors.EXACT_ROWS, vectors.RESCORED_ROWS = 0, 8
rng = np.random.default_rng(int(sys.argv[2]))
with compiled.refused():
    for opening in range(2):
        with Database(folder, threads=1) as database:
            for number, kind in enumerate(("float32", "float16", "int8", "4bit", "2bit", "1bit")):
                settings = CollectionSettings(
                    "rabitq", kind, colbert_pooling=1 + number % 2, colbert_candidates=number % 3 == 0
                )
                one = database.create(
                    f"c{number}", settings, fingerprint=FINGERPRINT, hidden_size=WIDTH, colbert_dim=COLBERT
                )
                for part in range(3):
                    numbers = range(part * 600, part * 600 + 650)
                    one.upsert([Document(str(n), "", embedding(rng), {"n": n}) for n in numbers])
                    one.seal(least=1)
                one.upsert([Document("last", "", embedding(rng), {"n": 1})])
                one.delete(["3", "35"])
                while one.merge(idle=True):
                    pass
                for mode in ("hybrid", "dense", "sparse", "colbert"):
                    for condition in (None, {"n": {"$lt": 2}}, {"n": {"$gt": 1650}}):
                        for exact in (False, True):
                            one.search(SearchRequest(
                                embedding(rng), mode=mode, top_k=3, candidates=5, exact=exact,
                                filter=None if condition is None else parse(condition), with_embeddings=True,
                            ))
                one.embedding("last")
after = loaded()
assert len(before) > 20 or len(sys.argv) > 3, before
assert after == before or len(sys.argv) > 3, after - before
print("ok")
"""


def test_nothing_is_left_to_be_loaded_after_a_warm_up(tmp_path: Path, seed: int) -> None:
    """Two kinds stand for all, and everything that a collection does is among what they ran."""
    assert script(SEARCHES, tmp_path, seed) == "ok\n"


SERVER = """
import sys, threading, time
from pathlib import Path
from starlette.testclient import TestClient
from app import main
from app.settings import Settings
from tests.fakes import FakeModel

HEAVY = ("numba", "llvmlite", "faiss")
main.load_model = lambda settings: FakeModel()

def loaded():
    return [name for name in HEAVY if name in sys.modules]

def wait_for_warm_up():
    for thread in threading.enumerate():
        if thread.name == "trivec-warm-up":
            thread.join()

with TestClient(main.create_app(Settings(data_dir=Path(sys.argv[1])))) as client:
    while client.get("/health/ready").status_code != 200:
        time.sleep(0.01)
"""

EMBEDS = """
    wait_for_warm_up()
    outputs = ["dense", "sparse", "colbert"]
    assert client.post("/embed", json={"texts": ["a cat", "b"], "outputs": outputs}).status_code == 200
    assert client.get("/collections").json() == {"collections": []}
    assert client.post("/search", json={"query": "cat"}).status_code in (200, 404)
    print(loaded())
    assert client.put("/collections/first").status_code == 201
    wait_for_warm_up()
    print(loaded())
"""


def test_a_server_that_only_embeds_imports_no_compiler(tmp_path: Path) -> None:
    """The first collection brings it, before a document is there."""
    assert script(SERVER + EMBEDS, tmp_path) == "[]\n['numba', 'llvmlite']\n"


FIRST_DOCUMENTS = """
    documents = [{"id": str(n), "text": f"cat number {n}", "metadata": {"n": n}} for n in range(5)]
    assert client.post("/collections/default/documents", json=documents).json()["upserted"] == 5
    for mode in ("hybrid", "dense", "sparse", "colbert"):
        hits = client.post("/search", json={"query": "cat number 3", "mode": mode}).json()["hits"]
        assert hits[0]["id"] == "3", hits
print(loaded())
"""


def test_first_documents_of_an_empty_server_are_found_at_once(tmp_path: Path) -> None:
    assert script(SERVER + FIRST_DOCUMENTS, tmp_path) == "['numba', 'llvmlite']\n"


COLLECTIONS = """
    wait_for_warm_up()
    from app.index import code_kernels, kernels, posting_kernels
    for kernel in (kernels.dense_scores, code_kernels.best_sums, posting_kernels.sift):
        assert kernel.signatures
    types = [str(one) for one in code_kernels.best_sums.signatures]
    print(len(types), code_kernels.encode_rows.signatures != [])
"""


@pytest.mark.parametrize(("kind", "coded"), [("float16", False), ("4bit", True)])
def test_a_server_with_collections_warms_up_at_its_start(tmp_path: Path, kind: str, coded: bool) -> None:
    """No request comes, and yet the kernels of its collections' kinds are there."""
    with opened(tmp_path, None) as database:
        warming_settings = warming.CollectionSettings(colbert=kind)  # type: ignore[arg-type]
        database.create("c", warming_settings, fingerprint="fa" * 32, hidden_size=24, colbert_dim=16)
    assert script(SERVER + COLLECTIONS, tmp_path) == f"1 {coded}\n"


TWO_THREADS = """
import sys, threading
import numpy as np
from app.index.collection import CollectionSettings, Database, Document, SearchRequest
from pathlib import Path
from tests.index_helpers import embedding, made

assert "numba" not in sys.modules
rng = np.random.default_rng(int(sys.argv[2]))
given = [embedding(rng) for _ in range(20)]
answers, barrier = [], threading.Barrier(4)

def ask(database, number):
    one = made(database, f"c{number}", CollectionSettings(colbert="2bit"))
    barrier.wait()
    one.upsert([Document(str(n), "", item) for n, item in enumerate(given)])
    hits = one.search(SearchRequest(given[3], top_k=5))
    answers.append([(hit.id, hit.score) for hit in hits])

with Database(Path(sys.argv[1])) as database:
    threads = [threading.Thread(target=ask, args=(database, number)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
assert len(answers) == 4 and all(one == answers[0] for one in answers), answers
print("ok")
"""


def test_threads_that_all_need_kernels_first(tmp_path: Path, seed: int) -> None:
    assert script(TWO_THREADS, tmp_path, seed) == "ok\n"


def test_a_deferred_module_is_imported_once_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Deferred("no_such_module")
    assert not hasattr(one, "__wrapped__")
    with pytest.raises(ModuleNotFoundError):
        _ = one.anything
    assert deferred.kernels.dense_scores is kernels.dense_scores
    with pytest.raises(AttributeError):
        _ = deferred.kernels.no_such_kernel
    # What a test puts in its place is seen.
    monkeypatch.setattr(kernels, "dense_scores", None)
    assert deferred.kernels.dense_scores is None


def test_only_the_thread_that_asked_is_refused() -> None:
    """A request in another thread compiles what it needs, and so does this one afterwards."""

    def double(x: float) -> float:
        return 2 * x

    first, second = (compiled.numba.njit(double) for _ in range(2))
    with compiled.refused():
        with pytest.raises(compiled.NotCompiledError):
            first(1.0)
        found: list[float] = []
        thread = threading.Thread(target=lambda: found.append(second(2.0)))
        thread.start()
        thread.join()
        assert found == [4.0] and second(3.0) == 6.0
    assert first(1.0) == 2.0
    with compiled.refused(lambda: False):
        assert first(1) == 2


def test_kernels_are_compiled_anew_where_anything_that_they_are_made_of_changes(tmp_path: Path) -> None:
    """Numba looks at the file of each kernel only; the digest must cover what that file imports."""
    assert len(KERNELS) >= 7
    covered = {path.stem for path in KERNELS}
    covered |= set(compiled.PARTS)
    for path in [*KERNELS, *(ROOT / "app" / "index" / f"{name}.py" for name in compiled.PARTS)]:
        assert path.stem.endswith("kernels") or path.stem in compiled.PARTS
        if path.stem == "muvera":  # its numbers are taken, nothing that it imports
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("app."):
                assert (node.module or "").removeprefix("app.index.") in covered, (path, node.module)
    warm_up(tmp_path)
    kept = kernels.dense_scores.stats.cache_path  # type: ignore[attr-defined]
    if kept is None:
        pytest.skip("compiled kernels cannot be kept here")
    assert list(Path(kept).glob(f"kernels.dense_scores-{compiled.digest()}-*.nbi"))


def aside(cache: Path, *kinds: str) -> subprocess.Popen[bytes]:
    """The process that compiles, into an empty folder."""
    return subprocess.Popen(
        [sys.executable, "-P", "-c", COMMAND, str(ROOT), *kinds],
        stdin=subprocess.PIPE,
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache)},
    )


def test_the_process_that_compiles_ends_with_its_server(tmp_path: Path) -> None:
    process = aside(tmp_path, "float16", "2bit")
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(60) == 0
    assert not list(tmp_path.rglob("*.nbc"))


def test_a_closed_warmer_begins_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[object] = []
    monkeypatch.setattr(warming, "warm_up", lambda *_: begun.append("here"))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: begun.append("elsewhere"))
    unstarted, closed = Warmer(tmp_path), Warmer(tmp_path)
    unstarted.want(["float16"])
    unstarted.close()
    closed.close()
    closed.start([])
    closed.start(["float16"])
    closed.want(["2bit"])
    for thread in threading.enumerate():
        if thread.name == "trivec-warm-up":
            thread.join()
    assert begun == []


def test_where_no_process_can_be_started_kernels_are_compiled_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first try finds nothing on disk, another process is not to be had, so the second compiles."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    tries: list[bool] = []

    def refusing(folder: Path, kinds: set[str]) -> None:
        tries.append(True)
        if len(tries) < 3:
            raise compiled.NotCompiledError

    monkeypatch.setattr(warming, "warm_up", refusing)
    warmer = Warmer(tmp_path)
    warmer.start(["float32", "2bit"])
    warmer.want(["float16", "int8", "1bit"])  # known already
    deadline = time.monotonic() + 20
    while any(thread.name == "trivec-warm-up" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    warmer.close()
    assert len(tries) == 3


@pytest.mark.slow
def test_another_process_compiles_for_this_one(tmp_path: Path) -> None:
    """Half a minute: everything is compiled, in another process, and then loaded without compiling."""
    process = aside(tmp_path / "cache", "float16", "2bit")
    process.wait()
    (tmp_path / "data").mkdir()
    code = SEARCHES.replace("warm_up(folder, [FLOATS, CODES])\n", "", 1)
    assert "warm_up(folder" not in code
    assert script(code, tmp_path / "data", 1, "cold", NUMBA_CACHE_DIR=str(tmp_path / "cache")) == "ok\n"
