"""The integer tables against floating-point formulas."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from diffcodec.tables import (
    LEVEL_UNIT,
    LEVELS,
    OCTAVE,
    RATE_UNIT,
    S_MAX,
    S_MIN,
    Y_UNIT,
    candidates,
    phi,
    rates,
    scale_levels,
)

INDEX = np.arange(S_MIN, S_MAX + 1)


def test_rates_are_half_the_log_of_the_variance() -> None:
    expected = 0.5 * np.log2(1.0 + 2.0 ** (INDEX / OCTAVE)) * (1 << RATE_UNIT)
    np.testing.assert_allclose(rates(), expected, atol=0.5000001)


def test_candidates_have_the_prior_s_deviation() -> None:
    g = np.array([-264, -1, 0, 1, 200, 264])
    for index in (S_MIN, -8, 0, 24, S_MAX):
        exact = np.sqrt(1.0 + 2.0 ** (index / OCTAVE)) * g / LEVEL_UNIT * (1 << Y_UNIT)
        found = candidates(g, np.full(len(g), index))
        # The table is rounded to 2**-21 of a unit of g, the value to half of 2**-12.
        np.testing.assert_allclose(found, exact, atol=0.5 + 264 / 512)


def test_levels_stand_for_a_gaussian() -> None:
    """Ascending, symmetric, of the stated mean square to the last digit; near its quantiles."""
    assert np.mean(LEVELS**2) == LEVEL_UNIT**2
    np.testing.assert_array_equal(LEVELS, -LEVELS[::-1])
    assert (np.diff(LEVELS) > 0).all()
    places = [NormalDist().inv_cdf((i + 0.2) / 15.4) for i in range(16)]
    spread = np.sqrt(np.mean(np.square(places)))
    np.testing.assert_allclose(LEVELS / LEVEL_UNIT, places / spread, atol=1.5 / LEVEL_UNIT)


def test_phi_is_the_normal_distribution() -> None:
    z = np.linspace(-11.9, 11.9, 5001)
    expected = [0.5 * math.erfc(-v / math.sqrt(2.0)) for v in z]
    np.testing.assert_allclose(phi(z), expected, atol=1e-6)  # linear between steps of 1/256
    assert np.all(np.diff(phi(z)) >= 0.0)
    assert phi(np.array([-np.inf, np.inf])) == pytest.approx([0.0, 1.0], abs=1e-12)


def test_scales_are_octaves() -> None:
    for index in (-24, 0, 3, 56):
        assert scale_levels(index) == pytest.approx(2.0 ** (index / 8), rel=1e-9)
        assert (scale_levels(index) * (1 << 40)).is_integer()


def test_golden_values() -> None:
    """The tables are part of the format."""
    assert rates()[[0, 60, 96, 120, 192]].tolist() == RATES
    assert candidates(np.array([100, -37]), np.array([0, 17])).tolist() == CANDIDATES
    assert phi(np.array([-1.0, 0.0, 0.3])).tolist() == PHI


RATES = [12, 2044, 32768, 103872, 393228]
CANDIDATES = [4525, -2742]
PHI = [0.15865525393141794, 0.5, 0.6179112828518437]
