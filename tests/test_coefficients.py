"""The transform of pictures of any size, its exactness, and the segments."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from diffcodec.coefficients import MATRIX_UNIT, SEGMENT_BLOCKS, Layout, bands, layout
from diffcodec.transform import BANDS, COLOUR, matrix

sides = st.integers(1, 40)


@given(sides, sides, st.integers(0, 1 << 20))
@example(1, 1, 0)
@example(8, 8, 0)
@example(70, 150, 0)
def test_inverse_undoes_forward(height: int, width: int, seed: int) -> None:
    """To 1e-3 of values in −1…1: entries of W are rounded to 2**-14, up to 192 in a sum."""
    picture = np.random.default_rng(seed).uniform(-1, 1, (3, height, width))
    plan = Layout(height, width)
    coefficients = plan.forward(picture)
    assert coefficients.shape == (plan.size,) == (3 * height * width,)
    np.testing.assert_allclose(plan.inverse(coefficients), picture, atol=1e-3)


@given(sides, sides)
def test_the_transform_keeps_energy(height: int, width: int) -> None:
    """Orthonormal up to the rounding of W, so that white noise stays white."""
    picture = np.random.default_rng(1).standard_normal((3, height, width))
    energy = np.sum(Layout(height, width).forward(picture) ** 2)
    assert energy == pytest.approx(np.sum(picture**2), rel=2e-3)


@pytest.mark.parametrize("size", [(8, 8), (16, 24), (5, 3), (13, 9)])
def test_inverse_is_the_same_integer_in_any_order_of_summation(size: tuple[int, int]) -> None:
    """Integers of 30 bits: sums in float64 equal sums of Python integers, one by one."""
    plan = Layout(*size)
    rng = np.random.default_rng(2)
    y = rng.integers(-(1 << 30), 1 << 30, plan.size)
    whole = plan.inverse(y.astype(np.float64))
    parts = np.zeros_like(whole)
    for chosen in np.array_split(rng.permutation(plan.size), 5):
        part = np.zeros(plan.size)
        part[chosen] = y[chosen]
        parts += plan.inverse(part)
    np.testing.assert_array_equal(whole, parts)
    units = whole * (1 << MATRIX_UNIT)
    np.testing.assert_array_equal(units, np.rint(units))


@pytest.mark.parametrize("size", [(8, 8), (11, 5), (70, 90), (64, 64), (65, 64), (1, 200)])
def test_segments_hold_every_coefficient_once(size: tuple[int, int]) -> None:
    plan = Layout(*size)
    together = np.sort(np.concatenate(plan.segments))
    np.testing.assert_array_equal(together, np.arange(plan.size))
    blocks = [-(-side // 8) for side in size]
    wanted = np.prod([-(-count // SEGMENT_BLOCKS) for count in blocks])
    assert len(plan.segments) == wanted
    assert max(map(len, plan.segments)) <= 3 * (8 * SEGMENT_BLOCKS) ** 2


def test_a_segment_is_a_region_of_the_picture() -> None:
    """What a segment's coefficients show never leaves its rectangle of blocks."""
    plan = Layout(70, 90)
    seen = np.zeros((70, 90), dtype=int)
    for own in plan.segments:
        y = np.zeros(plan.size)
        y[own] = np.random.default_rng(0).standard_normal(len(own))
        rows, columns = np.nonzero(np.abs(plan.inverse(y)).sum(axis=0) > 1e-9)
        assert rows.max() - rows.min() < 64
        assert columns.max() - columns.min() < 64
        seen[np.ix_(np.unique(rows), np.unique(columns))] += 1
    np.testing.assert_array_equal(seen, 1)


def test_one_pixel_is_three_colours() -> None:
    plan = Layout(1, 1)
    np.testing.assert_allclose(plan.forward(np.ones((3, 1, 1))), COLOUR.sum(axis=1), atol=1e-4)
    assert [own.tolist() for own in plan.segments] == [[0, 1, 2]]
    assert plan.chroma.tolist() == [False, True, True]
    np.testing.assert_array_equal(plan.spread(np.arange(BANDS)[:, None, None]), [0, 64, 128])


@given(sides, sides)
def test_grey_pictures_have_no_chroma(height: int, width: int) -> None:
    grey = np.broadcast_to(
        np.random.default_rng(0).uniform(-1, 1, (height, width)), (3, height, width)
    )
    plan = Layout(height, width)
    assert plan.chroma.sum() == 2 * height * width
    assert np.abs(plan.forward(grey)[plan.chroma]).max() < 3e-3  # rounding of W


def test_whole_blocks_are_the_matrix_that_training_uses() -> None:
    block = np.random.default_rng(3).uniform(-1, 1, (3, 8, 8))
    expected = matrix() @ block.reshape(-1)
    np.testing.assert_allclose(Layout(8, 8).forward(block), expected, atol=2e-3)


def test_predictions_go_to_the_coefficients_of_their_block_and_band() -> None:
    """Channel c·64 + 8·v + u at (block row, block column)."""
    values = np.arange(BANDS * 2 * 3).reshape(BANDS, 2, 3)
    plan = Layout(16, 24)
    spread = plan.spread(values).reshape(2, 3, BANDS)  # blocks in reading order
    np.testing.assert_array_equal(spread, values.transpose(1, 2, 0))


def test_short_blocks_take_the_variance_of_the_same_frequency() -> None:
    """Band k of n takes band ⌊8k/n⌋: for 2 rows 0 and 4, for 1 column 0."""
    spread = Layout(2, 1).spread(np.arange(BANDS)[:, None, None])
    np.testing.assert_array_equal(spread, [0, 32, 64, 96, 128, 160])


def test_layouts_are_cached() -> None:
    assert layout(9, 7) is layout(9, 7)


@given(st.integers(1, 300), st.integers(1, 40))
def test_bands_have_the_segments_of_the_whole_picture(height: int, width: int) -> None:
    whole, found = layout(height, width), 0
    picture = np.arange(3.0 * height * width).reshape(3, height, width)
    for rows in bands(height):
        band = layout(rows.stop - rows.start, width)
        values = band.forward(picture[:, rows])
        for own in band.segments:
            expected = whole.forward(picture)[whole.segments[found]]
            np.testing.assert_array_equal(values[own], expected)
            found += 1
    assert found == len(whole.segments)
