"""What JPEG 2000, JPEG, WebP and PNG (all by Pillow) reach on the same pictures.

    python tools/peers.py --data kodak/ --rates 0.25,0.5,1,2,4

JPEG 2000 is one lossless file (5/3, RCT) with a quality layer for every rate, read up to that
layer.  JPEG is progressive, 4:4:4, a separate file for every rate: the largest quality that
fits.  Sizes are whole files.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image, features

from diffcodec.data import load_images
from diffcodec.quality import U8, psnr


def written(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The file Pillow writes."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def jpeg_2000(image: Image.Image, rates: list[float]) -> tuple[bytes, list[U8]]:
    """One lossless file and what it shows at each of ``rates`` (ascending bpp)."""
    layers = [24.0 / rate for rate in rates]
    content = written(
        image,
        "JPEG2000",
        irreversible=False,
        mct=1,
        quality_mode="rates",
        quality_layers=[*layers, 1],
    )
    shown = []
    for number in range(1, len(rates) + 1):
        with Image.open(io.BytesIO(content)) as part:
            tile = part.tile[0]  # Pillow heeds ``layers`` only together with ``reduce``
            part.tile = [tile._replace(args=(tile.args[0], 0, number, *tile.args[3:]))]
            shown.append(np.asarray(part.convert("RGB")))
    return content, shown


def jpeg(image: Image.Image, size: int) -> bytes | None:
    """The progressive JPEG of the highest quality that takes at most ``size`` bytes."""
    best = None
    low, high = 1, 100
    while low <= high:
        quality = (low + high) // 2
        content = written(
            image, "JPEG", quality=quality, subsampling=0, progressive=True, optimize=True
        )
        if len(content) <= size:
            best, low = content, quality + 1
        else:
            high = quality - 1
    return best


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--limit", type=int, help="Only the first so many pictures.")
@click.option("--rates", default="0.25,0.5,1,2,4", show_default=True, help="bits per pixel")
def main(data: Path, limit: int | None, rates: str) -> None:
    """Print mean lossless sizes and mean PSNR at each rate."""
    cuts = [float(rate) for rate in rates.split(",")]
    lossless: dict[str, Callable[[Image.Image], bytes]] = {
        "PNG": lambda image: written(image, "PNG", optimize=True),
        "WebP": lambda image: written(image, "WEBP", lossless=True, quality=100, method=6),
    }
    sizes: dict[str, list[float]] = {name: [] for name in [*lossless, "JPEG 2000"]}
    quality: dict[str, list[list[float]]] = {"JPEG 2000, one file": [], "JPEG, a file each": []}
    for pixels in load_images([data])[:limit]:
        image = Image.fromarray(pixels)
        for name, write in lossless.items():
            sizes[name].append(8 * len(write(image)) / pixels.size)
        whole, shown = jpeg_2000(image, cuts)
        sizes["JPEG 2000"].append(8 * len(whole) / pixels.size)
        quality["JPEG 2000, one file"].append([psnr(part, pixels) for part in shown])
        row = []
        for rate in cuts:
            content = jpeg(image, int(rate * pixels.shape[0] * pixels.shape[1] / 8))
            if content is None:
                row.append(float("nan"))
                continue
            with Image.open(io.BytesIO(content)) as part:
                row.append(psnr(np.asarray(part), pixels))
        quality["JPEG, a file each"].append(row)
    click.echo(f"Pillow {Image.__version__}, OpenJPEG {features.version('jpg_2000')}")
    for name, found in sizes.items():
        click.echo(f"{name:22s} {np.mean(found):.4f} bpd lossless")
    click.echo(f"{'bpp':22s} " + " ".join(f"{rate:6g}" for rate in cuts))
    for name, rows in quality.items():
        means = np.nanmean(np.array(rows), axis=0)
        click.echo(f"{name:22s} " + " ".join(f"{value:6.2f}" for value in means))


if __name__ == "__main__":
    main()
