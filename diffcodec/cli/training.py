"""The command that trains."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffcodec.cli.base import PATH, Stopped, check_device, device_option, integers, main

if TYPE_CHECKING:
    from torch import Tensor

    from diffcodec.ddpm.unet import UNetConfig
    from diffcodec.model import ModelConfig
    from diffcodec.train.settings import TrainConfig

CODEC = "codec"


@main.command()
@click.option(
    "--data",
    required=True,
    multiple=True,
    help="Folder, archive or image; with --workers also shards, e.g. 'train-{00..99}.tar'.",
)
@click.option("--out", type=PATH, required=True, help="Run folder: checkpoint, model, log.")
@click.option("--resume", is_flag=True, help="Continue exactly where the run in --out stopped.")
@click.option(
    "--network",
    help="codec, ddpm-cifar10, ddpm-256, ddpm-256-large, or a U-Net's shape in a .json file; a "
    "U-Net is trained as in the paper unless told otherwise  [default: codec].",
)
@click.option(
    "--objective",
    type=click.Choice(["coding", "simple", "bound"]),
    help="coding: bits of a file, of the codec's network. Of a U-Net, simple: L_simple (eq. 14); "
    "bound: the variational bound (eq. 5).",
)
@click.option(
    "--prediction",
    type=click.Choice(["eps", "mean"]),
    help="What a U-Net predicts, ε or μ̃  [default: eps].",
)
@click.option(
    "--variance",
    type=click.Choice(["beta", "posterior", "learned"]),
    help="A U-Net's Σ: β_t, β̃_t, or learned between them  [default: posterior].",
)
@click.option("--classes", type=click.IntRange(1), help="Of a class-conditional U-Net.")
@click.option("--steps", type=click.IntRange(1), help="Optimiser steps  [default: 20000].")
@click.option("--batch", type=click.IntRange(1), help="Pictures per step  [default: 64].")
@click.option("--crop", type=click.IntRange(8), help="Side of training crops  [default: 32].")
@click.option("--reductions", help="Learn pictures also reduced by, e.g., 1,2  [default: 1].")
@click.option(
    "--subsampled",
    is_flag=True,
    default=None,
    help="Learn pictures also with their colours at half resolution, as JPEG keeps them.",
)
@click.option("--init", help="Begin with the weights of this model (a name or a folder).")
@click.option("--lr-scale", type=click.FloatRange(0, 10, min_open=True), help="Scale of all rates.")
@click.option("--warmup", type=click.IntRange(1), help="Steps of rising rates  [default: 200].")
@click.option(
    "--decay",
    type=click.FloatRange(0, 1),
    help="Share of the steps during which the rates fall to zero  [default: 0.6].",
)
@click.option(
    "--emphasis",
    type=click.FloatRange(0, 3),
    help="Extra weight of the noisiest steps: better pictures of cut files  [default: 0].",
)
@click.option(
    "--timesteps", help="Train for these alone, such as 1-20; see `diffcodec join`  [default: all]."
)
@click.option(
    "--finals", help="Timesteps from which the final layer may begin, such as 1,2,3  [default: 1]."
)
@click.option("--seed", type=click.IntRange(0, 1 << 31), help="Keys all randomness of the run.")
@click.option("--channels", help="Features at 1/2, 1/4, 1/8 size  [default: 96,144,192].")
@click.option("--blocks", help="Residual blocks at these sizes  [default: 2,2,3].")
@click.option("--holdout", type=click.IntRange(0), help="Pictures kept out  [default: 512].")
@click.option(
    "--precision",
    type=click.Choice(["bf16", "float32"]),
    help="[default: bf16 on a machine that has instructions for it].",
)
@click.option("--name", default="model", show_default=True, help="The model's name.")
@device_option
@click.option("--accumulate", type=click.IntRange(1), default=1, help="Parts of a batch in turn.")
@click.option(
    "--workers",
    type=click.IntRange(0),
    default=0,
    help="Leave the pictures on disk; so many processes read them while training.",
)
@click.option("--checkpoint-minutes", default=5.0, show_default=True)
@click.option("--dry-run", is_flag=True, help="Print the settings and stop.")
def train(
    data: tuple[str, ...],
    out: Path,
    resume: bool,
    name: str,
    device: str,
    checkpoint_minutes: float,
    accumulate: int,
    workers: int,
    dry_run: bool,
    network: str | None,
    classes: int | None,
    channels: str | None,
    blocks: str | None,
    reductions: str | None,
    timesteps: str | None,
    finals: str | None,
    init: str | None,
    **settings: Any,
) -> None:
    """Train a model (Algorithm 1): the codec's, or a U-Net of Ho et al. 2020.

    Defaults are those of the codec's network; a U-Net's are the paper's, appendix B.

    \b
    diffcodec train --data ~/cifar-10-python.tar.gz --out runs/cifar10 --name cifar10
    diffcodec train --data pictures/ --out runs/mine --steps 50000
    diffcodec train --data pictures/ --out runs/mine --resume
    diffcodec train --data pictures/ --out runs/mine --resume --steps 90000   # make it longer
    diffcodec train --data pictures/ --out runs/mine --init photo --lr-scale 0.5
    diffcodec train --data ~/cifar-10-python.tar.gz --out runs/ddpm --network ddpm-cifar10

    On several GPUs or processes, with the same options and the same result:

    \b
    torchrun --nproc-per-node 8 -m diffcodec.train --device cuda --workers 4 \\
        --data 'lsun-{000..299}.tar' --out runs/lsun --network ddpm-256
    """
    from diffcodec.train import train as run
    from diffcodec.train.distributed import join
    from diffcodec.train.settings import TrainConfig, fast_precision
    from diffcodec.train.stream import expand

    check_device(device)
    given = {k: v for k, v in settings.items() if v is not None}
    lengthen = given.pop("steps", None) if resume else None
    if reductions:
        given["reductions"] = integers(reductions)
    if timesteps:
        given["timesteps"] = _range(timesteps)
    if finals:
        given["finals"] = integers(finals)
    shaped = network or classes or channels or blocks
    if resume and (given or shaped or init):
        raise click.UsageError("--resume takes its settings from the run; give none but --steps")
    given.setdefault("precision", fast_precision(device))
    begin = None
    if init and (channels or blocks or network or classes):
        raise click.UsageError(
            "--init gives the network's shape; leave out --network, --channels, --blocks, --classes"
        )
    if init:
        begin = _begin(init)
    try:
        config = (
            TrainConfig() if resume else _config(begin, network, channels, blocks, classes, given)
        )
    except ValueError as e:
        raise click.UsageError(str(e)) from e
    if config.varied and workers:
        raise click.UsageError(
            "--reductions and --subsampled: only of pictures in memory; leave out --workers"
        )
    report: Callable[[str], None] = click.echo
    chosen = json.dumps(config.to_dict())
    if dry_run:
        if not resume:
            report(chosen)
        return
    with join(device) as (world, own_device):
        if not resume and world.writes:
            report(chosen)
        trainer = run(
            [path for pattern in data for path in expand(pattern)],
            out,
            config,
            init=begin,
            device=own_device,
            resume=resume,
            lengthen=lengthen,
            name=name,
            checkpoint_minutes=checkpoint_minutes,
            world=world,
            accumulate=accumulate,
            workers=workers,
            report=report,
        )
    if trainer.stopped_by:
        if world.writes:
            click.echo(
                f"note: stopped at step {trainer.step}; --resume goes on from there", err=True
            )
        raise Stopped(trainer.stopped_by)


def _config(
    begin: tuple[ModelConfig, dict[str, Tensor]] | None,
    network: str | None,
    channels: str | None,
    blocks: str | None,
    classes: int | None,
    given: dict[str, Any],
) -> TrainConfig:
    """The settings of a new run; ValueError or UsageError if they contradict each other."""
    from diffcodec.ddpm.unet import UNetConfig
    from diffcodec.network import NetworkConfig
    from diffcodec.train.settings import TrainConfig, paper_settings

    if begin is not None:
        shape, outputs = begin[0].network, (begin[0].prediction, begin[0].variance)
        own = dict(zip(("prediction", "variance"), outputs, strict=True))
        if any(given.get(key, value) != value for key, value in own.items()):
            raise click.UsageError("--init says what the network predicts; leave that out")
        if isinstance(shape, NetworkConfig):
            return replace(TrainConfig(network=shape), **given)
        return TrainConfig(**{**paper_settings("ddpm-cifar10"), "network": shape, **own, **given})
    if network in (None, CODEC):
        if classes or "variance" in given:
            raise click.UsageError("--classes and --variance are for a U-Net; see --network")
        own_shape = NetworkConfig()
        own_shape = NetworkConfig(
            channels=_triple(channels) or own_shape.channels,
            blocks=_triple(blocks) or own_shape.blocks,
        )
        return replace(TrainConfig(network=own_shape), **given)
    assert network is not None
    if channels or blocks:
        raise click.UsageError("--channels and --blocks are for the codec's network")
    if "emphasis" in given:
        raise click.UsageError("--emphasis is for the codec's network")
    unet = _unet(network)
    learned = given.get("variance") == "learned"
    unet = replace(unet, classes=classes or 0, out_channels=6 if learned else 3)
    settings = paper_settings("ddpm-cifar10" if network.endswith(".json") else network)
    assert isinstance(unet, UNetConfig)
    return TrainConfig(**{**settings, "network": unet, **given})


def _unet(name: str) -> UNetConfig:
    """A U-Net of the paper by its name, or one whose shape is in a .json file."""
    from diffcodec.ddpm.unet import CONFIGS, UNetConfig
    from diffcodec.files import read_bytes

    if name in CONFIGS:
        return CONFIGS[name]
    if not name.endswith(".json"):
        raise click.UsageError(
            f"--network {name}: not one of {CODEC}, {', '.join(CONFIGS)}, nor a .json file"
        )
    try:
        values = json.loads(read_bytes(Path(name)))
        if not isinstance(values, dict):
            raise ValueError("no settings in it")
        return UNetConfig.from_dict(values)
    except (ValueError, TypeError) as e:
        raise click.UsageError(f"{name}: not the shape of a U-Net ({e})") from e


def _begin(name: str) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Configuration and weights of a shipped model or of a model folder."""
    from diffcodec.errors import ModelError
    from diffcodec.model import WEIGHTS, read_config
    from diffcodec.model_check import read_tensors
    from diffcodec.registry import models_folder, shipped

    folder = models_folder() / name if name in shipped() else Path(name)
    if not folder.is_dir():
        raise ModelError(f"unknown model '{name}': give a folder, or one of {', '.join(shipped())}")
    return read_config(folder), read_tensors(folder / WEIGHTS)


def _triple(text: str | None) -> tuple[int, int, int] | None:
    """'a,b,c' as three positive integers."""
    if text is None:
        return None
    values = integers(text)
    if len(values) != 3:
        raise click.UsageError(f"'{text}' is not three integers such as 96,144,192")
    return values[0], values[1], values[2]


def _range(text: str) -> tuple[int, int]:
    """'a-b' or 'a' as the lowest and highest of some timesteps."""
    try:
        low, high = int(text.partition("-")[0]), int(text.rpartition("-")[2])
    except ValueError:
        raise click.UsageError(f"--timesteps {text}: not a range such as 1-20") from None
    return low, high
