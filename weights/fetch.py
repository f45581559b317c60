"""Find a checkpoint: a folder as it is, or a model of the Hugging Face hub, downloaded once and verified.

From `huggingface_hub` come the cache and its layout, shared with other programs; authentication,
endpoint and offline mode, by its own environment variables; retries and progress bars. What it does
not give is added here: a pinned revision, only the files that are needed, resuming after the process
was killed, and the hub's checksum, compared before a file enters the cache.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from weights.checkpoint import INDEX_SUFFIX, WEIGHT_FILES, CheckpointError, find_weights, read_index
from weights.hub_cache import HubModel, RemoteFile, get_all, read_marker, remember, verified
from weights.mapping import COLBERT_FILE, SPARSE_FILE
from weights.tensors import listed

if TYPE_CHECKING:
    from huggingface_hub import HfApi

log = logging.getLogger(__name__)

PINNED_REVISIONS: Mapping[str, str] = {"BAAI/bge-m3": "5617a9f61b028005a4858fdac845db406aefb181"}
"""What is taken where no revision is asked for, so that a model does not change under an index."""

REQUIRED_FILES = ("config.json", "tokenizer.json")

_HUB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class ResolvedCheckpoint:
    """A checkpoint on this machine. `revision` is the hub's commit, None for a folder of the user's."""

    folder: Path
    name: str
    revision: str | None


def resolve_checkpoint(
    name: str,
    *,
    revision: str | None = None,
    cache_dir: Path | None = None,
    progress: bool = True,
    endpoint: str | None = None,
) -> ResolvedCheckpoint:
    """Take a folder as it is; download anything else from the hub, unless it is there already.

    A folder wins over a hub id of the same name. `revision` is a branch, tag or commit; without one
    it is the pinned commit, or `main`, whose commit is reported. `cache_dir` and `endpoint` are
    huggingface_hub's own where they are None. A commit that was verified once needs no network.
    Raises CheckpointError: no such folder or model, no network, no room, damaged download.
    """
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return ResolvedCheckpoint(folder, name, None)
    if folder.exists() or not _HUB_ID.fullmatch(name):
        raise CheckpointError(
            f"{name}: is neither a folder nor a model of the hub (owner/model, such as BAAI/bge-m3); "
            "give the folder that holds config.json and the weights, or a hub id"
        )
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE) if cache_dir is None else cache_dir
    hub = HubModel(name, cache.expanduser().absolute(), endpoint)
    revision = revision or PINNED_REVISIONS.get(name, "main")
    if _COMMIT.fullmatch(revision) and (folder_there := verified(hub, revision)) is not None:
        return ResolvedCheckpoint(folder_there, name, revision)
    with _progress_bars(progress):
        return _from_hub(hub, revision)


def _from_hub(hub: HubModel, revision: str) -> ResolvedCheckpoint:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    api = HfApi(endpoint=hub.endpoint)
    unreachable = _unreachable()
    try:
        return _download(hub, revision, api)
    except HFValidationError as error:
        raise CheckpointError(f"{hub.name}: is neither a folder nor a hub id: {error}") from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{hub.name}: the hub has no revision {revision!r} of it") from error
    except GatedRepoError as error:
        raise CheckpointError(
            f"{hub.name}: its owner grants access on request; ask there, then log in (hf auth login)"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{hub.name}: no folder here, and no such model on {api.endpoint}; check the name, "
            "and log in (hf auth login) if the model is private"
        ) from error
    except unreachable as error:
        # Only a hub that cannot be asked: what it says of a name, above, holds whatever is cached.
        return _offline(hub, revision, api.endpoint, error)
    except OSError as error:
        raise CheckpointError(f"{hub.name}: the download to {hub.cache} failed: {error}") from error


def _unreachable() -> tuple[type[Exception], ...]:
    """What is raised where the hub gives no answer, or none but an error.

    The client is httpx or its successor, by the library's version; its base class is what the
    library's own HTTP error derives from.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    client = [
        base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception) and base is not OSError
    ]
    return (HfHubHTTPError, *client, LocalEntryNotFoundError, OfflineModeIsEnabled)


def _download(hub: HubModel, revision: str, api: HfApi) -> ResolvedCheckpoint:
    info = api.model_info(hub.name, revision=revision, files_metadata=True)
    commit = info.sha
    if commit is None or not _COMMIT.fullmatch(commit):
        raise CheckpointError(f"{hub.name}: {api.endpoint} names no commit for {revision!r}; is it a hub?")
    listing = {
        file.rfilename: RemoteFile(
            file.rfilename, file.size or 0, None if file.lfs is None else file.lfs.sha256, file.blob_id
        )
        for file in info.siblings or ()
    }
    folder = hub.storage / "snapshots" / commit
    if verified(hub, commit) is None:
        weights = _choose_weights(hub, listing)
        names = {*REQUIRED_FILES, weights, *({COLBERT_FILE, SPARSE_FILE} & listing.keys())}
        if weights.endswith(INDEX_SUFFIX):
            get_all(hub, commit, [listing[weights]])
            names |= set(read_index(folder / weights).values())
        if absent := names - listing.keys():
            raise CheckpointError(
                f"{hub.name}: {listed(absent)} missing at commit {commit}. Trivec reads config.json, "
                "tokenizer.json and all shards of the weights; take another revision or model"
            )
        get_all(hub, commit, [listing[name] for name in sorted(names)])
        files = {name: listing[name].size for name in sorted(names)}
    else:
        files = read_marker(hub.marker(commit))["files"]
    remember(hub, commit, revision, files)
    return ResolvedCheckpoint(folder, hub.name, commit)


def _choose_weights(hub: HubModel, listing: Iterable[str]) -> str:
    for name in WEIGHT_FILES:
        if name in listing:
            return name
    raise CheckpointError(
        f"{hub.name}: has no weights that Trivec reads; looked for {', '.join(WEIGHT_FILES)}. "
        "Is it a model for another program, such as GGUF or ONNX?"
    )


def _offline(hub: HubModel, revision: str, endpoint: str, error: Exception) -> ResolvedCheckpoint:
    """The snapshot that is cached, where the hub cannot be asked."""
    from huggingface_hub import try_to_load_from_cache

    markers = sorted(hub.marker("x").parent.glob("*.json"), key=lambda path: -path.stat().st_mtime)
    for path in markers:
        if revision in read_marker(path)["revisions"] and (folder := verified(hub, path.stem)) is not None:
            return ResolvedCheckpoint(folder, hub.name, path.stem)
    found = try_to_load_from_cache(hub.name, "config.json", cache_dir=hub.cache, revision=revision)
    if isinstance(found, str) and _complete(snapshot := Path(found).parent):
        log.warning("%s: the hub cannot be reached; its cached files are used without verification", hub.name)
        return ResolvedCheckpoint(snapshot, hub.name, snapshot.name)
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    raise CheckpointError(
        f"{hub.name}: {endpoint} gives no answer ({reason}), and {hub.cache} has no "
        f"whole copy of revision {revision}. Connect and start again, or copy config.json, tokenizer.json, "
        "the weights and the two head files from elsewhere into a folder and give its path"
    ) from error


def _complete(folder: Path) -> bool:
    try:
        weights = find_weights(folder)
        shards = set(read_index(weights).values()) if weights.name.endswith(INDEX_SUFFIX) else set()
    except CheckpointError:
        return False
    return all((folder / name).is_file() for name in (*REQUIRED_FILES, *shards))


@contextmanager
def _progress_bars(wanted: bool) -> Iterator[None]:
    """Turn the library's progress bars off for a while; it has one switch for all, in every version."""
    from huggingface_hub import utils

    change = not wanted and not utils.are_progress_bars_disabled()  # type: ignore[attr-defined]
    if change:
        utils.disable_progress_bars()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if change:
            utils.enable_progress_bars()  # type: ignore[attr-defined]
