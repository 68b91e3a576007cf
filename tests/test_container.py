"""The .ddc container: headers, layers, checks, and a named error for every kind of damage."""

from __future__ import annotations

import binascii
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffcodec.bits import crc8
from diffcodec.container import (
    CHECK_EVERY,
    MAGIC,
    MAX_PIXELS,
    MAX_SEED,
    MAX_SIDE,
    Header,
    Writer,
    layer_label,
    parse,
    read_header,
)
from diffcodec.errors import FormatError
from diffcodec.plans import PLANS, Plan

FINGERPRINT = b"\x01\x02\x03"
PLAN = Plan((300, 100, 20, 1), 133, 1)
PLAIN = Header(32, 32, FINGERPRINT, PLANS[0])


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    if draw(st.booleans()):
        return PLANS[draw(st.sampled_from(sorted(PLANS)))]
    later = draw(st.sets(st.integers(2, 1000), min_size=1, max_size=40))
    times = (*sorted(later, reverse=True), 1)
    return Plan(times, draw(st.integers(64, 255)), draw(st.integers(1, len(times) - 1)))


headers = st.builds(
    Header,
    width=st.integers(1, 1 << 14),
    height=st.integers(1, 1 << 14),
    fingerprint=st.binary(min_size=3, max_size=3),
    plan=plans(),
    grey=st.booleans(),
    seed=st.integers(0, MAX_SEED),
    model=st.text(max_size=60),
    float_arithmetic=st.booleans(),
)


def resealed(content: bytes, size: int) -> bytes:
    """The header of ``size`` bytes with its check made right again."""
    return content[: size - 1] + bytes([crc8(content[: size - 1])]) + content[size:]


@given(headers, st.binary(max_size=8))
def test_header_round_trip(header: Header, rest: bytes) -> None:
    content = header.encode()
    assert read_header(content + rest) == (header, len(content))


def test_plain_header_is_small() -> None:
    """32×32, default plan, no seed: signature 2, version 1, size 2, model 3, plan 1, check 1."""
    assert len(PLAIN.encode()) == 10


def test_golden_header() -> None:
    """The bytes of the format never change."""
    start = bytes.fromhex("dd4310202001020300")
    assert PLAIN.encode() == start + bytes([crc8(start)])
    other = Header(300, 2500, FINGERPRINT, PLAN, True, 1000, "né", True).encode()
    assert (
        other[:-1].hex()
        == (
            "dd431f"  # version 1, flags seed, float, name, grey
            "f03c" + "f809c4"  # 300 = 240 + 60; 2500 in two bytes
            "010203"
            "ff038501"  # plan written out: 3 steps, η 133, 1 step in the first layer
            "f03c" + "c8" + "50" + "13"  # 300, then −200, −80, −19
            "f2f8"  # seed 1000 = 240 + 2·256 + 248
            "03" + "6ec3a9"
        )
    )


@given(headers)
def test_every_prefix_of_a_header_is_refused(header: Header) -> None:
    content = header.encode()
    for size in range(len(content)):
        with pytest.raises(FormatError):
            read_header(content[:size])


@pytest.mark.parametrize(
    "header",
    [PLAIN, Header(300, 2500, FINGERPRINT, PLAN, True, 77777, "name", True)],
    ids=["plain", "everything"],
)
def test_a_changed_byte_in_a_header_is_refused(header: Header) -> None:
    """CRC-8 sees every change of up to eight neighbouring bits, a byte in particular.

    Only if the change moves the header's own end can another byte pass for the check.
    """
    content = header.encode()
    padding = bytes(range(1, 60))
    refused = 0
    for place in range(len(content)):
        for change in range(1, 256):
            damaged = bytearray(content + padding)
            damaged[place] ^= change
            try:
                other, size = read_header(bytes(damaged))
            except FormatError:
                refused += 1
                continue
            assert other != header
            assert size != len(content)
    assert refused >= 0.99 * 255 * len(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a .ddc file"),
        (b"\x89PNG\r\n\x1a\n", "not a .ddc file"),
        (b"\xdd", "ends inside its header"),
        (MAGIC, "ends inside its header"),
        (MAGIC + b"\x20", "version 2"),
        (MAGIC + b"\x00", "version 0"),
        (MAGIC + b"\x10\x00", "width is 0"),
        (MAGIC + b"\x10\x01\x00", "height is 0"),
        (MAGIC + b"\x10\xfe" + b"\xff" * 8, "width is 18446744073709551615"),
    ],
)
def test_unusable_beginnings_are_named(content: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read_header(content)


def test_unknown_plan_is_named_even_when_the_check_is_right() -> None:
    content = bytearray(PLAIN.encode())
    content[8] = 254
    with pytest.raises(FormatError, match="plan 254"):
        read_header(resealed(bytes(content), len(content)))


def test_damaged_check_is_named() -> None:
    content = bytearray(PLAIN.encode())
    content[-1] ^= 1
    with pytest.raises(FormatError, match="check does not match"):
        read_header(bytes(content))


@pytest.mark.parametrize(
    "plan_bytes",
    [
        "ff01850102" + "00",  # timesteps do not fall
        "ff018501" + "0202",  # end at 0
        "ff013f01" + "0201",  # η too small
        "ff018502" + "0201",  # more steps in the first layer than there are
        "ff018500" + "0201",  # none
        "ff018501" + "fa03e9" + "fa03e8",  # begins above 1000
        "ff008501" + "01",  # no step at all
    ],
)
def test_impossible_plans_are_refused(plan_bytes: str) -> None:
    start = MAGIC + b"\x10\x08\x08" + FINGERPRINT + bytes.fromhex(plan_bytes)
    with pytest.raises(FormatError, match="header is damaged"):
        read_header(start + bytes([crc8(start)]))


def test_model_name_that_is_not_text_is_refused() -> None:
    start = MAGIC + b"\x14\x08\x08" + FINGERPRINT + b"\x00" + b"\x02\xff\xfe"
    with pytest.raises(FormatError, match="UTF-8"):
        read_header(start + bytes([crc8(start)]))


def test_pictures_too_large_for_memory_are_refused() -> None:
    content = Header(MAX_SIDE, MAX_PIXELS // MAX_SIDE, FINGERPRINT, PLAN).encode()
    assert read_header(content)[0].width == MAX_SIDE
    too_large = Header(MAX_SIDE, MAX_PIXELS // MAX_SIDE + 1, FINGERPRINT, PLAN)
    with pytest.raises(FormatError, match="more than"):
        too_large.encode()


@pytest.mark.parametrize(
    "header",
    [
        Header(0, 1, FINGERPRINT, PLAN),
        Header(1, MAX_SIDE + 1, FINGERPRINT, PLAN),
        Header(1, 1, FINGERPRINT, PLAN, seed=-1),
        Header(1, 1, FINGERPRINT, PLAN, seed=MAX_SEED + 1),
        Header(1, 1, FINGERPRINT, PLAN, model="n" * 256),
    ],
)
def test_headers_that_cannot_be_read_are_not_written(header: Header) -> None:
    with pytest.raises(FormatError):
        header.encode()


# -- layers ----------------------------------------------------------------------------------


def written(codes: list[bytes], strips: list[bytes]) -> bytes:
    writer = Writer(Header(8, 8, FINGERPRINT, PLAN))
    for code in codes:
        writer.add_layer(code)
    for code in strips:
        writer.add_strip(code, b"pixels of " + code)
    assert writer.size == len(writer.getvalue())
    return writer.getvalue()


codes = st.lists(st.binary(max_size=300), min_size=3, max_size=3)


@given(codes, st.lists(st.binary(max_size=300), min_size=1, max_size=3))
def test_layers_round_trip(codes: list[bytes], strips: list[bytes]) -> None:
    content = written(codes, strips)
    contents = parse(content, len(strips))
    assert [layer.code for layer in contents.layers] == codes + strips
    assert contents.complete
    assert not contents.cut
    assert [layer.pixel_check for layer in contents.layers] == [None] * 3 + [
        binascii.crc32(b"pixels of " + code) for code in strips
    ]
    places = [contents.header_size, *(layer.end for layer in contents.layers)]
    assert places[-1] == len(content)
    for (begin, _), layer in zip(pairwise(places), contents.layers, strict=True):
        assert layer.start == begin


@given(codes, st.binary(max_size=60))
def test_every_prefix_holds_the_first_layers(codes: list[bytes], strip: bytes) -> None:
    content = written(codes, [strip])
    whole = parse(content, 1)
    for size in range(whole.header_size, len(content)):
        contents = parse(content[:size], 1)
        assert not contents.complete
        kept = contents.layers[: -1 if contents.cut else None]
        assert kept == [layer for layer in whole.layers if layer.end <= size]
        if contents.cut:
            last, full = contents.layers[-1], whole.layers[len(kept)]
            assert full.code.startswith(last.code)
            assert (last.start, last.end) == (full.start, full.end)


def test_few_bytes_share_a_check_and_many_have_their_own() -> None:
    frame = len(PLAN.layers) + len(Header(8, 8, FINGERPRINT, PLAN).encode())
    small, large = bytes(CHECK_EVERY // 4), bytes(CHECK_EVERY)
    assert len(written([small] * 3, [])) == frame + 3 * len(small)
    assert len(written([large] * 3, [])) == frame + 3 * (len(large) + 1)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_damage_in_a_checked_layer_is_named(number: int) -> None:
    content = written([bytes(range(40))] * 3, [b"strip"])
    layer = parse(content, 1).layers[number]
    for place in range(layer.start + 1, layer.end):  # after the length
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        with pytest.raises(FormatError, match=rf"layer {number + 1} .* is damaged"):
            parse(bytes(damaged), 1)


def test_any_changed_byte_is_refused_or_read_as_another_file() -> None:
    """Never another exception; a changed length may make the file look cut."""
    content = written([b"a" * 30, b"", b"b" * 5], [b"strip"])
    for place in range(len(content)):
        for change in (0x01, 0x80, 0xFF):
            damaged = bytearray(content)
            damaged[place] ^= change
            try:
                contents = parse(bytes(damaged), 1)
            except FormatError:
                continue
            assert contents != parse(content, 1)


def test_bytes_after_the_end_are_refused() -> None:
    content = written([b"a"] * 3, [b"strip"])
    with pytest.raises(FormatError, match="after the end"):
        parse(content + b"\0", 1)


def test_impossible_length_is_refused() -> None:
    header = Header(8, 8, FINGERPRINT, PLAN).encode()
    with pytest.raises(FormatError, match="impossible length"):
        parse(header + b"\xfe" + b"\xff" * 8, 1)


def test_layers_are_called_by_number_and_timestep() -> None:
    assert layer_label(PLAN, 0) == "layer 1 (down to t = 100)"
    assert layer_label(PLAN, 3) == "the final layer, strip 1"
