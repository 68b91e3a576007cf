"""The last layer, x_0 given x_t: the discretised decoder of eq. 13, range-coded.

Every pixel value gets the mass of a Gaussian over its bin (the outermost bins open), with the
model's mean x̂_0(x_t) and a predicted scale; t is where the plan's steps end, mostly 1.  Pixels
are coded in two passes like the fields of a chessboard, first the even ones, then the odd ones, or
each of these in two passes again.  From the second pass on means are corrected by the residuals of
those of the eight neighbours that are known.  In each pass channels go G, R, B, each mean corrected
by the residuals before it.  What neighbours tell, and how large residuals are, can be learnt from
strip to strip (see lessons.py).  Means are integers in 1/16 level, scales lie on a 1/8-octave
grid, so there are few distinct distributions and symbols are coded distribution by distribution: in
each channel of a pass by ascending distribution, in reading order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffcodec import tables
from diffcodec.entropy import (
    CATEGORICAL_FAMILY,
    PRECISION,
    Decoder,
    Encoder,
    SymbolModel,
    categorical,
    integer_probabilities,
)
from diffcodec.errors import FormatError
from diffcodec.lattice import ROWS, SCALE_LIMIT, Expected
from diffcodec.lessons import (
    COEF_UNIT,
    MEAN_UNIT,
    REGRESSORS,
    SCALE_MAX,
    SCALE_MIN,
    WEIGHT_MAX,
    WEIGHT_UNIT,
    Lessons,
)

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

FIELDS = {2: (((0, 0), (1, 1)), ((0, 1), (1, 0))), 4: (((0, 0),), ((1, 1),), ((0, 1),), ((1, 0),))}
"""Pass by pass where its pixels are: row and column modulo 2."""
RED, GREEN, BLUE = 0, 1, 2

_SPAN = 255
_EDGE_LIMIT = 64
_KEY = 257


def no_lessons(passes: int = 2) -> Lessons:
    """Nothing is known of what residuals say of others, nor learnt."""
    return Lessons(np.zeros((passes, 3, REGRESSORS), dtype=np.int64), learns=False)


@dataclass(frozen=True)
class Distribution:
    """p_θ(x_0 | x_t) of a strip; all int64 [3, h, w].

    mean: in 1/16 level; scale: log2 of the standard deviation in levels, in 1/8;
    coefs: G→R, G→B, R→B in 1/64.
    """

    mean: I64
    scale: I64
    coefs: I64

    def rows(self, start: int, stop: int) -> Distribution:
        """The strip of rows start … stop−1."""
        part = slice(start, stop)
        return Distribution(
            self.mean[:, part],
            self.scale[:, part],
            self.coefs[:, part],
        )


def _divide(sums: I64, by: int) -> I64:
    """sums / by, rounded: halves upwards."""
    return (sums + by // 2) // by


def bin_weights(scale_index: int, phase: int, floor: int | None) -> F64:
    """Probability of each residual −255 … 255 from ⌊mean⌋, float64 [511].

    ``phase``/16 is the mean's fraction.  With ``floor`` = ⌊mean⌋ the bins of 0 and 255 take
    all that lies beyond them, as in eq. 13; without it no edge is near.
    """
    scale = tables.scale_levels(scale_index)
    edges = np.arange(-_SPAN, _SPAN + 2) - 0.5 - phase / MEAN_UNIT
    cumulative = tables.phi(np.asarray(edges / scale, dtype=np.float64))
    cumulative[0], cumulative[-1] = 0.0, 1.0
    if floor is not None:
        first, last = _SPAN - floor, 2 * _SPAN - floor
        cumulative[: first + 1] = 0.0
        cumulative[last + 1 :] = 1.0
    return np.maximum(np.diff(cumulative), 0.0)


@lru_cache(maxsize=20000)
def _model(key: int) -> tuple[SymbolModel, NDArray[np.float32]]:
    """constriction's model and the bits of each symbol, for one distribution key."""
    shape, edge = divmod(key, _KEY)
    scale, phase = divmod(shape, MEAN_UNIT)
    weights = bin_weights(scale + SCALE_MIN, phase, edge - 1 if edge else None)
    counts = integer_probabilities(weights)
    return categorical(counts), (PRECISION - np.log2(counts)).astype(np.float32)


def _keys(mean: I64, scale: I64) -> tuple[I64, I64]:
    """(distribution key, ⌊mean⌋) for pixels of one channel, [n] each; scales are within limits."""
    mean = np.clip(mean, 0, MEAN_UNIT * _SPAN + MEAN_UNIT - 1)
    floor, phase = mean // MEAN_UNIT, mean % MEAN_UNIT
    reach = np.minimum(_REACH[scale - SCALE_MIN], _EDGE_LIMIT)
    near = (floor < reach) | (floor > _SPAN - reach)
    shape = (scale - SCALE_MIN) * MEAN_UNIT + phase
    return shape * _KEY + np.where(near, floor + 1, 0), floor


_REACH = np.array([int(5 * tables.scale_levels(i)) + 2 for i in range(SCALE_MIN, SCALE_MAX + 1)])
"""Distance from 0 or 255, in levels, within which a distribution feels the edge."""


def fields(passes: int, height: int, width: int) -> list[NDArray[np.bool_]]:
    """The pixels of each pass, [height, width]."""
    masks = []
    for places in FIELDS[passes]:
        mask = np.zeros((height, width), dtype=bool)
        for row, column in places:
            mask[row::2, column::2] = True
        masks.append(mask)
    return masks


def neighbour_sums(residuals: NDArray[Any]) -> NDArray[Any]:
    """[9, h, w] from residuals [3, h, w]: above + below in R, G, B, then left + right, then the
    four diagonal ones.

    Beyond the strip there is nothing to add.
    """
    padded = np.pad(residuals, [(0, 0), (1, 1), (1, 1)])
    vertical = padded[:, :-2] + padded[:, 2:]
    horizontal = padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]
    diagonal = vertical[:, :, :-2] + vertical[:, :, 2:]
    return np.concatenate([vertical[:, :, 1:-1], horizontal, diagonal])


@dataclass(frozen=True)
class _Pass:
    """The pixels ``own`` [h, w] of a channel in the pass ``number``; in reading order, [n] each:
    their mean and scale, corrected by all that is known, and before the lessons; the regressors
    that these are about, [REGRESSORS, n], and what they say, in 1/1024."""

    number: int
    channel: int
    own: NDArray[np.bool_]
    mean: I64
    scale: I64
    plain_mean: I64
    plain_scale: I64
    known: I64
    told: I64


class _Pixels:
    """The residuals known so far, and what they say of the next pixels; for both sides.

    residuals: 1/16 level, [3, h, w], 0 where a pixel is not known yet.
    """

    def __init__(self, p: Distribution, grey: bool, lessons: Lessons) -> None:
        self.p, self.grey, self.lessons = p, grey, lessons
        self.fields = fields(lessons.passes, *p.mean.shape[1:])
        self.residuals = np.zeros(p.mean.shape, dtype=np.int64)
        self._coded: list[I64] = []  # levels of the channels of this pass
        self._expected: Expected | None = None

    def passes(self) -> Iterator[_Pass]:
        """In coding order; :meth:`tell` what the pixels are before asking for the next."""
        limit = self.lessons.limit
        for number, own in enumerate(self.fields):
            around = neighbour_sums(np.clip(self.residuals, -limit, limit))[:, own]
            if self.lessons.colours is not None:
                self._coded, self._expected = [], self._expect(number, own, around)
            for channel in (GREEN,) if self.grey else (GREEN, RED, BLUE):
                yield self._pass(number, channel, own, around)
        self.lessons.end_strip()

    def _pass(self, number: int, channel: int, own: NDArray[np.bool_], around: I64) -> _Pass:
        lessons = self.lessons
        here = self.residuals[[GREEN, RED]][:, own]  # of those not coded yet 0
        known = np.concatenate([around, np.clip(here, -lessons.limit, lessons.limit)])
        mean, scale = self._parameters(channel, own)
        weights = lessons.weights[number, channel]
        told = (weights.astype(np.float64) @ known).astype(np.int64)  # exact
        corrected = mean + _divide(told, WEIGHT_UNIT)
        corrected_scale = lessons.scales(number, channel, scale)
        return _Pass(number, channel, own, corrected, corrected_scale, mean, scale, known, told)

    def _expect(self, number: int, own: NDArray[np.bool_], around: I64) -> Expected:
        """What lattice.py needs of a pass of which nothing is known yet."""
        green, red, blue = (
            self._pass(number, channel, own, around) for channel in (GREEN, RED, BLUE)
        )
        rows = [green.mean, _within(green.scale)]
        for part in (red, blue):
            rows += [part.plain_mean, _within(part.scale), part.told]
        pixels = np.stack([*rows, *self.p.coefs[:, own]], axis=1)
        weights = np.ascontiguousarray(self.lessons.weights[number, :, -2:])
        return Expected(pixels, weights, self.lessons.limit)

    def probabilities(self, rows: slice) -> F64:
        """Of the levels of some pixels of the pass that comes next, where colours lie on a lattice.

        [rows, 256], in whole 2**-24.
        """
        colours, expected = self.lessons.colours, self._expected
        assert colours is not None and expected is not None
        known = np.array(self._coded, dtype=np.int64).reshape(-1, len(expected.pixels))
        return expected.probabilities(colours, known, rows)

    def _parameters(self, channel: int, own: NDArray[np.bool_]) -> tuple[I64, I64]:
        """(mean, scale) [n] of a channel, the mean corrected by the channels before it."""
        p = self.p
        if self.grey:
            # x_t holds three views of one value: 1/√3 of the spread.
            mean = _divide(p.mean[:, own].sum(axis=0), 3)
            return mean, p.scale[GREEN][own] - round(tables.OCTAVE * 0.79)
        mean, coefs = p.mean[channel][own], p.coefs[:, own]
        green, red = self.residuals[GREEN][own], self.residuals[RED][own]
        if channel == RED:
            mean = mean + _divide(coefs[0] * green, COEF_UNIT)
        if channel == BLUE:
            mean = mean + _divide(coefs[1] * green + coefs[2] * red, COEF_UNIT)
        return mean, p.scale[channel][own]

    def tell(self, part: _Pass, levels: I64) -> None:
        """What the pixels of a pass are, [n]."""
        colours = self.lessons.colours
        if colours is not None:
            self._coded.append(levels)
            if part.channel == BLUE:
                green, red, blue = self._coded
                colours.look(red, green, blue)
        residual = MEAN_UNIT * levels - part.mean
        self.residuals[part.channel][part.own] = residual
        missing = MEAN_UNIT * levels - part.plain_mean
        place = part.number, part.channel
        self.lessons.look(*place, part.known, missing, residual, part.plain_scale)


def send_strip(
    x_0: I64, p: Distribution, grey: bool = False, lessons: Lessons | None = None
) -> bytes:
    """Code levels x_0 int64 [3, h, w] in 0…255 (three equal planes if ``grey``).

    The ``lessons`` of the strips before are heeded and become those of this one, too.
    """
    coder = Encoder()
    pixels = _Pixels(p, grey, lessons or no_lessons())
    for part in pixels.passes():
        levels = x_0[part.channel][part.own]
        if pixels.lessons.colours is None:
            keys, floor = _keys(part.mean, part.scale)
            symbols = levels - floor + _SPAN
            for key, members in _groups(keys):
                coder.encode(symbols[members], _model(key)[0])
        else:
            for rows in _rows(len(levels)):
                coder.encode(levels[rows], CATEGORICAL_FAMILY, pixels.probabilities(rows))
        pixels.tell(part, levels)
    return coder.getvalue()


def receive_strip(
    code: bytes,
    p: Distribution,
    grey: bool = False,
    complete: bool = True,
    lessons: Lessons | None = None,
) -> tuple[I64, NDArray[np.bool_]]:
    """Reverse of :func:`send_strip`: (levels int64 [3, h, w], which of them are certain).

    With ``complete`` False the code was cut: pixels are certain as long as the bits of those
    decoded so far were surely there, and the rest holds the model's mean.
    """
    reader = _SymbolReader(code, complete)
    pixels = _Pixels(p, grey, lessons or no_lessons())
    levels = np.clip((p.mean + MEAN_UNIT // 2) // MEAN_UNIT, 0, _SPAN)
    certain = np.zeros(p.mean.shape, dtype=bool)
    for part in pixels.passes():
        if pixels.lessons.colours is None:
            keys, floor = _keys(part.mean, part.scale)
            symbols, sure = reader.read(keys)
            values = symbols - _SPAN + floor
        else:
            values, sure = reader.read_levels(len(part.mean), pixels.probabilities)
        if np.any((values < 0) | (values > _SPAN), where=sure):
            raise FormatError("an impossible pixel value")
        for plane in (RED, GREEN, BLUE) if grey else (part.channel,):
            certain[plane][part.own] = sure
            levels[plane][part.own] = np.where(sure, values, levels[plane][part.own])
        if not sure.all():
            break
        pixels.tell(part, values)
    return levels, certain


class _SymbolReader:
    """Decodes symbols; of a code that was cut, as many as are certain."""

    def __init__(self, code: bytes, complete: bool) -> None:
        self.coder, self.complete = Decoder(code), complete
        self.budget = 8.0 * len(code) - 40.0

    def read(self, keys: I64) -> tuple[I64, NDArray[np.bool_]]:
        """Symbols of pixels with these distributions, and which of them are certain."""
        symbols = np.zeros(len(keys), dtype=np.int64)
        sure = np.full(len(keys), self.complete)
        for key, members in _groups(keys):
            model, costs = _model(key)
            if self.complete:
                symbols[members] = self.coder.decode(len(members), model)
                continue
            for place in members:
                if self.budget <= 0.0:
                    return symbols, sure
                symbols[place] = self.coder.decode(1, model)[0]
                self.budget -= float(costs[symbols[place]])
                sure[place] = self.budget > 0.0
        return symbols, sure

    def read_levels(
        self, count: int, probabilities: Callable[[slice], F64]
    ) -> tuple[I64, NDArray[np.bool_]]:
        """Levels of pixels with such probabilities, and which of them are certain."""
        levels = np.zeros(count, dtype=np.int64)
        sure = np.full(count, self.complete)
        for rows in _rows(count):
            chances = probabilities(rows)
            if self.complete:
                levels[rows] = self.coder.decode(len(chances), CATEGORICAL_FAMILY, chances)
                continue
            for place, own in enumerate(chances, rows.start):
                if self.budget <= 0.0:
                    return levels, sure
                levels[place] = self.coder.decode(1, CATEGORICAL_FAMILY, own[None])[0]
                self.budget += math.log2(own[levels[place]])
                sure[place] = self.budget > 0.0
        return levels, sure


def _rows(count: int) -> list[slice]:
    """As many pixels at a time as lattice.py is to look at."""
    return [slice(first, min(first + ROWS, count)) for first in range(0, count, ROWS)]


def _within(scale: I64) -> I64:
    """A scale as lattice.py counts it."""
    return np.minimum(scale, SCALE_LIMIT) - SCALE_MIN


def _groups(keys: I64) -> list[tuple[int, I64]]:
    """(key, places in reading order) by ascending key."""
    if not len(keys):
        return []
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    cuts = np.flatnonzero(np.diff(ordered)) + 1
    starts = np.concatenate([[0], cuts])
    return [
        (int(ordered[start]), part)
        for start, part in zip(starts, np.split(order, cuts), strict=True)
    ]


def ideal_bits(
    x_0: I64, p: Distribution, grey: bool = False, lessons: Lessons | None = None
) -> float:
    """Code length in bits of x_0 under eq. 13; arguments as of :func:`send_strip`.

    Uses the same Φ table and parameters, but no coder and none of its probabilities' rounding
    (where colours lie on a lattice, the probabilities as they are coded).
    """
    bits = 0.0
    pixels = _Pixels(p, grey, lessons or no_lessons())
    for part in pixels.passes():
        levels = x_0[part.channel][part.own]
        if pixels.lessons.colours is not None:
            for rows in _rows(len(levels)):
                own = levels[rows]
                chances = pixels.probabilities(rows)[np.arange(len(own)), own]
                bits -= float(np.sum(np.log2(chances)))
            pixels.tell(part, levels)
            continue
        scale = np.exp2(part.scale / tables.OCTAVE)
        means = part.mean / MEAN_UNIT
        upper = np.where(levels == _SPAN, np.inf, (levels + 0.5 - means) / scale)
        lower = np.where(levels == 0, -np.inf, (levels - 0.5 - means) / scale)
        # By symmetry evaluate in the lower tail, where Φ keeps its relative precision.
        flip = lower > 0
        upper, lower = np.where(flip, -lower, upper), np.where(flip, -upper, lower)
        mass = tables.phi(upper) - tables.phi(lower)
        bits -= float(np.sum(np.log2(np.maximum(mass, 2.0**-PRECISION))))
        pixels.tell(part, levels)
    return bits


def fit_weights(pictures: Sequence[tuple[I64, Distribution]], passes: int) -> I64:
    """First weights of lessons, [passes, 3, REGRESSORS] in 1/1024, by least squares.

    pictures: levels [3, h, w] and their predictions, never of a test set; each counts by how well
    it is predicted, so that the noisiest do not decide alone.  In two passes, which learn nothing,
    it is the four nearest neighbours that are asked, all of them coded before.
    """
    weights = no_lessons(passes).weights
    asked = np.arange(REGRESSORS) < (6 if passes == 2 else REGRESSORS)
    for _ in range(_FIT_ROUNDS):  # residuals depend on the weights
        sums = [_sums(x_0, p, weights) for x_0, p in pictures]
        gram, target = (sum(part) for part in zip(*sums, strict=True))
        for place in product(range(passes), range(3)):
            own = gram[place][np.ix_(asked, asked)]
            found = np.linalg.lstsq(own, target[place][asked])[0]
            weights[place][asked] = np.rint(found * WEIGHT_UNIT).clip(-WEIGHT_MAX, WEIGHT_MAX)
        if passes == 2:
            weights[0] = 0
    return weights


_FIT_ROUNDS = 3


def _sums(x_0: I64, p: Distribution, weights: I64) -> tuple[F64, F64]:
    """What a picture adds to the normal equations."""
    lessons = Lessons(weights, learns=True)
    ideal_bits(x_0, p, lessons=lessons)
    return lessons.sums
