"""Algorithm 2, DDIM, guidance and the figures: as published, seeded, independent of the batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import load_picture
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffcodec.ddpm.figures import FRAMES, grid, interpolation, progressive, shared_latents
from diffcodec.ddpm.process import ReverseProcess, Variance
from diffcodec.ddpm.samplers import (
    DDIM,
    Guided,
    Noise,
    Sampler,
    ancestral,
    from_pixels,
    strided_timesteps,
    to_pixels,
)
from diffcodec.ddpm.store import size_multiple
from diffcodec.ddpm.unet import UNet, UNetConfig
from diffcodec.registry import load_process
from diffcodec.schedule import Schedule

SHORT = Schedule(20, 1e-3, 0.3)


@dataclass
class GaussianEps:
    """The best ε-model of data N(0, variance·I), without parameters."""

    schedule: Schedule
    variance: float

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        abar = torch.from_numpy(self.schedule.alphas_cumprod)[t][:, None, None, None]
        gain = (1.0 - abar).sqrt() / (abar * self.variance + 1.0 - abar)
        return (gain * x_t.double()).float()


@dataclass
class ClassEps:
    """ε that depends on the class alone; learned: and a variance that does so too."""

    learned: bool = False

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        value = torch.where(labels < 0, 0.5, labels.float())[:, None, None, None]
        eps = value * torch.ones_like(x_t)
        return torch.cat([eps, 0.1 * eps], dim=1) if self.learned else eps


def tiny_process(schedule: Schedule = SHORT, classes: int = 0, out: int = 3) -> ReverseProcess:
    """A small U-Net with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        network = UNet(UNetConfig(8, (1, 2), 1, (1,), 0.0, 4, out, classes))
        with torch.no_grad():
            for parameter in network.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.05)
    network.eval().requires_grad_(False)
    variance: Variance = "learned" if out == 6 else "posterior"
    return ReverseProcess(network, schedule, variance=variance, clip=True)


# -- the chain -------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", ["beta", "posterior"])
@pytest.mark.parametrize("times", [range(20, -1, -1), (20, 13, 7, 2, 1, 0)])
def test_the_loop_is_algorithm_2(variance: Variance, times: range | tuple[int, ...]) -> None:
    """Against the paper's own form in float64, eq. 11, with the α and β of the strided chain."""
    network = GaussianEps(SHORT, 0.3)
    noise = Noise(7, [0, 1], (3, 4, 4))
    process = ReverseProcess(network, SHORT, variance=variance)
    found = ancestral(process, noise(0), list(times), noise)
    abar, x = SHORT.alphas_cumprod, noise(0).double()
    for a, b in pairwise(times):
        alpha = abar[a] / abar[b]
        sigma2 = 1.0 - alpha
        if variance == "posterior":
            sigma2 *= (1.0 - abar[b]) / (1.0 - abar[a])
        eps = network(x, torch.tensor([a, a]), None).double()
        x = (x - (1.0 - alpha) / np.sqrt(1.0 - abar[a]) * eps) / np.sqrt(alpha)
        if b > 0:
            x = x + np.sqrt(sigma2) * noise(b).double()
    # Twenty steps in float32, the first of which enlarge x by up to 1/√α = 1.2.
    torch.testing.assert_close(found.double(), x, rtol=0, atol=2e-5)


@pytest.mark.parametrize("steps", [2, 5, 20])
def test_a_unit_gaussian_keeps_its_variance_in_any_chain(steps: int) -> None:
    """For x_0 ~ N(0, I) the choice σ² = β is exact (§3.2); the last step shows a mean."""
    process = ReverseProcess(GaussianEps(SHORT, 1.0), SHORT, variance="beta")
    x = Sampler(process, steps=steps, seed=2, batch=8).draw(range(8), 32, 32)
    expected = np.sqrt(SHORT.alphas_cumprod[1])  # of E[x_0 | x_1]
    assert float(x.std()) == pytest.approx(expected, abs=4 / np.sqrt(2 * x.numel()))
    assert float(x.mean()) == pytest.approx(0.0, abs=4 / np.sqrt(x.numel()))


def test_ddim_with_all_its_noise_is_algorithm_2() -> None:
    process = tiny_process()
    noise = Noise(1, [0, 1], (3, 8, 8))
    times = [20, 11, 4, 1, 0]
    found = ancestral(DDIM(process, 1.0), noise(0), times, noise)
    torch.testing.assert_close(
        found, ancestral(process, noise(0), times, noise), rtol=0, atol=1e-4
    )  # float32: ε is formed anew from x̂_0, at t = 1 with 1/√(1 − ᾱ_1) = 32


def test_ddim_without_noise_is_a_function_of_its_start() -> None:
    process = tiny_process()
    start = Noise(1, [0], (3, 8, 8))(0)
    first, second = (
        ancestral(DDIM(process), start, [20, 9, 3, 0], Noise(seed, [0], (3, 8, 8)))
        for seed in (1, 2)
    )
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_ddim_carries_a_gaussian_to_its_spread() -> None:
    """The probability flow of N(0, s²) is a scaling by s; steps follow it to first order."""
    schedule = Schedule(1000, 1e-4, 0.02)
    process = ReverseProcess(GaussianEps(schedule, 0.25), schedule)
    noise, errors = Noise(0, [0], (3, 2, 2)), []
    x_t = noise(0)
    for stride in (20, 5):
        found = ancestral(DDIM(process), x_t, [*range(1000, 0, -stride), 0], noise)
        errors.append(float((found / x_t - 0.5).abs().max()))
    assert errors[1] < 0.01
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.3)


@given(weight=st.floats(0.0, 5.0), known=st.integers(0, 3), learned=st.booleans())
def test_guidance_extrapolates_from_no_class(weight: float, known: int, learned: bool) -> None:
    x, t = torch.zeros(2, 3, 2, 2), torch.tensor([3, 4])
    out = Guided(ClassEps(learned), weight)(x, t, torch.full((2,), known))
    assert out.shape[1] == (6 if learned else 3)
    expected = torch.full((2, 3, 2, 2), (1 + weight) * known - weight * 0.5)
    torch.testing.assert_close(out[:, :3], expected)
    if learned:  # the variance is that of the class
        torch.testing.assert_close(out[:, 3:], torch.full((2, 3, 2, 2), 0.1 * known))


def test_guidance_is_the_same_of_a_predicted_mean() -> None:
    eps = ReverseProcess(ClassEps(), SHORT)
    x, labels = Noise(0, [0, 1], (3, 4, 4))(0), torch.tensor([2, 1])
    a, b = torch.tensor([9, 9]), torch.tensor([8, 8])

    def mean(x_t: Tensor, t: Tensor, k: Tensor | None) -> Tensor:
        return eps(x_t, t, t - 1, k).mean

    found = ReverseProcess(Guided(mean, 1.5), SHORT, prediction="mean")(x, a, b, labels)
    expected = replace(eps, network=Guided(eps.network, 1.5))(x, a, b, labels)
    torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=1e-5)


def test_a_class_and_its_guidance_change_the_picture() -> None:
    sampler = Sampler(tiny_process(classes=3), steps=5)
    free, one, two, guided = (
        replace(sampler, label=label, guidance=weight).draw([0], 8, 8)
        for label, weight in ((None, 0.0), (1, 0.0), (2, 0.0), (1, 2.0))
    )
    for other in (free, two, guided):
        assert float((one - other).abs().mean()) > 1e-4


# -- seeds and batches -----------------------------------------------------------------------


@pytest.mark.parametrize("out", [3, 6])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_picture_does_not_depend_on_the_batch(out: int, batch: int) -> None:
    """Convolutions of another batch size may sum in another order, so float32's rounding differs.

    That is about 1e-6 a step here, and 1e-4 is a hundredth of a level.
    """
    sampler = Sampler(tiny_process(out=out), seed=3)
    whole = replace(sampler, batch=5).draw(range(5), 16, 8)
    assert whole.shape == (5, 3, 16, 8)
    found = replace(sampler, batch=batch).draw(range(5), 16, 8)
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-4)
    alone = replace(sampler, batch=batch).draw([3], 16, 8)
    torch.testing.assert_close(alone, whole[3:4], rtol=0, atol=1e-4)
    assert float((whole[0] - whole[1]).abs().mean()) > 0.05


def test_samples_of_the_shipped_model_do_not_depend_on_the_batch() -> None:
    sampler = Sampler(load_process("cifar10"), steps=6, seed=1)
    few, many = (replace(sampler, batch=b).draw(range(3), 32, 32) for b in (1, 3))
    torch.testing.assert_close(few, many, rtol=0, atol=1e-3)


def test_samples_are_seeded() -> None:
    process = tiny_process()
    first, again, other = (Sampler(process, seed=s).draw([0], 8, 8) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert float((first - other).abs().mean()) > 0.05


def test_every_step_is_reported() -> None:
    seen, counted = [], []
    sampler = Sampler(tiny_process(), steps=5, batch=2)
    x_0 = sampler.draw(
        range(3),
        8,
        8,
        lambda a, x: seen.append((a, x)),
        lambda done, total: counted.append((done, total)),
    )
    times = sampler.times(20)[:-1]
    assert [a for a, _ in seen] == times * 2
    assert [len(x) for _, x in seen] == [2] * 5 + [1] * 5
    assert counted == [(n, 10) for n in range(1, 11)]
    torch.testing.assert_close(torch.cat([seen[4][1], seen[9][1]]), x_0)  # the last shows the mean


# -- timesteps -------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 999, 1000])
def test_timesteps_fall_from_the_end_of_the_schedule(steps: int) -> None:
    """The chain starts at noise, so its first timestep is T, also when it is the only one."""
    times = strided_timesteps(1000, steps)
    assert len(times) == steps
    assert times[0] == 1000
    assert times == sorted(set(times), reverse=True)
    if steps > 1:
        assert times[-1] == 1
        assert np.ptp(np.diff(times)) <= 1


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match="steps"):
        strided_timesteps(1000, steps)


def test_a_chain_starts_where_it_is_told_and_passes_where_it_must() -> None:
    sampler = Sampler(tiny_process(), steps=4)
    assert sampler.times(20) == [20, 14, 7, 1, 0]
    assert sampler.times(9) == [9, 7, 1, 0]
    assert sampler.times(20, 9, 20) == [20, 14, 9, 7, 1, 0]
    assert sampler.times(1) == [1, 0]


# -- figures ---------------------------------------------------------------------------------


def tiles(sheet: np.ndarray, side: int) -> np.ndarray:
    """[rows, columns, side, side, 3] as integers."""
    rows, columns = sheet.shape[0] // side, sheet.shape[1] // side
    parts = sheet.reshape(rows, side, columns, side, 3).transpose(0, 2, 1, 3, 4)
    return parts.astype(int)


def test_progressive_rows_end_in_the_samples() -> None:
    sampler = Sampler(tiny_process(), batch=2)
    sheet = tiles(progressive(sampler, 3, 8, 8), 8)
    assert sheet.shape[:2] == (3, FRAMES + 1)
    drawn = to_pixels(sampler.draw(range(3), 8, 8))
    np.testing.assert_array_equal(sheet[:, -1], drawn)
    np.testing.assert_array_equal(sheet[:, -2], drawn)  # x̂_0 at t = 1 is what Algorithm 2 returns
    assert np.abs(sheet[:, 0] - drawn).mean() > 5


def test_shared_latents_agree_the_more_the_later_they_are() -> None:
    sampler = Sampler(tiny_process(), batch=3)
    sheet = tiles(shared_latents(sampler, [20, 8, 1], 4, 8, 8), 8)
    assert sheet.shape[:2] == (3, 5)
    spread = [np.abs(row[:4] - row[:4].mean(axis=0)).mean() for row in sheet]
    assert spread[0] > spread[1] > spread[2] == 0  # from x_1 on nothing is random
    latent = to_pixels(sampler.start([0], 8, 8))[0]
    np.testing.assert_array_equal(sheet[0, 4], latent)
    # One chain for all: that of picture 0, whatever else is asked for.
    other = tiles(shared_latents(sampler, [8], 4, 8, 8), 8)
    assert np.abs(other[0] - sheet[1]).max() <= 1


def test_interpolation_leads_from_one_picture_to_the_other() -> None:
    bird = load_picture("budgerigar-32.png")
    first, second = bird[:8, :16], bird[16:24, 8:24]
    sampler = Sampler(tiny_process(), batch=3)
    sheet = interpolation(sampler, first, second, [0, 1, 12], 3)
    rows = sheet.reshape(3, 8, 7, 16, 3).transpose(0, 2, 1, 3, 4).astype(int)
    for row in rows:
        np.testing.assert_array_equal(row[0], first)
        np.testing.assert_array_equal(row[6], second)
    mixed = [np.rint(first + k / 4 * (second.astype(float) - first)) for k in range(5)]
    assert np.abs(rows[0, 1:6] - mixed).max() <= 1  # a half may be rounded either way
    swapped = interpolation(sampler, second, first, [0, 1, 12], 3)
    back = swapped.reshape(3, 8, 7, 16, 3).transpose(0, 2, 1, 3, 4).astype(int)[:, ::-1]
    assert np.abs(rows - back).max() <= 1


def test_interpolation_between_equal_pictures_is_one_picture() -> None:
    """All chains of a row have the same noise, so only λ could make them differ."""
    bird = load_picture("budgerigar-32.png")[:8, :8]
    row = tiles(interpolation(Sampler(tiny_process()), bird, bird, [15], 4), 8)[0]
    assert np.abs(row[1:-1] - row[1]).max() <= 1


def test_grids_are_read_line_by_line() -> None:
    pictures = np.arange(5, dtype=np.uint8)[:, None, None, None] + np.full(
        (5, 2, 4, 3), 10, dtype=np.uint8
    )
    sheet = grid(pictures)
    assert sheet.shape == (4, 12, 3)
    assert sheet[::2, ::4, 0].tolist() == [[10, 11, 12], [13, 14, 0]]
    assert grid(pictures, columns=5).shape == (2, 20, 3)
    np.testing.assert_array_equal(grid(pictures[:1]), pictures[0])


def test_pixels_become_tensors_and_back() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    x = from_pixels(pixels)
    assert x.shape == (1, 3, 16, 16)
    assert (float(x.min()), float(x.max())) == (-1.0, 1.0)
    np.testing.assert_array_equal(to_pixels(x), pixels)
    assert to_pixels(torch.tensor([-2.0, 0.0, 2.0])[:, None, None]).tolist() == [[[0, 128, 255]]]


def test_sizes_are_those_of_the_network() -> None:
    assert size_multiple(tiny_process()) == 2
    assert size_multiple(load_process("cifar10")) == 8


def test_samples_of_the_shipped_model_look_like_pictures() -> None:
    """Neighbouring pixels agree, which noise of the same spread does not."""
    drawn = Sampler(load_process("cifar10"), steps=12).draw(range(2), 32, 32)
    pictures = to_pixels(drawn).astype(float)
    spread = pictures.std()
    neighbours = np.abs(np.diff(pictures, axis=2)).mean()
    assert spread > 15.0
    assert neighbours < 0.5 * spread
