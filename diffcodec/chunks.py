"""What a file has beside its colours: blocks of chunks before the layers and after them.

A block is a sequence of chunks, a zero and a check of everything but the payloads, which have
checks of their own.  :func:`read_block` finds the chunks and unpacks nothing.
"""

from __future__ import annotations

import binascii
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffcodec.alpha import decode_plane, encode_plane
from diffcodec.bits import crc8, decode_varint, encode_varint
from diffcodec.errors import DataError, FormatError

U8 = NDArray[np.uint8]

END, ALPHA, ICC, ORIENTATION, EXIF, XMP = range(6)
FRONT, TRAILER = (ALPHA, ICC, ORIENTATION), (ICC, EXIF, XMP)
"""Kinds that a reader looks for in each block; it skips all others."""
NAMES = {
    ALPHA: "transparency",
    ICC: "ICC profile",
    ORIENTATION: "orientation",
    EXIF: "EXIF",
    XMP: "XMP",
}

MAX_METADATA = 1 << 24
"""Bytes of an ICC profile, of EXIF and of XMP."""
MAX_PAYLOAD = 1 << 32


@dataclass(frozen=True)
class Chunk:
    """kind: 1…255; size: bytes of the content; check: CRC-32 of the content; payload: as stored."""

    kind: int
    size: int
    check: int
    payload: bytes


def encode_block(chunks: Iterable[Chunk]) -> bytes:
    """The bytes of a block; none at all if there are no chunks."""
    out, framing = bytearray(), bytearray()
    for chunk in chunks:
        head = bytes([chunk.kind]) + encode_varint(chunk.size) + encode_varint(len(chunk.payload))
        head += chunk.check.to_bytes(4, "big")
        framing += head
        out += head + chunk.payload
    if not out:
        return b""
    framing.append(END)
    return bytes(out) + bytes([END, crc8(bytes(framing))])


def read_block(content: bytes, place: int) -> tuple[list[Chunk], int]:
    """(chunks of the block at ``place``, where it ends), with nothing unpacked.

    Raises EOFError if the file ends inside the block, FormatError if it is damaged.
    """
    chunks: list[Chunk] = []
    framing = bytearray()
    while True:
        begin = place
        kind = _take(content, place, 1)[0]
        place += 1
        if kind == END:
            break
        size, used = decode_varint(content, place)
        length, more = decode_varint(content, place + used)
        place += used + more
        if length > MAX_PAYLOAD:
            raise FormatError(f"impossible length {length} before or after the layers")
        check = int.from_bytes(_take(content, place, 4), "big")
        place += 4
        framing += content[begin:place]
        chunks.append(Chunk(kind, size, check, _take(content, place, length)))
        place += length
    framing.append(END)
    if _take(content, place, 1)[0] != crc8(bytes(framing)):
        raise FormatError("what comes before or after the layers is damaged")
    return chunks, place + 1


def _take(content: bytes, place: int, count: int) -> bytes:
    part = content[place : place + count]
    if len(part) < count:
        raise EOFError
    return part


def find(chunks: Iterable[Chunk], kinds: tuple[int, ...]) -> dict[int, Chunk]:
    """The chunks of these kinds; FormatError if there are two of one."""
    found: dict[int, Chunk] = {}
    for chunk in chunks:
        if chunk.kind in kinds:
            if chunk.kind in found:
                raise _damage(chunk, "it is there twice")
            found[chunk.kind] = chunk
    return found


def pack_alpha(plane: U8) -> Chunk:
    """The chunk of a plane uint8 [H, W]."""
    plane = np.ascontiguousarray(plane)
    return Chunk(ALPHA, plane.size, binascii.crc32(plane.tobytes()), encode_plane(plane))


def unpack_alpha(chunk: Chunk, height: int, width: int) -> U8:
    """The plane uint8 [height, width]; FormatError if it is damaged or of another size."""
    if chunk.size != height * width:
        raise _damage(chunk, "its size is not the picture's")
    try:
        plane = decode_plane(chunk.payload, height, width)
    except FormatError as e:
        raise _damage(chunk, str(e)) from e
    _verify(chunk, plane.tobytes())
    return plane


def pack_orientation(orientation: int) -> Chunk:
    """The chunk of an orientation as EXIF numbers them, 2…8."""
    content = bytes([orientation])
    return Chunk(ORIENTATION, 1, binascii.crc32(content), content)


def unpack_orientation(chunk: Chunk) -> int:
    """2…8; FormatError if it is damaged."""
    if chunk.size != 1 or len(chunk.payload) != 1 or not 2 <= chunk.payload[0] <= 8:
        raise _damage(chunk, "it is not one of 2 to 8")
    _verify(chunk, chunk.payload)
    return chunk.payload[0]


def pack_metadata(kind: int, content: bytes) -> Chunk:
    """The chunk of an ICC profile, EXIF or XMP; DataError if it is too large."""
    if len(content) > MAX_METADATA:
        raise DataError(
            f"{NAMES[kind]} of {len(content)} bytes is more than the {MAX_METADATA} a file can "
            "hold; leave metadata out with --strip"
        )
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    payload = packer.compress(content) + packer.flush()
    return Chunk(kind, len(content), binascii.crc32(content), payload)


def unpack_metadata(chunk: Chunk) -> bytes:
    """The content; FormatError if it is damaged, or is larger or smaller than it says."""
    if chunk.size > MAX_METADATA:
        raise _damage(chunk, f"it is larger than {MAX_METADATA} bytes")
    reader = zlib.decompressobj(-15)
    try:
        content = reader.decompress(chunk.payload, chunk.size + 1)
    except zlib.error as e:
        raise _damage(chunk, "it cannot be unpacked") from e
    if len(content) != chunk.size or not reader.eof or reader.unused_data:
        raise _damage(chunk, "its size is wrong")
    _verify(chunk, content)
    return content


def _verify(chunk: Chunk, content: bytes) -> None:
    if binascii.crc32(content) != chunk.check:
        raise _damage(chunk, "its check does not match")


def _damage(chunk: Chunk, what: str) -> FormatError:
    return FormatError(f"the {NAMES[chunk.kind]} in the file is damaged: {what}")
