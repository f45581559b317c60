"""Steps over vectors of numbers, written as LLVM's own vector operations: what `code_kernels.py` is made of.

From plain loops LLVM makes neither the products of whole numbers nor the transpositions that processors have.
Nothing here names a processor. Legend as in `code_kernels.py`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

LANES = 16
"""Rows that are rotated side by side, so that every step of the transform is a step over vectors."""
TILE = 4
"""So many query vectors and so many rows share each load. Query arrays are padded to a multiple."""
ALIGNMENT = 32
"""Rows and query vectors are padded with zeros to a multiple of this many values."""
_FLOATS, _BYTES = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(ir.IntType(8), LANES)


@intrinsic  # type: ignore[untyped-decorator]
def pointer(_context: Any, _address: Any) -> Any:
    """The bytes at an address."""

    def make(_unused: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.CPointer(types.uint8)(types.uint64), make


def _transposition(element: ir.Type) -> Any:
    """What writes 16 vectors of 16 elements as their transpose: four rounds of zipping two halves.

    Arguments: address and bytes from vector to vector of the source, then of the target. LLVM would do
    single elements, or scatter them, which is slower still.
    """

    def make(_unused: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        source, source_step, target, target_step = arguments
        kind = ir.VectorType(element, LANES)
        size = element.width // 8 if isinstance(element, ir.IntType) else 4

        def place(base: Any, step: Any, number: int) -> Any:
            offset = builder.mul(step, ir.IntType(64)(number))
            return builder.inttoptr(builder.add(base, offset), kind.as_pointer())

        vectors = [builder.load(place(source, source_step, n), align=size) for n in range(LANES)]
        masks = [[half * LANES // 2 + n // 2 + (n % 2) * LANES for n in range(LANES)] for half in range(2)]
        for _ in range(LANES.bit_length() - 1):
            vectors = [
                builder.shuffle_vector(
                    vectors[n // 2], vectors[n // 2 + LANES // 2], _constants(masks[n % 2])
                )
                for n in range(LANES)
            ]
        for number, vector in enumerate(vectors):
            builder.store(vector, place(target, target_step, number), align=size)
        return ir.Constant(ir.IntType(64), 0)

    return types.int64(types.uint64, types.uint64, types.uint64, types.uint64), make


@intrinsic  # type: ignore[untyped-decorator]
def butterflies(_context: Any, _address: Any, _step: Any) -> Any:
    """Two steps of the transform on 4 vectors of LANES floats, `step` bytes from each to the next, in place.

    As vectors, for LLVM would have to prove first that the four do not overlap.
    """

    def make(_unused: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind, number = ir.VectorType(ir.FloatType(), LANES), ir.IntType(64)
        places = [
            builder.inttoptr(
                builder.add(arguments[0], builder.mul(arguments[1], number(n))), kind.as_pointer()
            )
            for n in range(4)
        ]
        a, b, c, d = (builder.load(place, align=4) for place in places)
        p, q, r, s = builder.fadd(a, b), builder.fsub(a, b), builder.fadd(c, d), builder.fsub(c, d)
        found = builder.fadd(p, r), builder.fadd(q, s), builder.fsub(p, r), builder.fsub(q, s)
        for place, value in zip(places, found, strict=True):
            builder.store(value, place, align=4)
        return ir.Constant(number, 0)

    return types.int64(types.uint64, types.uint64), make


@intrinsic  # type: ignore[untyped-decorator]
def scaled(_context: Any, _address: Any, _factor: Any) -> Any:
    """Multiply LANES floats at an address by one number, in place."""

    def make(_unused: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = ir.VectorType(ir.FloatType(), LANES)
        place = builder.inttoptr(arguments[0], kind.as_pointer())
        one = builder.insert_element(ir.Constant(kind, ir.Undefined), arguments[1], ir.IntType(32)(0))
        every = builder.shuffle_vector(one, one, _constants([0] * LANES))
        builder.store(builder.fmul(builder.load(place, align=4), every), place, align=4)
        return ir.Constant(ir.IntType(64), 0)

    return types.int64(types.uint64, types.float32), make


def _nearest(borders: int) -> Any:
    """What codes LANES values: which level each is nearest to, that level times the value, and its square.

    Arguments: the place, then addresses: of values [places, LANES], of a factor for each lane, of the borders
    between levels, of the gaps (the first level, then each less the one before), and of codes, products and
    squares [places, LANES]. Levels are whole numbers, so their sums are exact.
    """

    def make(_unused: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        place, values, factors, edges, gaps, codes, products, squares = arguments
        bits = ir.VectorType(ir.IntType(32), LANES)

        def spread(base: Any, number: int) -> Any:
            at = builder.add(base, ir.IntType(64)(4 * number))
            one = builder.load(builder.inttoptr(at, ir.FloatType().as_pointer()), align=4)
            lone = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), one, ir.IntType(32)(0))
            return builder.shuffle_vector(lone, lone, _constants([0] * LANES))

        value = builder.fmul(_loaded(builder, values, place), _loaded(builder, factors))
        code, level = ir.Constant(bits, [0] * LANES), spread(gaps, 0)
        for border in range(borders):
            above = builder.fcmp_ordered(">", value, spread(edges, border))
            code = builder.sub(code, builder.sext(above, bits))
            level = builder.select(above, builder.fadd(level, spread(gaps, border + 1)), level)
        _store(builder, builder.trunc(code, _BYTES), codes, place)
        _store(builder, builder.fmul(value, level), products, place)
        _store(builder, builder.fmul(level, level), squares, place)
        return ir.Constant(ir.IntType(64), 0)

    return types.int64(*(types.uint64,) * 8), make


@intrinsic  # type: ignore[untyped-decorator]
def nearest_of_2(_t: Any, _a: Any, _b: Any, _c: Any, _d: Any, _e: Any, _f: Any, _g: Any, _h: Any) -> Any:
    """See `_nearest`."""
    return _nearest(1)


@intrinsic  # type: ignore[untyped-decorator]
def nearest_of_4(_t: Any, _a: Any, _b: Any, _c: Any, _d: Any, _e: Any, _f: Any, _g: Any, _h: Any) -> Any:
    """See `_nearest`."""
    return _nearest(3)


@intrinsic  # type: ignore[untyped-decorator]
def nearest_of_16(_t: Any, _a: Any, _b: Any, _c: Any, _d: Any, _e: Any, _f: Any, _g: Any, _h: Any) -> Any:
    """See `_nearest`."""
    return _nearest(15)


@intrinsic  # type: ignore[untyped-decorator]
def rounded(_context: Any, _place: Any, _values: Any, _factors: Any, _codes: Any) -> Any:
    """Write LANES values, each times its lane's factor, as the nearest int8; the products are -127 to 127.

    Arguments as those of `_nearest`.
    """

    def make(_unused: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        place, values, factors, codes = arguments
        bits = ir.VectorType(ir.IntType(32), LANES)
        product = builder.fmul(_loaded(builder, values, place), _loaded(builder, factors))
        # A positive number cut off is rounded, the same way on every machine.
        moved = builder.fadd(product, ir.Constant(_FLOATS, [128.5] * LANES))
        whole = builder.sub(builder.fptosi(moved, bits), ir.Constant(bits, [128] * LANES))
        _store(builder, builder.trunc(whole, _BYTES), codes, place)
        return ir.Constant(ir.IntType(64), 0)

    return types.int64(*(types.uint64,) * 4), make


def _loaded(builder: Any, base: Any, place: Any = None) -> Any:
    """LANES floats, of the first place if none is given."""
    at = base if place is None else _offset(builder, base, place, 4)
    return builder.load(builder.inttoptr(at, _FLOATS.as_pointer()), align=4)


def _store(builder: Any, vector: Any, base: Any, place: Any) -> None:
    size = 1 if vector.type == _BYTES else 4
    at = _offset(builder, base, place, size)
    builder.store(vector, builder.inttoptr(at, vector.type.as_pointer()), align=size)


def _offset(builder: Any, base: Any, place: Any, size: int) -> Any:
    """The address of a place's LANES values of so many bytes."""
    return builder.add(base, builder.mul(place, ir.IntType(64)(size * LANES)))


def _constants(values: list[int]) -> Any:
    """A vector of int32, as masks are."""
    return ir.Constant(ir.VectorType(ir.IntType(32), len(values)), values)


@intrinsic  # type: ignore[untyped-decorator]
def transpose_floats(_context: Any, _a: Any, _b: Any, _c: Any, _d: Any) -> Any:
    """See `_transposition`."""
    return _transposition(ir.FloatType())


@intrinsic  # type: ignore[untyped-decorator]
def transpose_bytes(_context: Any, _a: Any, _b: Any, _c: Any, _d: Any) -> Any:
    """See `_transposition`."""
    return _transposition(ir.IntType(8))


def _products(whole: bool) -> Any:
    """What writes the dot products of TILE query vectors with TILE rows: [TILE rows, TILE query vectors].

    Arguments: address and bytes from vector to vector of the queries, of the rows and of the result, and the
    vectors' length, a multiple of ALIGNMENT. int16 to int32 where `whole`, else float32.
    Written as vectors, because LLVM multiplies int16 as int32 otherwise. The sum of neighbouring products
    is what it has one instruction for (vpmaddwd, vpdpwssd), or does step by step where there is none.
    """

    def make(_unused: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        queries, query_step, rows, row_step, found, found_step, length = arguments
        number = ir.IntType(64)
        wide = binding.get_host_cpu_features().get("avx512bw", False)
        # The sums must stay in registers: 16 of 512 bits where there are 32, else 8 of them at a time.
        lanes, at_once = (16, TILE) if wide else (8, TILE // 2)
        for first in range(0, TILE, at_once):
            places = [builder.add(queries, builder.mul(query_step, number(n))) for n in range(TILE)]
            places += [builder.add(rows, builder.mul(row_step, number(first + n))) for n in range(at_once)]
            sums = _product_loop(builder, whole, lanes, places, length)
            add = builder.add if whole else builder.fadd
            width = lanes
            while width > 1:
                # Neighbours are added until each lane holds one whole sum, in order.
                width //= 2
                if len(sums) > 1:
                    pairs = zip(sums[::2], sums[1::2], strict=True)
                    sums = [_neighbours(builder, one, other, lanes, add) for one, other in pairs]
                else:
                    sums = [_neighbours(builder, sums[0], sums[0], sums[0].type.count // 2, add)]
            for row in range(at_once):
                vector = sums[row * TILE // lanes]
                lane = row * TILE % lanes
                part = builder.shuffle_vector(vector, vector, _constants(list(range(lane, lane + TILE))))
                offset = builder.mul(found_step, number(first + row))
                target = builder.inttoptr(builder.add(found, offset), part.type.as_pointer())
                builder.store(part, target, align=4)
        return ir.Constant(number, 0)

    return types.int64(*(types.uint64,) * 7), make


def _product_loop(builder: Any, whole: bool, lanes: int, places: list[Any], length: Any) -> list[Any]:
    """The loop over the vectors at `places`, TILE query vectors and then rows; sums by row, then query."""
    number = ir.IntType(64)
    sums = ir.VectorType(ir.IntType(32) if whole else ir.FloatType(), lanes)
    step, size = (2 * lanes, 2) if whole else (lanes, 4)
    kind = ir.VectorType(ir.IntType(16), step) if whole else sums
    zero = ir.Constant(sums, [0] * lanes if whole else [0.0] * lanes)
    before = builder.block
    body, after = builder.append_basic_block("products"), builder.append_basic_block("sums")
    builder.branch(body)
    builder.position_at_end(body)
    at = builder.phi(number)
    running = [builder.phi(sums) for _ in range(TILE * (len(places) - TILE))]
    offset = builder.mul(at, number(size))
    loaded = [
        builder.load(builder.inttoptr(builder.add(place, offset), kind.as_pointer()), align=size)
        for place in places
    ]
    following = []
    for place, total in enumerate(running):
        query, row = loaded[place % TILE], loaded[TILE + place // TILE]
        if whole:
            double = ir.VectorType(ir.IntType(32), step)
            product = builder.mul(builder.sext(query, double), builder.sext(row, double))
            following.append(builder.add(total, _neighbours(builder, product, product, lanes, builder.add)))
        else:
            flags = ("reassoc", "contract", "nsz")
            following.append(builder.fadd(total, builder.fmul(query, row, flags=flags), flags=flags))
        total.add_incoming(zero, before)
        total.add_incoming(following[-1], body)
    end = builder.add(at, number(step))
    at.add_incoming(number(0), before)
    at.add_incoming(end, body)
    builder.cbranch(builder.icmp_unsigned("<", end, length), body, after)
    builder.position_at_end(after)
    return following


def _neighbours(builder: Any, one: Any, other: Any, lanes: int, add: Any) -> Any:
    """The sums of neighbours in two vectors laid end to end, the first `lanes` of them."""
    even, odd = _constants(list(range(0, 2 * lanes, 2))), _constants(list(range(1, 2 * lanes, 2)))
    return add(builder.shuffle_vector(one, other, even), builder.shuffle_vector(one, other, odd))


@intrinsic  # type: ignore[untyped-decorator]
def whole_products(_t: Any, _a: Any, _b: Any, _c: Any, _d: Any, _e: Any, _f: Any, _g: Any) -> Any:
    """See `_products`."""
    return _products(whole=True)


@intrinsic  # type: ignore[untyped-decorator]
def float_products(_t: Any, _a: Any, _b: Any, _c: Any, _d: Any, _e: Any, _f: Any, _g: Any) -> Any:
    """See `_products`."""
    return _products(whole=False)
