"""The orthonormal colour × 8×8-DCT transform W in which variances are predicted and coded.

White noise is invariant under W, images and the model's errors are not: their energy gathers
in few coefficients.  A picture [3, H, W] becomes [192, H/8, W/8]; channel c·64 + 8·v + u
holds colour c (mean, red − blue, green against both) and DCT band (v, u).
"""

from __future__ import annotations

from decimal import Decimal, localcontext

import numpy as np
from numpy.typing import NDArray

BLOCK = 8
_PI = Decimal("3.14159265358979323846264338327950288419716939937510")
BANDS = 3 * BLOCK * BLOCK

COLOUR = np.array(
    [
        np.array([1.0, 1.0, 1.0]) / np.sqrt(3.0),
        np.array([1.0, 0.0, -1.0]) / np.sqrt(2.0),
        np.array([1.0, -2.0, 1.0]) / np.sqrt(6.0),
    ]
)
"""Orthonormal colour rows, applied to (R, G, B)."""


def _cosine(numerator: int, denominator: int) -> float:
    """cos(π · numerator / denominator), correctly rounded on every machine (Taylor series)."""
    with localcontext(prec=40):
        x = _PI * (numerator % (2 * denominator)) / denominator
        term = total = Decimal(1)
        for n in range(2, 80, 2):
            term = -term * x * x / (n * (n - 1))
            total += term
        return float(total)


def dct_matrix(n: int = BLOCK) -> NDArray[np.float64]:
    """Orthonormal DCT-II, [n, n]; row k is the k-th frequency."""
    rows = np.array([[_cosine((2 * x + 1) * k, 2 * n) for x in range(n)] for k in range(n)])
    rows *= np.sqrt(2.0 / n)
    rows[0] /= np.sqrt(2.0)
    return rows


def matrix() -> NDArray[np.float64]:
    """W as one orthonormal matrix [192, 192] on a block's pixels in (colour, y, x) order."""
    dct = dct_matrix()
    return np.kron(COLOUR, np.kron(dct, dct))
