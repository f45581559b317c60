"""Trivec's index by its public API, in process. All that this benchmark knows of Trivec is in this file.

Options: those of `CollectionSettings` by name (`colbert`, `dense_index`), for the group "all" and "dense";
`rows` "codes" stores random codes in place of token rows: good for time and memory, useless for recall.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from app.index.codes import codec
from app.index.collection import (
    Collection,
    CollectionSettings,
    Database,
    Document,
    Hit,
    Mode,
    SearchRequest,
)
from app.index.filters import Filter, parse
from benchmarks.encode_sides.protocol import cores
from benchmarks.search_sides.protocol import FILTERS, Ask, Place, serve
from benchmarks.synthetic import Batch, Floats, Query
from model.embedding import Embedding, LexicalWeights

POOL = 32_768
SETTLED_S = 900.0
NAME, FINGERPRINT = "benchmark", "synthetic"
MODES: dict[str, Mode] = {"lexical": "sparse", "dense": "dense", "hybrid": "hybrid", "colbert": "colbert"}
OPERATORS = {"=": "$eq", ">=": "$gte"}

assert {*MODES.values()} == {*get_args(Mode)} - {"bm25"}


class TrivecSide:
    """A collection whose documents have the outputs of the group."""

    packages = ("faiss-cpu", "numpy", "numba")
    threads = cores()
    remarks = ("durable: every upsert is on disk when it returns",)

    def __init__(self, place: Place) -> None:
        self._group = place.group
        self._codes: NDArray[np.uint8] | None = None
        if place.options.get("rows") == "codes":
            self._codes = _codes(str(place.options["colbert"]), place.width)
        self._database = Database(place.folder, fingerprint=FINGERPRINT)
        chosen: dict[str, Any] = {name: value for name, value in place.options.items() if name != "rows"}
        self._collection: Collection = self._database.create(
            NAME,
            CollectionSettings(**chosen),
            fingerprint=FINGERPRINT,
            hidden_size=place.width,
            colbert_dim=place.width,
        )

    def pack(self, batch: Batch, rows: Sequence[Floats] | None) -> list[Document]:
        return [
            Document(
                id,
                batch.texts[place],
                Embedding(
                    tokens=int(batch.rows[place]) + 1,
                    dense=None if self._group == "lexical" else batch.dense[place],
                    sparse=None if self._group == "dense" else LexicalWeights(*batch.lexical(place)),
                    colbert=None if rows is None else rows[place],
                ),
                batch.metadata[place],
                self._codes_of(batch, place),
            )
            for place, id in enumerate(batch.ids)
        ]

    def _codes_of(self, batch: Batch, place: int) -> bytes | None:
        """Rows of the pool that follow each other: another stretch for each document."""
        if self._codes is None or self._group != "all":
            return None
        rows = int(batch.rows[place])
        first = (batch.first + place) * 7919 % (POOL - rows)
        return self._codes[first : first + rows].tobytes()

    def add(self, packed: list[Document]) -> None:
        self._collection.upsert(packed)

    def finish(self) -> None:
        """Wait until segments are merged: what was written is found at once, but measured at rest."""
        state = self._collection.load()
        end = time.monotonic() + SETTLED_S
        while len(state.parts) > 1 and time.monotonic() < end:
            time.sleep(0.5)
            state = self._collection.load()

    def prepare(self, query: Query, ask: Ask) -> SearchRequest:
        whole = self._group == "all"
        return SearchRequest(
            query=Embedding(
                tokens=len(query.rows) + 1,
                dense=None if self._group == "lexical" else query.dense,
                sparse=None if self._group == "dense" else LexicalWeights(query.terms, query.weights),
                colbert=query.rows if whole else None,
            ),
            mode=MODES[ask.mode],
            top_k=ask.k,
            candidates=ask.candidates or None,
            filter=_filter(ask.filter),
        )

    def search(self, request: SearchRequest) -> list[Hit]:
        return self._collection.search(request)

    def numbers(self, found: list[Hit]) -> list[int]:
        return [int(hit.id[1:]) for hit in found]


def _codes(kind: str, width: int) -> NDArray[np.uint8]:
    """A pool of random unit rows as a collection of that kind stores them. Shape: [POOL, bytes of a row]."""
    rows = np.random.default_rng(0).standard_normal((POOL, width)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    coded = codec(kind, width).encode(rows)  # type: ignore[arg-type]
    return np.frombuffer(coded, np.uint8).reshape(POOL, -1)


def _filter(name: str | None) -> Filter | None:
    if name is None:
        return None
    condition = FILTERS[name]
    return parse({condition.field: {OPERATORS[condition.operator]: condition.value}})


if __name__ == "__main__":
    serve(TrivecSide)
