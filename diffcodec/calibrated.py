"""The paper's U-Nets as networks that code: ε̂ is theirs, the variances are a calibration's.

Such a network says nothing of its own error, which is what sets the rate of every coefficient,
and nothing of the final layer's.  Both are measured once on pictures (calibrate.py) and then
constants: a variance for every coded timestep and band of W, and at t = 1 for every colour.

    timesteps    int64 [N]           those of the plan
    coef_logvar  float32 [N, 192]    log-variance of W(ε − ε̂), per timestep and band
    pixel        float32 [6]         as the codec's network has for every pixel (network.py)
    neighbours   int64 [3, 6]        of the final layer, in 1/1024 (final_layer.py)

Attention and normalisation see the whole picture, so that there are no tiles and a limit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from diffcodec.ddpm.process import ReverseProcess
from diffcodec.ddpm.unet import UNetConfig
from diffcodec.errors import ModelError
from diffcodec.exact import X_UNIT, Integers, round_outputs
from diffcodec.network import PIXEL_OUTPUTS
from diffcodec.plans import Plan
from diffcodec.schedule import Schedule
from diffcodec.transform import BANDS, BLOCK

MAX_PIXELS = 512 * 512
MAX_ATTENDED = 128 * 128
"""Attention compares every place with every other one: a gigabyte for so many."""


@cache
def plan_at(plan: Plan, schedule: Schedule) -> Plan:
    """``plan``, which is one for the codec's schedule, at the same λ of another ``schedule``.

    Timesteps that coincide there are left out.  ModelError if the schedule has no such plan.
    """
    log_snr = Schedule().log_snr
    found = {schedule.nearest_timestep(float(log_snr[t])) for t in plan.timesteps} | {1}
    try:
        grouped = min(plan.grouped, max(1, len(found) - 1))
        return replace(plan, timesteps=tuple(sorted(found, reverse=True)), grouped=grouped)
    except ValueError as e:
        raise ModelError(f"the model's schedule has no plan to code with ({e})") from e


def largest_picture(config: UNetConfig) -> int:
    """Pixels of the largest picture that a network is asked to look at."""
    first = min(config.attention, default=len(config.multipliers) - 1)
    return min(MAX_PIXELS, MAX_ATTENDED << (2 * first))


def predict_eps(process: ReverseProcess, x_t: Tensor, t: int, multiple: int) -> Tensor:
    """ε̂ that belongs to x̂_0 as the process has it, clipped: float32 [B, 3, H, W].

    x_t: float32 [B, 3, H, W]; the sides are mirrored up to ``multiple`` and cut off again.
    """
    height, width = x_t.shape[2:]
    rows, columns = (
        np.pad(np.arange(side), (0, -side % multiple), mode="symmetric") for side in (height, width)
    )
    x_t = x_t[:, :, rows][:, :, :, columns]
    times = torch.full((len(x_t),), t, dtype=torch.int64)
    x_0 = process(x_t, times, times - 1).x_0
    return process.predict_eps(x_0, x_t, times)[:, :, :height, :width]


class CalibratedUNet:
    """A U-Net with the calibration ``tensors`` of the module's table.

    Raises ModelError if the calibration is not one.
    """

    def __init__(
        self, config: UNetConfig, process: ReverseProcess, tensors: dict[str, Tensor]
    ) -> None:
        timesteps = tensors.get("timesteps", torch.empty(0))
        self._coef_logvar = _constants(tensors, "coef_logvar", (len(timesteps), BANDS))
        self._pixel = _constants(tensors, "pixel", (PIXEL_OUTPUTS,))
        self._rows = {int(t): row for row, t in enumerate(timesteps)}
        self._process = process
        self._multiple, self._largest = config.size_multiple, largest_picture(config)

    def missing(self, timesteps: Iterable[int]) -> list[int]:
        """Those of ``timesteps`` there is no calibration for."""
        return [t for t in timesteps if t not in self._rows]

    def __call__(self, x: Tensor, t: int) -> Integers:
        """Evaluate at timestep ``t``: x int32 [3, H, W] in 2**-16, H and W multiples of 8.

        ``t`` must not be :meth:`missing`.  ModelError if the picture is too large.
        """
        _, height, width = x.shape
        if height * width > self._largest:
            raise ModelError(
                f"the model sees a picture as a whole, {self._largest} pixels at most, and this "
                f"one has {height * width}; use another model or a smaller picture"
            )
        with torch.inference_mode():
            state = (x / (1 << X_UNIT)).float()[None]
            eps = predict_eps(self._process, state, t, self._multiple)[0]
        if not bool(torch.isfinite(eps).all()):
            raise ModelError(f"the model predicts numbers that are not finite at t = {t}")
        blocks = (BANDS, height // BLOCK, width // BLOCK)
        return round_outputs(
            eps.double(),
            self._coef_logvar[self._rows[t]][:, None, None].expand(blocks),
            self._pixel[:, None, None].expand(PIXEL_OUTPUTS, height, width),
        )


def _constants(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of the calibration, float64."""
    found = tensors.get(name)
    if found is None or tuple(found.shape) != shape or not bool(torch.isfinite(found).all()):
        raise ModelError(
            f"the calibration's {name} is not {list(shape)} finite numbers; run diffcodec calibrate"
        )
    return found.double()
