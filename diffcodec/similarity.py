"""SSIM and MS-SSIM (Wang et al. 2004, 2003), by torchmetrics, which is an optional dependency."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

U8 = NDArray[np.uint8]

SSIM_SIDE = 11
"""Side of the Gaussian window: the smallest picture SSIM is defined for."""
MS_SSIM_SIDE = 176
"""The smallest picture whose fifth scale, 1/16 of its side, still holds the window."""


def available() -> bool:
    """Whether torchmetrics is installed."""
    return find_spec("torchmetrics") is not None


def similarity(a: U8, b: U8) -> tuple[float, float]:
    """(SSIM, MS-SSIM) of two pictures uint8 [H, W, 3] or [H, W], at most 1.

    NaN for what the picture is too small for, or if torchmetrics is missing.
    """
    side = min(a.shape[:2])
    if side < SSIM_SIDE or not available():
        return math.nan, math.nan
    from torchmetrics.functional.image import (
        multiscale_structural_similarity_index_measure,
        structural_similarity_index_measure,
    )

    first, second = (_tensor(p) for p in (a, b))
    ssim: Any = structural_similarity_index_measure(first, second, data_range=255.0)
    if side < MS_SSIM_SIDE:
        return float(ssim), math.nan
    several: Any = multiscale_structural_similarity_index_measure(first, second, data_range=255.0)
    return float(ssim), float(several)


def _tensor(pixels: U8) -> torch.Tensor:
    """float64 [1, C, H, W]: in float32 the variances of smooth areas cancel badly."""
    planes = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return torch.from_numpy(planes.astype(np.float64)).permute(2, 0, 1)[None]
