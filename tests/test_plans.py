"""Coding plans: part of the format."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffcodec.plans import (
    EFFORTS,
    MIRRORED_EFFORT,
    PLANS,
    SMALL_PIXELS,
    Plan,
    endings,
    plan_for,
    search_for,
)


def test_plans_never_change() -> None:
    """Files name plans by number; a changed entry would make them unreadable."""
    first = (680, 450, 290, 180, 115, 70, 40, 22, 11, 6, 4, 2, 1)
    small = (680, 400, 260, 170, 115, 80, 56, 39, 26, 17, 11, 8, 6, 4, 3, 2, 1)
    photo = (680, 450, 290, 180, 115, 70, 45, 28, 18, 13, 9, 6, 4, 3, 2, 1)
    assert {
        0: Plan(first, 134, 6),
        1: Plan((680, 290, 140, 70, 40, 25, 15, 9, 6, 4, 2, 1), 134, 1),
        2: Plan((680, 330, 190, 120, 80, 54, 36, 23, 13, 7, 4, 2, 1), 130, 6),
        3: Plan(photo, 131, 1),
        4: Plan(small, 130, 6),
        5: Plan(small, 130, 6, mirrored=1000),
        6: Plan(photo, 131, 1, mirrored=1000),
        7: Plan(first, 134, 6, mirrored=1000),
        8: Plan(photo, 131, 1, adaptive=1),
        9: Plan(photo, 131, 1, mirrored=1000, adaptive=1),
        10: Plan(first, 134, 6, adaptive=1),
        11: Plan(first, 134, 6, mirrored=1000, adaptive=1),
        12: Plan(small, 130, 6, mirrored=4),
        13: Plan(first, 134, 6, mirrored=4),
        14: Plan(photo, 131, 1, adaptive=2),
        15: Plan(photo, 131, 1, mirrored=1000, adaptive=2),
        16: Plan(first, 134, 6, adaptive=2),
        17: Plan(first, 134, 6, mirrored=1000, adaptive=2),
        18: Plan(photo, 131, 1, adaptive=2, passes=4),
        19: Plan(photo[:-1], 131, 1, adaptive=2, passes=4),
        20: Plan(photo[:-2], 131, 1, adaptive=2, passes=4),
        21: Plan(photo, 131, 1, mirrored=1000, adaptive=2, passes=4),
        22: Plan(photo[:-1], 131, 1, mirrored=1000, adaptive=2, passes=4),
        23: Plan(photo[:-2], 131, 1, mirrored=1000, adaptive=2, passes=4),
        24: Plan(first[:-1], 134, 6, adaptive=2, passes=4),
        25: Plan(first, 134, 6, mirrored=1000, adaptive=2, passes=4),
        26: Plan(photo, 131, 1, mirrored=3, adaptive=2, passes=4),
        27: Plan(photo[:-1], 131, 1, mirrored=3, adaptive=2, passes=4),
        28: Plan(photo[:-2], 131, 1, mirrored=3, adaptive=2, passes=4),
        29: Plan(small, 130, 6, mirrored=39),
    } == PLANS


@pytest.mark.parametrize("plan", [18, 19, 20, 21, 22, 23, 26, 27, 28])
def test_plans_of_photographs_differ_in_where_their_steps_end(plan: int) -> None:
    first = next(n for n in (26, 21, 18) if n <= plan)
    assert endings(PLANS[plan]) == [PLANS[first + k] for k in range(3)]
    assert [p.end for p in endings(PLANS[plan])] == [1, 2, 3]


@pytest.mark.parametrize("plan", [0, 4, 12, 14, 15, 24, 29])
def test_the_others_end_where_they_end(plan: int) -> None:
    assert endings(PLANS[plan]) == [PLANS[plan]]
    own = Plan((9, 4, 1), 130)
    assert endings(own) == [own]


@pytest.mark.parametrize(
    ("plan", "thorough"),
    [
        (0, 7),
        (1, 1),
        (2, 2),
        (3, 6),
        (4, 5),
        (5, 5),
        (8, 9),
        (9, 9),
        (10, 11),
        (12, 5),
        (13, 7),
        (14, 15),
        (19, 22),
        (20, 23),
        (26, 21),
        (28, 23),
        (29, 5),
    ],
)
def test_from_some_effort_on_plans_are_mirrored_if_a_number_says_so(
    plan: int, thorough: int
) -> None:
    for effort in EFFORTS:
        expected = thorough if effort >= MIRRORED_EFFORT else plan
        assert plan_for(PLANS[plan], effort) == PLANS[expected]
    assert plan_for(Plan((9, 1), 130), 9) == Plan((9, 1), 130)


def test_the_mirror_image_is_asked_at_the_last_timesteps() -> None:
    plan = Plan((100, 9, 8, 1), 130, mirrored=8)
    assert [plan.mirrors(t) for t in plan.timesteps] == [False, False, True, True]
    assert plan.evaluations(plan.timesteps) == 6
    for outside in (-1, 1001):
        with pytest.raises(ValueError, match="mirrored"):
            replace(plan, mirrored=outside)


def test_layers_hold_the_steps_in_order() -> None:
    plan = Plan((100, 50, 20, 7, 1), 133, 2)
    assert plan.layers == [[(100, 50), (50, 20)], [(20, 7)], [(7, 1)]]
    assert plan.steps == [(100, 50), (50, 20), (20, 7), (7, 1)]


@pytest.mark.parametrize(
    ("timesteps", "eta", "grouped"),
    [
        ((1,), 133, 1),
        ((), 133, 1),
        ((5, 0), 133, 1),
        ((5, 5, 1), 133, 1),
        ((2, 5, 1), 133, 1),
        ((1001, 1), 133, 1),
        (tuple(range(257, 0, -1)), 133, 1),
        ((5, 1), 63, 1),
        ((5, 1), 256, 1),
        ((5, 1), 133, 0),
        ((5, 1), 133, 2),
    ],
)
def test_impossible_plans_are_refused(timesteps: tuple[int, ...], eta: int, grouped: int) -> None:
    with pytest.raises(ValueError, match=r"must|at most|holds"):
        Plan(timesteps, eta, grouped)


@pytest.mark.parametrize("pixels", [SMALL_PIXELS, SMALL_PIXELS + 1])
def test_more_effort_is_more_work(pixels: int) -> None:
    assert sorted(EFFORTS) == list(range(1, 10))
    searches = [search_for(effort, pixels) for effort in EFFORTS]
    work = [search.survivors * search.tries for search in searches]
    assert work == sorted(set(work))
    assert [search.survivors for search in searches] == sorted(s.survivors for s in searches)


def test_layers_are_called_by_number_and_timestep() -> None:
    plan = Plan((680, 180, 40, 1), 133, 2)
    assert plan.label(0) == "layer 1 (down to t = 40)"
    assert plan.label(1) == "layer 2 (down to t = 1)"
    assert plan.label(2) == "strip 1 of the final layer"


@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([4, 14, 19]))
def test_strips_cover_all_rows_once(height: int, width: int, number: int) -> None:
    """The first one is short where it is to teach the others."""
    plan = PLANS[number]
    parts = plan.strips(height, width)
    assert [y for part in parts for y in range(part.start, part.stop)] == list(range(height))
    learns = number == 19 and height * width > SMALL_PIXELS
    assert plan.learns(height, width) == learns
    assert parts[0].stop == min(height, 16 if learns else 64)
    assert all(part.stop % 64 == 0 for part in parts[1:-1])
