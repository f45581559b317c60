"""A collection embedded anew from its stored texts, with the checkpoint that the settings name.

Embeddings are staged beside the database while a server goes on serving the old ones, and adopted in one
transaction once nobody holds the data folder. A run that was killed goes on where it was; documents that
changed since are embedded again. What is stored, and how, is `app/index/restage.py`'s affair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from app.index import restage
from app.index.errors import DataFolderInUse, DocumentInvalid, StorageUnavailable
from app.index.owner import FolderLock, Owner
from app.index.restage import Source, Staging, Text
from app.index.values import CollectionInfo
from app.ports import ModelCard, TextModel
from app.settings import Settings
from model.embedder import token_batches
from model.embedding import Counting, Embedding, LexicalWeights

PAGE = 64
"""Documents that are read and tokenised at once; each forward pass is kept as soon as it is done."""

Status = Literal["current", "staged", "adopted", "refused"]


@dataclass(frozen=True, slots=True)
class ReindexReport:
    """What became of a collection."""

    status: Status
    """`current`: it was of that model already; `staged`: another process holds the folder; `refused`: not
    every document could be embedded."""
    collection: str
    model: str
    fingerprint: str
    documents: int
    embedded: int
    """Documents that this run embedded; those that an earlier one had staged are not among them."""
    refused: tuple[DocumentInvalid, ...] = ()
    holder: Owner | None = None


def reindex(
    settings: Settings,
    name: str,
    load: Callable[[], TextModel],
    *,
    finish: bool = False,
    progress: bool = True,
) -> ReindexReport:
    """Embed what is not staged yet, and adopt it where the folder is free.

    `finish` takes the folder's lock first and keeps it, so that nothing changes any more. `load` is called
    once folder and collection are known to be there.
    Raises DataFolderInUse with `finish` where another process holds the folder, CollectionNotFound,
    StorageFault; what was embedded by then is kept.
    """
    folder = settings.data_dir
    restage.check_folder(folder)
    with ExitStack() as stack:
        if finish:
            stack.enter_context(_holding(folder))
        source = stack.enter_context(closing(Source(folder, name, owned=finish)))
        stack.enter_context(_alone(folder))
        model = load()
        restage.tidy(source)
        run = _Run(source, model, settings, progress=progress)
        if source.info.fingerprint == model.card.fingerprint:
            return run.report("current")
        if not run.catch_up():
            return run.report("refused")
        if not finish:
            try:
                stack.enter_context(_holding(folder))
            except DataFolderInUse as error:
                return run.report("staged", Owner(error.pid, error.url))
            if not run.catch_up():
                return run.report("refused")
        run.adopt()
        return run.report("adopted")


class _Run:
    """One run over a collection."""

    def __init__(self, source: Source, model: TextModel, settings: Settings, *, progress: bool) -> None:
        card = model.card
        self._source = source
        self._model = model
        self._target: CollectionInfo = replace(
            source.info,
            fingerprint=card.fingerprint,
            hidden_size=card.hidden_size,
            colbert_dim=card.colbert_dim,
        )
        self._most = min(settings.passage_max_length, card.max_length)
        self._budget = settings.max_batch_tokens
        # None shows a bar on a terminal only.
        self._hidden = None if progress else True
        self._embedded = 0
        self._refused: dict[tuple[int, int], DocumentInvalid] = {}
        """By key and stamp: another version of the document is another matter."""

    def catch_up(self) -> bool:
        """Embed what is not staged, and then what has changed meanwhile, as long as that becomes less.

        Whether every document that it met could be embedded.
        """
        recipe = _recipe(self._model.card, self._most)
        target, source = self._target, self._source
        with closing(Staging(source.folder, source.key, target, recipe)) as staging, self._bar() as bar:
            before: int | None = None
            while (left := self._missing(staging)) and (before is None or len(left) < before):
                before, total = len(left), len(source.versions()[0])
                bar.reset(total)
                bar.initial = bar.n = total - before  # what was there before says nothing of the speed
                for first in range(0, before, PAGE):
                    self._page(staging, left[first : first + PAGE], bar)
        return not self._refused

    def adopt(self) -> None:
        """Make what is staged the collection's; the folder's lock is held."""
        with self._bar("adopting") as bar:

            def show(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            restage.adopt(self._source, self._target, show)

    def report(self, status: Status, holder: Owner | None = None) -> ReindexReport:
        """What this run has done."""
        return ReindexReport(
            status,
            self._source.info.name,
            self._model.card.name,
            self._model.card.fingerprint,
            len(self._source.versions()[0]),
            self._embedded,
            tuple(self._refused.values()),
            holder,
        )

    def _missing(self, staging: Staging) -> list[int]:
        keys, stamps = restage.missing(self._source, staging)
        pairs = zip(keys.tolist(), stamps.tolist(), strict=True)
        return [key for key, stamp in pairs if (key, stamp) not in self._refused]

    def _page(self, staging: Staging, keys: Sequence[int], bar: tqdm[None]) -> None:
        """Embed the present versions of these documents; those that are gone are passed over."""
        if not (texts := self._source.texts(keys)):
            return
        counting: Counting | None = "whole" if self._target.settings.bm25 else None
        tokenized = self._model.tokenize([one.text for one in texts], self._most, count_terms=counting)
        for batch in token_batches([len(one.ids) for one in tokenized], self._budget):
            found = self._model.forward([tokenized[place].ids for place in batch], self._model.card.outputs)
            rows = []
            for place, embedding in zip(batch, found, strict=True):
                tokens = tokenized[place]
                whole = replace(embedding, truncated=tokens.total > len(tokens.ids))
                if (row := self._row(staging, texts[place], whole, tokens.terms)) is not None:
                    rows.append(row)
            staging.put(rows)
            self._embedded += len(rows)
            bar.update(len(batch))

    def _row(
        self, staging: Staging, text: Text, embedding: Embedding, terms: LexicalWeights | None
    ) -> restage.Row | None:
        try:
            return staging.row(text, embedding, terms)
        except DocumentInvalid as error:
            self._refused[text.key, text.stamp] = error
            return None

    def _bar(self, doing: str = "reindexing") -> tqdm[None]:
        name = self._source.info.name
        return tqdm(desc=f"{doing} {name}", unit="doc", disable=self._hidden)


def _recipe(card: ModelCard, most: int) -> dict[str, object]:
    """What decides a document's vectors besides its text and the checkpoint."""
    return {"precision": card.precision, "outputs": list(card.outputs), "passage_max_length": most}


@contextmanager
def _holding(folder: Path) -> Iterator[None]:
    """The folder's lock; DataFolderInUse where another process holds it."""
    lock = FolderLock(folder)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """The only process that stages in this folder; StorageUnavailable where there is another."""
    try:
        lock = FolderLock(folder / restage.STAGING)
    except DataFolderInUse as error:
        who = "another process" if error.pid is None else f"process {error.pid}"
        raise StorageUnavailable(f"{who} is reindexing in {folder}; wait until it has ended") from error
    try:
        yield
    finally:
        lock.release()
