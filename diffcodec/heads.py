"""What goes into the exact network and what comes out of it, in one compiled pass each.

Maps are channels last as in pointwise.py, pictures [channels, H, W].  Products, sums, quotients
and roundings are those of docs/format.md, one after another, so that all machines agree; outputs
of networks in floats are rounded alike by exact.round_outputs, which has tensors to work on.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from diffcodec.convolution import I32, over_rows
from diffcodec.correction import EPS_MAX, EPS_UNIT
from diffcodec.objective import COEF_LOGVAR_RANGE, LOG2E, PIXEL_LOGVAR_RANGE
from diffcodec.pointwise import F32
from diffcodec.tables import OCTAVE

PIXEL_COEF_MAX = 2.0
COEF_UNIT = 64
COEF_SCALE = LOG2E * OCTAVE
"""From a natural logarithm of a variance to log2 of it in 1/8."""
PIXEL_SCALE = 0.5 * LOG2E * OCTAVE
"""From a natural logarithm of a variance to log2 of the deviation in 1/8."""


def inputs(x: I32) -> F32:
    """The network's inputs, float32 [H/2, W/2, 24], of a state int32 [3, H, W] in 2**-16.

    They are x and its difference from the mean of 3×3 places, folded two by two.
    """
    _, height, width = x.shape
    found = np.empty((height // 2, width // 2, 24), np.float32)
    over_rows(height // 2, found.size, lambda a, b: _inputs(x, found, a, b))
    return found


@njit(nogil=True, cache=True)
def _inputs(x, found, first, stop):  # type: ignore[no-untyped-def]
    height, width = x.shape[1:]
    columns = np.empty(width, np.int32)
    for i in range(2 * first, 2 * stop):
        top, bottom = max(i - 1, 0), min(i + 1, height - 1)
        for c in range(3):
            columns[:] = 0
            for k in range(top, bottom + 1):
                row = x[c, k]
                for j in range(width):
                    columns[j] += row[j]
            place = c * 4 + i % 2 * 2
            for j in range(width):
                left, right = max(j - 1, 0), min(j + 1, width - 1)
                total = columns[j]
                if left < j:
                    total += columns[left]
                if right > j:
                    total += columns[right]
                count = (bottom - top + 1) * (right - left + 1)
                own = np.float32(x[c, i, j])
                mean = np.rint(np.float32(total) / np.float32(count))
                to = found[i // 2, j // 2]
                to[place + j % 2] = own
                to[place + 12 + j % 2] = own - mean


@njit(nogil=True, cache=True)
def _real(sums, mul, add, k):  # type: ignore[no-untyped-def]
    """A place's output ``k`` in real units."""
    return np.float64(sums[k]) * np.float64(mul[k]) + np.float64(add[k])


@njit(nogil=True, cache=True)
def eps_into(found, sums, mul, add, x, skip, gain):  # type: ignore[no-untyped-def]
    """ε̂ in 2**-14, int32 [3, H, W], of the state x and the head's sums [H/2, W/2 or more, 12 …]."""
    for i in range(found.shape[1]):
        for c in range(3):
            source, to = x[c, i], found[c, i]
            for j in range(len(to)):
                k = 4 * c + 2 * (i % 2) + j % 2
                noise = _real(sums[i // 2, j // 2], mul, add, k)
                value = np.float64(source[j]) * skip + noise * gain
                value = np.rint(value * (1 << EPS_UNIT))
                to[j] = np.int32(min(max(value, -EPS_MAX), EPS_MAX))


@njit(nogil=True, cache=True)
def _limited(value, low, high, unit):  # type: ignore[no-untyped-def]
    return np.int16(np.rint(min(max(value, low), high) * unit))


@njit(nogil=True, cache=True)
def pixel_into(scale, coefs, sums, mul, add):  # type: ignore[no-untyped-def]
    """Scale index and coefficients, int16 [3, H, W] each, of sums [H/2, W/2 or more, 24 …]."""
    low, high = PIXEL_LOGVAR_RANGE
    for i in range(scale.shape[1]):
        for c in range(3):
            for j in range(scale.shape[2]):
                k = 4 * c + 2 * (i % 2) + j % 2
                own = sums[i // 2, j // 2]
                value, share = _real(own, mul, add, k), _real(own, mul, add, k + 12)
                scale[c, i, j] = _limited(value, low, high, PIXEL_SCALE)
                coefs[c, i, j] = _limited(share, -PIXEL_COEF_MAX, PIXEL_COEF_MAX, COEF_UNIT)


@njit(nogil=True, cache=True)
def coef_into(found, sums, mul, add):  # type: ignore[no-untyped-def]
    """The coefficient index, int16 [192, H/8, W/8], of sums [H/8, W/8 or more, 192 …]."""
    low, high = COEF_LOGVAR_RANGE
    for i in range(found.shape[1]):
        for j in range(found.shape[2]):
            for k in range(len(mul)):
                found[k, i, j] = _limited(_real(sums[i, j], mul, add, k), low, high, COEF_SCALE)
