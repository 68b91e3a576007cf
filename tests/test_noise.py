"""Shared randomness: part of the format, so its values are frozen here."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffcodec.noise import (
    byte_sum,
    counter_hash,
    derive_key,
    mix,
    permutation,
    shared_normal,
)

keys = st.integers(0, (1 << 32) - 1)


def test_golden_values() -> None:
    words = np.array([0, 1, 2, 0xFFFFFFFF], dtype=np.uint32)
    assert mix(words).tolist() == [0, 0x688990C0, 0xD1132181, 0x6768824A]
    assert derive_key(0) == 33350994
    assert derive_key(0, 0) == 2685500393
    assert derive_key(1, 2, 3) == 1328893328
    assert derive_key(3, 2, 1) == 1865549001
    assert derive_key(1 << 40) == 1345355174
    assert counter_hash(42, 3).tolist() == [388445122, 3997597525, 2815009970]
    assert shared_normal(42, 6).tolist() == [-901, 4448, 1470, -2704, 2410, -1744]
    assert permutation(42, 8).tolist() == [0, 5, 2, 6, 3, 1, 4, 7]
    sums = byte_sum(np.array([0, 0xFFFFFFFF, 0x01020304], dtype=np.uint32))
    assert sums.tolist() == [-510, 510, -500]


def plain_mix(x: int) -> int:
    """lowbias32 in Python integers."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ x >> shift) * factor & 0xFFFFFFFF
    return x ^ x >> 16


@given(st.lists(keys, min_size=1, max_size=50))
def test_mix_is_the_published_hash(words: list[int]) -> None:
    array = np.array(words, dtype=np.uint32)
    assert mix(array).tolist() == [plain_mix(word) for word in words]
    assert array.tolist() == words, "the input must not change"


@given(keys)
def test_mix_has_an_inverse(word: int) -> None:
    """Hence no two inputs share a value."""
    x = int(mix(np.array([word], dtype=np.uint32))[0])
    x ^= x >> 16
    x = x * pow(0x846CA68B, -1, 1 << 32) & 0xFFFFFFFF
    x ^= x >> 15 ^ x >> 30
    x = x * pow(0x7FEB352D, -1, 1 << 32) & 0xFFFFFFFF
    assert x ^ x >> 16 == word


@given(keys, st.integers(0, 500))
def test_permutation_holds_every_index_once(key: int, count: int) -> None:
    order = permutation(key, count)
    assert sorted(order.tolist()) == list(range(count))


def test_permutations_differ_by_key_and_mix_well() -> None:
    """Rank correlation of 2000 places scatters by 1/√2000 = 2.2 %."""
    first, second = permutation(1, 2000), permutation(2, 2000)
    assert abs(np.corrcoef(first, np.arange(2000))[0, 1]) < 0.09
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.09


@given(keys, st.integers(0, 300), st.integers(0, 300))
def test_a_stream_does_not_depend_on_how_much_is_read(key: int, a: int, b: int) -> None:
    short, long = sorted((a, b))
    np.testing.assert_array_equal(counter_hash(key, long)[:short], counter_hash(key, short))


def test_shared_normal_is_nearly_normal() -> None:
    """200 000 values: mean ± 9, deviation ± 6.5 (1 σ); the sum of 8 bytes has kurtosis 2.85."""
    z = shared_normal(3, 200_000).astype(np.float64)
    assert abs(z.mean()) < 37
    assert z.std() == pytest.approx(4096, abs=26)
    z /= z.std()
    assert np.mean(z**4) == pytest.approx(2.85, abs=0.05)
    assert np.mean(np.abs(z) < 1.0) == pytest.approx(0.6827, abs=0.01)
    assert abs(np.corrcoef(z[:-1], z[1:])[0, 1]) < 0.01


@given(st.lists(st.integers(0, 1 << 70), min_size=1, max_size=5))
def test_derived_keys_are_32_bits(parts: list[int]) -> None:
    assert 0 <= derive_key(*parts) < 1 << 32


def test_derived_keys_tell_neighbours_apart() -> None:
    every = {derive_key(a, b, c) for a in range(12) for b in range(12) for c in range(12)}
    assert len(every) == 12**3


def test_negative_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        derive_key(1, -1)


@given(st.integers(0, 2**32 - 1), st.integers(0, 300), st.integers(0, 300))
def test_a_part_of_the_noise_is_a_part_of_the_noise(key: int, start: int, more: int) -> None:
    whole = shared_normal(key, 600)
    part = shared_normal(key, 600, start, start + more)
    np.testing.assert_array_equal(part, whole[start : start + more])
