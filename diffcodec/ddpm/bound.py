"""The paper's variational bound of a network, eq. 5, picture by picture, and its two ends.

−log2 p(x_0) ≤ L_T + Σ_{t>1} L_{t−1} + L_0 in bits/dim: L_T compares q(x_T | x_0) with N(0, I),
L_{t−1} is KL(q(x_{t−1} | x_t, x_0) ‖ p_θ(x_{t−1} | x_t)) at one x_t ~ q(x_t | x_0), L_0 is the
discretised decoder, eq. 13.  L_1 … L_T are the rate, x̂_0 the picture shown at any t (§4.3).

This is the bound with p_θ as a :class:`ReverseProcess` has it, one variance σ_t² for all values
unless it is learned.  The codec itself predicts one for every coefficient, takes fewer steps and
has a better final layer, all of which this leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffcodec.ddpm.objectives import transition_bits
from diffcodec.ddpm.process import Gaussian, ReverseProcess
from diffcodec.ddpm.samplers import from_pixels, keyed_normal
from diffcodec.schedule import LEVEL, Schedule

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Strata:
    """Disjoint ranges (low, high] of timesteps that together are 2..T, falling.

    With one timestep each the bound is the whole sum; with fewer ranges one random timestep
    stands for each, which leaves the sum's expectation as it is.
    """

    low: NDArray[np.int64]
    high: NDArray[np.int64]

    @classmethod
    def of(cls, schedule: Schedule, count: int | None = None) -> Strata:
        """``count`` ranges of about equal extent in λ, one for every timestep when None.

        So there are most of them where t is small, which is where the bits are.  ValueError
        unless 1 <= count <= T − 1.
        """
        last = schedule.timesteps
        count = last - 1 if count is None else count
        if not 1 <= count <= last - 1:
            raise ValueError(f"the bound takes 1 to {last - 1} timesteps, not {count}")
        edges = [1]
        for left in range(count, 1, -1):
            reach = (schedule.log_snr[edges[-1]] - schedule.log_snr[last]) / left
            wanted = schedule.nearest_timestep(float(schedule.log_snr[edges[-1]] - reach))
            edges.append(min(max(wanted, edges[-1] + 1), last - left + 1))
        falling = np.array([*edges, last][::-1])
        return cls(falling[1:], falling[:-1])

    @property
    def sizes(self) -> NDArray[np.int64]:
        return self.high - self.low

    def draw(self, seed: int, number: int) -> NDArray[np.int64]:
        """A timestep of each range, uniform, for picture ``number``."""
        rng = np.random.Generator(np.random.Philox(key=[seed, number << 16 | 0xFFFF]))
        return rng.integers(self.low, self.high) + 1


@dataclass(frozen=True)
class PictureBound:
    """The bound of one picture; all in bits/dim, coarse to fine.

    prior: L_T; steps: Σ L_{t−1} over each of the K strata; decoder: L_0; rmse: [K + 1] of
    x̂_0(x_t) in levels of 0–255, at one t of each stratum and at t = 1.
    """

    prior: float
    steps: F64
    decoder: float
    rmse: F64

    @property
    def rate(self) -> float:
        """L_1 + … + L_T: what is sent before the decoder."""
        return self.prior + float(np.sum(self.steps))

    @property
    def total(self) -> float:
        return self.rate + self.decoder

    def rates(self, strata: Strata) -> F64:
        """[K + 2]: bits/dim received when x_t is known, t as in ``rmse``, then all of it.

        Inside a stratum, for a t in its middle on average.
        """
        above = self.prior + np.cumsum(self.steps) - self.steps
        inside = 0.5 * (strata.sizes - 1) / strata.sizes * self.steps
        return np.array([*(above + inside), self.rate, self.total])


def picture_bound(
    process: ReverseProcess,
    pixels: U8,
    number: int,
    strata: Strata,
    *,
    seed: int = 0,
    batch: int = 64,
    device: str = "cpu",
) -> PictureBound:
    """The bound of one picture uint8 [H, W, 3], sides multiples of what the network needs.

    Randomness is keyed by (seed, number, t); batch: timesteps evaluated together.
    """
    x_0 = from_pixels(pixels)
    times = [*strata.draw(seed, number).tolist(), 1]
    bits, errors = [], []
    for begin in range(0, len(times), batch):
        part = times[begin : begin + batch]
        noise = torch.stack([keyed_normal(seed, number, t, x_0.shape) for t in part])
        t = torch.tensor(part, device=device)
        found, error = _terms(process, x_0.to(device), t, noise.to(device))
        bits.append(found)
        errors.append(error)
    terms, rmse = np.concatenate(bits), np.concatenate(errors)
    return PictureBound(
        prior=process.schedule.prior_bpd(x_0.double().numpy()),
        steps=terms[:-1] * strata.sizes,
        decoder=float(terms[-1]),
        rmse=rmse,
    )


def _terms(process: ReverseProcess, x_0: Tensor, t: Tensor, noise: Tensor) -> tuple[F64, F64]:
    """L_{t−1} in bits/dim for t int64 [B], and the RMSE of x̂_0(x_t) in levels, both [B]."""
    with torch.inference_mode():
        x_t = process.q_sample(x_0, t, noise)
        p = process(x_t, t, t - 1)
        exact = Gaussian(*(part.double() for part in p))
        bits = transition_bits(process, exact, x_0.double().expand_as(p.x_0), x_t, t)
        error = (x_0.double() - exact.x_0).square().mean(dim=(1, 2, 3)).sqrt()
    return bits.cpu().numpy(), error.cpu().numpy() / LEVEL


def bound(
    process: ReverseProcess,
    pictures: Sequence[U8],
    strata: Strata,
    *,
    seed: int = 0,
    batch: int = 64,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> list[PictureBound]:
    """:func:`picture_bound` of every picture, whose numbers are their places."""
    found = []
    for number, pixels in enumerate(pictures):
        found.append(
            picture_bound(process, pixels, number, strata, seed=seed, batch=batch, device=device)
        )
        if progress:
            progress(number + 1, len(pictures))
    return found


def summarise(bounds: Sequence[PictureBound], strata: Strata) -> dict[str, Any]:
    """Means over pictures as [mean, standard error], bits/dim and levels; NaN for one picture.

    Timesteps are drawn anew for every picture, so the errors count pictures, noise and, with
    fewer strata than timesteps, the choice of t.  The curve (Figure 5, Table 4) has for every
    stratum the mean t, rate and RMSE, then those of t = 1 and of the exact picture.
    """
    rates = np.array([b.rates(strata) for b in bounds])
    rmse = np.array([[*b.rmse, 0.0] for b in bounds])
    times = [*(0.5 * (strata.low + 1 + strata.high)).tolist(), 1.0, 0.0]
    curve = [
        {"t": t, "rate_bpd": mean_error(rates[:, k]), "rmse": mean_error(rmse[:, k])}
        for k, t in enumerate(times)
    ]
    return {
        "pictures": len(bounds),
        "timesteps": len(strata.low) + 1,
        "bpd": mean_error([b.total for b in bounds]),
        "prior_bpd": mean_error([b.prior for b in bounds]),
        "rate_bpd": mean_error([b.rate for b in bounds]),
        "distortion_bpd": mean_error([b.decoder for b in bounds]),
        "distortion_rmse": mean_error([b.rmse[-1] for b in bounds]),
        "steps": [
            {"t": [int(low) + 1, int(high)], "bpd": mean_error([b.steps[k] for b in bounds])}
            for k, (low, high) in enumerate(zip(strata.low, strata.high, strict=True))
        ],
        "curve": curve,
    }


def mean_error(values: Any) -> list[float]:
    """[mean, standard error of the mean]."""
    found = np.asarray(values, dtype=np.float64)
    error = found.std(ddof=1) / math.sqrt(len(found)) if len(found) > 1 else math.nan
    return [float(found.mean()), float(error)]
