"""The forward process q in closed form: every table of Ho et al. 2020, §2, in float64.

Notation is the paper's. Timesteps run t = 1..T as in the paper; t = 0 is the image itself
(alphas_cumprod = 1).  :func:`Schedule.at` is the only place where a timestep becomes an
array index, so that no other code has to remember the shift.

Images are scaled to [-1, 1]; one level (of 0–255) is 1/127.5 there.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 1.0 / 127.5
"""One level of an 8-bit image in the [-1, 1] scale."""

LONGEST = 10_000
"""Timesteps of the longest chain: its tables are made in decimal arithmetic."""

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Schedule:
    """Linear β schedule, β_1 = ``beta_start`` … β_T = ``beta_end``.

    The paper uses 1e-4 → 0.02.  The codec's models start at (0.6 levels)², so that the
    chain ends where the final layer is cheapest.
    """

    timesteps: int = 1000
    beta_start: float = (0.6 * LEVEL) ** 2
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        if not isinstance(self.timesteps, int) or not 1 <= self.timesteps <= LONGEST:
            raise ValueError(f"timesteps must be an integer in 1..{LONGEST}, not {self.timesteps}")
        if not 0.0 < self.beta_start <= self.beta_end < 1.0:
            raise ValueError(
                f"betas must satisfy 0 < beta_start <= beta_end < 1, "
                f"not {self.beta_start} and {self.beta_end}"
            )

    @cached_property
    def betas(self) -> F64:
        """β_t, shape [T + 1]; betas[0] = 0 belongs to the image itself."""
        betas = np.linspace(self.beta_start, self.beta_end, self.timesteps, dtype=np.float64)
        return np.concatenate([[0.0], betas])

    @cached_property
    def _exact(self) -> list[Decimal]:
        """ᾱ_0 … ᾱ_T to 40 digits.

        Sender and receiver must get the same float64 tables on any machine: decimal arithmetic
        is the same everywhere, the C library's log and exp are not.
        """
        with localcontext(prec=40):
            products = [Decimal(1)]
            for beta in self.betas[1:]:
                products.append(products[-1] * (1 - Decimal(float(beta))))
            return products

    @cached_property
    def alphas_cumprod(self) -> F64:
        """ᾱ_t = Π (1 − β_s), shape [T + 1], ᾱ_0 = 1."""
        return np.array([float(value) for value in self._exact])

    @cached_property
    def one_minus_alphas_cumprod(self) -> F64:
        """1 − ᾱ_t, shape [T + 1], correctly rounded also where t is small."""
        with localcontext(prec=40):
            return np.array([float(1 - value) for value in self._exact])

    @cached_property
    def log_snr(self) -> F64:
        """λ_t = log(ᾱ_t / (1 − ᾱ_t)), shape [T + 1]; λ_0 = +inf."""
        with localcontext(prec=40):
            tail = [float((value / (1 - value)).ln()) for value in self._exact[1:]]
        return np.array([np.inf, *tail])

    def at(self, table: F64, t: ArrayLike) -> F64:
        """Entries of one of the tables above at timesteps ``t`` in 0..T."""
        index = np.asarray(t, dtype=np.int64)
        if index.size and (index.min() < 0 or index.max() > self.timesteps):
            raise ValueError(f"timesteps must lie in 0..{self.timesteps}, not {t!r}")
        return table[index]

    def sigma_levels(self, t: ArrayLike) -> F64:
        """Noise of x_t / √ᾱ_t around x_0, in levels of 0–255: √((1 − ᾱ_t)/ᾱ_t) · 127.5."""
        return np.exp(-0.5 * self.at(self.log_snr, t)) / LEVEL

    def sigma_index(self, t: int) -> int:
        """log2 of :meth:`sigma_levels` in 1/8, rounded, t >= 1."""
        with localcontext(prec=40):
            value = self._exact[t]
            sigma2 = (1 - value) / value * Decimal("127.5") ** 2
            return int((sigma2.ln() / Decimal(2).ln() * 4).to_integral_value())

    def nearest_timestep(self, log_snr: float) -> int:
        """The t in 1..T whose λ_t is nearest to ``log_snr``."""
        return 1 + int(np.argmin(np.abs(self.log_snr[1:] - log_snr)))

    # -- q(x_t | x_0) and the posterior ----------------------------------------------------

    def q_sample(self, x_0: F64, t: int, noise: F64) -> F64:
        """x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε  (eq. 4); shapes of x_0 and noise agree."""
        abar = float(self.at(self.alphas_cumprod, t))
        rest = float(self.at(self.one_minus_alphas_cumprod, t))
        return np.sqrt(abar) * x_0 + np.sqrt(rest) * noise

    def predict_x0(self, x_t: F64, t: int, eps: F64) -> F64:
        """x̂_0 = (x_t − √(1 − ᾱ_t) ε) / √ᾱ_t  (eq. 15)."""
        abar = float(self.at(self.alphas_cumprod, t))
        rest = float(self.at(self.one_minus_alphas_cumprod, t))
        return (x_t - np.sqrt(rest) * eps) / np.sqrt(abar)

    def step(self, a: int, b: int) -> Step:
        """The strided step a → b of the reverse chain, 0 <= b < a <= T."""
        if not 0 <= b < a <= self.timesteps:
            raise ValueError(f"a step needs 0 <= b < a <= {self.timesteps}, not {a} -> {b}")
        return _step(self, a, b)

    # -- the variational bound, eq. 5 ------------------------------------------------------

    def prior_bpd(self, x_0: F64) -> float:
        """L_T = KL(q(x_T | x_0) || N(0, I)) in bits/dim for one image scaled to [-1, 1]."""
        abar = float(self.alphas_cumprod[-1])
        rest = float(self.one_minus_alphas_cumprod[-1])
        kl = 0.5 * (rest + abar * np.mean(np.square(x_0)) - 1.0 - np.log(rest))
        return float(kl / np.log(2.0))

    def step_bpd(
        self, a: int, b: int, eps: F64, eps_hat: F64, variance_ratio: float = 1.0
    ) -> float:
        """KL(q(x_b | x_a, x_0) || p_θ(x_b | x_a)) in bits/dim, one isotropic variance.

        ``variance_ratio`` is σ²/β̃, the model's variance over the posterior's (1 is the
        paper's choice σ² = β̃_t).
        """
        gain = self.step(a, b).eps_gain
        d2 = gain**2 * float(np.mean(np.square(eps - eps_hat)))
        kl = 0.5 * (np.log(variance_ratio) + (1.0 + d2) / variance_ratio - 1.0)
        return float(kl / np.log(2.0))


@dataclass(frozen=True)
class Step:
    """One strided step a → b: q(x_b | x_a, x_0) = N(coef_x0·x_0 + coef_xa·x_a, variance·I).

    ``eps_gain`` turns an error of ε into the normalised shift d = (μ̃ − μ_θ)/√β̃; it is
    √(expm1(λ_b − λ_a)), and infinite for b = 0.  ``gain_index`` is log2(eps_gain²) in 1/8.
    """

    a: int
    b: int
    coef_x0: float
    coef_xa: float
    variance: float
    eps_gain: float
    gain_index: int

    def posterior_mean(self, x_0: F64, x_a: F64) -> F64:
        """μ̃(x_a, x_0), eq. 7 with a stride."""
        return self.coef_x0 * x_0 + self.coef_xa * x_a


@lru_cache(maxsize=1024)
def _step(schedule: Schedule, a: int, b: int) -> Step:
    """:meth:`Schedule.step`, kept: a chain has few steps, and decimal arithmetic takes its time."""
    with localcontext(prec=40):
        abar_a, abar_b = schedule._exact[a], schedule._exact[b]
        rest_a, rest_b = 1 - abar_a, 1 - abar_b
        alpha = abar_a / abar_b
        beta = 1 - alpha
        gain2 = abar_b / abar_a * beta / rest_b if b else Decimal("Infinity")
        return Step(
            a=a,
            b=b,
            coef_x0=float(abar_b.sqrt() * beta / rest_a),
            coef_xa=float(alpha.sqrt() * rest_b / rest_a),
            variance=float(rest_b / rest_a * beta),
            eps_gain=float(gain2.sqrt()),
            gain_index=int((gain2.ln() / Decimal(2).ln() * 8).to_integral_value()) if b else 0,
        )
