"""What training minimises: the bits of a file, per dimension (design: Algorithms 3 and 4).

Drawing λ uniformly and weighting the squared error of ε evenly is the likelihood's own
weighting (Kingma et al. 2021).  The steps that will be coded are finite, so the loss is their
cost, KL(q || p_θ) with the predicted variance of every colour × DCT coefficient, plus the
length of the discretised decoder's code where they end, mostly at t = 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffcodec.network import Prediction
from diffcodec.transform import BANDS, BLOCK, matrix

LOG2E = 1.0 / math.log(2.0)
COEF_LOGVAR_RANGE = (-14.0, 4.0)
PIXEL_LOGVAR_RANGE = (-3.0, 6.0)
"""Log-variances are clamped to these ranges, in training and in coding alike."""
MAX_DEVIATION = 8.0
FINAL_SHARE = 3 / 16
"""Of a batch, evaluated for the final layer when all timesteps are trained."""
FINAL_SHARE_OF_LAST = 1 / 4
"""The same when the noisiest timesteps are not trained."""
FINAL_SHARE_OF_ENDS = 2 / 3
"""The same when no others are than those from which the final layer may begin."""


def block_transform(x: Tensor) -> Tensor:
    """W applied to every 8×8 block: [B, 3, H, W] -> [B, 192, H/8, W/8], float32."""
    weight = torch.from_numpy(matrix()).to(x.device, torch.float32)
    return F.conv2d(x, weight.view(BANDS, 3, BLOCK, BLOCK), stride=BLOCK)


def step_cost_bits(error: Tensor, logvar: Tensor, delta: float) -> Tensor:
    """KL(N(d, 1) || N(0, 1 + s)) in bits for one step of length ``delta`` in log-SNR.

    error: W(ε − ε̂), any shape; logvar: predicted log-variance of it, same shape.
    d = √(expm1(delta)) · error and s = expm1(delta) · exp(logvar).
    """
    gain2 = math.expm1(delta)
    s = gain2 * logvar.clamp(*COEF_LOGVAR_RANGE).exp()
    d2 = gain2 * error.square()
    return (0.5 * LOG2E) * (torch.log1p(s) + (d2 - s) / (1.0 + s))


def pixel_cost_bits(x_0: Tensor, x0_hat: Tensor, pixel: Tensor, sigma_levels: Tensor) -> Tensor:
    """Code length of the discretised Gaussian decoder (eq. 13) in bits, [B, 3, H, W].

    x_0: levels 0–255 (float); x0_hat: the model's mean in levels; pixel: the network's six
    outputs; sigma_levels [B]: standard deviation of the noise that is left, in levels.
    Channels are coded G, R, B, each mean corrected by the residuals before it.
    """
    red, green, blue = (x_0 - x0_hat).unbind(dim=1)
    log_scale = sigma_levels.log()[:, None, None, None]
    log_scale = log_scale + 0.5 * pixel[:, :3].clamp(*PIXEL_LOGVAR_RANGE)
    g_to_r, g_to_b, r_to_b = pixel[:, 3:].unbind(dim=1)
    red_left = red - g_to_r * green
    blue_left = blue - g_to_b * green - r_to_b * red_left
    residual = torch.stack([red_left, green, blue_left], dim=1)
    inverse = torch.exp(-log_scale)
    # Tails in log space: log(Φ(hi) − Φ(lo)) with hi, lo on the same side of zero; beyond
    # MAX_DEVIATION the cost grows linearly, so that no outlier rules a training step.
    z = residual.abs() * inverse
    inside = z.clamp(max=MAX_DEVIATION)
    log_hi = torch.special.log_ndtr(0.5 * inverse - inside)
    log_lo = torch.special.log_ndtr(-0.5 * inverse - inside)
    log_p = log_hi + torch.log1p(-torch.exp(log_lo - log_hi).clamp(max=1.0 - 1e-6))
    return LOG2E * (MAX_DEVIATION * (z - inside) - log_p)


class Loss(NamedTuple):
    """Bits/dim: ``steps`` of a whole chain, ``final`` layer, ``mse`` the K → ∞ limit of steps."""

    steps: Tensor
    final: Tensor
    mse: Tensor


SAMPLING_FLOOR = 0.25
"""Density of sampled log-SNRs at the noisy end, 1 being even; it rises linearly from there."""


def stratified_log_snr(
    count: int, low: float, high: float, offset: float, emphasis: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(log-SNRs, weights) [count]: spread over [low, high], shifted by offset in [0, 1).

    The clean end costs most of the bits, so it is drawn more often, and each draw weighs the
    inverse of its density: the weighted mean is that of an even spread, with less variance.
    ``emphasis`` adds to the weights, all of it at ``low`` and nothing at ``high``, and draws
    accordingly.
    """
    floor = min(SAMPLING_FLOOR * (1.0 + emphasis), 0.999)
    grid = (torch.arange(count, dtype=torch.float64) + offset) / count
    rise = 2.0 * (1.0 - floor)
    place = ((floor**2 + 2.0 * rise * grid).sqrt() - floor) / rise
    weight = (1.0 + emphasis * (1.0 - place)) / (floor + rise * place)
    return (low + (high - low) * place).float(), weight.float()


def training_loss(
    model: nn.Module,
    images: Tensor,
    noise: Tensor,
    offset: float,
    *,
    log_snr_low: float,
    log_snr_high: float,
    log_snr_finals: Sequence[float],
    step_length: float,
    final_share: float = FINAL_SHARE,
    emphasis: float = 0.0,
    first: int = 0,
    count: int | None = None,
) -> Loss:
    """Monte-Carlo estimate of the code length of ``images`` uint8 [B, 3, H, W] (Algorithm 1).

    The first ``final_share`` of the batch is evaluated for the final layer, which begins at each
    of ``log_snr_finals`` in turn, the rest at stratified λ for the coded steps; the share may be
    0 or 1.  With ``emphasis`` the steps at the noisy end weigh up to 1 + ``emphasis``; the result
    is then no code length.

    With ``count`` the images are only a part of a batch of so many, from its picture ``first``
    on, and the result is their share: the sum over the parts is the loss of the batch.
    """
    levels = images.float()
    x_0 = levels / 127.5 - 1.0
    count = len(images) if count is None else count
    least = len(log_snr_finals) * int(final_share > 0.0)
    n_final = min(count, max(least, round(final_share * count)))
    drawn, weight = stratified_log_snr(count - n_final, log_snr_low, log_snr_high, offset, emphasis)
    in_turn = [log_snr_finals[place % len(log_snr_finals)] for place in range(n_final)]
    log_snr = torch.cat([torch.tensor(in_turn), drawn]).to(images.device)
    log_snr = log_snr[first : first + len(images)]
    here = min(max(n_final - first, 0), len(images))  # of the pictures for the final layer
    weight = weight[max(first - n_final, 0) :][: len(images) - here]
    weight = weight.to(images.device)[:, None, None, None]
    abar = torch.sigmoid(log_snr)[:, None, None, None]
    rest = torch.sigmoid(-log_snr)[:, None, None, None]
    x_t = abar.sqrt() * x_0 + rest.sqrt() * noise
    out: Prediction = model(x_t, log_snr)

    error = (noise - out.eps)[here:]
    chain = (log_snr_high - log_snr_low) / step_length
    cost = step_cost_bits(block_transform(error), out.coef_logvar[here:], step_length)
    steps = chain * _share(weight * cost, count - n_final)
    error_cost = _share(weight * error.square(), count - n_final)
    mse = 0.5 * LOG2E * (log_snr_high - log_snr_low) * error_cost

    sigma = torch.exp(-0.5 * log_snr[:here])
    x0_hat = x_0[:here] + sigma[:, None, None, None] * (noise - out.eps)[:here]
    final = _share(
        pixel_cost_bits(levels[:here], (x0_hat + 1.0) * 127.5, out.pixel[:here], sigma * 127.5),
        n_final,
    )
    return Loss(steps, final, mse)


def _share(values: Tensor, count: int) -> Tensor:
    """What the rows of ``values`` add to a mean over ``count`` rows."""
    if not len(values):
        return values.sum()
    return values.mean() if len(values) == count else values.mean() * (len(values) / count)


def bits_per_dim(loss: Loss) -> Tensor:
    """Steps and final layer together, bits/dim."""
    return loss.steps + loss.final


def default_range(schedule_log_snr: np.ndarray) -> tuple[float, float]:
    """The range of λ worth training: from where nothing is left of the image to t = 1."""
    return max(-6.0, float(schedule_log_snr[-1])), float(schedule_log_snr[1])


def trained_range(
    schedule_log_snr: np.ndarray, timesteps: tuple[int, int] | None, finals: Sequence[int] = (1,)
) -> tuple[tuple[float, float], float, list[float]]:
    """The range of λ, the share of the final layer, and the λ of those of ``finals`` (timesteps
    from which it may begin) that lie within, of a network for ``timesteps`` (lowest, highest), of
    None for all that are worth it."""
    if timesteps is None:
        own = [float(schedule_log_snr[t]) for t in finals]
        return default_range(schedule_log_snr), FINAL_SHARE, own
    low, high = timesteps
    own = [float(schedule_log_snr[t]) for t in finals if low <= t <= high]
    if not own:
        share = 0.0
    elif high == 1:
        share = 1.0
    else:
        share = FINAL_SHARE_OF_ENDS if high <= max(finals) else FINAL_SHARE_OF_LAST
    return (float(schedule_log_snr[high]), float(schedule_log_snr[low])), share, own
