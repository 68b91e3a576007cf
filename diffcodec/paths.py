"""What the search of the trellis does to its paths, LANES of them at a time.

A compiler's vectors take several times as long here: it does not find the instructions that pack
the chosen lanes of a vector.  They are named where the machine has them (AVX-512 or AVX2) and
written out elsewhere, with the same result.

Paths are two arrays: states (uint32) and costs (int32, see ``prices``).  Behind the last path
stand LANES more that cost HOPELESS, so that vectors need not end where the paths do; what is packed
may take LANES more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from diffcodec.prices import LANES, REACHES, Pricer, all_lanes, lanes_of, pricer, splat
from diffcodec.simd import at, data_of, instruction, target_has

HOPELESS = 1 << 30
"""A cost that no path reaches: a segment's coefficients cost 32 nats each at the most."""

_INT, _LONG = ir.IntType(32), ir.IntType(64)
_INTS = ir.VectorType(_INT, LANES)
_tools: Any = cgutils  # which has no types


def _pack(builder: Any, vectors: list[Any], mask: Any, pointers: list[Any], n: Any) -> Any:
    """Store the chosen lanes of ``vectors`` from place n on: the next place.

    What is stored beyond them is gone over later.
    """
    if target_has("avx512f"):
        name = "llvm.x86.avx512.mask.compress.v16i32"
        for vector, pointer in zip(vectors, pointers, strict=True):
            packed = instruction(builder, name, _INTS, vector, ir.Constant(_INTS, None), mask)
            builder.store(packed, at(builder, pointer, n, _INTS), align=4)
        number = builder.ctpop(builder.bitcast(mask, ir.IntType(LANES)))
        return builder.add(n, builder.zext(number, _LONG))
    if target_has("avx2"):
        for half in (0, 1):
            parts = [lanes_of(builder, x, half, LANES // 2) for x in vectors]
            n = _pack_half(builder, parts, lanes_of(builder, mask, half, LANES // 2), pointers, n)
        return n
    for lane in map(_INT, range(LANES)):
        for vector, pointer in zip(vectors, pointers, strict=True):
            builder.store(builder.extract_element(vector, lane), builder.gep(pointer, [n]))
        n = builder.add(n, builder.zext(builder.extract_element(mask, lane), _LONG))
    return n


def _pack_half(builder: Any, vectors: list[Any], mask: Any, pointers: list[Any], n: Any) -> Any:
    """The same of half as many lanes: AVX2 moves them as a table has it for each mask."""
    size = LANES // 2
    rows = [sorted(range(size), key=lambda lane: not m >> lane & 1) for m in range(1 << size)]
    table = ir.Constant(
        ir.ArrayType(_LONG, len(rows)), [int.from_bytes(bytes(row), "little") for row in rows]
    )
    start = _tools.global_constant(builder, "packing", table)
    chosen, half = builder.bitcast(mask, ir.IntType(size)), ir.VectorType(_INT, size)
    row = builder.load(builder.gep(start, [_LONG(0), builder.zext(chosen, _LONG)]))
    lanes = builder.zext(builder.bitcast(row, ir.VectorType(ir.IntType(8), size)), half)
    for vector, pointer in zip(vectors, pointers, strict=True):
        packed = instruction(builder, "llvm.x86.avx2.permd", half, vector, lanes)
        builder.store(packed, at(builder, pointer, n, half), align=4)
    return builder.add(n, builder.zext(builder.ctpop(chosen), _LONG))


def _fork_paths(typing_context, count, paths, k, bits, tables, nibbles, limit, to, n, most, marks):  # type: ignore[no-untyped-def]
    """:func:`fork`; bits: the last ones of the children with a 1; there is room for some."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        count, paths, k, bits, _, nibbles, limit, to, n, most, _ = arguments
        kinds = signature.args

        def data(number: int, arrays: Any) -> list[Any]:
            kind = kinds[number]
            unpacked = zip(kind.types, _tools.unpack_tuple(builder, arrays, 2), strict=True)
            found = [data_of(context, builder, own, array) for own, array in unpacked]
            return [builder.bitcast(x, _INT.as_pointer()) for x in found]

        sources, targets = data(1, paths), data(7, to)
        prices, mark = (data_of(context, builder, kinds[i], arguments[i]) for i in (4, 10))
        k, bits, limits = (splat(builder, x) for x in (k, bits, limit))
        vectors = builder.udiv(builder.add(count, _LONG(LANES - 1)), _LONG(LANES))
        end = _tools.alloca_once_value(builder, n)

        def lanes(place: Any, priced: Pricer) -> Any:
            """Fork the paths from a place on; which of them are kept."""
            state, cost = (builder.load(at(builder, x, place, _INTS), align=4) for x in sources)
            odd = builder.or_(builder.shl(state, k), bits)
            totals = priced(odd, cost)
            chosen = [builder.icmp_signed("<=", total, limits) for total in totals]
            children, here = (odd, builder.xor(odd, all_lanes(1))), builder.load(end)
            for child, own, mask in zip(children, totals, chosen, strict=True):
                here = _pack(builder, [child, own], mask, targets, here)
            builder.store(here, end)
            low, high = (builder.zext(builder.bitcast(x, ir.IntType(LANES)), _INT) for x in chosen)
            return builder.or_(low, builder.shl(high, _INT(LANES)))

        def all_vectors(reach: int | None) -> None:
            priced = pricer(builder, prices, nibbles, reach)
            with _tools.for_range(builder, vectors) as loop:
                kept = lanes(builder.mul(loop.index, _LONG(LANES)), priced)
                builder.store(kept, builder.gep(mark, [loop.index]))
                full = builder.icmp_signed(">", builder.load(end), most)
                with builder.if_then(full, likely=False):
                    after = builder.add(loop.index, _LONG(1))
                    with _tools.for_range(builder, vectors, start=after) as rest:
                        builder.store(_INT(0), builder.gep(mark, [rest.index]))
                    loop.do_break()

        def by_length(reaches: tuple[int, ...]) -> None:
            if not reaches:
                return all_vectors(None)
            fits = builder.icmp_signed("<=", nibbles, _LONG(reaches[0]))
            with builder.if_else(fits) as (short, long):
                with short:
                    all_vectors(reaches[0])
                with long:
                    by_length(reaches[1:])

        by_length(REACHES)
        return builder.load(end)

    word, cost, place = types.uint32, types.int32, types.int64
    return place(place, paths, word, word, tables, place, cost, to, place, place, marks), generate


_fork: Any = intrinsic(_fork_paths)


def _count_bits(typing_context, word):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.zext(builder.ctpop(arguments[0]), _LONG)

    return types.int64(types.uint32), generate


bits_set: Any = intrinsic(_count_bits)
"""How many bits of a uint32 are 1, in compiled code."""


@njit(nogil=True, cache=True)
def vectors_of(count):  # type: ignore[no-untyped-def]
    """How many times LANES it takes for so many paths."""
    return (count + LANES - 1) // LANES


@njit(nogil=True, cache=True)
def fork(count, paths, pair, k, tables, nibbles, limit, to, n, most, marks):  # type: ignore[no-untyped-def]
    """Keep the cheap children of all paths, 1 ≤ k < 32 bits longer, after the run that follows.

    Those whose last k bits are ``pair`` and a 0 or a 1 go to ``to`` from place n on if they do not
    cost more than ``limit``.  Returns the place behind the last one.  Once there may be no room
    before ``most`` for the children of another vector, the rest is lost.

    tables: of the run's so many coefficients, see ``prices.price``; limit: int32; marks: uint32,
    gets a word for every vector of paths, whose lower and upper half tell which lanes' children
    with a 1 and with a 0 were kept: in this order.
    """
    room = np.int64(most - 2 * LANES)
    if n > room:
        marks[: vectors_of(count)] = 0
    else:
        word, bits = np.uint32(k), np.uint32(2 * pair + 1)
        n = _fork(count, paths, word, bits, tables, nibbles, limit, to, n, room, marks)
    to[1][n : n + LANES] = HOPELESS
    return n
