"""``diffcodec train``: what its options mean, and how wrong ones are answered."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from diffcodec.cli import main
from diffcodec.ddpm.store import read_process
from diffcodec.ddpm.unet import CONFIGS, UNetConfig
from diffcodec.model import read_config
from diffcodec.train.settings import TrainConfig, fast_precision

SHAPE = UNetConfig(channels=8, multipliers=(1,), blocks=1, attention=(), groups=4, dropout=0.0)


def run(*options: object) -> Result:
    return CliRunner().invoke(main, ["train", *map(str, options)])


@pytest.fixture
def base(tmp_path: Path) -> list[object]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(6) % 2)
    (tmp_path / "shape.json").write_text(json.dumps(SHAPE.to_dict()))
    return ["--data", tmp_path / "data.npz", "--out", tmp_path / "run"]


def settings(*options: object) -> TrainConfig:
    result = run("--data", "x", "--out", "y", "--dry-run", *options)
    assert result.exit_code == 0, result.output
    return TrainConfig.from_dict(json.loads(result.output))


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_papers_networks_are_trained_as_in_the_paper(name: str) -> None:
    config = settings("--network", name)
    assert config.network == CONFIGS[name]
    assert (config.objective, config.decay, config.ema_decay) == ("simple", 0.0, 0.9999)
    assert (config.batch, config.lr) == ((128, 2e-4) if name == "ddpm-cifar10" else (64, 2e-5))


def test_the_codecs_network_is_the_default() -> None:
    default = TrainConfig(precision=fast_precision("cpu"))
    assert settings() == default
    assert settings("--network", "codec", "--objective", "coding") == default


def test_what_is_given_overrides_the_papers_settings() -> None:
    config = settings(
        "--network", "ddpm-cifar10", "--objective", "bound", "--variance", "learned",
        "--prediction", "mean", "--classes", 10, "--batch", 32, "--warmup", 7,
    )  # fmt: skip
    assert isinstance(config.network, UNetConfig)
    assert (config.network.out_channels, config.network.classes) == (6, 10)
    assert (config.objective, config.prediction, config.variance) == ("bound", "mean", "learned")
    assert (config.batch, config.warmup, config.steps) == (32, 7, 800_000)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ("--network codec --objective simple", "for the cost of coding"),
        ("--network codec --prediction mean", "for the cost of coding"),
        ("--network codec --variance beta", "for a U-Net"),
        ("--classes 10", "for a U-Net"),
        ("--network ddpm-cifar10 --objective coding", "only the codec's network"),
        ("--network ddpm-cifar10 --variance learned", "nothing of Σ"),
        ("--network ddpm-cifar10 --channels 8,8,8", "codec's network"),
        ("--network ddpm-cifar10 --emphasis 1", "codec's network"),
        ("--network ddpm-256 --crop 40", "multiple of 32"),
        ("--network ddpm-cifar10 --classes 3 --reductions 1,2", "not reduced"),
        ("--network ddpm-13", "not one of codec"),
        ("--workers 2 --reductions 1,2", "pictures in memory"),
        ("--workers 2 --subsampled", "pictures in memory"),
        ("--init cifar10 --network ddpm-cifar10", "--init gives"),
        ("--init cifar10 --prediction mean", "--init says"),
        ("--resume --network ddpm-cifar10", "takes its settings from the run"),
    ],
)
def test_options_that_contradict_each_other_are_wrong_usage(options: str, part: str) -> None:
    result = run("--data", "x", "--out", "y", "--dry-run", *options.split())
    assert result.exit_code == 2
    assert len(result.output.splitlines()) == 1 and part in result.output


@pytest.mark.parametrize("content", ["{", "[]", '{"channels": 7}', '{"width": 3}'])
def test_a_shape_that_is_none_is_wrong_usage(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    result = run("--data", "x", "--out", "y", "--dry-run", "--network", tmp_path / "a.json")
    assert result.exit_code == 2
    assert len(result.output.splitlines()) == 1 and "not the shape of a U-Net" in result.output


def test_a_u_net_is_trained_continued_and_begun_with(base: list[object], tmp_path: Path) -> None:
    options = ["--network", tmp_path / "shape.json", "--crop", 8, "--batch", 2, "--classes", 2]
    result = run(*base, *options, "--steps", 2, "--name", "mine")
    assert result.exit_code == 0, result.output
    assert read_config(tmp_path / "run").name == "mine"
    assert run(*base, "--resume", "--steps", 3).exit_code == 0
    other = ["--data", tmp_path / "data.npz", "--out", tmp_path / "b"]
    init = ["--init", tmp_path / "run", "--crop", 8, "--batch", 2, "--steps", 1]
    result = run(*other, *init)
    assert result.exit_code == 0, result.output
    network = read_process(tmp_path / "b").network
    assert network.config.classes == 2  # type: ignore[attr-defined]


def test_errors_of_a_run_are_one_line(base: list[object], tmp_path: Path) -> None:
    options = ["--network", tmp_path / "shape.json", "--crop", 8, "--batch", 2, "--steps", 1]
    for more, part in [
        (["--accumulate", 3], "cannot be split"),
        (["--classes", 1], "picture 1 has class 1"),
        (["--workers", 1], "without --workers"),
        (["--init", tmp_path], "--init gives"),
    ]:
        result = run(*base, *options, *more)
        assert result.exit_code in (1, 2)
        assert part in result.output.splitlines()[-1]
        assert "Traceback" not in result.output
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


@pytest.mark.parametrize("features", [(), ("avx512vnni",), ("avx512bf16",), ("bf16", "neon")])
def test_bfloat16_is_for_machines_that_have_instructions_for_it(
    features: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffcodec.train.settings.target_has", features.__contains__)
    expected = "bf16" if {"avx512bf16", "bf16"} & {*features} else "float32"
    assert settings().precision == expected
    assert settings("--precision", "bf16").precision == "bf16"
