"""What an adaptation takes from ε̂, and what of the network's features it learns from.

Arrays of features are int16 [features, H/2, W/2]: the channels, at half the picture's size, that
ε̂ is made from; a cell is a place there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from diffcodec.convolution import I16, I32, over_rows
from diffcodec.parallel import thread_map
from diffcodec.pointwise import F32

F64 = NDArray[np.float64]

EPS_UNIT = 14
EPS_MAX = 1 << 30
FEATURE_UNIT = 8
"""Features are told in 2**8 of the residual's units, so that they fit 16 bits."""
CONSTANT = 128
"""Value of a feature more, the same everywhere."""
WEIGHT_UNIT = 24
CELL = 2
"""Side of the square of pixels that a cell stands for."""
OUTPUTS = 3 * CELL * CELL
CHUNK = 1 << 14
"""Cells, in whole rows of them, that a correction is computed of at a time."""
BLOCK = 32
"""Cells whose channels are turned into rows at a time, so that they stay in the cache."""

OWN = ((0, 0),)
"""The cell itself, by the rows and columns from it."""


def features_of(residual: F32) -> I16:
    """The residual at half the picture's size, float32 [H/2, W/2, features], as features."""
    height, width, count = residual.shape
    found = np.empty((count, height, width), np.int16)
    unit = np.float32(2.0**-FEATURE_UNIT)
    over_rows(height, residual.size, lambda a, b: _round(residual, unit, found, a, b))
    return found


@dataclass(frozen=True)
class Correction:
    """What an adaptation subtracts from ε̂, and what it asks for.

    weights: float64 [told + 1, OUTPUTS] of integers in 2**-24 for the ``told`` features, and
    CONSTANT; pitch: the features wanted are those of every so many rows and columns of pixels
    (2, 4, 8, 16); cells: rows and columns from a cell to those whose features are told, where
    beyond an edge the cell at the edge stands in; sizes: whether the absolute values of its own
    follow.
    """

    weights: F64
    pitch: int
    cells: tuple[tuple[int, int], ...] = OWN
    sizes: bool = False

    @property
    def _places(self) -> NDArray[np.int64]:
        """Of all that is told, [len(cells), and one more with ``sizes``, 2]."""
        return np.array([*self.cells, *OWN * self.sizes], np.int64)

    def apply(self, eps: I32, features: I16) -> None:
        """Take from eps [3, H, W], in 2**-14, what the weights make of the features.

        Exact: all sums are of integers below 2**53.
        """
        if not self.weights.any():
            return
        count, (height, width) = len(features), features.shape[1:]
        parts = self.weights[:-1].reshape(-1, count, OUTPUTS)
        of_values, of_sizes = (
            part.transpose(0, 2, 1).reshape(-1, count)
            for part in np.split(parts, [len(self.cells)])
        )
        places, constant = self._places, self.weights[-1] * CONSTANT
        reach = int(np.abs(places[:, 0]).max())
        band = max(1, CHUNK // width)

        def work(number: int) -> None:
            first, stop = number * band, min((number + 1) * band, height)
            top = max(first - reach, 0)
            rows = features[:, top : stop + reach]
            own = rows.reshape(count, -1).astype(np.float64)
            made = [of_values @ own]
            if self.sizes:
                made.append(of_sizes @ np.abs(own, out=own))
            shares = np.concatenate(made).reshape(-1, OUTPUTS, *rows.shape[1:])
            _subtract(eps, shares, places, constant, first, stop, top)

        thread_map(work, -(-height // band))

    def wanted(self, features: I16) -> I16:
        """[told, H/pitch, W/pitch] of the features."""
        every, (count, height, width) = self.pitch // CELL, features.shape
        places = self._places
        told = count * len(places)
        found = np.empty((told, -(-height // every), -(-width // every)), np.int16)
        plain = count * len(self.cells)
        over_rows(
            told, found.size, lambda a, b: _gather(features, places, plain, every, found, a, b)
        )
        return found


@njit(nogil=True, cache=True)
def _round(residual, unit, found, first, stop):  # type: ignore[no-untyped-def]
    width = residual.shape[1]
    for i in range(first, stop):
        for begin in range(0, width, BLOCK):
            end = min(begin + BLOCK, width)
            for c in range(residual.shape[2]):
                source, to = residual[i, begin:end, c], found[c, i, begin:end]
                for j in range(len(to)):
                    to[j] = np.int16(np.rint(source[j] * unit))


@njit(nogil=True, cache=True)
def _within(place, size):  # type: ignore[no-untyped-def]
    return min(max(place, 0), size - 1)


@njit(nogil=True, cache=True)
def _moved(source, right, to):  # type: ignore[no-untyped-def]
    """to[j] = source[j + right], or the number at the edge that lies nearest."""
    width = len(source)
    low, high = min(max(-right, 0), width), max(min(width - right, width), 0)
    for j in range(low):
        to[j] = source[0]
    inside = source[low + right : high + right]
    for j in range(len(inside)):
        to[low + j] = inside[j]
    for j in range(high, width):
        to[j] = source[width - 1]


@njit(nogil=True, cache=True)
def _gather(features, places, plain, every, found, first, stop):  # type: ignore[no-untyped-def]
    """Rows ``first`` … ``stop`` − 1 of what is told, of which ``plain`` are no absolute values."""
    count, height, width = features.shape
    row = np.empty(width, np.int16)
    for number in range(first, stop):
        down, right = places[number // count]
        for i in range(found.shape[1]):
            source = features[number % count, _within(i * every + down, height)]
            to = found[number, i]
            if every == 1:
                _moved(source, right, to)
            else:
                _moved(source, right, row)
                for j in range(len(to)):
                    to[j] = row[j * every]
            if number >= plain:
                for j in range(len(to)):
                    to[j] = abs(to[j])


@njit(nogil=True, cache=True)
def _subtract(eps, shares, places, constant, first, stop, top):  # type: ignore[no-untyped-def]
    """For rows ``first`` … ``stop`` − 1 of cells; shares: [places, OUTPUTS, rows, W/2], of the
    rows from ``top`` on."""
    height, width = eps.shape[1] // CELL, shares.shape[3]
    unit = float(1 << (WEIGHT_UNIT - EPS_UNIT))
    total, row = np.empty(width), np.empty(width)
    for i in range(first, stop):
        for number in range(OUTPUTS):
            total[:] = constant[number]
            for k in range(len(places)):
                down, right = places[k]
                _moved(shares[k, number, _within(i + down, height) - top], right, row)
                for j in range(width):
                    total[j] += row[j]
            plane, place = number // (CELL * CELL), number % (CELL * CELL)
            to = eps[plane, i * CELL + place // CELL]
            for j in range(width):
                at = j * CELL + place % CELL
                value = to[at] - np.floor((total[j] + unit / 2.0) / unit)
                to[at] = np.int32(min(max(value, -EPS_MAX), EPS_MAX))
