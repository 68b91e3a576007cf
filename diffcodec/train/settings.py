"""The settings of a training run, as its checkpoint keeps them, and its learning rates."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from diffcodec.ddpm.objectives import Objective
from diffcodec.ddpm.process import Prediction, Variance
from diffcodec.ddpm.unet import CONFIGS, UNetConfig
from diffcodec.model import UNET
from diffcodec.network import SIZE_MULTIPLE, NetworkConfig
from diffcodec.schedule import Schedule
from diffcodec.simd import target_has

PAPER_SCHEDULE = Schedule(beta_start=1e-4)
"""T = 1000, β linear from 1e-4 to 0.02: what the paper's networks are trained with."""

Precision = Literal["bf16", "float32"]
BF16_INSTRUCTIONS = ("avx512bf16", "amx-bf16", "bf16")
"""What LLVM calls those of x86-64 and, last, of ARM."""


def fast_precision(device: str) -> Precision:
    """The faster one on this machine: bfloat16 that has to be emulated is slower than float32.

    device: "cpu" or "cuda", which is there.
    """
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bf16" if any(map(target_has, BF16_INSTRUCTIONS)) else "float32"


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run; stored in its checkpoint.

    objective, prediction, variance: see diffcodec/ddpm; the codec's network is trained for the
        cost of coding and for nothing else.
    steps: optimiser steps in all; the learning rates fall linearly to zero during the last
        ``decay`` (a fraction of 1; 0: never) of them.
    lr_matrix / lr_gain / lr: peak learning rates of Muon (unit matrices) and AdamW (their
        gains; the rest), of the paper's networks only lr (Adam); lr_scale multiplies all.
    reductions: every picture is learnt from reduced by each of these factors (1: as it is).
    subsampled: every picture is learnt from with its colours at half resolution, too.
    mse_weight: weight of the K → ∞ cost (plain ε-MSE) beside the cost of the coded steps.
    step_length: length in log-SNR of the steps whose cost is trained.
    emphasis: extra weight of the noisiest steps, less for the others and none for the last: for
        better pictures of files cut early, at some cost for whole ones.
    timesteps: lowest and highest of those that are trained, of a network for these alone; None
        for all (see diffcodec/experts.py).
    finals: timesteps from which the final layer may begin, and for which it is trained.
    label_dropout: share of the pictures that a class-conditional network sees without class.
    holdout: pictures at the end of the data kept out for validation.
    precision: of the network's convolutions; the weights are always float32.
    """

    network: NetworkConfig | UNetConfig = field(default_factory=NetworkConfig)
    objective: Objective = "coding"
    prediction: Prediction = "eps"
    variance: Variance = "posterior"
    steps: int = 20000
    batch: int = 64
    crop: int = 32
    reductions: tuple[int, ...] = (1,)
    subsampled: bool = False
    lr_matrix: float = 2.5e-3
    lr_gain: float = 5e-3
    lr: float = 1e-3
    lr_scale: float = 1.0
    warmup: int = 200
    decay: float = 0.6
    clip: float = 1.0
    ema_decay: float = 0.999
    mse_weight: float = 0.3
    step_length: float = 1.5
    emphasis: float = 0.0
    timesteps: tuple[int, int] | None = None
    finals: tuple[int, ...] = (1,)
    label_dropout: float = 0.1
    holdout: int = 512
    seed: int = 1
    precision: Precision = "bf16"

    def __post_init__(self) -> None:
        """ValueError, one line, of settings that contradict each other."""
        codec = isinstance(self.network, NetworkConfig)
        if codec and (self.objective, self.prediction) != ("coding", "eps"):
            raise ValueError("the codec's network is trained to predict ε, for the cost of coding")
        if not codec and self.objective == "coding":
            raise ValueError("only the codec's network can be trained for the cost of coding")
        if self.timesteps is not None and not 1 <= self.timesteps[0] <= self.timesteps[1]:
            low, high = self.timesteps
            raise ValueError(f"timesteps from {low} to {high}: there are none")
        if not self.finals or min(self.finals) < 1:
            raise ValueError("the final layer begins at timesteps from 1 on")
        if self.finals != (1,) and not codec:
            raise ValueError("only the codec's network has a final layer to be trained")
        if self.timesteps is not None and not codec:
            raise ValueError("only the codec's network can be trained for some timesteps alone")
        if self.objective == "simple" and self.variance == "learned":
            raise ValueError("the simple objective says nothing of Σ; learn it with the bound")
        if isinstance(self.network, UNetConfig):
            outputs = 6 if self.variance == "learned" else 3
            if self.network.out_channels != outputs:
                raise ValueError(
                    f"with variance {self.variance} the network needs {outputs} outputs"
                )
        if self.classes and self.varied:
            raise ValueError(
                "a class-conditional network learns pictures as they are, not reduced or subsampled"
            )
        if self.crop % self.size_multiple:
            raise ValueError(f"the crop must be a multiple of {self.size_multiple}")

    @property
    def size_multiple(self) -> int:
        """What both sides of a picture must be multiples of."""
        shape = self.network
        return shape.size_multiple if isinstance(shape, UNetConfig) else SIZE_MULTIPLE

    @property
    def varied(self) -> bool:
        """Whether more is learnt from than the pictures as they are."""
        return self.reductions != (1,) or self.subsampled

    @property
    def classes(self) -> int:
        """Of a class-conditional network, 0 for none."""
        return self.network.classes if isinstance(self.network, UNetConfig) else 0

    def to_dict(self) -> dict[str, Any]:
        kind = {"kind": UNET} if isinstance(self.network, UNetConfig) else {}
        return {**kind, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Rebuild from :meth:`to_dict` (or JSON, or a checkpoint of an earlier version)."""
        values = dict(values)
        shape = UNetConfig if values.pop("kind", None) == UNET else NetworkConfig
        network = shape.from_dict(values.pop("network"))
        reductions = tuple(values.pop("reductions", (1,)))
        timesteps = values.pop("timesteps", None)
        timesteps = timesteps and (timesteps[0], timesteps[1])
        finals = tuple(values.pop("finals", (1,)))
        return cls(
            network=network, reductions=reductions, timesteps=timesteps, finals=finals, **values
        )


PAPER: dict[str, dict[str, Any]] = {
    "ddpm-cifar10": {"steps": 800_000, "batch": 128, "crop": 32, "lr": 2e-4},
    "ddpm-256": {"steps": 500_000, "batch": 64, "crop": 256, "lr": 2e-5},
    "ddpm-256-large": {"steps": 1_150_000, "batch": 64, "crop": 256, "lr": 2e-5},
}
"""Appendix B, where the networks differ; steps of CelebA-HQ and of the larger LSUN bedroom."""


def paper_settings(name: str) -> dict[str, Any]:
    """Arguments of :class:`TrainConfig` for a network of the paper, as in its appendix B."""
    return {
        "network": CONFIGS[name],
        "objective": "simple",
        **PAPER[name],
        "warmup": 5000,
        "decay": 0.0,
        "ema_decay": 0.9999,
        "holdout": 0,
    }


def lr_factor(step: int, config: TrainConfig) -> float:
    """Linear warm-up, a plateau, linear decay to zero at ``config.steps``."""
    warm = min(1.0, (step + 1) / config.warmup)
    if not config.decay:
        return warm
    return warm * min(1.0, (1.0 - step / config.steps) / config.decay)


def decay_start(config: TrainConfig) -> int:
    """The step at which the learning rates begin to fall."""
    return round((1.0 - config.decay) * config.steps)
