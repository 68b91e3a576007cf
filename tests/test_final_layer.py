"""The discretised decoder: its probabilities, its code length, and partial strips."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffcodec.entropy import PRECISION, integer_probabilities
from diffcodec.errors import FormatError
from diffcodec.final_layer import (
    BLUE,
    COEF_UNIT,
    GREEN,
    RED,
    Distribution,
    bin_weights,
    fields,
    fit_weights,
    ideal_bits,
    neighbour_sums,
    no_lessons,
    receive_strip,
    send_strip,
)
from diffcodec.lessons import MEAN_UNIT, REGRESSORS, SCALE_MAX, SCALE_MIN, Lessons
from diffcodec.tables import OCTAVE

I64 = NDArray[np.int64]
SCALES = list(range(SCALE_MIN, SCALE_MAX + 1))
FLOORS: list[int | None] = [None, 0, 1, 17, 128, 254, 255]


def normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


@pytest.mark.parametrize("floor", FLOORS)
def test_bin_weights_are_probabilities(floor: int | None) -> None:
    for scale in SCALES:
        for phase in (0, 1, 8, 15):
            weights = bin_weights(scale, phase, floor)
            assert weights.min() >= 0.0
            assert weights.sum() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("floor", FLOORS)
def test_no_symbol_is_impossible_for_the_coder(floor: int | None) -> None:
    for scale in SCALES[::7]:
        counts = integer_probabilities(bin_weights(scale, 5, floor))
        assert counts.sum() == 1 << PRECISION
        assert counts.min() >= 1


@pytest.mark.parametrize("scale", [-16, 0, 8, 24, 40])
@pytest.mark.parametrize("phase", [0, 7, 15])
def test_bin_weights_are_the_mass_of_a_gaussian(scale: int, phase: int) -> None:
    """Eq. 13.  Linear interpolation of Φ in steps of 1/256 errs by at most 1/(8·256²)·0.25."""
    sigma = 2.0 ** (scale / OCTAVE)
    weights = bin_weights(scale, phase, None)
    for residual in range(-20, 21):
        centre = residual - phase / 16
        mass = normal_cdf((centre + 0.5) / sigma) - normal_cdf((centre - 0.5) / sigma)
        assert weights[255 + residual] == pytest.approx(mass, abs=1e-6)


@pytest.mark.parametrize("floor", [0, 3, 252, 255])
def test_the_outermost_bins_take_all_that_lies_beyond(floor: int) -> None:
    weights, sigma, mean = bin_weights(24, 4, floor), 8.0, floor + 0.25
    assert weights[255 - floor] == pytest.approx(normal_cdf((0.5 - mean) / sigma), abs=1e-6)
    assert weights[510 - floor] == pytest.approx(1.0 - normal_cdf((254.5 - mean) / sigma), abs=1e-6)
    assert not weights[: 255 - floor].any()
    assert not weights[511 - floor :].any()


# -- strips ----------------------------------------------------------------------------------


def drawn(
    seed: int, height: int, width: int, mean_range: tuple[int, int], scale_range: tuple[int, int]
) -> tuple[I64, Distribution]:
    """A distribution and pixels drawn from it, channel after channel as it is coded."""
    rng = np.random.default_rng(seed)
    shape = (3, height, width)
    p = Distribution(
        mean=rng.integers(mean_range[0] * MEAN_UNIT, mean_range[1] * MEAN_UNIT + 1, shape),
        scale=rng.integers(scale_range[0], scale_range[1] + 1, shape),
        coefs=rng.integers(-COEF_UNIT, COEF_UNIT + 1, shape),
    )
    z = rng.standard_normal(shape) * 2.0 ** (p.scale / OCTAVE)
    mean, c = p.mean / MEAN_UNIT, p.coefs / COEF_UNIT
    x = np.zeros(shape)
    x[GREEN] = np.clip(np.rint(mean[GREEN] + z[GREEN]), 0, 255)
    green = x[GREEN] - mean[GREEN]
    mean_red = mean[RED] + c[0] * green
    x[RED] = np.clip(np.rint(mean_red + z[RED]), 0, 255)
    mean_blue = mean[BLUE] + c[1] * green + c[2] * (x[RED] - mean_red)
    x[BLUE] = np.clip(np.rint(mean_blue + z[BLUE]), 0, 255)
    return x.astype(np.int64), p


@pytest.mark.parametrize(
    ("mean_range", "scale_range"),
    [((80, 170), (-8, 24)), ((0, 255), (0, 32)), ((128, 128), (0, 0))],
    ids=["inside", "everywhere", "one scale"],
)
def test_code_length_is_the_ideal(
    mean_range: tuple[int, int], scale_range: tuple[int, int]
) -> None:
    """Within 0.1 % + 64 bits: no mass is below 2**-24, and the code ends on a byte."""
    x, p = drawn(1, 64, 48, mean_range, scale_range)
    ideal = ideal_bits(x, p)
    real = 8 * len(send_strip(x, p))
    assert real == pytest.approx(ideal, rel=0.001, abs=64)


def test_a_mean_beyond_the_range_costs_little_more_than_the_ideal() -> None:
    """The coder clips means to 0…255 + 15/16, the ideal does not: 2 % here, never many bits."""
    x, p = drawn(1, 64, 48, (-20, 275), (8, 40))
    ideal = ideal_bits(x, p)
    assert 8 * len(send_strip(x, p)) < 1.02 * ideal + 64


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1 << 20),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    scale=st.integers(SCALE_MIN - 9, SCALE_MAX + 9),
    kind=st.sampled_from(["noise", "zero", "full"]),
    grey=st.booleans(),
    passes=st.sampled_from([2, 4]),
)
def test_strips_round_trip_whatever_was_predicted(
    seed: int, height: int, width: int, scale: int, kind: str, grey: bool, passes: int
) -> None:
    """Strip after strip, the later ones after what those before have taught."""
    rng = np.random.default_rng(seed)
    shape = (3, height, width)
    x = {"noise": rng.integers(0, 256, shape), "zero": np.zeros(shape), "full": np.full(shape, 255)}
    levels = x[kind].astype(np.int64)
    if grey:
        levels = np.stack([levels[0]] * 3)
    p = Distribution(
        mean=rng.integers(-10000, 20000, shape),
        scale=np.full(shape, scale),
        coefs=rng.integers(-128, 129, shape),
    )
    weights = rng.integers(-400, 401, (passes, 3, REGRESSORS))
    sent, received = (Lessons(weights, learns=passes == 4) for _ in range(2))
    for _ in range(3):
        code = send_strip(levels, p, grey, sent)
        found, certain = receive_strip(code, p, grey, lessons=received)
        np.testing.assert_array_equal(found, levels)
        assert certain.all()
        np.testing.assert_array_equal(sent.weights, received.weights)
        np.testing.assert_array_equal(sent.offsets, received.offsets)


@pytest.mark.parametrize("grey", [False, True], ids=["rgb", "grey"])
def test_a_cut_strip_marks_only_right_pixels_as_certain(grey: bool) -> None:
    x, p = drawn(2, 9, 7, (0, 255), (-8, 32))
    weights = np.random.default_rng(0).integers(-400, 401, (4, 3, REGRESSORS))
    if grey:
        x = np.stack([x[GREEN]] * 3)
    code = send_strip(x, p, grey, Lessons(weights, learns=True))
    known = 0
    for size in range(len(code)):
        lessons = Lessons(weights, learns=True)
        found, certain = receive_strip(code[:size], p, grey, complete=False, lessons=lessons)
        np.testing.assert_array_equal(found[certain], x[certain])
        assert int(certain.sum()) >= known, "more bytes, more pixels"
        assert found.min() >= 0
        assert found.max() <= 255
        known = int(certain.sum())
    assert known > 0.7 * x.size - 30, "what is held back is some 40 bits"
    assert known < x.size


def test_what_is_not_certain_is_the_model_s_mean() -> None:
    _, p = drawn(3, 5, 5, (0, 255), (0, 24))
    found, certain = receive_strip(b"", p, complete=False)
    assert not certain.any()
    np.testing.assert_array_equal(found, np.clip(np.floor(p.mean / MEAN_UNIT + 0.5), 0, 255))


@given(st.binary(max_size=80), st.booleans(), st.booleans())
def test_arbitrary_bytes_give_pixels_or_a_format_error(
    code: bytes, grey: bool, complete: bool
) -> None:
    _, p = drawn(4, 6, 5, (0, 255), (-16, 50))
    try:
        found, certain = receive_strip(code, p, grey, complete)
    except FormatError:
        return
    assert found.min() >= 0
    assert found.max() <= 255
    if complete:
        assert certain.all()


def test_residuals_of_earlier_channels_save_bits() -> None:
    """Red and blue that follow green exactly cost almost nothing once green is known."""
    rng = np.random.default_rng(5)
    noise = rng.integers(-12, 13, (16, 16))
    x = np.stack([128 + noise] * 3)
    mean = np.full(x.shape, 128 * MEAN_UNIT)
    scale = np.stack([np.full(noise.shape, v) for v in (-24, 24, -24)])
    follow = np.stack([np.full(noise.shape, v) for v in (COEF_UNIT, COEF_UNIT, 0)])
    used = len(send_strip(x, Distribution(mean, scale, follow)))
    green_alone = len(send_strip(x, Distribution(mean, scale, follow), grey=True))
    assert used < 1.15 * green_alone + 16


def correlated(seed: int, side: int) -> tuple[I64, Distribution]:
    """Residuals that are alike next to each other, around predictions that do not know it."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((3, side + 2, side + 2))
    plus = noise[:, :-2, 1:-1] + noise[:, 2:, 1:-1] + noise[:, 1:-1, :-2] + noise[:, 1:-1, 2:]
    x = 128 + np.rint(4.0 * noise[:, 1:-1, 1:-1] + 2.0 * plus).astype(np.int64)
    shape = (3, side, side)
    scale = np.full(shape, round(8 * np.log2(x.std())))
    return x, Distribution(np.full(shape, 128 * MEAN_UNIT), scale, np.zeros(shape, np.int64))


@pytest.mark.parametrize("passes", [2, 4])
def test_fitted_weights_save_bits_and_the_ideal_knows(passes: int) -> None:
    fitted = fit_weights([correlated(seed, 64) for seed in range(4)], passes)
    assert fitted.shape == (passes, 3, REGRESSORS)
    assert not fitted[0, :, :9].any(), "in the first pass no neighbour is known"
    own = [fitted[-1, c, c] for c in range(3)] + [fitted[-1, c, 3 + c] for c in range(3)]
    assert min(own) > 100, "each channel follows its own neighbours"
    x, p = correlated(9, 64)
    plain = 8 * len(send_strip(x, p, lessons=no_lessons(passes)))
    lessons = Lessons(fitted, learns=False)
    code = send_strip(x, p, lessons=lessons)
    assert 8 * len(code) < 0.98 * plain
    found, certain = receive_strip(code, p, lessons=lessons)
    assert certain.all()
    np.testing.assert_array_equal(found, x)
    assert 8 * len(code) == pytest.approx(ideal_bits(x, p, lessons=lessons), rel=0.002, abs=64)


def test_lessons_teach_what_neighbours_say_and_how_large_residuals_are() -> None:
    """Soon almost as well as with fitted weights and scales that are right."""
    fitted = fit_weights([correlated(seed, 64) for seed in range(4)], 4)
    lessons = Lessons(no_lessons(4).weights, learns=True)
    excess, (_, p) = [], correlated(9, 64)
    for seed in (9, 10, 11):
        x, _ = correlated(seed, 64)
        right = ideal_bits(x, p, lessons=Lessons(fitted, learns=False))
        wrong = replace(p, scale=p.scale + 3)
        excess.append(ideal_bits(x, wrong, lessons=lessons) / right)
    assert excess[0] > 1.06
    assert excess[2] < 1.012
    assert lessons.offsets[:, GREEN].min() < -2


def test_lessons_forget() -> None:
    """A strip counts half as much as the one after it: what changed is soon learnt."""
    x, p = correlated(9, 64)
    lessons = Lessons(no_lessons(4).weights, learns=True)
    for scale in [p.scale + 3] * 4:
        ideal_bits(x, replace(p, scale=scale), lessons=lessons)
    place = (int(p.scale[0, 0, 0]) - SCALE_MIN) // 2
    assert lessons.offsets[0, GREEN][place] == 0, "never seen"
    for _ in range(2):
        ideal_bits(x, p, lessons=lessons)
    assert abs(lessons.offsets[0, GREEN][place]) <= 1


def test_without_learning_lessons_stay_what_they_are() -> None:
    x, p = correlated(9, 16)
    lessons = no_lessons(4)
    send_strip(x, p, lessons=lessons)
    assert not lessons.weights.any()
    assert not lessons.offsets.any()


@pytest.mark.parametrize("passes", [2, 4])
def test_every_pixel_is_in_one_field_and_sums_stop_at_the_border(passes: int) -> None:
    masks = fields(passes, 3, 4)
    assert masks[0][0, 0]
    np.testing.assert_array_equal(np.sum(masks, axis=0), np.ones((3, 4)))
    sums = neighbour_sums(np.ones((3, 3, 4), dtype=np.int64))
    np.testing.assert_array_equal(sums[0], [[1] * 4, [2] * 4, [1] * 4])
    np.testing.assert_array_equal(sums[5], [[1, 2, 2, 1]] * 3)
    np.testing.assert_array_equal(sums[8], [[1, 2, 2, 1], [2, 4, 4, 2], [1, 2, 2, 1]])


def test_two_passes_are_the_fields_of_a_chessboard() -> None:
    even, odd = fields(2, 5, 6)
    np.testing.assert_array_equal(even, ~odd)
    np.testing.assert_array_equal(even[1:], ~even[:-1])
    np.testing.assert_array_equal(even[:, 1:], ~even[:, :-1])
