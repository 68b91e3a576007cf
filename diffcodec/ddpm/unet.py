"""The U-Net of Ho et al. 2020, appendix B.

Residual blocks with group normalisation, a sinusoidal embedding of t added in every block,
self-attention at 16×16, dropout; as in the authors' code, the last layer of every residual
branch starts at zero.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffcodec.network import known_settings

NORM_EPS = 1e-6


@dataclass(frozen=True)
class UNetConfig:
    """Shape of a :class:`UNet`.

    channels: features at full size; multipliers: of these, one for each level, every level half
    the size of the one before; blocks: residual blocks a level on the way down (one more on the
    way up); attention: levels (0 is full size) whose blocks are followed by self-attention;
    groups: of the normalisation; out_channels: 6 with a learned variance (the means' three come
    first); classes: of a class-conditional network, 0 for none.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (1,)
    dropout: float = 0.1
    groups: int = 32
    out_channels: int = 3
    classes: int = 0

    def __post_init__(self) -> None:
        whole = (self.channels, *self.multipliers, self.blocks, self.groups, self.classes)
        if not all(isinstance(v, int) for v in (*whole, *self.attention, self.out_channels)):
            raise ValueError(f"not all numbers of this U-Net are whole: {self}")
        limits = {  # a stranger's configuration must not ask for the moon
            "channels": (self.channels, 2, 4096),
            "blocks": (self.blocks, 1, 64),
            "levels": (len(self.multipliers), 1, 8),
            "smallest multiplier": (min(self.multipliers, default=0), 1, 64),
            "largest multiplier": (max(self.multipliers, default=0), 1, 64),
            "groups": (self.groups, 1, 4096),
            "classes": (self.classes, 0, 1 << 20),
        }
        for name, (value, low, high) in limits.items():
            if not low <= value <= high:
                raise ValueError(f"{name} must lie in {low}..{high}, not {value}")
        if any(self.channels * m % self.groups for m in self.multipliers):
            raise ValueError(f"all widths must be multiples of the {self.groups} groups")
        if any(not 0 <= level < len(self.multipliers) for level in self.attention):
            raise ValueError(f"there is no level {max(self.attention)} to attend at")
        if not 0.0 <= self.dropout < 1.0 or self.out_channels not in (3, 6):
            raise ValueError("dropout must lie in [0, 1), out_channels be 3 or 6")

    @property
    def size_multiple(self) -> int:
        """What both sides of a picture must be multiples of."""
        return 1 << (len(self.multipliers) - 1)

    @property
    def usual_size(self) -> int:
        """Side of the pictures it is made for: those it sees as 16×16 where it attends first."""
        return 16 << min(self.attention, default=1)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> UNetConfig:
        """Rebuild from :meth:`to_dict` (or JSON); unknown keys raise ValueError."""
        return cls(**known_settings(cls, values))


CONFIGS: dict[str, UNetConfig] = {
    "ddpm-cifar10": UNetConfig(),  # 35.7 M parameters, 32×32
    "ddpm-256": UNetConfig(  # 114 M, 256×256: LSUN, CelebA-HQ
        multipliers=(1, 1, 2, 2, 4, 4), attention=(4,), dropout=0.0
    ),
    "ddpm-256-large": UNetConfig(  # 256 M: the larger LSUN bedroom model
        channels=192, multipliers=(1, 1, 2, 2, 4, 4), attention=(4,), dropout=0.0
    ),
}
"""The paper's networks, by name."""


def time_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoids [B, width] of timesteps t in 1..T, float32.

    The authors count from 0, so that their networks are fed t − 1: the only place that minds.
    """
    half = width // 2
    rates = torch.arange(half, dtype=torch.float32, device=t.device) / (half - 1)
    phase = (t.float() - 1.0)[:, None] * torch.exp(-math.log(10000.0) * rates)
    return torch.cat([phase.sin(), phase.cos()], dim=1)


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=NORM_EPS)


def _init(module: nn.Module, zero: bool = False) -> nn.Module:
    """Xavier-uniform weights (or none) and no bias, as the authors' networks start."""
    assert isinstance(module, nn.Conv2d | nn.Linear)
    if zero:
        nn.init.zeros_(module.weight)
    else:
        nn.init.xavier_uniform_(module.weight)
    assert module.bias is not None
    nn.init.zeros_(module.bias)
    return module


def _conv(c_in: int, c_out: int, kernel: int = 3, zero: bool = False) -> nn.Module:
    return _init(nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2), zero)


class ResidualBlock(nn.Module):
    """Two normalised convolutions, the embedding of t added between them."""

    def __init__(self, c_in: int, c_out: int, config: UNetConfig) -> None:
        super().__init__()
        self.norm_in, self.conv_in = _norm(c_in, config.groups), _conv(c_in, c_out)
        self.time = _init(nn.Linear(4 * config.channels, c_out))
        self.norm_out, self.conv_out = _norm(c_out, config.groups), _conv(c_out, c_out, zero=True)
        self.dropout = nn.Dropout(config.dropout)
        self.skip = nn.Identity() if c_in == c_out else _conv(c_in, c_out, kernel=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv_in(F.silu(self.norm_in(x)))
        h = h + self.time(F.silu(emb))[:, :, None, None]
        h = self.conv_out(self.dropout(F.silu(self.norm_out(h))))
        return self.skip(x) + h


class Attention(nn.Module):
    """Every pixel attends to every other one, one head."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.norm = _norm(channels, config.groups)
        self.query, self.key, self.value = (_conv(channels, channels, 1) for _ in range(3))
        self.out = _conv(channels, channels, 1, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (f(h).flatten(2).transpose(1, 2) for f in (self.query, self.key, self.value))
        h = F.scaled_dot_product_attention(q, k, v)  # softmax(qkᵀ/√C) v
        return x + self.out(h.transpose(1, 2).reshape(x.shape))


class Level(nn.Module):
    """The blocks of one size, each with its attention where the level has any."""

    def __init__(self, pairs: list[tuple[int, int]], config: UNetConfig, attends: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(a, b, config) for a, b in pairs)
        self.attention = nn.ModuleList(Attention(b, config) for _, b in pairs if attends)

    def step(self, number: int, x: Tensor, emb: Tensor) -> Tensor:
        x = self.blocks[number](x, emb)
        return self.attention[number](x) if len(self.attention) else x


class UNet(nn.Module):
    """ε_θ(x_t, t): [B, 3, H, W] → [B, out_channels, H, W]; see the module's docstring."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        base, last = config.channels, len(config.multipliers) - 1
        widths = [base * m for m in config.multipliers]
        self.time_in = _init(nn.Linear(base, 4 * base))
        self.time_out = _init(nn.Linear(4 * base, 4 * base))
        if config.classes:  # the last one stands for "no class given"
            self.labels = nn.Embedding(config.classes + 1, 4 * base)
        self.conv_in = _conv(3, base)
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        skips, width = [base], base
        for level, out in enumerate(widths):
            pairs = [(width, out), *[(out, out)] * (config.blocks - 1)]
            self.down.append(Level(pairs, config, level in config.attention))
            skips += [out] * config.blocks
            width = out
            if level < last:
                self.shrink.append(_init(nn.Conv2d(out, out, 3, stride=2)))
                skips.append(out)
        self.middle_in = ResidualBlock(width, width, config)
        self.middle_attention = Attention(width, config)
        self.middle_out = ResidualBlock(width, width, config)
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            pairs = []
            for _ in range(config.blocks + 1):
                pairs.append((width + skips.pop(), out))
                width = out
            self.up.append(Level(pairs, config, level in config.attention))
            if level:
                self.grow.append(_conv(out, out))
        self.norm = _norm(width, config.groups)
        self.conv_out = _conv(width, config.out_channels, zero=True)

    def embed(self, t: Tensor, labels: Tensor | None) -> Tensor:
        """[B, 4·channels] of timesteps t in 1..T [B] and classes [B], −1 for none."""
        width = self.config.channels
        emb = self.time_out(F.silu(self.time_in(time_embedding(t, width))))
        if not self.config.classes:
            return emb
        if labels is None:
            labels = torch.full_like(t, -1)
        return emb + self.labels(torch.where(labels < 0, self.config.classes, labels))

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """x_t: [B, 3, H, W], sides multiples of config.size_multiple; t: int64 [B] in 1..T;
        labels: int64 [B] of a class-conditional network, −1 (or None) for no class."""
        emb = self.embed(t, labels)
        h = self.conv_in(x_t)
        skips = [h]
        for level, stage in enumerate(self.down):
            assert isinstance(stage, Level)
            for number in range(self.config.blocks):
                h = stage.step(number, h, emb)
                skips.append(h)
            if level < len(self.shrink):
                h = self.shrink[level](F.pad(h, (0, 1, 0, 1)))
                skips.append(h)
        h = self.middle_in(h, emb)
        h = self.middle_out(self.middle_attention(h), emb)
        for level, stage in enumerate(self.up):
            assert isinstance(stage, Level)
            for number in range(self.config.blocks + 1):
                h = stage.step(number, torch.cat([h, skips.pop()], dim=1), emb)
            if level < len(self.grow):
                h = self.grow[level](F.interpolate(h, scale_factor=2.0, mode="nearest"))
        # In full precision also under autocast: bfloat16 rounds μ̃ by as much as σ is at small t.
        with torch.autocast(h.device.type, enabled=False):
            out: Tensor = self.conv_out(F.silu(self.norm(h.to(x_t.dtype))))
        return out
