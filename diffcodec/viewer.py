"""What a file shows layer by layer: a web page that needs nothing else, or an animation."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from diffcodec.api import Contents, decode, parse
from diffcodec.errors import DataError, FormatError
from diffcodec.evaluate import shown_at
from diffcodec.model import Model
from diffcodec.quality import psnr

U8 = NDArray[np.uint8]

TEMPLATE = "view.html"
LEAST_SIDE = 256
"""Animations of smaller pictures are enlarged by a whole number to about this many pixels."""
FRAME_MS, LAST_MS = 700, 2500
"""How long an animation shows a layer, and its last one."""
BAND, TYPE = 18, 11
"""Of an animation: height of the line below the picture, size of its type."""


@dataclass(frozen=True)
class Frame:
    """The picture of the file's first ``size`` bytes.

    t: timestep reached, 0 for the final layer; noise_levels: of x_t, in levels of 0-255; cut: the
    layer is not all there; exact: verified equal to the original; pixels: uint8 [H, W] or
    [H, W, n], as stored; orientation: 1…8, how EXIF says that they are to be turned; psnr: in dB,
    infinite for an exact picture, None without an original.
    """

    t: int
    noise_levels: float
    size: int
    cut: bool
    exact: bool
    pixels: U8
    orientation: int
    psnr: float | None


def frames(content: bytes, model: Model, original: U8 | None = None) -> list[Frame]:
    """One frame for each layer of the file; the strips of the final layer count as one.

    original: uint8 [H, W] or [H, W, n]; a whole file is its own original.  Raises FormatError if
    the file is damaged or holds no layer, DataError if the original has another size.
    """
    contents = parse(content, model)
    if contents.damage:
        raise FormatError(contents.damage)
    header = contents.header
    stops = _stops(contents, len(content))
    if not stops:
        raise FormatError("the file is cut before its first layer: there is nothing to show")
    last = decode(content, model=model)
    shown = [*shown_at(content, [size for _, size, _ in stops[:-1]], model), last.pixels]
    if original is None and last.exact:
        original = last.pixels
    if original is not None and original.shape[:2] != (header.height, header.width):
        sides = f"{original.shape[1]}×{original.shape[0]}"
        raise DataError(f"the original is {sides}, the file {header.width}×{header.height}")
    wanted = None if original is None else _colours(original)
    found = []
    for (t, size, cut), pixels in zip(stops, shown, strict=True):
        noise = float(model.schedule.sigma_levels(t)) if t else 0.0
        error = None if wanted is None else psnr(_colours(pixels), wanted)
        exact = t == 0 and last.exact
        pixels, turn = _like(pixels, last.pixels), last.metadata.orientation
        found.append(Frame(t, noise, size, cut, exact, pixels, turn, error))
    return found


def _stops(contents: Contents, size: int) -> list[tuple[int, int, bool]]:
    """(timestep, bytes up to its end, whether it is cut) of every layer, the final one once."""
    ends = [layer[-1][1] for layer in contents.header.plan.layers]
    rows = [
        (end, min(layer.end, size), not layer.whole)
        for end, layer in zip(ends, contents.layers, strict=False)
    ]
    if final := contents.layers[len(ends) :]:
        rows.append((0, min(final[-1].end, size), not contents.complete))
    return rows


def _colours(pixels: U8) -> U8:
    """uint8 [H, W, 3], without transparency."""
    return np.asarray(Image.fromarray(pixels).convert("RGB"))


def _like(pixels: U8, last: U8) -> U8:
    """``pixels`` with the transparency of ``last``, which every cut has."""
    if last.ndim == 2 or last.shape[2] not in {2, 4}:
        return pixels
    return np.dstack([_colours(pixels), last[..., -1]])


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF's orientation; 1 is upright."""


def _upright(pixels: U8, orientation: int) -> Image.Image:
    """The picture turned as EXIF says."""
    image = Image.fromarray(pixels)
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _data_uri(image: Image.Image) -> str:
    """A picture as a lossless WebP in a data URI."""
    stream = io.BytesIO()
    image.save(stream, "WEBP", lossless=True, exact=True, method=4)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()


def page(title: str, content: bytes, shown: list[Frame], original: U8 | None = None) -> str:
    """A web page with all frames in it: no other file, no network.

    original: what is shown to compare with, by default the last frame if that is exact; turned,
    like the frames, as the file's EXIF says.
    """
    turn = shown[0].orientation
    pictures = [_upright(frame.pixels, turn) for frame in shown]
    width, height = pictures[0].size
    if original is None and shown[-1].exact:
        original = shown[-1].pixels
    rows: list[dict[str, Any]] = [
        {
            "t": frame.t,
            "noise": frame.noise_levels,
            "bytes": frame.size,
            "bpp": 8 * frame.size / (height * width),
            "psnr": frame.psnr if frame.psnr is None or math.isfinite(frame.psnr) else None,
            "cut": frame.cut,
            "exact": frame.exact,
        }
        for frame in shown
    ]
    images = "\n".join(
        f'<img class="layer" id="layer-{n}" alt="Layer {n + 1} of {len(shown)}" '
        f'width="{width}" height="{height}" src="{_data_uri(picture)}">'
        for n, picture in enumerate(pictures)
    )
    compared = ""
    if original is not None:
        compared = (
            f'<img id="original" alt="The original" width="{width}" height="{height}" '
            f'src="{_data_uri(_upright(original, turn))}">'
        )
    facts = {"size": len(content), "width": width, "height": height, "layers": rows}
    text = files("diffcodec").joinpath(TEMPLATE).read_text("utf-8")
    values = {
        "title": html.escape(title),
        "width": str(width),
        "last": str(len(shown) - 1),
        "images": images,
        "original": compared,
        # "</" would end the script that holds it.
        "facts": json.dumps(facts).replace("</", "<\\/"),
    }
    for key, value in values.items():
        text = text.replace("{{" + key + "}}", value)
    return text


def animation(shown: list[Frame], progress: Callable[[int, int], None] | None = None) -> bytes:
    """A GIF with a picture for every frame and a line below that says how many bytes it took."""
    width, height = _upright(shown[0].pixels, shown[0].orientation).size
    scale = max(1, LEAST_SIDE // max(height, width))
    pictures = []
    for number, frame in enumerate(shown):
        rate = 8 * frame.size / (height * width)
        sheet = Image.new("RGB", (width * scale, height * scale + BAND), (20, 20, 22))
        picture = _upright(_colours(frame.pixels), frame.orientation)
        sheet.paste(picture.resize((width * scale, height * scale), Image.Resampling.NEAREST))
        font, end = ImageFont.load_default(TYPE), "exact" if frame.exact else f"{rate:.3g} bpp"
        line = f"{frame.size} bytes  {end}"
        ImageDraw.Draw(sheet).text((5, height * scale + 2), line, (240, 240, 240), font)
        pictures.append(sheet.quantize(256, dither=Image.Dither.FLOYDSTEINBERG))
        if progress:
            progress(number + 1, len(shown))
    times = [FRAME_MS] * (len(shown) - 1) + [LAST_MS]
    stream = io.BytesIO()
    rest = pictures[1:]
    # disposal 2: without it Pillow merges frames that are equal, and a layer would be missing.
    pictures[0].save(
        stream, "GIF", save_all=True, append_images=rest, duration=times, loop=0, disposal=2
    )
    return stream.getvalue()
