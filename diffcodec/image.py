"""Pictures from files and arrays, and back: what is accepted, what is refused and why."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from diffcodec.errors import DataError
from diffcodec.files import read_bytes

U8 = NDArray[np.uint8]

ORIENTATION, XMP, BITS_PER_SAMPLE = 0x0112, 700, 258
"""Tags of TIFF and EXIF."""
_SHORT = 3
"""TIFF's number for integers of two bytes."""
_TOLD = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298)
"""Tags of a TIFF file that tell of the picture, not of the file: description to copyright."""
_TOLD_IFDS = (0x8769, 0x8825)
"""EXIF and GPS."""
_PREFIX = b"Exif\0\0"
"""What JPEG puts before EXIF and other formats do not."""
_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
_UNWRITABLE = (OSError, KeyError, ValueError, SyntaxError, TypeError, RuntimeError, struct.error)


@dataclass(frozen=True)
class Metadata:
    """What comes with the pixels, as in Pillow's ``info``; empty when there is none."""

    icc: bytes = b""
    exif: bytes = b""
    xmp: bytes = b""

    @property
    def orientation(self) -> int:
        """1…8, how EXIF says that the pixels are to be turned to be shown; 1: not at all."""
        body = self.exif.removeprefix(_PREFIX)
        order = {b"II*\0": "<", b"MM\0*": ">"}.get(body[:4])
        if order is None:
            return 1
        with suppress(struct.error):  # EXIF is kept even if it makes no sense
            place = struct.unpack_from(f"{order}I", body, 4)[0]
            for entry in range(struct.unpack_from(f"{order}H", body, place)[0]):
                fields = struct.unpack_from(f"{order}HHIH", body, place + 2 + 12 * entry)
                if fields[0] == ORIENTATION:
                    return fields[3] if fields[1] == _SHORT and 1 <= fields[3] <= 8 else 1
        return 1

    @property
    def info(self) -> dict[str, bytes]:
        """The entries of a Pillow image's ``info``."""
        found = {"icc_profile": self.icc, "exif": self.exif, "xmp": self.xmp}
        return {key: value for key, value in found.items() if value}


LABELS = {"icc": "ICC profile", "exif": "EXIF", "xmp": "XMP"}
"""Fields of Metadata, for people."""


def orientation_exif(orientation: int) -> bytes:
    """EXIF that says nothing but an orientation, 1…8; empty for 1."""
    if orientation == 1:
        return b""
    entry = struct.pack("<HHIHH", ORIENTATION, _SHORT, 1, orientation, 0)
    return _PREFIX + b"II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)


@dataclass(frozen=True)
class Picture:
    """levels: uint8 [3, H, W] (three equal planes when grey); grey: one plane is coded;
    alpha: uint8 [H, W], 0 transparent; planes: grey, but it came as RGB and goes as RGB;
    source: the kind of file it came from, as Pillow calls it, if any."""

    levels: U8
    grey: bool
    alpha: U8 | None = None
    planes: bool = False
    metadata: Metadata = field(default_factory=Metadata)
    source: str = ""

    @property
    def height(self) -> int:
        return self.levels.shape[1]

    @property
    def width(self) -> int:
        return self.levels.shape[2]

    @property
    def colours(self) -> int:
        """Colour values of a pixel as it came: 1 or 3 (transparency does not count)."""
        return 1 if self.grey and not self.planes else 3

    def without_metadata(self) -> Picture:
        """The same picture without ICC profile, EXIF and XMP; transparency stays."""
        return replace(self, metadata=Metadata())


def from_array(pixels: NDArray[Any]) -> Picture:
    """uint8 [H, W, 3] or [H, W] (grey), or [H, W, 4] or [H, W, 2] with alpha at the end.

    DataError for anything else.
    """
    if pixels.dtype != np.uint8:
        raise DataError(f"pixels must be uint8 levels 0-255, not {pixels.dtype}")
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in {1, 2, 3, 4} or 0 in pixels.shape:
        raise DataError(
            "pixels must be [height, width] or [height, width, n] with n of 2 (grey and alpha), "
            f"3 or 4, not {pixels.shape}"
        )
    channels = pixels.shape[2]
    alpha = None
    if channels in {2, 4}:
        alpha = np.ascontiguousarray(pixels[:, :, -1], dtype=np.uint8)
        pixels = pixels[:, :, :-1]
    planes = np.broadcast_to(pixels, (*pixels.shape[:2], 3)).transpose(2, 0, 1)
    equal = bool((planes[0] == planes[1]).all() and (planes[1] == planes[2]).all())
    levels = np.ascontiguousarray(planes, dtype=np.uint8)
    return Picture(levels, equal, alpha, planes=equal and channels > 2)


def from_image(image: Image.Image) -> Picture:
    """A Pillow image of 8 bits a sample or fewer: grey or RGB, with transparency or without.

    Palettes become RGB; a transparent colour becomes alpha, and colours under transparency are
    kept.  Everything else would lose something and is refused with what to do about it.
    """
    _refuse_deep(image)
    key = _colour_key(image)
    try:
        image.load()  # a PNG may have its metadata after the pixels
    except _UNREADABLE as e:
        raise DataError(f"cannot be read as a picture ({e})") from None
    pixels = _pixels(image)
    if key is not None:
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        opaque = (pixels != np.array(key)).any(axis=2, keepdims=True)
        pixels = np.concatenate([pixels, 255 * opaque.astype(np.uint8)], axis=2)
    picture = from_array(pixels)
    return replace(picture, metadata=_metadata(image), source=image.format or "")


def _pixels(image: Image.Image) -> U8:
    """uint8 [H, W] or [H, W, n]; DataError for modes that are neither grey nor RGB."""
    mode = image.mode
    if mode in {"La", "RGBa"}:
        raise DataError(
            f"colours multiplied by their transparency (mode {mode}) are not supported; "
            f"convert to {mode.upper()} first"
        )
    if mode == "1":
        image = image.convert("L")
    elif mode in {"P", "PA"}:
        palette = getattr(image.palette, "mode", "RGB")
        clear = mode == "PA" or "transparency" in image.info or palette.endswith("A")
        image = image.convert("RGBA" if clear else "RGB")
    elif mode not in {"L", "LA", "RGB", "RGBA"}:
        raise DataError(
            f"pictures of mode {mode} are not supported; convert to 8-bit RGB or greyscale first"
        )
    return np.asarray(image)


def _colour_key(image: Image.Image) -> tuple[int, ...] | None:
    """The one transparent colour of a picture of mode 1, L or RGB, in levels."""
    key = image.info.get("transparency")
    if key is None or image.mode not in {"1", "L", "RGB"}:
        return None
    if image.mode == "RGB" and isinstance(key, tuple | list) and len(key) == 3:
        return tuple(int(level) for level in key)
    if image.mode == "RGB" or not isinstance(key, int):
        raise DataError("which colour is transparent cannot be told; convert to RGBA first")
    # PNG gives the key in samples; Pillow spreads samples of fewer bits over 0…255.
    args = [tile[3] for tile in getattr(image, "tile", [])]
    factor = 85 if "L;2" in args else 17 if "L;4" in args else 1
    return (key * factor,)


def _metadata(image: Image.Image) -> Metadata:
    info = image.info
    xmp = info.get("xmp") or info.get("XML:com.adobe.xmp") or b""
    exif = info.get("exif") or b""
    if not exif and image.format == "TIFF":
        exif = _tiff_exif(image)
    return Metadata(
        bytes(info.get("icc_profile") or b""),
        bytes(exif),
        xmp.encode() if isinstance(xmp, str) else bytes(xmp),
    )


def _tiff_exif(image: Image.Image) -> bytes:
    """EXIF made of what a TIFF file's own tags tell of the picture; empty if that is nothing."""
    own, exif = image.getexif(), Image.Exif()
    for tag in _TOLD:
        if tag in own:
            exif[tag] = own[tag]
    for tag in _TOLD_IFDS:
        if found := own.get_ifd(tag):
            exif.get_ifd(tag).update(found)
    with suppress(*_UNWRITABLE):
        return exif.tobytes() if len(exif) else b""
    return b""


def _refuse_deep(image: Image.Image) -> None:
    """DataError for more than 8 bits a sample, which Pillow would cut off without a word."""
    details = [tile[3] for tile in getattr(image, "tile", [])]
    parts = [p for d in details for p in (d if isinstance(d, tuple) else (d,))]
    deep = any(";16" in p if isinstance(p, str) else isinstance(p, int) and p > 255 for p in parts)
    if image.format == "TIFF":
        bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,))
        deep = max(bits if isinstance(bits, tuple) else (bits,)) == 16
    if image.format in {"PNG", "PPM", "TIFF"} and deep:
        raise DataError("16 bits a sample are not supported; convert to 8-bit RGB first")


def read_image(path: Path) -> Picture:
    """Load a picture file; DataError with one line when it cannot be used."""
    content = read_bytes(path)
    try:
        with Image.open(io.BytesIO(content)) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise DataError(
                    "animations and files of several pages are not supported; extract one first"
                )
            return from_image(image)
    except UnidentifiedImageError:
        raise DataError(f"{path}: not a picture Pillow can read") from None
    except DataError as e:
        raise DataError(f"{path}: {e}") from None
    except _UNREADABLE as e:
        raise DataError(f"{path}: cannot be read as a picture ({e})") from None


def to_array(levels: U8, grey: bool, alpha: U8 | None = None) -> U8:
    """uint8 [3, H, W] -> [H, W, 3], or [H, W] when grey; with alpha [H, W, 4] or [H, W, 2]."""
    planes = levels[:1] if grey else levels
    if alpha is not None:
        planes = np.concatenate([planes, alpha[None]])
    elif grey:
        return levels[0].copy()
    return np.ascontiguousarray(planes.transpose(1, 2, 0))


def to_image(pixels: U8, metadata: Metadata) -> Image.Image:
    """A Pillow image of mode L, LA, RGB or RGBA whose ``info`` has the metadata."""
    image = Image.fromarray(pixels)
    image.info.update(metadata.info)
    return image


def image_bytes(pixels: U8, suffix: str, metadata: Metadata | None = None) -> bytes:
    """Encode pixels [H, W] or [H, W, 2, 3 or 4] for a file of this suffix.

    Metadata are written as far as the format and Pillow can: :func:`not_kept` tells.  DataError
    if Pillow cannot write the pixels.
    """
    kind = Image.registered_extensions().get(suffix.lower())
    if kind is None or kind == "DDC":
        raise DataError(f"cannot write pictures of type '{suffix}'; use .png")
    image = Image.fromarray(pixels)
    failure: Exception | None = None
    for written in _ever_less(metadata or Metadata()):
        stream = io.BytesIO()
        try:
            image.save(stream, kind, **_options(kind, written))
            return stream.getvalue()
        except _UNWRITABLE as e:
            failure = e
    raise DataError(f"cannot write this picture as '{suffix}' ({failure}); use .png") from None


def not_kept(content: bytes, pixels: U8, metadata: Metadata) -> list[str]:
    """Names of what the picture file made of pixels and metadata lacks beside the colours."""
    found, clear = Metadata(), False
    with suppress(*_UNREADABLE), Image.open(io.BytesIO(content)) as image:
        found = _metadata(image)
        clear = "A" in image.mode or "transparency" in image.info
    opaque = pixels.ndim == 2 or pixels.shape[2] == 3
    names = [f.name for f in fields(Metadata)]
    lost = [LABELS[n] for n in names if getattr(metadata, n) and not getattr(found, n)]
    return lost if opaque or clear else ["transparency", *lost]


def _ever_less(metadata: Metadata) -> Iterator[Metadata]:
    """What to try: formats have limits, of 64 KB in JPEG for instance, and so has Pillow."""
    yield metadata
    if metadata.info:
        yield replace(metadata, xmp=b"")
        yield replace(metadata, exif=b"")
        yield Metadata(icc=metadata.icc)
        yield Metadata()


def _options(kind: str, metadata: Metadata) -> dict[str, Any]:
    """Pillow's options to write a file of this kind, exactly if the format can."""
    options: dict[str, Any] = {}
    if kind == "WEBP":
        options = {"lossless": True, "exact": True}  # exact: colours under transparency too
    if kind in {"PNG", "JPEG", "WEBP", "TIFF"}:
        options |= metadata.info.items()
        options |= _special(kind, metadata)
    return options


def _special(kind: str, metadata: Metadata) -> dict[str, Any]:
    """Where Pillow's options are not simply the contents."""
    if kind == "PNG" and metadata.xmp:
        texts = PngInfo()
        texts.add_itxt("XML:com.adobe.xmp", metadata.xmp)
        return {"pnginfo": texts}
    if kind == "JPEG" and metadata.exif and not metadata.exif.startswith(_PREFIX):
        return {"exif": _PREFIX + metadata.exif}
    if kind == "TIFF" and (metadata.exif or metadata.xmp):
        tags = Image.Exif()
        tags.load(metadata.exif)
        if metadata.xmp:
            tags[XMP] = metadata.xmp
        return {"exif": tags}
    return {}
