"""What it brings to know that a picture's colours were converted (docs/format.md, §11.2).

    python tools/converted.py --data budgerigar.png --data mountain.png --data spices.png

Every picture is written as JPEG or WebP by Pillow, read again, and its pixels coded losslessly with
and without the lattice that the encoder finds.  Bytes are those of whole files, all of them decoded
and compared.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

import diffcodec
from diffcodec import api
from diffcodec.data import load_images
from diffcodec.plans import DEFAULT_EFFORT

U8 = NDArray[np.uint8]

FORMATS: dict[str, dict[str, int | str]] = {
    "as it is": {},
    "JPEG, quality 85, 4:2:0": {"format": "JPEG", "quality": 85, "subsampling": 2},
    "JPEG, quality 95, 4:4:4": {"format": "JPEG", "quality": 95, "subsampling": 0},
    "WebP, quality 90": {"format": "WEBP", "quality": 90},
}


def through(pixels: U8, options: dict[str, int | str]) -> U8:
    """The pixels [H, W, 3] that come back from a file of this kind."""
    if not options:
        return pixels
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, **options)  # type: ignore[arg-type]
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def sizes(pixels: U8, effort: int) -> tuple[int, int, str]:
    """(bytes without, bytes with the lattice, its name)."""
    with mock.patch.object(api, "lattice_of", return_value=0):
        plain = diffcodec.encode(pixels, effort=effort)
    own = diffcodec.encode(pixels, effort=effort)
    for content in (plain, own):
        decoded = diffcodec.decode(content)
        if not (decoded.exact and np.array_equal(decoded.pixels, pixels)):
            raise SystemExit("a file does not give back its picture")
    return len(plain), len(own), str(api.describe(own)["lattice"])


def rows(pictures: list[U8], effort: int) -> Iterator[str]:
    for name, options in FORMATS.items():
        found = [sizes(through(p, options), effort) for p in pictures]
        plain, own = (sum(one[k] for one in found) for k in (0, 1))
        names = ", ".join(sorted({one[2] for one in found}))
        yield f"| {name} | {plain} | {own} | {100 * own / plain - 100:+.1f} % | {names} |"


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, multiple=True)
@click.option("--limit", default=3, show_default=True, help="Pictures.")
@click.option("--effort", default=DEFAULT_EFFORT, show_default=True)
def main(data: tuple[Path, ...], limit: int, effort: int) -> None:
    """Print bytes with and without, for every kind of file."""
    pictures = load_images(list(data))[:limit]
    click.echo("| written as | bytes without | bytes with the lattice | | lattice |")
    click.echo("|---|---|---|---|---|")
    for row in rows(pictures, effort):
        click.echo(row)


if __name__ == "__main__":
    main()
