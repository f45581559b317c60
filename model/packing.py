"""How a batch of texts is laid out without padding, and how attention walks over it.

Legend: B texts, T tokens of a text, S = sum of T (the packed rows), H heads.
Linear layers, GELU and LayerNorm run on the S packed rows, so no pad token is ever multiplied
there. Attention runs tile by tile: a tile is a few texts of nearly equal length, or one long text whose
query rows attend some at a time, so that memory grows with T and not with T squared.
This file is NumPy: it decides, and `encoder.py` computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.embedding import IntArray

# A text joins a tile only while at most this share of the tile's keys is padding. Small texts
# always may: their attention costs next to nothing, a tile of its own costs more.
_MAX_PADDING = 0.15
_SMALL_TEXT = 32


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A batch as flat arrays, ready for one forward pass.

    Shapes: `ids`, `positions` [S]; `starts` [B + 1] (text b is rows starts[b]:starts[b + 1]);
    `tile_sizes` [tiles, 3] as (texts, rows of each, query rows at a time); `rows` all tiles' row numbers
    one after another, padding as row 0; `visible` beside them, False at padding; `gather` [S]: where each
    packed row lies among `rows`; `steps` how often query rows attend. All int32 but `visible`.
    """

    ids: IntArray
    positions: IntArray
    starts: IntArray
    tile_sizes: IntArray
    rows: IntArray
    visible: NDArray[np.bool_]
    gather: IntArray
    steps: int

    @property
    def scores(self) -> int:
        """Attention scores of all tiles for one head, padding among them."""
        texts, rows, _ = self.tile_sizes.astype(np.int64).T
        return int((texts * rows * rows).sum())


def pack(batch: Sequence[IntArray], *, pad_token_id: int, num_heads: int, max_scores: int) -> PackedBatch:
    """Lay out token ids for one forward pass.

    `max_scores` bounds the attention scores (G * H * Tq * Tk) of a tile, and so its memory.
    Raises ValueError for an empty batch or text.
    """
    lengths = np.array([len(ids) for ids in batch], np.int32)
    if not lengths.size or not lengths.all():
        raise ValueError("a batch needs at least one text, and a text at least one token")
    starts = np.zeros(lengths.size + 1, np.int32)
    np.cumsum(lengths, out=starts[1:])
    ids = np.concatenate(batch).astype(np.int32, copy=False)
    found = list(tiles(lengths, starts, num_heads=num_heads, max_scores=max_scores))
    rows = np.concatenate([tile.ravel() for tile, _ in found])
    gather = np.zeros(ids.size, np.int32)
    real = np.flatnonzero(rows >= 0)
    gather[rows[real]] = real
    return PackedBatch(
        ids=ids,
        positions=positions(ids, starts, pad_token_id),
        starts=starts,
        tile_sizes=np.array([(*tile.shape, step) for tile, step in found], np.int32),
        rows=np.maximum(rows, 0),
        visible=rows >= 0,
        gather=gather,
        steps=sum(-(-tile.shape[1] // step) for tile, step in found),
    )


def positions(ids: IntArray, starts: IntArray, pad_token_id: int) -> IntArray:
    """Position ids [S]: pad id + running count of non-pad tokens of the text, so the first is pad id + 1.

    A literal `<pad>` inside a text keeps the pad's position and does not advance the count, as in
    the reference (transformers, `create_position_ids_from_input_ids`).
    """
    counted = ids != pad_token_id
    running = np.cumsum(counted, dtype=np.int32)
    before = running[starts[:-1]] - counted[starts[:-1]]
    within = running - np.repeat(before, np.diff(starts))
    return np.asarray(pad_token_id + within * counted, np.int32)


def tiles(
    lengths: IntArray, starts: IntArray, *, num_heads: int, max_scores: int
) -> Iterator[tuple[IntArray, int]]:
    """Cut the attention of a batch into tiles, longest texts first.

    A tile is its row numbers [texts, rows], -1 for padding, and how many query rows attend at a time: all,
    except where one text's own T * T * H scores are over `max_scores`; then as many as fit, at least one.
    """
    order = np.argsort(-lengths, kind="stable")
    first = 0
    while first < order.size:
        longest = int(lengths[order[first]])
        room = max(1, max_scores // (longest * longest * num_heads))
        shortest = min((1 - _MAX_PADDING) * longest, longest - 1) if longest > _SMALL_TEXT else 1
        last = first + 1
        while last < order.size and last - first < room and lengths[order[last]] >= shortest:
            last += 1
        step = longest if last - first > 1 else max(1, min(longest, max_scores // (longest * num_heads)))
        yield _rows(starts, order[first:last], longest), step
        first = last


def _rows(starts: IntArray, texts: NDArray[np.intp], width: int) -> IntArray:
    """Packed row numbers of some texts as [G, width], -1 past a text's end."""
    column = np.arange(width, dtype=np.int32)
    rows = starts[texts, None] + column
    return np.where(rows < starts[texts + 1, None], rows, np.int32(-1))
