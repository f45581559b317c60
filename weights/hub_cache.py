"""Files of one hub model in huggingface_hub's cache: downloaded, resumed, verified, remembered.

Legend: a blob is a file under its checksum's name; a snapshot is a commit's folder of links to
blobs. Which files a checkpoint needs is for `fetch.py` to say.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weights.tensors import CheckpointError

log = logging.getLogger(__name__)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_DISK_MARGIN_BYTES = 100 * 2**20


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the hub lists it: `sha256` where it is stored by LFS, else git's `blob_id`."""

    name: str
    size: int
    sha256: str | None
    blob_id: str | None


@dataclass(frozen=True, slots=True)
class HubModel:
    """Where one model is: on the hub, and in the cache. `endpoint` None is the library's own."""

    name: str
    cache: Path
    endpoint: str | None

    @property
    def storage(self) -> Path:
        """The model's folder in the cache, by huggingface_hub's documented layout."""
        return self.cache / ("models--" + self.name.replace("/", "--"))

    def marker(self, commit: str) -> Path:
        """The file that remembers that a snapshot was downloaded whole and verified."""
        return self.storage / ".trivec" / f"{commit}.json"


def get_all(hub: HubModel, commit: str, files: list[RemoteFile]) -> None:
    """Bring files into the snapshot, each verified; those that are there are verified too."""
    from huggingface_hub import hf_hub_download

    folder = hub.storage / "snapshots" / commit
    needed = sum(file.size for file in files if not (folder / file.name).exists())
    there = next(path for path in (hub.cache, *hub.cache.parents) if path.exists())
    if needed and (free := shutil.disk_usage(there).free) < needed + _DISK_MARGIN_BYTES:
        raise CheckpointError(
            f"{hub.name}: {needed / 1e6:,.0f} MB are to be downloaded to {hub.cache}, and "
            f"{free / 1e6:,.0f} MB are free; make room, or choose another cache folder"
        )
    for file in files:
        fresh = not (folder / file.name).exists() and _get_blob(hub, commit, file)
        path = hf_hub_download(
            hub.name,
            file.name,
            revision=commit,
            cache_dir=hub.cache,
            endpoint=hub.endpoint,
        )
        if not fresh:
            _verify(Path(path), file)


def _get_blob(hub: HubModel, commit: str, file: RemoteFile) -> bool:
    """Download a large file to where the cache keeps it; True where it was verified on the way.

    The library begins anew when its process was killed. Here the part that came is kept beside, and
    the next start asks for the rest. `hf_hub_download` then finds the blob and only links it.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]

    if file.sha256 is None or not _SHA256.fullmatch(file.sha256):
        return False
    blob = hub.storage / "blobs" / file.sha256
    partial = blob.with_name(f"{file.sha256}.trivec.incomplete")
    lock = hub.cache / ".locks" / hub.storage.name / f"{file.sha256}.lock"  # the library's own lock
    blob.parent.mkdir(parents=True, exist_ok=True)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():
            return False
        with partial.open("ab") as stream:
            if stream.tell() > file.size:
                stream.truncate(0)
                stream.seek(0)
            http_get(
                hf_hub_url(hub.name, file.name, revision=commit, endpoint=hub.endpoint),
                stream,
                resume_size=stream.tell(),
                headers=build_hf_headers(),
                expected_size=file.size,
                displayed_filename=file.name,
            )
        _verify(partial, file)
        partial.replace(blob)
    return True


def _verify(path: Path, file: RemoteFile) -> None:
    """Compare a file with what the hub says of it; a damaged one is removed. Raises CheckpointError."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        kind, expected = ("git blob id", file.blob_id) if file.sha256 is None else ("sha256", file.sha256)
        if file.sha256 is not None:
            actual = hashlib.file_digest(stream, "sha256").hexdigest()
        else:
            actual = hashlib.sha1(b"blob %d\0" % size + stream.read(), usedforsecurity=False).hexdigest()
    if size == file.size and expected in (actual, None):
        return
    path.resolve().unlink()
    path.unlink(missing_ok=True)
    raise CheckpointError(
        f"{path}: {file.name} is damaged: {size} bytes with {kind} {actual}, and the hub has "
        f"{file.size} bytes with {expected}. It was removed; start again to download it anew"
    )


def verified(hub: HubModel, commit: str) -> Path | None:
    """The snapshot of a commit that was verified before and is still whole."""
    folder = hub.storage / "snapshots" / commit
    files = read_marker(hub.marker(commit))["files"]
    whole = all((folder / name).is_file() and (folder / name).stat().st_size == files[name] for name in files)
    return folder if files and whole else None


def read_marker(path: Path) -> dict[str, Any]:
    """What a marker remembers; nothing where there is none or it is unreadable: then all is verified anew."""
    try:
        marker = json.loads(path.read_text(encoding="utf-8"))
        return {"revisions": list(marker["revisions"]), "files": dict(marker["files"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {"revisions": [], "files": {}}


def remember(hub: HubModel, commit: str, revision: str, files: Mapping[str, int]) -> None:
    """Note that a snapshot is verified, and the revision it was asked by. A read-only cache is no error."""
    path = hub.marker(commit)
    revisions = sorted({*read_marker(path)["revisions"], revision})
    text = json.dumps({"revisions": revisions, "files": dict(files)}, indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        log.info("cannot note that the checkpoint was verified: %s", error)
