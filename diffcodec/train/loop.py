"""Algorithm 1, for the codec's network and for the paper's; resumes exactly where it stopped.

Everything random in step k is keyed by (seed, k): the pictures, the crops, the noise and the
timesteps.  A checkpoint therefore holds weights, EMA, optimiser state and the step, and nothing
else is needed to continue as if never interrupted, on another number of processes if need be:

    torchrun --nproc-per-node 8 -m diffcodec.train --data … --out …
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from diffcodec.data import NO_CLASS, U8, CropSampler, load_labelled, reduced, with_subsampled
from diffcodec.ddpm.unet import UNetConfig
from diffcodec.errors import DataError, ModelError
from diffcodec.experts import SINGLE, expert_at, split
from diffcodec.files import make_folder
from diffcodec.model import ModelConfig, save_model
from diffcodec.model_check import check_shapes
from diffcodec.network import UnitConv2d
from diffcodec.schedule import Schedule
from diffcodec.train.checkpoint import (
    CHECKPOINT,
    PLATEAU,
    append_log,
    read_checkpoint,
    save_checkpoint,
)
from diffcodec.train.distributed import World, bounds, unsynchronised
from diffcodec.train.settings import PAPER_SCHEDULE, TrainConfig, decay_start, lr_factor
from diffcodec.train.stream import Batch, Pictures, Sampler, StreamSampler, batches, index_pictures
from diffcodec.train.tasks import Part, Terms, make_task

VALIDATION_BATCH = 64


class Trainer:
    """Weights, EMA and optimisers of one run, advanced a step at a time.

    images: in memory or on disk, the held-out ones at the end; labels: their classes.
    accumulate: how many parts of a batch are evaluated one after the other; workers: processes
    that read pictures ahead.  Neither of them, nor the world's size, changes what is learnt, but
    for the masks of dropout, which are drawn anew for every part.
    """

    def __init__(
        self,
        config: TrainConfig,
        schedule: Schedule,
        images: list[U8] | Pictures,
        device: str,
        *,
        labels: Sequence[int] | None = None,
        world: World | None = None,
        accumulate: int = 1,
        workers: int = 0,
    ) -> None:
        if not 0 <= config.holdout < len(images):
            raise DataError(f"cannot hold out {config.holdout} of {len(images)} images")
        self.world = world or World()
        if config.batch < self.world.size * accumulate:
            raise DataError(
                f"a batch of {config.batch} cannot be split into "
                f"{self.world.size * accumulate} parts; make it larger"
            )
        last = max(*config.finals, *(config.timesteps or ()), 1)
        if last > schedule.timesteps:
            raise DataError(f"there is no timestep {last}: {schedule.timesteps} in all")
        self.config, self.schedule, self.device = config, schedule, torch.device(device)
        self.accumulate, self.workers = accumulate, workers
        self.batches, self.held_out = _samplers(config, images, labels)
        self.task = make_task(config, schedule)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = self.task.network().to(self.device)
            self.ema = self.task.network().to(self.device).eval()
        self.ema.load_state_dict(self.model.state_dict())
        self.shared = self.world.share_out(self.model)
        self.optimizers, self.peaks = zip(*self.task.optimizers(self.model), strict=True)
        self.step = 0
        self._ahead: Iterator[Batch] | None = None
        self.stopped_by = 0  # number of the signal that ended the run early

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Begin with these weights; ModelError names the first tensor that does not fit."""
        check_shapes(self.model.state_dict(), weights)
        self.model.load_state_dict(weights)
        self.ema.load_state_dict(weights)

    def loss(self, model: nn.Module, part: Part, key: tuple[int, int], training: bool) -> Terms:
        """The part's share of its batch's loss; all randomness from ``key``."""
        return self.task.loss(model, part, key, training)

    def _next(self) -> Part:
        """This process's part of the batch of the present step."""
        first, stop = bounds(self.config.batch, self.world.size, self.world.rank)
        if self._ahead is None:
            steps = range(self.step, max(self.config.steps, self.step + 1))
            self._ahead = batches(self.batches, steps, first, stop, self.workers)
        return self._part(next(self._ahead), first, self.config.batch)

    def _part(self, batch: Batch, first: int, whole: int) -> Part:
        images, labels = (value.to(self.device) for value in batch)
        return Part(images, labels, first, whole)

    def train_step(self) -> Terms:
        """One optimiser step; returns this process's share of the batch's loss."""
        key, mine = (self.config.seed, self.step), self._next()
        factor = self.config.lr_scale * lr_factor(self.step, self.config)
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
        rows = []
        for number in range(self.accumulate):
            part = mine.between(*bounds(len(mine.images), self.accumulate, number))
            last = number == self.accumulate - 1
            with nullcontext() if last else unsynchronised(self.shared):
                with torch.autocast(
                    self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"
                ):
                    terms = self.loss(self.shared, part, key, training=True)
                # The processes' gradients are averaged, their losses are shares of a sum.
                (self.task.total(terms) * self.world.size).backward()
            rows.append(tuple(term.detach() for term in terms))
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        if torch.isfinite(norm):  # a rare overflow must not poison the weights
            for optimizer in self.optimizers:
                optimizer.step()
            for module in self.model.modules():
                if isinstance(module, UnitConv2d):
                    module.normalize_()
        self.step += 1
        self._average()
        return type(terms)(*(torch.stack(column).sum(dim=0) for column in zip(*rows, strict=True)))

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        for average, value in zip(self.ema.parameters(), self.model.parameters(), strict=True):
            average.lerp_(value, 1.0 - decay)

    @torch.no_grad()
    def validate(self) -> Terms | None:
        """Float32 loss of the EMA weights on the held-out pictures; None without any."""
        if self.held_out is None:
            return None
        rows = []
        for k in range(-(-self.config.holdout // VALIDATION_BATCH)):
            images, labels = self.held_out(k), self.held_out.labels(k)
            batch = torch.from_numpy(images), torch.from_numpy(labels)
            part = self._part(batch, 0, len(images))
            rows.append(self.loss(self.ema, part, (0, k), training=False))
        return mean_terms(rows)

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
        """Continue from a checkpoint; ModelError names the first tensor that does not fit."""
        for network, name in ((self.model, "model"), (self.ema, "ema")):
            check_shapes(network.state_dict(), state[name])
            network.load_state_dict(state[name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self._ahead = state["step"], None


def mean_terms(rows: list[Terms]) -> Terms:
    return type(rows[0])(*(torch.stack(column).mean() for column in zip(*rows, strict=True)))


def _samplers(
    config: TrainConfig, images: list[U8] | Pictures, labels: Sequence[int] | None
) -> tuple[Sampler, Sampler | None]:
    """Of the pictures to learn from, and of those held out (the same for ever)."""
    cut = len(images) - config.holdout
    known = images.labels.tolist() if isinstance(images, Pictures) else labels
    if config.classes:
        _check_classes(known if known is not None else [NO_CLASS], config.classes)
    if isinstance(images, Pictures):
        learnt = images.between(0, cut)
        kept = images.between(cut, len(images))
        sampler = StreamSampler(learnt, config.crop, config.batch, config.seed)
        return sampler, StreamSampler(kept, config.crop, VALIDATION_BATCH, 0) if len(kept) else None
    own = labels[:cut] if labels is not None and not config.varied else None
    pixels = reduced(images[:cut], config.reductions, config.crop)
    if config.subsampled:
        pixels = with_subsampled(pixels)
    memory = CropSampler(pixels, config.crop, config.batch, config.seed, own)
    if cut == len(images):
        return memory, None
    rest = labels[cut:] if labels is not None else None
    return memory, CropSampler(images[cut:], config.crop, VALIDATION_BATCH, 0, rest)


def _check_classes(labels: Sequence[int], classes: int) -> None:
    for number, label in enumerate(labels):
        if not 0 <= label < classes:
            found = "no class" if label == NO_CLASS else f"class {label}"
            raise DataError(f"picture {number} has {found}, not one of 0 to {classes - 1}")


def model_config(trainer: Trainer, name: str) -> ModelConfig:
    config = trainer.config
    return ModelConfig(
        name,
        config.network,
        trainer.schedule,
        prediction=config.prediction,
        variance=config.variance,
    )


def save_run(trainer: Trainer, folder: Path, name: str) -> None:
    """Write the checkpoint and the EMA weights as a loadable model, each atomically."""
    save_checkpoint(trainer.state_dict(), folder / CHECKPOINT)
    save_model(folder, model_config(trainer, name), trainer.ema.state_dict())


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
    init: tuple[ModelConfig, dict[str, Tensor]] | None = None,
    device: str = "cpu",
    resume: bool = False,
    lengthen: int | None = None,
    name: str = "model",
    checkpoint_minutes: float = 5.0,
    until_step: int | None = None,
    world: World | None = None,
    accumulate: int = 1,
    workers: int = 0,
    report: Callable[[str], None] = print,
) -> Trainer:
    """Train on ``data`` and leave checkpoint, model and log in ``out``.

    ``init`` is a model whose weights, shape and schedule to begin with; what the held-out pictures
    take with these weights comes first in the log, to compare with (the first steps of a run undo
    more than they bring).
    With ``resume`` the run's own settings are taken from its checkpoint and ``config`` is
    ignored; ``lengthen`` goes back to where its learning rates began to fall and makes the run
    that many steps long.  ``until_step`` stops early (at a checkpoint) and changes nothing.
    With ``workers`` the pictures stay on disk and that many processes read them.
    """
    state = _resumed(out, lengthen) if resume else None
    if state is None and (out / CHECKPOINT).exists():
        raise DataError(f"{out} already holds a run; use --resume or another folder")
    if state is not None:
        config, schedule = TrainConfig.from_dict(state["config"]), Schedule(**state["schedule"])
    elif init is not None:
        config, schedule = replace(config, network=init[0].network), init[0].schedule
        init = init[0], _weights_for(config, *init)
    elif schedule is None:
        schedule = PAPER_SCHEDULE if isinstance(config.network, UNetConfig) else Schedule()
    images, labels = (index_pictures(data), None) if workers else load_labelled(data)
    trainer = Trainer(
        config,
        schedule,
        images,
        device,
        labels=labels,
        world=world,
        accumulate=accumulate,
        workers=workers,
    )
    if state is not None:
        try:
            trainer.load_state_dict(state)
        except ModelError as e:
            raise ModelError(f"{out}: the checkpoint does not fit its own settings: {e}") from e
    elif init is not None:
        trainer.start_from(init[1])
    if trainer.world.writes:
        make_folder(out)
        if init is not None and state is None:
            _report_held_out(trainer, out, report, "before the first step")
    with _StopRequest() as stop:
        _run(trainer, out, name, until_step, checkpoint_minutes, stop, report)
    trainer.stopped_by = stop.requested
    return trainer


def _weights_for(
    config: TrainConfig, begin: ModelConfig, weights: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Those to begin with: of several networks the one for the lowest timestep trained."""
    if begin.experts == SINGLE:
        return weights
    if config.timesteps is None:
        raise ModelError(
            f"model '{begin.name}' is {len(begin.experts)} networks, for timesteps from "
            f"{', '.join(map(str, begin.experts))} on; say with --timesteps what to train"
        )
    return split(weights, len(begin.experts))[expert_at(begin.experts, config.timesteps[0])]


def _resumed(out: Path, lengthen: int | None) -> dict[str, Any]:
    """The state to continue from, its settings already those of the longer run."""
    state = read_checkpoint(out)
    if lengthen is None:
        return state
    if TrainConfig.from_dict(state["config"]).decay:
        state = read_checkpoint(out, PLATEAU)
    config = replace(TrainConfig.from_dict(state["config"]), steps=lengthen)
    if decay_start(config) <= state["step"]:
        raise DataError(f"{out}: {lengthen} steps would not make this run longer")
    return {**state, "config": config.to_dict()}


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
    world, end = trainer.world, min(trainer.config.steps, until_step or trainer.config.steps)
    recent: list[Terms] = []
    saved = logged = time.monotonic()
    while trainer.step < end and not world.any(bool(stop.requested), trainer.device):
        if trainer.step == decay_start(trainer.config) and world.writes:
            save_checkpoint(trainer.state_dict(), out / PLATEAU)
        try:
            recent.append(trainer.train_step())
        except DataError:  # a picture that cannot be read, before anything has changed
            if world.writes:
                save_run(trainer, out, name)
            raise
        now = time.monotonic()
        if trainer.step % 100 == 0:
            mean = mean_terms(recent)
            mean = type(mean)(*(world.total(term) for term in mean))
            rate = len(recent) * trainer.config.batch / (now - logged)
            if world.writes:
                line = f"step {trainer.step}/{trainer.config.steps}  {trainer.task.describe(mean)}"
                report(f"{line}  {rate:.0f} images/s")
                _log(out, trainer.step, "train", mean)
            recent, logged = [], now
        if world.writes and now - saved > 60.0 * checkpoint_minutes:
            _checkpoint(trainer, out, name, report)
            saved = time.monotonic()
            logged += saved - now
    if world.writes:
        _checkpoint(trainer, out, name, report)


def _log(out: Path, step: int, kind: str, terms: Terms) -> None:
    append_log(out, step, kind, {k: float(v) for k, v in terms._asdict().items()})


def _checkpoint(trainer: Trainer, out: Path, name: str, report: Callable[[str], None]) -> None:
    save_run(trainer, out, name)
    _report_held_out(trainer, out, report, "checkpoint written")


def _report_held_out(
    trainer: Trainer, out: Path, report: Callable[[str], None], occasion: str
) -> None:
    held_out = trainer.validate()
    if held_out is not None:
        _log(out, trainer.step, "held out", held_out)
        report(f"held out: {trainer.task.describe(held_out)}; {occasion}")
