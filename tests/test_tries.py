"""Several tries at a step, of which the sender keeps the best."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffcodec import tries
from diffcodec.codec import send
from diffcodec.model import Model
from diffcodec.parallel import thread_map
from diffcodec.plans import SMALL_PIXELS, Plan, Search, search_for
from diffcodec.reverse import evaluate, start
from diffcodec.steps import Settings, Step, send_step

PLAN = Plan((680, 180, 40, 6, 1), 133, 2)
STEPS = [(680, 180), (40, 6), (6, 1)]


def quiet() -> None:
    pass


def planes(height: int, width: int, grey: bool, seed: int) -> np.ndarray:
    """Smooth noise as levels uint8 [3, H, W]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (1 if grey else 3, -(-height // 4), -(-width // 4)))
    levels = np.kron(coarse, np.ones((1, 4, 4)))[:, :height, :width]
    return np.broadcast_to(levels, (3, height, width)).astype(np.uint8)


def a_step(model: Model, a: int, b: int, settings: Settings) -> Step:
    return Step(model, start(a, 3, settings.height, settings.width), a, b, settings)


@given(
    sides=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    grey=st.booleans(),
    step=st.sampled_from(STEPS),
    seed=st.integers(0, 99),
)
def test_the_best_of_the_tries_is_sent(
    tiny: Model, sides: tuple[int, int], grey: bool, step: tuple[int, int], seed: int
) -> None:
    settings = Settings(PLAN, *sides, seed=seed, grey=grey)
    x_0 = planes(*sides, grey, seed)
    found = tries.best_try(a_step(tiny, *step, settings), x_0, settings, Search(16, 5), quiet)
    costs = []
    for number in range(5):
        own = a_step(tiny, *step, settings)
        code, ratio = send_step(own, x_0, settings, 16, quiet, number)
        out = evaluate(tiny, own.x, own.b, settings.plan)
        costs.append(8 * len(code) + tries._bits_ahead(own, out, x_0, settings))
        if costs[-1] == found.bits and number == int(np.argmin(costs)):
            assert (code, ratio) == (found.code, found.ratio)
            assert np.array_equal(own.x, found.step.x)
    assert found.bits == min(costs)


def test_tries_differ(tiny: Model) -> None:
    settings = Settings(PLAN, 32, 32)
    x_0 = planes(32, 32, False, 1)
    codes = set()
    for number in range(4):
        codes.add(send_step(a_step(tiny, 40, 6, settings), x_0, settings, 16, quiet, number)[0])
    assert len(codes) == 4


def test_one_try_asks_nothing_of_the_network(tiny: Model) -> None:
    settings = Settings(PLAN, 16, 16)
    x_0 = planes(16, 16, False, 1)
    pulses: list[int] = []
    found = tries.best_try(
        a_step(tiny, 40, 6, settings), x_0, settings, Search(16), lambda: pulses.append(1)
    )
    assert found.ahead is None and len(pulses) == len(settings.groups)
    code, ratio = send_step(a_step(tiny, 40, 6, settings), x_0, settings, 16, quiet)
    assert (found.code, found.ratio) == (code, ratio)


@pytest.mark.parametrize("seed", range(3))
def test_threads_do_not_change_the_choice(tiny: Model, seed: int) -> None:
    """On all cores, and in place inside another thread_map."""
    settings = Settings(PLAN, 16, 16, seed=seed)
    x_0 = planes(16, 16, False, seed)

    def work(_: int) -> bytes:
        return tries.best_try(
            a_step(tiny, 40, 6, settings), x_0, settings, Search(16, 6), quiet
        ).code

    assert {work(0), *thread_map(work, 3)} == {work(0)}


def test_only_small_pictures_are_tried_more_than_once() -> None:
    for effort in range(1, 10):
        assert search_for(effort, SMALL_PIXELS + 1).tries == 1
    assert search_for(4, SMALL_PIXELS).tries == 1 < search_for(5, SMALL_PIXELS).tries


def test_tries_make_smaller_files_of_a_real_picture(shipped: Model, bird: np.ndarray) -> None:
    """By about one per cent; five seeds scatter by a fifth of that."""
    x_0 = bird.transpose(2, 0, 1)

    def size(search: Search, seed: int) -> int:
        settings = Settings(shipped.plan, *bird.shape[:2], seed=seed)
        return sum(len(layer.code) for layer in send(shipped, x_0, settings, search))

    once, often = (sum(size(Search(128, n), seed) for seed in range(5)) for n in (1, 6))
    assert often < once
