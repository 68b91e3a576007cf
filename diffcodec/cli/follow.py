"""``diffcodec decode --follow``: show what has arrived so far, again and again."""

from __future__ import annotations

from pathlib import Path

import click


def follow_file(
    source: Path,
    target: Path,
    *,
    model: str | None,
    recon: str,
    seed: int,
    max_pixels: int | None,
    device: str,
    timeout: float,
) -> str:
    """Decode ``source`` while it arrives, ``target`` being the picture so far; the last line.

    Prints a line whenever the picture gets better.
    """
    from diffcodec import registry
    from diffcodec.api import Decoded
    from diffcodec.errors import DiffcodecError
    from diffcodec.files import write_bytes
    from diffcodec.follow import follow, open_feed
    from diffcodec.image import image_bytes

    def write(shown: Decoded) -> None:
        write_bytes(target, image_bytes(shown.pixels, target.suffix, shown.metadata))

    def described(shown: Decoded, size: int) -> str:
        area = shown.pixels.shape[0] * shown.pixels.shape[1]
        quality = "exact" if shown.exact else f"t = {shown.t}"
        return f"{target}: {quality}, {size} bytes, {8 * size / area:.3f} bpp"

    def refresh(shown: Decoded, size: int) -> None:
        write(shown)
        click.echo(described(shown, size))

    loaded = registry.load_model(model) if model else None
    with open_feed(source, timeout) as feed:
        try:
            shown = follow(
                feed,
                refresh,
                model=loaded,
                recon=recon,
                seed=seed,
                max_pixels=max_pixels,
                device=device,
            )
        except DiffcodecError as e:
            raise type(e)(f"{source}: {e}") from None
        write(shown)
        if not shown.exact or shown.metadata_cut:
            reason = f"did not grow for {timeout:g} s" if feed.grows else "ended"
            missing = "metadata are" if shown.exact else "picture is"
            click.echo(f"note: {source} {reason} before the {missing} complete", err=True)
        return described(shown, len(feed.content))
