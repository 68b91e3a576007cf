"""Colours on a lattice: found, made use of, the same on both sides and on every machine."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
from conftest import MACHINES, converted, load_picture, output_with, round_trip
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import diffcodec
from diffcodec import api
from diffcodec.bits import crc8
from diffcodec.container import OPTION_LATTICE, Header, read_header
from diffcodec.errors import DamageError, FormatError
from diffcodec.final_layer import (
    Distribution,
    ideal_bits,
    no_lessons,
    receive_strip,
    send_strip,
)
from diffcodec.lattice import COUNT_UNIT, Colours, lattice_of
from diffcodec.lattices import COORDINATE_UNIT, LATTICES
from diffcodec.lessons import SCALE_MAX, SCALE_MIN, Lessons
from diffcodec.model import Model
from diffcodec.plans import PLANS

I64 = NDArray[np.int64]

CONVERSIONS = {
    1: (0.299, 0.114, 1.0, 1.772, 1.402),
    2: (0.299, 0.114, 255 / 219, 1.772 * 255 / 224, 1.402 * 255 / 224),
    3: (0.2126, 0.0722, 255 / 219, 1.8556 * 255 / 224, 1.5748 * 255 / 224),
    4: (0.299, 0.114, 1.3584, 2.2179, 1.8215),
}
"""As the standards have them: shares of red and blue in luminance; levels for one step of it, of
the difference of blue and of that of red."""


def to_rgb(number: int) -> NDArray[np.float64]:
    """From luminance and the two differences to R, G, B."""
    kr, kb, step, blue, red = CONVERSIONS[number]
    green = 1.0 - kr - kb
    return np.array(
        [[step, 0, red], [step, -kb * blue / green, -kr * red / green], [step, blue, 0]]
    )


def on_lattice(number: int, shape: tuple[int, int] = (80, 90), seed: int = 0) -> I64:
    """Levels [3, h, w] of such whole numbers, somewhere in the middle of all colours."""
    rng = np.random.default_rng(seed)
    steps = rng.integers([[[70]], [[-12]], [[-12]]], [[[110]], [[12]], [[12]]], (3, *shape))
    offset = rng.uniform(20, 40, (3, 1))
    levels = np.floor(to_rgb(number) @ steps.reshape(3, -1) + offset)
    return np.clip(levels, 0, 255).astype(np.int64).reshape(3, *shape)


@pytest.mark.parametrize("number", sorted(LATTICES))
def test_coordinates_undo_the_standards_conversions(number: int) -> None:
    exact = np.linalg.inv(to_rgb(number)) * (1 << COORDINATE_UNIT)
    np.testing.assert_array_equal(np.array(LATTICES[number].coordinates), np.rint(exact))


@pytest.mark.parametrize("number", sorted(LATTICES))
@pytest.mark.parametrize("seed", [0, 1])
def test_the_sender_finds_the_lattice_and_none_where_there_is_none(number: int, seed: int) -> None:
    """Wherever the lattice begins and however its colours were rounded."""
    levels = on_lattice(number, seed=seed).astype(np.uint8)
    assert lattice_of(levels) == number
    grain = np.random.default_rng(seed).integers(-1, 2, levels.shape)
    assert lattice_of((levels + grain).astype(np.uint8)) == 0


def test_no_lattice_is_found_in_pictures_of_few_colours_or_of_a_camera() -> None:
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8), (3, 20, 256))
    assert lattice_of(np.ascontiguousarray(ramp)) == 0
    assert lattice_of(np.full((3, 70, 70), 9, np.uint8)) == 0
    assert lattice_of(load_picture("budgerigar.png").transpose(2, 0, 1)) == 0


def lessons_with(number: int, passes: int = 4) -> Lessons:
    return Lessons(no_lessons(passes).weights, passes == 4, Colours(number))


def expected(levels: I64, rng: np.random.Generator, scale: int) -> Distribution:
    """A model that is right about levels [3, h, w]."""
    noise = 16 * 2 ** (scale / 8) * rng.standard_normal(levels.shape)
    coefs = rng.integers(-40, 40, levels.shape)
    return Distribution(
        np.rint(16 * levels + noise).astype(np.int64), np.full(levels.shape, scale), coefs
    )


@given(st.integers(0, 1000), st.sampled_from([2, 4]), st.sampled_from(sorted(LATTICES)))
def test_strips_come_back_whatever_the_model_expects(seed: int, passes: int, number: int) -> None:
    """Also levels that are as good as impossible, and scales beyond all limits."""
    rng = np.random.default_rng(seed)
    sent, received = lessons_with(number, passes), lessons_with(number, passes)
    for height in (5, 8):
        shape = 3, height, 7
        x = rng.integers(0, 256, shape)
        x[rng.random(shape) < 0.2] = 255 * int(rng.integers(2))
        mean = rng.integers(-300, 4400, shape)
        near = rng.random(shape) < 0.7
        mean = np.where(near, 16 * x + rng.integers(-40, 40, shape), mean)
        scale = rng.integers(SCALE_MIN - 5, SCALE_MAX + 5, shape)
        p = Distribution(mean, scale, rng.integers(-128, 128, shape))
        code = send_strip(x, p, lessons=sent)
        found, certain = receive_strip(code, p, lessons=received)
        assert certain.all()
        np.testing.assert_array_equal(found, x)
        np.testing.assert_array_equal(sent.weights, received.weights)


@given(st.integers(0, 1000), st.floats(0.0, 1.0))
def test_what_is_certain_of_a_cut_strip_is_right(seed: int, share: float) -> None:
    x = on_lattice(1, (12, 10), seed)
    p = expected(x, np.random.default_rng(seed), 4)
    code = send_strip(x, p, lessons=lessons_with(1))
    cut = code[: int(share * len(code))]
    found, certain = receive_strip(cut, p, complete=False, lessons=lessons_with(1))
    np.testing.assert_array_equal(found[certain], x[certain])
    assert not certain.all()


def test_a_lattice_saves_nearly_what_the_missing_colours_are_worth() -> None:
    """Of colours on JPEG's lattice there are 4.2 times fewer: 2.08 bits a pixel."""
    rng = np.random.default_rng(3)
    plain, own, ideal = Lessons(no_lessons(4).weights, True), lessons_with(1), lessons_with(1)
    sizes = []
    for _ in range(4):
        x = on_lattice(1, (64, 96))
        x = x[:, rng.permutation(64)]
        p = expected(x, rng, 8)
        bits = [8 * len(send_strip(x, p, lessons=lessons)) for lessons in (plain, own)]
        assert bits[1] == pytest.approx(ideal_bits(x, p, lessons=ideal), rel=0.001, abs=64)
        sizes.append((bits[0] - bits[1]) / x[0].size)
    assert sizes[0] > 0.0
    assert 1.6 < sizes[-1] < 3.5, "the colours of this picture recur, which is worth something too"


def test_where_colours_lie_is_learnt_whatever_the_matrix_was() -> None:
    """Of a picture that has another lattice than is said only colours that recur are learnt."""
    x, rng = on_lattice(4, (64, 96)), np.random.default_rng(0)
    p = expected(x, rng, 8)
    bits = {}
    for number in LATTICES:
        lessons = lessons_with(number)
        bits[number] = sum(ideal_bits(x, p, lessons=lessons) for _ in range(2))
    assert min(bits, key=lambda n: bits[n]) == 4


def test_probabilities_are_whole_and_none_is_zero() -> None:
    """As constriction's models are made of them: multiples of 2**-24 that sum to one."""
    from diffcodec.final_layer import _Pixels

    rng = np.random.default_rng(1)
    x = on_lattice(2, (16, 20))
    pixels = _Pixels(expected(x, rng, 30), False, lessons_with(2))
    for part in pixels.passes():
        levels = x[part.channel][part.own]
        counts = pixels.probabilities(slice(0, len(levels))) * (1 << COUNT_UNIT)
        np.testing.assert_array_equal(counts, np.rint(counts))
        assert counts.min() >= 1
        np.testing.assert_array_equal(counts.sum(axis=1), 1 << COUNT_UNIT)
        pixels.tell(part, levels)


PROGRAM = """
import hashlib
import numpy as np
from test_lattice import expected, lessons_with, on_lattice
from diffcodec.final_layer import send_strip

for number in (1, 4):
    lessons, rng = lessons_with(number), np.random.default_rng(5)
    for rows in (16, 30):
        x = on_lattice(number, (rows, 41))
        print(hashlib.sha256(send_strip(x, expected(x, rng, 6), lessons=lessons)).hexdigest())
"""


@cache
def found_here() -> list[str]:
    return output_with(PROGRAM)


@pytest.mark.parametrize("machine", sorted(MACHINES))
def test_every_machine_finds_the_same(machine: str) -> None:
    assert output_with(PROGRAM, machine) == found_here()


def test_files_of_such_pictures_are_smaller_and_exact(exact_tiny: Model) -> None:
    pixels = converted(66, 70)
    content = round_trip(pixels, exact_tiny, plan=PLANS[24])
    header, _ = read_header(content)
    assert header.lattice == 1
    assert api.describe(content, exact_tiny)["lattice"] == "JPEG"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "lattice_of", lambda levels: 0)
        plain = round_trip(pixels, exact_tiny, plan=PLANS[24])
    assert read_header(plain)[0].lattice == 0
    assert len(content) < len(plain) - pixels[..., 0].size / 8
    for size in np.linspace(header_size(content), len(content) - 1, 9).astype(int):
        shown = diffcodec.decode(content[:size], model=exact_tiny)
        assert not shown.exact


def test_damage_in_such_a_strip_is_named_and_the_steps_still_decode(exact_tiny: Model) -> None:
    content = diffcodec.encode(converted(66, 70), model=exact_tiny, effort=1, plan=PLANS[24])
    strip = api.parse(content, exact_tiny).layers[-2]
    rng = np.random.default_rng(8)
    for place in rng.integers(strip.end - len(strip.code), strip.end, 6):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        with pytest.raises(DamageError, match=r"strip|rows"):
            diffcodec.decode(bytes(damaged), model=exact_tiny)
        shown = diffcodec.decode(bytes(damaged), model=exact_tiny, stop_t=2)
        assert shown.t == 2


def header_size(content: bytes) -> int:
    return read_header(content)[1]


def test_grey_and_small_pictures_have_no_lattice(exact_tiny: Model) -> None:
    encode = partial(diffcodec.encode, model=exact_tiny, effort=1, stop_t=680)
    small = converted(40, 60)
    assert lattice_of(np.ascontiguousarray(small.transpose(2, 0, 1))) == 1
    for pixels in (small, converted(70, 70)[..., 1]):
        assert read_header(encode(pixels))[0].lattice == 0
    for header in (Header(64, 64, b"abc", PLANS[0]), Header(80, 64, b"abc", PLANS[0], grey=True)):
        with pytest.raises(FormatError, match="lattice"):
            replace(header, lattice=1).encode()


@pytest.mark.parametrize("number", [0, max(LATTICES) + 1, 255])
def test_an_unknown_lattice_is_named_even_when_the_check_is_right(number: int) -> None:
    content = bytearray(Header(80, 64, b"abc", PLANS[0], lattice=1, seed=5).encode())
    assert read_header(bytes(content))[0].lattice == 1
    assert content[2] & OPTION_LATTICE
    content[-2] = number
    content[-1] = crc8(bytes(content[:-1]))
    with pytest.raises(FormatError, match=f"lattice {number}"):
        read_header(bytes(content))
