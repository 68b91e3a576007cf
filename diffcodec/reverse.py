"""One step of the reverse process, as both sides compute it: p_θ(x_b | x_a) and x̂_0(x_a).

The state x_t is an integer array [3, H, W] in units of 2**-16, so that what the network sees
is exactly the same number on both sides.  The network's outputs are rounded to integers at
once; everything after it is exact: elementwise float64 operations on values that are the same
on both sides, and integer-valued matrix products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from diffcodec.coefficients import Layout, layout
from diffcodec.exact import EPS_UNIT, X_UNIT
from diffcodec.final_layer import MEAN_UNIT, Distribution
from diffcodec.model import Model
from diffcodec.network import SIZE_MULTIPLE
from diffcodec.noise import derive_key, shared_normal
from diffcodec.tables import Y_UNIT

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

X0_LIMIT = 4.0
"""Predictions are kept within this, so that no model, however wrong, overflows anything."""

_START = 0


@dataclass(frozen=True)
class NetworkOutput:
    """The network's view of x_a, as integers.

    eps: [3, H, W] in 2**-14; coef_index: [192, ⌈H/8⌉, ⌈W/8⌉], log2 of the variance of W(ε − ε̂)
    in 1/8; scale_index, coefs: [3, H, W], for the final layer.
    """

    eps: I64
    coef_index: I64
    scale_index: I64
    coefs: I64


def evaluate(model: Model, x: I64, t: int) -> NetworkOutput:
    """One network evaluation.  Sides are mirrored up to a multiple of 8 and cut off again."""
    _, height, width = x.shape
    margin = [(0, 0), (0, -height % SIZE_MULTIPLE), (0, -width % SIZE_MULTIPLE)]
    padded = np.pad(x, margin, mode="symmetric")
    out = model.evaluate(torch.from_numpy(padded), t)
    eps, scale_index, coefs = (
        part.numpy()[:, :height, :width] for part in (out.eps, out.scale_index, out.coefs)
    )
    return NetworkOutput(eps, out.coef_index.numpy(), scale_index, coefs)


def start(t: int, seed: int, height: int, width: int) -> I64:
    """x_t of the first timestep: standard normal noise from the seed, [3, H, W] in 2**-16."""
    noise = shared_normal(derive_key(seed, _START, t), 3 * height * width)
    return noise.reshape(3, height, width) << (X_UNIT - Y_UNIT)


def predict_x0(model: Model, x: I64, t: int, out: NetworkOutput, grey: bool) -> F64:
    """x̂_0(x_t), eq. 15, float64 [3, H, W] in the [-1, 1] scale, clipped only to ±X0_LIMIT."""
    x_0 = model.schedule.predict_x0(x / (1 << X_UNIT), t, out.eps / (1 << EPS_UNIT))
    x_0 = np.clip(x_0, -X0_LIMIT, X0_LIMIT)
    if grey:
        x_0 = np.broadcast_to((x_0[0] + x_0[1] + x_0[2]) / 3.0, x_0.shape)
    return x_0


class Prior:
    """p_θ(x_b | x_a) = N(μ_θ, β̃ Wᵀ(1 + s)W), with s predicted per coefficient.

    The truth q(x_b | x_a, x_0) = N(μ̃, β̃ I) differs by the shifts d = W(μ̃ − μ_θ)/√β̃, which
    are what the channel conveys.
    """

    def __init__(self, model: Model, x_a: I64, a: int, b: int, grey: bool) -> None:
        out = evaluate(model, x_a, a)
        step = model.schedule.step(a, b)
        self.x0_hat = predict_x0(model, x_a, a, out, grey)
        self.layout: Layout = layout(*x_a.shape[1:])
        self.mean = step.posterior_mean(self.x0_hat, x_a / (1 << X_UNIT))
        self.deviation = math.sqrt(step.variance)
        self._gain = step.coef_x0 / self.deviation
        self.s_index: I64 = self.layout.spread(out.coef_index) + step.gain_index
        self.mute = self.layout.chroma if grey else None

    def shifts(self, x_0: F64) -> F64:
        """d for the true x_0 [3, H, W], float64 [coefficients]; only the sender can know it."""
        return self.layout.forward((x_0 - self.x0_hat) * self._gain)

    def sample(self, y: I64) -> I64:
        """x_b = μ_θ + √β̃ Wᵀ y, for y in 2**-12, as a state."""
        noise = self.layout.inverse(y.astype(np.float64)) / (1 << Y_UNIT)
        return np.rint((self.mean + self.deviation * noise) * (1 << X_UNIT)).astype(np.int64)


def final_distribution(model: Model, x_1: I64, grey: bool) -> tuple[Distribution, F64]:
    """p_θ(x_0 | x_1) as integers for the coder, and x̂_0(x_1)."""
    out = evaluate(model, x_1, 1)
    x0_hat = predict_x0(model, x_1, 1, out, grey)
    offset = model.schedule.sigma_index(1)
    distribution = Distribution(
        mean=np.rint((x0_hat + 1.0) * (127.5 * MEAN_UNIT)).astype(np.int64),
        scale=out.scale_index + offset,
        coefs=out.coefs,
        neighbours=model.neighbours,
    )
    return distribution, x0_hat
