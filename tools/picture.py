"""The picture at the top of the README: one file, cut, and what each cut decodes to.

python tools/picture.py tests/data/budgerigar.png -o docs/images/one-file.webp
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageDraw, ImageFont

import diffcodec
from diffcodec.files import write_bytes
from diffcodec.image import image_bytes, read_image, to_array
from diffcodec.peers import written
from diffcodec.quality import psnr

SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)
GAP, HEAD = 6, 40
TITLE, TYPE = 17, 13
INK, FAINT, PAPER = (28, 28, 30), (105, 105, 110), (255, 255, 255)


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--crop", type=click.IntRange(8), default=256, show_default=True, help="Width shown.")
@click.option("--left", type=click.IntRange(0), default=64, show_default=True)
def main(source: Path, output: Path, crop: int, left: int) -> None:
    """Encode SOURCE once, cut the file, decode the cuts, and put the pictures side by side."""
    picture = read_image(source).without_metadata()
    pixels = to_array(picture.levels, picture.grey)
    content = diffcodec.encode(picture)
    high = pixels.shape[0]
    sheet = Image.new("RGB", (len(SHARES) * (crop + GAP) - GAP, high + HEAD), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, share in enumerate(SHARES):
        size = max(1, round(share * len(content)))
        decoded = diffcodec.decode(content[:size])
        quality = "exact" if decoded.exact else f"{psnr(decoded.pixels, pixels):.1f} dB"
        click.echo(f"{share:5.0%} {size:7d} bytes  {quality}")
        x = number * (crop + GAP)
        draw.text((x, 0), f"{share:.0%} of the file", INK, ImageFont.load_default(TITLE))
        draw.text((x, 21), f"{size:,} bytes, {quality}", FAINT, ImageFont.load_default(TYPE))
        shown = Image.fromarray(np.ascontiguousarray(decoded.pixels[:, left : left + crop]))
        sheet.paste(shown.convert("RGB"), (x, HEAD))
    if output.suffix == ".webp":  # for a page; any other kind is written without loss
        write_bytes(output, written(sheet, "WEBP", quality=92, method=6))
    else:
        write_bytes(output, image_bytes(np.asarray(sheet), output.suffix))


if __name__ == "__main__":
    main()
