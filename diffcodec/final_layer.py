"""The last layer, x_0 given x_1: the discretised decoder of eq. 13, range-coded.

Every pixel value gets the mass of a Gaussian over its bin (the outermost bins open), with the
model's mean x̂_0(x_1) and a predicted scale.  Pixels are coded in two passes like the fields of
a chessboard: first the even ones, then the odd ones, whose means are corrected by the residuals
of the four neighbours, all even.  In each pass channels go G, R, B, each mean corrected by the
residuals before it.  Means are integers in 1/16 level, scales lie on a 1/8-octave grid, so
there are few distinct distributions and symbols are coded distribution by distribution: in each
channel of a pass by ascending distribution, in reading order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffcodec import tables
from diffcodec.entropy import (
    PRECISION,
    Decoder,
    Encoder,
    SymbolModel,
    categorical,
    integer_probabilities,
)
from diffcodec.errors import FormatError

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

MEAN_UNIT = 16
COEF_UNIT = 64
NEIGHBOUR_UNIT = 1024
NEIGHBOUR_LIMIT = 3 * MEAN_UNIT
"""Residuals of neighbours count for at most this much, in 1/16 level."""
NO_NEIGHBOURS = np.zeros((3, 6), dtype=np.int64)
SCALE_MIN, SCALE_MAX = -3 * tables.OCTAVE, 7 * tables.OCTAVE
STRIP_ROWS = 64
RED, GREEN, BLUE = 0, 1, 2

_SPAN = 255
_EDGE_LIMIT = 64
_KEY = 257


@dataclass(frozen=True)
class Distribution:
    """p_θ(x_0 | x_1) of a strip; all int64 [3, h, w].

    mean: in 1/16 level; scale: log2 of the standard deviation in levels, in 1/8;
    coefs: G→R, G→B, R→B in 1/64; neighbours: [3, 6] in 1/1024, see :func:`neighbour_sums`;
    rounds: whether corrections are rounded to 1/16 level, or down (version 5 of the format).
    """

    mean: I64
    scale: I64
    coefs: I64
    neighbours: I64 = field(default_factory=NO_NEIGHBOURS.copy)
    rounds: bool = True

    def divide(self, sums: I64, by: int) -> I64:
        """sums / by as integers."""
        return (sums + (by // 2 if self.rounds else 0)) // by

    def rows(self, start: int, stop: int) -> Distribution:
        """The strip of rows start … stop−1."""
        part = slice(start, stop)
        return Distribution(
            self.mean[:, part],
            self.scale[:, part],
            self.coefs[:, part],
            self.neighbours,
            self.rounds,
        )


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
    """(distribution key, ⌊mean⌋) for pixels of one channel, [n] each."""
    mean = np.clip(mean, 0, MEAN_UNIT * _SPAN + MEAN_UNIT - 1)
    scale = np.clip(scale, SCALE_MIN, SCALE_MAX)
    floor, phase = mean // MEAN_UNIT, mean % MEAN_UNIT
    reach = np.minimum(_REACH[scale - SCALE_MIN], _EDGE_LIMIT)
    near = (floor < reach) | (floor > _SPAN - reach)
    shape = (scale - SCALE_MIN) * MEAN_UNIT + phase
    return shape * _KEY + np.where(near, floor + 1, 0), floor


_REACH = np.array([int(5 * tables.scale_levels(i)) + 2 for i in range(SCALE_MIN, SCALE_MAX + 1)])
"""Distance from 0 or 255, in levels, within which a distribution feels the edge."""


def strips(height: int) -> list[slice]:
    """Row ranges of the layer's independently coded strips."""
    return [slice(top, min(top + STRIP_ROWS, height)) for top in range(0, height, STRIP_ROWS)]


def even_fields(height: int, width: int) -> NDArray[np.bool_]:
    """The pixels of the first pass, [height, width]: row + column is even."""
    rows, columns = np.ogrid[:height, :width]
    return np.asarray((rows + columns) % 2 == 0)


def neighbour_sums(residuals: NDArray[Any]) -> NDArray[Any]:
    """[6, h, w] from residuals [3, h, w]: above + below in R, G, B, then left + right.

    Beyond the strip there is nothing to add.
    """
    padded = np.pad(residuals, [(0, 0), (1, 1), (1, 1)])
    vertical = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1]
    horizontal = padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]
    return np.concatenate([vertical, horizontal])


class _Pixels:
    """The residuals known so far, and what they say of the next pixels; for both sides.

    residuals: 1/16 level, [3, h, w], 0 where a pixel is not known yet.
    """

    def __init__(self, p: Distribution, grey: bool) -> None:
        self.p, self.grey = p, grey
        self.even = even_fields(*p.mean.shape[1:])
        self.channels = (GREEN,) if grey else (GREEN, RED, BLUE)
        self.residuals = np.zeros(p.mean.shape, dtype=np.int64)
        self.shift = np.zeros(p.mean.shape, dtype=np.int64)

    def passes(self) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """(channel, its pixels [h, w]) in coding order."""
        for channel in self.channels:
            yield channel, self.even
        near = np.clip(self.residuals, -NEIGHBOUR_LIMIT, NEIGHBOUR_LIMIT)
        weights = self.p.neighbours
        if self.grey:  # there is one plane, in G's place
            weights = weights * np.isin(np.arange(6), (GREEN, 3 + GREEN))
        for channel in self.channels:
            total = np.tensordot(weights[channel], neighbour_sums(near), axes=1)
            self.shift[channel] = self.p.divide(total, NEIGHBOUR_UNIT)
        for channel in self.channels:
            yield channel, ~self.even

    def parameters(self, channel: int) -> tuple[I64, I64]:
        """(mean, scale) [h, w] of a channel, its mean corrected by all that is known."""
        p, residuals = self.p, self.residuals
        if self.grey:
            # x_1 holds three views of one value: 1/√3 of the spread.
            mean = p.divide(p.mean.sum(axis=0), 3) + self.shift[GREEN]
            return mean, p.scale[GREEN] - round(tables.OCTAVE * 0.79)
        mean = p.mean[channel] + self.shift[channel]
        if channel == RED:
            mean = mean + p.divide(p.coefs[0] * residuals[GREEN], COEF_UNIT)
        if channel == BLUE:
            green, red = p.coefs[1] * residuals[GREEN], p.coefs[2] * residuals[RED]
            mean = mean + p.divide(green + red, COEF_UNIT)
        return mean, p.scale[channel]


def send_strip(x_0: I64, p: Distribution, grey: bool = False) -> bytes:
    """Code levels x_0 int64 [3, h, w] in 0…255 (three equal planes if ``grey``)."""
    coder = Encoder()
    pixels = _Pixels(p, grey)
    for channel, own in pixels.passes():
        mean, scale = pixels.parameters(channel)
        keys, floor = _keys(mean[own], scale[own])
        symbols = x_0[channel][own] - floor + _SPAN
        for key, members in _groups(keys):
            coder.encode(symbols[members], _model(key)[0])
        pixels.residuals[channel][own] = MEAN_UNIT * x_0[channel][own] - mean[own]
    return coder.getvalue()


def receive_strip(
    code: bytes, p: Distribution, grey: bool = False, complete: bool = True
) -> tuple[I64, NDArray[np.bool_]]:
    """Reverse of :func:`send_strip`: (levels int64 [3, h, w], which of them are certain).

    With ``complete`` False the code was cut: pixels are certain as long as the bits of those
    decoded so far were surely there, and the rest holds the model's mean.
    """
    reader = _SymbolReader(code, complete)
    pixels = _Pixels(p, grey)
    levels = np.clip((p.mean + MEAN_UNIT // 2) // MEAN_UNIT, 0, _SPAN)
    certain = np.zeros(p.mean.shape, dtype=bool)
    for channel, own in pixels.passes():
        mean, scale = pixels.parameters(channel)
        keys, floor = _keys(mean[own], scale[own])
        symbols, sure = reader.read(keys)
        values = symbols - _SPAN + floor
        if np.any((values < 0) | (values > _SPAN), where=sure):
            raise FormatError("an impossible pixel value")
        for plane in (RED, GREEN, BLUE) if grey else (channel,):
            certain[plane][own] = sure
            levels[plane][own] = np.where(sure, values, levels[plane][own])
        if not sure.all():
            break
        pixels.residuals[channel][own] = MEAN_UNIT * values - mean[own]
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


def correct_means(x_0: I64, mean: F64, coefs: F64, neighbours: F64) -> F64:
    """Every pixel's mean given all that is coded before it, without rounding; [3, h, w].

    x_0 and mean in levels, coefs [3, h, w] and neighbours [3, 6] as fractions.
    """
    even = even_fields(*mean.shape[1:])
    shift = np.zeros(mean.shape)
    for _ in range(2):
        green = x_0[GREEN] - mean[GREEN] - shift[GREEN]
        mean_r = mean[RED] + shift[RED] + coefs[0] * green
        red = x_0[RED] - mean_r
        mean_b = mean[BLUE] + shift[BLUE] + coefs[1] * green + coefs[2] * red
        corrected = np.stack([mean_r, x_0[GREEN] - green, mean_b])
        limit = NEIGHBOUR_LIMIT / MEAN_UNIT
        near = np.where(even, np.clip(x_0 - corrected, -limit, limit), 0.0)
        shift = np.where(even, 0.0, np.tensordot(neighbours, neighbour_sums(near), axes=1))
    return corrected


def ideal_bits(x_0: I64, mean: F64, scale: F64, coefs: F64, neighbours: F64) -> float:
    """Code length in bits of x_0 under eq. 13 with unquantised float parameters.

    Shapes as in :class:`Distribution`; mean in levels, scale as a standard deviation in
    levels, coefs and neighbours as fractions.  Uses the same Φ table, no coder.
    """
    means = correct_means(x_0, mean, coefs, neighbours)
    upper = np.where(x_0 == _SPAN, np.inf, (x_0 + 0.5 - means) / scale)
    lower = np.where(x_0 == 0, -np.inf, (x_0 - 0.5 - means) / scale)
    # By symmetry evaluate in the lower tail, where Φ keeps its relative precision.
    flip = lower > 0
    upper, lower = np.where(flip, -lower, upper), np.where(flip, -upper, lower)
    mass = tables.phi(upper) - tables.phi(lower)
    return float(-np.sum(np.log2(np.maximum(mass, 2.0**-PRECISION))))


def fit_neighbours(pictures: Sequence[tuple[I64, Distribution]]) -> I64:
    """Weights of the neighbours' residuals in 1/1024, [3, 6], by least squares.

    pictures: levels [3, h, w] and their predictions, never of a test set.
    """
    weights = np.zeros((3, 6))
    limit = NEIGHBOUR_LIMIT / MEAN_UNIT
    for channel in (GREEN, RED, BLUE):  # a channel's means depend on the shifts of those before
        rows: list[F64] = []
        targets: list[F64] = []
        for x_0, p in pictures:
            means = correct_means(x_0, p.mean / MEAN_UNIT, p.coefs / COEF_UNIT, weights)
            even = even_fields(*x_0.shape[1:])
            near = np.clip(x_0 - means, -limit, limit)
            rows.append(neighbour_sums(np.where(even, near, 0.0))[:, ~even].T)
            targets.append(near[channel, ~even])
        weights[channel] = np.linalg.lstsq(np.concatenate(rows), np.concatenate(targets))[0]
    return np.rint(weights * NEIGHBOUR_UNIT).astype(np.int64)
