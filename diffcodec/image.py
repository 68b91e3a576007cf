"""Pictures from files and arrays, and back: what is accepted, what is refused and why."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from diffcodec.errors import DataError
from diffcodec.files import read_bytes

U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """levels: uint8 [3, H, W] (three equal planes when grey); dropped: metadata not kept."""

    levels: U8
    grey: bool
    dropped: tuple[str, ...] = ()

    @property
    def height(self) -> int:
        return self.levels.shape[1]

    @property
    def width(self) -> int:
        return self.levels.shape[2]


def from_array(pixels: NDArray[Any]) -> Picture:
    """uint8 [H, W, 3] or [H, W] (grey); DataError for anything else."""
    if pixels.dtype != np.uint8:
        raise DataError(f"pixels must be uint8 levels 0-255, not {pixels.dtype}")
    grey = pixels.ndim == 2
    if not (grey or (pixels.ndim == 3 and pixels.shape[2] == 3)) or 0 in pixels.shape:
        raise DataError(f"pixels must be [height, width, 3] or [height, width], not {pixels.shape}")
    planes = np.stack([pixels] * 3) if grey else pixels.transpose(2, 0, 1)
    return Picture(np.ascontiguousarray(planes, dtype=np.uint8), grey)


def from_image(image: Image.Image) -> Picture:
    """A Pillow image of mode RGB or L, or a palette without transparency (coded as RGB).

    Everything else would lose something and is refused with what to do about it.
    """
    mode = image.mode
    if "transparency" in image.info or mode in {"RGBA", "LA", "PA", "RGBa", "La"}:
        raise DataError(
            "the picture has transparency, which is not supported yet; flatten it first"
        )
    if mode == "1":
        image, mode = image.convert("L"), "L"
    if mode == "P":
        image, mode = image.convert("RGB"), "RGB"
    if mode not in {"RGB", "L"}:
        raise DataError(
            f"pictures of mode {mode} are not supported; convert to 8-bit RGB or greyscale first"
        )
    kinds = {"icc_profile": "ICC profile", "exif": "EXIF", "xmp": "XMP"}
    dropped = tuple(label for key, label in kinds.items() if image.info.get(key))
    picture = from_array(np.asarray(image))
    return Picture(picture.levels, picture.grey, dropped)


def _refuse_deep(image: Image.Image) -> None:
    """DataError for more than 8 bits a sample, which Pillow would cut off without a word."""
    details = [tile[3] for tile in getattr(image, "tile", [])]
    parts = [p for d in details for p in (d if isinstance(d, tuple) else (d,))]
    deep = (";16" in p if isinstance(p, str) else isinstance(p, int) and p > 255 for p in parts)
    if image.format in {"PNG", "PPM"} and any(deep):
        raise DataError("16 bits a sample are not supported; convert to 8-bit RGB first")


def read_image(path: Path) -> Picture:
    """Load a picture file; DataError with one line when it cannot be used."""
    content = read_bytes(path)
    try:
        with Image.open(io.BytesIO(content)) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise DataError("animations are not supported; extract a frame first")
            _refuse_deep(image)
            image.load()
            return from_image(image)
    except UnidentifiedImageError:
        raise DataError(f"{path}: not a picture Pillow can read") from None
    except DataError as e:
        raise DataError(f"{path}: {e}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        raise DataError(f"{path}: cannot be read as a picture ({e})") from None


def to_array(levels: U8, grey: bool) -> U8:
    """uint8 [3, H, W] -> [H, W, 3], or [H, W] when grey."""
    return levels[0].copy() if grey else np.ascontiguousarray(levels.transpose(1, 2, 0))


def image_bytes(pixels: U8, suffix: str) -> bytes:
    """Encode pixels for a file of this suffix; DataError if Pillow cannot write it."""
    kind = Image.registered_extensions().get(suffix.lower())
    if kind is None:
        raise DataError(f"cannot write pictures of type '{suffix}'; use .png")
    stream = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    try:
        Image.fromarray(pixels).save(stream, kind, **options)
    except (OSError, KeyError, ValueError) as e:
        raise DataError(f"cannot write a picture of type '{suffix}' ({e})") from None
    return stream.getvalue()
