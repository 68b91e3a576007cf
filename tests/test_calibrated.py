"""U-Nets of the paper as models that code: calibration, round trips, refusals."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import round_trip
from PIL import Image
from safetensors.torch import load_file, save_file
from test_cli import BIRD, DATA_ERROR, assert_refused, files, run
from test_interchange import random_weights
from torch import Tensor

import diffcodec
from diffcodec import ModelError, registry
from diffcodec.calibrate import _final_constants, calibrate, default_crop, default_images
from diffcodec.calibrated import largest_picture, plan_at, predict_eps
from diffcodec.container import read_header
from diffcodec.ddpm.interchange import write_folder
from diffcodec.ddpm.process import ReverseProcess
from diffcodec.ddpm.unet import CONFIGS, UNet, UNetConfig
from diffcodec.model import (
    CALIBRATION,
    Model,
    ModelConfig,
    read_model,
    save_calibration,
    save_model,
)
from diffcodec.plans import PLANS
from diffcodec.reverse import evaluate
from diffcodec.schedule import Schedule

SHAPE = UNetConfig(channels=8, multipliers=(1, 1, 2, 2, 2), blocks=1, attention=(2,), groups=4)
"""Its sides must be multiples of 16, which is more than the transform asks for."""
CONFIG = ModelConfig("foreign", SHAPE, Schedule(8, 1e-4, 0.5), plan=2, variance="beta")
PIXELS = np.random.default_rng(3).integers(0, 256, (21, 30, 3), dtype=np.uint8)


def weights() -> dict[str, torch.Tensor]:
    return {k: 0.3 * v for k, v in random_weights(SHAPE).items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, bird: np.ndarray) -> Path:
    path = tmp_path_factory.mktemp("calibrated")
    images = np.ascontiguousarray(np.stack([bird, bird[::-1]]).transpose(0, 3, 1, 2))
    save_model(path, CONFIG, weights())
    save_calibration(path, CONFIG, calibrate(CONFIG, weights(), images, seed=0))
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return read_model(folder)


# -- the plan ------------------------------------------------------------------------------


def test_a_plan_keeps_its_noise_levels_under_another_schedule() -> None:
    paper, codec = Schedule(1000, 1e-4, 0.02), Schedule()
    plan = plan_at(PLANS[2], paper)
    assert plan.timesteps[-1] == 1
    levels = [paper.sigma_levels(t) for t in plan.timesteps]
    wanted = [codec.sigma_levels(t) for t in PLANS[2].timesteps]
    np.testing.assert_allclose(levels[:8], wanted[:8], rtol=0.1)
    assert len(levels) < len(wanted), "the paper's chain ends earlier"
    assert plan_at(PLANS[2], codec) == PLANS[2]


def test_a_schedule_that_is_too_short_or_too_long_has_no_plan() -> None:
    for schedule in (Schedule(1, 1e-4, 1e-4), Schedule(4000, 2e-5, 5e-3)):
        with pytest.raises(ModelError, match="no plan"):
            plan_at(PLANS[0], schedule)


# -- what is measured ------------------------------------------------------------------------


def test_calibration_finds_the_variance_of_the_error() -> None:
    """A fresh network says ε̂ = 0: the error is ε itself, and white.

    x̂_0 is then x_1 / √ᾱ_1, so that its error has σ_1 and nothing to predict it by.
    """
    config = replace(CONFIG, schedule=Schedule(100, 0.02, 0.02))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = UNet(SHAPE).state_dict()
    grey = np.full((4, 3, 64, 64), 128, dtype=np.uint8)
    found = calibrate(config, fresh, grey, seed=0)
    assert list(found["timesteps"]) == list(plan_at(PLANS[2], config.schedule).timesteps)
    last = found["coef_logvar"][-1]
    assert abs(float(last.mean())) < 0.02
    assert float(last.abs().max()) < 0.4
    assert float(found["pixel"].abs().max()) < 0.05
    assert found["neighbours"].abs().max() < 50
    first = found["coef_logvar"][0]
    assert float(first.mean()) < -0.5, "x̂_0 is clipped where x_t is mostly noise"


@pytest.mark.parametrize("prediction", ["eps", "mean"])
@pytest.mark.parametrize("variance", ["posterior", "learned"])
def test_eps_comes_from_whatever_is_predicted(prediction: Any, variance: Any) -> None:
    """Of a network that knows x_0."""
    schedule, generator = Schedule(50, 0.01, 0.2), torch.Generator().manual_seed(0)
    x_0 = 2.0 * torch.rand((2, 3, 8, 8), generator=generator) - 1.0
    noise = torch.randn(x_0.shape, generator=generator)

    def network(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        assert x_t.shape == (2, 3, 16, 16)
        x_t = x_t[:, :, :8, :8]
        out = noise if prediction == "eps" else process.posterior_mean(x_0, x_t, t, t - 1)
        whole = torch.cat([out, out], dim=2)
        whole = torch.cat([whole, whole], dim=3)
        return torch.cat([whole] * (2 if variance == "learned" else 1), dim=1)

    process = ReverseProcess(network, schedule, prediction, variance, clip=True)
    for t in (1, 2, 50):
        x_t = process.q_sample(x_0, torch.tensor([t, t]), noise)
        found = predict_eps(process, x_t, t, multiple=16)
        torch.testing.assert_close(found, noise, rtol=1e-3, atol=1e-3)


def test_the_final_layer_s_constants_are_those_of_the_residuals() -> None:
    rng, n = np.random.default_rng(0), 40000
    green = 2.0 * rng.standard_normal(n)
    left = 1.5 * rng.standard_normal(n)
    red = 0.5 * green + left
    blue = -0.25 * green + 0.75 * left + 3.0 * rng.standard_normal(n)
    found = _final_constants(np.stack([red, green, blue]), sigma=2.0).tolist()
    variances = np.array([1.5, 2.0, 3.0]) ** 2 - 1 / 12
    np.testing.assert_allclose(found[:3], np.log(variances / 4.0), atol=0.05)
    np.testing.assert_allclose(found[3:], [0.5, -0.25, 0.75], atol=0.03)


def test_crops_suit_network_and_pictures() -> None:
    def crop(name: str, height: int, width: int) -> int:
        config = replace(CONFIG, network=CONFIGS[name])
        return default_crop(config, [np.zeros((height, width, 3), np.uint8)])

    assert crop("ddpm-cifar10", 100, 100) == 32
    assert crop("ddpm-256", 512, 300) == 256
    assert crop("ddpm-256", 512, 100) == 96
    assert [default_images(side) for side in (32, 64, 256)] == [64, 16, 8]


# -- coding ----------------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", [PIXELS, PIXELS[:, :, 0], PIXELS[:1, :1]])
def test_pictures_come_back_exactly(pixels: np.ndarray, model: Model) -> None:
    assert not model.exact
    content = round_trip(pixels, model)
    header = read_header(content)[0]
    assert header.float_arithmetic
    assert header.model == "foreign"
    assert header.plan == model.plan


def test_every_prefix_decodes(bird: np.ndarray, model: Model) -> None:
    content = round_trip(bird[:16, :16], model)
    start = read_header(content)[1]
    seen = set()
    for size in range(start, len(content), 1 + (len(content) - start) // 12):
        decoded = diffcodec.decode(content[:size], model=model)
        assert not decoded.exact
        assert decoded.pixels.shape == (16, 16, 3)
        seen.add(decoded.t)
    assert len(seen) > 2


def test_calibration_pays(bird: np.ndarray, folder: Path, model: Model) -> None:
    """Against a calibration that takes all errors of ε for 1: fewer bytes."""
    known = load_file(folder / CALIBRATION)
    flat = known | {"coef_logvar": torch.zeros_like(known["coef_logvar"])}
    other = Model(CONFIG, weights(), calibration=flat)
    assert other.fingerprint != model.fingerprint
    assert len(round_trip(bird, model)) < len(round_trip(bird, other))


def test_sides_are_mirrored_and_cut(model: Model) -> None:
    x = np.random.default_rng(0).integers(-(1 << 16), 1 << 16, (3, 24, 8)).astype(np.int32)
    whole = np.concatenate([x, x[:, :15:-1]], axis=1)
    whole = np.concatenate([whole, whole[:, :, ::-1]], axis=2)
    out, expected = evaluate(model, x, 3, model.plan), evaluate(model, whole, 3, model.plan)
    np.testing.assert_array_equal(out.eps, expected.eps[:, :24, :8])
    assert out.coef_index.shape == (192, 3, 1)


# -- what is refused -------------------------------------------------------------------------


def test_a_picture_that_is_too_large_is_refused(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert largest_picture(CONFIGS["ddpm-256"]) == 512 * 512
    assert largest_picture(CONFIGS["ddpm-cifar10"]) == 256 * 256
    side = int(largest_picture(SHAPE) ** 0.5)
    with pytest.raises(ModelError, match="as a whole"):
        evaluate(model, np.zeros((3, side, side + 8), np.int32), 1, model.plan)


def test_only_what_is_a_calibration_is_accepted(folder: Path) -> None:
    good = load_file(folder / CALIBRATION)
    bad = [
        {k: v for k, v in good.items() if k != "pixel"},
        good | {"coef_logvar": good["coef_logvar"][1:]},
        good | {"pixel": torch.full((6,), float("nan"))},
        good | {"neighbours": torch.zeros(3, 5, dtype=torch.int64)},
    ]
    for tensors in bad:
        with pytest.raises(ModelError):
            Model(CONFIG, weights(), calibration=tensors)
    with pytest.raises(ModelError, match="not calibrated for timesteps"):
        Model(CONFIG, weights(), calibration=good).check_plan(plan_at(PLANS[2], Schedule(7)))


def test_nonsense_is_not_coded(folder: Path, bird: np.ndarray) -> None:
    calibration = load_file(folder / CALIBRATION)
    with pytest.raises(ModelError, match="not finite"):
        Model(CONFIG, {k: v * math.nan for k, v in weights().items()}, calibration=calibration)
    model = Model(CONFIG, {k: v * 1e30 for k, v in weights().items()}, calibration=calibration)
    with pytest.raises(ModelError, match="not finite"):
        diffcodec.encode(bird, model=model)


def test_a_u_net_is_not_quantised(folder: Path) -> None:
    refused = run("quantize", folder, "--data", BIRD, "--crop", 8, "--images", 1)
    assert_refused(refused, DATA_ERROR, "U-Net of the paper")


# -- the commands ----------------------------------------------------------------------------


def test_import_with_data_then_encode_and_decode(tmp_path: Path, bird: np.ndarray) -> None:
    write_folder(tmp_path / "hf", CONFIG, weights())
    out, small, ddc = tmp_path / "out", tmp_path / "small.png", tmp_path / "small.ddc"
    Image.fromarray(bird[:16, :24]).save(small)
    result = run("import", tmp_path / "hf", "-o", out, "--name", "hers", "--data", BIRD)
    assert result.exit_code == 0, result.output
    name = read_model(out).fingerprint.hex()
    assert f"fingerprint {name}" in result.stdout

    encoded = run("encode", small, "-o", ddc, "--effort", 1, "--model", out)
    assert encoded.exit_code == 0, encoded.output
    decoded = run("decode", ddc, "-o", tmp_path / "same.png", "--model", out)
    assert decoded.exit_code == 0, decoded.output
    same = np.asarray(Image.open(tmp_path / "same.png"))
    np.testing.assert_array_equal(same, bird[:16, :24])
    facts = json.loads(run("info", ddc, "--json", "--model", out).stdout)
    assert facts["model"] == "hers"
    assert facts["fingerprint"] == name
    assert facts["arithmetic"].startswith("float")
    assert_refused(run("decode", ddc, "-o", small), DATA_ERROR, "hers")

    again = run("calibrate", out, "--data", BIRD, "--images", 1, "--crop", 8, "--plan", 0)
    assert again.exit_code == 0, again.output
    registry._load.cache_clear()
    assert read_model(out).plan == plan_at(PLANS[0], CONFIG.schedule)
    assert_refused(run("decode", ddc, "-o", small, "--model", out), DATA_ERROR, "was written with")


def test_another_model_s_calibration_does_not_stay(tmp_path: Path, folder: Path) -> None:
    out = Path(shutil.copytree(folder, tmp_path / "out"))
    write_folder(tmp_path / "hf", CONFIG, weights())
    assert run("import", tmp_path / "hf", "-o", out).exit_code == 0
    with pytest.raises(ModelError, match="diffcodec calibrate"):
        read_model(out)


def test_an_uncalibrated_model_says_what_to_do(tmp_path: Path, folder: Path) -> None:
    bare = Path(shutil.copytree(folder, tmp_path / "bare"))
    (bare / CALIBRATION).unlink()
    refused = run("encode", BIRD, "-o", tmp_path / "a.ddc", "--model", bare)
    assert_refused(refused, DATA_ERROR, "diffcodec calibrate")
    (bare / CALIBRATION).write_bytes(b"not tensors")
    refused = run("encode", BIRD, "-o", tmp_path / "a.ddc", "--model", bare)
    assert_refused(refused, DATA_ERROR, "cannot be read")
    assert not (tmp_path / "a.ddc").exists()


def test_calibration_refuses_other_models_and_data(tmp_path: Path, tiny_folder: Path) -> None:
    before = files(tiny_folder)
    assert_refused(run("calibrate", tiny_folder, "--data", BIRD), DATA_ERROR, "no calibration")
    refused = run("calibrate", tiny_folder, "--data", BIRD, "--plan", 8)
    assert_refused(refused, 2, "codec's own networks")
    assert files(tiny_folder) == before
    write_folder(tmp_path / "hf", CONFIG, weights())
    refused = run("import", tmp_path / "hf", "-o", tmp_path / "out", "--data", tmp_path / "none")
    assert_refused(refused, DATA_ERROR, "no such file")
    assert not (tmp_path / "out").exists()


def test_broken_weights_are_not_calibrated(tmp_path: Path) -> None:
    broken = {k: v * float("nan") for k, v in weights().items()}
    (tmp_path / "nan").mkdir()
    save_model(tmp_path / "nan", CONFIG, broken)
    refused = run("calibrate", tmp_path / "nan", "--data", BIRD, "--images", 1)
    assert_refused(refused, DATA_ERROR, "not finite")
    save_file({"a": torch.zeros(1)}, tmp_path / "nan" / "model.safetensors")
    refused = run("calibrate", tmp_path / "nan", "--data", BIRD, "--images", 1)
    assert_refused(refused, DATA_ERROR, "lack the tensor")
