"""Exact convolutions of 16-bit integers, in memory channels last.

x86 processors multiply 16-bit integers and add the products up two and two in one instruction,
and with AVX-512 VNNI add them to the sums so far as well.  PyTorch has no convolutions that use
it.  These take half the time of those in float32, for small maps a third, and where there are
instructions for whole tiles of numbers (tiles.py) a third of that.  Machines without any of them
convolve in float32 where no sum can reach 2**24, else in float64: the same integers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from diffcodec import tiles
from diffcodec.errors import ModelError
from diffcodec.parallel import thread_map
from diffcodec.simd import data_of, instruction, target_has

I16 = NDArray[np.int16]
I32 = NDArray[np.int32]

BORDER = 1
"""Zeros around every map, whatever the size of the kernel."""
PIXELS = 4
"""Neighbours in a row whose sums are found together."""
PART = 1 << 18
"""Numbers that are worth a thread."""
BAND = 1 << 18
"""Sums that are found, and used, before the next ones: a cache holds them."""

if target_has("avx512bw"):
    LANES, VECTORS, MULTIPLY_ADD = 16, 6, "llvm.x86.avx512.pmaddw.d.512"
elif target_has("avx2"):
    LANES, VECTORS, MULTIPLY_ADD = 8, 2, "llvm.x86.avx2.pmadd.wd"
else:
    LANES, VECTORS, MULTIPLY_ADD = 16, 6, ""
"""Output channels in a vector; vectors whose sums for PIXELS pixels fit the registers."""


def empty_map(height: int, width: int, channels: int) -> I16:
    """A map to be filled in, int16 [height + 2, width + 2, channels] with its border of zeros.

    The width is rounded up to PIXELS and the channels to an even number; the surplus stays zero.
    """
    width = -(-width // PIXELS) * PIXELS
    return np.zeros((height + 2 * BORDER, width + 2 * BORDER, channels + channels % 2), np.int16)


def over_rows(rows: int, size: int, work: Callable[[int, int], None]) -> None:
    """``work(first, stop)`` on all rows of ``size`` numbers in all, on all cores if it pays."""
    parts = min(rows, 8, size // PART)
    if parts < 2:
        work(0, rows)
        return
    ends = [rows * k // parts for k in range(parts + 1)]
    thread_map(lambda k: work(ends[k], ends[k + 1]), parts)


FLOAT32_LIMIT = 1 << 24
"""Integers below it are exact in float32."""

Use = Callable[[I32, int, int], None]
"""Takes sums int32 [stop − first, W or more, out or more] of the rows first … stop − 1.

What stands beside the W × out sums means nothing.
"""


class Conv2d:
    """A convolution of stride 1 that keeps the size.

    weight: int16 [out, in, k, k], k = 1 or 3; reach: what no partial sum exceeds, below 2**31.
    """

    def __init__(self, weight: I16, reach: float) -> None:
        self.weight = weight
        self._carrier = torch.float32 if reach < FLOAT32_LIMIT else torch.float64
        if not MULTIPLY_ADD and self._carrier is torch.float32:
            _check_convolutions()

    def by_rows(self, a: I16, use: Use, step: int = 1) -> None:
        """Hand the sums of an :func:`empty_map` that was filled in over to ``use``, from several
        threads, in bands of rows: all, but for the last one, of a multiple of ``step``."""
        height, width = a.shape[0] - 2 * BORDER, a.shape[1]
        line = width * len(self.weight)
        rows = max(BAND // line // step, 1) * step

        def work(first: int, stop: int) -> None:
            for top in range(first * rows, min(stop * rows, height), rows):
                end = min(top + rows, height)
                use(self._sums(a[top : end + 2 * BORDER]), top, end)

        over_rows(-(-height // rows), height * line, work)

    def _sums(self, a: I16) -> I32:
        if tiles.ALLOWED:
            return self._in_tiles(a)
        return self._in_vectors(a) if MULTIPLY_ADD else self._in_floats(a)

    def _in_vectors(self, a: I16) -> I32:
        size, channels = self.weight.shape[-1], a.shape[2]
        height, width = a.shape[0] - 2 * BORDER, a.shape[1] - 2 * BORDER
        packed, blocks = self._packed
        sums = np.empty((height, width, LANES * sum(blocks)), np.int32)
        inset = BORDER - size // 2
        source, place = a.reshape(-1), (inset * a.shape[1] + inset) * channels
        start = channel = 0
        for vectors in blocks:
            _convolve(
                source, place, a.shape[1], channels, packed[start:], size, sums, channel, vectors
            )
            start += size * size * channels * vectors * LANES
            channel += vectors * LANES
        return sums

    def _in_tiles(self, a: I16) -> I32:
        size, (height, pitch, channels) = self.weight.shape[-1], a.shape
        height, inset = height - 2 * BORDER, BORDER - size // 2
        count = -(-(height * pitch - 2 * BORDER) // tiles.SIDE)
        weights, line = self._tiled, pitch * channels
        start = inset * (line + channels)
        sums = np.empty((max(count * tiles.SIDE, height * pitch), weights.channels), np.int32)
        tiles.multiply(a.reshape(-1), start, channels, line, weights, sums, count)
        return sums[: height * pitch].reshape(height, pitch, -1)

    @property
    def _ordered(self) -> I16:
        """The weights as they meet a map, [out, k, k, in], the inputs an even number."""
        out, channels, size, _ = self.weight.shape
        padded = np.zeros((out, size, size, channels + channels % 2), np.int16)
        padded[..., :channels] = self.weight.transpose(0, 2, 3, 1)
        return padded

    @cached_property
    def _tiled(self) -> tiles.Weights:
        ordered = self._ordered
        return tiles.packed(ordered.reshape(*ordered.shape[:2], -1))

    @cached_property
    def _packed(self) -> tuple[I16, list[int]]:
        """(weights in the order of their use, vectors in every block of output channels)."""
        ordered = self._ordered
        vectors = -(-len(ordered) // LANES)
        count = -(-vectors // VECTORS)
        ends = [vectors * k // count for k in range(count + 1)]
        padded = np.zeros((vectors * LANES, *ordered.shape[1:]), np.int16)
        padded[: len(ordered)] = ordered
        pairs = padded.reshape(vectors, LANES, -1, 2).transpose(2, 0, 1, 3)
        blocks = [pairs[:, a:b].ravel() for a, b in pairwise(ends)]
        return np.concatenate(blocks), np.diff(ends).tolist()

    @cached_property
    def _floats(self) -> torch.Tensor:
        return torch.from_numpy(self.weight).to(self._carrier)

    def _in_floats(self, a: I16) -> I32:
        inset = BORDER - self.weight.shape[-1] // 2
        inside = a[inset : a.shape[0] - inset, inset : a.shape[1] - inset]
        inside = inside[:, :, : self.weight.shape[1]]
        x = torch.from_numpy(inside).permute(2, 0, 1)[None].to(self._carrier)
        with torch.inference_mode(), torch.backends.nnpack.flags(enabled=False):
            found = F.conv2d(x, self._floats)
        return found[0].permute(1, 2, 0).to(torch.int32).contiguous().numpy()


def _check_convolutions() -> None:
    """ModelError if this machine's float32 convolutions round integers below 2**24.

    They do when an option such as ONEDNN_DEFAULT_FPMATH_MODE lets them use bfloat16.
    """
    a = torch.full((1, 96, 8, 8), 2047.0) - torch.arange(8.0)
    weight = torch.full((16, 96, 3, 3), 9.0) - 2.0 * (torch.arange(3.0) == 1)
    with torch.inference_mode(), torch.backends.nnpack.flags(enabled=False):
        found = F.conv2d(a, weight)
    true = F.conv2d(a.double(), weight.double())
    if not torch.equal(found.double(), true):
        raise ModelError(
            "this machine's convolutions are not exact; unset ONEDNN_DEFAULT_FPMATH_MODE and "
            "leave torch's float32 precision at 'highest'"
        )


# -- the kernel: compilers find neither the instruction nor the order of the loops ------------


def _tile_sums(context, a, place, row, pixel, rows, pairs, w, out, there, width, vectors):  # type: ignore[no-untyped-def]
    """Sums of PIXELS pixels and ``vectors`` vectors of output channels, stored in ``out``.

    a, w: int16, flat; place: of the first number that counts in a; row, pixel: from one to the
    next in a; rows, pairs: of numbers that count, and of pairs in each; out: int32, flat; there:
    of the first sum; width: from a pixel's sums to the next one's.
    """
    number = types.int64
    count = vectors.literal_value
    signature = types.void(
        a, number, number, number, number, number, w, out, number, number, vectors
    )
    return signature, lambda *arguments: _generate(count, *arguments)


_tile: Any = intrinsic(prefer_literal=True)(_tile_sums)


def _generate(vectors: int, context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    _, place, row, pixel, rows, pairs, _, _, there, width, _ = arguments
    word, long = ir.IntType(32), ir.IntType(64)
    sums, halves = ir.VectorType(word, LANES), ir.VectorType(ir.IntType(16), 2 * LANES)
    tools: Any = cgutils  # which has no types

    def data(number: int) -> Any:
        return data_of(context, builder, signature.args[number], arguments[number])

    def at(pointer: Any, *places: Any) -> Any:
        for n in places:
            pointer = builder.gep(pointer, [long(n) if isinstance(n, int) else n])
        return pointer

    def splat(value: Any) -> Any:
        none = ir.Constant(sums, ir.Undefined)
        first = builder.insert_element(none, value, word(0))
        zeros = ir.Constant(ir.VectorType(word, LANES), [0] * LANES)
        return builder.bitcast(builder.shuffle_vector(first, none, zeros), halves)

    # LLVM keeps what is allocated here in registers.
    zero = ir.Constant(sums, None)
    totals = [tools.alloca_once_value(builder, zero) for _ in range(PIXELS * vectors)]
    weights = tools.alloca_once_value(builder, data(6))
    source, target = data(0), data(7)
    with cgutils.for_range(builder, rows) as outer:
        start = at(source, place, builder.mul(outer.index, row))
        with cgutils.for_range(builder, pairs) as inner:
            here, own = at(start, builder.mul(inner.index, long(2))), builder.load(weights)
            loaded = [
                builder.load(builder.bitcast(at(own, 2 * LANES * v), halves.as_pointer()), align=2)
                for v in range(vectors)
            ]
            builder.store(at(own, 2 * LANES * vectors), weights)
            for k in range(PIXELS):
                pair = builder.bitcast(at(here, builder.mul(pixel, long(k))), word.as_pointer())
                both = splat(builder.load(pair, align=2))
                for v, weight in enumerate(loaded):
                    total = totals[k * vectors + v]
                    more = instruction(builder, MULTIPLY_ADD, sums, both, weight)
                    builder.store(builder.add(builder.load(total), more), total)
    for k in range(PIXELS):
        for v in range(vectors):
            to = at(target, there, builder.mul(width, long(k)), LANES * v)
            total = builder.load(totals[k * vectors + v])
            builder.store(total, builder.bitcast(to, sums.as_pointer()), align=4)
    return context.get_dummy_value()


@njit(nogil=True, cache=True)
def _convolve(a, place, row, channels, w, size, sums, channel, vectors):  # type: ignore[no-untyped-def]
    """``vectors`` vectors of output channels, from ``channel`` on.

    a: int16, flat, of rows of ``row`` pixels; place: where the first pixel's kernel begins;
    w: int16, flat; size: of the kernel; sums: int32 [H, W, channels].
    """
    height, width, outs = sums.shape
    flat = sums.reshape(-1)
    line, pairs = row * channels, size * channels // 2
    for y in range(height):
        for x in range(0, width, PIXELS):
            here = place + y * line + x * channels
            there = (y * width + x) * outs + channel
            if vectors == 1:
                _tile(a, here, line, channels, size, pairs, w, flat, there, outs, 1)
            elif vectors == 2:
                _tile(a, here, line, channels, size, pairs, w, flat, there, outs, 2)
            elif vectors == 3:
                _tile(a, here, line, channels, size, pairs, w, flat, there, outs, 3)
            elif vectors == 4:
                _tile(a, here, line, channels, size, pairs, w, flat, there, outs, 4)
            elif vectors == 5:
                _tile(a, here, line, channels, size, pairs, w, flat, there, outs, 5)
            else:
                _tile(a, here, line, channels, size, pairs, w, flat, there, outs, 6)
