"""The orthonormal colour × 8×8-DCT transform W in which variances are predicted and coded.

White noise is invariant under W, images and the model's errors are not: their energy gathers
in few coefficients.  A picture [3, H, W] becomes [192, H/8, W/8]; channel c·64 + 8·v + u
holds colour c (mean, red − blue, green against both) and DCT band (v, u).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK = 8
BANDS = 3 * BLOCK * BLOCK

COLOUR = np.array(
    [
        np.array([1.0, 1.0, 1.0]) / np.sqrt(3.0),
        np.array([1.0, 0.0, -1.0]) / np.sqrt(2.0),
        np.array([1.0, -2.0, 1.0]) / np.sqrt(6.0),
    ]
)
"""Orthonormal colour rows, applied to (R, G, B)."""


def dct_matrix(n: int = BLOCK) -> NDArray[np.float64]:
    """Orthonormal DCT-II, [n, n]; row k is the k-th frequency."""
    k = np.arange(n)[:, None]
    x = np.arange(n)[None, :]
    rows = np.cos(np.pi * (2 * x + 1) * k / (2 * n)) * np.sqrt(2.0 / n)
    rows[0] /= np.sqrt(2.0)
    return rows


def matrix() -> NDArray[np.float64]:
    """W as one orthonormal matrix [192, 192] on a block's pixels in (colour, y, x) order."""
    dct = dct_matrix()
    return np.kron(COLOUR, np.kron(dct, dct))
