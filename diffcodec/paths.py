"""What the search of the trellis does to its paths, LANES of them at a time.

A compiler's vectors take several times as long here: it does not find the instructions that look
a number up in a table of sixteen and that pack the chosen lanes of a vector.  They are named where
the machine has them (AVX-512 or AVX2) and written out elsewhere, with the same result; only sums of
two numbers are rounded, so that senders agree as well.

Paths are two arrays: states (uint32) and costs (float32).  Behind the last path stand LANES more
that cost HOPELESS, so that vectors need not end where the paths do; what is packed may take LANES
more.

A path's cost in nats is −log q/p up to what all paths share: ½ (y − d)² − y² / (2 (1 + s)) less
½ d², and with y = g · scale that is away g² − towards g, with away = (½ − penalty) scale² and
towards = d · scale.  A nibble says g, and so what its coefficients cost: a table of sixteen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from diffcodec.simd import data_of, instruction, target_has

LANES = 16
HOPELESS = 1e30
"""A cost in nats that no path reaches."""

NIBBLES = 8
"""Of a word."""

_INT, _LONG = ir.IntType(32), ir.IntType(64)
_INTS, _FLOATS = ir.VectorType(_INT, LANES), ir.VectorType(ir.FloatType(), LANES)
_tools: Any = cgutils  # which has no types


def _all(value: int) -> Any:
    return ir.Constant(_INTS, [value] * LANES)


def _splat(builder: Any, value: Any, kind: Any) -> Any:
    none = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(none, value, _INT(0))
    return builder.shuffle_vector(first, none, _all(0))


def _part(builder: Any, vector: Any, number: int, count: int) -> Any:
    """Lanes count · number … count · number + count − 1."""
    kept = [count * number + lane for lane in range(count)]
    lanes = ir.Constant(ir.VectorType(_INT, count), kept)
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), lanes)


def _looked_up(builder: Any, table: Any, nibbles: Any) -> Any:
    """The numbers of a table of LANES that the last four bits of every lane choose."""
    if target_has("avx512f"):
        name = "llvm.x86.avx512.permvar.sf.512"
        return instruction(builder, name, _FLOATS, table, nibbles)
    if target_has("avx2"):
        upper = builder.icmp_unsigned("!=", builder.and_(nibbles, _all(8)), _all(0))
        return builder.select(upper, *(_halves(builder, table, n, nibbles) for n in (1, 0)))
    found = ir.Constant(_FLOATS, ir.Undefined)
    chosen = builder.and_(nibbles, _all(15))
    for lane in map(_INT, range(LANES)):
        own = builder.extract_element(table, builder.extract_element(chosen, lane))
        found = builder.insert_element(found, own, lane)
    return found


def _halves(builder: Any, table: Any, number: int, nibbles: Any) -> Any:
    """The numbers of one half of a table that the last three bits of every lane choose."""
    own = _part(builder, table, number, LANES // 2)
    low, high = (
        instruction(
            builder, "llvm.x86.avx2.permps", own.type, own, _part(builder, nibbles, n, LANES // 2)
        )
        for n in (0, 1)
    )
    lanes = ir.Constant(_INTS, list(range(LANES)))
    return builder.shuffle_vector(low, high, lanes)


def _mixed(builder: Any, words: Any) -> Any:
    """noise.mix of every lane."""
    h = builder.xor(words, builder.lshr(words, _all(16)))
    h = builder.mul(h, _all(0x7FEB352D))
    h = builder.mul(builder.xor(h, builder.lshr(h, _all(15))), _all(0x846CA68B))
    return builder.xor(h, builder.lshr(h, _all(16)))


def _at(builder: Any, pointer: Any, place: Any, kind: Any = _INTS) -> Any:
    return builder.bitcast(builder.gep(pointer, [place]), kind.as_pointer())


def _pack(builder: Any, vectors: list[Any], mask: Any, pointers: list[Any], n: Any) -> Any:
    """Store the chosen lanes of ``vectors`` from place n on: the next place.

    What is stored beyond them is gone over later.
    """
    if target_has("avx512f"):
        name = "llvm.x86.avx512.mask.compress.v16i32"
        for vector, pointer in zip(vectors, pointers, strict=True):
            packed = instruction(builder, name, _INTS, vector, ir.Constant(_INTS, None), mask)
            builder.store(packed, _at(builder, pointer, n), align=4)
        number = builder.ctpop(builder.bitcast(mask, ir.IntType(LANES)))
        return builder.add(n, builder.zext(number, _LONG))
    if target_has("avx2"):
        for half in (0, 1):
            parts = [_part(builder, x, half, LANES // 2) for x in vectors]
            n = _pack_half(builder, parts, _part(builder, mask, half, LANES // 2), pointers, n)
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
        builder.store(packed, _at(builder, pointer, n, half), align=4)
    return builder.add(n, builder.zext(builder.ctpop(chosen), _LONG))


def _priced(builder: Any, odd: Any, cost: Any, table: Any, nibbles: Any, keys: Any) -> Any:
    """(cost of the states ``odd``, which end in 1, of those that end in 0) after a run.

    table: pointer to its nibbles' costs, keys: to their keys; cost: what the paths come with.
    """
    sums = [_tools.alloca_once_value(builder, cost) for _ in range(2)]
    word = _tools.alloca_once(builder, _INTS)
    past = builder.add(nibbles, _LONG(NIBBLES - 1))
    with _tools.for_range(builder, builder.udiv(past, _LONG(NIBBLES))) as words:
        start = builder.mul(words.index, _LONG(NIBBLES))
        key = _splat(builder, builder.load(builder.gep(keys, [start])), _INTS)
        builder.store(_mixed(builder, builder.xor(odd, key)), word)
        left = builder.sub(nibbles, start)
        full = builder.icmp_unsigned("<", left, _LONG(NIBBLES))
        with _tools.for_range(builder, builder.select(full, left, _LONG(NIBBLES))) as own:
            chosen = builder.load(word)
            place = builder.mul(builder.add(start, own.index), _LONG(2 * LANES))
            for number, total in enumerate(sums):
                here = builder.add(place, _LONG(number * LANES))
                costs = builder.load(_at(builder, table, here, _FLOATS), align=4)
                found = _looked_up(builder, costs, chosen)
                builder.store(builder.fadd(builder.load(total), found), total)
            builder.store(builder.lshr(chosen, _all(4)), word)
    return [builder.load(total) for total in sums]


def _fork_lanes(typing_context, paths, p, k, bits, costs, nibbles, keys, limit, to, n, marks, at):  # type: ignore[no-untyped-def]
    """:func:`fork` of the paths p … p + LANES − 1, whose children go to place n: the next place.

    bits: the last ones of the children with a 1.  ``marks[at]`` tells who of them is kept.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        paths, place, k, bits, costs, nibbles, keys, limit, to, n, marks, at = arguments
        kinds = signature.args

        def data(number: int, arrays: Any) -> list[Any]:
            kind = kinds[number]
            unpacked = zip(kind.types, _tools.unpack_tuple(builder, arrays, 2), strict=True)
            found = [data_of(context, builder, own, array) for own, array in unpacked]
            return [builder.bitcast(x, _INT.as_pointer()) for x in found]

        states, before = data(0, paths)
        state = builder.load(_at(builder, states, place), align=4)
        cost = builder.load(_at(builder, before, place, _FLOATS), align=4)
        k, bits = (_splat(builder, x, _INTS) for x in (k, bits))
        odd = builder.or_(builder.shl(state, k), bits)
        table, words = (
            data_of(context, builder, kinds[4], costs),
            data_of(context, builder, kinds[6], keys),
        )
        totals = _priced(builder, odd, cost, table, nibbles, words)
        limits = _splat(builder, limit, _FLOATS)
        chosen = [builder.fcmp_ordered("<=", total, limits) for total in totals]
        low, high = (builder.zext(builder.bitcast(x, ir.IntType(LANES)), _INT) for x in chosen)
        mark = builder.or_(low, builder.shl(high, _INT(LANES)))
        builder.store(mark, builder.gep(data_of(context, builder, kinds[10], marks), [at]))
        targets = data(8, to)
        for child, own, mask in zip((odd, builder.xor(odd, _all(1))), totals, chosen, strict=True):
            n = _pack(builder, [child, builder.bitcast(own, _INTS)], mask, targets, n)
        return n

    word, real, place = types.uint32, types.float32, types.int64
    return place(
        paths, place, word, word, costs, place, keys, real, to, place, marks, place
    ), generate


_fork: Any = intrinsic(_fork_lanes)


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
def fork(count, paths, pair, k, costs, keys, limit, to, n, most, marks):  # type: ignore[no-untyped-def]
    """Keep the cheap children of all paths, 1 ≤ k < 32 bits longer, after the run that follows.

    Those whose last k bits are ``pair`` and a 0 or a 1 go to ``to`` from place n on if they do not
    cost more than ``limit``.  Returns the place behind the last one.  Once there may be no room
    before ``most`` for the children of another vector, the rest is lost.

    costs: float32 [nibbles, 2, 16], of every coefficient of the run, for children that end in 1
    and in 0; keys: uint32 [nibbles], of which every NIBBLES-th is a word's; marks: uint32, gets a
    word for every vector of paths, whose lower and upper half tell which lanes' children with a 1
    and with a 0 were kept: in this order.
    """
    word, bits, nibbles = np.uint32(k), np.uint32(2 * pair + 1), np.int64(len(costs))
    for p in range(0, count, LANES):
        if n > most - 2 * LANES:
            marks[p // LANES : vectors_of(count)] = 0
            break
        n = _fork(paths, p, word, bits, costs, nibbles, keys, limit, to, n, marks, p // LANES)
    to[1][n : n + LANES] = HOPELESS
    return n
