"""Integer tables both sides compute alike: octave grids, rates, candidate scales, Φ.

Everything is made with ``decimal`` (correctly rounded, the same on every machine) and stored
as integers or as float64 that are exact multiples of a power of two.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import cache

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

OCTAVE = 8
"""Variances and scales live on a grid of 1/8 octave."""

S_MIN, S_MAX = -12 * OCTAVE, 12 * OCTAVE
"""Range of the index of s = 2**(index/8), the variance predicted for a coefficient's shift."""

RATE_UNIT = 16
"""Rates are integers in units of 2**-16 bit."""

Y_UNIT = 12
"""Candidate values are integers in units of 2**-12 (one standard deviation of q)."""

LEVEL_UNIT = 128
"""Values of the trellis are integers in units of 1/128 of their standard deviation."""

_UPPER = (11, 29, 50, 72, 96, 125, 167, 264)
LEVELS: I64 = np.array([-x for x in _UPPER[::-1]] + list(_UPPER), dtype=np.int64)
"""Sixteen equally likely values that stand for a Gaussian.

Near its quantiles (i + 1/5) / 15.4, with the mean square LEVEL_UNIT² to the last digit.  What fewer
values cost is what a code made of them needs for noise as large, and y as large, as a Gaussian
one's: 0.04 % more bits where s = 1, 0.2 % where it is 2, 0.7 and 1.9 % at 4 and 8.
"""

_SCALE_SHIFT = 8
PHI_STEPS = 256
PHI_LIMIT = 12


def _octave_powers(low: int, high: int) -> list[Decimal]:
    return [Decimal(2) ** (Decimal(i) / OCTAVE) for i in range(low, high + 1)]


@cache
def rates() -> I64:
    """½ log2(1 + s) for every s index, in 2**-16 bit; index 0 is S_MIN."""
    with localcontext(prec=30):
        ln2 = Decimal(2).ln()
        unit = Decimal(1 << RATE_UNIT)
        values = [(1 + s).ln() / ln2 / 2 * unit for s in _octave_powers(S_MIN, S_MAX)]
        return np.array([int(v.to_integral_value()) for v in values], dtype=np.int64)


@cache
def candidate_scales() -> I64:
    """√(1 + s) / LEVEL_UNIT in units of 2**-20, for every s index: 2√(1 + s) in those of y."""
    with localcontext(prec=30):
        unit = Decimal((1 << (Y_UNIT + _SCALE_SHIFT)) // LEVEL_UNIT)
        values = [(1 + s).sqrt() * unit for s in _octave_powers(S_MIN, S_MAX)]
        return np.array([int(v.to_integral_value()) for v in values], dtype=np.int64)


def candidates(g: I64, s_index: I64) -> I64:
    """Values √(1 + s)·g/LEVEL_UNIT in units of 2**-12; g as the trellis gives it."""
    scaled = g * candidate_scales()[s_index - S_MIN]
    return (scaled + (1 << (_SCALE_SHIFT - 1))) >> _SCALE_SHIFT


@cache
def scale_levels(index: int) -> float:
    """2**(index/8) as a multiple of 2**-40."""
    with localcontext(prec=30):
        power = Decimal(2) ** (Decimal(index) / OCTAVE)
        return float(int((power * (1 << 40)).to_integral_value())) / float(1 << 40)


@cache
def phi_table() -> F64:
    """Φ(z) on z = −12 … 12 in steps of 1/256, by Simpson's rule on exact densities."""
    with localcontext(prec=25):
        norm = 1 / (2 * Decimal("3.14159265358979323846264338")).sqrt()
        fine = 2 * PHI_STEPS
        density = [
            norm * (-((Decimal(i) / fine) ** 2) / 2).exp() for i in range(PHI_LIMIT * fine + 1)
        ]
        upper = [Decimal("0.5")]
        for i in range(0, len(density) - 2, 2):
            area = (density[i] + 4 * density[i + 1] + density[i + 2]) / (6 * PHI_STEPS)
            upper.append(upper[-1] + area)
        positive = np.array([float(v) for v in upper])
        negative = np.array([float(1 - v) for v in upper[:0:-1]])
    return np.concatenate([negative, positive])


def phi(z: F64) -> F64:
    """Φ by linear interpolation of :func:`phi_table`: additions and products only."""
    place = np.clip((z + PHI_LIMIT) * PHI_STEPS, 0.0, 2.0 * PHI_LIMIT * PHI_STEPS - 1.0)
    index = place.astype(np.int64)
    table = phi_table()
    return table[index] + (place - index) * (table[index + 1] - table[index])
