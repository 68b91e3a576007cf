"""The exact network on a device of torch's, such as a GPU: the same integers as exact.py.

Activations and weights are integers.  The weights are taken apart so that no sum of a product of
matrices reaches 2**24, which float32 holds in whatever order a device adds, and GPUs are made for;
the products are added up in float64.  All else is one operation of torch's at a time on float32 or
float64, each rounded by IEEE 754 as in pointwise.py and heads.py: nothing here may be fused, for a
product and a sum in one instruction round once instead of twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from diffcodec.convolution import BORDER, FLOAT32_LIMIT
from diffcodec.correction import EPS_MAX, EPS_UNIT, FEATURE_UNIT, Correction
from diffcodec.errors import ModelError
from diffcodec.exact import (
    ACTIVATION_MAX,
    LIMITS,
    RESIDUAL_MAX,
    SIGNED,
    SIGNED_LIMITS,
    ExactNetwork,
    Integers,
)
from diffcodec.heads import COEF_SCALE, COEF_UNIT, PIXEL_COEF_MAX, PIXEL_SCALE
from diffcodec.network import LEAK
from diffcodec.objective import COEF_LOGVAR_RANGE, PIXEL_LOGVAR_RANGE

LOW_BITS, FEW = 7, 128
"""Products of so many channels with weights of so many bits cannot add up to FLOAT32_LIMIT."""


def find_device(name: str) -> torch.device:
    """The device of this name; ModelError if torch has none, or one without exact sums.

    The sums are tried where they are largest: those of a network's products in float32 (which some
    settings shorten to ten bits) and those that adaptation takes in float64.
    """
    try:
        device = torch.device(name)
        exact = [
            _is_exact(2, ACTIVATION_MAX, 4093, torch.float32, device),
            _is_exact(1024, (1 << 20) - 1, (1 << 20) - 1, torch.float64, device),
        ]
    except (RuntimeError, AssertionError, TypeError) as e:
        raise ModelError(f"device '{name}': not available on this machine") from e
    if not all(exact):
        raise ModelError(
            f"device '{name}' does not multiply whole numbers exactly; leave torch's float32 "
            "precision at 'highest'"
        )
    return device


def _is_exact(
    count: int, largest: int, other: int, dtype: torch.dtype, device: torch.device
) -> bool:
    """Whether 64 × 64 sums of ``count`` products of whole numbers up to these are right."""
    a = torch.full((64, count), float(largest), dtype=dtype, device=device)
    b = torch.full((count, 64), float(other), dtype=dtype, device=device)
    found = _product(a - torch.arange(64, dtype=dtype, device=device)[:, None], b).cpu().tolist()
    return found == [[float(count * (largest - k) * other)] * 64 for k in range(64)]


def _product(a: Tensor, b: Tensor) -> Tensor:
    return a @ b


class Part(NamedTuple):
    """Of a convolution's weights: scale times ``weight`` float32 [channels, out], of the channels
    from ``first`` on at one place of the kernel, down and right from its corner."""

    down: int
    right: int
    first: int
    scale: int
    weight: Tensor


def parts_of(weight: NDArray[np.int16]) -> Iterator[Part]:
    """Those of weights [out, in, k, k], whose products with activations float32 adds up exactly."""
    size = weight.shape[-1]
    for down, right in np.ndindex(size, size):
        own = weight[:, :, down, right].astype(np.int64).T
        for first, scale, part in _taken_apart(own, 0, 1):
            whole = torch.from_numpy(np.ascontiguousarray(part, np.float32))
            yield Part(down, right, first, scale, whole)


def _taken_apart(
    weight: NDArray[np.int64], first: int, scale: int
) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
    """(first channel, scale, weights): in halves of the channels, then of the bits."""
    if ACTIVATION_MAX * np.abs(weight).sum(axis=0).max() < FLOAT32_LIMIT:
        yield first, scale, weight
    elif len(weight) > FEW:
        half = len(weight) // 2
        yield from _taken_apart(weight[:half], first, scale)
        yield from _taken_apart(weight[half:], first + half, scale)
    else:
        half = 1 << (LOW_BITS - 1)
        low = ((weight + half) & (2 * half - 1)) - half
        yield first, scale, low
        yield from _taken_apart((weight - low) >> LOW_BITS, first, scale << LOW_BITS)


class DeviceNetwork:
    """An :class:`ExactNetwork` evaluated on a device; maps are [H, W, channels] there."""

    def __init__(self, network: ExactNetwork, device: torch.device) -> None:
        self.rows, self._stages, self._device = network.rows, network.stages, device
        self._eps_constants = network.tensors["eps"]
        self._sizes = {name: weight.shape for name, weight in network.weights.items()}
        self._parts = {
            name: [part._replace(weight=part.weight.to(device)) for part in parts_of(weight)]
            for name, weight in network.weights.items()
        }
        self._constants = {key: self._here(value) for key, value in network.constants.items()}

    def _here(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._device)

    def __call__(
        self, x: Tensor, t: int, correction: Correction | None = None, final: bool = False
    ) -> Integers:
        """As :meth:`ExactNetwork.__call__`, with x and the outputs in memory, not on the device."""
        row, state = self.rows[t], x.to(self._device)
        with torch.inference_mode():
            r0 = self._stage(self._start(_inputs(state), "stem", row), "down0", row)
            r1 = self._stage(self._start(r0, "to1", row, 2), "down1", row)
            r2 = self._stage(self._start(r1, "to2", row, 2), "middle", row)
            a = self._quantized(r2, "from2", row)
            r1 = self._stage(self._add_step(r1, a, "from2", row, 2), "up1", row)
            a = self._quantized(r1, "from1", row)
            r0 = self._stage(self._add_step(r0, a, "from1", row, 2), "up0", row)
            head = self._quantized(r0, "eps_head", row)
            eps = self._eps(head, state, row)
            if final:
                scale_index, coefs = self._pixel(head, row)
                out = Integers(eps.cpu(), scale_index=scale_index.cpu(), coefs=coefs.cpu())
            else:
                out = Integers(eps.cpu(), self._coef_index(head, r2, row).cpu())
            if correction is None:
                return out
            own = (r0 * 2.0**-FEATURE_UNIT).round().to(torch.int16).permute(2, 0, 1)
        # Corrections are compiled for the CPU; what is learnt from goes back to the device's sums.
        features = own.contiguous().cpu().numpy()
        correction.apply(out.eps.numpy(), features)
        return out._replace(features=torch.from_numpy(correction.wanted(features)))

    def _pair(self, name: str, row: int) -> tuple[Tensor, Tensor]:
        return self._constants[f"{name}_mul"][row], self._constants[f"{name}_add"][row]

    def _sums(self, a: Tensor, name: str) -> Tensor:
        """The convolution ``name`` of a map of integers, float64 [H, W, out].

        In the flat map with its border of zeros each place of the kernel is a shift; what is
        found beyond the right edge is left out.
        """
        (height, width), (outs, _, size, _) = a.shape[:2], self._sizes[name]
        pitch, inset = width + 2 * BORDER, BORDER - size // 2
        flat = F.pad(a, (0, 0, *(BORDER,) * 4)).flatten(0, 1)
        sums = flat.new_zeros((height * pitch, outs), dtype=torch.float64)
        count = height * pitch - 2 * BORDER
        for part in self._parts[name]:
            start = (part.down + inset) * pitch + part.right + inset
            own = flat[start : start + count, part.first : part.first + len(part.weight)]
            sums[:count].add_(_product(own, part.weight), alpha=part.scale)
        return sums.view(height, pitch, -1)[:, :width]

    def _quantized(self, x: Tensor, name: str, row: int, fold: int = 1) -> Tensor:
        """The input of convolution ``name`` from a residual or sums."""
        return self._activation(_folded(x, fold), name, *self._pair(f"{name}.in", row))

    def _activation(self, x: Tensor, name: str, mul: Tensor, add: Tensor) -> Tensor:
        v = x.float() * mul
        v = v + add
        if name not in SIGNED:
            v = torch.maximum(v, v * LEAK)
        low, high = SIGNED_LIMITS if name in SIGNED else LIMITS
        return v.round().clamp(low, high)

    def _add_step(self, r: Tensor, a: Tensor, name: str, row: int, fold: int = 1) -> Tensor:
        """r plus the convolution ``name`` of the map ``a``, in the residual's units."""
        mul, add = self._pair(f"{name}.out", row)
        moved = self._sums(a, name).float() * mul
        moved = (moved + add).round()
        return (r + _unfolded(moved, fold)).clamp(-RESIDUAL_MAX, RESIDUAL_MAX)

    def _start(self, x: Tensor, name: str, row: int, fold: int = 1) -> Tensor:
        """The residual of a level, which begins with the convolution ``name`` of ``x``."""
        a = self._quantized(x, name, row, fold)
        return self._add_step(torch.zeros((), device=self._device), a, name, row)

    def _stage(self, r: Tensor, stage: str, row: int) -> Tensor:
        for block in self._stages[stage]:
            name, other = f"{block}.conv_in", f"{block}.conv_out"
            a = self._quantized(r, name, row)
            r = self._add_step(r, self._quantized(self._sums(a, name), other, row), other, row)
        return r

    def _real(self, a: Tensor, name: str, row: int) -> Tensor:
        """Outputs of a head in real units, float64 [H, W, out]."""
        mul, add = self._pair(f"{name}.out", row)
        value = self._sums(a, name) * mul.double()
        return value + add.double()

    def _eps(self, head: Tensor, x: Tensor, row: int) -> Tensor:
        """ε̂ in 2**-14, int32 [3, H, W]."""
        skip, gain = self._eps_constants[row].tolist()
        noise = _pixels(self._real(head, "eps_head", row)) * gain
        value = x.double() * skip
        value = (value + noise) * (1 << EPS_UNIT)
        return value.round().clamp(-EPS_MAX, EPS_MAX).to(torch.int32)

    def _pixel(self, head: Tensor, row: int) -> tuple[Tensor, Tensor]:
        """Scale index and coefficients of the final layer, int16 [3, H, W] each."""
        value = _pixels(self._real(head, "pixel_head", row))
        scale = value[:3].clamp(*PIXEL_LOGVAR_RANGE) * PIXEL_SCALE
        shares = value[3:].clamp(-PIXEL_COEF_MAX, PIXEL_COEF_MAX) * COEF_UNIT
        return scale.round().to(torch.int16), shares.round().to(torch.int16)

    def _coef_index(self, head: Tensor, r2: Tensor, row: int) -> Tensor:
        """log2 of the variance of W(ε − ε̂) in 1/8, int16 [192, H/8, W/8]."""
        mul, add = self._pair("coef_hidden.in", row)
        count = len(mul) - r2.shape[2]
        local = _folded(self._sums(head, "coef_local"), 4)
        parts = ((local, slice(None, count)), (r2, slice(count, None)))
        a = torch.cat([self._activation(x, "coef_hidden", mul[s], add[s]) for x, s in parts], 2)
        hidden = self._quantized(self._sums(a, "coef_hidden"), "coef_head", row)
        value = self._real(hidden, "coef_head", row).clamp(*COEF_LOGVAR_RANGE) * COEF_SCALE
        return value.round().to(torch.int16).permute(2, 0, 1).contiguous()


def _inputs(x: Tensor) -> Tensor:
    """As heads.inputs: float32 [H/2, W/2, 24] of a state int32 [3, H, W]."""
    _, height, width = x.shape
    around = F.pad(x.long(), (1, 1, 1, 1))
    columns = around[:, :-2] + around[:, 1:-1] + around[:, 2:]
    total = columns[:, :, :-2] + columns[:, :, 1:-1] + columns[:, :, 2:]
    inside = F.pad(torch.ones((height, width), device=x.device), (1, 1, 1, 1))
    rows = inside[:-2] + inside[1:-1] + inside[2:]
    count = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    own = x.float()
    mean = (total.float() / count).round()
    both = torch.cat([own, own - mean])
    # Channels of a place: plane after plane, the four pixels of each together.
    places = both.view(6, height // 2, 2, width // 2, 2).permute(1, 3, 0, 2, 4)
    return places.reshape(height // 2, width // 2, 24)


def _pixels(x: Tensor) -> Tensor:
    """[planes, H, W] of [H/2, W/2, 4 · planes], the reverse of how the inputs are folded."""
    height, width, count = x.shape
    places = x.view(height, width, count // 4, 2, 2).permute(2, 0, 3, 1, 4)
    return places.reshape(count // 4, 2 * height, 2 * width)


def _folded(x: Tensor, n: int) -> Tensor:
    """[H/n, W/n, n · n · C] of [H, W, C]: the channels of one place after another."""
    height, width, count = x.shape
    places = x.reshape(height // n, n, width // n, n, count).transpose(1, 2)
    return places.reshape(height // n, width // n, n * n * count)


def _unfolded(x: Tensor, n: int) -> Tensor:
    """The reverse of :func:`_folded`."""
    height, width, count = x.shape
    places = x.reshape(height, width, n, n, count // (n * n)).transpose(1, 2)
    return places.reshape(n * height, n * width, -1)
