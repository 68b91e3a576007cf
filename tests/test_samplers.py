"""Ancestral sampling: seeded, independent of the batch, a faithful Algorithm 2."""

from __future__ import annotations

import numpy as np
import pytest

from diffcodec.model import Model
from diffcodec.reverse import to_levels
from diffcodec.samplers import ancestral, grid, strided_timesteps


def test_samples_are_seeded(tiny: Model) -> None:
    first, again, other = (ancestral(tiny, 2, 16, seed=s, steps=4) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.mean(first != other) > 0.5
    assert first.shape == (2, 16, 16, 3)
    assert first.dtype == np.uint8


def test_a_sample_does_not_depend_on_its_batch(tiny: Model) -> None:
    """One level of rounding: a batch may take another path through the convolutions."""
    many = ancestral(tiny, 5, 16, seed=3, steps=6).astype(int)
    for count in (1, 3):
        few = ancestral(tiny, count, 16, seed=3, steps=6).astype(int)
        assert np.abs(few - many[:count]).max() <= 1
    assert np.mean(many[0] != many[1]) > 0.5


def test_a_larger_number_of_steps_is_another_chain(tiny: Model) -> None:
    a, b = (ancestral(tiny, 1, 16, seed=3, steps=n) for n in (3, 9))
    assert np.mean(a != b) > 0.3


def test_every_step_is_reported(tiny: Model) -> None:
    calls: list[tuple[int, int]] = []
    ancestral(tiny, 1, 8, seed=0, steps=5, progress=lambda *c: calls.append(c))
    assert calls == [(n, 5) for n in range(1, 6)]


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 999, 1000])
def test_timesteps_fall_from_the_end_of_the_schedule(steps: int) -> None:
    """The chain starts at noise, so its first timestep is T, also when it is the only one."""
    times = strided_timesteps(1000, steps)
    assert len(times) == steps
    assert times[0] == 1000
    assert times == sorted(set(times), reverse=True)
    if steps > 1:
        assert times[-1] == 1
        assert np.ptp(np.diff(times)) <= 1


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match="steps"):
        strided_timesteps(1000, steps)


def test_grids_are_read_line_by_line() -> None:
    pictures = np.arange(5, dtype=np.uint8)[:, None, None, None] + np.full(
        (5, 2, 4, 3), 10, dtype=np.uint8
    )
    sheet = grid(pictures)
    assert sheet.shape == (4, 12, 3)
    assert sheet[::2, ::4, 0].tolist() == [[10, 11, 12], [13, 14, 0]]
    assert grid(pictures, columns=5).shape == (2, 20, 3)
    np.testing.assert_array_equal(grid(pictures[:1]), pictures[0])


def test_samples_of_the_shipped_model_look_like_pictures(shipped: Model) -> None:
    """Neighbouring pixels agree, which noise of the same spread does not."""
    pictures = ancestral(shipped, 2, 32, seed=0, steps=12).astype(float)
    spread = pictures.std()
    neighbours = np.abs(np.diff(pictures, axis=2)).mean()
    assert spread > 15.0
    assert neighbours < 0.5 * spread


def test_values_outside_the_range_are_clipped() -> None:
    assert to_levels(np.array([[-2.0, 0.0, 2.0]])).tolist() == [[0, 128, 255]]
