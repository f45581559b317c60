"""What can go wrong in the index, drawn once: a class of its own only where the caller acts differently.

Messages name what was wrong, the value seen and what to do. They never quote a document's text, and
only those of opening a data folder name a path.
"""

from __future__ import annotations


class IndexFault(Exception):  # noqa: N818 - IndexError is Python's own
    """The base of every error that `app.index` raises on purpose."""


class InputInvalid(IndexFault):
    """What the caller sent cannot be used; sending it again cannot help."""


class NameInvalid(InputInvalid):
    """A collection's name does not fit the pattern."""


class DocumentInvalid(InputInvalid):
    """One document cannot be stored; nothing of its batch has been."""

    def __init__(self, document_id: object, part: str, reason: str) -> None:
        # An id may be of any type and length here: it is what is being refused.
        self.document_id = document_id if isinstance(document_id, str) else repr(document_id)
        self.part = part
        super().__init__(f"document {_shortened(self.document_id)}: {part}: {reason}")


class QueryInvalid(InputInvalid):
    """A search lacks what its mode needs, or its vectors do not fit the collection."""

    def __init__(self, part: str, reason: str) -> None:
        self.part = part
        super().__init__(f"{part}: {reason}")


class HitsTooLarge(InputInvalid):
    """The hits' texts, metadata and vectors would take more memory than the request allows."""


class FilterError(InputInvalid):
    """A filter does not follow the grammar. `path` is where in the filter, e.g. `$and[1].year`."""

    def __init__(self, path: str, reason: str, operator: str | None = None) -> None:
        self.path = clipped(path)
        self.operator = operator
        where = f"filter at {self.path}" if path else "filter"
        super().__init__(f"{where}: {reason}")


class CollectionNotFound(IndexFault):
    """No collection of that name, or it was dropped while its handle was kept."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"there is no collection {_shortened(name)}")


class CollectionExists(IndexFault):
    """A collection of that name exists with other settings."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(
            f"collection {name!r} exists with other settings; drop it first or choose another name"
        )


class ModelMismatch(IndexFault):
    """A collection's vectors were made by another checkpoint than the one in use."""

    def __init__(self, name: str, made_with: str, in_use: str) -> None:
        self.name = name
        self.made_with = made_with
        self.in_use = in_use
        super().__init__(
            f"collection {name!r} was made with model {made_with}, the model in use is {in_use}: "
            "their vectors do not mix; serve the first one again, or re-embed the collection "
            f"from its stored texts: trivec reindex --collection {name}"
        )


class DataFolderInUse(IndexFault):
    """Another process owns the data folder."""

    def __init__(self, folder: str, pid: int | None, url: str | None) -> None:
        self.folder = folder
        self.pid = pid
        self.url = url
        owner = "another process" if pid is None else f"process {pid}"
        at = "" if url is None else f", which answers at {url}"
        super().__init__(f"data folder {folder} is in use by {owner}{at}")


class StorageFault(IndexFault):
    """The file or the disk below cannot do what was asked; nothing was changed."""


class StorageFull(StorageFault):
    """No space left: writing fails until some is made, reading goes on."""


class StorageUnavailable(StorageFault):
    """Read-only, closed, locked by others or failing; the same call may work later."""


class StorageDamaged(StorageFault):
    """The file is not a database of ours, is damaged, or is of a newer version."""


def clipped(name: str, limit: int = 80) -> str:
    """A name that the caller chose, at a length that a message may have."""
    return name if len(name) <= limit else f"{name[: limit - 3]}..."


def _shortened(name: str, limit: int = 80) -> str:
    return repr(name) if len(name) <= limit else f"{name[:limit]!r}..."
