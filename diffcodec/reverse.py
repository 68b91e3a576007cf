"""One step of the reverse process, as both sides compute it: p_θ(x_b | x_a) and x̂_0(x_a).

The state x_t is an integer array [3, H, W] in units of 2**-16, so that what the network sees
is exactly the same number on both sides.  The network's outputs are rounded to integers at
once; everything after it is exact: elementwise float64 operations on values that are the same
on both sides, and integer-valued matrix products.
"""

from __future__ import annotations

import binascii
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from diffcodec.coefficients import Layout, layout
from diffcodec.correction import EPS_UNIT
from diffcodec.exact import X_UNIT
from diffcodec.final_layer import Distribution
from diffcodec.lessons import MEAN_UNIT
from diffcodec.model import Model
from diffcodec.network import SIZE_MULTIPLE
from diffcodec.noise import derive_key, shared_normal
from diffcodec.plans import SMALL_PIXELS, STRIP_ROWS, Plan
from diffcodec.schedule import Step
from diffcodec.tables import OCTAVE, S_MAX, S_MIN, Y_UNIT

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]

X0_LIMIT = 4.0
"""Predictions are kept within this, so that no model, however wrong, overflows anything."""

_START = 0


@dataclass(frozen=True)
class NetworkOutput:
    """The network's view of x_a, as integers.

    eps: [3, H, W] in 2**-14; coef_index: [192, ⌈H/8⌉, ⌈W/8⌉], log2 of the variance of W(ε − ε̂)
    in 1/8; scale_index, coefs: [3, H, W], for the final layer; features: of an adapted model that
    learns here, [told, rows, columns], every pitch-th of the whole picture, of others nothing.
    """

    eps: NDArray[np.int32]
    coef_index: NDArray[np.int16]
    scale_index: NDArray[np.int16]
    coefs: NDArray[np.int16]
    features: NDArray[np.int16]

    def rows(self, rows: slice) -> NetworkOutput:
        """What it says of these rows, which begin at a multiple of 8."""
        blocks = slice(rows.start // SIZE_MULTIPLE, -(-rows.stop // SIZE_MULTIPLE))
        return NetworkOutput(
            self.eps[:, rows],
            self.coef_index[:, blocks],
            self.scale_index[:, rows],
            self.coefs[:, rows],
            self.features,
        )


def evaluate(model: Model, x: I32, t: int, plan: Plan) -> NetworkOutput:
    """One network evaluation, or two: where ``plan`` is mirrored the mean with the mirror image's.

    Sides are mirrored up to a multiple of 8 and cut off again.  What the network says of the
    noise that a small picture begins with is remembered for the next one of the same size.
    """
    if x[0].size <= SMALL_PIXELS and t == model.plan.timesteps[0]:
        return _remembered(model, x.tobytes(), x.shape, t, plan)
    return _evaluate(model, x, t, plan)


@lru_cache(maxsize=8)
def _remembered(
    model: Model, x: bytes, shape: tuple[int, ...], t: int, plan: Plan
) -> NetworkOutput:
    """Callers share these arrays; nobody writes into what the network said."""
    return _evaluate(model, np.frombuffer(x, dtype=np.int32).reshape(shape).copy(), t, plan)


def _evaluate(model: Model, x: I32, t: int, plan: Plan) -> NetworkOutput:
    _, height, width = x.shape
    if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
        margin = [(0, 0), (0, -height % SIZE_MULTIPLE), (0, -width % SIZE_MULTIPLE)]
        x = np.pad(x, margin, mode="symmetric")
    mirrored = plan.mirrors(t)
    # Of a mean one of two is corrected, by twice as much (docs/format.md, §8.4).
    wanted = model.adaptation.correction(t, times=1 + mirrored) if model.adaptation else None
    out = model.evaluate(
        torch.from_numpy(x), t, correction=wanted, final=t == plan.end, mirrored=mirrored
    )
    eps, scale_index, coefs = (
        part.numpy()[:, :height, :width] for part in (out.eps, out.scale_index, out.coefs)
    )
    return NetworkOutput(eps, out.coef_index.numpy(), scale_index, coefs, out.features.numpy())


def start(t: int, seed: int, height: int, width: int) -> I32:
    """x_t of the first timestep: standard normal noise from the seed, [3, H, W] in 2**-16."""
    key, count = derive_key(seed, _START, t), 3 * height * width
    x = np.empty((3 * height, width), dtype=np.int32)
    for top in range(0, 3 * height, STRIP_ROWS):
        rows = x[top : top + STRIP_ROWS]
        noise = shared_normal(key, count, top * width, top * width + rows.size)
        rows[:] = noise.reshape(rows.shape) << (X_UNIT - Y_UNIT)
    return x.reshape(3, height, width)


def q_sample(model: Model, x_0: U8, t: int, rng: np.random.Generator) -> I32:
    """A state x_t ~ q(x_t | x_0), eq. 4, for levels x_0 uint8 [3, H, W], in 2**-16."""
    x_t = model.schedule.q_sample(x_0 / 127.5 - 1.0, t, rng.standard_normal(x_0.shape))
    return np.rint(x_t * (1 << X_UNIT)).astype(np.int32)


def predict_x0(model: Model, x: I32, t: int, out: NetworkOutput, grey: bool) -> F64:
    """x̂_0(x_t), eq. 15, float64 [3, H, W] in the [-1, 1] scale, clipped only to ±X0_LIMIT."""
    x_0 = model.schedule.predict_x0(x / (1 << X_UNIT), t, out.eps / (1 << EPS_UNIT))
    x_0 = np.clip(x_0, -X0_LIMIT, X0_LIMIT)
    if grey:
        x_0 = np.broadcast_to((x_0[0] + x_0[1] + x_0[2]) / 3.0, x_0.shape)
    return x_0


class Prior:
    """p_θ(x_b | x_a) = N(μ_θ, β̃ Wᵀ(1 + s)W) of a band, with s predicted per coefficient.

    The truth q(x_b | x_a, x_0) = N(μ̃, β̃ I) differs by the shifts d = W(μ̃ − μ_θ)/√β̃, which
    are what the channel conveys.  All arrays are those of the band (see coefficients.bands).
    """

    def __init__(
        self, step: Step, x0_hat: F64, coef_index: NDArray[np.int16], x_a: I32, grey: bool
    ) -> None:
        self.x0_hat = x0_hat
        self.layout: Layout = layout(*x_a.shape[1:])
        self.mean = step.posterior_mean(x0_hat, x_a / (1 << X_UNIT))
        self.deviation = math.sqrt(step.variance)
        self._gain = step.coef_x0 / self.deviation
        self.s_index: I64 = self.layout.spread(coef_index.astype(np.int64)) + step.gain_index
        self.mute = self.layout.chroma if grey else None

    def shifts(self, x_0: U8) -> F64:
        """d for the true levels [3, h, w], float64 [coefficients]; only the sender knows it."""
        return self.layout.forward((x_0 / 127.5 - 1.0 - self.x0_hat) * self._gain)

    def spread(self) -> F64:
        """√(1 + s): the standard deviation of y under p_θ, [coefficients]."""
        spread = np.sqrt(1.0 + np.exp2(np.clip(self.s_index, S_MIN, S_MAX) / OCTAVE))
        return spread if self.mute is None else np.where(self.mute, 1.0, spread)

    def divergence(self, d: F64) -> F64:
        """KL(q || p_θ) in bits for shifts d, [coefficients]."""
        s = np.exp2(self.s_index / OCTAVE)
        bits = 0.5 * (np.log2(1.0 + s) + (np.square(d) - s) / (1.0 + s) / math.log(2.0))
        return bits if self.mute is None else np.where(self.mute, 0.0, bits)

    def noise(self, y: I64) -> F64:
        """Wᵀ y, float64 [3, h, w], for y in 2**-12."""
        return self.layout.inverse(y.astype(np.float64)) / (1 << Y_UNIT)

    def sample(self, noise: F64) -> I32:
        """x_b = μ_θ + √β̃ Wᵀ y, for ``noise`` Wᵀ y, as a state."""
        x_b = np.rint((self.mean + self.deviation * noise) * (1 << X_UNIT))
        return x_b.astype(np.int64).astype(np.int32)


def final_distribution(
    model: Model, out: NetworkOutput, x_t: I32, plan: Plan, grey: bool
) -> Distribution:
    """p_θ(x_0 | x_t) of some rows, as integers for the coder; t is where the plan's steps end."""
    x0_hat = predict_x0(model, x_t, plan.end, out, grey)
    return Distribution(
        mean=np.rint((x0_hat + 1.0) * (127.5 * MEAN_UNIT)).astype(np.int64),
        scale=out.scale_index.astype(np.int64) + model.schedule.sigma_index(plan.end),
        coefs=out.coefs.astype(np.int64),
    )


def state_check(x: I32) -> int:
    """One byte of the CRC-32 of a state [3, H, W]; both sides must find the same."""
    rows, check = x.reshape(-1, x.shape[2]), 0
    for top in range(0, len(rows), STRIP_ROWS):
        check = binascii.crc32(rows[top : top + STRIP_ROWS].astype(">i4").tobytes(), check)
    return check & 0xFF


def to_levels(x_0: F64) -> U8:
    """From the [-1, 1] scale to uint8 levels, clipped."""
    return np.clip(np.rint((x_0 + 1.0) * 127.5), 0, 255).astype(np.uint8)
