"""Float32 convolutions whose weights oneDNN puts in its own order once, not at every call.

``torch.conv2d`` reorders the weights whenever it is called, which for the small feature maps of
small pictures takes a quarter of the network's time.  The sums are the same: every one of them is
an exact integer (see exact.py).
"""

from __future__ import annotations

from functools import cache, lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MAP_PIXELS = 32 * 32
"""Up to so many pixels of a feature map, reordering the weights is worth avoiding."""
ORDERS = 4
"""Sizes of feature maps that weights are kept for; in the order for another one they are slow."""

_OPS: Any = torch.ops.mkldnn


class PackedConv2d:
    """A convolution of stride 1 that keeps the size; weight: float32 [out, in, k, k]."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight
        self._packed = lru_cache(maxsize=ORDERS)(partial(_pack, weight))

    def __call__(self, a: Tensor) -> Tensor:
        """a: float32 [1, in, H, W] -> [1, out, H, W]."""
        if a[0, 0].numel() > MAP_PIXELS or not (torch.backends.mkldnn.enabled and is_usable()):
            return F.conv2d(a, self._weight, padding=self._weight.shape[-1] // 2)
        return _convolve(a, self._packed(*a.shape[2:]))


def _pack(weight: Tensor, height: int, width: int) -> Tensor:
    """``weight`` in the order that suits a feature map of this size; for others it will do."""
    padding = [weight.shape[-1] // 2] * 2
    reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
    size = [1, weight.shape[1], height, width]
    packed: Tensor = reorder(weight.to_mkldnn(), padding, [1, 1], [1, 1], 1, size)
    return packed


def _convolve(a: Tensor, packed: Tensor) -> Tensor:
    padding = [packed.shape[-1] // 2] * 2
    result: Tensor = _OPS._convolution_pointwise(
        a, packed, None, padding, [1, 1], [1, 1], 1, "none", [], ""
    )
    return result


@cache
def is_usable() -> bool:
    """Whether this torch has the operations, and they give the true sums."""
    weight = torch.arange(16.0 * 16 * 9).remainder(19.0).sub(9.0).reshape(16, 16, 3, 3)
    a = torch.arange(16.0 * 64).remainder(4093.0).sub(2046.0).reshape(1, 16, 8, 8)
    try:
        found = _convolve(a, _pack(weight, 8, 8))
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.equal(found.double(), F.conv2d(a.double(), weight.double(), padding=1))
