"""Peak memory and time of coding a large picture: made up from a photograph, mirrored to size.

    python tools/peak_memory.py --data tests/data/budgerigar.png --timesteps 680,180,45,9,1

Runs encoding and decoding as processes of their own and prints what the system says of them.
Coding everything takes a minute or two for every megapixel; with --timesteps the file has only
these steps of the model's plan, and the final layer: it is larger, but every part of the work
needs the memory that it always needs.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from diffcodec import api
from diffcodec.allocator import keep_freed_memory
from diffcodec.files import write_bytes
from diffcodec.image import image_bytes
from diffcodec.plans import PLANS, Plan
from diffcodec.registry import LARGE, load_model


def enlarged(path: Path, megapixels: float) -> np.ndarray:
    """The picture and its mirror images side by side, 3:2, uint8 [H, W, 3]."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    height = round((megapixels * 1e6 / 1.5) ** 0.5)
    width = round(1.5 * height)
    margin = [(0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0)]
    return np.pad(pixels, margin, mode="symmetric")


def encode(source: Path, coded: Path, timesteps: tuple[int, ...], effort: int) -> None:
    """Read, encode and write a picture, as the command line does, with a plan of one's own."""
    keep_freed_memory()
    model = load_model(LARGE)
    plan = Plan(timesteps, PLANS[3].eta) if timesteps else model.plan
    Image.MAX_IMAGE_PIXELS = None
    with Image.open(source) as image:
        write_bytes(coded, api.encode(image, model=model, plan=plan, effort=effort))


def decode(coded: Path, target: Path) -> None:
    """Read, decode and write a file, as the command line does."""
    keep_freed_memory()
    decoded = api.decode(coded.read_bytes(), model=load_model(LARGE))
    assert decoded.exact
    write_bytes(target, image_bytes(decoded.pixels, ".png"))


def measure(work: Callable[..., None], *values: Any) -> None:
    """Run a function in a process of its own; print its seconds and the peak so far."""
    begun = time.perf_counter()
    process = multiprocessing.get_context("spawn").Process(target=work, args=values)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{work.__name__} failed")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    click.echo(f"{work.__name__}: {time.perf_counter() - begun:.0f} s, peak {peak:.2f} GiB")


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--megapixels", default=24.0, show_default=True)
@click.option("--timesteps", default="", help="Of the plan, from its first to 1  [default: all].")
@click.option("--effort", default=1, show_default=True)
def main(data: Path, megapixels: float, timesteps: str, effort: int) -> None:
    """Encode and decode one large picture and print peak memory and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        source, coded = Path(folder) / "large.png", Path(folder) / "large.ddc"
        pixels = enlarged(data, megapixels)
        click.echo(f"{pixels.shape[1]}x{pixels.shape[0]}")
        write_bytes(source, image_bytes(pixels, ".png"))
        del pixels
        measure(encode, source, coded, tuple(int(t) for t in timesteps.split(",") if t), effort)
        click.echo(f"{coded.stat().st_size} bytes")
        measure(decode, coded, Path(folder) / "same.png")


if __name__ == "__main__":
    main()
