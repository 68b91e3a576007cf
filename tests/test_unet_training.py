"""Training the paper's U-Nets: settings, resumption, parts of a batch, several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from diffcodec.ddpm.store import read_process
from diffcodec.ddpm.unet import UNet, UNetConfig
from diffcodec.errors import DataError, ModelError
from diffcodec.model import read_config
from diffcodec.model_check import read_tensors
from diffcodec.network import NetworkConfig
from diffcodec.train import Trainer, train
from diffcodec.train.checkpoint import CHECKPOINT, LOG, read_checkpoint, save_checkpoint
from diffcodec.train.distributed import bounds
from diffcodec.train.settings import PAPER_SCHEDULE, TrainConfig, lr_factor, paper_settings
from diffcodec.train.tasks import DdpmLoss, Part, draw

U8 = NDArray[np.uint8]
SHAPE = UNetConfig(channels=8, multipliers=(1, 2), blocks=1, groups=4, dropout=0.0)
CONFIG = TrainConfig(
    network=SHAPE, objective="simple", steps=6, batch=6, crop=8, warmup=1, holdout=2, seed=3,
    lr=1e-3, decay=0.0,
)  # fmt: skip
CODEC = TrainConfig(
    network=NetworkConfig(channels=(8, 8, 8), blocks=(1, 1, 1), embedding=16),
    steps=6, batch=7, crop=8, warmup=1, holdout=0, seed=3,
)  # fmt: skip


def silent(_line: str) -> None:
    pass


@pytest.fixture(scope="module")
def images() -> list[U8]:
    rng = np.random.default_rng(0)
    flat = rng.integers(40, 200, (20, 1, 1, 3)) + rng.normal(0, 6, (20, 10, 12, 3))
    return list(flat.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def data(images: list[U8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pictures.npz"
    np.savez(path, images=np.stack(images), labels=np.arange(20) % 3)
    return path


def weights_of(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def after(config: TrainConfig, images: list[U8], steps: int, **options: object) -> torch.Tensor:
    trainer = Trainer(config, PAPER_SCHEDULE, images, "cpu", **options)  # type: ignore[arg-type]
    for _ in range(steps):
        trainer.train_step()
    return weights_of(trainer)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_resumed_run_is_the_uninterrupted_one(data: Path, tmp_path: Path, dropout: float) -> None:
    config = replace(CONFIG, network=replace(SHAPE, dropout=dropout))
    whole = train([data], tmp_path / "whole", config, report=silent)
    train([data], tmp_path / "parts", config, until_step=2, report=silent)
    torch.rand(3)  # what else happens must not matter
    parts = train([data], tmp_path / "parts", TrainConfig(), resume=True, report=silent)
    assert torch.equal(weights_of(parts), weights_of(whole))
    first, second = ((tmp_path / k / "model.safetensors").read_bytes() for k in ("whole", "parts"))
    assert first == second


def test_dropout_matters_and_the_averaged_weights_have_none(images: list[U8]) -> None:
    config = replace(CONFIG, network=replace(SHAPE, dropout=0.5))
    assert not torch.equal(after(config, images, 2), after(CONFIG, images, 2))
    trainer = Trainer(config, PAPER_SCHEDULE, images, "cpu")
    assert trainer.validate() == trainer.validate()


@pytest.mark.parametrize(
    ("objective", "prediction", "variance"),
    [
        ("simple", "eps", "posterior"),
        ("simple", "mean", "beta"),
        ("bound", "eps", "posterior"),
        ("bound", "mean", "posterior"),
        ("bound", "eps", "learned"),
        ("bound", "mean", "learned"),
    ],
)
def test_the_cells_of_table_2_train_and_leave_a_reverse_process(
    data: Path, tmp_path: Path, objective: str, prediction: str, variance: str
) -> None:
    shape = replace(SHAPE, out_channels=6 if variance == "learned" else 3)
    config = replace(
        CONFIG, network=shape, objective=objective, prediction=prediction, variance=variance
    )
    train([data], tmp_path, replace(config, steps=2), report=silent)
    process = read_process(tmp_path)
    assert (process.prediction, process.variance) == (prediction, variance)
    assert process.schedule == PAPER_SCHEDULE
    a = torch.tensor([700])
    p = process(torch.randn(1, 3, 8, 8), a, a - 1)
    assert p.mean.isfinite().all()
    row = json.loads((tmp_path / LOG).read_text().splitlines()[-1])
    assert row["kind"] == "held out" and np.isfinite(row["loss"])


def test_the_simple_loss_falls(images: list[U8]) -> None:
    trainer = Trainer(replace(CONFIG, steps=50, batch=8, lr=8e-3), PAPER_SCHEDULE, images, "cpu")
    losses = [float(trainer.train_step()[0]) for _ in range(50)]
    assert np.mean(losses[:5]) == pytest.approx(1.0, abs=0.15)  # of a network that says nothing
    assert np.mean(losses[-20:]) < 0.7


@pytest.mark.parametrize(
    "wrong",
    [
        {"objective": "coding"},
        {"variance": "learned"},
        {"objective": "bound", "variance": "learned"},  # three outputs
        {"network": replace(SHAPE, out_channels=6)},
        {"network": NetworkConfig()},
        {"crop": 9},
        {"network": replace(SHAPE, classes=2), "reductions": (1, 2)},
        {"network": replace(SHAPE, classes=2), "subsampled": True},
    ],
)
def test_settings_that_contradict_each_other_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        replace(CONFIG, **wrong)  # type: ignore[arg-type]


def test_settings_survive_json_and_older_checkpoints() -> None:
    assert TrainConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG
    older = CODEC.to_dict()
    for key in ("objective", "prediction", "variance", "label_dropout", "precision"):
        del older[key]
    assert TrainConfig.from_dict(older) == CODEC


def test_the_papers_settings() -> None:
    config = TrainConfig(**paper_settings("ddpm-cifar10"))
    assert (config.batch, config.lr, config.ema_decay, config.clip) == (128, 2e-4, 0.9999, 1.0)
    assert [lr_factor(step, config) for step in (0, 2499, 4999, 799_999)] == [2e-4, 0.5, 1.0, 1.0]
    assert TrainConfig(**paper_settings("ddpm-256")).lr == 2e-5


def test_outputs_are_not_rounded_to_bfloat16() -> None:
    network = UNet(SHAPE)
    torch.nn.init.normal_(network.conv_out.weight)  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16):
        out = network(torch.randn(2, 3, 8, 8), torch.tensor([1, 500]))
    assert out.dtype == torch.float32
    assert not torch.equal(out, out.bfloat16().float())


# -- parts of a batch --------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, objective="bound"), CODEC])
@pytest.mark.parametrize("parts", [2, 3])
def test_a_batch_in_parts_is_the_whole_batch(
    images: list[U8], config: TrainConfig, parts: int
) -> None:
    config = replace(config, precision="float32", lr=2e-4, lr_matrix=2e-4, lr_gain=2e-4)
    whole, split = after(config, images, 3), after(config, images, 3, accumulate=parts)
    start = after(config, images, 0)
    assert (whole - start).abs().max() > 3e-4
    # Muon orthogonalises in bfloat16, where the last bits of a gradient count for more.
    tolerance = 1e-4 if config.objective == "coding" else 1e-5
    torch.testing.assert_close(split, whole, rtol=0, atol=tolerance)


def test_what_is_drawn_for_a_picture_depends_on_its_place_only() -> None:
    images, labels = torch.zeros(7, 3, 4, 4, dtype=torch.uint8), torch.arange(7)
    whole = Part(images, labels, 0, 7)
    drawn = draw(whole, (1, 5), 1000, 0.5)
    for number in range(3):
        start, stop = bounds(7, 3, number)
        part = draw(whole.between(start, stop), (1, 5), 1000, 0.5)
        for mine, all_of_them in zip(part, drawn, strict=True):
            assert torch.equal(mine, all_of_them[start:stop])
    assert not torch.equal(drawn.noise, draw(whole, (1, 6), 1000, 0.5).noise)
    assert not torch.equal(drawn.noise, draw(whole, (2, 5), 1000, 0.5).noise)


def test_timesteps_are_uniform_and_noise_is_normal() -> None:
    images = torch.zeros(2000, 3, 2, 2, dtype=torch.uint8)
    drawn = draw(Part(images, torch.zeros(2000), 0, 2000), (9, 9), 4, 0.1)
    counts = torch.bincount(drawn.t, minlength=5)
    assert counts[0] == 0 and len(counts) == 5
    assert (counts[1:] - 500).abs().max() < 5 * 20
    assert abs(float(drawn.hidden.float().mean()) - 0.1) < 5 * 0.007
    assert abs(float(drawn.noise.mean())) < 5 / 24000**0.5
    assert abs(float(drawn.noise.std()) - 1) < 0.03


def test_a_batch_smaller_than_its_parts_is_refused(images: list[U8]) -> None:
    with pytest.raises(DataError, match="cannot be split"):
        Trainer(CONFIG, PAPER_SCHEDULE, images, "cpu", accumulate=7)


def command(*options: object, processes: int = 0) -> list[str]:
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    launcher += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    start = [sys.executable, *(launcher if processes else []), "-m", "diffcodec.train"]
    return [*start, *map(str, options)]


def test_two_processes_learn_what_one_does(data: Path, tmp_path: Path) -> None:
    """And the run goes on with one process."""
    shape = tmp_path / "shape.json"
    shape.write_text(json.dumps(SHAPE.to_dict()))
    options = ["--data", data, "--out", tmp_path / "two", "--network", shape, "--crop", 8]
    options += ["--batch", 6, "--steps", 4, "--warmup", 1, "--seed", 3, "--precision", "float32"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command(*options, "--accumulate", 2, "--holdout", 2, processes=2),
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("held out") == 1  # only one of them speaks and writes
    config = TrainConfig.from_dict(read_checkpoint(tmp_path / "two")["config"])
    one = train([data], tmp_path / "one", config, report=silent)
    two = read_checkpoint(tmp_path / "two")
    assert two["step"] == 4
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(two["model"][name], value, rtol=0, atol=1e-5)
    longer = [
        train([data], tmp_path / k, config, resume=True, lengthen=6, report=silent)
        for k in ("one", "two")
    ]
    torch.testing.assert_close(*map(weights_of, longer), rtol=0, atol=2e-5)


# -- classes -----------------------------------------------------------------------------------


def test_classes_are_learnt_and_dropped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    original = Trainer.loss

    def watched(self: Trainer, model: object, part: Part, *args: object, **more: object) -> object:
        seen.extend(part.labels.tolist())
        return original(self, model, part, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "loss", watched)
    config = replace(CONFIG, network=replace(SHAPE, classes=3), label_dropout=0.5)
    start = Trainer(config, PAPER_SCHEDULE, [np.zeros((8, 8, 3), np.uint8)] * 3, "cpu",
                    labels=[0, 1, 2]).model.state_dict()["labels.weight"]  # fmt: skip
    trainer = train([data], tmp_path, config, report=silent)
    moved = (trainer.model.state_dict()["labels.weight"] - start).abs().amax(dim=1)
    assert set(seen) == {0, 1, 2}
    assert (moved > 0).all()  # of the three classes, and of no class


@pytest.mark.parametrize("labels", [None, [0, 1, 3] * 7, [-1] * 20])
def test_pictures_without_a_class_are_refused(
    images: list[U8], labels: Sequence[int] | None
) -> None:
    config = replace(CONFIG, network=replace(SHAPE, classes=3))
    with pytest.raises(DataError, match=r"picture 0 has no class|class 3"):
        Trainer(config, PAPER_SCHEDULE, images, "cpu", labels=labels)


# -- beginning and ending ----------------------------------------------------------------------


def test_a_run_begins_with_weights_that_fit(data: Path, tmp_path: Path) -> None:
    train([data], tmp_path / "a", CONFIG, report=silent)
    begin = read_config(tmp_path / "a"), read_tensors(tmp_path / "a" / "model.safetensors")
    still = replace(CONFIG, lr_scale=1e-9, steps=1)
    run = train([data], tmp_path / "b", still, init=begin, report=silent)
    for name, value in begin[1].items():
        torch.testing.assert_close(run.ema.state_dict()[name], value, rtol=0, atol=1e-6)
    wide = replace(begin[0], network=replace(SHAPE, channels=16))
    with pytest.raises(ModelError, match=r"time_in.weight has shape \[32, 8\]"):
        train([data], tmp_path / "c", CONFIG, init=(wide, begin[1]), report=silent)
    assert not (tmp_path / "c" / CHECKPOINT).exists()


def test_a_checkpoint_that_does_not_fit_names_the_tensor(data: Path, tmp_path: Path) -> None:
    train([data], tmp_path, CONFIG, until_step=1, report=silent)
    state = read_checkpoint(tmp_path)
    state["model"]["conv_in.weight"] = state["model"]["conv_in.weight"][:, :1]
    save_checkpoint(state, tmp_path / CHECKPOINT)
    with pytest.raises(ModelError, match=r"conv_in.weight has shape \[8, 1, 3, 3\]"):
        train([data], tmp_path, CONFIG, resume=True, report=silent)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    torch.save({"step": Malicious(victim)}, tmp_path / CHECKPOINT)
    with pytest.raises(DataError, match="refused"):
        read_checkpoint(tmp_path)
    assert not victim.exists()
    torch.save({"step": 1}, tmp_path / CHECKPOINT)
    with pytest.raises(DataError, match="not a checkpoint of a training run"):
        read_checkpoint(tmp_path)


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs limits on the size of files")
def test_a_full_disk_leaves_the_checkpoint_before(data: Path, tmp_path: Path) -> None:
    import resource

    whole = train([data], tmp_path / "whole", CONFIG, report=silent)
    out = tmp_path / "run"
    train([data], out, CONFIG, until_step=2, report=silent)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(DataError, match=r"checkpoint.pt: cannot be written"):
            train([data], out, CONFIG, resume=True, report=silent)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    resumed = train([data], out, CONFIG, resume=True, report=silent)
    assert torch.equal(weights_of(resumed), weights_of(whole))


def test_losses_have_one_term(images: list[U8]) -> None:
    loss = Trainer(CONFIG, PAPER_SCHEDULE, images, "cpu").train_step()
    assert isinstance(loss, DdpmLoss) and loss.loss.ndim == 0
