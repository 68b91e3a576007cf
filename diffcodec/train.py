"""Algorithm 1, with the code length as the objective; resumes exactly where it stopped.

Everything random in step k is keyed by (seed, k): the pictures, the crops, the noise and the
offset of the stratified log-SNRs.  A checkpoint therefore holds weights, EMA, optimiser state
and the step, and nothing else is needed to continue as if never interrupted.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from diffcodec.data import U8, CropSampler, load_images, reduced
from diffcodec.errors import DataError
from diffcodec.files import atomic_path, make_folder
from diffcodec.model import Model, ModelConfig, save_model
from diffcodec.network import CodecUNet, NetworkConfig, UnitConv2d
from diffcodec.objective import Loss, bits_per_dim, default_range, training_loss
from diffcodec.schedule import Schedule

CHECKPOINT = "checkpoint.pt"
PLATEAU = "plateau.pt"
"""The checkpoint from which a run can be made longer: its learning rates had not fallen yet."""
LOG = "log.jsonl"


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run; stored in its checkpoint.

    steps: optimiser steps in all; the learning rates fall linearly to zero during the last
        ``decay`` (a fraction of 1) of them.
    lr_matrix / lr_gain / lr: peak learning rates of Muon (unit matrices) and AdamW (their
        gains; the rest); lr_scale multiplies all of them.
    reductions: every picture is learnt from reduced by each of these factors (1: as it is).
    mse_weight: weight of the K → ∞ cost (plain ε-MSE) beside the cost of the coded steps.
    step_length: length in log-SNR of the steps whose cost is trained.
    emphasis: extra weight of the noisiest steps, less for the others and none for the last: for
        better pictures of files cut early, at some cost for whole ones.
    holdout: pictures at the end of the data kept out for validation.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    steps: int = 20000
    batch: int = 64
    crop: int = 32
    reductions: tuple[int, ...] = (1,)
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
    holdout: int = 512
    seed: int = 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        values = dict(values)
        network = NetworkConfig.from_dict(values.pop("network"))
        reductions = tuple(values.pop("reductions", (1,)))
        return cls(network=network, reductions=reductions, **values)


def make_optimizers(model: CodecUNet, config: TrainConfig) -> list[torch.optim.Optimizer]:
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


def lr_factor(step: int, config: TrainConfig) -> float:
    """Linear warm-up, a plateau, linear decay to zero at ``config.steps``."""
    left = (1.0 - step / config.steps) / config.decay
    return min(1.0, (step + 1) / config.warmup) * min(1.0, left)


def decay_start(config: TrainConfig) -> int:
    """The step at which the learning rates begin to fall."""
    return round((1.0 - config.decay) * config.steps)


class Trainer:
    """Weights, EMA and optimisers of one run, advanced a step at a time."""

    def __init__(
        self, config: TrainConfig, schedule: Schedule, images: list[U8], device: str
    ) -> None:
        if not 0 <= config.holdout < len(images):
            raise DataError(f"cannot hold out {config.holdout} of {len(images)} images")
        cut = len(images) - config.holdout
        self.config, self.schedule, self.device = config, schedule, torch.device(device)
        learnt = reduced(images[:cut], config.reductions, config.crop)
        self.batches = CropSampler(learnt, config.crop, config.batch, config.seed)
        self.held_out = images[cut:]
        torch.manual_seed(config.seed)
        self.model = CodecUNet(config.network).to(self.device)
        self.ema = CodecUNet(config.network).to(self.device)
        self.ema.load_state_dict(self.model.state_dict())
        self.optimizers = make_optimizers(self.model, config)
        self.step = 0
        self.stopped_by = 0  # number of the signal that ended the run early
        self.low, self.high = default_range(schedule.log_snr)

    def start_from(self, model: Model) -> None:
        """Begin with the weights of a trained model of the same shape."""
        self.model.load_state_dict(model.network.state_dict())
        self.ema.load_state_dict(model.network.state_dict())

    def loss(
        self, model: CodecUNet, images: Tensor, generator: torch.Generator, emphasis: float = 0.0
    ) -> Loss:
        """Code length of a batch uint8 [B, 3, H, W]; all randomness from ``generator``."""
        noise = torch.randn(images.shape, generator=generator)
        offset = float(torch.rand((), generator=generator))
        return training_loss(
            model,
            images.to(self.device),
            noise.to(self.device),
            offset,
            log_snr_low=self.low,
            log_snr_high=self.high,
            step_length=self.config.step_length,
            emphasis=emphasis,
        )

    def train_step(self) -> Loss:
        """One optimiser step; returns the batch's loss."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        images = torch.from_numpy(self.batches(self.step))
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self.loss(self.model, images, generator, self.config.emphasis)
        factor = self.config.lr_scale * lr_factor(self.step, self.config)
        peaks = (self.config.lr_matrix, self.config.lr_gain, self.config.lr)
        for optimizer, peak in zip(self.optimizers, peaks, strict=True):
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
        (bits_per_dim(loss) + self.config.mse_weight * loss.mse).backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        if torch.isfinite(norm):  # a rare overflow must not poison the weights
            for optimizer in self.optimizers:
                optimizer.step()
            for module in self.model.modules():
                if isinstance(module, UnitConv2d):
                    module.normalize_()
        self.step += 1
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for average, value in zip(self.ema.parameters(), self.model.parameters(), strict=True):
                average.lerp_(value, 1.0 - decay)
        return Loss(*(term.detach() for term in loss))

    def validate(self) -> Loss | None:
        """Float32 loss of the EMA weights on the held-out pictures; None without any."""
        sampler = CropSampler(self.held_out, self.config.crop, 64, 0) if self.held_out else None
        if sampler is None:
            return None
        rows = []
        with torch.no_grad():
            for k in range(-(-len(self.held_out) // 64)):
                generator = torch.Generator().manual_seed(k)
                rows.append(self.loss(self.ema, torch.from_numpy(sampler(k)), generator))
        return Loss(*(torch.stack(column).mean() for column in zip(*rows, strict=True)))

    def state_dict(self) -> dict[str, Any]:
        return {
            "config": self.config.to_dict(),
            "schedule": asdict(self.schedule),
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]


def read_checkpoint(folder: Path, name: str = CHECKPOINT) -> dict[str, Any]:
    """A checkpoint of a run folder, by weights-only loading; DataError if unusable."""
    path = folder / name
    if not path.exists():
        raise DataError(f"{path}: no checkpoint to resume from")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises many kinds for a damaged file
        raise DataError(f"{path}: not a readable checkpoint ({e})") from e
    return state


def save_checkpoint(trainer: Trainer, path: Path) -> None:
    """Write the checkpoint in one piece; DataError if that is impossible."""
    with atomic_path(path) as temporary:
        try:
            torch.save(trainer.state_dict(), temporary)
        except RuntimeError as e:  # what torch makes of a full disk
            raise DataError(f"{path}: cannot be written ({e})") from e


def save_run(trainer: Trainer, folder: Path, name: str) -> None:
    """Write the checkpoint and the EMA weights as a loadable model, each atomically."""
    save_checkpoint(trainer, folder / CHECKPOINT)
    config = ModelConfig(name=name, network=trainer.config.network, schedule=trainer.schedule)
    save_model(folder, config, trainer.ema.state_dict())


class _StopRequest:
    """Turns SIGINT and SIGTERM into a flag, so that a run ends on a whole checkpoint.

    requested: the signal's number, or 0.
    """

    def __init__(self) -> None:
        self.requested = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(ValueError):  # not in the main thread
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.requested = number


def train(
    data: list[Path],
    out: Path,
    config: TrainConfig,
    *,
    schedule: Schedule | None = None,
    init: Model | None = None,
    device: str = "cpu",
    resume: bool = False,
    lengthen: int | None = None,
    name: str = "model",
    checkpoint_minutes: float = 5.0,
    until_step: int | None = None,
    report: Callable[[str], None] = print,
) -> Trainer:
    """Train on ``data`` and leave checkpoint, model and log in ``out``.

    ``init`` gives the weights, the network's shape and the schedule to begin with.
    With ``resume`` the run's own settings are taken from its checkpoint and ``config`` is
    ignored; ``lengthen`` goes back to where its learning rates began to fall and makes the run
    that many steps long.  ``until_step`` stops early (at a checkpoint) and changes nothing.
    """
    state = read_checkpoint(out, PLATEAU if lengthen else CHECKPOINT) if resume else None
    if state is None and (out / CHECKPOINT).exists():
        raise DataError(f"{out} already holds a run; use --resume or another folder")
    if state is not None:
        config = TrainConfig.from_dict(state["config"])
        if lengthen is not None:
            config = replace(config, steps=lengthen)
            if decay_start(config) <= state["step"]:
                raise DataError(f"{out}: {lengthen} steps would not make this run longer")
        schedule = Schedule(**state["schedule"])
    elif init is not None:
        config, schedule = replace(config, network=init.config.network), init.schedule
    trainer = Trainer(config, schedule or Schedule(), load_images(data), device)
    if state is not None:
        trainer.load_state_dict(state)
    elif init is not None:
        trainer.start_from(init)
    make_folder(out)
    with _StopRequest() as stop:
        _run(trainer, out, name, until_step, checkpoint_minutes, stop, report)
    trainer.stopped_by = stop.requested
    return trainer


def _run(
    trainer: Trainer,
    out: Path,
    name: str,
    until_step: int | None,
    checkpoint_minutes: float,
    stop: _StopRequest,
    report: Callable[[str], None],
) -> None:
    """Steps, log lines and checkpoints until the end or a request to stop."""
    end = min(trainer.config.steps, until_step or trainer.config.steps)
    recent: list[Loss] = []
    saved = logged = time.monotonic()
    while trainer.step < end and not stop.requested:
        if trainer.step == decay_start(trainer.config):
            save_checkpoint(trainer, out / PLATEAU)
        recent.append(trainer.train_step())
        now = time.monotonic()
        if trainer.step % 100 == 0:
            mean = Loss(*(torch.stack(c).mean() for c in zip(*recent, strict=True)))
            rate = len(recent) * trainer.config.batch / (now - logged)
            report(_line(trainer, mean, rate))
            _log(out, trainer.step, "train", mean)
            recent, logged = [], now
        if now - saved > 60.0 * checkpoint_minutes:
            _checkpoint(trainer, out, name, report)
            saved = logged = time.monotonic()
            recent = []
    _checkpoint(trainer, out, name, report)


def _line(trainer: Trainer, loss: Loss, rate: float) -> str:
    return (
        f"step {trainer.step}/{trainer.config.steps}  {float(bits_per_dim(loss)):.3f} bits/dim "
        f"(steps {float(loss.steps):.3f} + final {float(loss.final):.3f}, "
        f"limit {float(loss.mse):.3f})  {rate:.0f} images/s"
    )


def _log(out: Path, step: int, kind: str, loss: Loss) -> None:
    row = {"step": step, "kind": kind, **{k: float(v) for k, v in loss._asdict().items()}}
    try:
        with (out / LOG).open("a") as stream:
            stream.write(json.dumps(row) + os.linesep)
    except OSError as e:
        raise DataError(f"{out / LOG}: cannot be written ({e.strerror or e})") from e


def _checkpoint(trainer: Trainer, out: Path, name: str, report: Callable[[str], None]) -> None:
    save_run(trainer, out, name)
    held_out = trainer.validate()
    if held_out is not None:
        _log(out, trainer.step, "held out", held_out)
        report(f"held out: {float(bits_per_dim(held_out)):.4f} bits/dim; checkpoint written")
