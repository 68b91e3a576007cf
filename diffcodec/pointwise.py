"""What stands between exact convolutions, in one pass: multiplier, addend, rounding, limits.

Every product, sum and rounding is one of IEEE 754 single precision, so that all machines agree.
Arrays are channels last; with ``fold`` n, n × n places become one whose channels are theirs, one
place after another.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from diffcodec.convolution import BORDER, I16, I32, over_rows

F32 = NDArray[np.float32]


def quantize_into(
    a: I16,
    first: int,
    x: F32 | I32,
    shape: tuple[int, int],
    mul: F32,
    add: F32,
    limits: tuple[int, int],
    leak: float,
    fold: int = 1,
) -> None:
    """Fill in channels of a map from ``first`` on with v = x · mul + add, or leak · v if that is
    more, rounded and limited.

    x: [fold · H, fold · W or more, channels or more]; shape: (H, W);
    mul, add: [fold² · channels].
    """
    rows, width = fold * shape[0], fold * shape[1]
    low, high = np.float32(limits[0]), np.float32(limits[1])

    def work(begin: int, stop: int) -> None:
        _quantize(a, first, x, width, mul, add, low, high, np.float32(leak), fold, begin, stop)

    over_rows(rows, rows * width * len(mul) // fold**2, work)


def accumulate(r: F32, sums: I32, mul: F32, add: F32, limit: int, fold: int = 1) -> None:
    """r ← r + round(sums · mul + add), within ±limit.

    r: [fold · H, fold · W, channels]; sums: [H, W or more, fold² · channels or more].
    """
    most = np.float32(limit)
    over_rows(len(r), r.size, lambda a, b: _accumulate(r, sums, mul, add, most, fold, a, b))


@njit(nogil=True, cache=True)
def _quantize(a, first, x, width, mul, add, low, high, leak, fold, begin, stop):  # type: ignore[no-untyped-def]
    channels = len(mul) // (fold * fold)
    for i in range(begin, stop):
        for j in range(width):
            place = (i % fold * fold + j % fold) * channels
            source = x[i, j, :channels]
            own_mul, own_add = mul[place : place + channels], add[place : place + channels]
            start = first + place
            target = a[BORDER + i // fold, BORDER + j // fold, start : start + channels]
            for c in range(channels):
                v = np.float32(source[c]) * own_mul[c] + own_add[c]
                v = max(v, v * leak)
                target[c] = np.int16(min(max(np.rint(v), low), high))


@njit(nogil=True, cache=True)
def _accumulate(r, sums, mul, add, limit, fold, begin, stop):  # type: ignore[no-untyped-def]
    channels = r.shape[2]
    for i in range(begin, stop):
        for j in range(r.shape[1]):
            place = (i % fold * fold + j % fold) * channels
            source = sums[i // fold, j // fold, place : place + channels]
            own_mul, own_add = mul[place : place + channels], add[place : place + channels]
            target = r[i, j]
            for c in range(channels):
                moved = target[c] + np.rint(np.float32(source[c]) * own_mul[c] + own_add[c])
                target[c] = min(max(moved, -limit), limit)
