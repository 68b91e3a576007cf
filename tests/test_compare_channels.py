"""tools/compare_channels.py: what a receiver makes of a code, and that the noise is that of q."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from conftest import DATA, SHORT_PLAN

sys.path.insert(0, str(DATA.parent.parent / "tools"))

import compare_channels
from compare_channels import (
    BestOf,
    Channel,
    Dithered,
    Outcome,
    PoissonFunctional,
    Trellis,
    candidate,
    log_weights,
    run_chain,
    shared,
)

from diffcodec.image import from_array
from diffcodec.model import Model
from diffcodec.tables import OCTAVE, Y_UNIT

KEY = 20
CHUNKED: list[Channel] = [PoissonFunctional(5), BestOf(6, 1.05), BestOf(6, 1.05, drawn=True)]
NAMES = ["poisson", "best", "drawn"]


def source(variance: float, count: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(d, s_index): shifts that have the variance predicted for them."""
    s_index = np.full(count, round(OCTAVE * math.log2(variance)), dtype=np.int64)
    d = np.random.default_rng(seed).standard_normal(count) * np.sqrt(np.exp2(s_index / OCTAVE))
    return d, s_index


@pytest.mark.parametrize("way", CHUNKED, ids=NAMES)
def test_indices_and_key_give_back_the_chosen_candidates(
    way: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    d, s_index = source(1.0, 64)
    known = shared(s_index, KEY, 0)
    chosen: list[int] = []
    encode = compare_channels.Encoder.encode

    def spy(coder: object, symbols: np.ndarray, *model: object) -> None:
        chosen.append(int(symbols[0]))
        encode(coder, symbols, *model)  # type: ignore[arg-type]

    monkeypatch.setattr(compare_channels.Encoder, "encode", spy)
    code = way.send(d, s_index, KEY)
    y = way.receive(code, s_index, KEY)
    _, *indices = chosen  # the first symbol is the scale
    parts = known.chunks(way.chunk_bits)  # type: ignore[attr-defined]
    assert len(indices) == len(parts) > 3
    for number, (index, part) in enumerate(zip(indices, parts, strict=True)):
        expected = candidate(KEY, number, index, known.s[part])
        np.testing.assert_array_equal(
            y[known.own[part]], np.rint(expected * (1 << Y_UNIT)).astype(np.int64)
        )
    assert not np.array_equal(way.receive(code, s_index, KEY + 1), y)


def test_weights_are_the_ratio_of_the_densities() -> None:
    d, s = np.array([0.3, -2.0, 1.0]), np.array([0.1, 4.0, 1.0])
    found = np.concatenate(list(log_weights(KEY, 2, d, s, 1500)))
    assert len(found) == 1500
    for index in (0, 7, 1024, 1499):
        y = candidate(KEY, 2, index, s)
        log_q, log_p = -0.5 * (y - d) ** 2, -0.5 * (y**2 / (1 + s) + np.log(1 + s))
        constant = np.sum(0.5 * np.log(1 + s) - 0.5 * d**2)
        assert found[index] == pytest.approx(float(np.sum(log_q - log_p) - constant), abs=1e-4)


def test_poisson_functional_representation_draws_from_q() -> None:
    d, s_index = source(1.0, 600)
    y = PoissonFunctional(4).receive(PoissonFunctional(4).send(d, s_index, KEY), s_index, KEY) / (
        1 << Y_UNIT
    )
    assert np.mean(y - d) == pytest.approx(0.0, abs=4 / math.sqrt(600))
    assert np.mean((y - d) ** 2) == pytest.approx(1.0, abs=4 * math.sqrt(2 / 600))
    assert np.mean((y - d) * d) == pytest.approx(0.0, abs=4 / math.sqrt(600))


@pytest.mark.parametrize("variance", [0.01, 1.0, 200.0])
def test_dithered_quantisation_has_noise_of_variance_one(variance: float) -> None:
    d, s_index = source(variance, 20_000)
    code = Dithered().send(d, s_index, KEY)
    error = Dithered().receive(code, s_index, KEY) / (1 << Y_UNIT) - d
    assert np.max(np.abs(error)) <= math.sqrt(3) + 2.0**-Y_UNIT
    assert np.mean(error**2) == pytest.approx(1.0, abs=0.04)
    assert abs(np.corrcoef(error, d)[0, 1]) < 0.04


def test_the_code_of_dithered_quantisation_is_as_long_as_its_theory_says() -> None:
    """h(N(0, s) * U) − h(U) bits a coefficient: 1.5 % above at most, by its integers."""
    d, s_index = source(4.0, 20_000)
    grid = np.linspace(-20, 20, 80_001)
    half = math.sqrt(3.0)
    erf = np.vectorize(math.erf)
    phi = (erf((grid + half) / math.sqrt(8.0)) - erf((grid - half) / math.sqrt(8.0))) / 2
    density = phi / (2 * half)
    entropy = -np.sum(density * np.log2(np.maximum(density, 1e-300))) * (grid[1] - grid[0])
    bits = 8 * len(Dithered().send(d, s_index, KEY)) / len(d)
    assert bits == pytest.approx(entropy - math.log2(2 * half), rel=0.015)


def test_best_of_n_takes_the_bits_it_is_given() -> None:
    d, s_index = source(1.0, 400)  # ½ bit a coefficient
    assert 8 * len(BestOf(6, 1.1).send(d, s_index, KEY)) == pytest.approx(220, abs=16)


@pytest.mark.parametrize("way", [None, Trellis(134, 64), *CHUNKED[:2], Dithered()])
def test_a_chain_adds_up(way: Channel | None, tiny: Model, bird: np.ndarray) -> None:
    picture = from_array(bird[:8, :8])
    total = Outcome()
    run_chain(tiny, picture.levels, SHORT_PLAN, way, 0, total)
    assert total.dims == 192
    assert total.shifts == 192 * len(SHORT_PLAN.steps)
    assert total.kl_bits > 0
    assert total.final_bits > 0
    assert (total.step_bits > 0) == (way is not None)
