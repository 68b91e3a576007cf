"""The last layer, x_0 given x_1: the discretised decoder of eq. 13, range-coded.

Every pixel value gets the mass of a Gaussian over its bin (the outermost bins open), with the
model's mean x̂_0(x_1) and a predicted scale.  Channels go G, R, B; each mean is corrected by
the residuals already decoded.  Means are integers in 1/16 level, scales lie on a 1/8-octave
grid, so there are few distinct distributions and symbols are coded distribution by
distribution: first all of G, then R, then B, each by ascending distribution, in reading order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

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
    coefs: G→R, G→B, R→B in 1/64.
    """

    mean: I64
    scale: I64
    coefs: I64

    def rows(self, start: int, stop: int) -> Distribution:
        """The strip of rows start … stop−1."""
        return Distribution(
            self.mean[:, start:stop], self.scale[:, start:stop], self.coefs[:, start:stop]
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
    """(distribution key, ⌊mean⌋) for every pixel of one channel, flattened."""
    mean = np.clip(mean, 0, MEAN_UNIT * _SPAN + MEAN_UNIT - 1).reshape(-1)
    scale = np.clip(scale, SCALE_MIN, SCALE_MAX).reshape(-1)
    floor, phase = mean // MEAN_UNIT, mean % MEAN_UNIT
    reach = np.minimum(_REACH[scale - SCALE_MIN], _EDGE_LIMIT)
    near = (floor < reach) | (floor > _SPAN - reach)
    shape = (scale - SCALE_MIN) * MEAN_UNIT + phase
    return shape * _KEY + np.where(near, floor + 1, 0), floor


_REACH = np.array([int(5 * tables.scale_levels(i)) + 2 for i in range(SCALE_MIN, SCALE_MAX + 1)])
"""Distance from 0 or 255, in levels, within which a distribution feels the edge."""


def _channel_means(p: Distribution, residuals: dict[int, I64], channel: int) -> I64:
    """Mean of a channel, corrected by the residuals (1/16 level) of those before it."""
    mean = p.mean[channel]
    if channel == RED:
        return mean + ((p.coefs[0] * residuals[GREEN]) // COEF_UNIT)
    if channel == BLUE:
        green, red = p.coefs[1] * residuals[GREEN], p.coefs[2] * residuals[RED]
        return mean + (green + red) // COEF_UNIT
    return mean


def _grey(p: Distribution) -> tuple[I64, I64]:
    """Mean and scale of a grey pixel: x_1 holds three views of one value, 1/√3 of the spread."""
    return p.mean.sum(axis=0) // 3, p.scale[GREEN] - round(tables.OCTAVE * 0.79)


def send_strip(x_0: I64, p: Distribution, grey: bool = False) -> bytes:
    """Code levels x_0 int64 [3, h, w] in 0…255 (three equal planes if ``grey``)."""
    coder = Encoder()
    residuals: dict[int, I64] = {}
    for channel in (GREEN,) if grey else (GREEN, RED, BLUE):
        mean, scale = _channel_means(p, residuals, channel), p.scale[channel]
        if grey:
            mean, scale = _grey(p)
        keys, floor = _keys(mean, scale)
        symbols = x_0[channel].reshape(-1) - floor + _SPAN
        for key, members in _groups(keys):
            coder.encode(symbols[members], _model(key)[0])
        residuals[channel] = MEAN_UNIT * x_0[channel] - mean
    return coder.getvalue()


def receive_strip(
    code: bytes, p: Distribution, grey: bool = False, complete: bool = True
) -> tuple[I64, NDArray[np.bool_]]:
    """Reverse of :func:`send_strip`: (levels int64 [3, h, w], which of them are certain).

    With ``complete`` False the code was cut: pixels are certain as long as the bits of those
    decoded so far were surely there, and the rest holds the model's mean.
    """
    coder = Decoder(code)
    budget = np.inf if complete else 8.0 * len(code) - 40.0
    shape = p.mean.shape[1:]
    levels = np.clip((p.mean + MEAN_UNIT // 2) // MEAN_UNIT, 0, _SPAN)
    certain = np.zeros(p.mean.shape, dtype=bool)
    residuals: dict[int, I64] = {}
    for channel in (GREEN,) if grey else (GREEN, RED, BLUE):
        mean, scale = _channel_means(p, residuals, channel), p.scale[channel]
        if grey:
            mean, scale = _grey(p)
        keys, floor = _keys(mean, scale)
        symbols = np.zeros(len(keys), dtype=np.int64)
        sure = np.zeros(len(keys), dtype=bool)
        for key, members in _groups(keys):
            model, costs = _model(key)
            if complete:
                symbols[members] = coder.decode(len(members), model)
                continue
            for place in members:
                if budget <= 0.0:
                    break
                symbols[place] = coder.decode(1, model)[0]
                budget -= float(costs[symbols[place]])
                sure[place] = budget > 0.0
        sure |= complete
        values = symbols - _SPAN + floor
        if np.any((values < 0) | (values > _SPAN), where=sure):
            raise FormatError("the final layer holds an impossible pixel value")
        channels = (RED, GREEN, BLUE) if grey else (channel,)
        for c in channels:
            certain[c] = sure.reshape(shape)
            levels[c] = np.where(certain[c], values.reshape(shape), levels[c])
        if not sure.all():
            break
        residuals[channel] = MEAN_UNIT * levels[channel] - mean
    return levels, certain


def _groups(keys: I64) -> list[tuple[int, I64]]:
    """(key, places in reading order) by ascending key."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    cuts = np.flatnonzero(np.diff(ordered)) + 1
    starts = np.concatenate([[0], cuts])
    return [
        (int(ordered[start]), part)
        for start, part in zip(starts, np.split(order, cuts), strict=True)
    ]


def ideal_bits(x_0: I64, mean: F64, scale: F64, coefs: F64) -> float:
    """Code length in bits of x_0 under eq. 13 with unquantised float parameters.

    Shapes as in :class:`Distribution`; mean in levels, scale as a standard deviation in
    levels, coefs as fractions.  Uses the same Φ table, no coder.
    """
    green = x_0[GREEN] - mean[GREEN]
    mean_r = mean[RED] + coefs[0] * green
    mean_b = mean[BLUE] + coefs[1] * green + coefs[2] * (x_0[RED] - mean_r)
    means = np.stack([mean_r, mean[GREEN], mean_b])
    upper = np.where(x_0 == _SPAN, np.inf, (x_0 + 0.5 - means) / scale)
    lower = np.where(x_0 == 0, -np.inf, (x_0 - 0.5 - means) / scale)
    # By symmetry evaluate in the lower tail, where Φ keeps its relative precision.
    flip = lower > 0
    upper, lower = np.where(flip, -lower, upper), np.where(flip, -upper, lower)
    mass = tables.phi(upper) - tables.phi(lower)
    return float(-np.sum(np.log2(np.maximum(mass, 2.0**-PRECISION))))
