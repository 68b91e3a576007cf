"""What a picture has beside its colours ↔ the blocks of chunks of a file.

Alpha and orientation come before the layers, so that every cut of the file has them; EXIF and
XMP come last, so that they cost a cut nothing.  An ICC profile goes where its size is no burden.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffcodec import chunks
from diffcodec.chunks import Chunk
from diffcodec.container import PIXELS_PER_BYTE, TRUSTED_PIXELS, Header, LayerReader
from diffcodec.errors import FormatError
from diffcodec.image import Metadata, Picture, orientation_exif

U8 = NDArray[np.uint8]

PROFILE_SHARE = 32
"""Pixels for each byte of an ICC profile that comes before the layers: at most ¼ bpp.

A profile can be larger than a small picture; in front it would leave nothing to cut.
"""
EXCESS = "there are bytes after the end of the picture; the file is damaged"


def pack(picture: Picture) -> tuple[bytes, bytes]:
    """(what comes before the layers, what comes after them), both often nothing at all.

    DataError if metadata are too large.
    """
    front, trailer = _chunks(picture)
    return chunks.encode_block(front), chunks.encode_block(trailer)


def _chunks(picture: Picture) -> tuple[list[Chunk], list[Chunk]]:
    """What comes before the layers and after them; DataError if it is too large."""
    front: list[Chunk] = []
    trailer: list[Chunk] = []
    metadata = picture.metadata
    if picture.alpha is not None:
        front.append(chunks.pack_alpha(picture.alpha))
    if metadata.icc:
        profile = chunks.pack_metadata(chunks.ICC, metadata.icc)
        small = len(profile.payload) * PROFILE_SHARE <= picture.height * picture.width
        (front if small else trailer).append(profile)
    if metadata.orientation != 1:
        front.append(chunks.pack_orientation(metadata.orientation))
    if metadata.exif:
        trailer.append(chunks.pack_metadata(chunks.EXIF, metadata.exif))
    if metadata.xmp:
        trailer.append(chunks.pack_metadata(chunks.XMP, metadata.xmp))
    return front, trailer


@dataclass(frozen=True)
class Front:
    """What stands before the layers: alpha uint8 [H, W]; ICC profile; orientation as EXIF;
    the chunks it came from and where the layers begin."""

    alpha: U8 | None
    metadata: Metadata
    chunks: list[Chunk]
    end: int


def front_chunks(header: Header, content: bytes, start: int) -> tuple[list[Chunk], int]:
    """(chunks after the header, where the first layer begins); FormatError if they are cut."""
    if not header.chunks:
        return [], start
    try:
        return chunks.read_block(content, start)
    except EOFError:
        raise FormatError(
            "the file ends in what comes between header and layers; nothing can be decoded"
        ) from None


def check_presence(header: Header, content: bytes, end: int, max_pixels: int | None) -> None:
    """FormatError if there is too little of a large picture to be worth the memory it takes.

    end: where the layers begin.  A file of twenty bytes can declare millions of pixels; unless
    ``max_pixels`` says that they are wanted, there must be a byte for every PIXELS_PER_BYTE of
    them, or all of the layers, which are short only if there is nothing to see.
    """
    area = header.width * header.height
    if max_pixels is not None or area <= TRUSTED_PIXELS or len(content) * PIXELS_PER_BYTE >= area:
        return
    if not _is_complete(header, LayerReader(content, end, header)):
        raise FormatError(
            f"the file declares {header.width}x{header.height} pixels and ends after "
            f"{len(content)} bytes; --max-pixels {area} decodes it nevertheless"
        )


def _is_complete(header: Header, reader: LayerReader) -> bool:
    """Whether all layers of a large picture are there, by their lengths."""
    try:
        if not all([reader.skip() for _ in header.plan.layers]):
            return False
        strips = [reader.strip() for _ in header.strips]
    except FormatError:
        return False
    return strips[-1] is not None and strips[-1].whole


def read_front(header: Header, content: bytes, start: int) -> Front:
    """Unpack what stands before the layers; FormatError if it is cut or damaged."""
    listed, end = front_chunks(header, content, start)
    found = chunks.find(listed, chunks.FRONT)
    alpha, icc, orientation = None, b"", 1
    if chunks.ALPHA in found:
        alpha = chunks.unpack_alpha(found[chunks.ALPHA], header.height, header.width)
    if chunks.ICC in found:
        icc = chunks.unpack_metadata(found[chunks.ICC])
    if chunks.ORIENTATION in found:
        orientation = chunks.unpack_orientation(found[chunks.ORIENTATION])
    return Front(alpha, Metadata(icc, orientation_exif(orientation)), listed, end)


def read_trailer(content: bytes, place: int) -> tuple[dict[str, bytes], list[Chunk]]:
    """(what there is as fields of Metadata, the chunks it came from) at the end of the file.

    EOFError if the file ends before, FormatError if there is damage or something after them.
    """
    listed, end = chunks.read_block(content, place)
    found = chunks.find(listed, chunks.TRAILER)
    fields = {chunks.ICC: "icc", chunks.EXIF: "exif", chunks.XMP: "xmp"}
    unpacked = {fields[kind]: chunks.unpack_metadata(chunk) for kind, chunk in found.items()}
    if end != len(content):
        raise FormatError(EXCESS)
    return unpacked, listed
