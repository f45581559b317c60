"""Fetching from a hub: the real huggingface_hub against a small server that speaks the hub's routes."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub.utils import are_progress_bars_disabled

from weights.checkpoint import CheckpointError
from weights.fetch import PINNED_REVISIONS, resolve_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "someone/mini-m3"
WEIGHTS = bytes(range(256)) * 2000

FILES = {
    "config.json": b'{"hidden_size": 8}',
    "tokenizer.json": b"{}",
    "pytorch_model.bin": WEIGHTS,
    "colbert_linear.pt": b"colbert" * 100,
    "sparse_linear.pt": b"sparse" * 100,
    "onnx/model.onnx": b"onnx",
    "imgs/figure.jpg": b"figure",
    "README.md": b"readme",
}
LFS = (".bin", ".safetensors", ".pt", ".onnx")


@dataclass
class FakeHub:
    """One model. `served` may differ from what `files` says of itself."""

    files: dict[str, bytes] = field(default_factory=lambda: dict(FILES))
    served: dict[str, bytes] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    name: str = NAME
    commit: str = COMMIT
    status: int = 200
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    bars: list[bool] = field(default_factory=list)
    endpoint: str = ""

    def info(self) -> bytes:
        siblings = []
        for name, data in self.files.items():
            size = self.sizes.get(name, len(data))
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            sibling: dict[str, Any] = {"rfilename": name, "size": size, "blobId": blob}
            if name.endswith(LFS):
                sibling["lfs"] = {
                    "size": size,
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "pointerSize": 130,
                }
            siblings.append(sibling)
        return json.dumps({"id": self.name, "sha": self.commit, "siblings": siblings}).encode()

    def gets(self) -> list[str]:
        """The names of the files whose content was asked for."""
        return [
            path.split("/")[-1]
            for method, path, _ in self.requests
            if method == "GET" and "/resolve/" in path
        ]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.bars.append(not are_progress_bars_disabled())
        hub.requests.append((self.command, path, self.headers.get("Range")))
        if hub.status != 200:
            return self.answer(hub.status, b"")
        if not path.removeprefix("/api/models").startswith(f"/{hub.name}/"):
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        revision = re.search(r"/(?:revision|resolve)/([^/]+)", path)
        if revision is None or revision[1] not in ("main", hub.commit):
            return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if path.startswith("/api/"):
            return self.answer(200, hub.info(), {"Content-Type": "application/json"})
        name = path.split(f"/resolve/{revision[1]}/")[1]
        if name not in hub.files:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        data = hub.files[name]
        kind = "sha256" if name.endswith(LFS) else "sha1"
        headers = {"ETag": f'"{hashlib.new(kind, data).hexdigest()}"', "X-Repo-Commit": hub.commit}
        return self.answer(200, hub.served.get(name, data), headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        self.send_response(206 if asked else status)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[start:])


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


def resolve(hub: FakeHub, cache: Path, name: str = NAME, revision: str | None = None) -> Any:
    return resolve_checkpoint(name, revision=revision, cache_dir=cache, progress=False, endpoint=hub.endpoint)


def test_a_folder_is_used_as_it_is(tmp_path: Path) -> None:
    found = resolve_checkpoint(str(tmp_path))
    assert (found.folder, found.name, found.revision) == (tmp_path, str(tmp_path), None)


@pytest.mark.parametrize(
    "name", ["", "no-such-folder", "/no/such/folder", "./a/b", "a/b/c", "a/../b", "-x/y", "a b/c"]
)
def test_neither_folder_nor_hub_id(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a folder nor a"):
        resolve_checkpoint(name, cache_dir=tmp_path)


def test_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="neither a folder nor a"):
        resolve_checkpoint(str(tmp_path / "model.safetensors"))


def test_only_needed_files_are_downloaded_and_later_starts_ask_nothing(hub: FakeHub, tmp_path: Path) -> None:
    found = resolve(hub, tmp_path)
    assert found.revision == COMMIT and found.name == NAME
    wanted = {"config.json", "tokenizer.json", "pytorch_model.bin", "colbert_linear.pt", "sparse_linear.pt"}
    assert {path.name for path in found.folder.iterdir()} == wanted
    assert all((found.folder / name).read_bytes() == FILES[name] for name in wanted)
    assert sorted(hub.gets()) == sorted(wanted)
    hub.requests.clear()
    assert resolve(hub, tmp_path, revision=COMMIT) == found
    assert not hub.requests
    assert resolve(hub, tmp_path) == found  # where `main` is now has to be asked
    assert [path for _, path, _ in hub.requests] == [f"/api/models/{NAME}/revision/main"]


def test_bge_m3_is_pinned(hub: FakeHub, tmp_path: Path) -> None:
    hub.name, hub.commit = "BAAI/bge-m3", PINNED_REVISIONS["BAAI/bge-m3"]
    assert resolve(hub, tmp_path, "BAAI/bge-m3").revision == "5617a9f61b028005a4858fdac845db406aefb181"
    assert not any("main" in path for _, path, _ in hub.requests)


def test_safetensors_are_preferred_and_shards_come_by_their_index(hub: FakeHub, tmp_path: Path) -> None:
    shards = {f"model-0000{i}-of-00002.safetensors": b"shard%d" % i for i in (1, 2)}
    table = {f"t{i}": name for i, name in enumerate(shards)}
    hub.files |= shards | {"model.safetensors.index.json": json.dumps({"weight_map": table}).encode()}
    names = {path.name for path in resolve(hub, tmp_path).folder.iterdir()}
    assert shards.keys() < names and "pytorch_model.bin" not in names
    del hub.files["model-00002-of-00002.safetensors"]
    with pytest.raises(CheckpointError, match=r"'model-00002-of-00002\.safetensors' missing"):
        resolve(hub, tmp_path / "other")
    hub.files["model.safetensors"] = b"whole"
    names = {path.name for path in resolve(hub, tmp_path / "third").folder.iterdir()}
    assert "model.safetensors" in names and not shards.keys() & names


def test_an_interrupted_download_goes_on_where_it_was(hub: FakeHub, tmp_path: Path) -> None:
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    blobs = tmp_path / "models--someone--mini-m3" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{sha256}.trivec.incomplete").write_bytes(WEIGHTS[:300_000])
    assert (resolve(hub, tmp_path).folder / "pytorch_model.bin").read_bytes() == WEIGHTS
    ranges = [asked for method, path, asked in hub.requests if method == "GET" and path.endswith(".bin")]
    assert ranges == ["bytes=300000-"]
    assert not list(blobs.glob("*.incomplete"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "sparse_linear.pt", "tokenizer.json"])
def test_a_download_with_a_wrong_checksum_is_removed(hub: FakeHub, tmp_path: Path, name: str) -> None:
    hub.served[name] = bytes([hub.files[name][0] ^ 1]) + hub.files[name][1:]
    with pytest.raises(CheckpointError, match=rf"{name} is damaged.*start again"):
        resolve(hub, tmp_path)
    hub.served.clear()
    assert (resolve(hub, tmp_path).folder / name).read_bytes() == FILES[name]


def test_a_damaged_file_of_another_programs_download_is_noticed(hub: FakeHub, tmp_path: Path) -> None:
    folder = resolve(hub, tmp_path).folder
    for marker in (tmp_path / "models--someone--mini-m3" / ".trivec").iterdir():
        marker.unlink()
    (folder / "pytorch_model.bin").resolve().write_bytes(b"\0" * len(WEIGHTS))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is damaged"):
        resolve(hub, tmp_path)
    assert (resolve(hub, tmp_path).folder / "pytorch_model.bin").read_bytes() == WEIGHTS


def test_a_file_that_was_deleted_comes_back(hub: FakeHub, tmp_path: Path) -> None:
    folder = resolve(hub, tmp_path).folder
    (folder / "config.json").resolve().unlink()
    (folder / "config.json").unlink()
    assert (resolve(hub, tmp_path, revision=COMMIT).folder / "config.json").exists()


@pytest.mark.parametrize("missing", ["tokenizer.json", "config.json", "pytorch_model.bin"])
def test_a_model_without_what_is_needed(hub: FakeHub, tmp_path: Path, missing: str) -> None:
    del hub.files[missing]
    with pytest.raises(CheckpointError, match=re.escape(missing)):
        resolve(hub, tmp_path)
    assert not hub.gets()


def test_heads_may_be_missing_here(hub: FakeHub, tmp_path: Path) -> None:
    del hub.files["sparse_linear.pt"]  # the loader refuses, unless dense only was asked for
    assert not (resolve(hub, tmp_path).folder / "sparse_linear.pt").exists()


def test_unknown_model_and_revision(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such model"):
        resolve(hub, tmp_path, "someone/else")
    with pytest.raises(CheckpointError, match="no revision 'v9'"):
        resolve(hub, tmp_path, revision="v9")


def test_not_enough_room(hub: FakeHub, tmp_path: Path) -> None:
    hub.sizes["pytorch_model.bin"] = 10**18
    with pytest.raises(CheckpointError, match=r"1,000,000,000,\d+ MB .* are free"):
        resolve(hub, tmp_path)
    assert not hub.gets()


@pytest.mark.parametrize("outage", ["refused", "error 500"])
def test_without_a_hub_what_is_cached_is_used(hub: FakeHub, tmp_path: Path, outage: str) -> None:
    found = resolve(hub, tmp_path)
    if outage == "refused":
        with socket.create_server(("127.0.0.1", 0)) as free:
            hub.endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    else:
        hub.status = 500
    assert resolve(hub, tmp_path) == found
    assert resolve(hub, tmp_path, revision=COMMIT) == found
    with pytest.raises(CheckpointError, match=r"gives no answer.*no whole copy.*config\.json"):
        resolve(hub, tmp_path / "empty")
    for marker in (tmp_path / "models--someone--mini-m3" / ".trivec").iterdir():
        marker.unlink()  # as another program would have left the cache
    assert resolve(hub, tmp_path, revision=COMMIT) == found
    (found.folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="no whole copy"):
        resolve(hub, tmp_path, revision=COMMIT)


def test_a_name_of_a_checksum_that_is_a_path_is_not_followed(hub: FakeHub, tmp_path: Path) -> None:
    info = json.loads(hub.info())
    next(s for s in info["siblings"] if s["rfilename"].endswith(".bin"))["lfs"]["sha256"] = "../../evil"
    hub.info = lambda: json.dumps(info).encode()  # type: ignore[method-assign]
    with pytest.raises(CheckpointError, match="damaged"):
        resolve(hub, tmp_path)
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("progress", [True, False])
def test_progress_bars_are_off_while_downloading_only(hub: FakeHub, tmp_path: Path, progress: bool) -> None:
    assert not are_progress_bars_disabled()
    resolve_checkpoint(NAME, cache_dir=tmp_path, progress=progress, endpoint=hub.endpoint)
    assert set(hub.bars) == {progress}
    assert not are_progress_bars_disabled()
