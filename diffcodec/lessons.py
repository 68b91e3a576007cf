"""What the strips of a final layer teach of the next ones.

A pixel's residual (16 · level − mean) says something of those coded after it: of its neighbours
and of the colours at its own place.  How much depends on the picture: grain may be white or have
spots, and what the steps conveyed is a little noisier than it should be.  So both sides learn it,
in four passes over a large picture, from the strips before; the first strip begins with what the
model has for all pictures.  Everything is integers and single operations in an order that is part
of the format, so that both learn the same.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffcodec.adaptation import solve
from diffcodec.tables import OCTAVE

if TYPE_CHECKING:
    from diffcodec.lattice import Colours

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

MEAN_UNIT = 16
"""Of means and residuals, in 1/level."""
COEF_UNIT = 64
"""Of what a channel's residual says of another one's mean."""
SCALE_MIN, SCALE_MAX = -3 * OCTAVE, 7 * OCTAVE
REGRESSORS = 11
"""Sums of neighbours' residuals (9), and the residuals of G and R at the pixel itself."""
WEIGHT_UNIT, WEIGHT_MAX = 1024, 4096
LIMITS = {2: 3 * MEAN_UNIT, 4: 6 * MEAN_UNIT}
"""Residuals count for at most this much, by the number of passes."""
RIDGE = 1000
"""The model's weights count like so many pixels."""
PRIOR = 256
"""And so do the network's scales."""
WIDTH = 2
"""Scales in 1/8 octave that are corrected alike."""
BINS = (SCALE_MAX - SCALE_MIN) // WIDTH + 1
LOWEST, HIGHEST = -4, 8
"""Corrections of a scale, in 1/8 octave."""


def _power(numerator: int, denominator: int, unit: int) -> Decimal:
    """unit · 2^(numerator/denominator) to 40 digits."""
    with localcontext(prec=40):
        return Decimal(2) ** (Decimal(numerator) / denominator) * unit


_SQUARES = np.array(
    [
        int(_power(s, OCTAVE // 2, MEAN_UNIT**2).to_integral_value())
        for s in range(SCALE_MIN, SCALE_MAX + 1)
    ]
)
"""Mean square of a residual, without what rounding to levels adds, by scale."""
_BOUNDS = np.array([float(_power(2 * j - 1, 8, 1)) for j in range(LOWEST + 1, HIGHEST + 1)])
"""Ratios of mean squares between one correction and the next: 2^((2j − 1)/8)."""


class Lessons:
    """weights: [passes, 3, REGRESSORS] in 1/1024, by which what is known corrects the mean of a
    channel (R, G, B) in a pass; offsets: [passes, 3, BINS] in 1/8 octave, of its scales;
    colours: those of a picture whose colours lie on a lattice (see lattice.py), otherwise None.

    Of :meth:`look` and :meth:`end_strip` nothing changes unless it ``learns``.
    """

    def __init__(self, weights: I64, learns: bool, colours: Colours | None = None) -> None:
        self.weights = self._first = weights
        self.learns, self.colours = learns, colours
        shape = weights.shape[:2]
        self.offsets: I64 = np.zeros((*shape, BINS), dtype=np.int64)
        self._gram: F64 = np.zeros((*shape, REGRESSORS, REGRESSORS))
        self._target: F64 = np.zeros((*shape, REGRESSORS))
        self._count: F64 = np.zeros(shape)
        self._spread: F64 = np.zeros((3, *shape, BINS))  # squares, those expected, pixels
        self._seen: list[tuple[int, int, F64, F64, F64, F64]] = []

    @property
    def passes(self) -> int:
        return len(self.weights)

    @property
    def limit(self) -> int:
        """Residuals count for at most this much."""
        return LIMITS[self.passes]

    @property
    def sums(self) -> tuple[F64, F64]:
        """Of the strips so far: products of the regressors, [passes, 3, REGRESSORS, REGRESSORS],
        and theirs with what they should say, both over the squares that are left."""
        squares = np.maximum(self._spread[0].sum(axis=-1), 1.0)[..., None]
        return self._gram / squares[..., None], self._target / squares

    def scales(self, number: int, channel: int, scale: I64) -> I64:
        """Corrected scales of pixels in pass ``number``, limited."""
        limited = np.clip(scale, SCALE_MIN, SCALE_MAX)
        if not self.learns:
            return limited
        offsets = self.offsets[number, channel][(limited - SCALE_MIN) // WIDTH]
        return np.clip(limited + offsets, SCALE_MIN, SCALE_MAX)

    def look(
        self, number: int, channel: int, known: I64, missing: I64, residual: I64, scale: I64
    ) -> None:
        """At the pixels of a channel in a pass: ``known`` regressors [REGRESSORS, n], what they
        should have said (residuals before them), what is left, and the network's scales, [n]."""
        if not self.learns or not len(scale):
            return
        rows = known.astype(np.float64)
        missing = np.clip(missing, -self.limit, self.limit)
        place = np.clip(scale, SCALE_MIN, SCALE_MAX) - SCALE_MIN
        columns = (np.square(residual), _SQUARES[place], np.ones_like(place))
        spread = [np.bincount(place // WIDTH, weights=c, minlength=BINS) for c in columns]
        count = np.asarray(float(len(scale)))
        gram, target = rows @ rows.T, rows @ missing.astype(np.float64)
        self._seen.append((number, channel, gram, target, count, np.stack(spread)))

    def end_strip(self) -> None:
        """What was seen of a strip counts for the next; what was seen before half as much."""
        for number, channel, gram, target, count, spread in self._seen:
            own = number, channel
            self._gram[own] = self._gram[own] / 2 + gram
            self._target[own] = self._target[own] / 2 + target
            self._count[own] = self._count[own] / 2 + count
            self._spread[:, *own] = self._spread[:, *own] / 2 + spread
        learnt, self._seen = {seen[:2] for seen in self._seen}, []
        if learnt:
            self.weights = self.weights.copy()
        for own in learnt:
            ridge = np.diag(self._gram[own]) * (RIDGE / self._count[own]) + 1.0
            right = self._target[own] + ridge * (self._first[own] / WEIGHT_UNIT)
            found = solve(self._gram[own] + np.diag(ridge), right[:, None])[:, 0]
            rounded = np.rint(found * WEIGHT_UNIT).clip(-WEIGHT_MAX, WEIGHT_MAX)
            self.weights[own] = rounded.astype(np.int64)
            self.offsets[own] = _offsets(*self._spread[:, *own])


def _offsets(squares: F64, expected: F64, pixels: F64) -> I64:
    """Corrections of the scales that squares of residuals suggest, [BINS]."""
    # A level is a whole number, which alone makes a mean square of 1/12.
    excess = 3.0 * squares - pixels * (MEAN_UNIT**2 / 4)
    ratio = excess / np.where(expected > 0.0, 3.0 * expected, 1.0)
    ratio = (ratio * pixels + PRIOR) / (pixels + PRIOR)
    return LOWEST + np.searchsorted(_BOUNDS, ratio, side="left").astype(np.int64)
