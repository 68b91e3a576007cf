"""The codec network in integers: the same result on every machine.

Activations are quantised to 11 bits and the weights of every output channel to integers such that
no partial sum reaches 2**31 *by construction*: then a convolution of integers, or one in float64,
gives the same sums in any order, on any CPU, thread count, instruction set or GPU, and where none
reaches 2**24, as in the first models, so does one in float32 (convolution.py).
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
from numpy.typing import NDArray
from torch import Tensor

from diffcodec.convolution import BORDER, I16, I32, Conv2d, empty_map
from diffcodec.correction import EPS_MAX, EPS_UNIT, Correction, features_of
from diffcodec.errors import ModelError
from diffcodec.heads import (
    COEF_SCALE,
    COEF_UNIT,
    PIXEL_COEF_MAX,
    PIXEL_SCALE,
    coef_into,
    eps_into,
    inputs,
    pixel_into,
)
from diffcodec.network import LEAK
from diffcodec.objective import COEF_LOGVAR_RANGE, PIXEL_LOGVAR_RANGE
from diffcodec.pointwise import F32, accumulate, quantize_into

ACTIVATION_MAX = 2047
LEAKY_MAX = 512
"""Activations are in [-LEAKY_MAX, ACTIVATION_MAX] after the activation function."""
LIMITS, SIGNED_LIMITS = (-LEAKY_MAX, ACTIVATION_MAX), (-ACTIVATION_MAX, ACTIVATION_MAX)
SUM_LIMIT = 1 << 31
RESIDUAL_MAX = 1 << 22
X_UNIT = 16
SIGNED = frozenset({"stem", "to1", "to2", "from2", "from1"})
"""Convolutions whose inputs have no activation function before them."""
STAGES = {"down0": 0, "up0": 0, "down1": 1, "up1": 1, "middle": 2}
"""Where the residual blocks are, and at which level: 1/2, 1/4 or 1/8 of the picture's size."""
FOLDED = {("to1", 0): 2, ("to2", 0): 2, ("from2", 1): 2, ("from1", 1): 2, ("coef_hidden", 0): 4}
"""Inputs (0) and outputs (1) of convolutions where so many places squared are one place."""


ALL = slice(0, None)
"""Channels."""
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


def mean(a: Tensor, b: Tensor) -> Tensor:
    """⌊(a + b)/2⌋ of integers, without the sum, which may not fit."""
    return (a ^ b).bitwise_right_shift_(1).add_(a & b)


def round_outputs(
    eps: Tensor, coef_logvar: Tensor | None = None, pixel: Tensor | None = None
) -> Integers:
    """Network outputs in real units (float64) as integers."""
    whole = (eps * (1 << EPS_UNIT)).round().clamp(-EPS_MAX, EPS_MAX).to(torch.int32)
    coef_index = scale_index = coefs = NOTHING
    if coef_logvar is not None:
        steps = coef_logvar.clamp(*COEF_LOGVAR_RANGE) * COEF_SCALE
        coef_index = steps.round().to(torch.int16)
    if pixel is not None:
        log_scale = pixel[:3].clamp(*PIXEL_LOGVAR_RANGE) * PIXEL_SCALE
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


class ExactNetwork:
    """Integer inference from a dictionary of tensors made by :func:`quantize`.

    tensors: "NAME.weight" int16 [out, in, k, k]; "NAME.in_mul", "NAME.in_add" float32
    [timesteps, in], "NAME.out_mul", "NAME.out_add" float32 [timesteps, out]; "timesteps" int64.
    Raises ModelError if a partial sum could reach 2**31.

    Attributes: rows, where the constants of each timestep stand; weights and constants by name,
    channels in the order of maps in memory; stages, their residual blocks that do anything.
    """

    def __init__(self, tensors: dict[str, Tensor], blocks: tuple[int, int, int]) -> None:
        self.tensors = tensors
        self.rows = {int(t): row for row, t in enumerate(tensors["timesteps"])}
        self.weights: dict[str, I16] = {}
        self._convolutions: dict[str, Conv2d] = {}
        self.constants: dict[str, F32] = {}
        for key, value in tensors.items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise ModelError(f"{key} holds numbers that are not finite")
            if key.endswith(".weight"):
                name = key.removesuffix(".weight")
                reach = sum_reach(value, signed=name in SIGNED)
                if reach >= SUM_LIMIT:
                    raise ModelError(f"{name}: partial sums could reach {reach} >= 2**31")
                self._add(name, value, reach)
        self.stages = {stage: self._busy(stage, blocks[k]) for stage, k in STAGES.items()}

    def _add(self, name: str, weight: Tensor, reach: float) -> None:
        """Take over a convolution and its constants, channels in the order they have here."""
        ins, outs = (_order(name, side, weight.shape[1 - side]) for side in (0, 1))
        self.weights[name] = np.ascontiguousarray(weight.numpy()[outs][:, ins], np.int16)
        self._convolutions[name] = Conv2d(self.weights[name], reach)
        for kind, order in (("in", ins), ("out", outs)):
            for key in (f"{name}.{kind}_mul", f"{name}.{kind}_add"):
                if key in self.tensors:
                    own = self.tensors[key].numpy()[:, order]
                    self.constants[key] = np.ascontiguousarray(own, np.float32)

    def _busy(self, stage: str, count: int) -> list[str]:
        """The blocks of a stage that do anything: what the others add is always 0."""

        def is_busy(name: str) -> bool:
            constants = (self.tensors[f"{name}.conv_out.out_{kind}"] for kind in ("mul", "add"))
            return any(bool(values.any()) for values in constants)

        return [name for k in range(count) if is_busy(name := f"{stage}.{k}")]

    def _input(self, shape: tuple[int, int], name: str) -> I16:
        return empty_map(*shape, self.weights[name].shape[1])

    def _quantized(self, x: F32, shape: tuple[int, int], name: str, row: int, fold: int = 1) -> I16:
        """The input of convolution ``name``, a map of ``shape``, from a residual."""
        a = self._input(shape, name)
        self._fill(a, x, shape, name, row, fold)
        return a

    def _between(self, a: I16, shape: tuple[int, int], name: str, other: str, row: int) -> I16:
        """The input of convolution ``other``, a map of ``shape``, from ``name`` of ``a``."""
        to = self._input(shape, other)

        def use(sums: I32, first: int, stop: int) -> None:
            own = to[first : stop + 2 * BORDER]
            self._fill(own, sums, (stop - first, shape[1]), other, row)

        self._convolutions[name].by_rows(a, use)
        return to

    def _fill(
        self,
        a: I16,
        x: F32 | I32,
        shape: tuple[int, int],
        name: str,
        row: int,
        fold: int = 1,
        channels: slice = ALL,
    ) -> None:
        """``channels`` of a map of ``shape``, the input of ``name``, from a residual or sums."""
        mul, add = (part[channels] for part in self._pair(f"{name}.in", row))
        limits, leak = (SIGNED_LIMITS, 1.0) if name in SIGNED else (LIMITS, LEAK)
        quantize_into(a, channels.start, x, shape, mul, add, limits, leak, fold)

    def _pair(self, name: str, row: int) -> tuple[F32, F32]:
        """Multipliers and addends of all channels."""
        return self.constants[f"{name}_mul"][row], self.constants[f"{name}_add"][row]

    def _add_step(self, r: F32, a: I16, name: str, row: int, fold: int = 1) -> F32:
        """r += the convolution ``name`` of the map ``a``, in the residual's units."""
        mul, add = self._pair(f"{name}.out", row)

        def use(sums: I32, first: int, stop: int) -> None:
            accumulate(r[fold * first : fold * stop], sums, mul, add, RESIDUAL_MAX, fold)

        self._convolutions[name].by_rows(a, use)
        return r

    def _start(self, x: F32, shape: tuple[int, int], name: str, row: int, fold: int = 1) -> F32:
        """The residual of a level, which begins with the convolution ``name`` of ``x``."""
        r = np.zeros((*shape, len(self.weights[name])), np.float32)
        return self._add_step(r, self._quantized(x, shape, name, row, fold), name, row)

    def _stage(self, r: F32, stage: str, row: int) -> F32:
        """Residual blocks on ``r``, which they overwrite."""
        shape = r.shape[0], r.shape[1]
        for block in self.stages[stage]:
            name, other = f"{block}.conv_in", f"{block}.conv_out"
            a = self._quantized(r, shape, name, row)
            self._add_step(r, self._between(a, shape, name, other, row), other, row)
        return r

    def __call__(
        self, x: Tensor, t: int, correction: Correction | None = None, final: bool = False
    ) -> Integers:
        """Evaluate at timestep ``t``: x int32 [3, H, W] in 2**-16, H and W multiples of 8.

        ``t`` is one of ``rows``.  With a correction it is applied to ε̂; ``final``: for the final
        layer, else for a step.
        """
        row, state = self.rows[t], np.ascontiguousarray(x.numpy())
        height, width = state.shape[1:]
        half, quarter, eighth = ((height // n, width // n) for n in (2, 4, 8))
        r0 = self._stage(self._start(inputs(state), half, "stem", row), "down0", row)
        r1 = self._stage(self._start(r0, quarter, "to1", row, 2), "down1", row)
        r2 = self._stage(self._start(r1, eighth, "to2", row, 2), "middle", row)
        a = self._quantized(r2, eighth, "from2", row)
        r1 = self._stage(self._add_step(r1, a, "from2", row, 2), "up1", row)
        a = self._quantized(r1, quarter, "from1", row)
        r0 = self._stage(self._add_step(r0, a, "from1", row, 2), "up0", row)
        head = self._quantized(r0, half, "eps_head", row)
        eps = self._eps(head, state, row)
        out = Integers(torch.from_numpy(eps))
        if final:
            found = self._pixel(head, state.shape, row)
            scale_index, coefs = (torch.from_numpy(part) for part in found)
            out = out._replace(scale_index=scale_index, coefs=coefs)
        else:
            out = out._replace(coef_index=torch.from_numpy(self._coef_index(head, r2, row)))
        if correction is None:
            return out
        own = features_of(r0)
        correction.apply(eps, own)
        return out._replace(features=torch.from_numpy(correction.wanted(own)))

    def _eps(self, head: I16, x: I32, row: int) -> I32:
        """ε̂ in 2**-14, [3, H, W]."""
        found, constants = np.empty(x.shape, np.int32), self._pair("eps_head.out", row)
        skip, gain = self.tensors["eps"][row].tolist()

        def use(sums: I32, first: int, stop: int) -> None:
            rows = np.s_[:, 2 * first : 2 * stop]
            eps_into(found[rows], sums, *constants, x[rows], skip, gain)

        self._convolutions["eps_head"].by_rows(head, use)
        return found

    def _pixel(self, head: I16, shape: tuple[int, ...], row: int) -> tuple[I16, I16]:
        """Scale index and coefficients of the final layer, [3, H, W] each."""
        scale, coefs = np.empty(shape, np.int16), np.empty(shape, np.int16)
        constants = self._pair("pixel_head.out", row)

        def use(sums: I32, first: int, stop: int) -> None:
            rows = np.s_[:, 2 * first : 2 * stop]
            pixel_into(scale[rows], coefs[rows], sums, *constants)

        self._convolutions["pixel_head"].by_rows(head, use)
        return scale, coefs

    def _coef_index(self, head: I16, r2: F32, row: int) -> I16:
        """log2 of the variance of W(ε − ε̂) in 1/8, [192, H/8, W/8]."""
        height, width, count = r2.shape
        a = self._input((height, width), "coef_hidden")
        local = self.weights["coef_hidden"].shape[1] - count
        self._fill(a, r2, (height, width), "coef_hidden", row, channels=slice(local, None))

        def use_local(sums: I32, first: int, stop: int) -> None:
            own, shape = a[first // 4 : stop // 4 + 2 * BORDER], ((stop - first) // 4, width)
            self._fill(own, sums, shape, "coef_hidden", row, 4, slice(0, local))

        self._convolutions["coef_local"].by_rows(head, use_local, step=4)
        hidden = self._between(a, (height, width), "coef_hidden", "coef_head", row)
        constants = self._pair("coef_head.out", row)
        found = np.empty((len(constants[0]), height, width), np.int16)

        def use(sums: I32, first: int, stop: int) -> None:
            coef_into(found[:, first:stop], sums[:, :width], *constants)

        self._convolutions["coef_head"].by_rows(hidden, use)
        return found


def _order(name: str, side: int, count: int) -> NDArray[np.int64]:
    """Where each input (side 0) or output (1) channel of a convolution stands in its tensors.

    Channels of 2×2 or 4×4 places that are one: there the places of each stand together, here the
    channels of each place, as in memory.
    """
    fold = FOLDED.get((name, side), 1)
    folded = 16 * fold**2 if name == "coef_hidden" else count
    order = np.arange(folded).reshape(-1, fold**2).T.ravel()
    return np.concatenate([order, np.arange(folded, count)])
