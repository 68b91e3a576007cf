"""The objectives of Ho et al. 2020, tables 1 and 2, for a network's output on one batch.

All are means over pictures and dimensions of what is drawn at random, one t for each picture:

* ``simple``: the squared error of what the network predicts, unweighted: eq. 14 if that is ε,
  the unweighted error of μ̃ if that is μ̃.
* ``bound``: T·L_{t−1} in bits/dim at uniform t (eqs. 5 and 8), whose mean is the variational
  bound but for L_T, which no parameter changes.  At t = 1 it is L_0, the discretised decoder of
  eq. 13.  With a learned variance this trains Σ as well.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from diffcodec.ddpm.process import Gaussian, ReverseProcess

Objective = Literal["coding", "simple", "bound"]
"""What is minimised; ``coding`` is the codec's own (diffcodec/objective.py)."""

LOG2E = 1.0 / math.log(2.0)
HALF_LEVEL = 1.0 / 255.0


def simple_loss(
    process: ReverseProcess, out: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor
) -> Tensor:
    """Squared error of the network's prediction ``out`` [B, 3 or 6, H, W], mean for each picture.

    x_0, x_t, noise: [B, 3, H, W], images in [-1, 1]; t: int64 [B] in 1..T.
    """
    out = out[:, :3].float()
    target = noise
    if process.prediction == "mean":
        target = process.posterior_mean(x_0, x_t, t, t - 1)
    return (target - out).square().mean(dim=(1, 2, 3))


def bound_loss(process: ReverseProcess, out: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """T·L_{t−1} in bits/dim for each picture, [B]; arguments as of :func:`simple_loss`."""
    p = process.gaussian(out, x_t, t, t - 1)
    return process.schedule.timesteps * transition_bits(process, p, x_0, x_t, t)


def transition_bits(
    process: ReverseProcess, p: Gaussian, x_0: Tensor, x_t: Tensor, t: Tensor
) -> Tensor:
    """L_{t−1} of p_θ(x_{t−1} | x_t), L_0 at t = 1, in bits/dim for each picture, [B]."""
    log_variance = p.log_variance.expand_as(x_0)
    steps = process.transition(t, t - 1)
    # μ̃ − μ_θ from what differs in it: the means themselves agree in most of their digits.
    shift = steps.coef_x0 * (x_0 - p.x_0)
    kl = kl_bits(shift, steps.posterior.to(x_0.dtype).clamp(min=1e-20).log(), log_variance)
    decoder = -decoder_log2(x_0, p.mean, 0.5 * log_variance)
    return torch.where((t == 1)[:, None, None, None], decoder, kl).mean(dim=(1, 2, 3))


def kl_bits(shift: Tensor, log_variance_q: Tensor, log_variance_p: Tensor) -> Tensor:
    """KL(N(μ + shift, σ_q²) ‖ N(μ, σ_p²)) in bits, value by value."""
    ratio = log_variance_q - log_variance_p
    # expm1: the variances are often nearly the same, and what then remains is small.
    distance = shift.square() * torch.exp(-log_variance_p)
    return 0.5 * LOG2E * (torch.expm1(ratio) - ratio + distance)


def decoder_log2(x_0: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log2 p_θ(x_0 | x_1) of eq. 13, elementwise: N(mean, σ²) over the bin of each level.

    x_0: images in [-1, 1]; the bins of levels 0 and 255 reach to −∞ and +∞.
    """
    inverse = torch.exp(-log_scale)
    above = (x_0 + HALF_LEVEL - mean) * inverse
    below = (x_0 - HALF_LEVEL - mean) * inverse
    # Of Φ(b) − Φ(a) the smaller tail is exact: where the bin lies above the mean, mirror it.
    mirrored = above + below > 0.0
    high = torch.where(mirrored, -below, above)
    low = torch.where(mirrored, -above, below)
    open_high = torch.where(mirrored, x_0 < -1.0 + HALF_LEVEL, x_0 > 1.0 - HALF_LEVEL)
    open_low = torch.where(mirrored, x_0 > 1.0 - HALF_LEVEL, x_0 < -1.0 + HALF_LEVEL)
    log_high = torch.where(open_high, 0.0, torch.special.log_ndtr(high))
    log_low = torch.special.log_ndtr(low)
    gap = (log_low - log_high).clamp(max=-1e-7)
    return LOG2E * (log_high + torch.where(open_low, 0.0, torch.log1p(-torch.exp(gap))))
