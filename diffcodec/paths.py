"""What the search of the trellis does to its paths, LANES of them at a time.

A compiler's vectors take twice as long here: it does not find the instructions that add up bytes
and that pack the chosen lanes of a vector.  They are named where the machine has them (AVX-512 or
AVX2) and written out elsewhere, with the same result; no rounding is left to the compiler, so
that senders agree as well (all but processors that cannot fuse a product with a sum, x86 before
2013).

Paths are three arrays: states (uint32), origins (int32: the place of an ancestor, which goes
with a path) and costs (float32).  Behind the last path stand LANES more that cost HOPELESS, so
that vectors need not end where the paths do; what is packed may take LANES more.

A path's cost in nats is −log q/p up to what all paths share: ½ (y − d)² − y² / (2 (1 + s)) less
½ d², and with y = g · scale that is away g² − towards g, with away = (½ − penalty) scale² and
towards = d · scale.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from diffcodec.simd import instruction, target_has

LANES = 16
HOPELESS = 1e30
"""A cost in nats that no path reaches."""

_INT, _LONG = ir.IntType(32), ir.IntType(64)
_INTS, _FLOATS = ir.VectorType(_INT, LANES), ir.VectorType(ir.FloatType(), LANES)
_BYTES, _SHORTS = ir.VectorType(ir.IntType(8), 4 * LANES), ir.VectorType(ir.IntType(16), 2 * LANES)
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


def _call_twice(builder: Any, name: str, result: Any, *operands: Any) -> Any:
    """The same for both halves of its operands."""
    half = ir.VectorType(result.element, result.count // 2)
    low, high = (
        instruction(
            builder, name, half, *(_part(builder, x, n, x.type.count // 2) for x in operands)
        )
        for n in (0, 1)
    )
    lanes = ir.Constant(ir.VectorType(_INT, result.count), list(range(result.count)))
    return builder.shuffle_vector(low, high, lanes)


def _byte_sums(builder: Any, words: Any) -> Any:
    """Of the four bytes of every lane, less their mean."""
    if target_has("avx512vnni"):
        name = "llvm.x86.avx512.vpdpbusd.512"
        return instruction(builder, name, _INTS, _all(-510), words, _all(0x01010101))
    return builder.add(_byte_totals(builder, words), _all(-510))


def _byte_totals(builder: Any, words: Any) -> Any:
    ones, units = ir.Constant(_BYTES, [1] * 4 * LANES), ir.Constant(_SHORTS, [1] * 2 * LANES)
    parts = builder.bitcast(words, _BYTES)
    if target_has("avx512bw"):
        pairs = instruction(builder, "llvm.x86.avx512.pmaddubs.w.512", _SHORTS, parts, ones)
        return instruction(builder, "llvm.x86.avx512.pmaddw.d.512", _INTS, pairs, units)
    if target_has("avx2"):
        pairs = _call_twice(builder, "llvm.x86.avx2.pmadd.ub.sw", _SHORTS, parts, ones)
        return _call_twice(builder, "llvm.x86.avx2.pmadd.wd", _INTS, pairs, units)
    low, high = builder.and_(words, _all(0x00FF00FF)), builder.lshr(words, _all(8))
    pairs = builder.add(low, builder.and_(high, _all(0x00FF00FF)))
    return builder.add(builder.and_(pairs, _all(0xFFFF)), builder.lshr(pairs, _all(16)))


def _fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a b + c, rounded once wherever processors can, which is nearly everywhere."""
    if target_has("fma") or target_has("neon"):
        return instruction(builder, "llvm.fma.v16f32", _FLOATS, a, b, c)
    return builder.fadd(builder.fmul(a, b), c)


def _folded(builder: Any, words: Any) -> Any:
    """The first line of noise.mix: that of a ^ b is that of a ^ that of b."""
    return builder.xor(words, builder.lshr(words, _all(16)))


def _values(builder: Any, odd: Any, key: Any) -> Any:
    """g for the folded states, whose last bit is 1, and a folded key; for a last 0 it is −g."""
    h = builder.mul(builder.xor(odd, key), _all(0x7FEB352D))
    h = builder.mul(builder.xor(h, builder.lshr(h, _all(15))), _all(0x846CA68B))
    h = builder.xor(h, builder.lshr(h, _all(16)))
    return builder.sitofp(_byte_sums(builder, h), _FLOATS)


def _pointers(context: Any, builder: Any, kind: Any, arrays: Any) -> list[Any]:
    """To the first elements, as 32-bit integers, of a tuple of arrays."""
    unpacked = zip(kind.types, _tools.unpack_tuple(builder, arrays, len(kind)), strict=True)
    made = [context.make_array(own)(context, builder, array) for own, array in unpacked]
    return [builder.bitcast(array.data, _INT.as_pointer()) for array in made]


def _at(builder: Any, pointer: Any, place: Any, kind: Any = _INTS) -> Any:
    return builder.bitcast(builder.gep(pointer, [place]), kind.as_pointer())


def _stay_lanes(typing_context, paths, p, keys, away, towards):  # type: ignore[no-untyped-def]
    """Costs of the paths p … p + LANES − 1 after as many coefficients as there are folded keys."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        def splats(number: int, kind: Any) -> list[Any]:
            count = signature.args[number].count
            return [
                _splat(builder, x, kind)
                for x in _tools.unpack_tuple(builder, arguments[number], count)
            ]

        state, _, cost = _pointers(context, builder, signature.args[0], arguments[0])
        states = builder.load(_at(builder, state, arguments[1]), align=4)
        here = _at(builder, cost, arguments[1], _FLOATS)
        odd = _folded(builder, builder.or_(states, _all(1)))
        costs, sums = builder.load(here, align=4), ir.Constant(_FLOATS, None)
        own = zip(splats(2, _INTS), splats(3, _FLOATS), splats(4, _FLOATS), strict=True)
        for key, a, b in own:
            g = _values(builder, odd, key)
            costs = _fused(builder, builder.fmul(a, g), g, costs)
            sums = _fused(builder, b, g, sums)
        # The last bit becomes the sign: 1 stands for g itself, which lessens the cost by b g.
        signs = builder.shl(states, _all(31))
        sums = builder.bitcast(builder.xor(builder.bitcast(sums, _INTS), signs), _FLOATS)
        builder.store(builder.fadd(costs, sums), here, align=4)
        return context.get_dummy_value()

    return types.void(paths, types.int64, keys, away, towards), generate


_stay: Any = intrinsic(_stay_lanes)


@njit(nogil=True, cache=True)
def _fold(key):  # type: ignore[no-untyped-def]
    return np.uint32(key ^ (key >> np.uint32(16)))


@njit(nogil=True, cache=True)
def _stay_four(count, paths, keys, away, towards):  # type: ignore[no-untyped-def]
    # As tuples: the elements of an array would be read again for every vector.
    folded = (_fold(keys[0]), _fold(keys[1]), _fold(keys[2]), _fold(keys[3]))
    a = (away[0], away[1], away[2], away[3])
    b = (towards[0], towards[1], towards[2], towards[3])
    for p in range(0, count, LANES):
        _stay(paths, p, folded, a, b)


@njit(nogil=True, cache=True)
def _stay_one(count, paths, key, away, towards):  # type: ignore[no-untyped-def]
    folded, a, b = (_fold(key),), (away,), (towards,)
    for p in range(0, count, LANES):
        _stay(paths, p, folded, a, b)


@njit(nogil=True, cache=True)
def stay(first, stop, count, paths, keys, away, towards):  # type: ignore[no-untyped-def]
    """Costs of all paths, in place, after the coefficients first … stop − 1, which take no bit.

    keys: uint32, away, towards: float32, of all coefficients.
    """
    fours = first + (stop - first) // 4 * 4
    for i in range(first, fours, 4):
        own = slice(i, i + 4)
        _stay_four(count, paths, keys[own], away[own], towards[own])
    for i in range(fours, stop):
        _stay_one(count, paths, keys[i], away[i], towards[i])


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


def _branch_lanes(typing_context, paths, p, k, bits, key, away, towards, threshold, to, n):  # type: ignore[no-untyped-def]
    """:func:`branch` of the paths p … p + LANES − 1, whose children go to place n: the next place.

    bits: the last ones of the children with a 1; key: folded.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        paths, place, k, bits, key, away, towards, threshold, to, n = arguments
        found = _pointers(context, builder, signature.args[0], paths)
        state, origin, cost = (builder.load(_at(builder, x, place), align=4) for x in found)
        targets = _pointers(context, builder, signature.args[8], to)
        k, bits, key = (_splat(builder, x, _INTS) for x in (k, bits, key))
        a, b, limit = (_splat(builder, x, _FLOATS) for x in (away, towards, threshold))
        odd = builder.or_(builder.shl(state, k), bits)
        g = _values(builder, _folded(builder, odd), key)
        both = builder.fadd(builder.bitcast(cost, _FLOATS), builder.fmul(builder.fmul(a, g), g))
        gain = builder.bitcast(builder.fmul(b, g), _INTS)
        size = builder.bitcast(builder.and_(gain, _all(0x7FFFFFFF)), _FLOATS)
        near = builder.xor(odd, builder.lshr(gain, _all(31)))  # ends in 0 where the gain is below 0
        far = builder.xor(near, _all(1))
        for child, own in ((near, builder.fsub(both, size)), (far, builder.fadd(both, size))):
            chosen = builder.fcmp_ordered("<=", own, limit)
            n = _pack(builder, [child, origin, builder.bitcast(own, _INTS)], chosen, targets, n)
        return n

    word, real, place = types.uint32, types.float32, types.int64
    return place(paths, place, word, word, word, real, real, real, to, place), generate


_branch: Any = intrinsic(_branch_lanes)


@njit(nogil=True, cache=True)
def branch(count, paths, pair, k, key, away, towards, threshold, to, n, most):  # type: ignore[no-untyped-def]
    """Keep the cheap children of all paths after a coefficient that takes k bits, 1 ≤ k < 32.

    Those whose last k bits are ``pair`` and a 0 or a 1 go to ``to`` from place n on if their cost
    does not exceed ``threshold``.  Returns the place behind the last one.  Once there may be no
    room before ``most`` for the children of another vector, the rest is lost.
    """
    word, bits, folded = np.uint32(k), np.uint32(2 * pair + 1), _fold(key)
    for p in range(0, count, LANES):
        if n > most - 2 * LANES:
            break
        n = _branch(paths, p, word, bits, folded, away, towards, threshold, to, n)
    to[2][n : n + LANES] = HOPELESS
    return n
