"""The objectives of tables 1 and 2, and their gradients, against the KL terms written out."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from diffcodec.ddpm.objectives import bound_loss, decoder_log2, simple_loss
from diffcodec.ddpm.process import Prediction, ReverseProcess, Variance
from diffcodec.ddpm.unet import CONFIGS, UNet
from diffcodec.schedule import Schedule

SCHEDULE = Schedule(beta_start=1e-4)
TIMESTEPS = torch.tensor([1, 1, 2, 3, 250, 999, 1000])
F64 = torch.float64


def no_network(*_: object) -> Tensor:
    raise AssertionError("objectives take the network's output")


def drawn(variance: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pictures with both edges of the range, their noise, x_t and a network's output."""
    generator = torch.Generator().manual_seed(1)
    count = len(TIMESTEPS)
    levels = torch.randint(0, 256, (count, 3, 4, 4), generator=generator)
    levels[:, :, 0], levels[:, :, 1] = 0, 255
    x_0 = levels.float() / 127.5 - 1.0
    noise = torch.randn(x_0.shape, generator=generator)
    out = torch.randn(count, 6, 4, 4, generator=generator)
    abar = torch.from_numpy(SCHEDULE.alphas_cumprod)[TIMESTEPS].float()[:, None, None, None]
    x_t = abar.sqrt() * x_0 + (1 - abar).sqrt() * noise
    return x_0, noise, x_t, out if variance == "learned" else out[:, :3]


def near_truth(out: Tensor, x_0: Tensor, x_t: Tensor, noise: Tensor, prediction: str) -> Tensor:
    """An output that is a little wrong, as a trained network's: of μ̃ less than one σ."""
    if prediction == "eps":
        return torch.cat([noise + 0.05 * out[:, :3], out[:, 3:]], dim=1)
    process = process_of("mean", "posterior")
    truth = process.posterior_mean(x_0, x_t, TIMESTEPS, TIMESTEPS - 1)
    return torch.cat([truth + 0.005 * out[:, :3], out[:, 3:]], dim=1)


def direct_bound(x_0: Tensor, x_t: Tensor, out: Tensor, prediction: str, variance: str) -> Tensor:
    """T·L_{t−1} in bits/dim from the paper's formulas, picture by picture, in float64."""
    x_0, x_t = x_0.to(F64), x_t.to(F64)
    rows = []
    for k, t in enumerate(TIMESTEPS.tolist()):
        beta, abar = float(SCHEDULE.betas[t]), float(SCHEDULE.alphas_cumprod[t])
        before, alpha = float(SCHEDULE.alphas_cumprod[t - 1]), 1.0 - float(SCHEDULE.betas[t])
        mean_q = (
            math.sqrt(before) * beta / (1 - abar) * x_0[k]
            + math.sqrt(alpha) * (1 - before) / (1 - abar) * x_t[k]
        )
        posterior = (1 - before) / (1 - abar) * beta
        small = posterior
        if t == 1:
            one, two = (float(SCHEDULE.alphas_cumprod[i]) for i in (1, 2))
            small = (1 - one) / (1 - two) * float(SCHEDULE.betas[2])
        mean = out[k, :3]
        if prediction == "eps":  # eq. 11
            mean = (x_t[k] - beta / math.sqrt(1 - abar) * mean) / math.sqrt(alpha)
        if variance == "learned":
            share = 0.5 * (out[k, 3:] + 1.0)
            scale = (0.5 * (share * math.log(beta) + (1 - share) * math.log(small))).exp()
        else:
            scale = torch.full_like(mean, math.sqrt({"beta": beta, "posterior": small}[variance]))
        p = Normal(mean, scale)
        if t > 1:
            nats = kl_divergence(Normal(mean_q, math.sqrt(posterior)), p)
        else:
            above, below = p.cdf(x_0[k] + 1 / 255), p.cdf(x_0[k] - 1 / 255)
            above = torch.where(x_0[k] > 0.999, 1.0, above)
            below = torch.where(x_0[k] < -0.999, 0.0, below)
            nats = -(above - below).log()
        rows.append(nats.mean() / math.log(2.0))
    return SCHEDULE.timesteps * torch.stack(rows)


def process_of(prediction: Prediction, variance: Variance) -> ReverseProcess:
    return ReverseProcess(no_network, SCHEDULE, prediction, variance)


@pytest.mark.parametrize(
    ("prediction", "variance"), list(product(["eps", "mean"], ["beta", "posterior", "learned"]))
)
def test_the_bound_is_the_divergence_of_every_step(
    prediction: Prediction, variance: Variance
) -> None:
    x_0, noise, x_t, out = drawn(variance)
    out = near_truth(out, x_0, x_t, noise, prediction)
    ours, theirs = out.clone().requires_grad_(), out.to(F64).requires_grad_()
    value = bound_loss(process_of(prediction, variance), ours, x_0, x_t, TIMESTEPS)
    direct = direct_bound(x_0, x_t, theirs, prediction, variance)
    torch.testing.assert_close(value.to(F64), direct, rtol=2e-4, atol=0.02)
    value.sum().backward()
    direct.sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    for mine, other in zip(ours.grad.to(F64), theirs.grad, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(mine, other, rtol=2e-3, atol=2e-3 * float(other.abs().max()))


@pytest.mark.parametrize("prediction", ["eps", "mean"])
def test_the_simple_objective_is_the_plain_squared_error(prediction: Prediction) -> None:
    x_0, noise, x_t, out = drawn("posterior")
    out.requires_grad_()
    value = simple_loss(process_of(prediction, "posterior"), out, x_0, x_t, TIMESTEPS, noise)
    target = noise
    if prediction == "mean":
        target = torch.stack(
            [
                torch.from_numpy(
                    SCHEDULE.step(int(t), int(t) - 1).posterior_mean(
                        x_0[k].numpy().astype(np.float64), x_t[k].numpy().astype(np.float64)
                    )
                ).float()
                for k, t in enumerate(TIMESTEPS)
            ]
        )
    torch.testing.assert_close(value, (target - out).square().mean(dim=(1, 2, 3)))
    value.sum().backward()
    assert out.grad is not None
    torch.testing.assert_close(out.grad, 2 * (out.detach() - target) / out[0].numel())


def test_a_variance_has_no_part_in_the_simple_objective() -> None:
    x_0, noise, x_t, out = drawn("learned")
    out.requires_grad_()
    simple_loss(process_of("eps", "learned"), out, x_0, x_t, TIMESTEPS, noise).sum().backward()
    assert out.grad is not None and out.grad[:, :3].any() and not out.grad[:, 3:].any()


def test_the_bound_of_a_perfect_network_is_its_last_term() -> None:
    """With ε itself and the posterior's variance every L_{t−1} is zero, t > 1."""
    x_0, noise, x_t, _ = drawn("posterior")
    bits = bound_loss(process_of("eps", "posterior"), noise, x_0, x_t, TIMESTEPS)
    assert bits[TIMESTEPS == 1].min() > 0
    assert bits[TIMESTEPS > 1].abs().max() < 1e-3


@given(
    mean=st.floats(-1.2, 1.2),
    log_scale=st.floats(-6.0, 2.0),
)
def test_the_discretised_decoder_is_a_distribution(mean: float, log_scale: float) -> None:
    """Its 256 levels have probability 1 together, whatever mean and scale."""
    x_0 = torch.arange(256, dtype=torch.float32) / 127.5 - 1.0
    bits = decoder_log2(x_0, torch.full_like(x_0, mean), torch.full_like(x_0, log_scale))
    assert float(torch.exp2(bits.double()).sum()) == pytest.approx(1.0, abs=2e-4)


def test_the_decoder_is_finite_far_from_its_mean() -> None:
    x_0 = torch.tensor([-1.0, -1.0, 0.0, 1.0, 1.0]).requires_grad_()
    mean = torch.tensor([3.0, -3.0, 2.0, -3.0, 3.0]).requires_grad_()
    bits = decoder_log2(x_0.detach(), mean, torch.full((5,), math.log(0.01)))
    bits.sum().backward()
    assert bits.isfinite().all() and mean.grad is not None and mean.grad.isfinite().all()
    assert bits[1] == bits[4] == 0.0
    assert mean.grad.tolist()[0] < 0 and mean.grad.tolist()[2] < 0 and mean.grad.tolist()[3] > 0


@pytest.mark.parametrize(
    ("name", "count"),
    [("ddpm-cifar10", 35_746_307), ("ddpm-256", 113_673_219), ("ddpm-256-large", 255_677_955)],
)
def test_the_networks_have_the_papers_size(name: str, count: int) -> None:
    with torch.device("meta"):
        network = UNet(CONFIGS[name])
    assert sum(p.numel() for p in network.parameters()) == count
