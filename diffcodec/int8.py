"""Exact convolutions with 8-bit instructions: the same integers as in float32, at twice the speed.

Activations of 12 bits become two planes of 8 and 4 bits, a = 16 (h − 32) + l, and each plane is
convolved with weights of 8 bits, which oneDNN sums in 32-bit integers.  Only instructions that
do not saturate on the way give the true sums, so every machine is tested before they are used;
where they are not, the float32 path gives the same numbers (see exact.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from diffcodec.parallel import thread_map

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

WEIGHT_MAX = 127
"""Weights within ±WEIGHT_MAX can be used here."""

LOW_BITS = 4
OFFSET = 512
"""Added to activations, which are in −OFFSET … 2047, so that none is below zero."""


class Int8Conv2d:
    """A convolution of stride 1 that keeps the size; weight: integers [out, in, k, k]."""

    def __init__(self, weight: Tensor) -> None:
        self._pad = [weight.shape[-1] // 2] * 2
        self._ones = torch.ones(weight.shape[0])
        self._zeros = torch.zeros(weight.shape[0], dtype=torch.int32)
        self._weight = weight.to(torch.int8)
        self._packed: dict[int, Tensor] = {}

    def __call__(self, high: U8, low: U8) -> tuple[F32, F32]:
        """The two planes, uint8 [H, W, in], convolved: 16 · first + second is the result.

        Each float32 [H, W, out] of integers.
        """
        return self._plane(high, OFFSET >> LOW_BITS), self._plane(low, 0)

    def _plane(self, plane: U8, zero: int) -> F32:
        x = torch.from_numpy(plane).permute(2, 0, 1)[None]
        found = _OPS.qconv2d_pointwise(
            x, 1.0, zero, self._pack(zero), self._ones, self._zeros, None,
            [1, 1], self._pad, [1, 1], 1, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        result: F32 = found[0].permute(1, 2, 0).contiguous().numpy()
        return result

    def _pack(self, zero: int) -> Tensor:
        if zero not in self._packed:
            self._packed[zero] = _OPS.qconv_prepack(
                self._weight, self._ones, 1.0, zero, [1, 1], self._pad, [1, 1], 1, None
            )
        return self._packed[zero]


_OPS: Any = torch.ops.onednn


@cache
def is_exact_here() -> bool:
    """Whether this machine and this torch have 8-bit convolutions whose sums are true."""
    weight = torch.full((64, 192, 3, 3), WEIGHT_MAX)
    weight[1::2] = -WEIGHT_MAX
    a = torch.full((1, 192, 8, 8), 2047)
    a[:, :, ::2] = -OFFSET
    flat = (a[0].permute(1, 2, 0) + OFFSET).numpy()
    planes = [(flat >> LOW_BITS).astype(np.uint8), (flat & 15).astype(np.uint8)]
    try:
        with torch.inference_mode():
            high, low = Int8Conv2d(weight)(*map(np.ascontiguousarray, planes))
    except (AttributeError, RuntimeError, TypeError):
        return False
    true = F.conv2d(a.double(), weight.double(), padding=1)[0].permute(1, 2, 0).numpy()
    return bool(np.array_equal(16.0 * high.astype(np.float64) + low, true))


def split(x: F32, mul: F32, add: F32, planes: tuple[U8, U8]) -> None:
    """The planes of act(x · mul + add), rounded and limited; x float32 [H, W, channels]."""
    high, low = planes
    _over_rows(len(x), lambda own: _split(x[own], mul, add, high[own], low[own]))


def split_sums(sums: tuple[F32, F32], mul: F32, add: F32, planes: tuple[U8, U8]) -> None:
    """:func:`split` of 16 · first + second."""
    first, second = sums
    high, low = planes
    _over_rows(
        len(first), lambda own: _split_sums(first[own], second[own], mul, add, high[own], low[own])
    )


def accumulate(r: F32, sums: tuple[F32, F32], mul: F32, add: F32, limit: float) -> None:
    """r += round((16 · first + second) · mul + add), within ±limit."""
    first, second = sums
    most = np.float32(limit)
    _over_rows(len(r), lambda own: _accumulate(r[own], first[own], second[own], mul, add, most))


def _over_rows(rows: int, work: Callable[[slice], None]) -> None:
    """``work`` on all rows, some of them at a time, on all cores."""
    parts = min(rows, 8)
    ends = [rows * k // parts for k in range(parts + 1)]
    thread_map(lambda k: work(slice(ends[k], ends[k + 1])), parts)


_ACTIVATION_MAX, _LEAK = np.float32(2047), np.float32(0.25)
_LOWEST = np.float32(-OFFSET)


@numba.njit(cache=True, inline="always")
def _activation(value: np.float32) -> int:
    value = max(value, value * _LEAK)
    return int(min(max(np.rint(value), _LOWEST), _ACTIVATION_MAX)) + OFFSET


@numba.njit(nogil=True, cache=True)
def _split(x: F32, mul: F32, add: F32, high: U8, low: U8) -> None:
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            for c in range(x.shape[2]):
                a = _activation(x[i, j, c] * mul[c] + add[c])
                high[i, j, c] = a >> LOW_BITS
                low[i, j, c] = a & 15


@numba.njit(nogil=True, cache=True)
def _split_sums(first: F32, second: F32, mul: F32, add: F32, high: U8, low: U8) -> None:
    unit = np.float32(16)
    for i in range(first.shape[0]):
        for j in range(first.shape[1]):
            for c in range(first.shape[2]):
                total = first[i, j, c] * unit + second[i, j, c]
                a = _activation(total * mul[c] + add[c])
                high[i, j, c] = a >> LOW_BITS
                low[i, j, c] = a & 15


@numba.njit(nogil=True, cache=True)
def _accumulate(r: F32, first: F32, second: F32, mul: F32, add: F32, limit: np.float32) -> None:
    unit = np.float32(16)
    for i in range(r.shape[0]):
        for j in range(r.shape[1]):
            for c in range(r.shape[2]):
                total = first[i, j, c] * unit + second[i, j, c]
                moved = r[i, j, c] + np.rint(total * mul[c] + add[c])
                r[i, j, c] = min(max(moved, -limit), limit)
