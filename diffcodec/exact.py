"""The codec network in integers carried by float32: the same result on every machine.

An integer below 2**24 is exact in float32, and so is any sum of such integers, in any order,
while every partial sum stays below 2**24.  Activations are quantised to 11 bits and the weights
of every output channel to integers such that this bound holds *by construction*; then an
ordinary convolution gives the same integers on any CPU, thread count, instruction set or GPU.
(Weights of the residual blocks that also fit 8 bits can take another path to them, int8.py.)
Between convolutions stand single multiplications, additions, roundings and clamps, each exact
under IEEE 754.  FiLM, biases and all scales are folded into one multiplier and one addend per
channel and timestep, so the network exists for the timesteps of the coding plans only.

    activation   a = clamp(round(act(x · mul + add)), low, 2047),  act(v) = max(v, v / 4) and
                 low = −512, or act(v) = v and low = −2047
    residual     r ← clamp(r + round(conv(a) · mul + add)),   r in a fixed unit per resolution
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from diffcodec import int8
from diffcodec.errors import ModelError
from diffcodec.network import LEAK
from diffcodec.objective import COEF_LOGVAR_RANGE, LOG2E, PIXEL_LOGVAR_RANGE
from diffcodec.packed import PackedConv2d
from diffcodec.tables import OCTAVE

ACTIVATION_MAX = 2047
LEAKY_MAX = 512
"""Activations are in [-LEAKY_MAX, ACTIVATION_MAX] after the activation function."""
SUM_LIMIT = 1 << 24
RESIDUAL_MAX = 1 << 22
INT8_PIXELS = 48 * 48
"""From so many on, 8-bit convolutions are worth what goes with them (of a feature map)."""
X_UNIT = 16
EPS_UNIT = 14
EPS_MAX = 1 << 30
COEF_UNIT = 64
PIXEL_COEF_MAX = 2.0
FEATURE_UNIT = 8
"""Features are told in 2**8 of the residual's units, so that they fit 16 bits."""
CONSTANT = 128
"""Value of a feature more, the same everywhere."""
WEIGHT_UNIT = 24
CHUNK = 1 << 15
"""Cells that a correction is computed of at a time."""
SIGNED = frozenset({"stem", "to1", "to2", "from2", "from1"})
"""Convolutions whose inputs have no activation function before them."""
STAGES = {"down0": 0, "up0": 0, "down1": 1, "up1": 1, "middle": 2}
"""Where the residual blocks are, and at which level: 1/2, 1/4 or 1/8 of the picture's size."""


NOTHING = torch.empty((0, 0, 0), dtype=torch.int16)
"""In place of an output that nobody asked for."""


class Integers(NamedTuple):
    """The network's outputs as both sides use them; eps int32, the rest int16.

    An exact network has no coef_index at t = 1, and neither scale_index nor coefs elsewhere.
    eps: [3, H, W] in 2**-14; coef_index: [192, H/8, W/8], log2 of the variance of W(ε − ε̂) in
    1/8; scale_index: [3, H, W], log2 of the final layer's scale over σ_1, in 1/8; coefs:
    [3, H, W], G→R, G→B, R→B in 1/64; features: int16 [features, H/pitch, W/pitch] if a
    :class:`Correction` asks for them.
    """

    eps: Tensor
    coef_index: Tensor = NOTHING
    scale_index: Tensor = NOTHING
    coefs: Tensor = NOTHING
    features: Tensor = NOTHING


@dataclass(frozen=True)
class Correction:
    """What an adaptation subtracts from ε̂, and what it asks for.

    The features are the channels at half the picture's size that ε̂ is made from.
    weights: float64 [features + 1, 12] of integers in 2**-24, the last for CONSTANT;
    pitch: the features wanted are those of every so many rows and columns of pixels (2, 4, 8).
    """

    weights: NDArray[np.float64]
    pitch: int

    def apply(self, eps: Tensor, features: Tensor) -> Tensor:
        """eps int32 [3, H, W] less what the weights make of features float [features, H/2, W/2].

        Exact: all sums are of integers below 2**53.
        """
        weights = torch.from_numpy(self.weights)
        parts = features.flatten(1).split(CHUNK, dim=1)
        sums = torch.cat([weights[:-1].T @ part.double() for part in parts], dim=1)
        sums += weights[-1, :, None] * CONSTANT
        cells = sums.reshape(1, -1, *features.shape[1:])
        shift = WEIGHT_UNIT - EPS_UNIT
        delta = ((F.pixel_shuffle(cells, 2)[0] + (1 << (shift - 1))) / (1 << shift)).floor()
        return (eps.double() - delta).clamp(-EPS_MAX, EPS_MAX).to(torch.int32)


def round_outputs(
    eps: Tensor, coef_logvar: Tensor | None = None, pixel: Tensor | None = None
) -> Integers:
    """Network outputs in real units (float64) as integers."""
    whole = (eps * (1 << EPS_UNIT)).round().clamp(-EPS_MAX, EPS_MAX).to(torch.int32)
    coef_index = scale_index = coefs = NOTHING
    if coef_logvar is not None:
        steps = coef_logvar.clamp(*COEF_LOGVAR_RANGE) * (LOG2E * OCTAVE)
        coef_index = steps.round().to(torch.int16)
    if pixel is not None:
        log_scale = pixel[:3].clamp(*PIXEL_LOGVAR_RANGE) * (0.5 * LOG2E * OCTAVE)
        scale_index = log_scale.round().to(torch.int16)
        shares = pixel[3:].clamp(-PIXEL_COEF_MAX, PIXEL_COEF_MAX) * COEF_UNIT
        coefs = shares.round().to(torch.int16)
    return Integers(whole, coef_index, scale_index, coefs)


def sum_reach(weight: Tensor, signed: bool) -> float:
    """Largest partial sum of any output channel, weight [out, in, k, k] of integers."""
    rows = weight.flatten(1).double()
    up, down = rows.clamp(min=0).sum(1), rows.clamp(max=0).neg().sum(1)
    low = ACTIVATION_MAX if signed else LEAKY_MAX
    return float((torch.maximum(up, down) * ACTIVATION_MAX + torch.minimum(up, down) * low).max())


def _bounded(r: Tensor) -> Tensor:
    """Clamps in place: fresh memory for every operation would cost more than the operation."""
    return r.clamp_(-RESIDUAL_MAX, RESIDUAL_MAX)


@contextmanager
def _plain_convolutions() -> Iterator[None]:
    """No algorithm that transforms its operands (NNPACK's Winograd and FFT)."""
    with torch.backends.nnpack.flags(enabled=False):
        yield


def _features(x: Tensor, height: int, width: int) -> Tensor:
    """x in 2**-16, [1, 3, H, W] -> x and its local detail, both integers, [1, 6, H, W]."""
    ones = x.new_ones(1, 1, height, width)
    total = F.avg_pool2d(x, 3, stride=1, padding=1, divisor_override=1)
    count = F.avg_pool2d(ones, 3, stride=1, padding=1, divisor_override=1)
    return torch.cat([x, x - torch.round(total / count)], dim=1)


@cache
def _check_convolutions() -> None:
    """ModelError if this machine's float32 convolutions round integers below 2**24.

    They do when an option such as ONEDNN_DEFAULT_FPMATH_MODE lets them use bfloat16.
    """
    a = torch.full((1, 96, 8, 8), float(ACTIVATION_MAX)) - torch.arange(8.0)
    weight = torch.full((16, 96, 3, 3), 9.0) - 2.0 * (torch.arange(3.0) == 1)
    with torch.inference_mode(), _plain_convolutions():
        found = F.conv2d(a, weight)
    true = F.conv2d(a.double(), weight.double())
    if not torch.equal(found.double(), true):
        raise ModelError(
            "this machine's convolutions are not exact; unset ONEDNN_DEFAULT_FPMATH_MODE and "
            "leave torch's float32 precision at 'highest'"
        )


class ExactNetwork:
    """Integer inference from a dictionary of tensors made by :func:`quantize`.

    weights: "NAME.weight" int16 [out, in, k, k]; "NAME.in_mul", "NAME.in_add" float32
    [timesteps, in], "NAME.out_mul", "NAME.out_add" float32 [timesteps, out]; "timesteps" int64.
    Raises ModelError if a partial sum could reach 2**24.
    """

    def __init__(self, tensors: dict[str, Tensor], blocks: tuple[int, int, int]) -> None:
        self.tensors = tensors
        self.rows = {int(t): row for row, t in enumerate(tensors["timesteps"])}
        self.weights: dict[str, Tensor] = {}
        self._constants: dict[str, tuple[Tensor, ...]] = {}
        self._packed: dict[str, PackedConv2d] = {}
        self._int8: dict[str, int8.Int8Conv2d] = {}
        _check_convolutions()
        for key, value in tensors.items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise ModelError(f"{key} holds numbers that are not finite")
            if key.endswith(("_mul", "_add")):
                self._constants[key] = value[:, None, :, None, None].unbind()
            if key.endswith(".weight"):
                name = key.removesuffix(".weight")
                weight = value.float()
                reach = sum_reach(weight, signed=name in SIGNED)
                if reach >= SUM_LIMIT:
                    raise ModelError(f"{name}: partial sums could reach {reach} >= 2**24")
                self.weights[name] = weight
                self._packed[name] = PackedConv2d(weight)
                if "." in name and float(weight.abs().max()) <= int8.WEIGHT_MAX:
                    self._int8[name] = int8.Int8Conv2d(weight)
        self._stages = {stage: self._busy(stage, blocks[k]) for stage, k in STAGES.items()}

    def _busy(self, stage: str, count: int) -> list[str]:
        """The blocks of a stage that do anything: what the others add is always 0."""

        def is_busy(name: str) -> bool:
            constants = (self.tensors[f"{name}.conv_out.out_{kind}"] for kind in ("mul", "add"))
            return any(bool(values.any()) for values in constants)

        return [name for k in range(count) if is_busy(name := f"{stage}.{k}")]

    def _constant(self, name: str, row: int) -> Tensor:
        return self._constants[name][row]

    def _quantize(self, x: Tensor, name: str, row: int) -> Tensor:
        """The input of convolution ``name``."""
        a = x * self._constant(f"{name}.in_mul", row)
        a += self._constant(f"{name}.in_add", row)
        if name in SIGNED:
            return a.round_().clamp_(-ACTIVATION_MAX, ACTIVATION_MAX)
        return F.leaky_relu_(a, LEAK).round_().clamp_(-LEAKY_MAX, ACTIVATION_MAX)

    def _conv(self, a: Tensor, name: str) -> Tensor:
        return self._packed[name](a)

    def _step(self, x: Tensor, name: str, row: int) -> Tensor:
        """A convolution's output in the units of what it is added to."""
        y = self._conv(self._quantize(x, name, row), name)
        y *= self._constant(f"{name}.out_mul", row)
        y += self._constant(f"{name}.out_add", row)
        return y.round_()

    def _stage(self, r: Tensor, stage: str, row: int) -> Tensor:
        """Residual blocks on ``r``, which they overwrite."""
        if r[0, 0].numel() >= INT8_PIXELS and self._has_int8(stage):
            return self._stage_of_int8(r, stage, row)
        for name in self._stages[stage]:
            y = self._conv(self._quantize(r, f"{name}.conv_in", row), f"{name}.conv_in")
            r = _bounded(r.add_(self._step(y, f"{name}.conv_out", row)))
        return r

    def _has_int8(self, stage: str) -> bool:
        names = product(self._stages[stage], ("conv_in", "conv_out"))
        every = all(f"{block}.{conv}" in self._int8 for block, conv in names)
        return every and int8.is_exact_here()

    def _stage_of_int8(self, r: Tensor, stage: str, row: int) -> Tensor:
        """:meth:`_stage` with 8-bit convolutions: the same integers, in memory channels last."""

        def constant(name: str) -> NDArray[np.float32]:
            return self.tensors[name][row].numpy()

        flat = r[0].permute(1, 2, 0).contiguous().numpy()
        planes = np.empty(flat.shape, np.uint8), np.empty(flat.shape, np.uint8)
        for block in self._stages[stage]:
            name, other = f"{block}.conv_in", f"{block}.conv_out"
            int8.split(flat, constant(f"{name}.in_mul"), constant(f"{name}.in_add"), planes)
            sums = self._int8[name](*planes)
            mul, add = constant(f"{other}.in_mul"), constant(f"{other}.in_add")
            int8.split_sums(sums, mul, add, planes)
            del sums  # of a large picture they are large
            sums = self._int8[other](*planes)
            mul, add = constant(f"{other}.out_mul"), constant(f"{other}.out_add")
            int8.accumulate(flat, sums, mul, add, RESIDUAL_MAX)
        return torch.from_numpy(flat).permute(2, 0, 1)[None]

    def __call__(self, x: Tensor, t: int, correction: Correction | None = None) -> Integers:
        """Evaluate at timestep ``t``: x int32 [3, H, W] in 2**-16, H and W multiples of 8.

        ``t`` is one of ``rows``.  With a correction it is applied to ε̂.
        """
        row = self.rows[t]
        with torch.inference_mode(), _plain_convolutions():
            state = x[None].float()
            features = F.pixel_unshuffle(_features(state, x.shape[1], x.shape[2]), 2)
            r0 = self._stage(_bounded(self._step(features, "stem", row)), "down0", row)
            r1 = _bounded(self._step(F.pixel_unshuffle(r0, 2), "to1", row))
            r1 = self._stage(r1, "down1", row)
            r2 = _bounded(self._step(F.pixel_unshuffle(r1, 2), "to2", row))
            r2 = self._stage(r2, "middle", row)
            r1 = _bounded(r1.add_(F.pixel_shuffle(self._step(r2, "from2", row), 2)))
            r1 = self._stage(r1, "up1", row)
            r0 = _bounded(r0.add_(F.pixel_shuffle(self._step(r1, "from1", row), 2)))
            r0 = self._stage(r0, "up0", row)
            head = self._quantize(r0, "eps_head", row)
            out = self._real(self._conv(head, "eps_head"), "eps_head", row)
            skip, gain = self.tensors["eps"][row].double()
            eps = state.double() * skip + F.pixel_shuffle(out, 2) * gain
            if t == 1:
                pixel = self._real(self._conv(head, "pixel_head"), "pixel_head", row)
                found = round_outputs(eps[0], pixel=F.pixel_shuffle(pixel, 2)[0])
            else:
                found = round_outputs(eps[0], self._coef_logvar(head, r2, row))
            if correction is None:
                return found
            features = (r0[0] * 2.0**-FEATURE_UNIT).round_()
            every = correction.pitch // 2
            return found._replace(
                eps=correction.apply(found.eps, features),
                features=features[:, ::every, ::every].to(torch.int16),
            )

    def _coef_logvar(self, head: Tensor, r2: Tensor, row: int) -> Tensor:
        """log of the variance of W(ε − ε̂), float64 [192, H/8, W/8]."""
        local = F.pixel_unshuffle(self._conv(head, "coef_local"), 4)
        both = self._quantize(torch.cat([local, r2], dim=1), "coef_hidden", row)
        hidden = self._quantize(self._conv(both, "coef_hidden"), "coef_head", row)
        return self._real(self._conv(hidden, "coef_head"), "coef_head", row)[0]

    def _real(self, y: Tensor, name: str, row: int) -> Tensor:
        """A head's output in real units, float64."""
        product = y.double() * self._constant(f"{name}.out_mul", row).double()
        return product + self._constant(f"{name}.out_add", row).double()
