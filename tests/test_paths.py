"""What becomes of the search's paths, against numpy; the same whatever the instructions."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import output_with
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffcodec.noise import mix
from diffcodec.paths import HOPELESS, fork
from diffcodec.prices import COST_UNIT, LANES, entries_of, price, room_for_prices
from diffcodec.simd import target_has
from diffcodec.tables import LEVELS

U32 = NDArray[np.uint32]
I32 = NDArray[np.int32]
F32 = NDArray[np.float32]
Paths = tuple[U32, I32]
LEVELS_32 = LEVELS.astype(np.float32)


def some_paths(count: int, seed: int) -> Paths:
    rng = np.random.default_rng(seed)
    states = rng.integers(0, 2**32, count + LANES, dtype=np.uint32)
    costs = np.rint(rng.normal(0.0, 10.0, count + LANES) * COST_UNIT).astype(np.int32)
    costs[count:] = HOPELESS
    return states, costs


def some_run(nibbles: int, seed: int) -> tuple[F32, F32, U32]:
    """away and towards of a run (see diffcodec.prices) of all sizes, and its keys."""
    rng = np.random.default_rng(seed)
    s = 2.0 ** rng.uniform(-8, 8, nibbles)
    scale = np.sqrt(1 + s) / 128
    away = 0.5 * s / (1 + s) * scale**2
    towards = rng.normal(0.0, np.sqrt(s)) * scale
    keys = rng.integers(0, 2**32, nibbles, dtype=np.uint32)
    return away.astype(np.float32), towards.astype(np.float32), keys


def priced(run: tuple[F32, F32, U32]) -> NDArray[np.generic]:
    tables = room_for_prices(len(run[0]))
    price(*run, LEVELS_32, tables)
    return tables


def cost_of(states: U32, run: tuple[F32, F32, U32]) -> NDArray[np.int64]:
    """Of a run's nibbles for paths with these states after it, [n]."""
    away, towards, keys = run
    total = np.zeros(len(states), np.int64)
    entries = np.empty(16, np.float32)
    for number in range(len(keys)):
        words = mix((states | np.uint32(1)) ^ keys[number // 8 * 8])
        place = number % 8
        nibbles = words >> np.uint32(8 * (place % 4) + 4 * (place // 4)) & np.uint32(15)
        weight = entries_of(away[number], towards[number], LEVELS_32, entries)
        own = weight * entries.astype(np.int64)
        total += own[np.where(states & np.uint32(1), nibbles, 15 - nibbles)]
    return total


@given(st.integers(0, 2**32 - 1))
def test_entries_are_the_costs_of_the_levels(seed: int) -> None:
    """But for half a unit of the last place, and for more than 32 nats."""
    away, towards, _ = some_run(1, seed)
    entries = np.empty(16, np.float32)
    weight = entries_of(away[0], towards[0], LEVELS_32, entries)
    exact = LEVELS * (np.float64(away[0]) * LEVELS - np.float64(towards[0]))
    exact -= exact.min()
    assert 1 <= weight <= 127
    assert entries.min() == 0
    assert entries.max() <= 255
    assert (entries == np.rint(entries)).all()
    found = weight * entries / COST_UNIT
    near = exact <= 255 * weight / COST_UNIT
    assert np.abs(found - exact)[near].max() <= 0.51 * weight / COST_UNIT
    assert (found[~near] >= 31).all()
    if exact.max() < 31:
        assert weight <= 1 + exact.max() * COST_UNIT / 255


def room_for(count: int) -> Paths:
    return np.zeros(count, np.uint32), np.zeros(count, np.int32)


@given(
    st.integers(1, 100),
    st.integers(1, 4),
    st.integers(0, 20),
    st.floats(-20, 60),
    st.integers(0, 2**32 - 1),
)
def test_the_children_within_the_limit_are_kept_and_marked(
    count: int, k: int, nibbles: int, nats: float, seed: int
) -> None:
    paths, run = some_paths(count, seed), some_run(nibbles, seed + 1)
    limit, tables = np.int32(nats * COST_UNIT), priced(run)
    most = (count << k) + 2 * LANES
    vectors = -(-count // LANES)
    marks = np.zeros(vectors << (k - 1), np.uint32)
    to, n = room_for(most + LANES), 0
    for pair in range(1 << (k - 1)):
        own = marks[pair * vectors :]
        n = fork(count, paths, pair, k, tables, nibbles, limit, to, n, most, own)
    marked = []
    for number, mark in enumerate(marks.tolist()):
        for lane in range(2 * LANES):
            if mark >> lane & 1:
                parent = number % vectors * LANES + lane % LANES
                bits = 2 * (number // vectors) + (lane < LANES)
                marked.append(int(paths[0][parent]) << k & 0xFFFFFFFF | bits)
    assert to[0][:n].tolist() == marked
    assert (to[1][n : n + LANES] == HOPELESS).all()
    wanted: set[tuple[int, int]] = set()
    for bits in range(1 << k):
        states = (paths[0][:count] << np.uint32(k)) | np.uint32(bits)
        costs = paths[1][:count] + cost_of(states, run)
        kept = costs <= limit
        wanted |= set(zip(states[kept].tolist(), costs[kept].tolist(), strict=True))
    assert set(zip(to[0][:n].tolist(), to[1][:n].tolist(), strict=True)) == wanted


@given(st.integers(1, 200), st.integers(2 * LANES, 300))
def test_children_never_outgrow_their_room(count: int, most: int) -> None:
    to, marks = room_for(most + LANES), np.full(-(-count // LANES), 0xFFFFFFFF, np.uint32)
    limit, tables = np.int32(HOPELESS - 1), priced(some_run(3, count))
    n = fork(count, some_paths(count, count), 0, 1, tables, 3, limit, to, 0, most, marks)
    assert n <= most
    assert n == 2 * count or n > most - 2 * LANES
    assert sum(mark.bit_count() for mark in marks.tolist()) == n  # none of the lost is marked


PROGRAM = """
import numpy as np
from diffcodec.paths import fork
from diffcodec.simd import target_has
from test_paths import priced, room_for, some_paths, some_run
paths = some_paths(1003, 1)
for nibbles in (3, 7, 11):
    to, marks, tables = room_for(2100), np.zeros(63, np.uint32), priced(some_run(nibbles, 2))
    n = fork(1003, paths, 0, 1, tables, nibbles, np.int32(20_000), to, 0, 2050, marks)
    print(n, [x[:n].tolist() for x in to], marks.tolist(), end=" ")
print()
print([target_has(x) for x in ("avx512vbmi", "avx512bw", "avx2")])
"""


def test_machines_without_the_instructions_keep_the_same_children() -> None:
    here, has = output_with(PROGRAM)
    if has == "[False, False, False]":
        pytest.skip("this machine does not have them either")
    wanted = {"neither": "[False, False, False]"}
    if target_has("avx2"):
        wanted["avx2"] = "[False, False, True]"
    if target_has("avx512bw"):
        wanted["avx512bw"] = "[False, True, True]"
    for machine, instructions in wanted.items():
        assert output_with(PROGRAM, machine) == [here, instructions]
