"""From a trained network to the integers of exact.py: ranges, scales, constants per timestep."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from diffcodec.exact import (
    ACTIVATION_MAX,
    LEAKY_MAX,
    SIGNED,
    STAGES,
    SUM_LIMIT,
    X_UNIT,
    sum_reach,
)
from diffcodec.network import DATA_VARIANCE, CodecUNet, Conv2d
from diffcodec.schedule import Schedule


class _Ranges:
    """Largest activations seen by every convolution, per timestep and input channel.

    After the activation function an integer reaches from −LEAKY_MAX to ACTIVATION_MAX, so what
    is below zero there counts more.
    """

    def __init__(self, network: CodecUNet) -> None:
        self.inputs: dict[str, dict[int, Tensor]] = {}
        self.residual = [0.0, 0.0, 0.0]
        self.t = 0
        self._handles = []
        for name, module in network.named_modules():
            if isinstance(module, Conv2d):
                self._handles.append(module.register_forward_pre_hook(self._input_hook(name)))
            # What enters or leaves a residual stream: the entries themselves, and of a stage its
            # blocks ("down0.1"), not the convolutions inside them ("down0.1.conv_in").
            level = _LEVELS.get(name.split(".")[0])
            if level is not None and name.count(".") == (0 if name in _LEVEL_ENTRIES else 1):
                self._handles.append(module.register_forward_hook(self._output_hook(level)))

    def _input_hook(self, name: str):  # type: ignore[no-untyped-def]
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen = self.inputs.setdefault(name, {})
            below = 1.0 if name in SIGNED else ACTIVATION_MAX / LEAKY_MAX
            largest = torch.maximum(args[0], -below * args[0]).amax(dim=(0, 2, 3))
            seen[self.t] = torch.maximum(seen.get(self.t, largest), largest)

        return hook

    def _output_hook(self, level: int):  # type: ignore[no-untyped-def]
        def hook(_module: nn.Module, _args: object, out: Tensor) -> None:
            self.residual[level] = max(self.residual[level], float(out.abs().max()))

        return hook

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


_LEVEL_ENTRIES = {"stem", "to1", "to2", "from2", "from1"}
_LEVELS = {"stem": 0, "from1": 0, "to1": 1, "from2": 1, "to2": 2} | STAGES

WEIGHT_BITS = (16, 8)
"""Of a weight: 16, or 8 in the blocks at 1/4 and 1/8 of the picture's size, which can do with less.
Processors that multiply bytes (tiles.py) then have half as much to do there."""

SHUT = 0.003
"""A residual block whose last gains are smaller than this on average is left out.

Some blocks shut themselves in training.  In `cifar10` two have gains of 0.001 where those of the
others are 0.2 to 0.4, and without them, biases (0.01) included, every step takes the same bits to
0.05 %.
"""


def quantize(
    network: CodecUNet,
    schedule: Schedule,
    timesteps: list[int],
    images: Tensor,
    generator: torch.Generator,
    weight_bits: int = WEIGHT_BITS[0],
) -> dict[str, Tensor]:
    """The integer network's tensors for ``timesteps``, calibrated on ``images``.

    images: uint8 [N, 3, H, W], H and W multiples of 8, never of a test set.  An activation's
    scale is s_c · g_t (channel × timestep): per channel as far as the weights can absorb it.
    weight_bits: one of WEIGHT_BITS.
    """
    ranges = _Ranges(network)
    x_0 = images.float() / 127.5 - 1.0
    with torch.inference_mode():
        for t in timesteps:
            ranges.t = t
            abar = float(schedule.at(schedule.alphas_cumprod, t))
            noise = torch.randn(x_0.shape, generator=generator)
            x_t = math.sqrt(abar) * x_0 + math.sqrt(1.0 - abar) * noise
            log_snr = float(schedule.at(schedule.log_snr, t))
            network(x_t, torch.full((len(x_0),), log_snr))
    ranges.remove()
    return _Builder(network, schedule, timesteps, ranges, weight_bits).build()


class _Builder:
    """Folds a float network and its activation ranges into integers and constants."""

    def __init__(
        self,
        network: CodecUNet,
        schedule: Schedule,
        timesteps: list[int],
        ranges: _Ranges,
        weight_bits: int,
    ) -> None:
        self.network, self.timesteps, self.weight_bits = network, timesteps, weight_bits
        self.convs = {n: m for n, m in network.named_modules() if isinstance(m, Conv2d)}
        self.unit = [2.0 ** (math.ceil(math.log2(1.5 * top)) - 20) for top in ranges.residual]
        self.log_snr = torch.tensor([float(schedule.at(schedule.log_snr, t)) for t in timesteps])
        with torch.inference_mode():
            self.emb = network.embed_log_snr(self.log_snr)
        self.scale: dict[str, Tensor] = {}  # s_c, float64 [in]
        self.gain: dict[str, Tensor] = {}  # g_t, float64 [timesteps]
        self.out: dict[str, Tensor] = {"timesteps": torch.tensor(timesteps)}
        self.step: dict[str, Tensor] = {}  # real value of one unit of output, per t: [T, out]
        for name in self.convs:
            source = "eps_head" if name in {"pixel_head", "coef_local"} else name
            seen = torch.stack([ranges.inputs[source][t].double() for t in timesteps])
            largest = float(seen.max()) or 1.0  # an input that is always zero takes any scale
            # Floors of 1/1000: a channel or timestep that was silent in calibration may not be
            # elsewhere, and then it is clamped instead of divided by nothing.
            self.gain[name] = (seen.amax(dim=1) / largest).clamp(min=1e-3)
            relative = (seen / self.gain[name][:, None]).amax(dim=0)
            self.scale[name] = relative.clamp(min=1e-3 * largest) / ACTIVATION_MAX

    def build(self) -> dict[str, Tensor]:
        for name in self.convs:
            self._weights(name)
        self._stem_input()
        for level, names in enumerate((["to1", "eps_head"], ["to2", "from1"], ["from2"])):
            for name in names:
                self._residual_input(name, level)
        for stage, level in STAGES.items():
            for k, block in enumerate(getattr(self.network, stage)):
                name = f"{stage}.{k}"
                self._residual_input(f"{name}.conv_in", level)
                self._film_input(f"{name}.conv_in", f"{name}.conv_out", block.film)
                self._residual_output(f"{name}.conv_out", level)
                if float(block.conv_out.gain.detach().abs().mean()) < SHUT:
                    self.out[f"{name}.conv_out.out_mul"].zero_()
                    self.out[f"{name}.conv_out.out_add"].zero_()
        for name in _LEVEL_ENTRIES:
            self._residual_output(name, _LEVELS[name])
        self._coef_inputs()
        for name in ("eps_head", "pixel_head", "coef_head"):
            self._output(name, 1.0)
        abar = torch.sigmoid(self.log_snr.double())
        total = DATA_VARIANCE * abar + (1.0 - abar)
        skip = (1.0 - abar).sqrt() / total / (1 << X_UNIT)
        self.out["eps"] = torch.stack([skip, (DATA_VARIANCE * abar / total).sqrt()], 1).float()
        return {k: v.contiguous() for k, v in self.out.items()}

    def _weights(self, name: str) -> None:
        conv = self.convs[name]
        weight = conv.kernel().detach().double()
        weight = weight * self.scale[name][None, :, None, None]
        coarse = STAGES.get(name.split(".")[0], 0) > 0
        most = (1 << ((self.weight_bits if coarse else WEIGHT_BITS[0]) - 1)) - 1
        fit = []
        for row in weight:
            reach = max(sum_reach(row[None], name in SIGNED), 1e-30)
            k = (SUM_LIMIT - 1) / reach
            while sum_reach((row[None] * k).round(), name in SIGNED) >= SUM_LIMIT:
                k *= 0.999
            fit.append(min(k, most / max(float(row.abs().max()), 1e-30)))
        k_out = torch.tensor(fit, dtype=torch.float64)
        integers = (weight * k_out[:, None, None, None]).round()
        self.out[f"{name}.weight"] = integers.to(torch.int16)
        self.step[name] = self.gain[name][:, None] / k_out[None, :]

    def _input(self, name: str, mul: Tensor, add: Tensor) -> None:
        """Real value = integer · mul + add, [T, in] each, becomes the input of ``name``."""
        grid = self.scale[name][None, :] * self.gain[name][:, None]
        self.out[f"{name}.in_mul"] = (mul / grid).float()
        self.out[f"{name}.in_add"] = (add / grid).float()

    def _residual_input(self, name: str, level: int) -> None:
        mul = torch.full((len(self.timesteps), len(self.scale[name])), self.unit[level])
        self._input(name, mul.double(), torch.zeros_like(mul).double())

    def _stem_input(self) -> None:
        abar = torch.sigmoid(self.log_snr.double())
        x = (DATA_VARIANCE * abar + (1.0 - abar)).rsqrt()
        detail = (0.01 * abar + (1.0 - abar)).rsqrt()
        mul = torch.stack([x] * 12 + [detail] * 12, dim=1) / (1 << X_UNIT)
        self._input("stem", mul, torch.zeros_like(mul))

    def _film_input(self, source: str, name: str, film: nn.Module) -> None:
        with torch.inference_mode():
            scale, shift = film(self.emb).double().chunk(2, dim=1)
        bias = self.convs[source].bias.detach().double()
        self._input(name, (1.0 + scale) * self.step[source], (1.0 + scale) * bias + shift)

    def _coef_inputs(self) -> None:
        local, bias = self.step["coef_local"], self.convs["coef_local"].bias.detach().double()
        rest = len(self.scale["coef_hidden"]) - 16 * len(bias)
        steps = len(self.timesteps)
        mul = [local.repeat_interleave(16, dim=1), torch.full((steps, rest), self.unit[2])]
        add = [bias.repeat_interleave(16).expand(steps, -1), torch.zeros(steps, rest)]
        self._input("coef_hidden", torch.cat(mul, 1).double(), torch.cat(add, 1).double())
        self._film_input("coef_hidden", "coef_head", self.network.coef_film)

    def _residual_output(self, name: str, level: int) -> None:
        self._output(name, self.unit[level])

    def _output(self, name: str, unit: float) -> None:
        bias = self.convs[name].bias.detach().double().expand(len(self.timesteps), -1)
        self.out[f"{name}.out_mul"] = (self.step[name] / unit).float()
        self.out[f"{name}.out_add"] = (bias / unit).float()
