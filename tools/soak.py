"""Soak test: encode and decode many small pictures in one process; memory and time must not grow.

    OMP_NUM_THREADS=1 python tools/soak.py --count 10000

Every picture is a new one, of sides that vary, cut from the pictures of --data or made up:
colour, grey and with transparency.  Each must decode exactly; every tenth file is also cut,
and every tenth damaged, because errors must not leak either.  Prints resident memory and
times per tenth of the run, and exits with 1 if memory grew by over 5 % after the warm-up or a
picture of the last tenth takes over 10 % more of the processor than one of the first.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray

import diffcodec
from diffcodec.errors import FormatError
from diffcodec.model import Model
from diffcodec.registry import load_model

U8 = NDArray[np.uint8]
WARM_UP = 500
MAX_GROWTH, MAX_DRIFT = 1.05, 1.10


@dataclass(frozen=True)
class Turn:
    """One picture: bytes of its file, seconds on the clock, of the processor; memory in MiB."""

    size: int
    wall: float
    cpu: float
    rss: float


def resident() -> float:
    """This process's resident memory in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def pictures(
    count: int, sides: tuple[int, int], data: tuple[Path, ...], rng: np.random.Generator
) -> Iterator[U8]:
    """``count`` pictures uint8 [H, W], [H, W, 3] or [H, W, 4]."""
    source = None
    if data:
        from diffcodec.data import load_images

        source = load_images(list(data))
    for number in range(count):
        height, width = rng.integers(sides[0], sides[1], 2, endpoint=True)
        if source is None:
            colour = made_up(height, width, rng)
        else:
            image = np.asarray(source[int(rng.integers(len(source)))])
            top = int(rng.integers(max(image.shape[0] - height, 0) + 1))
            left = int(rng.integers(max(image.shape[1] - width, 0) + 1))
            colour = image[top : top + height, left : left + width]
        if number % 8 == 3:
            yield np.ascontiguousarray(colour[..., 1])
        elif number % 8 == 7:
            alpha = made_up(*colour.shape[:2], rng)[..., :1]
            yield np.concatenate([colour, alpha], axis=2)
        else:
            yield np.ascontiguousarray(colour)


def made_up(height: int, width: int, rng: np.random.Generator) -> U8:
    """A smooth picture with a little noise, uint8 [height, width, 3]."""
    y, x = np.mgrid[:height, :width]
    slopes = rng.normal(scale=8, size=(3, 2))
    smooth = rng.uniform(40, 215, 3) + np.stack([a * y + b * x for a, b in slopes], axis=2)
    noise = rng.normal(scale=4, size=smooth.shape)
    return np.clip(np.rint(smooth + noise), 0, 255).astype(np.uint8)


def turn(pixels: U8, model: Model, number: int, rng: np.random.Generator) -> Turn:
    """Encode and decode one picture; AssertionError if it does not come back."""
    wall, cpu = time.perf_counter(), time.process_time()
    content = diffcodec.encode(pixels, model=model, effort=1, seed=number)
    decoded = diffcodec.decode(content, model=model)
    assert decoded.exact
    assert np.array_equal(decoded.pixels, pixels)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if number % 10 == 4:
        with suppress(FormatError):  # a cut in the header
            diffcodec.decode(content[: int(rng.integers(len(content)))], model=model)
    if number % 10 == 9:
        damaged = bytearray(content)
        damaged[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        with suppress(diffcodec.DiffcodecError):  # most of what is damaged
            diffcodec.decode(bytes(damaged), model=model)
    return Turn(len(content), wall, cpu, resident())


def row(turns: list[Turn], first: int) -> str:
    wall, cpu = (float(np.median([getattr(t, key) for t in turns])) for key in ("wall", "cpu"))
    size = sum(t.size for t in turns)
    return (
        f"| {first + 1}–{first + len(turns)} | {size} | {turns[-1].rss:.1f} | "
        f"{1000 * cpu:.0f} | {1000 * wall:.0f} |"
    )


@click.command()
@click.option("--count", type=click.IntRange(20), default=10000, show_default=True)
@click.option("--sides", type=(int, int), default=(8, 32), show_default=True, help="In pixels.")
@click.option("--data", type=click.Path(path_type=Path), multiple=True, help="Training pictures.")
@click.option("--model", "name", default="cifar10", show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(count: int, sides: tuple[int, int], data: tuple[Path, ...], name: str, seed: int) -> None:
    """Encode and decode many small pictures in one process; memory and time must stay flat."""
    torch.set_num_threads(1)
    rng, model = np.random.default_rng(seed), load_model(name)
    turns: list[Turn] = []
    tenth = count // 10
    print("| pictures | bytes | resident, MiB | processor, ms | clock, ms |\n|---|---|---|---|---|")
    for number, pixels in enumerate(pictures(count, sides, data, rng)):
        turns.append(turn(pixels, model, number, rng))
        if len(turns) % tenth == 0:
            print(row(turns[-tenth:], len(turns) - tenth), flush=True)
    warm = turns[min(WARM_UP, tenth) - 1].rss
    growth = turns[-1].rss / warm
    first, last = (float(np.median([t.cpu for t in part])) for part in _ends(turns, tenth))
    print(f"{count} of {count} exact; sides {sides[0]}–{sides[1]}, model {name}")
    print(
        f"memory {warm:.1f} MiB after the warm-up, {turns[-1].rss:.1f} MiB at the end: "
        f"×{growth:.3f}"
    )
    print(f"median time of the last tenth over the first: ×{last / first:.3f}")
    sys.exit(growth > MAX_GROWTH or last / first > MAX_DRIFT)


def _ends(turns: list[Turn], tenth: int) -> tuple[list[Turn], list[Turn]]:
    return turns[:tenth], turns[-tenth:]


if __name__ == "__main__":
    main()
