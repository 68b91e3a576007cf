"""What exact arithmetic costs: the same weights coded in integers and in floating point.

    python tools/exact_cost.py --data test_first5000.webp --limit 200

Every picture is encoded and decoded by both, one after the other on one thread, so that noise of
the machine falls on both alike.  Files count in bytes on disk, headers included; times are
medians, and so is their ratio.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from statistics import median

import click
import numpy as np
import torch

import diffcodec
from diffcodec.data import U8, load_images
from diffcodec.model import Model, read_model
from diffcodec.registry import models_folder


def in_floats(model: Model) -> Model:
    """The same weights, evaluated in floating point."""
    twin = copy.copy(model)
    twin._exact = None
    return twin


def measure(pixels: U8, model: Model, effort: int) -> tuple[int, float]:
    """(bytes of the file, seconds to decode it)."""
    content = diffcodec.encode(pixels, model=model, effort=effort)
    begun = time.perf_counter()
    decoded = diffcodec.decode(content, model=model)
    seconds = time.perf_counter() - begun
    if not np.array_equal(decoded.pixels, pixels):
        raise SystemExit("a picture did not come back")
    return len(content), seconds


@click.command()
@click.option("--model", "folder", type=click.Path(path_type=Path), help="[default: cifar10]")
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--limit", default=200, show_default=True)
@click.option("--effort", default=3, show_default=True)
def main(folder: Path | None, data: Path, limit: int, effort: int) -> None:
    """Print bytes and decoding times of both, and their ratios."""
    torch.set_num_threads(1)
    exact = read_model(folder or models_folder() / "cifar10")
    models = {"exact": exact, "float": in_floats(exact)}
    found: dict[str, list[tuple[int, float]]] = {name: [] for name in models}
    for pixels in load_images([data])[:limit]:
        for name, model in models.items():
            found[name].append(measure(pixels, model, effort))
    size = {k: float(np.mean([b for b, _ in v])) for k, v in found.items()}
    seconds = {k: median(s for _, s in v) for k, v in found.items()}
    ratio = median(a[1] / b[1] for a, b in zip(found["exact"], found["float"], strict=True))
    for name in models:
        click.echo(f"{name}: {size[name]:.1f} bytes a file, decoding {seconds[name]:.3f} s")
    click.echo(
        f"exact over float: {100 * (size['exact'] / size['float'] - 1):+.2f} % bytes, "
        f"{ratio:.2f} x decoding time, {limit} pictures, effort {effort}"
    )


if __name__ == "__main__":
    main()
