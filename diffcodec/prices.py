"""What the nibbles of a run cost a path of the trellis' search, and the sums of it.

A path's cost is −log q/p up to what all paths share: ½ (y − d)² − y² / (2 (1 + s)) less ½ d²,
which with y = g · scale is away g² − towards g, with away = (½ − penalty) scale² and towards =
d · scale.  A nibble says g, and so what its coefficient costs: a table of sixteen.

The sixteen are rounded to *entries* of 0 … 255, 0 being the cheapest, times a *weight* of the
coefficient's own in 1/COST_UNIT nat, so that sums are of integers and all senders agree.  That is
off by 1/500 of what lies between the cheapest and the dearest; but a value that is more than 32
nats dearer than the cheapest costs no more than that.

Where the machine looks bytes up in a table of 64 and sums them by fours with weights (AVX-512
VBMI and VNNI) four coefficients of sixteen paths take two instructions; elsewhere (AVX-512, AVX2,
or written out) one coefficient takes two or more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit
from numba.core import cgutils

from diffcodec.simd import at, instruction, target_has

LANES = 16
COST_UNIT = 1024
"""Costs are integers in units of 1/1024 nat."""
NIBBLES = 8
"""Of a word."""

BY_FOURS = target_has("avx512vbmi") and target_has("avx512vnni")

_ENTRY_MAX, _WEIGHT_MAX = 255, 127

# Tables of a word, each of 16 costs: first those of its coefficients for paths that end in 1, then
# for those that end in 0; behind them, by fours, the weights of the coefficients; the key.  A word
# takes whole lines of the cache.
_HALF, _SIDE = 4 * LANES, NIBBLES * LANES
_WEIGHTS = 2 * _SIDE
_KEY = _WEIGHTS + (NIBBLES if BY_FOURS else 0)
_WORD = _WEIGHTS + (64 if BY_FOURS else 16)
_NUMBER: Any = np.uint8 if BY_FOURS else np.int32
_TO_LINE = 64 // np.dtype(_NUMBER).itemsize

_INT, _LONG, _BYTE = ir.IntType(32), ir.IntType(64), ir.IntType(8)
_INTS, _BYTES = ir.VectorType(_INT, LANES), ir.VectorType(_BYTE, 4 * LANES)
_tools: Any = cgutils  # which has no types


# -- tables ----------------------------------------------------------------------------------


@njit(nogil=True, cache=True)
def entries_of(away, towards, levels, entries):  # type: ignore[no-untyped-def]
    """A coefficient's weight; ``entries``, float32 [16], become those of its levels.

    away, towards: float32; levels: float32 [16], ascending.
    """
    for n in range(16):
        entries[n] = levels[n] * (away * levels[n] - towards)
    lowest = entries[0]
    for n in range(1, 16):
        lowest = min(lowest, entries[n])
    dearest = max(entries[0], entries[15]) - lowest  # a parabola's are at its ends
    weight = np.ceil(dearest * np.float32(COST_UNIT / _ENTRY_MAX))
    weight = min(max(weight, np.float32(1.0)), np.float32(_WEIGHT_MAX))
    unit = np.float32(COST_UNIT) / weight
    for n in range(16):
        entry = (entries[n] - lowest) * unit + np.float32(0.5)
        entries[n] = np.floor(min(entry, np.float32(_ENTRY_MAX)))
    return np.int32(weight)


@njit(nogil=True, cache=True)
def room_for_prices(longest):  # type: ignore[no-untyped-def]
    """Room for what :func:`price` says of a run of at most so many coefficients."""
    size = max(1, (longest + NIBBLES - 1) // NIBBLES) * _WORD
    room = np.zeros(size + _TO_LINE, _NUMBER)
    first = -room.ctypes.data % 64 * _TO_LINE // 64
    return room[first : first + size]


@njit(nogil=True, cache=True)
def price(away, towards, keys, levels, tables):  # type: ignore[no-untyped-def]
    """Fill in the tables of a run.

    away, towards: float32 [n]; keys: uint32 [n]; levels: float32 [16], ascending, of which a
    nibble chooses one; tables: what :func:`room_for_prices` gave, for :func:`pricer`.
    """
    entries = np.empty(16, np.float32)
    if len(away) == 0:
        _begin_word(np.uint32(0), tables[:_WORD])
    for i in range(len(away)):
        place, start = i % NIBBLES, i // NIBBLES * _WORD
        if place == 0:
            _begin_word(keys[i], tables[start : start + _WORD])
        weight = entries_of(away[i], towards[i], levels, entries)
        ones = start + LANES * place
        zeros = ones + _SIDE
        if BY_FOURS:
            tables[start + _WEIGHTS + place] = weight
        for n in range(16):
            cost = np.int32(entries[n])
            if not BY_FOURS:
                cost *= weight
            tables[ones + n] = tables[zeros + 15 - n] = cost


@njit(nogil=True, cache=True)
def _begin_word(key, word):  # type: ignore[no-untyped-def]
    """No coefficients yet, whose weights therefore are 0; ``mix`` begins with x ^ x >> 16."""
    folded = np.uint32(key ^ key >> np.uint32(16))
    if BY_FOURS:
        word[_WEIGHTS:] = 0
        for n in range(4):
            word[_KEY + n] = np.uint8(folded >> np.uint32(8 * n) & np.uint32(255))
    else:
        word[_KEY] = np.int32(folded)


# -- sums ------------------------------------------------------------------------------------


def all_lanes(value: int) -> Any:
    return ir.Constant(_INTS, [value] * LANES)


def splat(builder: Any, value: Any) -> Any:
    """A vector of LANES times an int32."""
    none = ir.Constant(_INTS, ir.Undefined)
    first = builder.insert_element(none, value, _INT(0))
    return builder.shuffle_vector(first, none, all_lanes(0))


def lanes_of(builder: Any, vector: Any, number: int, count: int) -> Any:
    """Lanes count · number … count · number + count − 1."""
    kept = [count * number + lane for lane in range(count)]
    lanes = ir.Constant(ir.VectorType(_INT, count), kept)
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), lanes)


def _load(builder: Any, pointer: Any, place: Any, kind: Any) -> Any:
    """What stands ``place`` numbers behind a pointer, wherever that is."""
    return builder.load(at(builder, pointer, place, kind), align=1)


def _mixed(builder: Any, folded: Any) -> Any:
    """noise.mix of every lane, of which x ^ x >> 16 is given."""
    h = builder.mul(folded, all_lanes(0x7FEB352D))
    h = builder.mul(builder.xor(h, builder.lshr(h, all_lanes(15))), all_lanes(0x846CA68B))
    return builder.xor(h, builder.lshr(h, all_lanes(16)))


REACHES = (4, NIBBLES) if BY_FOURS else ()
"""Runs of at most so many coefficients get loops of their own, with all their tables at hand."""

Pricer = Callable[[Any, Any], list[Any]]
"""(states that end in 1, what their paths come with) → [cost of these after the run, of the same
states that end in 0]; emits instructions."""


def pricer(builder: Any, tables: Any, nibbles: Any, reach: int | None) -> Pricer:
    """For a run of so many coefficients, which are at most ``reach`` of REACHES unless it is None.

    tables: pointer to what :func:`price` made.
    """
    if reach is not None:
        word = _word(builder, tables, _LONG(0), reach)
        return lambda odd, cost: _with_word(builder, [cost, cost], _folded(builder, odd), word)

    def priced(odd: Any, cost: Any) -> list[Any]:
        sums = [_tools.alloca_once_value(builder, cost) for _ in range(2)]
        folded = _folded(builder, odd)
        past = builder.add(nibbles, _LONG(NIBBLES - 1))
        with _tools.for_range(builder, builder.udiv(past, _LONG(NIBBLES))) as words:
            if BY_FOURS:
                own = _word(builder, tables, words.index, NIBBLES)
                before = [builder.load(total) for total in sums]
                for total, after in zip(
                    sums, _with_word(builder, before, folded, own), strict=True
                ):
                    builder.store(after, total)
            else:
                left = builder.sub(nibbles, builder.mul(words.index, _LONG(NIBBLES)))
                own = builder.gep(tables, [builder.mul(words.index, _LONG(_WORD))])
                _add_one_by_one(builder, sums, folded, own, left)
        return [builder.load(total) for total in sums]

    return priced


def _folded(builder: Any, odd: Any) -> Any:
    return builder.xor(odd, builder.lshr(odd, all_lanes(16)))


def _key_of(builder: Any, word: Any) -> Any:
    return splat(builder, _load(builder, word, _LONG(_KEY), _INT))


def _word(builder: Any, tables: Any, number: Any, reach: int) -> tuple[Any, list[Any]]:
    """(key, for every four of its first coefficients the weights and both tables) of a word."""
    tables = builder.bitcast(tables, _BYTE.as_pointer())
    own = builder.gep(tables, [builder.mul(number, _LONG(_WORD))])
    fours = []
    for half in range(reach // 4):
        weights = splat(builder, _load(builder, own, _LONG(_WEIGHTS + 4 * half), _INT))
        places = (_LONG(_SIDE * side + _HALF * half) for side in (0, 1))
        fours.append((weights, [_load(builder, own, place, _BYTES) for place in places]))
    return _key_of(builder, own), fours


def _with_word(
    builder: Any, sums: list[Any], folded: Any, word: tuple[Any, list[Any]]
) -> list[Any]:
    """The sums with what a word's coefficients cost.

    The first four have the lower nibbles of its bytes, the others the upper ones.
    """
    key, fours = word
    hashed = _mixed(builder, builder.xor(folded, key))
    for half, (weights, tables) in enumerate(fours):
        own = builder.lshr(hashed, all_lanes(4 * half)) if half else hashed
        nibbles = builder.and_(own, all_lanes(0x0F0F0F0F))
        chosen = builder.bitcast(builder.or_(nibbles, all_lanes(0x30201000)), _BYTES)
        for side, table in enumerate(tables):
            found = instruction(builder, "llvm.x86.avx512.permvar.qi.512", _BYTES, table, chosen)
            operands = sums[side], builder.bitcast(found, _INTS), weights
            added = instruction(builder, "llvm.x86.avx512.vpdpbusd.512", _INTS, *operands)
            sums = [*sums[:side], added, *sums[side + 1 :]]
    return sums


def _add_one_by_one(builder: Any, sums: list[Any], folded: Any, tables: Any, left: Any) -> None:
    word = _mixed(builder, builder.xor(folded, _key_of(builder, tables)))
    full = builder.icmp_unsigned("<", left, _LONG(NIBBLES))
    with _tools.for_range(builder, builder.select(full, left, _LONG(NIBBLES))) as own:
        place = builder.trunc(own.index, _INT)
        byte, half = builder.and_(place, _INT(3)), builder.lshr(place, _INT(2))
        past = builder.add(builder.shl(byte, _INT(3)), builder.shl(half, _INT(2)))
        chosen = builder.lshr(word, splat(builder, past))
        for side, total in enumerate(sums):
            here = builder.add(builder.mul(own.index, _LONG(LANES)), _LONG(_SIDE * side))
            found = _looked_up(builder, _load(builder, tables, here, _INTS), chosen)
            builder.store(builder.add(builder.load(total), found), total)


def _looked_up(builder: Any, table: Any, nibbles: Any) -> Any:
    """The numbers of a table of LANES that the last four bits of every lane choose."""
    if target_has("avx512f"):
        name = "llvm.x86.avx512.permvar.si.512"
        return instruction(builder, name, _INTS, table, nibbles)
    if target_has("avx2"):
        upper = builder.icmp_unsigned("!=", builder.and_(nibbles, all_lanes(8)), all_lanes(0))
        return builder.select(upper, *(_halves(builder, table, n, nibbles) for n in (1, 0)))
    found = ir.Constant(_INTS, ir.Undefined)
    chosen = builder.and_(nibbles, all_lanes(15))
    for lane in map(_INT, range(LANES)):
        own = builder.extract_element(table, builder.extract_element(chosen, lane))
        found = builder.insert_element(found, own, lane)
    return found


def _halves(builder: Any, table: Any, number: int, nibbles: Any) -> Any:
    """The numbers of one half of a table that the last three bits of every lane choose."""
    own = lanes_of(builder, table, number, LANES // 2)
    low, high = (
        instruction(
            builder,
            "llvm.x86.avx2.permd",
            own.type,
            own,
            lanes_of(builder, nibbles, n, LANES // 2),
        )
        for n in (0, 1)
    )
    lanes = ir.Constant(_INTS, list(range(LANES)))
    return builder.shuffle_vector(low, high, lanes)
