"""Peak memory and time of coding a large picture: made up from a photograph, mirrored to size.

    python tools/peak_memory.py --data tests/data/budgerigar.png --megapixels 24 --stop-t 290

Runs ``diffcodec encode`` and ``decode`` as programs of their own and prints what the system says
of them.  Without --stop-t everything is coded, which takes a minute or two for every megapixel;
all layers of steps need the same memory, so the first one tells theirs.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from PIL import Image

from diffcodec.files import write_bytes
from diffcodec.image import image_bytes


def enlarged(path: Path, megapixels: float) -> np.ndarray:
    """The picture and its mirror images side by side, 3:2, uint8 [H, W, 3]."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    height = round((megapixels * 1e6 / 1.5) ** 0.5)
    width = round(1.5 * height)
    margin = [(0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0)]
    return np.pad(pixels, margin, mode="symmetric")


def measure(*command: str) -> None:
    """Run a command of diffcodec and print its result, its seconds and the peak so far."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", "diffcodec.cli", *command], check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    click.echo(f"{command[0]}: {time.perf_counter() - begun:.0f} s, peak {peak:.2f} GiB")


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--megapixels", default=24.0, show_default=True)
@click.option("--stop-t", type=int, help="Code no finer than this timestep.")
@click.option("--effort", default=1, show_default=True)
def main(data: Path, megapixels: float, stop_t: int | None, effort: int) -> None:
    """Encode and decode one large picture and print peak memory and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        source, coded = Path(folder) / "large.png", Path(folder) / "large.ddc"
        pixels = enlarged(data, megapixels)
        click.echo(f"{pixels.shape[1]}x{pixels.shape[0]}")
        write_bytes(source, image_bytes(pixels, ".png"))
        stop = ["--stop-t", str(stop_t)] if stop_t else []
        measure("encode", str(source), "-o", str(coded), "--effort", str(effort), *stop)
        measure("decode", str(coded), "-o", str(Path(folder) / "same.png"), *stop)


if __name__ == "__main__":
    main()
