"""The reverse process p_θ(x_b | x_a) of a network, in torch, for training and sampling.

Whatever the network predicts and whatever its variance is, everyone else sees a
:class:`Gaussian`.  Timesteps are those of the paper, 0 (the image) to T; a step from a to b < a
may skip over timesteps, b = a − 1 is the paper's own.  The codec's own reverse process works in
integers and is in diffcodec/reverse.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from diffcodec.network import CodecUNet, Experts
from diffcodec.schedule import Schedule

Prediction = Literal["eps", "mean"]
"""What a network predicts: the noise of x_t (eq. 11), or μ̃ of the step t → t − 1 (eq. 8)."""

Variance = Literal["beta", "posterior", "learned"]
"""σ²: β_t, β̃_t (§3.2), or interpolated between them by the network, per value."""

Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x_t [B, 3, H, W], t int64 [B], labels int64 [B] or None) → [B, 3 or 6, H, W]."""


class CodecEps(nn.Module):
    """The codec's network, conditioned on λ, as one of timesteps that predicts ε."""

    def __init__(self, network: CodecUNet | Experts, schedule: Schedule) -> None:
        super().__init__()
        self.network = network
        log_snr = torch.from_numpy(schedule.log_snr.copy()).float()
        self.register_buffer("log_snr", log_snr, persistent=False)

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        log_snr: Tensor = self.log_snr  # type: ignore[assignment]
        eps: Tensor = self.network(x_t, log_snr[t]).eps
        return eps


class Transition(NamedTuple):
    """Coefficients of steps a → b, each [B, 1, 1, 1] float32, computed in float64.

    q(x_b | x_a, x_0) = N(coef_x0·x_0 + coef_xa·x_a, posterior·I), eq. 7; q(x_a | x_b) has the
    variance ``beta``; keep = √ᾱ_a, noise = √(1 − ᾱ_a), eq. 4.  For b = 0 the posterior has no
    variance.
    """

    keep: Tensor
    noise: Tensor
    coef_x0: Tensor
    coef_xa: Tensor
    beta: Tensor
    posterior: Tensor


class Gaussian(NamedTuple):
    """p_θ(x_b | x_a) = N(mean, exp(log_variance)), and x̂_0 from which the mean comes.

    mean, x_0: [B, 3, H, W]; log_variance: [B, 3, H, W] or [B, 1, 1, 1]; all float32.
    """

    mean: Tensor
    log_variance: Tensor
    x_0: Tensor


@dataclass(frozen=True)
class ReverseProcess:
    """A network with what it predicts, its variance and its schedule.

    clip: keep x̂_0 within [-1, 1] before the mean is formed, as the authors do in sampling.
    """

    network: Network
    schedule: Schedule
    prediction: Prediction = "eps"
    variance: Variance = "posterior"
    clip: bool = False

    def transition(self, a: Tensor, b: Tensor) -> Transition:
        """Coefficients of the steps a → b, int64 [B] each, 0 <= b < a <= T."""
        schedule, (i, k) = self.schedule, (a.cpu().numpy(), b.cpu().numpy())
        if np.any(i <= k):
            raise ValueError("a step must lead to a smaller timestep")
        abar_a, abar_b = (schedule.at(schedule.alphas_cumprod, t) for t in (i, k))
        rest_a, rest_b = (schedule.at(schedule.one_minus_alphas_cumprod, t) for t in (i, k))
        alpha = abar_a / abar_b
        beta = (rest_a - rest_b) / abar_b
        rows = (
            np.sqrt(abar_a),
            np.sqrt(rest_a),
            np.sqrt(abar_b) * beta / rest_a,
            np.sqrt(alpha) * rest_b / rest_a,
            beta,
            beta * rest_b / rest_a,
        )
        return Transition(
            *(torch.from_numpy(r).float().to(a.device)[:, None, None, None] for r in rows)
        )

    def q_sample(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε (eq. 4), t int64 [B] in 1..T."""
        steps = self.transition(t, torch.zeros_like(t))
        return steps.keep * x_0 + steps.noise * noise

    def posterior_mean(self, x_0: Tensor, x_a: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """μ̃(x_a, x_0) of the steps a → b (eq. 7)."""
        steps = self.transition(a, b)
        return steps.coef_x0 * x_0 + steps.coef_xa * x_a

    def predict_x0(self, out: Tensor, x_a: Tensor, a: Tensor) -> Tensor:
        """x̂_0 from the network's prediction [B, 3, H, W] (eq. 15, or eq. 7 solved for x_0)."""
        steps = self.transition(a, a - 1)
        if self.prediction == "eps":
            return (x_a - steps.noise * out) / steps.keep
        return (out - steps.coef_xa * x_a) / steps.coef_x0

    def predict_eps(self, x_0: Tensor, x_a: Tensor, a: Tensor) -> Tensor:
        """ε̂ that belongs to x̂_0."""
        steps = self.transition(a, a - 1)
        return (x_a - steps.keep * x_0) / steps.noise

    def __call__(self, x_a: Tensor, a: Tensor, b: Tensor, labels: Tensor | None = None) -> Gaussian:
        """p_θ(x_b | x_a): x_a float32 [B, 3, H, W]; a, b int64 [B], 0 <= b < a <= T."""
        out = self.network(x_a, a, labels)
        return self.gaussian(out, x_a, a, b)

    def gaussian(self, out: Tensor, x_a: Tensor, a: Tensor, b: Tensor) -> Gaussian:
        """The same from the network's output, [B, 6, H, W] with a learned variance."""
        out = out.float()
        share = None
        if self.variance == "learned":
            out, share = out.chunk(2, dim=1)
        x_0 = self.predict_x0(out, x_a, a)
        if self.clip:
            x_0 = x_0.clamp(-1.0, 1.0)
        steps = self.transition(a, b)
        mean = steps.coef_x0 * x_0 + steps.coef_xa * x_a
        return Gaussian(mean, self._log_variance(a, b, share), x_0)

    def _log_variance(self, a: Tensor, b: Tensor, share: Tensor | None) -> Tensor:
        """Of the step a → b; towards x_0 itself the posterior's is that of the step before it,
        as in the authors' code, since there is none (the bound has the discretised decoder)."""
        steps = self.transition(a, b)
        last = self.transition(torch.full_like(a, 2), torch.ones_like(b)).posterior
        posterior = torch.where(steps.posterior > 0.0, steps.posterior, last)
        if self.variance == "posterior":
            return posterior.log()
        if self.variance == "beta":
            return steps.beta.log()
        assert share is not None
        share = 0.5 * (share + 1.0)  # Nichol and Dhariwal 2021, eq. 15
        return share * steps.beta.log() + (1.0 - share) * posterior.log()
