"""A data folder belongs to one process: a lock that the system drops when that process ends, however it ends.

The lock file says who holds it and where it answers; the lock, not the file, is what counts. So a file
left behind by a killed process means nothing, and no process id is ever taken for alive.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from app.index.errors import DataFolderInUse, StorageUnavailable

LOCK_NAME = "trivec.lock"
# `owner` holds the lock for an instant when it looks; an opener that meets it there tries again.
_ATTEMPTS, _PAUSE_S = 10, 0.02


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that holds a data folder; what it has not written (yet) is None."""

    pid: int | None
    url: str | None


class FolderLock:
    """The lock on a data folder, held from construction to `release`."""

    def __init__(self, folder: Path, url: str | None = None) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageUnavailable(f"cannot use {folder} as data folder: {error.strerror}") from error
        if not _locked(self._file, _ATTEMPTS):
            holder = _written(self._file)
            os.close(self._file)
            raise DataFolderInUse(str(folder), holder.pid, holder.url)
        self.announce(url)

    def announce(self, url: str | None) -> None:
        """Write this process and the address at which it answers into the lock file."""
        self._write(json.dumps({"pid": os.getpid(), "url": url}).encode())

    def release(self) -> None:
        """Give the folder free. The file stays: removing it could remove a successor's."""
        if self._file >= 0:
            self._write(b"")
            os.close(self._file)
            self._file = -1

    def _write(self, content: bytes) -> None:
        # What it says is a courtesy, the lock itself holds; a full disk must not keep a folder from opening.
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, content, 0)
        except OSError:
            return


def owner(folder: Path) -> Owner | None:
    """Who holds a data folder now, or None; nothing is created."""
    try:
        file = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return None if _locked(file, 1) else _written(file)
    finally:
        os.close(file)  # closing drops the lock


def _locked(file: int, attempts: int) -> bool:
    for attempt in range(attempts):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if attempt + 1 < attempts:
                time.sleep(_PAUSE_S)
    return False


def _written(file: int) -> Owner:
    try:
        content = json.loads(os.pread(file, 65536, 0))
    except ValueError:
        return Owner(None, None)  # caught between truncate and write
    if not isinstance(content, dict):
        return Owner(None, None)
    pid, url = content.get("pid"), content.get("url")
    return Owner(pid if isinstance(pid, int) else None, url if isinstance(url, str) else None)
