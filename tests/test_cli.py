"""The command line, as its users type it: results, exit status, and what it says of bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from app import cli
from app.golden import GOLDEN_FILE, read_golden
from app.index.collection import CollectionSettings, Database, Document
from app.index.vectors import DenseSegment
from tests.index_helpers import embedding, made, opened
from tests.server import running_server

ROOT = Path(__file__).parent.parent


def trivec(*arguments: object, status: int = 0, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    found = subprocess.run(
        [sys.executable, "-m", "app.cli", *map(str, arguments)],
        cwd=ROOT,
        input=stdin.decode("latin-1"),
        encoding="latin-1",
        capture_output=True,
    )
    assert found.returncode == status, f"{arguments}: {found.returncode}\n{found.stdout}\n{found.stderr}"
    assert "Traceback" not in found.stderr
    return found


def lines(path: Path, *objects: object) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in objects))
    return path


def test_embed_writes_the_fixed_layout(mini: Path, tmp_path: Path) -> None:
    golden = read_golden(mini / GOLDEN_FILE)
    texts, expected = golden.texts, golden.embeddings
    source = lines(tmp_path / "in.jsonl", *({"text": text} for text in texts))
    out = tmp_path / "out.safetensors"
    found = json.loads(trivec("embed", source, "-o", out, "--json").stdout)
    assert found["texts"] == len(texts) and found["truncated"] == 1
    tensors = safetensors.numpy.load_file(out)
    types = {name: str(tensor.dtype) for name, tensor in tensors.items()}
    assert types == {
        "dense": "float32",
        "sparse.indices": "int32",
        "sparse.values": "float32",
        "sparse.offsets": "int64",
        "colbert.values": "float32",
        "colbert.offsets": "int64",
        "tokens": "int32",
        "truncated": "uint8",
    }
    assert tensors["tokens"].tolist() == [one.tokens for one in expected]
    for number, one in enumerate(expected):
        np.testing.assert_allclose(tensors["dense"][number], one.dense, atol=1e-5)
        begin, end = tensors["colbert.offsets"][number : number + 2]
        np.testing.assert_allclose(tensors["colbert.values"][begin:end], one.colbert, atol=1e-5)
        begin, end = tensors["sparse.offsets"][number : number + 2]
        assert one.sparse is not None
        assert tensors["sparse.indices"][begin:end].tolist() == one.sparse.indices.tolist()
        np.testing.assert_allclose(tensors["sparse.values"][begin:end], one.sparse.values, atol=1e-5)


def test_embed_reads_standard_input_and_some_outputs(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    trivec(
        "embed",
        "-",
        "-o",
        out,
        "--outputs",
        "dense",
        "--kind",
        "query",
        stdin=b'{"text": "a"}\n\n{"text": " "}\n',
    )
    tensors = safetensors.numpy.load_file(out)
    assert tensors.keys() == {"dense", "tokens", "truncated"} and tensors["tokens"].tolist() == [3, 2]


@pytest.mark.parametrize(
    ("content", "options", "message", "status"),
    [
        (b'{"text": "a"}\n{"text": 7}\n', [], "line 2", 1),
        (b'{"text": "a"}\nnot json\n', [], "line 2", 1),
        (b'{"text": "\xff"}\n', [], "line 1: the body is not UTF-8", 1),
        (b'{"text": "\\ud800"}\n', [], "line 1: the text holds half of a surrogate pair", 1),
        (b'{"text": ""}\n', [], "line 1", 1),
        (b"\n \n", [], "holds no texts", 1),
        (b'{"text": "' + b"long " * 600 + b'"}\n', ["--no-truncate"], "tokens, the limit is 512", 1),
        (b'{"text": "a"}\n', ["--max-length", "1"], "max_length 1", 1),
        (b'{"text": "a"}\n', ["--outputs", "dense,magic"], "--outputs", 2),
        (b'{"text": "a"}\n', ["--checkpoint", "no/such/folder"], "neither a folder nor a model", 1),
    ],
)
def test_embed_says_what_is_wrong_and_writes_nothing(
    content: bytes, options: list[str], message: str, status: int, tmp_path: Path
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.safetensors"
    source.write_bytes(content)
    assert message in trivec("embed", source, "-o", out, *options, status=status).stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_missing_files_and_unwritable_places(tmp_path: Path) -> None:
    source = lines(tmp_path / "in.jsonl", {"text": "a"})
    assert (
        "nowhere.jsonl: cannot read"
        in trivec("embed", "nowhere.jsonl", "-o", tmp_path / "o", status=1).stderr
    )
    assert "cannot write" in trivec("embed", source, "-o", tmp_path / "no" / "o", status=1).stderr
    assert "setting port" in trivec("serve", "--port", "70000", status=2).stderr
    assert (
        "setting engine" in trivec("embed", source, "-o", tmp_path / "o", "--engine", "int4", status=2).stderr
    )


DOCUMENTS = [
    {
        "_id": "tower",
        "title": "Paris",
        "text": "The Eiffel Tower was finished in 1889.",
        "metadata": {"lang": "en"},
    },
    {"id": "dom", "text": "Der Kölner Dom wurde 1880 vollendet.", "metadata": {"lang": "de"}},
]


def test_index_and_search_without_a_server(tmp_path: Path) -> None:
    data = ("--data-dir", tmp_path / "data")
    source = lines(tmp_path / "corpus.jsonl", *DOCUMENTS)
    assert json.loads(trivec("index", source, "--json", *data).stdout)["upserted"] == 2
    found = json.loads(trivec("search", "Eiffel Tower", "--json", "--explain", *data).stdout)
    assert found["hits"][0]["id"] == "tower" and found["hits"][0]["text"].startswith("Paris. The Eiffel")
    assert found["hits"][0]["explanation"]["matched_tokens"]
    only = trivec("search", "Eiffel Tower", "--filter", '{"lang": "de"}', *data).stdout
    assert "dom" in only and "tower" not in only


def test_index_keeps_good_lines_and_names_bad_ones(tmp_path: Path) -> None:
    source = tmp_path / "corpus.jsonl"
    deep = "[" * 100_000
    source.write_text(
        f'\ufeff{json.dumps(DOCUMENTS[0])}\nnot json\n{{"id": "x"}}\n{json.dumps(DOCUMENTS[1])}\n{deep}\n'
    )
    found = trivec("index", source, "--json", "--data-dir", tmp_path / "data", status=1)
    answer = json.loads(found.stdout)
    assert answer["upserted"] == 2 and [one["line"] for one in answer["failed"]] == [2, 3, 5]
    assert "line 2: " in found.stderr and "line 3: text: Field required" in found.stderr


def test_commands_use_the_server_that_holds_the_folder(tmp_path: Path) -> None:
    source = lines(tmp_path / "corpus.jsonl", *DOCUMENTS)
    with running_server(tmp_path / "data") as (client, process):
        assert (
            json.loads(trivec("index", source, "--json", "--data-dir", tmp_path / "data").stdout)["upserted"]
            == 2
        )
        assert client.get("/collections/default").json()["count"] == 2
        assert "tower" in trivec("search", "Eiffel Tower", "--data-dir", tmp_path / "data").stdout
        second = trivec("serve", "--port", "0", "--data-dir", tmp_path / "data", status=1)
        assert f"in use by process {process.pid}" in second.stderr


def test_a_search_by_words_alone(tmp_path: Path) -> None:
    data = ("--data-dir", tmp_path / "data")
    source = lines(tmp_path / "corpus.jsonl", *DOCUMENTS)
    with running_server(tmp_path / "data") as (client, _):
        assert client.put("/collections/default", json={"bm25": True}).status_code == 201
        trivec("index", source, *data)
        shown = trivec("search", "Eiffel Tower", "--mode", "bm25", *data).stdout
        assert "tower" in shown and "(bm25 " in shown and "dense" not in shown and "dom" not in shown
        client.put("/collections/plain")
        said = trivec("search", "x", "--mode", "bm25", "--collection", "plain", *data, status=1).stderr
        assert "invalid_query (mode)" in said


def test_search_says_what_is_wrong(tmp_path: Path) -> None:
    data = ("--data-dir", tmp_path / "data")
    assert "collection_not_found" in trivec("search", "x", "--collection", "nope", *data, status=1).stderr
    assert "--filter: not JSON" in trivec("search", "x", "--filter", "{", *data, status=2).stderr


def test_selftest_passes_on_the_bundled_checkpoint() -> None:
    found = json.loads(trivec("selftest", "--json").stdout)
    assert found["passed"] and set(found["heads"]) == {"dense", "sparse", "colbert"}
    assert all(0 < head["largest_difference"] < 1e-5 for head in found["heads"].values())


def test_selftest_of_the_int8_engine(tmp_path: Path) -> None:
    found = json.loads(trivec("selftest", "--json", "--engine", "int8", "--converted-dir", tmp_path).stdout)
    assert found["passed"] and all(head["largest_difference"] > 1e-5 for head in found["heads"].values())


def test_selftest_fails_on_weights_that_were_touched(mini: Path, tmp_path: Path) -> None:
    folder = tmp_path / "touched"
    shutil.copytree(mini, folder)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors["encoder.layer.3.output.LayerNorm.weight"] = (
        tensors["encoder.layer.3.output.LayerNorm.weight"] * 1.01
    )
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    found = trivec("selftest", "--checkpoint", folder, status=1)
    assert "FAILED" in found.stdout
    (folder / GOLDEN_FILE).unlink()
    assert "nothing to compare with" in trivec("selftest", "--checkpoint", folder, status=1).stderr


def test_selftest_compares_with_the_published_outputs_where_told() -> None:
    """The bundled model is not BAAI/bge-m3, so these must fail, in every head and in the hybrid score."""
    found = json.loads(trivec("selftest", "--published", "--json", status=1).stdout)
    assert found["against"] == "published" and not found["passed"]
    assert set(found["heads"]) == {"dense", "sparse", "colbert", "hybrid"}
    assert not any(head["passed"] for head in found["heads"].values())


def other_checkpoint(mini: Path, folder: Path) -> Path:
    """The bundled one with weights of its own."""
    shutil.copytree(mini, folder)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    generator = np.random.default_rng(0)
    changed = {
        name: (tensor * generator.uniform(0.8, 1.2, tensor.shape)).astype(tensor.dtype)
        for name, tensor in tensors.items()
    }
    safetensors.numpy.save_file(changed, folder / "model.safetensors")
    return folder


def test_reindex_while_a_server_of_the_old_checkpoint_runs(
    mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def reindex(*options: object, status: int = 0) -> tuple[str, str]:
        assert cli.main(["reindex", *map(str, (*data, *new, *options))]) == status
        return tuple(capsys.readouterr())

    new = ("--checkpoint", other_checkpoint(mini, tmp_path / "new"), "--no-progress")
    data, fresh = ("--data-dir", tmp_path / "data"), ("--data-dir", tmp_path / "fresh")
    documents = [{"id": f"d{n}", "text": "word " * (n % 4) + f"number {n}"} for n in range(70)]
    source = lines(tmp_path / "corpus.jsonl", *documents)
    late = {"id": "d3", "text": "it has changed"}
    with running_server(tmp_path / "data") as (client, _):
        trivec("index", source, *data)
        _, said = reindex()
        assert "70 of them embedded now" in said and "with --finish" in said and str(client.base_url) in said
        client.post("/collections/default/documents", json=[late]).raise_for_status()
        assert "is in use by process" in reindex("--finish", status=1)[1]
    found = json.loads(reindex("--finish", "--json")[0])
    assert (found["status"], found["documents"], found["embedded"]) == ("adopted", 70, 1)
    assert found["refused"] == [] and found["holder"] is None
    assert "nothing to do" in reindex()[1]
    documents[3] = late
    trivec("index", lines(tmp_path / "again.jsonl", *documents), *fresh, *new)
    with Database(tmp_path / "data") as ours, Database(tmp_path / "fresh") as theirs:
        one, other = ours.get("default"), theirs.get("default")
        assert one.info.fingerprint == other.info.fingerprint == found["fingerprint"]
        for doc_id in other.ids():
            got, wanted = one.embedding(doc_id), other.embedding(doc_id)
            assert got is not None and wanted is not None
            assert got.dense is not None and got.sparse is not None and wanted.sparse is not None
            np.testing.assert_allclose(got.dense, wanted.dense, atol=1e-5)
            np.testing.assert_array_equal(got.sparse.indices, wanted.sparse.indices)
            np.testing.assert_allclose(got.sparse.values, wanted.sparse.values, atol=1e-5)
            np.testing.assert_allclose(got.colbert, wanted.colbert, atol=1e-3)


def test_reindex_says_what_is_wrong(tmp_path: Path) -> None:
    assert "no data folder" in trivec("reindex", "--data-dir", tmp_path / "none", status=1).stderr
    with opened(tmp_path / "data"):
        pass
    found = trivec("reindex", "--collection", "nope", "--data-dir", tmp_path / "data", status=1)
    assert "there is no collection 'nope'" in found.stderr


def test_bench_recall_measures_what_the_index_finds(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.index.upkeep.SEGMENT_ROWS", 150)
    rng = np.random.default_rng(seed)
    with opened(tmp_path) as database:
        collection = made(database, settings=CollectionSettings(dense_index="rabitq", colbert="float32"))
        documents = [
            Document(f"d{n}", "text", embedding(rng, ("dense",) if n % 50 == 3 else ())) for n in range(400)
        ]
        for first in (0, 200):
            collection.upsert(documents[first : first + 200])
            collection.seal()
        collection.delete(["d0"])
        made(database, "empty")
    command = ["bench", "recall", "--data-dir", str(tmp_path), "--queries", "20", "--collection"]
    assert cli.main([*command, "c", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["documents"], found["queries"]) == (399, 20) and sum(found["rows"].values()) >= 399
    assert found["recall_at_10"] == found["recall_at_100"] == 1  # so few are scanned
    assert all(found[name] > 0 for name in ("search_ms", "search_p95_ms", "exact_ms", "exact_p95_ms"))
    genuine = DenseSegment.exact

    def lossy(self: DenseSegment, *arguments: object) -> object:
        return [column[1::2] for column in genuine(self, *arguments)]  # type: ignore[arg-type]

    monkeypatch.setattr(DenseSegment, "search", lossy)
    assert cli.main([*command, "c"]) == 0
    shown = capsys.readouterr().out
    assert 0.2 < float(shown.split("recall@10 ")[1].split()[0]) < 0.9, shown
    assert cli.main([*command, "empty"]) == 1
    assert "no document has a dense vector" in capsys.readouterr().err
    assert cli.main(["bench", "recall", "--data-dir", str(tmp_path / "none")]) == 1
    assert cli.main([*command, "c", "--queries", "0"]) == 2


def test_bench_recall_with_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ("--data-dir", tmp_path / "data")
    source = lines(tmp_path / "corpus.jsonl", *DOCUMENTS)
    trivec("index", source, *data)
    assert cli.main(["bench", "recall", "--texts", str(source), "--json", *map(str, data)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["queries"], found["recall_at_10"]) == (2, 1)


def test_a_slip_in_a_variables_name_is_pointed_out(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "app.cli", "search", "x", "--data-dir", tmp_path / "data"],
        cwd=ROOT,
        env={**os.environ, "TRIVEC_CHEKPOINT": "x"},
        capture_output=True,
        text=True,
    )
    assert "TRIVEC_CHEKPOINT is set but names no setting" in found.stderr
