"""Colours on a lattice: what a conversion to R, G, B leaves of whole numbers of another space.

Whole numbers of luminance and two differences of colours, as a JPEG file or a Photo CD has them,
become a part of all colours only: one in four, one in nine.  Which ones depends on the arithmetic
of the conversion, but its matrix spans a lattice, and all of them lie at the same few places in
its cells.  So the sender says which matrix it was, and both sides learn from the pixels that were
coded at which places of a cell colours are, and which ones there are.

In the final layer a colour then weighs as much as it was found to be more frequent than others:
with weights w, and the model's masses q of a level given those before it,

    P(G) ∝ q(G) Σ_R q(R) Σ_B q(B) w(R, G, B)
    P(R) ∝ q(R) Σ_B q(B) w(R, G, B)
    P(B) ∝ q(B) w(R, G, B)

All of it is whole numbers, so that both sides find the same (docs/format.md, §11.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

from diffcodec import tables
from diffcodec.lattices import COORDINATE_UNIT, LATTICES
from diffcodec.lessons import COEF_UNIT, MEAN_UNIT, SCALE_MIN, WEIGHT_UNIT
from diffcodec.parallel import thread_map
from diffcodec.plans import STRIP_ROWS

I64 = NDArray[np.int64]
I32 = NDArray[np.int32]
U16 = NDArray[np.uint16]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]

PLACE_BITS, COARSE_BITS = 5, 3
"""A cell has 32 places in each of its three directions, which eight larger ones hold."""
PLACES, COARSE = 1 << 3 * PLACE_BITS, 1 << 3 * COARSE_BITS
EVEN, HEAVIEST = 256, 64 * 256
"""The weight of a colour that is as frequent as others, and the largest one; the least is 1."""
SEEN = 12 * EVEN
"""The least of a colour that has occurred."""
SCALE_LIMIT = 2 * tables.OCTAVE
"""No channel is expected to be wider than four levels here."""
MASS_UNIT, COUNT_UNIT = 20, 24
ROWS, PARTS = 4096, 8
"""Distributions that are made at a time, and in how many parts, which any thread may take."""
LEVELS = 256
FEWEST_COLOURS, MOST_COLOURS = 1 << 10, 1 << 17
"""Fewer tell too little of a lattice, more are not looked at."""
CLEAR = 0.5
"""How clear a lattice must be (see _clearness): pictures that were converted reach 0.7 and more,
others 0.05."""


@cache
def _matrix(number: int) -> I64:
    return np.array(LATTICES[number].coordinates, dtype=np.int64)


_SCALES = [tables.scale_levels(i) for i in range(SCALE_MIN, SCALE_LIMIT + 1)]
_REACH: I64 = np.array([int(4 * scale) + 2 for scale in _SCALES])
"""Levels on each side of ⌊mean⌋ that are considered, by scale; others are as good as impossible."""


@cache
def _masses() -> I32:
    """Φ in 2**-20 at the lower edges of levels ⌊mean⌋ − reach, …, by scale and the mean's phase.

    [scales, 16, 2 · largest reach + 2]
    """
    found = np.empty((len(_SCALES), MEAN_UNIT, 2 * int(_REACH.max()) + 2), dtype=np.int32)
    for own, scale, reach in zip(found, _SCALES, _REACH, strict=True):
        edges = np.arange(found.shape[2]) - int(reach) - 0.5
        for phase in range(MEAN_UNIT):
            places = (edges - phase / MEAN_UNIT) / scale
            values = tables.phi(places.astype(np.float64))
            own[phase] = np.rint(values * (1 << MASS_UNIT))
    return found


@njit(nogil=True, cache=True)
def _place(matrix, r, g, b):  # type: ignore[no-untyped-def]
    """Where in a cell a colour lies, 0 … PLACES − 1."""
    place = 0
    for k in range(3):
        at = matrix[k, 0] * r + matrix[k, 1] * g + matrix[k, 2] * b
        at = (at & ((1 << COORDINATE_UNIT) - 1)) >> (COORDINATE_UNIT - PLACE_BITS)
        place = place << PLACE_BITS | at
    return place


@njit(nogil=True, cache=True)
def _at_edge(level):  # type: ignore[no-untyped-def]
    """Whether the colours of many places come together there."""
    return level == 0 or level == LEVELS - 1


@njit(nogil=True, cache=True)
def _coarse(place):  # type: ignore[no-untyped-def]
    """The larger place that holds it."""
    found = 0
    for k in range(2, -1, -1):
        at = place >> k * PLACE_BITS & ((1 << PLACE_BITS) - 1)
        found = found << COARSE_BITS | at >> (PLACE_BITS - COARSE_BITS)
    return found


@njit(nogil=True, cache=True)
def _of_seen(weight):  # type: ignore[no-untyped-def]
    """Weight of a colour that has occurred, where others at its place have this one."""
    return max(weight, np.int32(SEEN))


@njit(nogil=True, cache=True)
def _count(matrix, counts, seen, table, red, green, blue):  # type: ignore[no-untyped-def]
    for i in range(len(red)):
        r, g, b = red[i], green[i], blue[i]
        if not seen[r, g, b]:
            seen[r, g, b] = 1
            table[r, g, b] = _of_seen(np.int32(table[r, g, b]))
        if not (_at_edge(r) or _at_edge(g) or _at_edge(b)):
            counts[_place(matrix, r, g, b)] += 1


@njit(nogil=True, cache=True)
def _weigh(counts, weights):  # type: ignore[no-untyped-def]
    """Weights of the colours at each place that have not occurred."""
    coarse = np.zeros(COARSE, np.int64)
    for place in range(PLACES):
        coarse[_coarse(place)] += counts[place]
    total = coarse.sum()
    for place in range(PLACES):
        around = EVEN * COARSE * (coarse[_coarse(place)] + 1) // (total + COARSE)
        own = PLACES * (EVEN * counts[place] + around) // (total + PLACES)
        weights[place] = min(max(own, 1), HEAVIEST)


@njit(nogil=True, cache=True)
def _tabulate(matrix, weights, seen, table, first, stop):  # type: ignore[no-untyped-def]
    """Weights of all colours with R = first … stop − 1, of weights int32 [PLACES].

    In loops over B, without branches and in int32, that compilers make vectors of.
    """
    shift, mask = np.int32(COORDINATE_UNIT - PLACE_BITS), np.int32((1 << PLACE_BITS) - 1)
    places = np.zeros(LEVELS, np.int32)
    for r in range(first, stop):
        for g in range(LEVELS):
            places[:] = 0
            for k in range(3):
                begin = np.int32(matrix[k, 0] * r + matrix[k, 1] * g)
                for b in range(LEVELS):
                    at = begin + matrix[k, 2] * np.int32(b)
                    places[b] = places[b] << np.int32(PLACE_BITS) | at >> shift & mask
            own, known = table[r, g], seen[r, g]
            edge = _at_edge(r) or _at_edge(g)
            for b in range(LEVELS):
                weight = np.int32(EVEN) if edge else weights[places[b]]
                own[b] = max(weight, np.int32(SEEN) * np.int32(known[b]))
            for b in (0, LEVELS - 1):
                own[b] = max(np.int32(EVEN), np.int32(SEEN) * np.int32(known[b]))


class Colours:
    """What is known of a picture's colours: how many pixels lay at each place of the cells of
    lattice ``number``, which colours have occurred, and what each colour weighs.

    weights: uint16 [256, 256, 256], R, G, B, in 1/256.
    """

    def __init__(self, number: int) -> None:
        self._matrix = _matrix(number)
        self._counts: I64 = np.zeros(PLACES, dtype=np.int64)
        self._seen: U8 = np.zeros((LEVELS, LEVELS, LEVELS), dtype=np.uint8)
        self.weights: U16 = np.full((LEVELS, LEVELS, LEVELS), EVEN, dtype=np.uint16)
        self._heeded = 0

    def look(self, red: I64, green: I64, blue: I64) -> None:
        """At more pixels, [n] each.

        What they say of places is heeded once there are a quarter more of them.
        """
        _count(self._matrix, self._counts, self._seen, self.weights, red, green, blue)
        total = int(self._counts.sum())
        if 4 * total < 5 * self._heeded:
            return
        self._heeded = total
        places = np.empty(PLACES, dtype=np.int32)
        _weigh(self._counts, places)
        matrix = self._matrix.astype(np.int32)

        def work(k: int) -> None:
            ends = LEVELS * k // PARTS, LEVELS * (k + 1) // PARTS
            _tabulate(matrix, places, self._seen, self.weights, *ends)

        thread_map(work, PARTS)


def lattice_of(levels: U8) -> int:
    """Number of the lattice on which the colours of levels uint8 [3, H, W] seem to lie, or 0.

    On it the colours' coordinates are whole numbers and a constant, but for the rounding.
    """
    there = np.zeros((LEVELS, LEVELS, LEVELS), dtype=bool)
    for top in range(0, levels.shape[1], STRIP_ROWS):
        there[tuple(levels[:, top : top + STRIP_ROWS])] = True
    inside = there[1:-1, 1:-1, 1:-1]
    numbers = np.flatnonzero(inside)
    numbers = numbers[:: 1 + len(numbers) // MOST_COLOURS]
    colours = 1 + np.stack(np.unravel_index(numbers, inside.shape))
    if colours.shape[1] < FEWEST_COLOURS:
        return 0
    clearness = {number: _clearness(_matrix(number), colours) for number in LATTICES}
    best = max(LATTICES, key=lambda number: clearness[number])
    return best if clearness[best] > CLEAR else 0


def _clearness(matrix: I64, colours: I64) -> float:
    """Of the lattice's least clear coordinate, 1 where only rounding blurs it."""
    coordinates = matrix / (1 << COORDINATE_UNIT)
    sums = np.abs(np.exp(2j * np.pi * (coordinates @ colours)).mean(axis=1))
    return float(np.min(sums / np.prod(np.sinc(coordinates), axis=1)))


@njit(nogil=True, cache=True)
def _corrected(mean, told):  # type: ignore[no-untyped-def]
    return mean + (told + WEIGHT_UNIT // 2) // WEIGHT_UNIT


@njit(nogil=True, cache=True)
def _shared(sums):  # type: ignore[no-untyped-def]
    return (sums + COEF_UNIT // 2) // COEF_UNIT


@njit(nogil=True, cache=True)
def _regressor(residual, limit):  # type: ignore[no-untyped-def]
    return min(max(residual, -limit), limit)


@njit(nogil=True, cache=True)
def _red_mean(pixel, green, own, limit):  # type: ignore[no-untyped-def]
    """Of R in 1/16 level where G has this residual."""
    mean = pixel[2] + _shared(pixel[8] * green)
    return _corrected(mean, pixel[4] + own[0, 0] * _regressor(green, limit))


@njit(nogil=True, cache=True)
def _blue_mean(pixel, green, red, own, limit):  # type: ignore[no-untyped-def]
    mean = pixel[5] + _shared(pixel[9] * green + pixel[10] * red)
    told = own[2, 0] * _regressor(green, limit) + own[2, 1] * _regressor(red, limit)
    return _corrected(mean, pixel[7] + told)


@njit(nogil=True, cache=True)
def _levels(mean, scale, phi):  # type: ignore[no-untyped-def]
    """What is considered of a channel: Φ at the edges of levels, the number among them that level
    0 would have, the first level and one past the last."""
    mean, reach = min(max(mean, 0), MEAN_UNIT * LEVELS - 1), _REACH[scale]
    floor = mean // MEAN_UNIT
    edges = phi[scale, mean % MEAN_UNIT]
    return edges, reach - floor, max(floor - reach, 0), min(floor + reach + 1, LEVELS)


@njit(nogil=True, cache=True)
def _mass(edges, zero, level):  # type: ignore[no-untyped-def]
    """Of a level's bin; those of 0 and 255 are open."""
    low = np.int64(0) if level == 0 else np.int64(edges[zero + level])
    open_above = level == LEVELS - 1
    return (np.int64(1 << MASS_UNIT) if open_above else np.int64(edges[zero + level + 1])) - low


@njit(nogil=True, cache=True)
def _all_blue(pixel, mean, weights, phi):  # type: ignore[no-untyped-def]
    """Σ_B q(B) w(B), below 2**34; weights: [256], of the colours with this R and G."""
    edges, zero, start, stop = _levels(mean, pixel[6], phi)
    total = np.int64(0)
    for b in range(start, stop):
        mass = np.int64(edges[zero + b + 1]) - np.int64(edges[zero + b])
        total += mass * np.int64(weights[b])
    if start == 0:
        total += np.int64(edges[zero]) * np.int64(weights[0])
    if stop == LEVELS:
        rest = np.int64(1 << MASS_UNIT) - np.int64(edges[zero + LEVELS])
        total += rest * np.int64(weights[LEVELS - 1])
    return total


@njit(nogil=True, cache=True)
def _all_red(pixel, mean, green, g, own, limit, weights, phi):  # type: ignore[no-untyped-def]
    """Σ_R q(R) Σ_B q(B) w(R, G, B), below 2**54."""
    edges, zero, start, stop = _levels(mean, pixel[3], phi)
    total = np.int64(0)
    for r in range(start, stop):
        mass = _mass(edges, zero, r)
        if mass:
            blue = _blue_mean(pixel, green, MEAN_UNIT * r - mean, own, limit)
            total += mass * _all_blue(pixel, blue, weights[r, g], phi)
    return total


@njit(nogil=True, cache=True)
def _into_counts(found, chances):  # type: ignore[no-untyped-def]
    """Probabilities in 2**-24, none of them 0, in proportion to ``chances`` below 2**62."""
    total = chances.sum()
    if total == 0:
        chances[:] = 1
        total = np.int64(LEVELS)
    shift = 0
    while total >> shift >= 1 << 38:
        shift += 1
    total, best = np.int64(0), 0
    for level in range(LEVELS):
        chances[level] >>= shift
        total += chances[level]
        best = level if chances[level] > chances[best] else best
    spare, left = np.int64((1 << COUNT_UNIT) - LEVELS), np.int64(1 << COUNT_UNIT)
    for level in range(LEVELS):
        count = np.int64(1)
        if chances[level]:  # few are, and quotients take long
            count += chances[level] * spare // total
        found[level] = count
        left -= count
    found[best] += left


@njit(nogil=True, cache=True)
def _green(pixels, own, limit, weights, phi, found):  # type: ignore[no-untyped-def]
    for i in range(len(pixels)):
        pixel = pixels[i]
        chances = np.zeros(LEVELS, np.int64)
        edges, zero, start, stop = _levels(pixel[0], pixel[1], phi)
        for g in range(start, stop):
            mass = _mass(edges, zero, g)
            if mass:
                green = MEAN_UNIT * g - pixel[0]
                mean = _red_mean(pixel, green, own, limit)
                rest = _all_red(pixel, mean, green, g, own, limit, weights, phi)
                chances[g] = mass * (rest >> 16)
        _into_counts(found[i], chances)


@njit(nogil=True, cache=True)
def _red(pixels, levels, own, limit, weights, phi, found):  # type: ignore[no-untyped-def]
    for i in range(len(pixels)):
        pixel, g = pixels[i], levels[0, i]
        chances = np.zeros(LEVELS, np.int64)
        green = MEAN_UNIT * g - pixel[0]
        mean = _red_mean(pixel, green, own, limit)
        edges, zero, start, stop = _levels(mean, pixel[3], phi)
        for r in range(start, stop):
            blue = _blue_mean(pixel, green, MEAN_UNIT * r - mean, own, limit)
            chances[r] = _mass(edges, zero, r) * _all_blue(pixel, blue, weights[r, g], phi)
        _into_counts(found[i], chances)


@njit(nogil=True, cache=True)
def _blue(pixels, levels, own, limit, weights, phi, found):  # type: ignore[no-untyped-def]
    for i in range(len(pixels)):
        pixel, g, r = pixels[i], levels[0, i], levels[1, i]
        chances = np.zeros(LEVELS, np.int64)
        green = MEAN_UNIT * g - pixel[0]
        red = MEAN_UNIT * r - _red_mean(pixel, green, own, limit)
        mean = _blue_mean(pixel, green, red, own, limit)
        edges, zero, start, stop = _levels(mean, pixel[6], phi)
        for b in range(start, stop):
            chances[b] = _mass(edges, zero, b) * np.int64(weights[r, g, b])
        _into_counts(found[i], chances)


@dataclass(frozen=True)
class Expected:
    """What the final layer expects of n pixels of a pass while none of them is known.

    pixels: int64 [n, 11]: G's mean and scale; R's mean before the regressors, scale, and what the
    regressors say but for G's residual, in 1/1024; the same of B; coefs G→R, G→B, R→B in 1/64;
    own: weights of G's and R's residuals at the pixel itself, int64 [3, 2]; limit: of regressors.
    """

    pixels: I64
    own: I64
    limit: int

    def probabilities(self, colours: Colours, known: I64, rows: slice) -> F64:
        """Of the levels of the next channel, [rows, 256] in whole 2**-24.

        known: levels [0, 1 or 2, n] of the channels before it: G, R.
        """
        pixels, known = self.pixels[rows], known[:, rows]
        found = np.empty((len(pixels), LEVELS), dtype=np.float64)
        ends = [len(pixels) * k // PARTS for k in range(PARTS + 1)]

        def work(k: int) -> None:
            own = slice(ends[k], ends[k + 1])
            given = self.own, self.limit, colours.weights, _masses(), found[own]
            if not len(known):
                _green(pixels[own], *given)
            elif len(known) == 1:
                _red(pixels[own], known[:, own], *given)
            else:
                _blue(pixels[own], known[:, own], *given)

        thread_map(work, PARTS)
        return found / (1 << COUNT_UNIT)
