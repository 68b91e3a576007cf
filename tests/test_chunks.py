"""Blocks of chunks: round trips, cuts and damage."""

from __future__ import annotations

import binascii
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffcodec import chunks
from diffcodec.bits import crc8
from diffcodec.chunks import Chunk, encode_block, find, read_block
from diffcodec.errors import DataError, FormatError

any_chunk = st.builds(
    Chunk,
    kind=st.integers(1, 255),
    size=st.integers(0, 1 << 40),
    check=st.integers(0, (1 << 32) - 1),
    payload=st.binary(max_size=300),
)
texts = st.binary(min_size=1, max_size=400)
ALPHA = np.random.default_rng(0).integers(0, 256, (3, 5), dtype=np.uint8)


def unpack(content: bytes) -> dict[int, object]:
    """Everything in a block, unpacked, as a reader of both blocks would."""
    found = find(read_block(content, 0)[0], chunks.FRONT + chunks.TRAILER)
    out: dict[int, object] = {}
    for kind, chunk in found.items():
        if kind == chunks.ALPHA:
            out[kind] = chunks.unpack_alpha(chunk, *ALPHA.shape).tobytes()
        elif kind == chunks.ORIENTATION:
            out[kind] = chunks.unpack_orientation(chunk)
        else:
            out[kind] = chunks.unpack_metadata(chunk)
    return out


@given(st.lists(any_chunk, min_size=1, max_size=4), st.binary(max_size=5), st.binary(max_size=5))
def test_blocks_round_trip(listed: list[Chunk], before: bytes, after: bytes) -> None:
    block = encode_block(listed)
    assert read_block(before + block + after, len(before)) == (listed, len(before) + len(block))


def test_no_chunks_are_no_bytes() -> None:
    assert encode_block([]) == b""
    assert read_block(bytes([0, crc8(b"\0")]), 0) == ([], 2)


def test_golden_block() -> None:
    """The bytes of the format never change."""
    listed = [
        chunks.pack_alpha(np.full((3, 100), 128, np.uint8)),
        chunks.pack_orientation(6),
    ]
    framing = bytes.fromhex("01" + "f03c" + "02") + binascii.crc32(b"\x80" * 300).to_bytes(4, "big")
    other = bytes.fromhex("03" + "01" + "01") + binascii.crc32(b"\6").to_bytes(4, "big")
    end = bytes([0, crc8(framing + other + b"\0")])
    assert encode_block(listed) == framing + b"\x00\x80" + other + b"\x06" + end


@given(texts, texts, st.integers(2, 8))
def test_contents_round_trip(icc: bytes, exif: bytes, orientation: int) -> None:
    block = encode_block(
        [
            chunks.pack_alpha(ALPHA),
            chunks.pack_metadata(chunks.ICC, icc),
            chunks.pack_orientation(orientation),
            chunks.pack_metadata(chunks.EXIF, exif),
        ]
    )
    expected = {
        chunks.ALPHA: ALPHA.tobytes(),
        chunks.ICC: icc,
        chunks.ORIENTATION: orientation,
        chunks.EXIF: exif,
    }
    assert unpack(block) == expected


BLOCK = encode_block(
    [
        chunks.pack_alpha(ALPHA),
        chunks.pack_metadata(chunks.ICC, b"a colour profile " * 5),
        chunks.pack_orientation(8),
        chunks.pack_metadata(chunks.XMP, b"<x/>"),
    ]
)


def test_every_prefix_is_known_to_be_cut() -> None:
    for size in range(len(BLOCK)):
        with pytest.raises(EOFError):
            read_block(BLOCK[:size], 0)


@pytest.mark.parametrize("change", [0x01, 0x08, 0x80, 0xFF])
def test_every_changed_byte_is_refused(change: int) -> None:
    """Or the block seems to go on after the end of the file; never a wrong content.

    Bits that fill up the last byte of a payload mean nothing.
    """
    refused = 0
    for place in range(len(BLOCK)):
        damaged = bytearray(BLOCK)
        damaged[place] ^= change
        try:
            found = unpack(bytes(damaged))
        except (FormatError, EOFError):
            refused += 1
        else:
            assert found == unpack(BLOCK)
    assert refused >= len(BLOCK) - 3


@given(st.integers(0, len(BLOCK) - 1), st.integers(1, 255), st.binary(min_size=40, max_size=40))
def test_damage_before_layers_is_refused_or_harmless(
    place: int, change: int, layers: bytes
) -> None:
    damaged = bytearray(BLOCK + layers)
    damaged[place] ^= change
    try:
        found = unpack(bytes(damaged))
    except (FormatError, EOFError):
        return
    assert found == unpack(BLOCK)


@given(st.binary(max_size=60))
def test_noise_never_raises_anything_else(content: bytes) -> None:
    try:
        unpack(content + bytes([0, crc8(b"\0")]))
    except (FormatError, EOFError):
        return


def test_unknown_kinds_are_skipped() -> None:
    known = chunks.pack_metadata(chunks.EXIF, b"exif")
    later = Chunk(77, 5, 6, b"payload")
    assert unpack(encode_block([later, known, later])) == {chunks.EXIF: b"exif"}
    assert find([known], chunks.FRONT) == {}


def test_two_of_a_kind_are_damage() -> None:
    chunk = chunks.pack_orientation(3)
    with pytest.raises(FormatError, match="twice"):
        find([chunk, chunk], chunks.FRONT)


def test_a_size_that_is_not_the_content_s_is_damage() -> None:
    """Nor is anything unpacked beyond it."""
    chunk = chunks.pack_metadata(chunks.ICC, bytes(1 << 20))
    assert len(chunk.payload) < 2000
    for size in (0, 10, (1 << 20) - 1, (1 << 20) + 1):
        with pytest.raises(FormatError, match="size is wrong"):
            chunks.unpack_metadata(replace(chunk, size=size))
    with pytest.raises(FormatError, match="larger than"):
        chunks.unpack_metadata(replace(chunk, size=chunks.MAX_METADATA + 1))
    with pytest.raises(FormatError, match="size is wrong"):
        chunks.unpack_metadata(replace(chunk, payload=chunk.payload + b"\0"))
    plane = chunks.pack_alpha(ALPHA)
    with pytest.raises(FormatError, match="size"):
        chunks.unpack_alpha(plane, 4, 5)


def test_a_content_that_is_not_the_writer_s_is_damage() -> None:
    unpackers = {
        chunks.pack_alpha(ALPHA): lambda c: chunks.unpack_alpha(c, 3, 5),
        chunks.pack_metadata(chunks.XMP, b"<x/>"): chunks.unpack_metadata,
        chunks.pack_orientation(5): chunks.unpack_orientation,
    }
    for chunk, unpacker in unpackers.items():
        with pytest.raises(FormatError, match="check does not match"):
            unpacker(replace(chunk, check=chunk.check ^ 1))


def test_the_largest_metadata_are_kept_and_larger_ones_refused() -> None:
    content = bytes(chunks.MAX_METADATA)
    assert chunks.unpack_metadata(chunks.pack_metadata(chunks.ICC, content)) == content
    with pytest.raises(DataError, match="--strip"):
        chunks.pack_metadata(chunks.ICC, content + b"\0")


def test_a_payload_of_another_packer_is_read() -> None:
    """Any DEFLATE stream will do, stored blocks too."""
    packer = zlib.compressobj(0, zlib.DEFLATED, -15)
    chunk = chunks.pack_metadata(chunks.EXIF, b"exif")
    other = replace(chunk, payload=packer.compress(b"exif") + packer.flush())
    assert chunks.unpack_metadata(other) == b"exif"
