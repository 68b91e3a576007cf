"""From a trained network to what it takes to code with it: calibration on pictures.

The codec's own network becomes integers (:func:`exact_tensors`); for a U-Net of the paper the
variances are measured that its outputs lack (:func:`calibrate`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffcodec.calibrated import plan_at, predict_eps
from diffcodec.ddpm.process import ReverseProcess
from diffcodec.ddpm.store import make_process
from diffcodec.ddpm.unet import UNetConfig
from diffcodec.errors import ModelError
from diffcodec.experts import expert_at, join
from diffcodec.final_layer import fit_weights
from diffcodec.heads import COEF_UNIT, PIXEL_COEF_MAX
from diffcodec.model import Model, ModelConfig
from diffcodec.model_check import NEIGHBOURS
from diffcodec.objective import block_transform
from diffcodec.plans import PLANS, Plan, endings
from diffcodec.quantize import WEIGHT_BITS, quantize
from diffcodec.reverse import evaluate, final_distribution, q_sample
from diffcodec.transform import BANDS, BLOCK

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]

BATCH_PIXELS = 1 << 14
"""Pictures are evaluated together up to so many pixels."""
CALIBRATION_PIXELS = 1 << 16
SMALLEST_VARIANCE = 1e-6


def exact_tensors(
    model: Model, images: U8, seed: int, weight_bits: int = WEIGHT_BITS[0]
) -> dict[str, Tensor]:
    """The integers of the model's networks for its plan, and the final layer's weights of
    neighbours.

    images: uint8 [N, 3, H, W], H and W multiples of 8, never of a test set; weight_bits: one of
    WEIGHT_BITS.
    """
    generator = torch.Generator().manual_seed(seed)
    floors, pictures, parts = model.config.experts, torch.from_numpy(images), []
    plans = endings(model.plan)
    timesteps = sorted({t for plan in plans for t in plan.timesteps}, reverse=True)
    for number, network in enumerate(model.networks):
        own = [t for t in timesteps if expert_at(floors, t) == number]
        own = own or [floors[number]]  # a network that the plan has no use for
        parts.append(quantize(network, model.schedule, own, pictures, generator, weight_bits))
    tensors = join(parts)
    exact = Model(model.config, model.network.state_dict(), tensors)
    for plan in plans:
        tensors |= _neighbours(exact, plan, images, seed)
    return tensors


def _neighbours(model: Model, plan: Plan, images: U8, seed: int) -> dict[str, Tensor]:
    """The weights of neighbours with which the final layer of ``plan`` does best, by their name."""
    rng = np.random.default_rng(seed)
    pictures = []
    for x_0 in images:
        state = q_sample(model, x_0, plan.end, rng)
        out = evaluate(model, state, plan.end, plan)
        p = final_distribution(model, out, state, plan, grey=False)
        pictures.append((x_0.astype(np.int64), p))
    found = fit_weights(pictures, plan.passes)
    if plan.passes == 2:
        return {NEIGHBOURS: torch.from_numpy(np.ascontiguousarray(found[1, :, :6]))}
    return {f"{NEIGHBOURS}.{plan.end}": torch.from_numpy(found)}


def default_crop(config: ModelConfig, pictures: list[U8]) -> int:
    """Side of crops to calibrate a U-Net on: its usual size, or what the pictures allow."""
    if not isinstance(config.network, UNetConfig):
        return BLOCK
    smallest = min(min(p.shape[:2]) for p in pictures) // BLOCK * BLOCK
    return max(BLOCK, min(config.network.usual_size, smallest))


def default_images(crop: int) -> int:
    """How many crops: 64 of 32×32 pixels; larger ones have more blocks each, but 8 at least."""
    return min(64, max(8, CALIBRATION_PIXELS // crop**2))


def calibrate(
    config: ModelConfig,
    weights: dict[str, Tensor],
    images: U8,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Tensor]:
    """The tensors with which a U-Net of the paper codes (diffcodec/calibrated.py).

    images: uint8 [N, 3, H, W], H and W multiples of 8, never of a test set; progress is told of
    (timesteps done, all).  Raises ModelError if the model is of another kind or computes nonsense.
    """
    if not isinstance(config.network, UNetConfig):
        raise ModelError(f"model '{config.name}' predicts its variances; it needs no calibration")
    process = make_process(config, weights)
    timesteps = plan_at(PLANS[config.plan], config.schedule).timesteps
    generator = torch.Generator().manual_seed(seed)
    rows, residuals = [], np.empty(0)
    for number, t in enumerate(timesteps):
        variance, residuals = _measure(process, images, t, config.network.size_multiple, generator)
        if not bool(torch.isfinite(variance).all()):
            raise ModelError(f"model '{config.name}' predicts numbers that are not finite")
        rows.append(variance.clamp(min=SMALLEST_VARIANCE).log())
        progress(number + 1, len(timesteps))
    tensors = {
        "timesteps": torch.tensor(timesteps),
        "coef_logvar": torch.stack(rows).float(),
        "pixel": _final_constants(residuals, float(config.schedule.sigma_levels(1))),
    }
    model = Model(config, weights, calibration=tensors)
    return tensors | _neighbours(model, model.plan, images, seed)


def _measure(
    process: ReverseProcess, images: U8, t: int, multiple: int, generator: torch.Generator
) -> tuple[Tensor, F64]:
    """At timestep ``t``: the mean square of W(ε − ε̂), float64 [192], and x_0 − x̂_0 in levels,
    float64 [3, pixels]."""
    count = max(1, BATCH_PIXELS // (images.shape[2] * images.shape[3]))
    to_levels = float(process.schedule.sigma_levels(t))
    squares, residuals = torch.zeros(BANDS, dtype=torch.float64), []
    for part in torch.from_numpy(images).split(count):
        x_0 = part.float() / 127.5 - 1.0
        noise = torch.randn(x_0.shape, generator=generator)
        times = torch.full((len(x_0),), t, dtype=torch.int64)
        with torch.inference_mode():
            x_t = process.q_sample(x_0, times, noise)
            error = noise - predict_eps(process, x_t, t, multiple)
            squares += block_transform(error).double().square().mean(dim=(2, 3)).sum(0)
        # x_t is the same with x_0 and ε as with x̂_0 and ε̂, so that the errors are proportional.
        residuals.append((-to_levels * error).transpose(0, 1).flatten(1).double().numpy())
    return squares / len(images), np.concatenate(residuals, axis=1)


def _final_constants(residuals: F64, sigma: float) -> Tensor:
    """What the network's pixel head would say of residuals [3, n] in levels, float32 [6].

    sigma: the noise at t = 1 in levels.
    """
    red, green, blue = residuals

    def slope(of: F64, on: F64) -> float:
        best = float(of @ on) / max(float(on @ on), SMALLEST_VARIANCE)
        limited = min(max(best, -PIXEL_COEF_MAX), PIXEL_COEF_MAX)
        return round(limited * COEF_UNIT) / COEF_UNIT

    g_to_r, g_to_b = slope(red, green), slope(blue, green)
    red = red - g_to_r * green
    blue = blue - g_to_b * green
    r_to_b = slope(blue, red)
    blue = blue - r_to_b * red
    # Levels are whole numbers: the width of a bin adds 1/12 to the variance (Sheppard).
    variances = [float(np.mean(np.square(v))) - 1.0 / 12.0 for v in (red, green, blue)]
    logvars = [math.log(max(v, SMALLEST_VARIANCE) / sigma**2) for v in variances]
    return torch.tensor([*logvars, g_to_r, g_to_b, r_to_b])
