"""Training: exact resumption, safe checkpoints, a falling loss."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import round_trip
from numpy.typing import NDArray
from PIL import Image

from diffcodec.data import CropSampler, subsampled
from diffcodec.errors import DataError
from diffcodec.model import read_model
from diffcodec.network import NetworkConfig, UnitConv2d
from diffcodec.objective import bits_per_dim
from diffcodec.schedule import Schedule
from diffcodec.train import Trainer, train
from diffcodec.train.checkpoint import CHECKPOINT, LOG, PLATEAU, read_checkpoint
from diffcodec.train.settings import TrainConfig, decay_start, lr_factor
from diffcodec.train.tasks import make_optimizers

U8 = NDArray[np.uint8]
NETWORK = NetworkConfig(channels=(8, 8, 8), blocks=(1, 1, 1), embedding=16)
CONFIG = TrainConfig(network=NETWORK, steps=8, batch=4, crop=16, warmup=2, holdout=2, seed=3)


def silent(_line: str) -> None:
    pass


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[dict[int, object]]:
    """A run catches SIGINT and SIGTERM; no test may inherit that from another."""
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    yield dict(before)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def images() -> list[U8]:
    """Smooth colours with a little texture: there is something to learn at once."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:20, :24]
    pictures = []
    for _ in range(12):
        slope = rng.uniform(-5, 5, (2, 3))
        plane = rng.uniform(60, 190, 3) + y[..., None] * slope[0] + x[..., None] * slope[1]
        texture = rng.normal(0, 3, (20, 24, 1))
        pictures.append(np.clip(plane + texture, 0, 255).astype(np.uint8))
    return pictures


@pytest.fixture(scope="module")
def folder(images: list[U8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures")
    for number, pixels in enumerate(images):
        Image.fromarray(pixels).save(path / f"{number:02d}.png")
    return path


def assert_equal_states(first: object, second: object) -> None:
    """Bit for bit, through dicts and lists."""
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert isinstance(second, torch.Tensor)
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert isinstance(second, dict)
        assert first.keys() == second.keys()
        for key in first:
            assert_equal_states(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert isinstance(second, list | tuple)
        for a, b in zip(first, second, strict=True):
            assert_equal_states(a, b)
    else:
        assert first == second


def test_subsampled_pictures_are_learnt_beside_the_others(images: list[U8]) -> None:
    trainer = Trainer(replace(CONFIG, subsampled=True), Schedule(), images, "cpu")
    learnt, held_out = trainer.batches, trainer.held_out
    assert isinstance(learnt, CropSampler) and isinstance(held_out, CropSampler)
    for number, picture in enumerate(images[:-2]):
        np.testing.assert_array_equal(learnt.images[number], picture)
        np.testing.assert_array_equal(learnt.images[10 + number], subsampled(picture))
    assert len(learnt.images) == 20 and len(held_out.images) == 2


def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(folder: Path, tmp_path: Path) -> None:
    whole = train([folder], tmp_path / "whole", CONFIG, report=silent)
    parts = tmp_path / "parts"
    train([folder], parts, CONFIG, until_step=3, report=silent)
    train([folder], parts, TrainConfig(), resume=True, until_step=4, report=silent)
    resumed = train([folder], parts, TrainConfig(), resume=True, report=silent)
    assert resumed.step == whole.step == 8
    assert_equal_states(resumed.state_dict(), whole.state_dict())
    assert_equal_states(read_checkpoint(parts), read_checkpoint(tmp_path / "whole"))
    weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("whole", "parts")]
    assert weights[0] == weights[1]


def test_an_interrupted_run_ends_on_a_whole_checkpoint_and_resumes_exactly(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train([folder], tmp_path / "whole", CONFIG, report=silent)
    original = Trainer.train_step

    def interrupt_after_3(self: Trainer) -> object:
        loss = original(self)
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    parts = tmp_path / "parts"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupt_after_3)
        assert train([folder], parts, CONFIG, report=silent).step == 3
    assert read_checkpoint(parts)["step"] == 3
    resumed = train([folder], parts, CONFIG, resume=True, report=silent)
    assert_equal_states(resumed.state_dict(), whole.state_dict())


def test_a_run_gives_the_signals_back(
    folder: Path, tmp_path: Path, signal_handlers: dict[int, object]
) -> None:
    """After training in a longer program, Ctrl-C must interrupt that program again."""
    train([folder], tmp_path, CONFIG, until_step=1, report=silent)
    assert {number: signal.getsignal(number) for number in signal_handlers} == signal_handlers


def test_the_seed_decides_a_run(images: list[U8]) -> None:
    def weights(seed: int) -> torch.Tensor:
        trainer = Trainer(replace(CONFIG, seed=seed), Schedule(), images, "cpu")
        for _ in range(2):
            trainer.train_step()
        return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])

    torch.manual_seed(12345)  # what happened before must not matter
    first = weights(1)
    torch.rand(7)
    assert torch.equal(first, weights(1))
    assert not torch.equal(first, weights(2))


def test_a_run_leaves_a_model_that_codes_pictures(
    folder: Path, images: list[U8], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    trainer = train([folder], out, CONFIG, name="mine", report=silent)
    model = read_model(out)
    assert model.name == "mine"
    assert model.schedule == trainer.schedule
    assert model.config.network == NETWORK
    round_trip(images[0], model)


def test_the_checkpoint_loads_without_running_code(folder: Path, tmp_path: Path) -> None:
    train([folder], tmp_path, CONFIG, until_step=1, report=silent)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert state["step"] == 1
    assert TrainConfig.from_dict(state["config"]) == CONFIG
    assert Schedule(**state["schedule"]) == Schedule()


def test_the_loss_falls(images: list[U8]) -> None:
    """60 steps from scratch: by 15 % at least, several times the scatter of ten batches."""
    config = replace(CONFIG, steps=60, batch=8, warmup=5, lr=3e-3)
    trainer = Trainer(config, Schedule(), images, "cpu")
    losses = [float(bits_per_dim(trainer.train_step())) for _ in range(60)]
    assert np.all(np.isfinite(losses))
    assert np.mean(losses[-10:]) < 0.85 * np.mean(losses[:5])


def test_held_out_pictures_are_measured_and_logged(folder: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    report: Callable[[str], None] = lines.append
    trainer = train([folder], tmp_path, CONFIG, until_step=2, report=report)
    assert trainer.held_out is not None and len(trainer.held_out.images) == 2
    loss = trainer.validate()
    assert loss is not None
    row = json.loads((tmp_path / LOG).read_text().splitlines()[-1])
    assert (row["step"], row["kind"]) == (2, "held out")
    assert row["final"] == pytest.approx(float(loss.final))
    assert any("held out" in line for line in lines)


def test_without_held_out_pictures_nothing_is_measured(images: list[U8]) -> None:
    trainer = Trainer(replace(CONFIG, holdout=0), Schedule(), images, "cpu")
    assert trainer.validate() is None


def test_an_existing_run_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    train([folder], tmp_path, CONFIG, until_step=1, report=silent)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(DataError, match="already holds a run"):
        train([folder], tmp_path, CONFIG, report=silent)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_resuming_needs_a_readable_checkpoint(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no checkpoint"):
        train([folder], tmp_path, CONFIG, resume=True, report=silent)
    (tmp_path / CHECKPOINT).write_bytes(b"damaged")
    with pytest.raises(DataError, match="not a readable checkpoint"):
        train([folder], tmp_path, CONFIG, resume=True, report=silent)


@pytest.mark.parametrize("holdout", [12, 100])
def test_holding_out_everything_is_refused(images: list[U8], holdout: int) -> None:
    with pytest.raises(DataError, match="hold out"):
        Trainer(replace(CONFIG, holdout=holdout), Schedule(), images, "cpu")


def test_every_parameter_has_one_optimizer(images: list[U8]) -> None:
    model = Trainer(CONFIG, Schedule(), images, "cpu").model
    optimizers = make_optimizers(model, CONFIG)
    owned = [[p for group in o.param_groups for p in group["params"]] for o in optimizers]
    assert sorted(id(p) for own in owned for p in own) == sorted(map(id, model.parameters()))
    assert all(p.ndim == 2 for p in owned[0])
    assert all(p.ndim == 1 for p in owned[1])


def test_unit_matrices_stay_unit_matrices(images: list[U8]) -> None:
    """And the zero gains they begin with move, so that they can learn."""
    trainer = Trainer(CONFIG, Schedule(), images, "cpu")
    inner = [m for m in trainer.model.modules() if isinstance(m, UnitConv2d)]
    silent = [m for m in inner if not m.gain.any()]
    before = [m.weight.detach().clone() for m in inner]
    assert silent
    for _ in range(3):
        trainer.train_step()
    for module, weight in zip(inner, before, strict=True):
        torch.testing.assert_close(module.weight.norm(dim=1), torch.ones(len(module.weight)))
        assert not torch.equal(module.weight, weight)
    assert all(m.gain.any() for m in silent)


def test_the_learning_rate_warms_up_stays_and_ends_at_zero() -> None:
    config = replace(CONFIG, steps=100, warmup=10, decay=0.4)
    factors = [lr_factor(step, config) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[:10] == sorted(factors[:10])
    start = decay_start(config)
    assert start == 60
    assert factors[9 : start + 1] == pytest.approx([1.0] * (start - 8))
    assert factors[start + 20] == pytest.approx(0.5)
    assert factors[100] == 0.0


def test_a_run_made_longer_is_the_longer_run(folder: Path, tmp_path: Path) -> None:
    """It goes back to where the rates began to fall, so nothing of the short end remains."""
    short, long = tmp_path / "short", tmp_path / "long"
    train([folder], short, replace(CONFIG, steps=5), report=silent)
    train([folder], short, CONFIG, resume=True, lengthen=9, report=silent)
    train([folder], long, replace(CONFIG, steps=9), report=silent)
    for name in (CHECKPOINT, PLATEAU):
        ours, theirs = read_checkpoint(short, name), read_checkpoint(long, name)
        assert ours["step"] == theirs["step"]
        for key, value in theirs["ema"].items():
            assert torch.equal(ours["ema"][key], value), key


def test_a_run_is_not_made_shorter(folder: Path, tmp_path: Path) -> None:
    train([folder], tmp_path, replace(CONFIG, steps=10), report=silent)
    with pytest.raises(DataError, match="would not make this run longer"):
        train([folder], tmp_path, CONFIG, resume=True, lengthen=9, report=silent)


def test_a_run_can_begin_with_a_trained_model(folder: Path, tmp_path: Path) -> None:
    train([folder], tmp_path / "a", CONFIG, report=silent)
    first = read_model(tmp_path / "a")
    still = replace(CONFIG, network=NetworkConfig(), lr_scale=1e-9, steps=1)
    begin = first.config, first.network.state_dict()
    run = train([folder], tmp_path / "b", still, init=begin, report=silent)
    assert run.config.network == NETWORK
    for key, value in first.network.state_dict().items():
        torch.testing.assert_close(run.ema.state_dict()[key], value, rtol=1e-3, atol=1e-4)


def test_what_it_began_with_is_measured_first(folder: Path, tmp_path: Path) -> None:
    """Before the first step, and not again by a run that goes on."""
    train([folder], tmp_path / "a", CONFIG, report=silent)
    first = read_model(tmp_path / "a")
    begin, lines = (first.config, first.network.state_dict()), []
    report: Callable[[str], None] = lines.append
    out = tmp_path / "b"
    config = replace(CONFIG, lr_scale=3.0)
    run = train([folder], out, config, init=begin, until_step=1, report=report)
    run.ema.load_state_dict(begin[1])
    loss = run.validate()
    assert loss is not None
    rows = [json.loads(line) for line in (out / LOG).read_text().splitlines()]
    held_out = [(row["step"], row["final"]) for row in rows if row["kind"] == "held out"]
    assert held_out[0] == (0, pytest.approx(float(loss.final)))
    assert [step for step, _ in held_out] == [0, 1]
    assert lines[0].startswith("held out") and lines[0].endswith("before the first step")
    train([folder], out, config, resume=True, until_step=2, report=report)
    assert sum("before the first step" in line for line in lines) == 1


def test_settings_survive_json() -> None:
    assert TrainConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG


def test_a_gradient_that_is_not_finite_leaves_the_weights(
    images: list[U8], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(CONFIG, Schedule(), images, "cpu")
    before = [p.detach().clone() for p in trainer.model.parameters()]
    original = Trainer.loss

    def poisoned(self: Trainer, *args: object, training: bool) -> object:
        loss = original(self, *args, training)  # type: ignore[arg-type]
        return loss._replace(steps=loss.steps * float("nan"))

    monkeypatch.setattr(Trainer, "loss", poisoned)
    trainer.train_step()
    assert trainer.step == 1
    for old, new in zip(before, trainer.model.parameters(), strict=True):
        assert torch.equal(old, new)
