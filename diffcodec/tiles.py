"""Sums of products of 16-bit integers by the matrix instructions of recent x86 processors (AMX).

They multiply bytes, 16 × 64 of them by 64 × 16, and add the products up in 32 bits; so a number
goes in as two bytes, a = 256 · high + low, the high one with a sign.  Places (of a map, its
pixels and the zeros between its rows) stand one after another, and what a row of a kernel covers
is whatever follows a place: nothing has to be gathered.
"""

from __future__ import annotations

import ctypes
import platform
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from diffcodec.simd import data_of, instruction, target_has

I16 = NDArray[np.int16]
I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]

SIDE = 16
"""Places, and channels, of a tile of sums."""
DEPTH = 64
"""Bytes of a row of a tile."""
TILE = SIDE * DEPTH
LENGTH = 512
"""Of rows whose products are summed at a time."""
GROUP = 32
"""Tiles of places that meet the same weights one after another, while the caches keep both."""

SHAPE = np.zeros(64, np.uint8)
"""Of all eight tiles, as the processor wants to be told: palette, bytes of a row, rows."""
SHAPE[0], SHAPE[16:32:2], SHAPE[48:56] = 1, DEPTH, SIDE


def allowed() -> bool:
    """Whether this process may use the instructions; Linux wants to be asked before."""
    if platform.system() != "Linux" or not (target_has("amx-tile") and target_has("amx-int8")):
        return False
    arch_prctl, request, tile_data = 158, 0x1023, 18
    return ctypes.CDLL(None).syscall(arch_prctl, request, tile_data) == 0


ALLOWED = allowed()


class Weights(NamedTuple):
    """What :func:`packed` makes.

    data: uint8, tiles in the order of their use; wide: whether a weight is two bytes; rows,
    chunks: of the kernel, and of DEPTH bytes in each; channels: sums for every place.
    """

    data: U8
    wide: bool
    rows: int
    chunks: int
    channels: int


def packed(weight: I16) -> Weights:
    """Weights int16 [out, rows, depth] for :func:`multiply`.

    Two tiles stand together: the high and the low bytes of SIDE channels, or, if one byte does
    for all weights, those of twice as many channels.
    """
    out, rows, depth = weight.shape
    wide = bool(weight.min() < -128 or weight.max() > 127)
    step = SIDE if wide else 2 * SIDE
    channels, chunks = -(-out // step) * step, -(-depth // DEPTH)
    padded = np.zeros((channels, rows, chunks * DEPTH), np.int16)
    padded[:out, :, :depth] = weight
    low = padded.astype(np.uint8)
    if wide:
        bytes_ = np.stack([(padded >> 8).astype(np.uint8), low])
        tiles = bytes_.reshape(2, -1, SIDE, rows, chunks, DEPTH // 4, 4)
        ordered = tiles.transpose(1, 3, 4, 0, 5, 2, 6)
    else:
        tiles = low.reshape(-1, 2, SIDE, rows, chunks, DEPTH // 4, 4)
        ordered = tiles.transpose(0, 3, 4, 1, 5, 2, 6)
    data = _aligned(ordered.size)
    data.reshape(ordered.shape)[:] = ordered
    return Weights(data, wide, rows, chunks, channels)


def multiply(
    a: I16, start: int, place: int, row: int, weights: Weights, sums: I32, count: int
) -> None:
    """Sums for SIDE · ``count`` places, modulo 2**32.

    a: flat; start: of the first place's numbers in it; place, row: from one place, and from one
    row of the kernel, to the next; sums: [SIDE · count or more, channels].
    """
    _multiply(a, start, place, row, *weights[:4], sums, count, SHAPE)


def inner_products(rows: I16) -> I32 | None:
    """Of all pairs of rows [n, m], int32 [n or more, n or more]; what is above the diagonal, and
    what is beside n × n, means nothing.  None if 2**31 could be reached."""
    size = -(-len(rows) // SIDE) * SIDE
    sums = np.zeros((size, size), np.int32)
    return sums if _inner_products(rows, sums, SHAPE) else None


# -- the kernel ------------------------------------------------------------------------------


@njit(nogil=True, cache=True)
def _aligned(size):  # type: ignore[no-untyped-def]
    """``size`` bytes from where a cache line begins: a row of a tile that lies in two of them
    takes three times as long to come."""
    room = np.empty(size + DEPTH, np.uint8)
    skip = -room.ctypes.data % DEPTH
    return room[skip : skip + size]


@njit(nogil=True, cache=True)
def _split(a, low, high):  # type: ignore[no-untyped-def]
    """int16 numbers, flat, into bytes."""
    for k in range(len(a)):
        low[k] = np.uint8(a[k])
        high[k] = np.uint8(a[k] >> 8)


@njit(nogil=True, cache=True)
def _multiply(a, start, place, row, w, wide, rows, chunks, sums, count, shape):  # type: ignore[no-untyped-def]
    # What follows the last place is read along with it: it meets weights of 0 or is not used.
    needed = count * SIDE * place + (rows - 1) * row + chunks * DEPTH
    high = -(-needed // DEPTH) * DEPTH
    planes = _aligned(2 * high)
    _split(a[start : start + needed], planes, planes[high:])
    found = _aligned(4 * TILE).view(np.int32)
    target, outs = sums.reshape(-1), sums.shape[1]
    width = SIDE if wide else 2 * SIDE
    _configure(shape)
    for group in range(0, count, GROUP):
        for block in range(outs // width):
            own = block * 2 * TILE * rows * chunks
            for tile in range(group, min(group + GROUP, count)):
                low = tile * SIDE * place
                there = tile * SIDE * outs + block * width
                if wide:
                    _tile(
                        planes, low, high + low, place, row, rows, chunks,
                        w, own, found, target, there, outs, True,
                    )  # fmt: skip
                else:
                    _tile(
                        planes, low, high + low, place, row, rows, chunks,
                        w, own, found, target, there, outs, False,
                    )  # fmt: skip
    _release()


@njit(nogil=True, cache=True)
def _turn(planes, plane, pitch, chunks, w):  # type: ignore[no-untyped-def]
    """Rows of ``pitch`` bytes, the high ones ``plane`` bytes behind the low ones, as weights: in
    words of 4 bytes [block, chunk, high or low, DEPTH / 4, SIDE], as of :func:`packed`."""
    words, places = planes.view(np.uint32), w.view(np.uint32)
    for r in range(plane // pitch):
        to = places[r // SIDE * (2 * TILE * chunks // 4) + r % SIDE :]
        for byte, offset in ((0, plane), (1, 0)):
            source = words[(r * pitch + offset) // 4 :]
            for chunk in range(chunks):
                for k in range(SIDE):
                    to[((chunk * 2 + byte) * SIDE + k) * SIDE] = source[chunk * SIDE + k]


@njit(nogil=True, cache=True)
def _inner_products(rows, sums, shape):  # type: ignore[no-untyped-def]
    """Add to ``sums`` and return True; or return False."""
    count, size = len(sums) // SIDE, len(sums)
    most, length = np.int64(0), rows.shape[1]
    for r in range(len(rows)):
        energy, row = np.int64(0), rows[r]
        for k in range(len(row)):
            value = np.int32(row[k])
            energy += np.int64(value * value)
        most = max(most, energy)
    if most >= 1 << 31:  # by Cauchy and Schwarz no product is larger
        return False
    depth = min(LENGTH, -(-length // DEPTH) * DEPTH)
    pitch = depth + DEPTH  # no power of two, whose multiples share a few places of the cache
    chunks, plane = depth // DEPTH, size * pitch
    planes, w = _aligned(2 * plane), _aligned(2 * size * depth)
    planes[:] = 0
    found, part = _aligned(4 * TILE).view(np.int32), np.zeros_like(sums)
    target = part.reshape(-1)
    _configure(shape)
    for first in range(0, length, depth):
        here = rows[:, first : first + depth]
        for r in range(len(here)):
            low, high = planes[r * pitch :], planes[plane + r * pitch :]
            _split(here[r], low, high)
            low[here.shape[1] : depth] = high[here.shape[1] : depth] = 0
        _turn(planes, plane, pitch, chunks, w)
        for block in range(count):
            for tile in range(block, count):
                at = tile * SIDE * pitch
                _tile(
                    planes, at, plane + at, pitch, 0, 1, chunks,
                    w, block * 2 * TILE * chunks, found,
                    target, tile * SIDE * size + block * SIDE, size, True,
                )  # fmt: skip
        for r in range(size):
            to, more = sums[r], part[r]
            for c in range(r // SIDE * SIDE + SIDE):
                to[c] += more[c]
    _release()
    return True


def _configure_tiles(context, shape):  # type: ignore[no-untyped-def]
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _call(builder, "ldtilecfg", _bytes(context, builder, signature, arguments, 0))
        return context.get_dummy_value()

    return types.void(shape), generate


def _release_tiles(context):  # type: ignore[no-untyped-def]
    def generate(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        _call(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), generate


def _tile_sums(  # type: ignore[no-untyped-def]
    context, planes, low, high, place, row, rows, chunks, w, own, found, sums, there, outs, wide
):
    """The sums of SIDE places and SIDE or 2 · SIDE channels.

    planes: uint8, flat; low, high: where the places' bytes begin; place, row: from one place,
    and from one row of the kernel, to the next; rows, chunks: as in :class:`Weights`; w: uint8,
    flat, from ``own`` on; found: int32 [4 · SIDE · SIDE], for what the tiles hold in the end;
    sums: int32, flat, from ``there`` on; outs: from a place's sums to the next one's.
    """
    number, both = types.int64, bool(wide.literal_value)
    places = (number, number, number, number, number, number)
    signature = types.void(planes, *places, w, number, found, sums, number, number, wide)
    return signature, lambda *arguments: _generate(both, *arguments)


_configure: Any = intrinsic(_configure_tiles)
_release: Any = intrinsic(_release_tiles)
_tile: Any = intrinsic(prefer_literal=True)(_tile_sums)


def _call(builder: Any, name: str, *operands: Any) -> None:
    instruction(builder, f"llvm.x86.{name}", ir.VoidType(), *operands)


def _bytes(context: Any, builder: Any, signature: Any, arguments: Any, number: int) -> Any:
    """Where those of an array among the arguments begin."""
    data = data_of(context, builder, signature.args[number], arguments[number])
    return builder.bitcast(data, ir.IntType(8).as_pointer())


def _generate(wide: bool, context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    _, low, high, place, row, rows, chunks, _, own, _, _, there, outs, _ = arguments
    byte, long = ir.IntType(8), ir.IntType(64)
    tools: Any = cgutils
    planes, w, found, sums = (
        _bytes(context, builder, signature, arguments, n) for n in (0, 7, 9, 10)
    )

    def at(pointer: Any, offset: Any) -> Any:
        return builder.gep(pointer, [long(offset) if isinstance(offset, int) else offset])

    for n in range(4):
        _call(builder, "tilezero", byte(n))
    weights = tools.alloca_once_value(builder, at(w, own))
    with cgutils.for_range(builder, rows) as outer, cgutils.for_range(builder, chunks) as inner:
        depth = builder.mul(inner.index, long(DEPTH))
        here = builder.add(builder.mul(outer.index, row), depth)
        pair = builder.load(weights)
        for n, offset in ((4, high), (5, low)):
            _call(builder, "tileloadd64", byte(n), at(planes, builder.add(offset, here)), place)
        for n in range(2):
            _call(builder, "tileloadd64", byte(6 + n), at(pair, n * TILE), long(DEPTH))
        # High bytes have a sign, low ones beside them have none.
        signs = ("ss", "su", "us", "uu") if wide else ("ss", "ss", "us", "us")
        for n, product in enumerate(f"tdpb{pair}d" for pair in signs):
            _call(builder, product, byte(n), byte(4 + n // 2), byte(6 + n % 2))
        builder.store(at(pair, 2 * TILE), weights)
    size = 4 * SIDE * SIDE
    for n in range(4):
        _call(builder, "tilestored64", byte(n), at(found, n * size), long(DEPTH))
    _join(builder, found, sums, there, outs, wide)
    return context.get_dummy_value()


def _join(builder: Any, found: Any, sums: Any, there: Any, outs: Any, wide: bool) -> None:
    """Store what the sums of bytes in ``found`` come to."""
    long, vector = ir.IntType(64), ir.VectorType(ir.IntType(32), SIDE)

    def shifted(value: Any, bits: int) -> Any:
        return builder.shl(value, ir.Constant(vector, [bits] * SIDE))

    def pointer(base: Any, offset: Any) -> Any:
        return builder.bitcast(builder.gep(base, [offset]), vector.as_pointer())

    with cgutils.for_range(builder, long(SIDE)) as line:
        own = builder.mul(line.index, long(DEPTH))
        part = [
            builder.load(pointer(found, builder.add(own, long(n * 4 * SIDE * SIDE))), align=DEPTH)
            for n in range(4)
        ]
        if wide:
            middle = shifted(builder.add(part[1], part[2]), 8)
            totals = [builder.add(builder.add(shifted(part[0], 16), middle), part[3])]
        else:
            totals = [builder.add(shifted(part[n], 8), part[n + 2]) for n in range(2)]
        to = builder.mul(builder.add(there, builder.mul(line.index, outs)), long(4))
        for n, total in enumerate(totals):
            builder.store(total, pointer(sums, builder.add(to, long(n * DEPTH))), align=4)
