"""What both sides learn about a picture while they code it, and what the network gains by it.

Every conveyed y is a noisy look at the error of ε̂, of which W y = g (ε̂ − ε) + n with n of unit
variance.  Ridge regression on the features that ε̂ was made from tells which part of that error
the next ε̂ will have as well: the network's last layer is fitted to the picture, without a bit
of side information, because the receiver knows y as well as the sender.

Pictures can differ from those the network knows by a filter: sharpened, scanned or scaled some
other way.  The features of a cell's neighbours tell what such a filter does, those of the cell
itself hardly do.

Sums are of integers below 2**53 and so exact in any order; the equations are solved by
elementwise float64 operations in a fixed order, and the solution is rounded to integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numba import njit

from diffcodec import tiles
from diffcodec.convolution import I16
from diffcodec.correction import CELL, CONSTANT, F64, OUTPUTS, OWN, WEIGHT_UNIT, Correction
from diffcodec.parallel import thread_map

BAND = 4096
"""Cells, in whole rows of them, that are summed over at a time."""
PIVOTS = 4
"""Rows that the elimination takes from all below at a time, as many as _less_four says."""
NOISE_UNIT = 8
NOISE_MAX = (1 << 15) - 1
WEIGHT_MAX = 1 << 20


@dataclass(frozen=True)
class Rule:
    """How a plan's adaptation learns.

    cells: rows and columns from a cell to those whose features tell of its error, itself first;
    sizes: whether the absolute values of its own do, too; learns_from, corrects_from: highest
    timesteps a of steps a → b that are learnt from, and of evaluations that are corrected;
    ridge: how much evidence it takes, relative to the mean square of a feature, for the cell's
    own features and for all others; most_cells: of a picture with more only those in every
    second, fourth … row and column are learnt from, as ``strides`` has it.
    """

    cells: tuple[tuple[int, int], ...]
    sizes: bool
    learns_from: int
    corrects_from: int
    ridge: tuple[float, float]
    most_cells: int
    strides: tuple[int, ...]

    def stride(self, height: int, width: int) -> int:
        """Of the cells that are learnt from, along each side of a picture of this size."""
        cells = (height // CELL) * (width // CELL)
        fitting = (n for n in self.strides if cells <= self.most_cells * n * n)
        return next(fitting, self.strides[-1])


AROUND = (*OWN, (-1, 0), (1, 0), (0, -1), (0, 1))

RULES = {
    1: Rule(OWN, False, 1000, 1000, (1e4, 1e4), 1 << 18, (1, 2, 4)),
    # While the noise is high the network errs in other ways at every step, and what one step
    # teaches does harm at the next.
    2: Rule(AROUND, True, 180, 70, (7e3, 3e4), 1 << 17, (1, 2, 4, 8)),
}
"""The rules of adaptive plans, part of the format."""


class Adaptation:
    """State of the regression for a picture of height × width pixels.

    features: how many the network has of a cell, ``told`` how many a rule makes of them;
    weights: float64 [told + 1, OUTPUTS] of integers in 2**-24 per unit of a feature; ε̂ less
    what they make of the features is the corrected one; device: of torch's, that sums them up.
    """

    def __init__(
        self, features: int, height: int, width: int, rule: Rule, device: str = "cpu"
    ) -> None:
        self._device = device
        self.rule, self.stride = rule, rule.stride(height, width)
        told = features * (len(rule.cells) + rule.sizes)
        step = CELL * self.stride
        # Cells wholly inside the picture, whose sides need not be even.
        self.rows = -(-(height // CELL) * CELL // step)
        self.columns = -(-(width // CELL) * CELL // step)
        self.weights: F64 = np.zeros((told + 1, OUTPUTS))
        self._gram: F64 = np.zeros((told + 1, told + 1))
        self._target: F64 = np.zeros((told + 1, OUTPUTS))
        own, others = rule.ridge
        self._ridge: F64 = np.full(told + 1, others)
        self._ridge[:features] = self._ridge[told] = own

    def learns(self, a: int) -> bool:
        """Whether a step from timestep ``a`` is learnt from."""
        return a <= self.rule.learns_from

    def correction(self, t: int, times: int = 1) -> Correction | None:
        """For the network at timestep ``t``, of which the features are wanted as well."""
        if not self.learns(t):
            return None
        rule, pitch = self.rule, CELL * self.stride
        return Correction(self.weights * times, pitch, rule.cells, rule.sizes)

    def empty(self) -> I16:
        """To be filled in by :meth:`look`: [OUTPUTS, rows, columns]."""
        return np.zeros((OUTPUTS, self.rows, self.columns), dtype=np.int16)

    def look(self, noise: F64, top: int, seen: I16) -> None:
        """Keep what is learnt from of Wᵀy, float64 [3, h, w], of the rows from ``top`` on.

        ``top`` is a multiple of 8.
        """
        step = CELL * self.stride
        whole = np.rint(noise * (1 << NOISE_UNIT)).clip(-NOISE_MAX, NOISE_MAX)
        first = -(-top // step)
        whole = whole[:, first * step - top :]
        for number in range(OUTPUTS):
            plane, place = divmod(number, CELL * CELL)
            y, x = divmod(place, CELL)
            part = whole[plane, y::step, x::step]
            own = seen[number, first : first + part.shape[0]]
            own[:] = part[: len(own), : self.columns]

    def learn(self, b: int, features: I16, seen: I16, gain: float) -> None:
        """From a step to timestep ``b``: features int16 [told, ≥ rows, ≥ columns], what
        :meth:`look` kept, and g of the step."""

        band, told = max(1, BAND // self.columns), len(features)

        def sums(number: int) -> F64:
            rows = slice(number * band, min((number + 1) * band, self.rows))
            part = features[:, rows, : self.columns].reshape(told, -1)
            constant = np.full_like(part[:1], CONSTANT)
            both = np.concatenate([part, constant, seen[:, rows].reshape(OUTPUTS, -1)])
            return inner_products(both, self._device)

        first, *others = thread_map(sums, -(-self.rows // band))
        total = np.tril(sum(others, first))
        products, crossed = total[: told + 1, : told + 1], total[told + 1 :, : told + 1].T
        products = products + np.tril(products, -1).T
        own = products * (gain * gain)
        target = crossed * (gain / (1 << NOISE_UNIT))
        for j, row in enumerate(self.weights / (1 << WEIGHT_UNIT)):  # y is of the corrected ε̂
            target += own[:, j, None] * row
        self._gram = self._gram / 2 + own
        self._target = self._target / 2 + target
        if b > self.rule.corrects_from:
            return
        ridge = np.diag(products) * (self._ridge / (self.rows * self.columns)) + 1.0
        solved = solve(self._gram + np.diag(ridge), self._target)
        rounded = np.rint(solved * (1 << WEIGHT_UNIT))
        self.weights = rounded.clip(-WEIGHT_MAX, WEIGHT_MAX)


def inner_products(rows: I16, device: str = "cpu") -> F64:
    """Of all pairs of rows [n, m], exact, float64 [n, n]; right below the diagonal and on it."""
    if device != "cpu":
        there = torch.from_numpy(rows).to(device).double()
        return (there @ there.T).cpu().numpy()
    found = tiles.inner_products(rows) if tiles.ALLOWED else None
    if found is None:
        whole = rows.astype(np.float64)
        return whole @ whole.T
    return found[: len(rows), : len(rows)].astype(np.float64)


def solve(matrix: F64, right: F64) -> F64:
    """X with matrix · X = right, for a symmetric positive definite matrix [n, n], right [n, m].

    Gaussian elimination in an order that is part of the format: every operation is elementwise.
    """
    a, x = matrix.copy(), right.copy()
    _solve(a, x)
    return x


@njit(nogil=True, cache=True)
def _solve(a: F64, x: F64) -> None:
    """In place; numba fuses no product with a sum unless it is told to.

    Every element loses factor · pivot row for the columns 0, 1, 2, … in this order, however many
    of them a pass over the rows below takes at a time.
    """
    n = len(x)
    for begin in range(0, n, PIVOTS):
        end = min(begin + PIVOTS, n)
        for j in range(begin, end):
            for i in range(j + 1, n):
                a[i, j] /= a[j, j]
                _less(a[i, j + 1 : end], a[i, j], a[j, j + 1 : end])
        for i in range(begin + 1, end):
            for j in range(begin, i):
                _less(a[i, end:], a[i, j], a[j, end:])
                _less(x[i], a[i, j], x[j])
        for i in range(end, n):
            _less_four(a[i, end:], a[i, begin:end], a[begin:end, end:])
            _less_four(x[i], a[i, begin:end], x[begin:end])
    for j in range(n - 1, -1, -1):
        x[j] /= a[j, j]
        for i in range(j):
            _less(x[i], a[i, j], x[j])


@njit(nogil=True, cache=True)
def _less(row, factor, pivot):  # type: ignore[no-untyped-def]
    for k in range(len(row)):
        row[k] -= factor * pivot[k]


@njit(nogil=True, cache=True)
def _less_four(row, factors, pivots):  # type: ignore[no-untyped-def]
    """As :func:`_less` for PIVOTS of them, one after another."""
    f0, f1, f2, f3 = factors[0], factors[1], factors[2], factors[3]
    p0, p1, p2, p3 = pivots[0], pivots[1], pivots[2], pivots[3]
    for k in range(len(row)):
        row[k] = row[k] - f0 * p0[k] - f1 * p1[k] - f2 * p2[k] - f3 * p3[k]
