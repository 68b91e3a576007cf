"""The codec network in integers carried by float32: the same result on every machine.

An integer below 2**24 is exact in float32, and so is any sum of such integers, in any order,
while every partial sum stays below 2**24.  Activations are quantised to 11 bits and the weights
of every output channel to integers such that this bound holds *by construction*; then an
ordinary convolution gives the same integers on any CPU, thread count, instruction set or GPU,
and so does one of 16-bit integers (convolution.py).
Between convolutions stand single multiplications, additions, roundings and clamps, each exact
under IEEE 754.  FiLM, biases and all scales are folded into one multiplier and one addend per
channel and timestep, so the network exists for the timesteps of the coding plans only.

    activation   a = clamp(round(act(x · mul + add)), low, 2047),  act(v) = max(v, v / 4) and
                 low = −512, or act(v) = v and low = −2047
    residual     r ← clamp(r + round(conv(a) · mul + add)),   r in a fixed unit per resolution
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from diffcodec.convolution import I16, I32, Conv2d, empty_map
from diffcodec.correction import EPS_MAX, EPS_UNIT, Correction, features_of
from diffcodec.errors import ModelError
from diffcodec.network import LEAK
from diffcodec.objective import COEF_LOGVAR_RANGE, LOG2E, PIXEL_LOGVAR_RANGE
from diffcodec.pointwise import F32, accumulate, quantize_into
from diffcodec.tables import OCTAVE

ACTIVATION_MAX = 2047
LEAKY_MAX = 512
"""Activations are in [-LEAKY_MAX, ACTIVATION_MAX] after the activation function."""
LIMITS, SIGNED_LIMITS = (-LEAKY_MAX, ACTIVATION_MAX), (-ACTIVATION_MAX, ACTIVATION_MAX)
SUM_LIMIT = 1 << 24
RESIDUAL_MAX = 1 << 22
X_UNIT = 16
COEF_UNIT = 64
PIXEL_COEF_MAX = 2.0
SIGNED = frozenset({"stem", "to1", "to2", "from2", "from1"})
"""Convolutions whose inputs have no activation function before them."""
STAGES = {"down0": 0, "up0": 0, "down1": 1, "up1": 1, "middle": 2}
"""Where the residual blocks are, and at which level: 1/2, 1/4 or 1/8 of the picture's size."""
FOLDED = {("to1", 0): 2, ("to2", 0): 2, ("from2", 1): 2, ("from1", 1): 2, ("coef_hidden", 0): 4}
"""Inputs (0) and outputs (1) of convolutions where so many places squared are one place."""


NOTHING = torch.empty((0, 0, 0), dtype=torch.int16)
"""In place of an output that nobody asked for."""


class Integers(NamedTuple):
    """The network's outputs as both sides use them; eps int32, the rest int16.

    An exact network has no coef_index for the final layer, and neither scale_index nor coefs for a
    step.
    eps: [3, H, W] in 2**-14; coef_index: [192, H/8, W/8], log2 of the variance of W(ε − ε̂) in
    1/8; scale_index: [3, H, W], log2 of the final layer's scale over σ_t, in 1/8; coefs:
    [3, H, W], G→R, G→B, R→B in 1/64; features: int16, as :meth:`Correction.wanted` has them, if
    there is one.
    """

    eps: Tensor
    coef_index: Tensor = NOTHING
    scale_index: Tensor = NOTHING
    coefs: Tensor = NOTHING
    features: Tensor = NOTHING


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


def _features(x: Tensor, height: int, width: int) -> Tensor:
    """x in 2**-16, [1, 3, H, W] -> x and its local detail, both integers, [1, 6, H, W]."""
    ones = x.new_ones(1, 1, height, width)
    total = F.avg_pool2d(x, 3, stride=1, padding=1, divisor_override=1)
    count = F.avg_pool2d(ones, 3, stride=1, padding=1, divisor_override=1)
    return torch.cat([x, x - torch.round(total / count)], dim=1)


class ExactNetwork:
    """Integer inference from a dictionary of tensors made by :func:`quantize`.

    weights: "NAME.weight" int16 [out, in, k, k]; "NAME.in_mul", "NAME.in_add" float32
    [timesteps, in], "NAME.out_mul", "NAME.out_add" float32 [timesteps, out]; "timesteps" int64.
    Raises ModelError if a partial sum could reach 2**24.
    """

    def __init__(self, tensors: dict[str, Tensor], blocks: tuple[int, int, int]) -> None:
        self.tensors = tensors
        self.rows = {int(t): row for row, t in enumerate(tensors["timesteps"])}
        self.weights: dict[str, I16] = {}
        self._convolutions: dict[str, Conv2d] = {}
        self._constants: dict[str, F32] = {}
        for key, value in tensors.items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise ModelError(f"{key} holds numbers that are not finite")
            if key.endswith(".weight"):
                name = key.removesuffix(".weight")
                reach = sum_reach(value, signed=name in SIGNED)
                if reach >= SUM_LIMIT:
                    raise ModelError(f"{name}: partial sums could reach {reach} >= 2**24")
                self._add(name, value)
        self._stages = {stage: self._busy(stage, blocks[k]) for stage, k in STAGES.items()}

    def _add(self, name: str, weight: Tensor) -> None:
        """Take over a convolution and its constants, channels in the order they have here."""
        ins, outs = (_order(name, side, weight.shape[1 - side]) for side in (0, 1))
        self.weights[name] = np.ascontiguousarray(weight.numpy()[outs][:, ins], np.int16)
        self._convolutions[name] = Conv2d(self.weights[name])
        for kind, order in (("in", ins), ("out", outs)):
            for key in (f"{name}.{kind}_mul", f"{name}.{kind}_add"):
                if key in self.tensors:
                    own = self.tensors[key].numpy()[:, order]
                    self._constants[key] = np.ascontiguousarray(own, np.float32)

    def _busy(self, stage: str, count: int) -> list[str]:
        """The blocks of a stage that do anything: what the others add is always 0."""

        def is_busy(name: str) -> bool:
            constants = (self.tensors[f"{name}.conv_out.out_{kind}"] for kind in ("mul", "add"))
            return any(bool(values.any()) for values in constants)

        return [name for k in range(count) if is_busy(name := f"{stage}.{k}")]

    def _quantized(
        self, x: F32 | I32, shape: tuple[int, int], name: str, row: int, fold: int = 1
    ) -> I16:
        """The input of convolution ``name``, a map of ``shape``, from a residual or from sums."""
        mul, add = self._pair(f"{name}.in", row)
        a = empty_map(*shape, len(mul))
        limits, leak = (SIGNED_LIMITS, 1.0) if name in SIGNED else (LIMITS, LEAK)
        quantize_into(a, 0, x, shape, mul, add, limits, leak, fold)
        return a

    def _pair(self, name: str, row: int) -> tuple[F32, F32]:
        """Multipliers and addends of all channels."""
        return self._constants[f"{name}_mul"][row], self._constants[f"{name}_add"][row]

    def _conv(self, a: I16, name: str) -> I32:
        return self._convolutions[name](a)

    def _add_step(self, r: F32, a: I16, name: str, row: int, fold: int = 1) -> F32:
        """r += the convolution ``name`` of the map ``a``, in the residual's units."""
        accumulate(r, self._conv(a, name), *self._pair(f"{name}.out", row), RESIDUAL_MAX, fold)
        return r

    def _start(self, x: F32, shape: tuple[int, int], name: str, row: int, fold: int = 1) -> F32:
        """The residual of a level, which begins with the convolution ``name`` of ``x``."""
        r = np.zeros((*shape, len(self.weights[name])), np.float32)
        return self._add_step(r, self._quantized(x, shape, name, row, fold), name, row)

    def _stage(self, r: F32, stage: str, row: int) -> F32:
        """Residual blocks on ``r``, which they overwrite."""
        shape = r.shape[0], r.shape[1]
        for block in self._stages[stage]:
            name, other = f"{block}.conv_in", f"{block}.conv_out"
            sums = self._conv(self._quantized(r, shape, name, row), name)
            self._add_step(r, self._quantized(sums, shape, other, row), other, row)
        return r

    def __call__(
        self, x: Tensor, t: int, correction: Correction | None = None, final: bool = False
    ) -> Integers:
        """Evaluate at timestep ``t``: x int32 [3, H, W] in 2**-16, H and W multiples of 8.

        ``t`` is one of ``rows``.  With a correction it is applied to ε̂; ``final``: for the final
        layer, else for a step.
        """
        row, (height, width) = self.rows[t], x.shape[1:]
        with torch.inference_mode():
            state = x[None].float()
            features = F.pixel_unshuffle(_features(state, height, width), 2)
            flat: F32 = features[0].permute(1, 2, 0).contiguous().numpy()
            half, quarter, eighth = ((height // n, width // n) for n in (2, 4, 8))
            r0 = self._stage(self._start(flat, half, "stem", row), "down0", row)
            r1 = self._stage(self._start(r0, quarter, "to1", row, 2), "down1", row)
            r2 = self._stage(self._start(r1, eighth, "to2", row, 2), "middle", row)
            a = self._quantized(r2, eighth, "from2", row)
            r1 = self._stage(self._add_step(r1, a, "from2", row, 2), "up1", row)
            a = self._quantized(r1, quarter, "from1", row)
            r0 = self._stage(self._add_step(r0, a, "from1", row, 2), "up0", row)
            head = self._quantized(r0, half, "eps_head", row)
            out = self._real(self._conv(head, "eps_head"), half, "eps_head", row)
            skip, gain = self.tensors["eps"][row].double()
            eps = state.double() * skip + F.pixel_shuffle(out, 2) * gain
            if final:
                pixel = self._real(self._conv(head, "pixel_head"), half, "pixel_head", row)
                found = round_outputs(eps[0], pixel=F.pixel_shuffle(pixel, 2)[0])
            else:
                found = round_outputs(eps[0], self._coef_logvar(head, r2, row))
            if correction is None:
                return found
            own = features_of(r0)
            correction.apply(found.eps.numpy(), own)
            return found._replace(features=torch.from_numpy(correction.wanted(own)))

    def _coef_logvar(self, head: I16, r2: F32, row: int) -> Tensor:
        """log of the variance of W(ε − ε̂), float64 [192, H/8, W/8]."""
        shape = r2.shape[0], r2.shape[1]
        mul, add = self._pair("coef_hidden.in", row)
        local = len(mul) - r2.shape[2]
        a = empty_map(*shape, len(mul))
        sums = self._conv(head, "coef_local")
        quantize_into(a, 0, sums, shape, mul[:local], add[:local], LIMITS, LEAK, 4)
        quantize_into(a, local, r2, shape, mul[local:], add[local:], LIMITS, LEAK)
        hidden = self._quantized(self._conv(a, "coef_hidden"), shape, "coef_head", row)
        return self._real(self._conv(hidden, "coef_head"), shape, "coef_head", row)[0]

    def _real(self, sums: I32, shape: tuple[int, int], name: str, row: int) -> Tensor:
        """A head's output in real units, float64 [1, out, H, W]."""
        mul, add = (torch.from_numpy(part).double() for part in self._pair(f"{name}.out", row))
        found = torch.from_numpy(sums)[: shape[0], : shape[1], : len(mul)].double()
        return (found * mul + add).permute(2, 0, 1)[None]


def _order(name: str, side: int, count: int) -> NDArray[np.int64]:
    """Where each input (side 0) or output (1) channel of a convolution stands in its tensors.

    Channels of 2×2 or 4×4 places that are one: there the places of each stand together, here the
    channels of each place, as in memory.
    """
    fold = FOLDED.get((name, side), 1)
    folded = 16 * fold**2 if name == "coef_hidden" else count
    order = np.arange(folded).reshape(-1, fold**2).T.ravel()
    return np.concatenate([order, np.arange(folded, count)])
