"""How far a picture is from another."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]


def rmse(a: U8, b: U8) -> float:
    """Root mean squared difference in levels."""
    return float(np.sqrt(np.mean(np.square(a.astype(np.float64) - b.astype(np.float64)))))


def psnr(a: U8, b: U8) -> float:
    """Peak signal-to-noise ratio in dB over all values; infinite for equal pictures."""
    error = rmse(a, b)
    return math.inf if error == 0.0 else 20.0 * math.log10(255.0 / error)
