"""What both sides learn about a picture while they code it, and what the network gains by it.

Every conveyed y is a noisy look at the error of ε̂, of which W y = g (ε̂ − ε) + n with n of unit
variance.  Ridge regression on the features that ε̂ was made from tells which part of that error
the next ε̂ will have as well: the network's last layer is fitted to the picture, without a bit
of side information, because the receiver knows y as well as the sender.

Sums are of integers below 2**53 and so exact in any order; the equations are solved by
elementwise float64 operations in a fixed order, and the solution is rounded to integers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffcodec.exact import CONSTANT, WEIGHT_UNIT, Correction
from diffcodec.parallel import thread_map

F64 = NDArray[np.float64]
I16 = NDArray[np.int16]

CELL = 2
"""Side of the square of pixels that one column of features stands for."""
OUTPUTS = 3 * CELL * CELL
MOST_CELLS = 1 << 18
STRIDES = (1, 2, 4)
"""In larger pictures only every second or fourth row and column of cells is learnt from."""
RIDGE = 1e4
"""How much evidence it takes, relative to the mean square of a feature."""
BAND = 32
"""Rows of cells that are summed over at a time."""
NOISE_UNIT = 8
NOISE_MAX = (1 << 15) - 1
WEIGHT_MAX = 1 << 20


def stride_for(height: int, width: int) -> int:
    """Of the cells that are learnt from, along each side."""
    cells = (height // CELL) * (width // CELL)
    fitting = (n for n in STRIDES if cells <= MOST_CELLS * n * n)
    return next(fitting, STRIDES[-1])


class Adaptation:
    """State of the regression for a picture of height × width pixels.

    features: how many the network has;
    weights: float64 [features + 1, OUTPUTS] of integers in 2**-24 per unit of a feature; ε̂ less
    what they make of the features is the corrected one.
    """

    def __init__(self, features: int, height: int, width: int) -> None:
        self.stride = stride_for(height, width)
        step = CELL * self.stride
        # Cells wholly inside the picture, whose sides need not be even.
        self.rows = -(-(height // CELL) * CELL // step)
        self.columns = -(-(width // CELL) * CELL // step)
        self.weights: F64 = np.zeros((features + 1, OUTPUTS))
        self._gram: F64 = np.zeros((features + 1, features + 1))
        self._target: F64 = np.zeros((features + 1, OUTPUTS))

    def correction(self, times: int = 1) -> Correction:
        """For the network, of which the features are wanted as well."""
        return Correction(self.weights * times, CELL * self.stride)

    def empty(self) -> I16:
        """To be filled in by :meth:`look`: [OUTPUTS, rows, columns]."""
        return np.zeros((OUTPUTS, self.rows, self.columns), dtype=np.int16)

    def look(self, noise: F64, top: int, seen: I16) -> None:
        """Keep what is learnt from of Wᵀy, float64 [3, h, w], of the rows from ``top`` on.

        ``top`` is a multiple of 8.
        """
        step = CELL * self.stride
        whole = np.rint(noise * (1 << NOISE_UNIT)).clip(-NOISE_MAX, NOISE_MAX)
        first = top // step
        for number in range(OUTPUTS):
            plane, place = divmod(number, CELL * CELL)
            y, x = divmod(place, CELL)
            part = whole[plane, y::step, x::step]
            own = seen[number, first : first + part.shape[0]]
            own[:] = part[: len(own), : self.columns]

    def learn(self, features: I16, seen: I16, gain: float) -> None:
        """From a step: features int16 [features, ≥ rows, ≥ columns], what :meth:`look` kept, and
        g of the step."""

        def sums(number: int) -> F64:
            rows = slice(number * BAND, min((number + 1) * BAND, self.rows))
            part = features[:, rows, : self.columns].reshape(len(features), -1)
            phi = np.concatenate([part, np.full_like(part[:1], CONSTANT)]).astype(np.float64)
            psi = seen[:, rows].reshape(OUTPUTS, -1)
            return phi @ np.concatenate([phi, psi]).T

        found = np.sum(thread_map(sums, -(-self.rows // BAND)), axis=0)
        products, crossed = np.split(found, [len(features) + 1], axis=1)
        own = products * (gain * gain)
        target = crossed * (gain / (1 << NOISE_UNIT))
        for j, row in enumerate(self.weights / (1 << WEIGHT_UNIT)):  # y is of the corrected ε̂
            target += own[:, j, None] * row
        self._gram = self._gram / 2 + own
        self._target = self._target / 2 + target
        ridge = np.diag(products) * (RIDGE / (self.rows * self.columns)) + 1.0
        solved = solve(self._gram + np.diag(ridge), self._target)
        rounded = np.rint(solved * (1 << WEIGHT_UNIT))
        self.weights = rounded.clip(-WEIGHT_MAX, WEIGHT_MAX)


def solve(matrix: F64, right: F64) -> F64:
    """X with matrix · X = right, for a symmetric positive definite matrix [n, n], right [n, m].

    Gaussian elimination in an order that is part of the format: every operation is elementwise.
    """
    a, x = matrix.copy(), right.copy()
    n = len(a)
    for j in range(n):
        factor = a[j + 1 :, j, None] / a[j, j]
        a[j + 1 :, j + 1 :] -= factor * a[j, j + 1 :]
        x[j + 1 :] -= factor * x[j]
    for j in reversed(range(n)):
        x[j] /= a[j, j]
        x[:j] -= a[:j, j, None] * x[j]
    return x
