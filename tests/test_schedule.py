"""The tables of the forward process against the paper's formulas, written out naively."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffcodec.schedule import LEVEL, Schedule

PAPER = Schedule(1000, 1e-4, 0.02)
CODEC = Schedule()
SCHEDULES = pytest.mark.parametrize("schedule", [PAPER, CODEC], ids=["paper", "codec"])
T = PAPER.timesteps


@SCHEDULES
def test_tables_are_the_products_of_the_paper(schedule: Schedule) -> None:
    beta = [
        schedule.beta_start + (schedule.beta_end - schedule.beta_start) * i / (T - 1)
        for i in range(T)
    ]
    np.testing.assert_allclose(schedule.betas, [0.0, *beta], rtol=1e-12)
    product = 1.0
    for t in range(1, T + 1):
        product *= 1.0 - beta[t - 1]
        assert schedule.alphas_cumprod[t] == pytest.approx(product, rel=1e-11)
        assert schedule.one_minus_alphas_cumprod[t] == pytest.approx(1 - product, rel=1e-9)
        assert schedule.log_snr[t] == pytest.approx(np.log(product / (1 - product)), rel=1e-8)
    assert schedule.alphas_cumprod[0] == 1.0
    assert np.isposinf(schedule.log_snr[0])
    assert np.all(np.diff(schedule.log_snr) < 0)


def test_constants_of_the_two_schedules() -> None:
    """ᾱ_T of Ho et al. is 4.04e-5; the codec's chain ends at 0.6 levels of noise."""
    assert PAPER.alphas_cumprod[-1] == pytest.approx(4.036e-5, rel=1e-3)
    assert PAPER.sigma_levels(1) == pytest.approx(1.275, rel=1e-3)
    assert CODEC.sigma_levels(1) == pytest.approx(0.6, rel=1e-4)
    assert pytest.approx(2.0 / 255.0) == LEVEL


@SCHEDULES
def test_q_sample_and_its_inverse(schedule: Schedule) -> None:
    rng = np.random.default_rng(0)
    x_0, noise = rng.uniform(-1, 1, (3, 8, 8)), rng.standard_normal((3, 8, 8))
    for t in (1, 2, 500, 1000):
        abar = np.prod(1.0 - schedule.betas[1 : t + 1])
        x_t = schedule.q_sample(x_0, t, noise)
        np.testing.assert_allclose(x_t, abar**0.5 * x_0 + (1 - abar) ** 0.5 * noise, rtol=1e-9)
        np.testing.assert_allclose(schedule.predict_x0(x_t, t, noise), x_0, atol=1e-9)


@SCHEDULES
@pytest.mark.parametrize("t", [2, 3, 50, 999, 1000])
def test_one_step_posterior_is_equation_7(schedule: Schedule, t: int) -> None:
    beta = schedule.betas[t]
    abar, before = schedule.alphas_cumprod[t], schedule.alphas_cumprod[t - 1]
    step = schedule.step(t, t - 1)
    variance = (1 - before) / (1 - abar) * beta
    # 1 − ᾱ loses digits by cancellation here (not in the package): 1e-16 / 2e-5.
    assert step.variance == pytest.approx(variance, rel=1e-9)
    x_0, x_t = np.array([0.3, -1.0]), np.array([0.1, 2.0])
    mean = (
        before**0.5 * beta / (1 - abar) * x_0 + (1 - beta) ** 0.5 * (1 - before) / (1 - abar) * x_t
    )
    np.testing.assert_allclose(step.posterior_mean(x_0, x_t), mean, rtol=1e-9)


steps = st.tuples(st.integers(0, T), st.integers(0, T)).filter(lambda p: p[0] > p[1] > 0)


@given(steps)
def test_a_strided_step_keeps_the_marginal(pair: tuple[int, int]) -> None:
    """q(x_b | x_a, x_0) q(x_a | x_0) integrates to q(x_b | x_0): mean and variance."""
    a, b = pair
    step = CODEC.step(a, b)
    abar_a, abar_b = CODEC.alphas_cumprod[a], CODEC.alphas_cumprod[b]
    mean = step.coef_x0 + step.coef_xa * abar_a**0.5
    variance = step.variance + step.coef_xa**2 * CODEC.one_minus_alphas_cumprod[a]
    assert mean == pytest.approx(abar_b**0.5, rel=1e-9)
    assert variance == pytest.approx(CODEC.one_minus_alphas_cumprod[b], rel=1e-9)


@given(steps)
def test_eps_gain_is_the_growth_of_the_snr(pair: tuple[int, int]) -> None:
    """d = (μ̃ − μ_θ)/√β̃ for an error of ε of one: √expm1(λ_b − λ_a)."""
    a, b = pair
    step = CODEC.step(a, b)
    gain = np.sqrt(np.expm1(CODEC.log_snr[b] - CODEC.log_snr[a]))
    assert step.eps_gain == pytest.approx(gain, rel=1e-6)
    sigma = np.sqrt(CODEC.one_minus_alphas_cumprod[a] / CODEC.alphas_cumprod[a])
    direct = step.coef_x0 * sigma / np.sqrt(step.variance)
    assert step.eps_gain == pytest.approx(direct, rel=1e-9)


def test_the_last_step_to_the_image_is_certain() -> None:
    step = CODEC.step(1, 0)
    assert step.variance == 0.0
    assert (step.coef_x0, step.coef_xa) == (pytest.approx(1.0), 0.0)
    assert np.isinf(step.eps_gain)


def numerical_kl_bits(mean_q: float, var_q: float, mean_p: float, var_p: float) -> float:
    x = np.linspace(-40, 40, 400_001)

    def density(mean: float, variance: float) -> np.ndarray:
        return np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)

    q = density(mean_q, var_q)
    log_ratio = 0.5 * np.log(var_p / var_q) - (x - mean_q) ** 2 / (2 * var_q)
    log_ratio = log_ratio + (x - mean_p) ** 2 / (2 * var_p)
    return float(np.sum(q * log_ratio) * (x[1] - x[0]) / np.log(2.0))


@pytest.mark.parametrize("ratio", [0.5, 1.0, 3.0])
def test_step_bpd_is_the_divergence(ratio: float) -> None:
    eps, eps_hat = np.array([0.4, -0.1]), np.array([0.1, 0.3])
    gain = CODEC.step(600, 400).eps_gain
    expected = np.mean([numerical_kl_bits(gain * e, 1.0, 0.0, ratio) for e in (eps - eps_hat)])
    assert CODEC.step_bpd(600, 400, eps, eps_hat, ratio) == pytest.approx(expected, rel=1e-6)


@SCHEDULES
def test_prior_bpd_is_the_divergence_and_next_to_nothing(schedule: Schedule) -> None:
    x_0 = np.array([-1.0, 0.2, 0.9])
    abar, rest = schedule.alphas_cumprod[-1], schedule.one_minus_alphas_cumprod[-1]
    expected = np.mean([numerical_kl_bits(abar**0.5 * x, rest, 0.0, 1.0) for x in x_0])
    assert schedule.prior_bpd(x_0) == pytest.approx(expected, rel=1e-4)
    assert 0.0 < schedule.prior_bpd(x_0) < 1e-4


def test_nearest_timestep_inverts_log_snr() -> None:
    for t in (1, 2, 77, 1000):
        assert CODEC.nearest_timestep(float(CODEC.log_snr[t])) == t
    assert CODEC.nearest_timestep(1e9) == 1
    assert CODEC.nearest_timestep(-1e9) == 1000


@pytest.mark.parametrize(
    ("timesteps", "start", "end"),
    [(0, 1e-4, 0.02), (10, 0.0, 0.02), (10, 0.03, 0.02), (10, 1e-4, 1.0), (10, -1e-4, 0.5)],
)
def test_impossible_schedules_are_refused(timesteps: int, start: float, end: float) -> None:
    with pytest.raises(ValueError, match="must"):
        Schedule(timesteps, start, end)


@pytest.mark.parametrize("t", [-1, 1001, [5, 2000]])
def test_timesteps_outside_the_table_are_refused(t: object) -> None:
    with pytest.raises(ValueError, match=r"0\.\.1000"):
        CODEC.at(CODEC.betas, t)  # type: ignore[arg-type]


@pytest.mark.parametrize(("a", "b"), [(5, 5), (5, 6), (5, -1), (1001, 5)])
def test_impossible_steps_are_refused(a: int, b: int) -> None:
    with pytest.raises(ValueError, match="a step needs"):
        CODEC.step(a, b)
