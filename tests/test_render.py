"""Pictures of files that are not whole: ways to render a state, cut layers, a target quality."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from conftest import SHORT_PLAN, load_picture
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import diffcodec
from diffcodec import DataError, steps
from diffcodec.api import parse
from diffcodec.model import Model
from diffcodec.quality import psnr
from diffcodec.registry import load_model

U8 = NDArray[np.uint8]
RECONS = ("mean", "x0", "sample", "flow")


@pytest.fixture(scope="module")
def photo() -> Model:
    return load_model("photo")


@pytest.fixture(scope="module")
def wide() -> U8:
    """Two segments, with sides that are no multiples of 8."""
    return load_picture("budgerigar.png")[100:163, 150:263]


@pytest.fixture(scope="module")
def wide_file(wide: U8, photo: Model) -> bytes:
    return diffcodec.encode(wide, model=photo, effort=1)


def test_psnr_never_falls_along_a_file(wide: U8, wide_file: bytes, photo: Model) -> None:
    start = parse(wide_file, photo).header_size
    sizes = np.unique(np.geomspace(start, len(wide_file), 24).astype(int)).tolist()
    found = [psnr(diffcodec.decode(wide_file[:size]).pixels, wide) for size in sizes]
    assert found[-1] == np.inf
    # In the first bytes there is nothing to see yet, and nothing may become a little less.
    slack = [0.2 if before < 12.0 else 0.05 for before in found]
    assert all(b >= a - s for (a, b), s in zip(pairwise(found), slack, strict=False)), found


@pytest.mark.parametrize("recon", RECONS)
def test_every_way_shows_a_whole_file_exactly(
    wide: U8, wide_file: bytes, photo: Model, recon: str
) -> None:
    shown = diffcodec.decode(wide_file, recon=recon)
    assert shown.exact
    np.testing.assert_array_equal(shown.pixels, wide)


def test_sampling_is_decided_by_its_seed_and_adds_detail(
    wide: U8, wide_file: bytes, photo: Model
) -> None:
    content = diffcodec.truncate(wide_file, stop_t=70)
    shown = {r: diffcodec.decode(content, recon=r, seed=1).pixels for r in RECONS}
    again = diffcodec.decode(content, recon="sample", seed=1).pixels
    other = diffcodec.decode(content, recon="sample", seed=2).pixels
    np.testing.assert_array_equal(shown["sample"], again)
    assert not np.array_equal(again, other)
    assert min(psnr(shown[r], wide) for r in ("mean", "flow")) > psnr(other, wide) + 1.0

    def detail(pixels: U8) -> float:
        return float(np.abs(np.diff(pixels.astype(float), axis=1)).mean())

    assert detail(shown["mean"]) < detail(shown["sample"])


def test_rendering_goes_on_through_the_rest_of_the_plan(wide_file: bytes, photo: Model) -> None:
    content = diffcodec.truncate(wide_file, stop_t=70)
    plan = parse(wide_file, photo).header.plan
    mean, x0, sample, flow = (diffcodec.decode(content, recon=r).evaluations for r in RECONS)
    assert x0 + 1 == mean == plan.timesteps.index(70) + 2
    assert sample == flow == plan.evaluations(plan.timesteps) > len(plan.timesteps)


def test_a_small_picture_is_asked_for_from_both_sides(wide: U8, photo: Model) -> None:
    content = diffcodec.encode(wide[:64, :64], model=photo, effort=1, stop_t=70)
    mean, x0, _, flow = (diffcodec.decode(content, recon=r).evaluations for r in RECONS)
    assert mean == x0 + 2
    plan = parse(content, photo).header.plan
    assert flow == plan.evaluations(plan.timesteps)


@pytest.mark.parametrize("recon", ["sample", "flow"])
@pytest.mark.parametrize("grey", [False, True])
def test_every_prefix_can_be_rendered_in_every_way(tiny: Model, recon: str, grey: bool) -> None:
    shape = (11, 13) if grey else (11, 13, 3)
    pixels = np.random.default_rng(5).integers(0, 256, shape, dtype=np.uint8)
    content = diffcodec.encode(pixels, model=tiny, effort=1, plan=SHORT_PLAN)
    start = parse(content, tiny).header_size
    for size in range(start, len(content), 7):
        shown = diffcodec.decode(content[:size], model=tiny, recon=recon)
        assert shown.pixels.shape == shape
        assert not shown.exact


def test_unknown_ways_are_named(wide_file: bytes) -> None:
    with pytest.raises(DataError, match="mean, x0, sample, flow"):
        diffcodec.decode(wide_file, recon="median")


@pytest.mark.parametrize("target", [22.0, 31.0, 44.0])
def test_a_target_psnr_is_met_with_hardly_a_byte_too_many(
    wide: U8, wide_file: bytes, photo: Model, target: float
) -> None:
    content = diffcodec.encode(wide, model=photo, effort=1, target_psnr=target)
    assert wide_file.startswith(content)
    assert psnr(diffcodec.decode(content).pixels, wide) >= target
    fewer = content[: int(0.975 * len(content))]
    assert psnr(diffcodec.decode(fewer).pixels, wide) < target


def test_a_target_beyond_lossy_or_a_limit_takes_all_there_is(tiny: Model) -> None:
    pixels = np.random.default_rng(6).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    whole = diffcodec.encode(pixels, model=tiny, effort=1)
    content = diffcodec.encode(pixels, model=tiny, effort=1, target_psnr=99.0)
    assert whole.startswith(content)
    assert len(content) >= 0.98 * len(whole)
    limited = diffcodec.encode(pixels, model=tiny, effort=1, target_psnr=99.0, max_bytes=100)
    assert limited == whole[:100]


@settings(max_examples=8)
@given(height=st.integers(1, 150), width=st.integers(1, 150), pixels=st.integers(1, 10000))
def test_the_size_of_groups_changes_nothing(
    tiny: Model, height: int, width: int, pixels: int
) -> None:
    picture = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    options = {"model": tiny, "effort": 1, "plan": SHORT_PLAN, "stop_t": 40}
    content = diffcodec.encode(picture, **options)  # type: ignore[arg-type]
    shown = diffcodec.decode(content, model=tiny).pixels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "GROUP_PIXELS", pixels)
        assert diffcodec.encode(picture, **options) == content  # type: ignore[arg-type]
        np.testing.assert_array_equal(diffcodec.decode(content, model=tiny).pixels, shown)
