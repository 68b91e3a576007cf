"""Pictures of any size as colour × DCT coefficients, in the order the channel codes them.

Blocks are 8×8; what is left at the right and bottom edges is covered by blocks of the size
that is left, each with a DCT of its own size, so that every coefficient belongs to real pixels
and there is no padding to pay for.  A short block's band k of n takes the variance predicted
for band ⌊8k/n⌋ of the whole block.

The transform is exact: entries of W are integers in units of 2**-14 and all sums stay below
2**53, so float64 matrix products give the same integers in any order of summation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffcodec.transform import BLOCK, COLOUR, dct_matrix

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

MATRIX_UNIT = 14
SEGMENT_BLOCKS = 8
"""Segments are at most 8×8 blocks: 64×64 pixels, 12288 coefficients."""


@lru_cache(maxsize=64)
def _block_matrix(height: int, width: int) -> F64:
    """W for a block of this size, [3·h·w, 3·h·w], entries multiples of 2**-14."""
    w = np.kron(COLOUR, np.kron(dct_matrix(height), dct_matrix(width)))
    return np.rint(w * (1 << MATRIX_UNIT)) / (1 << MATRIX_UNIT)


@dataclass(frozen=True)
class _Area:
    """Blocks of one size: rows [top, bottom), columns [left, right), block height and width."""

    top: int
    bottom: int
    left: int
    right: int
    height: int
    width: int

    def gather(self, picture: NDArray[Any]) -> NDArray[Any]:
        """[3, H, W] -> [blocks, 3·h·w], pixels in (colour, y, x) order."""
        part = picture[:, self.top : self.bottom, self.left : self.right]
        down, across = part.shape[1] // self.height, part.shape[2] // self.width
        tiles = part.reshape(3, down, self.height, across, self.width)
        return tiles.transpose(1, 3, 0, 2, 4).reshape(down * across, -1)

    def scatter(self, blocks: F64, picture: F64) -> None:
        """The inverse of :meth:`gather`, into ``picture``."""
        down, across = (
            (self.bottom - self.top) // self.height,
            (self.right - self.left) // self.width,
        )
        tiles = blocks.reshape(down, across, 3, self.height, self.width).transpose(2, 0, 3, 1, 4)
        picture[:, self.top : self.bottom, self.left : self.right] = tiles.reshape(
            3, self.bottom - self.top, self.right - self.left
        )

    def bands(self) -> I64:
        """For each coefficient of a block, the channel (0…191) of the predicted variances."""
        v = np.arange(self.height) * BLOCK // self.height
        u = np.arange(self.width) * BLOCK // self.width
        band = v[:, None] * BLOCK + u[None, :]
        return (np.arange(3)[:, None, None] * BLOCK * BLOCK + band[None]).reshape(-1)


class Layout:
    """Coefficient order of a height × width picture: blocks area by area, then segments.

    ``size`` = 3·height·width coefficients.  ``segments`` lists, for each segment, the indices
    of its coefficients in that order.
    """

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.size = 3 * height * width
        rows = _spans(height)
        columns = _spans(width)
        self._areas = [
            _Area(top, bottom, left, right, h, w)
            for top, bottom, h in rows
            for left, right, w in columns
        ]

    def forward(self, picture: F64) -> F64:
        """W x: [3, H, W] -> [size]."""
        return np.concatenate(
            [
                (a.gather(picture) @ _block_matrix(a.height, a.width).T).reshape(-1)
                for a in self._areas
            ]
        )

    def inverse(self, coefficients: F64) -> F64:
        """Wᵀ y: [size] -> [3, H, W].  Exact for integers below 2**30."""
        picture = np.empty((3, self.height, self.width))
        start = 0
        for area in self._areas:
            matrix = _block_matrix(area.height, area.width)
            count = 3 * (area.bottom - area.top) * (area.right - area.left)
            blocks = coefficients[start : start + count].reshape(-1, len(matrix))
            area.scatter(blocks @ matrix, picture)
            start += count
        return picture

    @cached_property
    def _variance_index(self) -> I64:
        """Flat index into [192, ⌈H/8⌉, ⌈W/8⌉] for every coefficient."""
        across = -(-self.width // BLOCK)
        down = -(-self.height // BLOCK)
        parts = []
        for block_row, block_column, area in self._blocks:
            place = area.bands() * (down * across) + block_row * across + block_column
            parts.append(place)
        return np.concatenate(parts)

    @cached_property
    def _blocks(self) -> list[tuple[int, int, _Area]]:
        """(block row, block column, area) of every block, in coefficient order."""
        return [
            (y // BLOCK, x // BLOCK, area)
            for area in self._areas
            for y in range(area.top, area.bottom, area.height)
            for x in range(area.left, area.right, area.width)
        ]

    def spread(self, per_band: NDArray[Any]) -> NDArray[Any]:
        """Predictions [192, ⌈H/8⌉, ⌈W/8⌉] as one value per coefficient, [size]."""
        return per_band.reshape(-1)[self._variance_index]

    @cached_property
    def chroma(self) -> NDArray[np.bool_]:
        """True for coefficients of colours 1 and 2, which are zero in a grey picture."""
        return np.concatenate(
            [np.arange(3 * a.height * a.width) >= a.height * a.width for _, _, a in self._blocks]
        )

    @cached_property
    def segments(self) -> list[I64]:
        """Indices of each segment's coefficients; segments in reading order."""
        down = -(-self.height // BLOCK)
        across = -(-self.width // BLOCK)
        row_of = _balanced(down)
        column_of = _balanced(across)
        count = int(column_of[-1]) + 1
        lengths = [3 * a.height * a.width for _, _, a in self._blocks]
        owner = np.repeat([row_of[r] * count + column_of[c] for r, c, _ in self._blocks], lengths)
        order = np.argsort(owner, kind="stable")
        cuts = np.flatnonzero(np.diff(owner[order])) + 1
        return [part.astype(np.int64) for part in np.split(order, cuts)]


def _spans(length: int) -> list[tuple[int, int, int]]:
    """(start, end, block size) of the whole blocks and of what is left along one side."""
    whole = length // BLOCK * BLOCK
    spans = [(0, whole, BLOCK)] if whole else []
    return spans + ([(whole, length, length - whole)] if whole < length else [])


def _balanced(blocks: int) -> I64:
    """Segment number of each block along one side: ⌈n/8⌉ segments of nearly equal length."""
    count = -(-blocks // SEGMENT_BLOCKS)
    return np.arange(blocks) * count // blocks


def bands(height: int) -> list[slice]:
    """The rows of pixels of each row of segments; a band has the segments it has on its own."""
    numbers = _balanced(-(-height // BLOCK))
    edges = [0, *(BLOCK * (np.flatnonzero(np.diff(numbers)) + 1)).tolist(), height]
    return [slice(top, bottom) for top, bottom in pairwise(edges)]


@lru_cache(maxsize=8)
def layout(height: int, width: int) -> Layout:
    """The (cached) layout of a picture of this size."""
    return Layout(height, width)
