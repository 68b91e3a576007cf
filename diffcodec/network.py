"""The codec's ε-model: a fully convolutional U-Net with three heads and no normalisation.

``CodecUNet`` sees x_t at half resolution (2×2 pixels become channels), so a picture of any
size that is a multiple of 8 passes through it, and nothing in it depends on the picture's
size.  It is conditioned on λ = log-SNR by FiLM and predicts

* ``eps``: the noise ε of x_t (eq. 12);
* ``coef_logvar``: the log-variance of the error of ε in the colour × 8×8-DCT domain, which
  sets the rate of every coefficient in the relative entropy channel;
* ``pixel``: what the discretised decoder (eq. 13) needs where the steps end, mostly at t = 1.

Preconditioning follows Karras et al. 2022: the network's own output F has unit scale at
every noise level, ε̂ = c_skip x_t + c_out F.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DATA_VARIANCE = 0.25
"""Variance of images scaled to [-1, 1], for the preconditioning only."""

LEAK = 0.25
"""Slope of the activation below zero."""

PIXEL_OUTPUTS = 6
"""Final layer: three log-variances, then the coefficients G→R, G→B and R→B."""

SIZE_MULTIPLE = 8

LARGEST = {"channels": 4096, "blocks": 64, "embedding": 4096}
"""No network is larger: a configuration that is wrong is not to take hours or all memory."""


def known_settings(config: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """``values`` of JSON as arguments of a configuration; unknown keys raise ValueError."""
    unknown = set(values) - {f.name for f in fields(config)}
    if unknown:
        raise ValueError(f"unknown network settings: {', '.join(sorted(unknown))}")
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of a :class:`CodecUNet`.

    channels: feature channels at 1/2, 1/4 and 1/8 of the picture's size.
    blocks: residual blocks at each of these sizes, on the way down and on the way up
        (the last entry is used once, at the bottom).
    embedding: width of the log-SNR embedding.
    """

    channels: tuple[int, int, int] = (96, 144, 192)
    blocks: tuple[int, int, int] = (2, 2, 3)
    embedding: int = 128

    def __post_init__(self) -> None:
        for name in ("channels", "blocks"):
            value = getattr(self, name)
            most = LARGEST[name]
            if not (
                isinstance(value, tuple)
                and len(value) == 3
                and all(isinstance(v, int) and 1 <= v <= most for v in value)
            ):
                raise ValueError(f"{name} must be three integers in 1..{most}, not {value!r}")
        width, most = self.embedding, LARGEST["embedding"]
        if not isinstance(width, int) or not 2 <= width <= most or width % 2:
            raise ValueError(f"embedding must be an even integer in 2..{most}, not {width!r}")

    @property
    def halo(self) -> int:
        """How far, in pixels, an input can be from an output it changes.

        A multiple of 16, the largest pitch of features (see correction.Correction), so that tiles
        begin where those of the whole picture are taken.
        """
        n0, n1, n2 = self.blocks
        radius = 1 + 2 * (2 + 4 * n0) + 4 * (4 * n1) + 8 * (2 * n2)
        reach = radius + (SIZE_MULTIPLE - 1) + 2  # to the end of a block; a cell of features more
        return -(-reach // 16) * 16

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NetworkConfig:
        """Rebuild from :meth:`to_dict` (or JSON); unknown keys raise ValueError."""
        return cls(**known_settings(cls, values))


class Prediction(NamedTuple):
    """What the network says of one noisy batch; float32.

    eps: [B, 3, H, W]; coef_logvar: [B, 192, H/8, W/8], channel c·64 + 8·v + u for colour c
    and DCT band (v, u); pixel: [B, 6, H, W].
    """

    eps: Tensor
    coef_logvar: Tensor
    pixel: Tensor


def leaky(x: Tensor) -> Tensor:
    """max(x, x/4): a channel that is pushed below zero still learns its way back."""
    return F.leaky_relu(x, LEAK)


def _as_convolved(x: Tensor) -> Tensor:
    """In the memory order that suits what follows: bfloat16 is convolved channels last, in which
    matrix instructions take it, large maps four times as fast."""
    if torch.is_autocast_enabled(x.device.type):
        return x.contiguous(memory_format=torch.channels_last)
    return x


class Conv2d(nn.Module):
    """Convolution whose weight is kept as a matrix [out, in·k·k]; it starts at zero or random."""

    def __init__(self, c_in: int, c_out: int, kernel: int, *, zero: bool = False) -> None:
        super().__init__()
        self.shape = (c_out, c_in, kernel, kernel)
        self.padding = kernel // 2
        fan_in = c_in * kernel * kernel
        weight = torch.empty(c_out, fan_in)
        if not weight.is_meta:  # torch would load its compiler to fill in what has no memory
            weight = weight.normal_() * (0.0 if zero else fan_in**-0.5)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(c_out))

    def kernel(self) -> Tensor:
        """The weights as used, [out, in, k, k]."""
        return self.weight.view(self.shape)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel(), self.bias, padding=self.padding)


class UnitConv2d(Conv2d):
    """A :class:`Conv2d` for Muon: the rows of ``weight`` keep unit length (Karras et al. 2024).

    They say only what is looked for; how loud the answer is, is ``gain`` [out].  Muon's steps
    have the same size whatever the gradient's, so without this a part of the network that has
    nothing to say yet would drown in noise of its own making.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int, gain: float = 1.0) -> None:
        super().__init__(c_in, c_out, kernel)
        self.gain = nn.Parameter(torch.full((c_out,), gain))
        if not self.weight.is_meta:
            self.normalize_()

    @torch.no_grad()
    def normalize_(self) -> None:
        """Bring every row of ``weight`` back to unit length."""
        self.weight.div_(self.weight.norm(dim=1, keepdim=True).clamp(min=1e-12))

    def kernel(self) -> Tensor:
        return (self.weight * self.gain[:, None]).view(self.shape)


class ResidualBlock(nn.Module):
    """x + conv(act(FiLM(conv(act(x))))), the last convolution's gain starting at zero."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.conv_in = UnitConv2d(channels, channels, 3, gain=math.sqrt(2.0))
        self.film = nn.Linear(embedding, 2 * channels)
        self.conv_out = UnitConv2d(channels, channels, 3, gain=0.0)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.film(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.conv_in(leaky(x))
        h = leaky(h * (1.0 + scale) + shift)
        return x + self.conv_out(h)


class CodecUNet(nn.Module):
    """ε_θ(x_t, λ) with its two variance heads; see the module's docstring."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        c0, c1, c2 = config.channels
        n0, n1, n2 = config.blocks
        width = config.embedding

        def stage(channels: int, count: int) -> nn.ModuleList:
            return nn.ModuleList(ResidualBlock(channels, width) for _ in range(count))

        self.embed = nn.Sequential(
            nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width), nn.SiLU()
        )
        self.stem = Conv2d(24, c0, 3)
        self.down0, self.to1 = stage(c0, n0), UnitConv2d(4 * c0, c1, 1)
        self.down1, self.to2 = stage(c1, n1), UnitConv2d(4 * c1, c2, 1)
        self.middle = stage(c2, n2)
        # Linear and zero at first: noise from a coarse level that has learnt nothing yet would
        # teach its ReLUs to stay shut for good.
        self.from2, self.up1 = UnitConv2d(c2, 4 * c1, 1, gain=0.0), stage(c1, n1)
        self.from1, self.up0 = UnitConv2d(c1, 4 * c0, 1, gain=0.0), stage(c0, n0)
        self.eps_head = Conv2d(c0, 12, 3, zero=True)
        self.pixel_head = Conv2d(c0, 4 * PIXEL_OUTPUTS, 1, zero=True)
        self.coef_local = UnitConv2d(c0, 16, 1)
        self.coef_hidden = UnitConv2d(256 + c2, 256, 1, gain=math.sqrt(2.0))
        self.coef_film = nn.Linear(width, 2 * 256)
        self.coef_head = Conv2d(256, 192, 1, zero=True)
        nn.init.zeros_(self.coef_film.weight)
        nn.init.zeros_(self.coef_film.bias)

    def embed_log_snr(self, log_snr: Tensor) -> Tensor:
        """FiLM embedding [B, embedding] of λ [B], float32: sinusoids of periods 1.5 to 60."""
        half = self.config.embedding // 2
        periods = torch.logspace(math.log10(1.5), math.log10(60.0), half, device=log_snr.device)
        phase = log_snr[:, None].float() * (2.0 * math.pi / periods)
        return self.embed(torch.cat([phase.sin(), phase.cos()], dim=1))

    def forward(self, x_t: Tensor, log_snr: Tensor) -> Prediction:
        """x_t: [B, 3, H, W] float32, H and W multiples of 8; log_snr: [B] float32."""
        abar = torch.sigmoid(log_snr.float())[:, None, None, None]
        total = DATA_VARIANCE * abar + (1.0 - abar)
        c_skip = (1.0 - abar).sqrt() / total
        c_out = (DATA_VARIANCE * abar / total).sqrt()

        # Fine detail is fed once more, free of the local mean and at unit scale: at the last
        # steps the noise is 1/200 of the picture's range and would drown in bfloat16.
        detail = x_t - F.avg_pool2d(x_t, 3, stride=1, padding=1, count_include_pad=False)
        detail = detail / (0.01 * abar + (1.0 - abar)).sqrt()
        inputs = torch.cat([x_t / total.sqrt(), detail], dim=1)

        emb = self.embed_log_snr(log_snr)
        h0 = self.stem(_as_convolved(F.pixel_unshuffle(inputs, 2)))
        for block in self.down0:
            h0 = block(h0, emb)
        h1 = self.to1(F.pixel_unshuffle(h0, 2))
        for block in self.down1:
            h1 = block(h1, emb)
        h2 = self.to2(F.pixel_unshuffle(h1, 2))
        for block in self.middle:
            h2 = block(h2, emb)
        h1 = h1 + F.pixel_shuffle(self.from2(h2), 2)
        for block in self.up1:
            h1 = block(h1, emb)
        h0 = h0 + F.pixel_shuffle(self.from1(h1), 2)
        for block in self.up0:
            h0 = block(h0, emb)

        features = leaky(h0)
        out = F.pixel_shuffle(self.eps_head(features), 2).float()
        pixel = F.pixel_shuffle(self.pixel_head(features), 2).float()
        local = F.pixel_unshuffle(leaky(self.coef_local(features)), 4)
        hidden = self.coef_hidden(torch.cat([local, leaky(h2)], dim=1))
        scale, shift = self.coef_film(emb)[:, :, None, None].chunk(2, dim=1)
        coef = self.coef_head(leaky(hidden * (1.0 + scale) + shift)).float()
        return Prediction(c_skip * x_t + c_out * out, coef, pixel)


class Experts(nn.ModuleList):
    """Networks of one shape, each for a range of noise (Balaji et al. 2022); called like one.

    ceilings: the k-th answers up to the log-SNR ceilings[k], the last one whatever is left.
    """

    def __init__(self, config: NetworkConfig, ceilings: Sequence[float]) -> None:
        super().__init__(CodecUNet(config) for _ in range(len(ceilings) + 1))
        self.config, self.ceilings = config, tuple(ceilings)

    @property
    def members(self) -> list[CodecUNet]:
        return [network for network in self if isinstance(network, CodecUNet)]

    def forward(self, x_t: Tensor, log_snr: Tensor) -> Prediction:
        """As :meth:`CodecUNet.forward`; the pictures of a batch may belong to several."""
        who = torch.bucketize(log_snr, torch.tensor(self.ceilings, device=log_snr.device))
        found: list[tuple[Tensor, Prediction]] = []
        for number in who.unique().tolist():
            rows = (who == number).nonzero()[:, 0]
            found.append((rows, self[number](x_t[rows], log_snr[rows])))
        order = torch.cat([rows for rows, _ in found]).argsort()
        return Prediction(
            *(torch.cat(part)[order] for part in zip(*(f for _, f in found), strict=True))
        )
