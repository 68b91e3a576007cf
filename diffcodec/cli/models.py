"""Commands on models: train, quantize."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from diffcodec.cli.base import PATH, main
from diffcodec.plans import PLANS


@main.command()
@click.option("--data", type=PATH, required=True, multiple=True, help="Folder, archive or image.")
@click.option("--out", type=PATH, required=True, help="Run folder: checkpoint, model, log.")
@click.option("--resume", is_flag=True, help="Continue exactly where the run in --out stopped.")
@click.option("--steps", type=click.IntRange(1), help="Optimiser steps  [default: 20000].")
@click.option("--batch", type=click.IntRange(1), help="Pictures per step  [default: 64].")
@click.option("--crop", type=click.IntRange(8), help="Side of training crops  [default: 32].")
@click.option("--reductions", help="Learn pictures also reduced by, e.g., 1,2  [default: 1].")
@click.option("--init", help="Begin with the weights of this model (a name or a folder).")
@click.option("--lr-scale", type=click.FloatRange(0, 10, min_open=True), help="Scale of all rates.")
@click.option(
    "--decay",
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of the steps during which the rates fall to zero  [default: 0.6].",
)
@click.option(
    "--emphasis",
    type=click.FloatRange(0, 3),
    help="Extra weight of the noisiest steps: better pictures of cut files  [default: 0].",
)
@click.option("--seed", type=click.IntRange(0, 1 << 31), help="Keys all randomness of the run.")
@click.option("--channels", help="Features at 1/2, 1/4, 1/8 size  [default: 96,144,192].")
@click.option("--blocks", help="Residual blocks at these sizes  [default: 2,2,3].")
@click.option("--holdout", type=click.IntRange(0), help="Pictures kept out  [default: 512].")
@click.option("--name", default="model", show_default=True, help="The model's name.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--checkpoint-minutes", default=5.0, show_default=True)
@click.option("--dry-run", is_flag=True, help="Print the settings and stop.")
def train(
    data: tuple[Path, ...],
    out: Path,
    resume: bool,
    name: str,
    device: str,
    checkpoint_minutes: float,
    dry_run: bool,
    channels: str | None,
    blocks: str | None,
    reductions: str | None,
    init: str | None,
    **settings: Any,
) -> None:
    """Train a model (Algorithm 1, code length as the objective); see also models/*/card.md.

    \b
    diffcodec train --data ~/cifar-10-python.tar.gz --out runs/cifar10 --name cifar10
    diffcodec train --data pictures/ --out runs/mine --steps 50000
    diffcodec train --data pictures/ --out runs/mine --resume
    diffcodec train --data pictures/ --out runs/mine --resume --steps 90000   # make it longer
    diffcodec train --data pictures/ --out runs/mine --init photo --lr-scale 0.5
    """
    import torch

    from diffcodec import registry
    from diffcodec.network import NetworkConfig
    from diffcodec.train import TrainConfig
    from diffcodec.train import train as run

    given = {k: v for k, v in settings.items() if v is not None}
    lengthen = given.pop("steps", None) if resume else None
    network = NetworkConfig()
    network = NetworkConfig(
        channels=_triple(channels) or network.channels, blocks=_triple(blocks) or network.blocks
    )
    if reductions:
        given["reductions"] = _integers(reductions)
    if init and (channels or blocks):
        raise click.UsageError("--init gives the network's shape; leave out --channels, --blocks")
    begin = registry.load_model(init) if init else None
    if begin:
        network = begin.network.config
    config = replace(TrainConfig(network=network), **given)
    if config.crop % 8:
        raise click.UsageError("--crop must be a multiple of 8")
    if device != "cpu" and not (device == "cuda" and torch.cuda.is_available()):
        raise click.UsageError(f"--device {device}: not available on this machine")
    if resume and (given or channels or blocks or init):
        raise click.UsageError("--resume takes its settings from the run; give none but --steps")
    if not resume:
        click.echo(json.dumps(config.to_dict()))
    if dry_run:
        return
    report: Callable[[str], None] = click.echo
    run(
        list(data),
        out,
        config,
        init=begin,
        device=device,
        resume=resume,
        lengthen=lengthen,
        name=name,
        checkpoint_minutes=checkpoint_minutes,
        report=report,
    )


@main.command()
@click.argument("model", type=PATH)
@click.option("--data", type=PATH, required=True, multiple=True, help="Never a test set.")
@click.option("--plan", type=click.IntRange(0, max(PLANS)), help="Default: the model's.")
@click.option("--images", type=click.IntRange(1), default=128, show_default=True)
@click.option("--crop", type=click.IntRange(8), default=32, show_default=True)
@click.option("--int8", is_flag=True, help="Weights of 8 bits: for large pictures, see below.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def quantize(
    model: Path,
    data: tuple[Path, ...],
    plan: int | None,
    images: int,
    crop: int,
    int8: bool,
    seed: int,
) -> None:
    """Give the model folder MODEL its integer network, so that files decode everywhere.

    \b
    diffcodec quantize runs/cifar10 --data train_0.webp
    diffcodec quantize runs/photo --data photos/ --plan 3 --crop 64 --int8

    The integers are made for the timesteps of one plan (docs/format.md), which is then the
    model's: 2 is for small pictures, 3 for photographs. The activations' ranges are calibrated
    on crops of the pictures.  With --int8 the network is 1.5 times as fast on large pictures and
    its steps cost 0.2 % more bits.  Files written with the model before cannot be read with
    it after.
    """
    from diffcodec.calibrate import exact_tensors
    from diffcodec.data import CropSampler, load_images
    from diffcodec.int8 import WEIGHT_MAX
    from diffcodec.model import Model, read_model, save_exact

    if crop % 8:
        raise click.UsageError("--crop must be a multiple of 8")
    trained = read_model(model)
    batch = CropSampler(load_images(list(data)), crop, images, seed)(0)
    if plan is not None:
        trained = Model(replace(trained.config, plan=plan), trained.network.state_dict())
    limit = {"weight_max": WEIGHT_MAX} if int8 else {}
    save_exact(model, trained.config, exact_tensors(trained, batch, seed, **limit))
    click.echo(f"{model}: fingerprint {read_model(model).fingerprint.hex()}")


def _triple(text: str | None) -> tuple[int, int, int] | None:
    """'a,b,c' as three positive integers."""
    if text is None:
        return None
    values = _integers(text)
    if len(values) != 3:
        raise click.UsageError(f"'{text}' is not three integers such as 96,144,192")
    return values[0], values[1], values[2]


def _integers(text: str) -> tuple[int, ...]:
    """'a,b,…' as positive integers."""
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.UsageError(f"'{text}' is not a list of integers such as 1,2") from None
    if min(values) < 1:
        raise click.UsageError(f"'{text}': all must be positive")
    return values
