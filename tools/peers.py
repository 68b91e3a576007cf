"""What JPEG 2000, JPEG, WebP and PNG (all by Pillow) reach on the same pictures.

    python tools/peers.py --data kodak/ --rates 0.25,0.5,1,2,4

JPEG 2000 is one lossless file (5/3, RCT) with a quality layer for every rate, read up to that
layer.  JPEG is progressive, 4:4:4, a separate file for every rate: the largest quality that
fits.  Sizes are whole files.  ``diffcodec compare`` measures more formats on one picture.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from PIL import Image, features

from diffcodec.data import load_images
from diffcodec.peers import PEERS, embedded_jpeg_2000, lossless_entry, lossy_entry
from diffcodec.quality import psnr

EXACT = ("PNG", "WebP")


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--limit", type=int, help="Only the first so many pictures.")
@click.option("--rates", default="0.25,0.5,1,2,4", show_default=True, help="bits per pixel")
def main(data: Path, limit: int | None, rates: str) -> None:
    """Print mean lossless sizes and mean PSNR at each rate."""
    cuts = [float(rate) for rate in rates.split(",")]
    peers = {peer.name: peer for peer in PEERS}
    sizes: dict[str, list[float]] = {name: [] for name in [*EXACT, "JPEG 2000"]}
    quality: dict[str, list[list[float]]] = {"JPEG 2000, one file": [], "JPEG, a file each": []}
    for pixels in load_images([data])[:limit]:
        image = Image.fromarray(pixels)
        for name in EXACT:
            exact = lossless_entry(peers[name], image)
            sizes[name].append(8 * exact.size / pixels.size if exact else float("nan"))
        whole, shown = embedded_jpeg_2000(image, cuts)
        sizes["JPEG 2000"].append(8 * len(whole) / pixels.size)
        quality["JPEG 2000, one file"].append([psnr(part, pixels) for part in shown])
        limits = [int(rate * pixels.shape[0] * pixels.shape[1] / 8) for rate in cuts]
        files = [lossy_entry(peers["JPEG"], image, limit) for limit in limits]
        row = [psnr(file.shown, pixels) if file else float("nan") for file in files]
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
