"""What is trained: a network with its optimisers and its loss on a part of a batch.

A batch may be split into parts, over processes or over time.  All that is random is keyed by the
seed, the step and the place in the whole batch, and a part's loss is its share of the batch's,
so that the sum over the parts is the same however the batch is split.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from diffcodec.ddpm.objectives import bound_loss, simple_loss
from diffcodec.ddpm.process import ReverseProcess
from diffcodec.ddpm.unet import UNet, UNetConfig
from diffcodec.network import CodecUNet, NetworkConfig, UnitConv2d
from diffcodec.objective import Loss, bits_per_dim, trained_range, training_loss
from diffcodec.schedule import Schedule
from diffcodec.train.settings import TrainConfig


class Part(NamedTuple):
    """Some pictures of a training batch.

    images: uint8 [n, 3, H, W]; labels: int64 [n], −1 where a picture has no class;
    first: place of the first one in the batch; whole: how many pictures the batch has.
    """

    images: Tensor
    labels: Tensor
    first: int
    whole: int

    @property
    def share(self) -> float:
        return len(self.images) / self.whole

    def between(self, start: int, stop: int) -> Part:
        """The pictures start … stop − 1 of this part."""
        return Part(
            self.images[start:stop], self.labels[start:stop], self.first + start, self.whole
        )


class DdpmLoss(NamedTuple):
    """``loss``: squared error, or bits/dim of the bound without L_T (see ddpm/objectives.py)."""

    loss: Tensor


Terms = Loss | DdpmLoss
"""Means over the batch, or a part's share of them; which ones depends on the task."""


class Task(Protocol):
    """Network, optimisers and loss of a :class:`TrainConfig`."""

    def network(self) -> nn.Module:
        """A network of random weights, from torch's global generator."""

    def optimizers(self, model: nn.Module) -> list[tuple[torch.optim.Optimizer, float]]:
        """The optimisers of all parameters, each with its peak learning rate."""

    def loss(self, model: nn.Module, part: Part, key: tuple[int, int], training: bool) -> Terms:
        """The part's share of the loss; all randomness from ``key``, (seed, step)."""

    def total(self, terms: Terms) -> Tensor:
        """What is minimised."""

    def describe(self, terms: Terms) -> str:
        """For a line of the log."""


def make_task(config: TrainConfig, schedule: Schedule) -> Task:
    if isinstance(config.network, UNetConfig):
        return DdpmTask(config, config.network, schedule)
    return CodecTask(config, config.network, schedule)


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon (Jordan 2024) for the unit matrices, AdamW for their gains and for the rest."""
    inner = [m for m in model.modules() if isinstance(m, UnitConv2d)]
    taken = {id(p) for m in inner for p in (m.weight, m.gain)}
    rest = [p for p in model.parameters() if id(p) not in taken]
    return [
        torch.optim.Muon(
            [m.weight for m in inner],
            lr=config.lr_matrix,
            weight_decay=0.0,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            [m.gain for m in inner], lr=config.lr_gain, betas=(0.9, 0.99), weight_decay=0.0
        ),
        torch.optim.AdamW(rest, lr=config.lr, betas=(0.9, 0.99), weight_decay=0.0),
    ]


class CodecTask:
    """The codec's network and the bits of a file."""

    def __init__(self, config: TrainConfig, shape: NetworkConfig, schedule: Schedule) -> None:
        self.config, self.shape = config, shape
        found = trained_range(schedule.log_snr, config.timesteps, config.finals)
        (self.low, self.high), self.share, self.finals = found

    def network(self) -> nn.Module:
        return CodecUNet(self.shape)

    def optimizers(self, model: nn.Module) -> list[tuple[torch.optim.Optimizer, float]]:
        peaks = (self.config.lr_matrix, self.config.lr_gain, self.config.lr)
        return list(zip(make_optimizers(model, self.config), peaks, strict=True))

    def loss(self, model: nn.Module, part: Part, key: tuple[int, int], training: bool) -> Terms:
        generator = torch.Generator().manual_seed(key[0] * 1_000_003 + key[1])
        noise = torch.randn((part.whole, *part.images.shape[1:]), generator=generator)
        offset = float(torch.rand((), generator=generator))
        device = part.images.device
        return training_loss(
            model,
            part.images,
            noise[part.first : part.first + len(part.images)].to(device),
            offset,
            log_snr_low=self.low,
            log_snr_high=self.high,
            log_snr_finals=self.finals,
            step_length=self.config.step_length,
            final_share=self.share,
            emphasis=self.config.emphasis if training else 0.0,
            first=part.first,
            count=part.whole,
        )

    def total(self, terms: Terms) -> Tensor:
        assert isinstance(terms, Loss)
        return bits_per_dim(terms) + self.config.mse_weight * terms.mse

    def describe(self, terms: Terms) -> str:
        assert isinstance(terms, Loss)
        return (
            f"{float(bits_per_dim(terms)):.4f} bits/dim (steps {float(terms.steps):.3f} + "
            f"final {float(terms.final):.3f}, limit {float(terms.mse):.3f})"
        )


class Draws(NamedTuple):
    """Of each of n pictures: t int64 [n], whether its class is hidden, bool [n], and ε."""

    t: Tensor
    hidden: Tensor
    noise: Tensor


def draw(part: Part, key: tuple[int, int], timesteps: int, label_dropout: float) -> Draws:
    """What is random in Algorithm 1, keyed for each picture by ``key`` and its place."""
    shape = part.images.shape[1:]
    rows = []
    for place in range(part.first, part.first + len(part.images)):
        bits = np.random.Philox(key=[key[0] + 2, key[1]], counter=[0, 0, 0, place])
        rng = np.random.Generator(bits)
        t, hidden = int(rng.integers(1, timesteps + 1)), rng.random() < label_dropout
        rows.append((t, hidden, rng.standard_normal(shape, dtype=np.float32)))
    noise = torch.from_numpy(np.stack([row[2] for row in rows]))
    return Draws(
        torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows]), noise
    )


class DdpmTask:
    """A U-Net of the paper and one of its objectives (Algorithm 1, tables 1 and 2)."""

    def __init__(self, config: TrainConfig, shape: UNetConfig, schedule: Schedule) -> None:
        self.config, self.shape, self.schedule = config, shape, schedule

    def network(self) -> nn.Module:
        return UNet(self.shape)

    def optimizers(self, model: nn.Module) -> list[tuple[torch.optim.Optimizer, float]]:
        return [(torch.optim.Adam(model.parameters(), lr=self.config.lr), self.config.lr)]

    def loss(self, model: nn.Module, part: Part, key: tuple[int, int], training: bool) -> Terms:
        """In training the masks of dropout are keyed by ``key`` and the part's first place."""
        config, device = self.config, part.images.device
        hidden = config.label_dropout if training else 0.0
        draws = draw(part, key, self.schedule.timesteps, hidden)
        t, noise = draws.t.to(device), draws.noise.to(device)
        labels = torch.where(draws.hidden.to(device), -1, part.labels)
        process = ReverseProcess(model, self.schedule, config.prediction, config.variance)
        x_0 = part.images.float() / 127.5 - 1.0
        x_t = process.q_sample(x_0, t, noise)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            words = np.random.SeedSequence([*key, part.first]).generate_state(1, np.uint64)
            torch.manual_seed(int(words[0]))
            out = model(x_t, t, labels if config.classes else None)
        if config.objective == "simple":
            rows = simple_loss(process, out, x_0, x_t, t, noise)
        else:
            rows = bound_loss(process, out, x_0, x_t, t)
        return DdpmLoss(rows.mean() * part.share)

    def total(self, terms: Terms) -> Tensor:
        assert isinstance(terms, DdpmLoss)
        return terms.loss

    def describe(self, terms: Terms) -> str:
        assert isinstance(terms, DdpmLoss)
        if self.config.objective == "bound":
            return f"{float(terms.loss):.4f} bits/dim (the bound without L_T)"
        what = "ε" if self.config.prediction == "eps" else "μ̃"
        return f"{float(terms.loss):.5f} squared error of {what}"
