"""Which paths survive: the same with the machine's instruction and without it."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffcodec.simd import LANES, places_above, places_within


@given(st.integers(0, 100), st.integers(0, 2**32 - 1))
def test_places_are_those_of_the_comparison(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 5, count + rng.integers(0, 3)).astype(np.float32)  # with ties
    values[rng.random(len(values)) < 0.1] = np.inf
    threshold = np.float32(rng.integers(-1, 6))
    for chosen, found in ((values > threshold, places_above), (values <= threshold, places_within)):
        places = np.full(count + LANES, -1, np.int32)
        number = found(count, values, threshold, places)
        np.testing.assert_array_equal(places[:number], np.flatnonzero(chosen[:count]))


PROGRAM = """
import numpy as np
from diffcodec import simd
values = np.random.default_rng(1).random(1003).astype(np.float32)
places = np.empty(len(values) + simd.LANES, np.int32)
for function in (simd.places_above, simd.places_within):
    n = function(len(values), values, np.float32(0.3), places)
    print(n, places[:n].tolist())
print(simd.target_has("avx512f"))
"""


def output_with(**settings: str) -> list[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_CPU")} | settings
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, check=True, capture_output=True, text=True
    )
    return run.stdout.splitlines()


def test_a_machine_without_the_instruction_finds_the_same_places() -> None:
    here, plain = output_with(), output_with(NUMBA_CPU_NAME="x86-64", NUMBA_CPU_FEATURES="")
    assert plain[-1] == "False"
    if here[-1] == "False":
        pytest.skip("this machine does not have the instruction either")
    assert here[:-1] == plain[:-1]
