"""Commands on models: sample, evaluate, train, quantize."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from diffcodec.cli.base import PATH, Progress, Stopped, main
from diffcodec.plans import EFFORTS, PLANS, default_effort


@main.command()
@click.option("-n", "count", type=click.IntRange(1, 1024), default=16, show_default=True)
@click.option("--steps", type=click.IntRange(1, 1000), help="Default: all T.")
@click.option("--size", type=click.IntRange(8, 512), default=32, show_default=True)
@click.option("--seed", type=click.IntRange(0, (1 << 32) - 1), default=0, show_default=True)
@click.option("--model", help="Name of a shipped model, or a model folder.")
@click.option("-o", "--output", type=PATH, required=True)
def sample(
    count: int, steps: int | None, size: int, seed: int, model: str | None, output: Path
) -> None:
    """Draw pictures from the model by Algorithm 2 and write them as a grid.

    \b
    diffcodec sample -n 16 --steps 100 -o grid.png
    """
    from diffcodec import registry, samplers
    from diffcodec.files import write_bytes
    from diffcodec.image import image_bytes

    if size % 8:
        raise click.UsageError("--size must be a multiple of 8")
    loaded = registry.load_model(model or registry.SMALL)
    if steps is not None and steps > loaded.schedule.timesteps:
        raise click.UsageError(f"--steps: the model has {loaded.schedule.timesteps} timesteps")
    begun = time.perf_counter()
    pictures = samplers.ancestral(
        loaded,
        count,
        size,
        seed=seed,
        steps=steps,
        progress=Progress("sample"),
    )
    write_bytes(output, image_bytes(samplers.grid(pictures), output.suffix))
    click.echo(f"{output}: {count} pictures, {time.perf_counter() - begun:.1f} s")


@main.command()
@click.option("--data", type=PATH, required=True, multiple=True, help="Folder, archive or image.")
@click.option("--limit", type=click.IntRange(1), help="Only the first so many pictures.")
@click.option("--model", help="Name of a shipped model, or a model folder.")
@click.option(
    "--effort",
    type=click.IntRange(min(EFFORTS), max(EFFORTS)),
    help="[default: as encode]",
)
@click.option(
    "--rates",
    default="0.5,0.75,1.25,2.0,4.0",
    show_default=True,
    help="bpp at which each file is cut and decoded.",
)
@click.option("--ideal/--no-ideal", default=True, help="Also the model's ideal chain.")
@click.option("--log", is_flag=True, help="A line on stderr for every picture.")
@click.option("--json", "json_path", type=PATH, help="Write all figures, picture by picture.")
def evaluate(
    data: tuple[Path, ...],
    limit: int | None,
    model: str | None,
    effort: int | None,
    rates: str,
    ideal: bool,
    log: bool,
    json_path: Path | None,
) -> None:
    """Encode, decode and measure pictures: real bytes beside the model's ideal bits.

    \b
    diffcodec evaluate --data test_first5000.webp --limit 200 --json result.json
    """
    from diffcodec import registry
    from diffcodec.data import load_images
    from diffcodec.evaluate import evaluate_picture, finite, summarise, to_dict
    from diffcodec.files import write_bytes

    try:
        cuts = tuple(float(rate) for rate in rates.split(",") if rate)
    except ValueError:
        raise click.BadParameter(
            "must be numbers separated by commas", param_hint="--rates"
        ) from None
    if not all(math.isfinite(rate) and rate > 0 for rate in cuts):
        raise click.UsageError("--rates must be positive numbers")
    pictures = load_images(list(data))[:limit]
    area = pictures[0].shape[0] * pictures[0].shape[1]
    loaded = registry.load_model(model) if model else registry.default_model(area)
    effort = effort or default_effort(area)
    # Compilation of the search and of the tables is no part of any picture's time.
    evaluate_picture("warm-up", pictures[0][:32, :32], loaded, effort=effort)
    reports = []
    for number, pixels in enumerate(tqdm(pictures, desc="evaluate", leave=False)):
        report = evaluate_picture(
            str(number), pixels, loaded, effort=effort, rates=cuts, ideal=ideal
        )
        reports.append(report)
        if log:
            click.echo(
                f"{number}: {report.bytes} bytes, {report.bpd:.4f} bpd, "
                f"encode {report.encode_seconds:.2f} s, decode {report.decode_seconds:.2f} s",
                err=True,
            )
    summary = summarise(reports)
    _print_summary(summary)
    if json_path:
        document = {
            "model": loaded.name,
            "fingerprint": loaded.fingerprint.hex(),
            "effort": effort,
            "mean": summary,
            "pictures": [to_dict(r) for r in reports],
        }
        write_bytes(json_path, (json.dumps(finite(document), indent=1) + "\n").encode())
    if summary["exact"] != len(reports):
        sys.exit(1)


def _print_summary(summary: dict[str, Any]) -> None:
    click.echo("    t  noise (levels)   payload bits   ideal bits   ratio  noise ratio   PSNR dB")
    for row in summary["layers"]:
        quality = "exact" if math.isinf(row["psnr"]) else f"{row['psnr']:.2f}"
        click.echo(
            f"{row['t']:5d}  {row['noise_levels']:14.2f}  {row['real_bits']:13.1f}"
            f"  {row['ideal_bits']:11.1f}  {row['overhead']:6.3f}  {row['noise_ratio']:11.3f}"
            f"  {quality:>8}"
        )
    click.echo(f"exact round trips      {summary['exact']} of {summary['pictures']}")
    click.echo(f"file                   {summary['bytes']:.1f} bytes = {summary['bpd']:.4f} bpd")
    click.echo(f"  header and framing   {summary['header_and_framing']:.1f} bytes")
    if not math.isnan(summary["ideal_bpd"]):
        click.echo(f"ideal channel          {summary['ideal_bpd']:.4f} bpd (not bytes)")
        click.echo(f"coded steps over ideal {summary['step_overhead']:.4f}")
    for rate, value in summary["psnr_at_bpp"].items():
        click.echo(f"cut at {rate} bpp: {value:.2f} dB")
    click.echo(
        f"median seconds         encode {summary['encode_seconds_median']:.3f}, "
        f"decode {summary['decode_seconds_median']:.3f}; "
        f"{summary['evaluations']:.0f} network evaluations"
    )
    click.echo(
        f"seconds per megapixel  encode {summary['encode_seconds_per_megapixel']:.1f}, "
        f"decode {summary['decode_seconds_per_megapixel']:.1f}, "
        f"cut at 0.1 bpp {summary['preview_seconds_per_megapixel']:.1f}"
    )


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
        network = begin.config.network
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
    trainer = run(
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
    if trainer.stopped_by:
        click.echo(f"note: stopped at step {trainer.step}; --resume goes on from there", err=True)
        raise Stopped(trainer.stopped_by)


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
