"""What becomes of the search's paths, against numpy; the same whatever the instructions."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffcodec.noise import mix
from diffcodec.paths import HOPELESS, LANES, fork
from diffcodec.simd import target_has

U32 = NDArray[np.uint32]
F32 = NDArray[np.float32]
Paths = tuple[U32, F32]


def some_paths(count: int, seed: int) -> Paths:
    rng = np.random.default_rng(seed)
    states = rng.integers(0, 2**32, count + LANES, dtype=np.uint32)
    costs = rng.normal(0.0, 10.0, count + LANES).astype(np.float32)
    costs[count:] = HOPELESS
    return states, costs


def some_run(nibbles: int, seed: int) -> tuple[F32, U32]:
    """What the nibbles of a run cost, and their keys."""
    rng = np.random.default_rng(seed)
    costs = rng.normal(0.0, 1.0, (nibbles, 2, 16)).astype(np.float32)
    return costs, rng.integers(0, 2**32, nibbles, dtype=np.uint32)


def room_for(count: int) -> Paths:
    return np.zeros(count, np.uint32), np.zeros(count, np.float32)


def cost_of(states: U32, costs: F32, keys: U32) -> F32:
    """Of a run's nibbles for paths with these states after it, [n]."""
    total = np.zeros(len(states), np.float32)
    for number, own in enumerate(costs):
        words = mix((states | np.uint32(1)) ^ keys[number // 8 * 8])
        nibbles = words >> np.uint32(4 * (number % 8)) & np.uint32(15)
        total += own[1 - (states & np.uint32(1)), nibbles]
    return total


@given(
    st.integers(1, 100),
    st.integers(1, 4),
    st.integers(0, 20),
    st.floats(-20, 20),
    st.integers(0, 2**32 - 1),
)
def test_the_children_within_the_limit_are_kept_and_marked(
    count: int, k: int, nibbles: int, limit: float, seed: int
) -> None:
    paths, (run, keys) = some_paths(count, seed), some_run(nibbles, seed + 1)
    most = (count << k) + 2 * LANES
    vectors = -(-count // LANES)
    marks = np.zeros(vectors << (k - 1), np.uint32)
    to, n = room_for(most + LANES), 0
    for pair in range(1 << (k - 1)):
        own = marks[pair * vectors :]
        n = fork(count, paths, pair, k, run, keys, np.float32(limit), to, n, most, own)
    marked = []
    for number, mark in enumerate(marks.tolist()):
        for lane in range(2 * LANES):
            if mark >> lane & 1:
                parent = number % vectors * LANES + lane % LANES
                bits = 2 * (number // vectors) + (lane < LANES)
                marked.append(int(paths[0][parent]) << k & 0xFFFFFFFF | bits)
    assert to[0][:n].tolist() == marked
    assert (to[1][:n] <= np.float32(limit)).all()
    assert (to[1][n : n + LANES] == np.float32(HOPELESS)).all()
    wanted: dict[int, float] = {}
    for bits in range(1 << k):
        states = (paths[0][:count] << np.uint32(k)) | np.uint32(bits)
        costs = paths[1][:count] + cost_of(states, run, keys)
        wanted |= dict(zip(states.tolist(), costs.tolist(), strict=True))
    for child, cost in zip(to[0][:n].tolist(), to[1][:n].tolist(), strict=True):
        assert wanted.pop(child) == pytest.approx(cost, abs=1e-3)
    assert all(cost > limit - 1e-3 for cost in wanted.values())


@given(st.integers(1, 200), st.integers(2 * LANES, 300))
def test_children_never_outgrow_their_room(count: int, most: int) -> None:
    to, marks = room_for(most + LANES), np.full(-(-count // LANES), 0xFFFFFFFF, np.uint32)
    run, keys = some_run(3, count)
    n = fork(count, some_paths(count, count), 0, 1, run, keys, np.float32(1e9), to, 0, most, marks)
    assert n <= most
    assert n == 2 * count or n > most - 2 * LANES
    assert sum(mark.bit_count() for mark in marks.tolist()) == n  # none of the lost is marked


PROGRAM = """
import numpy as np
from diffcodec.paths import fork
from diffcodec.simd import target_has
from tests.test_paths import room_for, some_paths, some_run
paths, to, marks = some_paths(1003, 1), room_for(2100), np.zeros(63, np.uint32)
run, keys = some_run(11, 2)
n = fork(1003, paths, 0, 1, run, keys, np.float32(1.0), to, 0, 2050, marks)
print(n, [x[:n].tolist() for x in to], marks.tolist())
print([target_has(x) for x in ("avx512bw", "avx2")])
"""


def output_with(**own: str) -> list[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_CPU")} | own
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, check=True, capture_output=True, text=True
    )
    return run.stdout.splitlines()


def test_machines_without_the_instructions_keep_the_same_children() -> None:
    """To the last bit of their costs."""
    here, has = output_with()
    settings = [("x86-64", "", "[False, False]")]
    if target_has("avx2"):
        settings.append(("haswell", "+avx,+avx2,+fma", "[False, True]"))
    elif has == "[False, False]":
        pytest.skip("this machine does not have them either")
    for name, features, wanted in settings:
        own = output_with(NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES=features)
        assert own == [here, wanted]
