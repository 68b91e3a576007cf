"""Commands that draw pictures: sample, interpolate."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffcodec.cli.base import PATH, Progress, check_device, device_option, main
from diffcodec.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from diffcodec.ddpm.process import ReverseProcess, Variance
    from diffcodec.ddpm.samplers import Sampler

Command = Callable[..., Any]


def process_options(command: Command) -> Command:
    """Those of everything that runs a network in batches: model, variance, seed, batch, device."""
    for option in (
        device_option,
        click.option(
            "--batch",
            type=click.IntRange(1),
            default=16,
            show_default=True,
            help="At most so many network inputs at a time: bounds memory.",
        ),
        click.option("--seed", type=click.IntRange(0, (1 << 32) - 1), default=0, show_default=True),
        click.option(
            "--variance",
            type=click.Choice(["beta", "posterior"]),
            help="σ² = β_t or β̃_t  [default: the model's].",
        ),
        click.option("--model", help="Name of a shipped model, or a model folder."),
    ):
        command = option(command)
    return command


def chain_options(command: Command) -> Command:
    """Those of the reverse chain."""
    for option in (
        click.option("--eta", type=click.FloatRange(0, 1), help="Of DDIM  [default: 0]."),
        click.option(
            "--sampler",
            type=click.Choice(["ddpm", "ddim"]),
            default="ddpm",
            show_default=True,
            help="ddpm is Algorithm 2.",
        ),
        click.option(
            "--steps", type=click.IntRange(1), help="Network evaluations of a chain  [default: T]."
        ),
    ):
        command = option(command)
    return command


def class_options(command: Command) -> Command:
    """Those of class-conditional models."""
    for option in (
        click.option(
            "--guidance",
            type=click.FloatRange(0),
            default=0.0,
            help="w of classifier-free guidance: (1 + w) ε(class) − w ε  [default: 0].",
        ),
        click.option("--label", type=click.IntRange(0), help="Class to draw."),
    ):
        command = option(command)
    return command


def load(name: str, variance: Variance | None, device: str) -> ReverseProcess:
    """The model's reverse process on the device, with another variance where one is named."""
    from torch import nn

    from diffcodec import registry

    process = registry.load_process(name)
    if variance and process.variance == "learned":
        raise click.UsageError("--variance: the model has learned its own")
    check_device(device)
    assert isinstance(process.network, nn.Module)
    process.network.to(device)
    return replace(process, variance=variance or process.variance)


def make_sampler(process: ReverseProcess, **options: Any) -> Sampler:
    """A Sampler of the options of :func:`process_options` and those of chains and classes."""
    from diffcodec.ddpm.samplers import Sampler
    from diffcodec.ddpm.store import classes

    total, count = process.schedule.timesteps, classes(process)
    steps, label, eta = options["steps"], options.get("label"), options["eta"]
    guidance, ddim = options.get("guidance", 0.0), options["sampler"] == "ddim"
    if steps is not None and steps > total:
        raise click.UsageError(f"--steps: the model has {total} timesteps")
    if eta is not None and not ddim:
        raise click.UsageError("--eta goes with --sampler ddim")
    if options["variance"] and ddim:
        raise click.UsageError("--variance: DDIM has --eta instead")
    if label is not None and label >= count:
        raise click.UsageError(f"--label: the model has {count or 'no'} classes")
    if guidance and label is None:
        raise click.UsageError("--guidance goes with --label")
    return Sampler(
        process,
        steps=steps,
        ddim=ddim,
        eta=eta or 0.0,
        label=label,
        guidance=guidance,
        seed=options["seed"],
        batch=options["batch"],
        device=options["device"],
    )


def timesteps(text: str, low: int, total: int, option: str) -> list[int]:
    """'a,b,…' as timesteps low..total."""
    try:
        times = [int(part) for part in text.split(",")]
    except ValueError:
        raise click.UsageError(f"{option}: '{text}' is not a list such as 500,250") from None
    if not all(low <= t <= total for t in times):
        raise click.UsageError(f"{option}: timesteps must lie in {low}..{total}")
    return times


def check_size(name: object, pixels: NDArray[np.uint8], multiple: int) -> None:
    """DataError if the network cannot take a picture of this size, [H, W, 3]."""
    height, width = pixels.shape[:2]
    if height % multiple or width % multiple:
        raise DataError(
            f"{name} is {width}×{height}, but the network needs sides that are multiples of "
            f"{multiple}: crop or resize it"
        )


def check_output(path: Path) -> None:
    """DataError if a picture cannot be written to ``path``, before hours go into it."""
    import numpy as np

    from diffcodec.files import check_folder
    from diffcodec.image import image_bytes

    check_folder(path)
    image_bytes(np.zeros((1, 1, 3), np.uint8), path.suffix)


@main.command()
@click.option("-n", "count", type=click.IntRange(1, 1024), default=16, show_default=True)
@chain_options
@class_options
@click.option("--size", type=click.IntRange(8, 512), default=32, show_default=True)
@process_options
@click.option("--progressive", is_flag=True, help="Rows of x̂_0 along each chain (Figure 6).")
@click.option(
    "--share-t", help="Rows of samples from one x_t, for each of these t; x_t last (Figure 7)."
)
@click.option("-o", "--output", type=PATH, required=True)
def sample(
    count: int,
    size: int,
    progressive: bool,
    share_t: str | None,
    output: Path,
    **options: Any,
) -> None:
    """Draw pictures from a model and write them as a grid.

    \b
    diffcodec sample -n 16 --steps 100 -o grid.png
    diffcodec sample -n 16 --steps 50 --sampler ddim -o grid.png
    diffcodec sample -n 16 --label 3 --guidance 1 --model runs/classes -o grid.png
    diffcodec sample -n 4 --progressive -o fig6.png
    diffcodec sample -n 3 --share-t 1000,750,500,250 -o fig7.png

    A picture depends on the seed and on its place, not on -n or --batch.
    """
    from diffcodec import registry
    from diffcodec.ddpm import figures
    from diffcodec.ddpm.samplers import to_pixels
    from diffcodec.ddpm.store import size_multiple
    from diffcodec.files import write_bytes
    from diffcodec.image import image_bytes

    if progressive and share_t:
        raise click.UsageError("--progressive and --share-t are two figures: take one")
    process = load(options["model"] or registry.SMALL, options["variance"], options["device"])
    sampler = make_sampler(process, **options)
    if size % (multiple := size_multiple(process)):
        raise click.UsageError(f"--size must be a multiple of {multiple} with this model")
    check_output(output)
    begun, progress = time.perf_counter(), Progress("sample")
    if progressive:
        sheet = figures.progressive(sampler, count, size, size, progress)
    elif share_t:
        shared = timesteps(share_t, 1, process.schedule.timesteps, "--share-t")
        sheet = figures.shared_latents(sampler, shared, count, size, size, progress)
    else:
        drawn = sampler.draw(range(count), size, size, progress=progress)
        sheet = figures.grid(to_pixels(drawn))
    write_bytes(output, image_bytes(sheet, output.suffix))
    click.echo(f"{output}: {count} pictures, {time.perf_counter() - begun:.1f} s")


@main.command()
@click.argument("first", type=PATH)
@click.argument("second", type=PATH)
@click.option("--t", "mixed_at", default="500", show_default=True, help="Where latents are mixed.")
@click.option("-n", "count", type=click.IntRange(1, 99), default=9, show_default=True)
@chain_options
@class_options
@process_options
@click.option("-o", "--output", type=PATH, required=True)
def interpolate(
    first: Path, second: Path, mixed_at: str, count: int, output: Path, **options: Any
) -> None:
    """Mix the latents x_t of two pictures and decode them (Figures 8 and 9).

    \b
    diffcodec interpolate A.png B.png --t 500 -n 9 -o strip.png
    diffcodec interpolate A.png B.png --t 0,250,500,750,1000 -o grid.png

    A row for every t: FIRST, its reconstruction, -n pictures between, the reconstruction of
    SECOND, SECOND. Both latents have the same noise.
    """
    from diffcodec import registry
    from diffcodec.ddpm import figures
    from diffcodec.ddpm.store import size_multiple
    from diffcodec.files import write_bytes
    from diffcodec.image import image_bytes, read_image

    check_output(output)
    a, b = (read_image(path).levels.transpose(1, 2, 0) for path in (first, second))
    if a.shape != b.shape:
        raise DataError(f"{first} and {second} differ in size: crop or resize one of them")
    name = options["model"] or registry.default_name(a.shape[0] * a.shape[1])
    process = load(name, options["variance"], options["device"])
    sampler = make_sampler(process, **options)
    times = timesteps(mixed_at, 0, process.schedule.timesteps, "--t")
    check_size(first, a, size_multiple(process))
    begun = time.perf_counter()
    sheet = figures.interpolation(sampler, a, b, times, count, Progress("interpolate"))
    write_bytes(output, image_bytes(sheet, output.suffix))
    click.echo(f"{output}: {len(times)} rows, {time.perf_counter() - begun:.1f} s")
