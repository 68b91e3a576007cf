"""The training loss is the code length: its terms against direct computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diffcodec.coefficients import Layout
from diffcodec.final_layer import SCALE_MIN, bin_weights
from diffcodec.network import Prediction
from diffcodec.objective import (
    PIXEL_LOGVAR_RANGE,
    SAMPLING_FLOOR,
    block_transform,
    default_range,
    pixel_cost_bits,
    step_cost_bits,
    stratified_log_snr,
    training_loss,
)
from diffcodec.schedule import Schedule
from diffcodec.tables import OCTAVE

ONE = torch.ones(1)


def kl_bits(d: float, s: float) -> float:
    """KL(N(d, 1) || N(0, 1 + s)) by summation on a grid."""
    x = np.linspace(d - 12, d + 12, 200_001)
    q = np.exp(-0.5 * (x - d) ** 2) / math.sqrt(2 * math.pi)
    log_ratio = 0.5 * math.log1p(s) - 0.5 * (x - d) ** 2 + x**2 / (2 * (1 + s))
    return float(np.sum(q * log_ratio) * (x[1] - x[0]) / math.log(2))


@pytest.mark.parametrize("delta", [0.1, 1.5, 4.0])
@pytest.mark.parametrize("logvar", [-6.0, -1.0, 0.0, 2.0])
@pytest.mark.parametrize("error", [0.0, 0.3, -2.0])
def test_step_cost_is_the_divergence(delta: float, logvar: float, error: float) -> None:
    gain2 = math.expm1(delta)
    expected = kl_bits(math.sqrt(gain2) * error, gain2 * math.exp(logvar))
    found = float(step_cost_bits(torch.tensor(error), torch.tensor(logvar), delta))
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)  # float32


def test_the_cheapest_variance_is_the_true_one() -> None:
    errors = torch.from_numpy(np.random.default_rng(0).normal(0, 0.5, 20_000)).float()
    grid = torch.linspace(-4, 2, 61)
    costs = [float(step_cost_bits(errors, v.expand(20_000), 1.5).mean()) for v in grid]
    assert float(grid[int(np.argmin(costs))]) == pytest.approx(2 * math.log(0.5), abs=0.11)


@pytest.mark.parametrize("scale_index", [-8, 0, 12])
def test_pixel_cost_is_the_coder_s(scale_index: int) -> None:
    """Residuals up to four deviations: Φ's table is good to 1e-6 of a mass above 1e-4."""
    sigma = 2.0 ** (scale_index / OCTAVE)
    assert scale_index > SCALE_MIN
    reach = max(1, math.floor(3 * sigma))
    for phase in (0, 5, 8):
        weights = bin_weights(scale_index, phase, None)
        for residual in range(-reach, reach + 1):
            x_0 = torch.full((1, 3, 1, 1), float(100 + residual))
            mean = torch.full((1, 3, 1, 1), 100 + phase / 16)
            pixel = torch.zeros(1, 6, 1, 1)
            found = pixel_cost_bits(x_0, mean, pixel, torch.tensor([sigma]))
            expected = -math.log2(weights[255 + residual])
            for channel in range(3):
                assert float(found[0, channel, 0, 0]) == pytest.approx(expected, abs=0.02)


def test_pixel_cost_follows_the_predicted_scale_and_its_limits() -> None:
    x_0, mean = torch.full((1, 3, 1, 1), 103.0), torch.full((1, 3, 1, 1), 100.0)

    def cost(logvar: float, sigma: float) -> float:
        pixel = torch.zeros(1, 6, 1, 1)
        pixel[:, :3] = logvar
        return float(pixel_cost_bits(x_0, mean, pixel, torch.tensor([sigma]))[0, 1, 0, 0])

    assert cost(2 * math.log(2.0), 1.0) == pytest.approx(cost(0.0, 2.0), rel=1e-5)
    assert cost(99.0, 1.0) == cost(PIXEL_LOGVAR_RANGE[1], 1.0)
    assert cost(-99.0, 1.0) == cost(PIXEL_LOGVAR_RANGE[0], 1.0)


def test_residuals_already_decoded_correct_the_means() -> None:
    """Order G, R, B: with the right coefficients red and blue are fully predicted."""
    mean = torch.full((1, 3, 1, 1), 100.0)
    residual = torch.tensor([0.5 * 8, 8, 0.25 * 8 + 3 * 0.0]).view(1, 3, 1, 1)
    pixel = torch.zeros(1, 6, 1, 1)
    pixel[0, 3], pixel[0, 4], pixel[0, 5] = 0.5, 0.25, 3.0
    found = pixel_cost_bits(mean + residual, mean, pixel, ONE)[0, :, 0, 0]
    nothing = pixel_cost_bits(mean, mean, torch.zeros(1, 6, 1, 1), ONE)[0, :, 0, 0]
    assert float(found[0]) == pytest.approx(float(nothing[0]), abs=1e-5)
    assert float(found[2]) == pytest.approx(float(nothing[2]), abs=1e-5)
    assert float(found[1]) > 20.0


def test_an_outlier_costs_finite_bits_with_a_finite_gradient() -> None:
    mean = torch.zeros(1, 3, 1, 1, requires_grad=True)
    cost = pixel_cost_bits(
        torch.full((1, 3, 1, 1), 255.0), mean, torch.zeros(1, 6, 1, 1), 0.6 * ONE
    )
    cost.sum().backward()
    assert torch.isfinite(cost).all()
    assert mean.grad is not None
    assert torch.isfinite(mean.grad).all()


def test_training_and_coding_use_the_same_transform() -> None:
    """float32 against W in units of 2**-14, sums of 192 terms below 1."""
    x = np.random.default_rng(0).uniform(-1, 1, (3, 16, 8))
    trained = block_transform(torch.from_numpy(x[None]).float())[0].numpy()
    layout = Layout(16, 8)
    np.testing.assert_allclose(layout.spread(trained), layout.forward(x), atol=2e-3)


@pytest.mark.parametrize("offset", [0.0, 0.25, 0.999])
def test_log_snr_is_stratified_and_weighted(offset: float) -> None:
    """Each draw has its own share of probability; the weights make the spread even again."""
    values, weights = stratified_log_snr(512, -6.0, 10.0, offset)
    assert values.tolist() == sorted(values.tolist())
    assert -6.0 <= float(values.min()) < float(values.max()) <= 10.0
    assert float(weights.min()) == pytest.approx(1 / (2 - SAMPLING_FLOOR), rel=0.01)
    for power in range(4):
        even = (10.0 ** (power + 1) - (-6.0) ** (power + 1)) / (power + 1) / 16.0
        found = float((weights.double() * values.double() ** power).mean())
        assert found == pytest.approx(even, rel=0.02, abs=0.03)


def test_emphasis_weighs_the_noisy_end_more() -> None:
    """1 + emphasis at the noisy end, as before at the clean one, linear between."""
    for emphasis in (0.5, 2.0, 3.0):
        values, weights = stratified_log_snr(4096, 0.0, 1.0, 0.5, emphasis)
        for power in range(3):
            even = (1 + emphasis) / (power + 1) - emphasis / (power + 2)
            found = float((weights.double() * values.double() ** power).mean())
            assert found == pytest.approx(even, rel=0.01)


def test_the_clean_end_is_drawn_more_often() -> None:
    values, _ = stratified_log_snr(1000, 0.0, 1.0, 0.5)
    assert float((values > 0.5).float().mean()) == pytest.approx(0.6875, abs=0.002)


def test_the_range_of_training_ends_at_t_1() -> None:
    schedule = Schedule()
    low, high = default_range(schedule.log_snr)
    assert high == pytest.approx(schedule.log_snr[1])
    assert low == -6.0
    short = Schedule(timesteps=20)
    assert default_range(short.log_snr)[0] == pytest.approx(short.log_snr[-1])


class Listening(torch.nn.Module):
    """Says nothing and remembers at which log-SNRs it was asked."""

    def forward(self, x_t: torch.Tensor, log_snr: torch.Tensor) -> Prediction:
        self.asked = log_snr
        count, _, height, width = x_t.shape
        coef = torch.zeros(count, 192, height // 8, width // 8)
        return Prediction(torch.zeros_like(x_t), coef, torch.zeros(count, 6, height, width))


@pytest.mark.parametrize("first", [0, 2])
def test_the_final_layer_is_trained_from_wherever_it_may_begin(first: int) -> None:
    """In turn, whichever part of the batch it is; each with the noise of its own."""
    model, images = Listening(), torch.full((12 - first, 3, 8, 8), 100, dtype=torch.uint8)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    finals = [9.0, 8.0, 7.0]

    def loss(which: list[float]) -> float:
        options = {"log_snr_low": -6.0, "log_snr_high": 9.0, "step_length": 1.5}
        found = training_loss(
            model, images, noise, 0.5, log_snr_finals=which, first=first, count=12, **options
        )
        return float(found.final)

    loss(finals)
    assert model.asked[: 3 - first].tolist() == finals[first:]
    assert model.asked[3 - first :].max() < 9.0
    assert loss([9.0]) < loss(finals), "more noise, more bits"
