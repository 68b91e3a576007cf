"""Relative entropy coding of one segment: agreement, exact sizes, cuts and damage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffcodec.channel import (
    ESCAPE_AT,
    MARK_LIMIT,
    NEGLIGIBLE,
    SEARCH_LIMIT,
    affordable_survivors,
    choose_scale,
    receive_segment,
    segment_size,
    send_segment,
)
from diffcodec.errors import FormatError
from diffcodec.paths import LANES
from diffcodec.plans import EFFORTS
from diffcodec.tables import OCTAVE, S_MAX, S_MIN, Y_UNIT
from diffcodec.trellis import mark_words

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
ONE = float(1 << Y_UNIT)
ETA = 133


def source(seed: int, n: int, low: int, high: int) -> tuple[F64, I64]:
    """Shifts with exactly the predicted variances, indices between low and high."""
    rng = np.random.default_rng(seed)
    s_index = rng.integers(low, high + 1, n)
    return rng.normal(size=n) * 2.0 ** (s_index / OCTAVE / 2), s_index


@given(
    seed=st.integers(0, 1 << 20),
    n=st.integers(1, 400),
    low=st.integers(S_MIN - 20, 20),
    width=st.integers(0, 60),
    outliers=st.integers(0, 5),
    size=st.sampled_from([1.0, 30.0, 1000.0]),
    muted=st.sampled_from([None, 0.3, 1.0]),
    key=st.integers(0, (1 << 32) - 1),
    eta=st.integers(64, 255),
)
def test_sender_and_receiver_agree(
    seed: int,
    n: int,
    low: int,
    width: int,
    outliers: int,
    size: float,
    muted: float | None,
    key: int,
    eta: int,
) -> None:
    d, s_index = source(seed, n, low, low + width)
    rng = np.random.default_rng(seed + 1)
    d[rng.integers(0, n, outliers)] *= size
    mute = None if muted is None else rng.random(n) < muted
    if mute is not None:
        d[mute] = 0.0
    code, sent = send_segment(d, s_index, key, eta=eta, survivors=16, mute=mute)
    received = receive_segment(code + b"rest", s_index, key, eta=eta, mute=mute)
    assert received.complete
    assert sent.complete
    assert segment_size(code + b"rest", s_index, eta=eta, mute=mute) == len(code)
    np.testing.assert_array_equal(received.y, sent.y)


@pytest.mark.parametrize("level", [-12, 0, 8, 24])
def test_noise_is_near_one_for_a_calibrated_source(level: int) -> None:
    """E[(y − d)²]; four segments of 4000 coefficients scatter by √(2/16000) = 1.1 %.

    256 survivors leave up to 10 % at η = 1.04 (design §3).
    """
    ratios = []
    for seed in range(4):
        d, s_index = source(seed, 4000, level, level)
        _, sent = send_segment(d, s_index, seed, eta=ETA, survivors=256)
        ratios.append(np.mean((sent.y / ONE - d) ** 2))
    assert 0.93 < np.mean(ratios) < 1.10


def test_the_rate_is_the_budget() -> None:
    """η·Σ½log2(1+s), within the byte's rounding and the two header bits."""
    d, s_index = source(1, 5000, -10, 20)
    code, _ = send_segment(d, s_index, 1, eta=ETA, survivors=16)
    j = choose_scale(d, s_index)
    scaled = 2.0 ** ((s_index + 4 * j) / OCTAVE)
    budget = ETA / 128 * 0.5 * np.sum(np.log2(1.0 + scaled))
    assert 8 * len(code) == pytest.approx(budget, abs=12.0 + 0.001 * budget)


def test_outliers_are_corrected() -> None:
    """A shift of any size arrives with the same noise as the others."""
    d, s_index = source(2, 1000, 0, 8)
    d[[3, 500, 999]] = [700.0, -90.0, 25.0]
    _, sent = send_segment(d, s_index, 5, eta=ETA, survivors=64)
    error = sent.y / ONE - d
    assert np.abs(error[[3, 500, 999]]).max() < ESCAPE_AT * 1.8  # ± one step and noise
    assert np.mean(error**2) < 1.25


def test_outliers_cost_nothing_when_absent_and_bytes_when_present() -> None:
    d, s_index = source(3, 1000, 0, 0)
    d = np.clip(d, -3.0, 3.0)
    plain, _ = send_segment(d, s_index, 5, eta=ETA, survivors=16)
    d[10] = 100.0
    corrected, _ = send_segment(d, s_index, 5, eta=ETA, survivors=16)
    assert len(plain) < len(corrected) < len(plain) + 30


@pytest.mark.parametrize("steps", [-4, 0, 4, 10])
def test_the_scale_follows_a_model_that_is_wrong(steps: int) -> None:
    """choose_scale finds the factor between true and predicted variance, in quarter octaves."""
    d, s_index = source(4, 4000, 16, 32)
    assert choose_scale(d * 2.0 ** (steps / 8), s_index) == steps


@pytest.mark.parametrize("level", [S_MIN - 5, S_MIN, NEGLIGIBLE - 1])
def test_segments_of_negligible_variance_take_no_bytes(level: int) -> None:
    d, s_index = source(1, 2000, level, level)
    code, sent = send_segment(d, s_index, 9, eta=ETA, survivors=16)
    assert code == b""
    received = receive_segment(b"something else", s_index, 9, eta=ETA)
    assert received.complete
    assert segment_size(b"something else", s_index, eta=ETA) == 0
    np.testing.assert_array_equal(received.y, sent.y)


def test_what_is_not_coded_is_noise_of_variance_one() -> None:
    """Standard normal, 4 × 5000 values: variance within 4 σ = 4 %; keys give other noise."""
    s_index = np.full(5000, S_MIN)
    y = [receive_segment(b"", s_index, key, eta=ETA).y / ONE for key in (1, 2, 3, 4)]
    assert np.var(y) == pytest.approx(1.0, abs=0.04)
    assert abs(np.mean(y)) < 0.03
    assert abs(np.corrcoef(y[0], y[1])[0, 1]) < 0.06


def test_muted_coefficients_cost_nothing() -> None:
    d, s_index = source(6, 3000, 8, 8)
    mute = np.arange(3000) % 3 > 0
    d[mute] = 0.0
    code, sent = send_segment(d, s_index, 1, eta=ETA, survivors=64, mute=mute)
    alone, _ = send_segment(d[~mute], s_index[~mute], 1, eta=ETA, survivors=64)
    assert abs(len(code) - len(alone)) <= 1
    assert np.var(sent.y[mute] / ONE) == pytest.approx(1.0, abs=0.13)  # 4 σ of 2000 values


def test_every_cut_leaves_the_mean_where_nothing_arrived() -> None:
    d, s_index = source(7, 60, 0, 20)
    d[5] = 60.0
    code, sent = send_segment(d, s_index, 3, eta=ETA, survivors=32)
    arrived = 0
    for size in range(len(code)):
        part = receive_segment(code[:size], s_index, 3, eta=ETA)
        assert not part.complete
        assert segment_size(code[:size], s_index, eta=ETA) > size
        same = int(np.sum(part.y == sent.y))
        assert np.all((part.y == sent.y) | (np.abs(part.y) < ONE * 60))
        assert same >= arrived
        arrived = same
    first = receive_segment(b"", s_index, 3, eta=ETA)
    np.testing.assert_array_equal(first.y, 0)


def test_a_longer_cut_never_changes_what_had_arrived() -> None:
    d, s_index = source(8, 300, 0, 16)
    code, sent = send_segment(d, s_index, 3, eta=ETA, survivors=32)
    half = receive_segment(code[: len(code) // 2], s_index, 3, eta=ETA)
    reached = half.y != 0
    assert 0.3 < reached.mean() < 0.7, "bits are dealt evenly over the segment"
    np.testing.assert_array_equal(half.y[reached], sent.y[reached])


@given(st.binary(max_size=200), st.integers(0, 3))
def test_arbitrary_bytes_are_read_refused_or_too_short(code: bytes, kind: int) -> None:
    """Nothing but FormatError, and never more bytes used than there are."""
    low, high = [(0, 0), (-40, 10), (20, 40), (S_MAX, S_MAX + 9)][kind]
    _, s_index = source(kind, 150, low, high)
    try:
        received = receive_segment(code, s_index, 77, eta=ETA)
    except FormatError:
        return
    assert received.y.shape == (150,)
    assert received.complete == (segment_size(code, s_index, eta=ETA) <= len(code))


def test_a_scale_out_of_range_is_refused() -> None:
    _, s_index = source(1, 100, 0, 8)
    with pytest.raises(FormatError, match="scale"):
        receive_segment(b"\x00\x40\x10" + bytes(100), s_index, 1, eta=ETA)


def test_what_did_not_arrive_can_be_drawn_with_the_predicted_variance() -> None:
    """4 × 5000 values: variance within 4 σ = 4 %."""
    s_index = np.full(5000, 12)
    y = [receive_segment(b"", s_index, k, eta=ETA, draw=True).y / ONE for k in (1, 2, 3, 4)]
    assert np.var(y) == pytest.approx(1.0 + 2.0 ** (12 / OCTAVE), rel=0.04)


def test_keys_separate_segments() -> None:
    """The same shifts under another key give other values: noise is not reused."""
    d, s_index = source(1, 500, 0, 0)
    y = [send_segment(d, s_index, key, eta=ETA, survivors=16)[1].y / ONE - d for key in (1, 2)]
    assert abs(np.corrcoef(y[0], y[1])[0, 1]) < 0.2


def test_noise_is_independent_of_the_shifts() -> None:
    """y − d must not shrink towards the mean: correlation with d within 4 σ and 3 % search."""
    d, s_index = source(11, 8000, 8, 8)
    _, sent = send_segment(d, s_index, 3, eta=ETA, survivors=512)
    assert abs(np.corrcoef(sent.y / ONE - d, d)[0, 1]) < 0.045 + 0.03


def test_the_last_coefficient_is_conveyed_too() -> None:
    """Segments of one coefficient with 5 bits: y comes near d = ±20, noise alone would not."""
    for key in range(10):
        d = np.array([20.0 if key % 2 else -20.0])
        _, sent = send_segment(d, np.array([80]), key, eta=ETA, survivors=64)
        assert abs(sent.y[0] / ONE - d[0]) < 12.0


@given(
    st.lists(st.integers(0, 13), min_size=1, max_size=300),
    st.integers(1, 12288),
    st.integers(1, 200_000),
)
def test_what_a_search_takes_is_limited(bits: list[int], repeat: int, wanted: int) -> None:
    """However many bits the coefficients of a segment take."""
    k = np.tile(np.array(bits, dtype=np.int64), max(1, repeat // len(bits)))
    found = affordable_survivors(wanted, k)
    assert 1 <= found <= wanted
    children = found << int(k.max())
    marks = 4 * mark_words(k) * -(-found // LANES)
    assert found == 1 or (children <= SEARCH_LIMIT and marks <= MARK_LIMIT)


def test_usual_efforts_are_affordable() -> None:
    """For a segment of a photograph in which every third coefficient takes a bit."""
    k = np.arange(12288) % 3 // 2
    for search in EFFORTS.values():
        assert affordable_survivors(search.survivors, k) == search.survivors
