"""Which batch size a side is timed with: the fastest of those that it may choose from."""

from __future__ import annotations

from benchmarks.encode_sides.checking import encode
from benchmarks.encode_sides.process import SideProcess
from benchmarks.encode_sides.registry import SideSpec
from benchmarks.encode_sides.workloads import Cell

TUNE_ROUNDS = 2  # the better of two: one alone may meet another program's burst


def batch_sizes_to_try(spec: SideSpec, cell: Cell) -> tuple[int, ...]:
    """The sizes that differ for so many texts: up to the first that holds them all."""
    if not spec.batch_sizes:
        return ()
    if cell.kind.batch_size is not None:
        return (cell.kind.batch_size,)
    if len(spec.batch_sizes) == 1:
        return spec.batch_sizes
    below = [size for size in spec.batch_sizes if size < cell.count]
    return (*below, *[size for size in spec.batch_sizes if size >= cell.count][:1])


def tune(side: SideProcess, spec: SideSpec, cell: Cell, texts: int) -> tuple[int | None, dict[str, float]]:
    """The fastest batch size and the seconds of each, on at most `texts` of a call, evenly by length.

    Fewer texts than a call has disfavour large batches a little: with more, neighbours are closer in length.
    """
    sizes = batch_sizes_to_try(spec, cell)
    if len(sizes) < 2:
        return (sizes[0] if sizes else None), {}
    by_length = sorted(zip(cell.lengths, cell.calls[0], strict=False), key=lambda pair: pair[0])
    step = max(1, len(by_length) // texts)
    sample = [text for _, text in by_length[::step][:texts]]
    seconds = dict.fromkeys(sizes, float("inf"))
    for _ in range(TUNE_ROUNDS):
        for size in sizes:
            took = encode(side, sample, cell.kind.max_length, size)["seconds"]
            seconds[size] = min(seconds[size], took)
    best = min(seconds, key=lambda size: seconds[size])
    return best, {str(size): round(value, 2) for size, value in seconds.items()}
