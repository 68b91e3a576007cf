"""Bits, variable-length integers and the check byte."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffcodec.bits import BitReader, BitWriter, crc8, decode_varint, encode_varint


@given(st.integers(0, (1 << 64) - 1) | st.integers(0, 70_000), st.binary(max_size=3))
def test_varint_round_trip(value: int, rest: bytes) -> None:
    code = encode_varint(value)
    assert decode_varint(b"x" + code + rest, 1) == (value, len(code))
    for size in range(len(code)):
        with pytest.raises(EOFError):
            decode_varint(code[:size], 0)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (0, "00"),
        (239, "ef"),
        (240, "f000"),
        (2287, "f7ff"),
        (2288, "f808f0"),
        (65535, "f8ffff"),
        (65536, "f9010000"),
        ((1 << 64) - 1, "fe" + 8 * "ff"),
    ],
)
def test_varint_golden_values(value: int, code: str) -> None:
    assert encode_varint(value).hex() == code


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_varint_refuses_what_it_cannot_hold(value: int) -> None:
    with pytest.raises(ValueError, match=r"negative|large"):
        encode_varint(value)


items = st.one_of(
    st.tuples(st.just("bits"), st.integers(0, (1 << 20) - 1)),
    st.tuples(st.just("gamma"), st.integers(-5000, 5000)),
    st.tuples(st.just("varint"), st.integers(0, 1 << 40)),
    st.tuples(st.just("bytes"), st.binary(max_size=5)),
    st.tuples(st.just("align"), st.none()),
)


@given(st.lists(items, max_size=30))
def test_what_is_written_is_read(sequence: list[tuple[str, object]]) -> None:
    writer = BitWriter()
    for kind, value in sequence:
        if kind == "bits":
            writer.write(value, 20)  # type: ignore[arg-type]
        elif kind == "align":
            writer.align()
        else:
            {
                "gamma": writer.write_signed_gamma,
                "varint": writer.write_varint,
                "bytes": writer.write_bytes,
            }[kind](value)  # type: ignore[arg-type]
    length = writer.bit_length
    writer.align()
    reader = BitReader(writer.getvalue())
    for kind, value in sequence:
        if kind == "align":
            reader.align()
            continue
        found = {
            "bits": lambda: reader.read(20),
            "gamma": reader.read_signed_gamma,
            "varint": reader.read_varint,
            "bytes": lambda v=value: reader.read_bytes(len(v)),
        }[kind]()
        assert found == value
    assert reader.position == length


@pytest.mark.parametrize(
    ("value", "bits"), [(0, "1"), (-1, "010"), (1, "011"), (-2, "00100"), (2, "00101")]
)
def test_signed_gamma_is_short_near_zero(value: int, bits: str) -> None:
    writer = BitWriter()
    writer.write_signed_gamma(value)
    assert writer.bit_length == len(bits)
    writer.align()
    assert writer.getvalue()[0] == int(bits.ljust(8, "0"), 2)


def test_bits_fill_bytes_from_the_most_significant_end() -> None:
    writer = BitWriter()
    writer.write(1, 1)
    writer.write(3, 6)
    writer.write_array(np.array([1], dtype=np.uint8))
    assert writer.getvalue() == bytes([0b10000111])


def test_a_broken_byte_is_not_given_out() -> None:
    writer = BitWriter()
    writer.write(1, 3)
    with pytest.raises(ValueError, match="whole number of bytes"):
        writer.getvalue()
    assert BitWriter().getvalue() == b""


def test_reading_past_the_end_is_an_eof() -> None:
    with pytest.raises(EOFError):
        BitReader(b"\xff").read(9)
    with pytest.raises(EOFError):
        BitReader(b"\xff").read_bytes(2)
    with pytest.raises(EOFError):
        BitReader(b"\xff").read_varint()
    with pytest.raises(EOFError):
        BitReader(b"\x00").read_signed_gamma()
    assert len(BitReader(b"\x01").read_array(20)) == 8


def bitwise_crc8(content: bytes) -> int:
    crc = 0xFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x07) & 0xFF if crc & 0x80 else crc << 1
    return crc


@given(st.binary(max_size=40))
def test_crc8_is_its_polynomial(content: bytes) -> None:
    assert crc8(content) == bitwise_crc8(content)


def test_crc8_known_values() -> None:
    assert crc8(b"") == 0xFF
    assert crc8(b"123456789") == 0xFB


@given(st.binary(min_size=1, max_size=40), st.data())
def test_crc8_sees_every_change_of_one_byte(content: bytes, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(content) - 1))
    change = data.draw(st.integers(1, 255))
    damaged = content[:place] + bytes([content[place] ^ change]) + content[place + 1 :]
    assert crc8(damaged) != crc8(content)
