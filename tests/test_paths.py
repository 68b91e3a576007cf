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

from diffcodec.noise import byte_sum, mix
from diffcodec.paths import HOPELESS, LANES, branch, stay
from diffcodec.simd import target_has

U32 = NDArray[np.uint32]
F32 = NDArray[np.float32]
Paths = tuple[U32, NDArray[np.int32], F32]


def some_paths(count: int, seed: int) -> Paths:
    rng = np.random.default_rng(seed)
    states = rng.integers(0, 2**32, count + LANES, dtype=np.uint32)
    costs = rng.normal(0.0, 10.0, count + LANES).astype(np.float32)
    costs[count:] = HOPELESS
    return states, rng.permutation(count + LANES).astype(np.int32), costs


def room_for(count: int) -> Paths:
    return np.zeros(count, np.uint32), np.zeros(count, np.int32), np.zeros(count, np.float32)


def value(states: U32, key: int) -> NDArray[np.int64]:
    """g as the receiver has it, trellis.decode."""
    sign = 2 * (states & np.uint32(1)).astype(np.int64) - 1
    return sign * byte_sum(mix((states | np.uint32(1)) ^ np.uint32(key)))


@given(st.integers(1, 100), st.integers(0, 11), st.integers(0, 2**32 - 1))
def test_staying_adds_every_coefficients_cost(count: int, length: int, seed: int) -> None:
    paths = some_paths(count, seed)
    rng = np.random.default_rng(seed + 1)
    keys = rng.integers(0, 2**32, length + 2, dtype=np.uint32)
    away, towards = rng.normal(0.0, [[1e-5], [1e-2]], (2, length + 2)).astype(np.float32)
    wanted = paths[2][:count].astype(np.float64)
    for i in range(1, length + 1):
        g = value(paths[0][:count], int(keys[i]))
        wanted += g * (float(away[i]) * g - float(towards[i]))
    states = paths[0].copy()
    stay(1, length + 1, count, paths, keys, away, towards)
    np.testing.assert_allclose(paths[2][:count], wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(paths[0], states)
    assert (paths[2][count:] > HOPELESS / 2).all()


@given(st.integers(1, 100), st.integers(1, 4), st.floats(-20, 20), st.integers(0, 2**32 - 1))
def test_branching_keeps_the_children_within_the_threshold(
    count: int, k: int, threshold: float, seed: int
) -> None:
    paths, key, a, b = some_paths(count, seed), seed ^ 0xABCDEF01, 3e-5, 0.02
    most = (count << k) + 2 * LANES
    to, n = room_for(most + LANES), 0
    for pair in range(1 << (k - 1)):
        n = branch(
            count, paths, pair, k, np.uint32(key), np.float32(a), np.float32(b),
            np.float32(threshold), to, n, most,
        )  # fmt: skip
    wanted: dict[tuple[int, int], float] = {}
    for bits in range(1 << k):
        states = (paths[0][:count] << np.uint32(k)) | np.uint32(bits)
        g = value(states, key)
        costs = paths[2][:count] + g * (a * g - b)
        wanted |= dict(zip(zip(states, paths[1][:count], strict=False), costs, strict=True))
    found = dict(zip(zip(to[0][:n], to[1][:n], strict=True), to[2][:n], strict=True))
    assert len(found) == n
    assert all(wanted[child] == pytest.approx(cost, abs=1e-3) for child, cost in found.items())
    assert all(cost <= np.float32(threshold) for cost in found.values())
    lost = [cost for child, cost in wanted.items() if child not in found]
    assert all(cost > threshold - 1e-3 for cost in lost)
    assert (to[2][n : n + LANES] == np.float32(HOPELESS)).all()


@given(st.integers(1, 200), st.integers(2 * LANES, 300))
def test_children_never_outgrow_their_room(count: int, most: int) -> None:
    to = room_for(most + LANES)
    n = branch(
        count, some_paths(count, count), 0, 1, np.uint32(5), np.float32(0), np.float32(0),
        np.float32(1e9), to, 0, most,
    )  # fmt: skip
    assert n <= most
    assert n == 2 * count or n > most - 2 * LANES


PROGRAM = """
import numpy as np
from diffcodec.paths import branch, stay
from diffcodec.simd import target_has
from tests.test_paths import room_for, some_paths
paths, to = some_paths(1003, 1), room_for(2100)
keys = np.arange(9, dtype=np.uint32) * np.uint32(0x9E3779B9)
ones = np.ones(9, np.float32)
n = branch(1003, paths, 0, 1, keys[0], 3e-5 * ones[0], 0.02 * ones[0], ones[0], to, 0, 2050)
print(n, [x[:n].tolist() for x in to])
stay(0, 9, n, to, keys, 3e-5 * ones, 0.02 * ones)
print(*to[2][:n])
print([target_has(x) for x in ("avx512bw", "avx2")])
"""


def output_with(**own: str) -> tuple[str, F32, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_CPU")} | own
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, check=True, capture_output=True, text=True
    )
    children, costs, has = run.stdout.splitlines()
    return children, np.array(costs.split(), dtype=np.float32), has


def test_machines_without_the_instructions_keep_the_same_children() -> None:
    """To the last bit of their costs, where processors can fuse a product with a sum."""
    here = output_with()
    settings = [("x86-64", "", "[False, False]")]
    if target_has("avx2"):
        settings.append(("haswell", "+avx,+avx2,+fma", "[False, True]"))
    elif here[2] == "[False, False]":
        pytest.skip("this machine does not have them either")
    for name, features, has in settings:
        children, costs, which = output_with(NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES=features)
        assert which == has
        assert children == here[0]
        tolerance = 0.0 if "fma" in features else 1e-5
        np.testing.assert_allclose(costs, here[1], rtol=tolerance, atol=tolerance)
