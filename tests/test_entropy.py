"""Range coding with integer probabilities, and the corrections of outliers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffcodec.entropy import (
    PRECISION,
    Decoder,
    Encoder,
    categorical,
    decode_escapes,
    encode_escapes,
    integer_probabilities,
)
from diffcodec.errors import FormatError


@given(st.lists(st.floats(0.0, 1e6), min_size=2, max_size=520).filter(lambda w: sum(w) > 1e-3))
def test_integer_probabilities_sum_to_one_without_a_zero(weights: list[float]) -> None:
    counts = integer_probabilities(np.array(weights))
    assert counts.sum() == 1 << PRECISION
    assert counts.min() >= 1


def test_integer_probabilities_are_close_to_the_weights() -> None:
    """Each within 1 + the share of the floor given to every entry, the largest takes the rest."""
    weights = np.array([0.1, 0.7, 0.0, 0.2])
    counts = integer_probabilities(weights)
    np.testing.assert_allclose(counts, weights * 2**PRECISION, atol=5)


def test_integer_probabilities_do_not_depend_on_the_scale_of_the_weights() -> None:
    weights = np.array([1.0, 5.0, 0.25, 3.0])
    np.testing.assert_array_equal(
        integer_probabilities(weights), integer_probabilities(weights * 1024)
    )


@pytest.mark.parametrize("counts", [[1, 2], [0, 1 << PRECISION], [1 << PRECISION, 1]])
def test_probabilities_that_do_not_sum_to_one_are_refused(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="sum to"):
        categorical(np.array(counts))


@given(st.lists(st.integers(0, 9), max_size=300), st.integers(0, 1000))
def test_symbols_round_trip(symbols: list[int], seed: int) -> None:
    """Also when the bytes are followed by nothing: trailing zeros are not stored."""
    weights = np.random.default_rng(seed).random(10) ** 8
    model = categorical(integer_probabilities(weights))
    coder = Encoder()
    coder.encode(np.array(symbols, dtype=np.int64), model)
    code = coder.getvalue()
    assert not code.endswith(b"\0")
    assert Decoder(code).decode(len(symbols), model).tolist() == symbols


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4)), max_size=200))
def test_models_may_alternate(items: list[tuple[int, int]]) -> None:
    models = [
        categorical(integer_probabilities(np.array(w)))
        for w in ([1.0] * 5, [1e-9, 1, 1, 1, 1e3], [1, 0, 0, 0, 0])
    ]
    coder = Encoder()
    for kind, symbol in items:
        coder.encode(np.array([symbol]), models[kind])
    decoder = Decoder(coder.getvalue())
    for kind, symbol in items:
        assert decoder.decode(1, models[kind])[0] == symbol


def test_the_code_is_as_short_as_its_information() -> None:
    """Within 0.05 % and one byte of Σ −log2 p: nothing is lost at the end of the code."""
    weights = np.array([0.9, 0.05, 0.03, 0.02])
    counts = integer_probabilities(weights)
    symbols = np.random.default_rng(1).choice(4, 5000, p=weights)
    coder = Encoder()
    coder.encode(symbols, categorical(counts))
    ideal = float(np.sum(PRECISION - np.log2(counts)[symbols]))
    assert 8 * len(coder.getvalue()) == pytest.approx(ideal, abs=8 + 0.0005 * ideal)


def test_certain_symbols_take_no_bytes() -> None:
    coder = Encoder()
    coder.encode(np.zeros(100, dtype=np.int64), categorical(np.array([(1 << 24) - 1, 1])))
    assert len(coder.getvalue()) <= 1


@given(
    st.integers(1, 5000).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.dictionaries(
                st.integers(0, n - 1),
                st.integers(-(1 << 21) + 1, (1 << 21) - 1).filter(bool),
                min_size=1,
                max_size=12,
            ),
        )
    )
)
def test_escapes_round_trip(case: tuple[int, dict[int, int]]) -> None:
    n, values = case
    counts = np.zeros(n, dtype=np.int64)
    for place, value in values.items():
        counts[place] = value
    np.testing.assert_array_equal(decode_escapes(encode_escapes(counts), n), counts)


def test_escapes_in_every_place() -> None:
    counts = np.arange(-50, 50) | 1
    np.testing.assert_array_equal(decode_escapes(encode_escapes(counts), 100), counts)


def test_a_correction_that_is_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="too large"):
        encode_escapes(np.array([1 << 21]))


@given(st.binary(max_size=60), st.integers(1, 200))
def test_arbitrary_escapes_are_read_or_refused(code: bytes, n: int) -> None:
    try:
        counts = decode_escapes(code, n)
    except FormatError:
        return
    assert counts.shape == (n,)
    assert counts.any()


def test_more_corrections_than_coefficients_are_refused() -> None:
    code = encode_escapes(np.ones(40, dtype=np.int64))
    with pytest.raises(FormatError, match="40 corrections of 30"):
        decode_escapes(code, 30)
