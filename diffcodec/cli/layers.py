"""On files alone: truncate, info."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from diffcodec.cli.base import PATH, T, main, max_pixels_option, size_limit
from diffcodec.errors import DiffcodecError, FormatError
from diffcodec.files import STANDARD


@main.command()
@click.argument("source", type=PATH)
@click.option("-o", "--output", type=PATH, required=True)
@click.option("--bytes", "max_bytes", type=click.IntRange(1), help="Keep this many bytes.")
@click.option("--bpp", type=click.FloatRange(0, min_open=True), help="Keep this many bits/pixel.")
@click.option("--stop-t", type=T, help="Keep layers down to the smallest timestep >= T.")
@click.option("--model", help="Folder of the model the file was written with.")
def truncate(
    source: Path,
    output: Path,
    max_bytes: int | None,
    bpp: float | None,
    stop_t: int | None,
    model: str | None,
) -> None:
    """Cut a file: the first bytes of a .ddc file are a smaller, coarser .ddc file.

    \b
    diffcodec truncate photo.ddc -o small.ddc --bpp 0.5
    """
    from diffcodec import api, registry
    from diffcodec.container import read_header
    from diffcodec.files import read_bytes, write_bytes

    if sum(option is not None for option in (max_bytes, bpp, stop_t)) != 1:
        raise click.UsageError("give exactly one of --bytes, --bpp and --stop-t")
    content = read_bytes(source)
    loaded = registry.load_model(model) if model else None
    try:
        header, _ = read_header(content)
        area = header.width * header.height
        limit = size_limit(bpp, max_bytes, area)
        kept = api.truncate(content, max_bytes=limit, stop_t=stop_t or 0, model=loaded)
    except DiffcodecError as e:
        raise type(e)(f"{source}: {e}") from None
    write_bytes(output, kept)
    line = f"{output}: {len(kept)} of {len(content)} bytes, {8 * len(kept) / area:.3f} bpp"
    click.echo(line, err=output == STANDARD)


@main.command()
@click.argument("source", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
@click.option("--model", help="Folder of the model the file was written with.")
@max_pixels_option("178956970")
def info(source: Path, as_json: bool, model: str | None, max_pixels: int | None) -> None:
    """Show header and layers of a .ddc file: timestep, noise in levels, bits, cumulative bpp."""
    from diffcodec import api, registry
    from diffcodec.files import read_bytes

    content = read_bytes(source)
    loaded = registry.load_model(model) if model else None
    try:
        facts = api.describe(content, loaded, max_pixels=max_pixels)
    except DiffcodecError as e:
        raise type(e)(f"{source}: {e}") from None
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        _show_info(facts)
    if facts["damage"]:
        raise FormatError(f"{source}: {facts['damage']}")


def _show_info(facts: dict[str, Any]) -> None:
    for key, value in facts.items():
        if key != "layers" and value is not None:
            click.echo(f"{key.replace('_', ' ')}: {value}")
    click.echo("    t  noise (levels)       bits  up to here (bpp)")
    for row in facts["layers"]:
        noise = "?" if row["noise_levels"] is None else f"{row['noise_levels']:.2f}"
        mark = "" if row["whole"] else "  (cut)"
        click.echo(f"{row['t']:5d}  {noise:>14}  {row['bits']:9d}  {row['bpp']:16.4f}{mark}")
