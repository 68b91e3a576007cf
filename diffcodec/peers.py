"""What other formats make of the same pixels, by Pillow and its plug-ins: real files only.

Every peer writes the bare pixels, without metadata, and is measured by its whole file.  A
*lossless* file counts only if it decodes to the same pixels, which is checked.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, features

from diffcodec.errors import DataError

U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Peer:
    """A format that Pillow writes.

    kind: Pillow's name of it; feature: what Pillow must be built with, if anything; lossless:
    options of an exact file, None if the format has none; lossy: options for a quality of
    ``qualities``, None if there is no lossy kind.
    """

    name: str
    kind: str
    feature: str = ""
    lossless: dict[str, Any] | None = None
    lossy: Callable[[int], dict[str, Any]] | None = None
    qualities: range = field(default=range(101))

    def missing(self) -> str | None:
        """Why this format cannot be written here, or None."""
        if self.kind == "JXL":
            try:
                import pillow_jxl  # noqa: F401 - registers the format
            except ImportError:
                return "pip install pillow-jxl-plugin"
        if self.feature and not features.check(self.feature):
            return f"Pillow {PIL.__version__} is built without {self.feature}"
        return None


PEERS: tuple[Peer, ...] = (
    Peer("PNG", "PNG", lossless={"optimize": True}),
    Peer(
        "WebP",
        "WEBP",
        "webp",
        lossless={"lossless": True, "quality": 100, "method": 6},
        lossy=lambda q: {"quality": q, "method": 6},
    ),
    Peer(
        "JPEG",
        "JPEG",
        "jpg",
        lossy=lambda q: {"quality": q, "subsampling": 0, "progressive": True, "optimize": True},
        qualities=range(1, 101),
    ),
    Peer(
        "JPEG 2000",
        "JPEG2000",
        "jpg_2000",
        lossless={"irreversible": False, "mct": 1},
        # The quality is PSNR in tenths of a dB.
        lossy=lambda q: {
            "irreversible": True,
            "mct": 1,
            "quality_mode": "dB",
            "quality_layers": [q / 10],
        },
        qualities=range(100, 601),
    ),
    Peer(
        "AVIF",
        "AVIF",
        "avif",
        lossless={"quality": 100, "subsampling": "4:4:4"},
        lossy=lambda q: {"quality": q, "subsampling": "4:4:4", "speed": 4},
    ),
    Peer(
        "JPEG XL",
        "JXL",
        lossless={"lossless": True, "effort": 9},
        lossy=lambda q: {"quality": q, "effort": 7},
        qualities=range(100),  # the plug-in refuses to write 100 with loss
    ),
)
"""JPEG and AVIF with full colour resolution; JPEG progressive; each near its slowest setting."""


@dataclass(frozen=True)
class Entry:
    """One file of a comparison.

    shown: uint8 [H, W, 3] or [H, W] as it decodes; seconds: to encode (once, without the search
    for the quality), NaN for a cut of a file that counts already; decode_seconds.
    """

    codec: str
    size: int
    shown: U8
    seconds: float
    decode_seconds: float


def written(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The file Pillow writes; DataError if it, or its plug-in, fails."""
    if kind == "JPEG2000" and image.mode == "L":
        options.pop("mct", None)
    stream = io.BytesIO()
    try:
        image.save(stream, kind, **options)
    except (OSError, ValueError, RuntimeError) as e:
        raise DataError(f"cannot be written here ({e})") from e
    return stream.getvalue()


def shown(content: bytes, mode: str) -> U8:
    """The pixels that Pillow reads from a file, as ``mode`` (L or RGB)."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert(mode))


def fitting(
    image: Image.Image, kind: str, lossy: Callable[[int], dict[str, Any]], q: range, size: int
) -> tuple[bytes, float] | None:
    """The file of the highest quality of ``q`` with at most ``size`` bytes, and its seconds.

    Found by bisection; None if even the lowest quality takes more.
    """
    best = None
    low, high = q.start, q.stop - 1
    while low <= high:
        quality = (low + high) // 2
        begun = time.perf_counter()
        content = written(image, kind, **lossy(quality))
        if len(content) <= size:
            best, low = (content, time.perf_counter() - begun), quality + 1
        else:
            high = quality - 1
    return best


def _entry(name: str, image: Image.Image, content: bytes, seconds: float) -> Entry:
    begun = time.perf_counter()
    pixels = shown(content, image.mode)
    return Entry(name, len(content), pixels, seconds, time.perf_counter() - begun)


def lossless_entry(peer: Peer, image: Image.Image) -> Entry | None:
    """The exact file of one format; None if the format, or Pillow's way to it, is not exact."""
    if peer.lossless is None:
        return None
    begun = time.perf_counter()
    content = written(image, peer.kind, **peer.lossless)
    entry = _entry(peer.name, image, content, time.perf_counter() - begun)
    return entry if np.array_equal(entry.shown, np.asarray(image)) else None


def lossy_entry(peer: Peer, image: Image.Image, size: int) -> Entry | None:
    """The best file of at most ``size`` bytes; None if the format has none so small."""
    if peer.lossy is None:
        return None
    found = fitting(image, peer.kind, peer.lossy, peer.qualities, size)
    return None if found is None else _entry(peer.name, image, *found)


def embedded_jpeg_2000(image: Image.Image, rates: list[float]) -> tuple[bytes, list[U8]]:
    """One lossless JPEG 2000 file and what it shows at each of ``rates`` (ascending bpp)."""
    layers = [24.0 / rate for rate in rates]
    content = written(
        image,
        "JPEG2000",
        irreversible=False,
        mct=1,
        quality_mode="rates",
        quality_layers=[*layers, 1],
    )
    parts = []
    for number in range(1, len(rates) + 1):
        with Image.open(io.BytesIO(content)) as part:
            tile = part.tile[0]  # Pillow heeds ``layers`` only together with ``reduce``
            args: Any = tile.args
            part.tile = [tile._replace(args=(args[0], 0, number, *args[3:]))]
            parts.append(np.asarray(part.convert("RGB")))
    return content, parts
