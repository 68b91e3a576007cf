"""Commands on model folders: quantize, calibrate, import, export."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from diffcodec.cli.base import PATH, Progress, main
from diffcodec.plans import PLANS

if TYPE_CHECKING:
    from torch import Tensor

    from diffcodec.model import ModelConfig


@main.command()
@click.argument("model", type=PATH)
@click.option("--data", type=PATH, required=True, multiple=True, help="Never a test set.")
@click.option("--plan", type=click.IntRange(0, max(PLANS)), help="Default: the model's.")
@click.option("--images", type=click.IntRange(1), default=128, show_default=True)
@click.option("--crop", type=click.IntRange(8), default=32, show_default=True)
@click.option("--subsampled", is_flag=True, help="Calibrate with colours at half resolution, too.")
@click.option(
    "--weight-bits",
    type=click.Choice(["16", "8"]),
    default="16",
    show_default=True,
    help="8: large pictures take less time where there is AMX.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def quantize(
    model: Path,
    data: tuple[Path, ...],
    plan: int | None,
    images: int,
    crop: int,
    subsampled: bool,
    weight_bits: str,
    seed: int,
) -> None:
    """Give the model folder MODEL its integer network, so that files decode everywhere.

    \b
    diffcodec quantize runs/cifar10 --data train_0.webp --plan 29
    diffcodec quantize runs/photo --data photos/ --plan 27 --crop 64

    The integers are made for the timesteps of one plan (docs/format.md), which is then the
    model's: 29 is for small pictures, 27 for photographs. The activations' ranges are calibrated
    on crops of the pictures.  Files written with the model before cannot be read with it after.
    """
    from diffcodec.calibrate import exact_tensors
    from diffcodec.data import CropSampler, load_images, with_subsampled
    from diffcodec.model import Model, read_model, save_exact

    if crop % 8:
        raise click.UsageError("--crop must be a multiple of 8")
    trained = read_model(model)
    pictures = load_images(list(data))
    if subsampled:
        pictures = with_subsampled(pictures)
    batch = CropSampler(pictures, crop, images, seed)(0)
    if plan is not None:
        trained = Model(replace(trained.config, plan=plan), trained.network.state_dict())
    tensors = exact_tensors(trained, batch, seed, int(weight_bits))
    save_exact(model, trained.config, tensors)
    click.echo(f"{model}: fingerprint {read_model(model).fingerprint.hex()}")


@main.command()
@click.argument("models", type=PATH, nargs=-1, required=True)
@click.option("--floors", required=True, help="The lowest timestep of each, such as 26,2,1.")
@click.option("-o", "--output", type=PATH, required=True, help="The model folder to write.")
@click.option("--name", help="The model's name  [default: of the last one].")
def join(models: tuple[Path, ...], floors: str, output: Path, name: str | None) -> None:
    """Make one model of several networks, each trained for a range of timesteps.

    \b
    diffcodec train ... --init cifar10 --timesteps 24-690 --out runs/noisy
    diffcodec train ... --init cifar10 --timesteps 1-28 --out runs/clean
    diffcodec join runs/noisy runs/clean --floors 26,1 -o runs/both
    diffcodec quantize runs/both --data train_0.webp --plan 29

    MODELS are given from noise to picture: the first answers at its lowest timestep and above,
    each of the others from its own up to the one before.  All must have the same shape.
    """
    from diffcodec.cli.base import integers
    from diffcodec.files import make_folder
    from diffcodec.model import WEIGHTS, join_models, read_config, save_model
    from diffcodec.model_check import read_tensors

    parts = [(read_config(folder), read_tensors(folder / WEIGHTS)) for folder in models]
    config, weights = join_models(parts, integers(floors), name)
    make_folder(output)
    save_model(output, config, weights)
    click.echo(f"{output}: model '{config.name}' of {len(models)} networks")


@main.command("import")
@click.argument("source", metavar="DIR", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="The model folder to write.")
@click.option("--name", help="The model's name  [default: of DIR].")
@click.option("--data", type=PATH, multiple=True, help="Calibrate on these pictures at once.")
def import_model(source: Path, output: Path, name: str | None, data: tuple[Path, ...]) -> None:
    """Make a model folder of a DDPM in the format of Hugging Face's diffusers.

    \b
    diffcodec import ddpm-cifar10-32/ -o models/ddpm
    diffcodec import ddpm-cifar10-32/ -o models/ddpm --data photos/   # and code with it:
    diffcodec encode photo.png -o photo.ddc --model models/ddpm

    DIR holds unet/config.json with the weights (.safetensors or .bin) beside it and
    scheduler/scheduler_config.json, or all of it at the top.  What diffcodec's U-Net cannot
    represent is refused by name.  Of a class-conditional network the last class stands for none
    given.  Without --data the model samples; to code with it, run `diffcodec calibrate`.
    """
    from diffcodec.ddpm.interchange import read_folder
    from diffcodec.files import make_folder
    from diffcodec.model import CALIBRATION, save_model

    if output.resolve() == source.resolve():
        raise click.UsageError("-o must be another folder than DIR")
    config, weights = read_folder(source, name)
    tensors = _measure(config, weights, data, None, None, 0) if data else None
    make_folder(output)
    with suppress(OSError):  # a folder that cannot be written is refused by what follows
        (output / CALIBRATION).unlink(missing_ok=True)  # of another model
    save_model(output, config, weights)
    click.echo(
        f"{output}: model '{config.name}', {sum(v.numel() for v in weights.values())} weights"
    )
    if tensors is not None:
        _store(output, config, tensors)


@main.command("export")
@click.argument("model", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="The diffusers folder to write.")
def export_model(model: Path, output: Path) -> None:
    """Write the U-Net of the model folder MODEL as a DDPM that diffusers opens.

    \b
    diffcodec export runs/ddpm -o ddpm-hf/
    """
    from diffcodec.ddpm.interchange import write_folder
    from diffcodec.model import WEIGHTS, read_config
    from diffcodec.model_check import read_tensors

    write_folder(output, read_config(model), read_tensors(model / WEIGHTS))
    click.echo(f"{output}: DDPMPipeline.from_pretrained opens it")


@main.command()
@click.argument("model", type=PATH)
@click.option("--data", type=PATH, required=True, multiple=True, help="Never a test set.")
@click.option("--plan", type=click.IntRange(0, max(PLANS)), help="Default: the model's.")
@click.option("--images", type=click.IntRange(1), help="[default: 64, fewer large ones]")
@click.option("--crop", type=click.IntRange(8), help="[default: the network's usual size]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def calibrate(
    model: Path,
    data: tuple[Path, ...],
    plan: int | None,
    images: int | None,
    crop: int | None,
    seed: int,
) -> None:
    """Measure what the U-Net of the model folder MODEL lacks to code with it.

    \b
    diffcodec calibrate models/ddpm --data photos/
    diffcodec calibrate models/ddpm --data photos/ --plan 3

    On crops of the pictures: for every timestep of the plan and every band of the transform the
    variance of the network's error, and the final layer's constants.  They become part of the
    model: files written with the model before cannot be read with it after.  The arithmetic is
    floating point: such files decode on machines like the writer's.

    The plan's timesteps (docs/format.md; 2 is for small pictures, 3 for photographs) are taken
    at the same noise levels of the model's own schedule.
    """
    from diffcodec.model import WEIGHTS, read_config
    from diffcodec.model_check import read_tensors

    if crop is not None and crop % 8:
        raise click.UsageError("--crop must be a multiple of 8")
    config, weights = read_config(model), read_tensors(model / WEIGHTS)
    if plan is not None and PLANS[plan].adaptive:
        raise click.UsageError(f"--plan {plan}: adaptive plans are for the codec's own networks")
    if plan is not None:
        config = replace(config, plan=plan)
    _store(model, config, _measure(config, weights, data, images, crop, seed))


def _measure(
    config: ModelConfig,
    weights: dict[str, Tensor],
    data: tuple[Path, ...],
    images: int | None,
    crop: int | None,
    seed: int,
) -> dict[str, Tensor]:
    from diffcodec.calibrate import calibrate as run
    from diffcodec.calibrate import default_crop, default_images
    from diffcodec.data import CropSampler, load_images

    pictures = load_images(list(data))
    crop = crop or default_crop(config, pictures)
    batch = CropSampler(pictures, crop, images or default_images(crop), seed)(0)
    return run(config, weights, batch, seed, Progress("calibrate"))


def _store(folder: Path, config: ModelConfig, tensors: dict[str, Tensor]) -> None:
    from diffcodec.model import read_model, save_calibration

    save_calibration(folder, config, tensors)
    click.echo(f"{folder}: calibrated, fingerprint {read_model(folder).fingerprint.hex()}")
