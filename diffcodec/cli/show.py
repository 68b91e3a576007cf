"""Commands for looking: compare a picture's formats, view a file layer by layer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click

from diffcodec.cli.base import PATH, Progress, main
from diffcodec.errors import DataError, DiffcodecError
from diffcodec.plans import DEFAULT_EFFORT, EFFORTS


def _numbers(text: str, option: str, count: int | None = None) -> list[float]:
    """Numbers separated by commas; UsageError for anything else."""
    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or (count and len(found) != count) or not all(map(math.isfinite, found)):
        raise click.UsageError(f"{option}: '{text}' is not {count or 'a list of'} numbers")
    return found


@main.command()
@click.argument("source", type=PATH)
@click.option("-o", "--output", type=PATH, help="A sheet of crops, for instance sheet.png.")
@click.option(
    "--rates", default="0.25,0.5,1,2", show_default=True, help="bpp at which files are compared."
)
@click.option("--crop", metavar="LEFT,TOP,SIDE", help="Of the sheet.  [default: where most shows]")
@click.option("--model", help="Name of a shipped model, or a model folder.")
@click.option(
    "--effort",
    type=click.IntRange(min(EFFORTS), max(EFFORTS)),
    default=DEFAULT_EFFORT,
    show_default=True,
)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def compare(
    source: Path,
    output: Path | None,
    rates: str,
    crop: str | None,
    model: str | None,
    effort: int,
    as_json: bool,
) -> None:
    """Compare what diffcodec and other formats make of the picture SOURCE.

    Once exact, then at each rate: our one file cut there, and of every other format the best file
    that is not larger. Whole files are counted, of the bare pixels, without metadata. PNG, WebP,
    JPEG, JPEG 2000 and AVIF are written by Pillow, JPEG XL by pillow-jxl-plugin; SSIM and MS-SSIM
    are torchmetrics' (pip install 'diffcodec[compare]').

    \b
    diffcodec compare photo.png
    diffcodec compare photo.png -o sheet.png --rates 0.2,0.5 --crop 120,40,96
    """
    from diffcodec import registry
    from diffcodec.compare import compare as measure
    from diffcodec.compare import contact_sheet
    from diffcodec.files import write_bytes
    from diffcodec.image import image_bytes, read_image, to_array

    wanted = _numbers(rates, "--rates")
    if min(wanted) <= 0:
        raise click.UsageError("--rates must be positive")
    box = None
    if crop:
        left, top, side = (int(value) for value in _numbers(crop, "--crop", 3))
        if side < 1:
            raise click.UsageError("--crop: the side must be positive")
        box = (left, top, side)
    picture = read_image(source)
    if picture.alpha is not None:
        click.echo("note: transparency is left out of the comparison", err=True)
    pixels = to_array(picture.levels, picture.grey and not picture.planes)
    area = picture.width * picture.height
    loaded = registry.load_model(model) if model else registry.default_model(area)
    groups = measure(
        pixels,
        loaded,
        effort=effort,
        rates=wanted,
        progress=Progress("compare"),
    )
    rows = _rows(groups, pixels)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        _show_rows(rows)
    kept = {group.rate for group in groups}
    for rate in wanted:
        if rate not in kept:
            click.echo(f"note: {rate:g} bpp is no cut of a file of this picture", err=True)
    if output:
        write_bytes(output, image_bytes(contact_sheet(pixels, groups, box), output.suffix))
        click.echo(f"{output}: written", err=as_json)


def _rows(groups: list[Any], pixels: Any) -> list[dict[str, Any]]:
    """The groups of a comparison as plain data that JSON can hold."""
    from diffcodec.compare import figures
    from diffcodec.evaluate import finite

    return [
        {
            "rate": group.rate,
            "limit": group.limit,
            "files": [finite(figures(entry, pixels)) for entry in group.entries],
            "absent": group.absent,
        }
        for group in groups
    ]


def _show_rows(rows: list[dict[str, Any]]) -> None:
    for group in rows:
        exact = group["rate"] is None
        click.echo("exact" if exact else f"at most {group['limit']} bytes ({group['rate']:g} bpp)")
        click.echo(
            f"  {'':12s} {'bytes':>9} {'bpp':>7} {'PSNR':>6} {'SSIM':>6} {'MS-SSIM':>7} "
            f"{'enc. s':>7} {'dec. s':>7}"
        )
        for row in group["files"]:
            quality = [
                _figure(row["psnr"], 6, 2, "exact" if exact else "–"),
                _figure(row["ssim"], 6, 4),
                _figure(row["ms_ssim"], 7, 4),
                _figure(row["encode_seconds"], 7, 2, "cut"),
                _figure(row["decode_seconds"], 7, 2),
            ]
            click.echo(
                f"  {row['codec']:12s} {row['bytes']:9d} {row['bpp']:7.3f} " + " ".join(quality)
            )
        for name, reason in group["absent"].items():
            click.echo(f"  {name:12s} {reason}")


def _figure(value: float | None, width: int, digits: int, absent: str = "–") -> str:
    return f"{absent:>{width}}" if value is None else f"{value:{width}.{digits}f}"


@main.command()
@click.argument("source", type=PATH)
@click.option("-o", "--output", type=PATH, help="Default: SOURCE with the suffix .html.")
@click.option("--original", type=PATH, help="The picture it was made of, to show the error.")
@click.option("--gif", type=PATH, help="Also an animation of the layers.")
@click.option("--model", help="Folder of the model the file was written with.")
def view(
    source: Path, output: Path | None, original: Path | None, gif: Path | None, model: str | None
) -> None:
    """Make a web page that shows the .ddc file SOURCE layer by layer.

    The page is one file and needs no network. A slider goes along the layers and shows bytes,
    bpp, noise and, if the file is whole or --original is given, PSNR and the error.

    \b
    diffcodec view photo.ddc
    diffcodec view small.ddc -o page.html --original photo.png --gif layers.gif
    """
    from diffcodec import registry, viewer
    from diffcodec.container import read_header
    from diffcodec.files import read_bytes, write_bytes
    from diffcodec.image import read_image, to_array

    content = read_bytes(source)
    pixels = None
    if original:
        picture = read_image(original)
        pixels = to_array(picture.levels, False)
    try:
        header, _ = read_header(content)
        loaded = (
            registry.load_model(model)
            if model
            else registry.find_model(header.fingerprint, header.model)
        )
        shown = viewer.frames(content, loaded, pixels)
    except DiffcodecError as e:
        raise type(e)(f"{source}: {e}") from None
    target = output or source.with_suffix(".html")
    if target.exists() and output is None:
        raise DataError(f"{target} exists; name the output with -o")
    text = viewer.page(source.name, content, shown, pixels)
    write_bytes(target, text.encode())
    click.echo(f"{target}: {len(shown)} layers, {len(text)} bytes")
    if gif:
        write_bytes(gif, viewer.animation(shown))
        click.echo(f"{gif}: {len(shown)} layers")
