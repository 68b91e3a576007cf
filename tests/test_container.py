"""The .ddc container: headers, layers, checks, and a named error for every kind of damage."""

from __future__ import annotations

import binascii
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffcodec.bits import crc8, encode_varint
from diffcodec.catalogue import CATALOGUE
from diffcodec.container import (
    FORMER_MAGIC,
    MAGIC,
    MAX_PIXELS,
    MAX_SEED,
    MAX_SIDE,
    Header,
    LayerReader,
    Writer,
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
    fingerprint=st.binary(min_size=3, max_size=3)
    | st.sampled_from([entry.fingerprint for entry in CATALOGUE.values()]),
    plan=plans(),
    grey=st.booleans(),
    seed=st.integers(0, MAX_SEED),
    model=st.text(max_size=60),
    float_arithmetic=st.booleans(),
    chunks=st.booleans(),
    trailer=st.booleans(),
).flatmap(lambda h: st.sampled_from([h, replace(h, grey=True, planes=True)]))


@given(headers, st.binary(max_size=8))
def test_header_round_trip(header: Header, rest: bytes) -> None:
    content = header.encode()
    assert read_header(content + rest) == (header, len(content))


@pytest.mark.parametrize("number", sorted(CATALOGUE))
def test_plain_header_is_small(number: int) -> None:
    """32×32, model and its plan by number: signature, flags and size, model: a byte each."""
    entry = CATALOGUE[number]
    listed = Header(32, 32, entry.fingerprint, PLANS[entry.plan])
    assert len(listed.encode()) == 3
    assert read_header(listed.encode()) == (listed, 3)
    assert len(replace(listed, width=33).encode()) == 5
    assert len(replace(listed, width=33, height=33).encode()) == 4
    assert len(replace(listed, width=112, height=112).encode()) == 4  # with a check
    assert len(replace(listed, width=120, height=120).encode()) == 5
    other = next(plan for plan in PLANS.values() if plan != listed.plan)
    assert len(replace(listed, plan=other).encode()) == 5
    assert len(PLAIN.encode()) == 6


@pytest.mark.parametrize("number", sorted(CATALOGUE))
def test_the_check_is_of_the_model_too(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another model under the same number is noticed, of a small picture at the first layer."""
    entry = CATALOGUE[number]
    content = Header(320, 32, entry.fingerprint, PLANS[entry.plan]).encode()
    small = Writer(Header(32, 32, entry.fingerprint, PLANS[entry.plan]))
    small.add_layer(b"code", 7)
    changed = entry.fingerprint[:2] + bytes([entry.fingerprint[2] ^ 1])
    monkeypatch.setitem(CATALOGUE, number, replace(entry, fingerprint=changed))
    with pytest.raises(FormatError, match="check"):
        read_header(content)
    with pytest.raises(FormatError, match="check"):
        reader(small.getvalue()).close(4, 7)


def test_golden_header() -> None:
    """The bytes of the format never change."""
    assert PLAIN.encode().hex() == "de0400010203"  # 32 = 4 · 8
    start = bytes.fromhex("de0e00010203")
    assert replace(PLAIN, width=112, height=112).encode() == start + bytes([crc8(start)])
    other = Header(300, 2500, FINGERPRINT, PLAN, True, 1000, "né", True).encode()
    assert (
        other[:-1].hex()
        == (
            "de30"  # flags grey and options, both sides follow
            "0f"  # plan, seed, float, name
            "f03c" + "f809c4"  # 300 = 240 + 60; 2500 in two bytes
            "00010203"
            "ff038501"  # plan written out: 3 steps, η 133, 1 step in the first layer
            "f03c" + "c8" + "50" + "13"  # 300, then −200, −80, −19
            "f2f8"  # seed 1000 = 240 + 2·256 + 248
            "03" + "6ec3a9"
        )
    )


def test_what_comes_beside_the_layers_costs_the_header_one_byte() -> None:
    options = Header(32, 32, FINGERPRINT, PLANS[0], True, chunks=True, trailer=True, planes=True)
    assert len(options.encode()) == len(PLAIN.encode()) + 1
    assert options.encode()[1:3].hex() == "3470"  # flags grey and options, 32×32


@given(headers)
def test_every_prefix_of_a_header_is_refused(header: Header) -> None:
    content = header.encode()
    for size in range(len(content)):
        with pytest.raises(FormatError):
            read_header(content[:size])


@pytest.mark.parametrize(
    "header",
    [
        replace(PLAIN, width=70, height=70),
        Header(96, 96, CATALOGUE[1].fingerprint, PLANS[CATALOGUE[1].plan]),
        Header(300, 2500, FINGERPRINT, PLAN, True, 77777, "name", True),
    ],
    ids=["plain", "listed", "everything"],
)
def test_a_changed_byte_in_a_header_is_refused(header: Header) -> None:
    """CRC-8 sees every change of up to eight neighbouring bits, a byte in particular.

    Only if the change moves the header's own end can another byte pass for the check; and what
    becomes the header of a small picture has none (the next test).
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
            assert size != len(content) or not other.has_lengths
            refused += not other.has_lengths
    assert refused >= 0.99 * 255 * len(content)


def test_a_changed_byte_in_a_small_header_is_noticed_at_the_first_layer() -> None:
    """Its check is of the header, too; what decodes is not known to be sound before it."""
    writer = Writer(SMALL_ONE)
    writer.add_layer(b"first layer", 77)
    content = writer.getvalue()
    assert reader(content).close(11, 77)
    passed = 0
    for place in range(len(SMALL_ONE.encode())):
        for change in range(1, 256):
            damaged = bytearray(content)
            damaged[place] ^= change
            try:
                found = reader(bytes(damaged))
                passed += found.close(11, 77)
            except FormatError:
                continue
    assert passed <= 0.01 * 255 * len(SMALL_ONE.encode())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a .ddc file"),
        (b"\x89PNG\r\n\x1a\n", "not a .ddc file"),
        (FORMER_MAGIC, "not a .ddc file"),
        (MAGIC, "ends inside its header"),
        (FORMER_MAGIC + b"\x20", "version 2"),
        (FORMER_MAGIC + b"\x71", "version 7 .* reads version 8"),
        (FORMER_MAGIC + b"\x60", "version 6 .* the diffcodec that wrote it"),
        (FORMER_MAGIC + b"C\x11", "version 1"),
        (MAGIC + b"\x84", "more than this version knows"),
        (MAGIC + b"\x44", "more than this version knows"),
        (MAGIC + b"\x24\x80\x21\x01", "a lattice for a grey or small picture"),
        (MAGIC + b"\x24\x40", "more than this version knows"),  # one plane for three, not grey
        (MAGIC + b"\x00\x00", "width is 0"),
        (MAGIC + b"\x0f\x00", "width is 0"),
        (MAGIC + b"\x00\x01\x00", "height is 0"),
        (MAGIC + b"\x00\xfe" + b"\xff" * 8, "width is 18446744073709551615"),
        (MAGIC + b"\x04\xfe", "model number 254"),
    ],
)
def test_unusable_beginnings_are_named(content: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read_header(content)


def test_unknown_plan_is_named_even_when_the_check_is_right() -> None:
    start = MAGIC + b"\x2e\x01\0" + FINGERPRINT + b"\xfe"
    with pytest.raises(FormatError, match="plan 254"):
        read_header(start + bytes([crc8(start)]))


def test_damaged_check_is_named() -> None:
    content = bytearray(replace(PLAIN, height=320).encode())
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
    start = MAGIC + b"\x2e\x01\0" + FINGERPRINT + bytes.fromhex(plan_bytes)
    with pytest.raises(FormatError, match="header is damaged"):
        read_header(start + bytes([crc8(start)]))


def test_model_name_that_is_not_text_is_refused() -> None:
    start = MAGIC + b"\x2e\x08\0" + FINGERPRINT + b"\x02\xff\xfe"
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
        Header(1, 1, FINGERPRINT, PLAN, planes=True),
    ],
)
def test_headers_that_cannot_be_read_are_not_written(header: Header) -> None:
    with pytest.raises(FormatError):
        header.encode()


# -- layers ----------------------------------------------------------------------------------


CHECKS = (7, 0, 255)
"""What the checks of the receiver's state are made to be."""
SMALL_ONE, LARGE_ONE = Header(8, 8, FINGERPRINT, PLAN), Header(99, 99, FINGERPRINT, PLAN)


def written(codes: list[bytes], strips: list[bytes], header: Header = LARGE_ONE) -> bytes:
    writer = Writer(header)
    for number, code in enumerate(codes):
        writer.add_layer(code, CHECKS[number])
    for code in strips:
        writer.add_strip(code, b"pixels of " + code)
    assert writer.size == len(writer.getvalue())
    return writer.getvalue()


def reader(content: bytes) -> LayerReader:
    header, place = read_header(content)
    return LayerReader(content, place, header)


def skimmed(content: bytes, strips: int) -> LayerReader:
    """A reader that went past every layer it could."""
    found = reader(content)
    for _ in range(len(PLAN.layers)):
        if not found.skip():
            return found
    for _ in range(strips):
        strip = found.strip()
        if strip is None or not strip.whole:
            break
    return found


codes = st.lists(st.binary(max_size=300), min_size=3, max_size=3)


@given(
    codes,
    st.lists(st.binary(max_size=300), min_size=1, max_size=3),
    st.sampled_from([SMALL_ONE, LARGE_ONE]),
)
def test_layers_round_trip(codes: list[bytes], strips: list[bytes], header: Header) -> None:
    content = written(codes, strips, header)
    found = reader(content)
    for code, check in zip(codes, CHECKS, strict=True):
        begin, may_be_cut = found.open()
        assert begin[: len(code)] == code
        assert may_be_cut == (not header.has_lengths)
        found.close(len(code), check)
    for code in strips:
        strip = found.strip()
        assert strip is not None
        assert (strip.code, strip.whole) == (code, True)
        short = header.width == 8
        check = binascii.crc32(b"pixels of " + code)
        assert strip.check == (check & 0xFFFF if short else check)
    assert found.at_end
    assert found.strip() is None
    assert [layer.code for layer in found.layers] == codes + strips
    _, place = read_header(content)
    for layer in found.layers:
        assert layer.start == place
        place = layer.end
    assert place == len(content)


def test_small_pictures_spend_nothing_on_lengths_and_little_on_checks() -> None:
    codes, strips = [b"a" * 9, b"b" * 300, b""], [b"strip"]
    contents = [written(codes, strips, header) for header in (SMALL_ONE, LARGE_ONE)]
    bodies = [len(content) - read_header(content)[1] for content in contents]
    assert bodies[1] - bodies[0] == (1 + 2 + 1) + 2 + 2
    assert Header(64, 64, FINGERPRINT, PLAN).has_lengths is False
    assert Header(64, 65, FINGERPRINT, PLAN).has_lengths is True


@given(codes, st.binary(max_size=60))
def test_every_prefix_holds_the_first_layers(codes: list[bytes], strip: bytes) -> None:
    content = written(codes, [strip])
    whole = skimmed(content, 1).layers
    assert len(whole) == 4
    for size in range(read_header(content)[1], len(content)):
        layers = skimmed(content[:size], 1).layers
        cut = bool(layers) and not layers[-1].whole
        kept = layers[:-1] if cut else layers
        assert kept == [layer for layer in whole if layer.end <= size]
        if cut:
            last, full = layers[-1], whole[len(kept)]
            assert full.code.startswith(last.code)
            assert (last.start, last.end) == (full.start, full.end)


@given(codes)
def test_a_prefix_never_gives_bytes_that_are_not_there(codes: list[bytes]) -> None:
    for header in (SMALL_ONE, LARGE_ONE):
        content = written(codes, [b"strip"], header)
        for size in range(read_header(content)[1], len(content)):
            begin, may_be_cut = reader(content[:size]).open()
            assert len(begin) <= size
            assert may_be_cut or begin == codes[0]


@pytest.mark.parametrize("used", [0, 29])
def test_a_length_that_is_not_that_of_the_contents_is_damage(used: int) -> None:
    found = reader(written([b"a" * 30, b"", b"b"], [b"strip"]))
    found.open()
    with pytest.raises(FormatError, match="length"):
        found.close(used, CHECKS[0])
    assert not found.layers


@pytest.mark.parametrize("header", [SMALL_ONE, LARGE_ONE], ids=["small", "large"])
def test_a_check_that_does_not_match_is_damage(header: Header) -> None:
    found = reader(written([b"a" * 30, b"", b"b"], [b"strip"], header))
    found.open()
    with pytest.raises(FormatError, match="check"):
        found.close(30, CHECKS[0] ^ 1)
    assert not found.layers
    found.close(30, CHECKS[0])


def test_later_layers_of_a_small_picture_have_no_check() -> None:
    for header in (SMALL_ONE, LARGE_ONE):
        found = reader(written([b"a" * 30, b"b", b"c"], [b"strip"], header))
        found.open()
        found.close(30, CHECKS[0])
        found.open()
        if header is LARGE_ONE:
            with pytest.raises(FormatError, match="check"):
                found.close(1, CHECKS[1] ^ 1)
        else:
            found.close(1, CHECKS[1] ^ 1)
            assert found.layers[1].check is None


@pytest.mark.parametrize("sound", [0, 1, 2, 3])
def test_layers_before_an_impossible_length_stand(sound: int) -> None:
    whole = written([b"a", b"b" * 300, b""], [b"strip"])
    layers = skimmed(whole, 1).layers
    found = reader(whole[: layers[sound].start] + b"\xfe" + b"\xff" * 8)
    with pytest.raises(FormatError, match="impossible length"):
        for number in range(4):
            _ = found.skip() if number < 3 else found.strip()
    assert found.layers == layers[:sound]


@pytest.mark.parametrize("kind", ["mirrored", "adaptive"])
def test_some_plans_without_a_number_cannot_be_written(kind: str) -> None:
    with pytest.raises(FormatError, match="has a number"):
        replace(PLAIN, plan=Plan((40, 6, 1), 130, **{kind: 1})).encode()


@pytest.mark.parametrize(("steps", "size"), [(1000, 280), (1000, 512), (200, 12), (3, 180)])
def test_the_length_of_a_small_picture_s_strip_takes_a_byte(steps: int, size: int) -> None:
    """As long as it is within 119 bytes of what its steps make one expect; then two."""
    header = Header(32, 32, FINGERPRINT, PLAN)
    codes = [b"s" * (steps - 3), b"", b"bc"]
    expected = steps // 3 + 64  # one of the bytes of steps is the check of the first layer
    for length, framing in ((size, 1 + 2), (expected + 119, 1 + 2), (expected + 120, 2 + 2)):
        without, content = written(codes, [], header), written(codes, [b"z" * length], header)
        assert len(content) - len(without) == length + framing
        found = reader(content)
        for code, check in zip(codes, CHECKS, strict=True):
            found.close(len(code), check)
        strip = found.strip()
        assert strip is not None
        assert strip.code == b"z" * length


def test_a_strip_of_negative_length_is_refused() -> None:
    content = written([b"abc"] * 3, [], SMALL_ONE) + encode_varint(239) + b"\0\0"
    found = reader(content)
    for check in CHECKS:
        found.close(3, check)
    with pytest.raises(FormatError, match="impossible length"):
        found.strip()
