"""The bound: its terms against torch.distributions, its sum, and data of known likelihood."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import load_picture
from hypothesis import given
from hypothesis import strategies as st
from test_ddpm_samplers import SHORT, GaussianEps, tiny_process
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from diffcodec.ddpm.bound import (
    PictureBound,
    Strata,
    bound,
    mean_error,
    picture_bound,
    summarise,
)
from diffcodec.ddpm.objectives import decoder_log2, kl_bits
from diffcodec.ddpm.process import ReverseProcess, Variance
from diffcodec.ddpm.samplers import from_pixels, keyed_normal
from diffcodec.schedule import LEVEL, Schedule

TOY = Schedule(20, 0.01, 0.4)
"""Its first step is much wider than a level, so that the bins of the data hardly matter."""
SPREAD = 0.25


@dataclass
class ExactReverse:
    """The true reverse process of N(0, SPREAD²·I), as a network with a learned variance."""

    schedule: Schedule

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        eps = GaussianEps(self.schedule, SPREAD**2)(x_t, t, labels)
        shares = torch.tensor([self._share(int(k)) for k in t]).float()[:, None, None, None]
        return torch.cat([eps, (2.0 * shares - 1.0) * torch.ones_like(eps)], dim=1)

    def _share(self, t: int) -> float:
        """Where log σ² lies between those of β̃_t (β̃_2 for t = 1) and β_t."""
        step = self.schedule.step(t, t - 1)
        low = step.variance if t > 1 else self.schedule.step(2, 1).variance
        exact = step.variance + step.coef_x0**2 * remaining(self.schedule, t)
        high = float(self.schedule.betas[t])
        return math.log(exact / low) / math.log(high / low)


def remaining(schedule: Schedule, t: int) -> float:
    """Var(x_0 | x_t) of the toy's data."""
    abar = float(schedule.alphas_cumprod[t])
    return SPREAD**2 * (1.0 - abar) / (abar * SPREAD**2 + 1.0 - abar)


def toy_pictures(count: int) -> list[np.ndarray]:
    values = np.random.default_rng(5).normal(0.0, SPREAD, (count, 32, 32, 3))
    return list(np.clip(np.rint((values + 1.0) * 127.5), 0, 255).astype(np.uint8))


def true_bpd(pixels: np.ndarray) -> float:
    """−log2 of the mass of the toy's levels, by differences of Φ."""
    edges = torch.cat(
        [
            torch.tensor([-math.inf]),
            (torch.arange(255) + 0.5) * LEVEL - 1.0,
            torch.tensor([math.inf]),
        ]
    ).double()
    mass = Normal(0.0, SPREAD, validate_args=False).cdf(edges).diff()
    return float(-mass.log2()[torch.from_numpy(pixels.astype(int))].mean())


# -- terms -----------------------------------------------------------------------------------


def decoder_nats(x_0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    return -math.log(2.0) * decoder_log2(x_0, mean, 0.5 * log_variance)


@given(
    shift=st.floats(-3, 3),
    log_q=st.floats(-20, 2),
    log_ratio=st.floats(-3, 3),
)
def test_the_divergence_is_that_of_torch(shift: float, log_q: float, log_ratio: float) -> None:
    log_q, log_p = torch.tensor(log_q).double(), torch.tensor(log_q + log_ratio).double()
    scale = torch.exp(0.5 * log_q)  # shifts in units of the spread, whatever the spread
    expected = kl_divergence(
        Normal(shift * scale, scale), Normal(torch.zeros_like(scale), torch.exp(0.5 * log_p))
    )
    found = kl_bits(shift * scale, log_q, log_p) * math.log(2.0)
    # torch subtracts numbers near 1, which costs it digits that kl_bits keeps.
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-13)


@given(mean=st.floats(-3, 3), log_variance=st.floats(-14, 2))
def test_the_decoder_is_a_distribution_over_levels(mean: float, log_variance: float) -> None:
    levels = torch.arange(256).double() * LEVEL - 1.0
    nats = decoder_nats(levels, torch.tensor(mean).double(), torch.tensor(log_variance).double())
    assert float(torch.exp(-nats).sum()) == pytest.approx(1.0, abs=1e-9)
    assert torch.isfinite(nats).all()


@given(mean=st.floats(-1, 1), log_variance=st.floats(-8, 2), level=st.integers(0, 255))
def test_the_decoder_is_the_mass_of_a_bin(mean: float, log_variance: float, level: int) -> None:
    p = Normal(torch.tensor(mean).double(), torch.tensor(0.5 * log_variance).double().exp())
    x = torch.tensor(level * LEVEL - 1.0).double()
    low = 0.0 if level == 0 else p.cdf(x - 0.5 * LEVEL)
    high = 1.0 if level == 255 else p.cdf(x + 0.5 * LEVEL)
    found = decoder_nats(x, p.mean, p.variance.log())
    assert float(torch.exp(-found)) == pytest.approx(float(high - low), rel=1e-6, abs=1e-14)


def test_the_decoder_keeps_its_digits_far_from_the_mean() -> None:
    """100 standard deviations off −log p is z²/2 + log z + log √2π and a bin's slope."""
    deep = decoder_nats(
        torch.tensor([0.5, -0.5]).double(), torch.tensor(0.0), torch.tensor(-2 * math.log(200))
    )
    z = (0.5 - 0.5 * LEVEL) * 200
    assert deep.tolist() == pytest.approx([z**2 / 2 + math.log(z * math.sqrt(2 * math.pi))] * 2)


@pytest.mark.parametrize("variance", ["beta", "posterior", "learned"])
def test_the_sum_of_all_terms_is_the_bound(variance: Variance) -> None:
    """Everything again with torch.distributions in float64, from the process's Gaussians."""
    pixels = load_picture("budgerigar-32.png")[:8, 8:16]
    network = tiny_process(out=6 if variance == "learned" else 3).network
    process = ReverseProcess(network, SHORT, variance=variance, clip=True)
    strata = Strata.of(SHORT)
    found = picture_bound(process, pixels, 3, strata, seed=9, batch=7)
    x_0 = from_pixels(pixels).double()
    last = SHORT.timesteps
    abar = SHORT.alphas_cumprod
    q = Normal(math.sqrt(abar[last]) * x_0, math.sqrt(1 - abar[last]))
    terms = [kl_divergence(q, Normal(torch.zeros_like(x_0), 1.0)).mean()]
    rmse = []
    for t in range(last, 0, -1):
        x_t = math.sqrt(abar[t]) * x_0
        x_t = x_t + math.sqrt(1 - abar[t]) * keyed_normal(9, 3, t, x_0.shape)
        p = process(x_t.float()[None], torch.tensor([t]), torch.tensor([t - 1]))
        model = Normal(p.mean[0].double(), torch.exp(0.5 * p.log_variance[0].double()))
        rmse.append(127.5 * float((p.x_0[0] - x_0).square().mean().sqrt()))
        if t > 1:
            step = SHORT.step(t, t - 1)
            q = Normal(step.coef_x0 * x_0 + step.coef_xa * x_t, math.sqrt(step.variance))
            terms.append(kl_divergence(q, model).mean())
        else:
            above = torch.where(x_0 > 1 - LEVEL / 2, math.inf, x_0 + LEVEL / 2)
            below = torch.where(x_0 < -1 + LEVEL / 2, -math.inf, x_0 - LEVEL / 2)
            wide = Normal(model.loc, model.scale, validate_args=False)
            terms.append(-(wide.cdf(above) - wide.cdf(below)).log().mean())
    bits = [float(term) / math.log(2) for term in terms]
    assert found.prior == pytest.approx(bits[0], rel=1e-6)
    np.testing.assert_allclose(found.steps, bits[1:-1], rtol=1e-4)  # the network is in float32
    assert found.decoder == pytest.approx(bits[-1], rel=1e-4)
    assert found.total == pytest.approx(sum(bits), rel=1e-4)
    np.testing.assert_allclose(found.rmse, rmse, rtol=1e-4)


# -- data of known likelihood ----------------------------------------------------------------


def test_the_bound_of_the_true_reverse_process_is_the_likelihood() -> None:
    """Gaussian data, all of whose reverse steps are Gaussian: nothing is lost.

    Per picture the bound scatters around the truth with the noise of its 19 draws; what else
    differs is N(0, I) for x_T (below 1e-4 bits/dim) and a level's width in the first step.
    """
    pictures = toy_pictures(6)
    process = ReverseProcess(ExactReverse(TOY), TOY, variance="learned")
    found = bound(process, pictures, Strata.of(TOY))
    gaps = [b.total - true_bpd(p) for b, p in zip(found, pictures, strict=True)]
    mean, error = mean_error(gaps)
    assert error < 0.01
    assert abs(mean) < 4 * error + 2e-4
    assert mean_error([true_bpd(p) for p in pictures])[0] == pytest.approx(
        math.log2(SPREAD * math.sqrt(2 * math.pi * math.e) / LEVEL), abs=0.03
    )


@pytest.mark.parametrize("variance", ["beta", "posterior"])
def test_the_bound_with_a_fixed_variance_is_worse_by_what_theory_says(variance: Variance) -> None:
    process = ReverseProcess(GaussianEps(TOY, SPREAD**2), TOY, variance=variance)
    found = bound(process, toy_pictures(4), Strata.of(TOY))
    expected = []
    for t in range(TOY.timesteps, 1, -1):
        step = TOY.step(t, t - 1)
        model = float(TOY.betas[t]) if variance == "beta" else step.variance
        ratio = step.variance / model
        extra = step.coef_x0**2 * remaining(TOY, t) / model
        expected.append(0.5 * (ratio - 1 - math.log(ratio) + extra) / math.log(2))
    # The mean of 12,288 squares has a standard error of 1.3 %.
    np.testing.assert_allclose(np.mean([b.steps for b in found], axis=0), expected, rtol=0.06)
    exact = bound(
        ReverseProcess(ExactReverse(TOY), TOY, variance="learned"), toy_pictures(4), Strata.of(TOY)
    )
    assert np.mean([b.total for b in found]) > np.mean([b.total for b in exact]) + 0.01


def test_errors_along_the_curve_are_those_of_the_best_estimate() -> None:
    process = ReverseProcess(GaussianEps(TOY, SPREAD**2), TOY)
    strata = Strata.of(TOY)
    curve = summarise(bound(process, toy_pictures(2), strata), strata)["curve"]
    for row in curve[:-1]:
        expected = 127.5 * math.sqrt(remaining(TOY, int(row["t"])))
        assert row["rmse"][0] == pytest.approx(expected, rel=0.04)
    assert curve[-1]["rmse"][0] == 0


# -- timesteps and errors --------------------------------------------------------------------


@given(last=st.integers(2, 300), share=st.floats(0, 1), seed=st.integers(0, 1000))
def test_strata_are_a_partition(last: int, share: float, seed: int) -> None:
    count = 1 + int(share * (last - 2))
    strata = Strata.of(Schedule(last, 1e-4, 0.02), count)
    assert len(strata.low) == count
    assert (strata.high[0], strata.low[-1]) == (last, 1)
    np.testing.assert_array_equal(strata.low[:-1], strata.high[1:])
    assert (strata.sizes >= 1).all()
    drawn = strata.draw(seed, 5)
    assert ((strata.low < drawn) & (drawn <= strata.high)).all()


@pytest.mark.parametrize("count", [0, 20])
def test_impossible_numbers_of_strata_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match="timesteps"):
        Strata.of(SHORT, count)


def test_a_few_random_timesteps_estimate_the_whole_sum() -> None:
    """Over many pictures, within the standard error that is reported; single t's differ a lot."""
    strata = Strata.of(SHORT, 4)
    terms = 1.0 / np.arange(1, 21) ** 2  # of t = 1..20
    sums = [float(np.sum(strata.sizes * terms[strata.draw(0, n) - 1])) for n in range(2000)]
    mean, error = mean_error(sums)
    assert 0 < error < 0.005
    assert mean == pytest.approx(terms[1:].sum(), abs=4 * error)


def test_the_curve_counts_what_was_received() -> None:
    """Rates for a hand-made bound: two strata, of one and of three timesteps."""
    strata = Strata(np.array([4, 1]), np.array([5, 4]))
    found = PictureBound(0.25, np.array([1.0, 3.0]), 2.0, np.array([9.0, 5.0, 1.0]))
    assert (found.rate, found.total) == (4.25, 6.25)
    # x_5 costs L_T; a t in 2..4 is 3 on average, after one of the stratum's three steps.
    assert found.rates(strata).tolist() == [0.25, 2.25, 4.25, 6.25]
    rows = summarise([found, found], strata)["curve"]
    assert [row["t"] for row in rows] == [5.0, 3.0, 1.0, 0.0]
    assert [row["rmse"] for row in rows] == [[9.0, 0], [5.0, 0], [1.0, 0], [0, 0]]


def test_standard_errors() -> None:
    assert mean_error([1.0, 3.0]) == [2.0, 1.0]
    assert math.isnan(mean_error([1.0])[1])


def test_the_bound_is_seeded_and_independent_of_the_batch() -> None:
    pixels = load_picture("budgerigar-32.png")[:8, :8]
    process, strata = tiny_process(), Strata.of(SHORT, 7)
    first, again, other = (
        picture_bound(process, pixels, 0, strata, seed=s, batch=b)
        for s, b in ((1, 64), (1, 3), (2, 64))
    )
    assert first.total == pytest.approx(again.total, rel=1e-5)  # float32 in another order
    assert first.total != pytest.approx(other.total, rel=1e-5)
