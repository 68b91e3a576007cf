"""One picture as diffcodec and other formats write it: exactly, and at the same sizes.

diffcodec writes one lossless file, which is cut at each size; every peer writes a file of its
own for every size, the best that is not larger.  All code the same bare pixels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from diffcodec.api import decode, encode
from diffcodec.errors import DataError, FormatError
from diffcodec.model import Model
from diffcodec.peers import PEERS, Entry, Peer, lossless_entry, lossy_entry
from diffcodec.quality import psnr
from diffcodec.similarity import similarity

U8 = NDArray[np.uint8]

OURS = "diffcodec"
CELL = 208
"""Width of a contact sheet's crops, in pixels, before they are enlarged by whole numbers."""
MARGIN, TEXT, HEAD = 8, 13, 34
"""Of a contact sheet: between cells, size of its type, height of two lines."""
INK, PAPER, FAINT = (28, 28, 30), (255, 255, 255), (110, 110, 115)


@dataclass(frozen=True)
class Group:
    """Files to be compared with each other.

    rate: bpp they may take, None: the exact files; limit: the same in bytes, None likewise;
    absent: why a codec has no entry, by its name.
    """

    rate: float | None
    limit: int | None
    entries: list[Entry]
    absent: dict[str, str]


def compare(
    pixels: U8,
    model: Model,
    *,
    effort: int,
    rates: list[float],
    peers: tuple[Peer, ...] = PEERS,
    progress: Callable[[int, int], None] | None = None,
) -> list[Group]:
    """Exact files first, then a group for each of ``rates`` (bpp) that is a cut of our file.

    pixels: uint8 [H, W, 3] or [H, W].  Raises DataError for other arrays.
    """
    if pixels.ndim == 3 and pixels.shape[2] != 3:
        raise DataError(f"pixels must be [height, width] or with 3 colours, not {pixels.shape}")
    image, area = Image.fromarray(pixels), pixels.shape[0] * pixels.shape[1]
    present = [peer for peer in peers if peer.missing() is None]
    begun = time.perf_counter()
    content = encode(pixels, model=model, effort=effort)
    ours = _decoded(content, model, time.perf_counter() - begun)
    absent = {peer.name: reason for peer in peers if (reason := peer.missing())}
    total = len(rates) + 1
    exact, why = _collect(present, lambda peer: lossless_entry(peer, image), "lossless")
    groups = [Group(None, None, [ours, *exact], absent | why)]
    _tell(progress, 1, total)
    for number, rate in enumerate(sorted(rates)):
        limit = int(rate * area / 8)
        if limit < len(content) and (cut := _cut(content, limit, model)):
            found, why = _collect(present, partial(lossy_entry, image=image, size=limit), "lossy")
            groups.append(Group(rate, limit, [cut, *found], why))
        _tell(progress, number + 2, total)
    return groups


_NONE = {
    "lossless": "its lossless file is not exact through Pillow",
    "lossy": "has no file so small",
}


def _collect(
    peers: list[Peer], write: Callable[[Peer], Entry | None], kind: str
) -> tuple[list[Entry], dict[str, str]]:
    """Entries of the peers that have this kind of file, and why the others have none."""
    entries, absent = [], {}
    for peer in peers:
        if getattr(peer, kind) is None:
            continue
        try:
            entry = write(peer)
        except DataError as e:
            absent[peer.name] = str(e)
            continue
        if entry is None:
            absent[peer.name] = _NONE[kind]
        else:
            entries.append(entry)
    return entries, absent


def _tell(progress: Callable[[int, int], None] | None, done: int, total: int) -> None:
    if progress:
        progress(done, total)


def _decoded(content: bytes, model: Model, seconds: float) -> Entry:
    begun = time.perf_counter()
    pixels = decode(content, model=model).pixels
    return Entry(OURS, len(content), pixels, seconds, time.perf_counter() - begun)


def _cut(content: bytes, limit: int, model: Model) -> Entry | None:
    """Our file's first ``limit`` bytes; None if they do not hold the header."""
    try:
        return _decoded(content[:limit], model, math.nan)
    except FormatError:
        return None


def figures(entry: Entry, pixels: U8) -> dict[str, float | str]:
    """What a table says of an entry: bytes, bpp, PSNR in dB, SSIM, MS-SSIM and seconds.

    Undefined figures are NaN, the PSNR of an exact picture infinite.
    """
    ssim, ms_ssim = similarity(entry.shown, pixels)
    return {
        "codec": entry.codec,
        "bytes": entry.size,
        "bpp": 8 * entry.size / (pixels.shape[0] * pixels.shape[1]),
        "psnr": psnr(entry.shown, pixels),
        "ssim": ssim,
        "ms_ssim": ms_ssim,
        "encode_seconds": entry.seconds,
        "decode_seconds": entry.decode_seconds,
    }


def liveliest(pixels: U8, side: int) -> tuple[int, int]:
    """(left, top) of the square of the picture with the most contrast between neighbours."""
    grey = pixels.astype(np.float64) if pixels.ndim == 2 else pixels.mean(axis=2)
    energy = np.zeros(grey.shape)
    energy[1:] += np.square(np.diff(grey, axis=0))
    energy[:, 1:] += np.square(np.diff(grey, axis=1))
    sums = np.pad(energy.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    high, wide = min(side, grey.shape[0]), min(side, grey.shape[1])
    boxes = sums[high:, wide:] - sums[:-high, wide:] - sums[high:, :-wide] + sums[:-high, :-wide]
    top, left = np.unravel_index(int(np.argmax(boxes)), boxes.shape)
    return int(left), int(top)


def contact_sheet(pixels: U8, groups: list[Group], crop: tuple[int, int, int] | None = None) -> U8:
    """A row of crops for every lossy group, the original in front; uint8 [H, W, 3].

    crop: (left, top, side) in pixels, default: the liveliest part.  DataError if there is no
    lossy group or the crop is not inside the picture.
    """
    lossy = [group for group in groups if group.rate is not None]
    if not lossy:
        raise DataError("no size is left to show: give --rates below the lossless file's bpp")
    high, wide = pixels.shape[:2]
    side = min(CELL, high, wide)
    left, top, side = crop or (*liveliest(pixels, side), side)
    if not (0 <= left <= wide - side and 0 <= top <= high - side):
        raise DataError(f"the crop {left},{top},{side} is not inside the {wide}×{high} picture")
    scale = max(1, CELL // side)
    # In the order of the largest files, which are hardly missing.
    names = list(dict.fromkeys(entry.codec for group in lossy[::-1] for entry in group.entries))
    cell = side * scale
    width = MARGIN + (len(names) + 1) * (cell + MARGIN)
    row = cell + HEAD + MARGIN
    sheet = Image.new("RGB", (width, MARGIN + len(lossy) * row), PAPER)
    for number, group in enumerate(lossy):
        y = MARGIN + number * row
        entries = {entry.codec: entry for entry in group.entries}
        first = ("original", f"at most {group.limit} bytes", pixels)
        captions = _captions(names, entries, pixels)
        for column, (title, line, picture) in enumerate(chain([first], captions)):
            x = MARGIN + column * (cell + MARGIN)
            _caption(sheet, x, y, title, line)
            if picture is not None:
                part = Image.fromarray(picture[top : top + side, left : left + side])
                part = part.convert("RGB").resize((cell, cell), Image.Resampling.NEAREST)
                sheet.paste(part, (x, y + HEAD))
    return np.asarray(sheet)


def _captions(
    names: list[str], entries: dict[str, Entry], pixels: U8
) -> Iterator[tuple[str, str, U8 | None]]:
    for name in names:
        entry = entries.get(name)
        if entry is None:
            yield name, "no file so small", None
        else:
            yield name, f"{entry.size} bytes, {psnr(entry.shown, pixels):.1f} dB", entry.shown


def _caption(sheet: Image.Image, x: int, y: int, title: str, line: str) -> None:
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    draw.text((x, y), title, INK, font)
    draw.text((x, y + HEAD // 2), line, FAINT, font)
