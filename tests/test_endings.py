"""Where the steps of a picture end: the sender's choice, and what a model needs for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import load_picture

import diffcodec
from diffcodec.api import parse
from diffcodec.calibrate import exact_tensors
from diffcodec.endings import PARTS, SIDE, best_way
from diffcodec.evaluate import evaluate_picture, ideal_chain, summarise
from diffcodec.image import from_array
from diffcodec.model import Model
from diffcodec.plans import PLANS, endings

PLANS_OF_PHOTOS = endings(PLANS[19])


@pytest.fixture(scope="module")
def photo() -> Model:
    return diffcodec.load_model("photo")


def flat_and_grainy() -> tuple[np.ndarray, np.ndarray]:
    """The same soft slope, [96, 104, 3]: as it is, and with noise of three levels."""
    y, x = np.mgrid[:96, :104]
    slope = np.stack([40 + x, 60 + y, 90 + (x + y) // 2], axis=2)
    noise = np.random.default_rng(0).standard_normal(slope.shape) * 3.0
    return slope.astype(np.uint8), np.rint(slope + noise).astype(np.uint8)


def chosen(model: Model, pixels: np.ndarray, seed: int = 0) -> int:
    levels = from_array(pixels).levels
    return best_way(model, levels, PLANS_OF_PHOTOS, [0], False, seed)[0].end


def test_grain_ends_the_steps_early_and_a_soft_slope_late(photo: Model) -> None:
    flat, grainy = flat_and_grainy()
    assert chosen(photo, grainy) > 1
    assert chosen(photo, flat) < chosen(photo, grainy)


def test_the_choice_is_near_the_best_of_the_ideal_chains(photo: Model) -> None:
    for pixels in flat_and_grainy():
        picture = from_array(pixels)
        bits = {
            plan.end: sum(ideal_chain(photo, picture, plan, np.random.default_rng(1)))
            for plan in PLANS_OF_PHOTOS
        }
        assert bits[chosen(photo, pixels)] < 1.02 * min(bits.values())


def test_the_choice_is_the_same_every_time_and_written_in_the_file(photo: Model) -> None:
    pixels = flat_and_grainy()[1]
    ends = {chosen(photo, pixels, seed=5) for _ in range(2)}
    content = diffcodec.encode(pixels, model=photo, effort=1, seed=5, stop_t=180)
    assert ends == {parse(content, photo).header.plan.end}


def test_only_parts_of_a_large_picture_are_looked_at(photo: Model) -> None:
    """What lies elsewhere makes no difference."""
    bird = load_picture("budgerigar-32.png")
    pixels = np.tile(bird, (20, 18, 1))
    changed = pixels.copy()
    changed[: (pixels.shape[0] - SIDE) // (2 * PARTS)] = 255
    assert chosen(photo, pixels) == chosen(photo, changed)


def test_a_picture_of_one_pixel_and_a_grey_one_have_endings(photo: Model) -> None:
    assert chosen(photo, np.full((1, 1, 3), 7, np.uint8)) in (1, 2, 3)
    levels = from_array(flat_and_grainy()[1][:50, :70, 0]).levels
    assert best_way(photo, levels, PLANS_OF_PHOTOS, [0], True, 0)[0] in PLANS_OF_PHOTOS


@pytest.mark.parametrize("end", [1, 2, 3])
def test_every_ending_decodes_whole_and_cut(photo: Model, end: int) -> None:
    pixels = flat_and_grainy()[1]
    plan = PLANS[17 + end]
    content = diffcodec.encode(pixels, model=photo, effort=1, plan=plan)
    whole = diffcodec.decode(content)
    assert whole.exact
    np.testing.assert_array_equal(whole.pixels, pixels)
    layers = parse(content, photo).layers
    strips = layers[len(plan.layers) :]
    assert len(strips) == 3, "rows 0-15, 16-63 and the rest"
    for cut in (strips[0].start, strips[0].end, strips[1].start + 40, strips[2].end - 1):
        shown = diffcodec.decode(content[:cut])
        assert shown.t == end
        assert not shown.exact
    np.testing.assert_array_equal(shown.pixels[:64], pixels[:64])


def test_a_model_is_made_exact_for_every_ending_of_its_plan(tiny: Model) -> None:
    """And knows what its neighbours say from wherever the final layer may begin."""
    images = np.stack([load_picture("budgerigar-32.png").transpose(2, 0, 1)] * 2)
    weights = tiny.network.state_dict()
    for number, ends in ((24, {2}), (19, {1, 2, 3})):
        config = replace(tiny.config, plan=number)
        tensors = exact_tensors(Model(config, weights), images, seed=0)
        model = Model(config, weights, tensors)
        assert ends | set(PLANS[number].timesteps) == set(tensors["timesteps"].tolist())
        for plan in endings(PLANS[number]):
            model.check_plan(plan)
            first = model.lessons(plan, learns=True).weights
            assert first[1:].any()
            np.testing.assert_array_equal(first, tensors[f"neighbours.{plan.end}"].numpy())


def test_means_of_layers_are_of_the_pictures_that_have_them(photo: Model) -> None:
    pixels = flat_and_grainy()[1][:72, :64]
    reports = [
        evaluate_picture("", pixels, photo, effort=1, plan=PLANS[n], ideal=False) for n in (18, 20)
    ]
    rows = {row["t"]: row for row in summarise(reports)["layers"]}
    assert [row["pictures"] for row in rows.values()] == [2] * 13 + [1, 1, 2]
    assert rows[2]["real_bits"] == reports[0].layers[-3].real_bits
    assert rows[0]["real_bits"] == np.mean([r.layers[-1].real_bits for r in reports])
