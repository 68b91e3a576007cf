"""Models of several networks: each answers at its own timesteps, in training and in files."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import DATA, TINY, load_picture, write_tiny_model
from hypothesis import given
from hypothesis import strategies as st

import diffcodec
from diffcodec.calibrate import exact_tensors
from diffcodec.cli import main
from diffcodec.errors import DataError, ModelError
from diffcodec.experts import check_floors, expert_at, join, split
from diffcodec.model import WEIGHTS, Model, ModelConfig, join_models, read_config, read_model
from diffcodec.model_check import read_tensors
from diffcodec.network import Experts
from diffcodec.objective import Loss, trained_range
from diffcodec.schedule import Schedule
from diffcodec.train import Trainer, train
from diffcodec.train.settings import TrainConfig

FLOORS = (40, 4, 1)
TOOL = Path(__file__).parent.parent / "tools" / "reference_decoder.py"


@pytest.fixture(scope="module")
def singles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("singles")
    for number in range(3):
        write_tiny_model(folder / str(number), seed=40 + number)
    return [folder / str(number) for number in range(3)]


@pytest.fixture(scope="module")
def joined(singles: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three as one model with integers, made by the commands."""
    folder = tmp_path_factory.mktemp("joined") / "three"
    parts = [*map(str, singles), "--floors", "40,4,1", "-o", str(folder), "--name", "three"]
    made = CliRunner().invoke(main, ["join", *parts])
    assert made.exit_code == 0 and "of 3 networks" in made.output
    options = ["--data", str(DATA / "budgerigar-32.png"), "--images", "2", "--crop", "16"]
    assert CliRunner().invoke(main, ["quantize", str(folder), *options]).exit_code == 0
    return folder


@pytest.fixture(scope="module")
def model(joined: Path) -> Model:
    return read_model(joined)


@given(st.sets(st.integers(2, 1000), max_size=8), st.integers(1, 1000))
def test_each_timestep_has_the_network_with_the_highest_floor_below(rest: set[int], t: int) -> None:
    floors = (*sorted(rest, reverse=True), 1)
    check_floors(floors)
    assert floors[expert_at(floors, t)] == max(f for f in floors if f <= t)


@pytest.mark.parametrize("floors", [(), (5,), (1, 1), (4, 5, 1), (2, 0), (True,), ("2", 1)])
def test_floors_fall_to_one(floors: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="fall to 1"):
        check_floors(floors)


def test_splitting_undoes_joining() -> None:
    parts = [{"a": torch.ones(k + 1), "b.c": torch.zeros(1)} for k in range(3)]
    for count in (1, 3):
        again = split(join(parts[:count]), count)
        assert [list(p) for p in again] == [list(p) for p in parts[:count]]
        assert all(torch.equal(x["a"], y["a"]) for x, y in zip(again, parts, strict=False))
    for name in ("a", "3.a", "-1.a", "00.a"):
        with pytest.raises(ModelError, match="belongs to none of the 3"):
            split({name: torch.ones(1)}, 3)


def test_every_picture_of_a_batch_gets_its_own_network(model: Model, singles: list[Path]) -> None:
    assert isinstance(model.network, Experts)
    times = [1, 3, 4, 39, 40, 1000, 2, 41]
    log_snr = torch.from_numpy(model.schedule.log_snr[times]).float()
    x = torch.randn((len(times), 3, 8, 8), generator=torch.Generator().manual_seed(1))
    found = model.network(x, log_snr)
    for row, t in enumerate(times):
        single = read_model(singles[expert_at(FLOORS, t)]).network
        expected = single(x[row : row + 1], log_snr[row : row + 1])
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours[row : row + 1], theirs)


def test_the_integers_of_each_timestep_are_its_own_network_s(
    model: Model, singles: list[Path]
) -> None:
    assert model.exact and model.name == "three"
    rng = np.random.default_rng(1)
    x_0 = load_picture("budgerigar-32.png").transpose(2, 0, 1) / 127.5 - 1.0
    for t in model.plan.timesteps:
        x_t = model.schedule.q_sample(x_0, t, rng.standard_normal(x_0.shape))
        state = torch.from_numpy(np.rint(x_t * (1 << 16)).astype(np.int32))
        floats = read_model(singles[expert_at(FLOORS, t)])
        near, far = model.evaluate(state, t).eps, floats.evaluate(state, t).eps
        others = [read_model(s).evaluate(state, t).eps for s in singles]
        distance = [float((near - other).double().abs().mean()) for other in others]
        assert int(np.argmin(distance)) == expert_at(FLOORS, t)
        assert float((near - far).double().abs().mean()) < 0.05 * (1 << 14)


def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference_decoder_of_experts", TOOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_files_decode_here_and_by_the_reference_decoder(model: Model, joined: Path) -> None:
    pixels = load_picture("budgerigar-32.png")[:19, :26]
    content = diffcodec.encode(pixels, model=model, effort=1)
    decoder = reference()
    network = decoder.Network(joined)
    assert network.fingerprint == model.fingerprint
    for size in (len(content), len(content) // 2, len(content) // 5):
        ours = diffcodec.decode(content[:size], model=model)
        theirs = decoder.decode(content[:size], network)
        np.testing.assert_array_equal(ours.pixels, theirs.pixels)
        assert (ours.t, ours.exact) == (theirs.t, theirs.exact)
    np.testing.assert_array_equal(diffcodec.decode(content, model=model).pixels, pixels)


def test_the_floors_are_part_of_the_fingerprint(joined: Path) -> None:
    config, weights = read_config(joined), read_tensors(joined / WEIGHTS)
    other = replace(config, experts=(39, 4, 1))
    assert Model(config, weights).fingerprint != Model(other, weights).fingerprint


def test_a_plan_without_use_for_a_network_leaves_it_out(joined: Path) -> None:
    config, weights = read_config(joined), read_tensors(joined / WEIGHTS)
    bird = load_picture("budgerigar-32.png").transpose(2, 0, 1)[None].copy()
    idle = Model(replace(config, experts=(900, 4, 1)), weights)
    exact = Model(idle.config, weights, exact_tensors(idle, bird, seed=0))
    exact.check_plan(exact.plan)


def test_what_does_not_go_together_is_refused_in_one_line(
    singles: list[Path], joined: Path, tmp_path: Path
) -> None:
    write_tiny_model(tmp_path / "other", seed=3, schedule=Schedule(beta_end=0.03))
    for folders, floors, says in (
        (singles, "40,1", "3 networks need as many"),
        (singles, "4,40,1", "fall to 1"),
        ([joined, singles[0]], "4,1", "not one network"),
        ([tmp_path / "other", singles[0]], "4,1", "another shape or schedule"),
        (singles[:2], "2000,1", "no timestep 2000"),
    ):
        out = tmp_path / "out"
        options = [*map(str, folders), "--floors", floors, "-o", str(out)]
        done = CliRunner().invoke(main, ["join", *options])
        assert done.exit_code == 1 and not out.exists()
        assert says in done.stderr and done.stderr.count("\n") == 1


def test_a_folder_of_experts_must_be_whole(joined: Path) -> None:
    config, weights = read_config(joined), read_tensors(joined / WEIGHTS)
    exact = read_tensors(joined / "exact.safetensors")
    less = {k: v for k, v in weights.items() if not k.startswith("2.")}
    with pytest.raises(ModelError, match="do not fit"):
        Model(config, less)
    with pytest.raises(ModelError, match="belongs to none"):
        Model(config, weights, exact | {"stem.weight": exact["0.stem.weight"]})
    missing = {k: v for k, v in exact.items() if k != "1.timesteps"}
    with pytest.raises(ModelError, match="timesteps"):
        Model(config, weights, missing)
    with pytest.raises(ValueError, match="fall to 1"):
        ModelConfig.from_dict({**_values(config), "experts": [3, 7, 1]})


def _values(config: ModelConfig) -> dict[str, object]:
    schedule = config.schedule
    return {
        "name": "x",
        "network": TINY.to_dict(),
        "schedule": {"timesteps": schedule.timesteps, "beta_start": 1e-4, "beta_end": 0.02},
    }


CONFIG = TrainConfig(network=TINY, steps=2, batch=4, crop=16, warmup=1, holdout=2, seed=3)


def pictures() -> list[np.ndarray]:
    bird = load_picture("budgerigar-32.png")
    return [bird[8 * k : 8 * k + 16, 4 * k : 4 * k + 16] for k in range(3)] * 2


@pytest.mark.parametrize(
    ("timesteps", "steps", "final"),
    [(None, True, True), ((1, 20), True, True), ((24, 690), True, False), ((1, 1), False, True)],
)
def test_a_network_is_trained_for_its_timesteps(
    timesteps: tuple[int, int] | None, steps: bool, final: bool
) -> None:
    """And for the final layer if t = 1 is one of them, for nothing else if it is the only one."""
    trainer = Trainer(replace(CONFIG, timesteps=timesteps), Schedule(), pictures(), "cpu")
    loss = trainer.train_step()
    assert isinstance(loss, Loss)
    assert (float(loss.steps) > 0.0, float(loss.final) > 0.0) == (steps, final)
    held_out = trainer.validate()
    assert held_out is not None and all(np.isfinite([float(v) for v in held_out]))
    (low, high), _, finals = trained_range(Schedule().log_snr, timesteps)
    if timesteps:
        assert (low, high) == tuple(Schedule().log_snr[[timesteps[1], timesteps[0]]])
    assert finals == ([Schedule().log_snr[1]] if final else [])


def test_most_of_a_batch_is_for_the_final_layer_where_nothing_else_is_trained_much() -> None:
    def share(timesteps: tuple[int, int] | None) -> float:
        return trained_range(Schedule().log_snr, timesteps, (1, 2, 3))[1]

    assert share((4, 690)) == 0.0
    assert share(None) < share((1, 20)) < 0.5 < share((1, 3)) < share((1, 1)) == 1.0


def test_the_costs_of_parts_of_the_chain_add_up(model: Model) -> None:
    """Of two ranges that meet, each with the noise of its own: about that of both together."""
    trainers = [
        Trainer(replace(CONFIG, timesteps=t, batch=64, holdout=0), Schedule(), pictures(), "cpu")
        for t in ((20, 690), (1, 20), (1, 690))
    ]
    with torch.no_grad():
        upper, lower, whole = (
            float(t.loss(t.model, t._next(), (1, 1), training=False).steps) for t in trainers
        )
    assert upper + lower == pytest.approx(whole, rel=0.15)
    assert min(upper, lower) > 0.1 * whole


def test_training_goes_on_with_the_network_of_the_lowest_timestep(
    joined: Path, singles: list[Path], tmp_path: Path
) -> None:
    begin = read_config(joined), read_tensors(joined / WEIGHTS)
    data = [DATA / "budgerigar-32.png", DATA / "kitten-64.png"]
    still = replace(CONFIG, lr_scale=1e-9, steps=1, holdout=0)
    with pytest.raises(ModelError, match="--timesteps"):
        train(data, tmp_path / "none", still, init=begin, report=lambda _: None)
    chosen = replace(still, timesteps=(4, 45))
    train(data, tmp_path / "run", chosen, init=begin, report=lambda _: None)
    trained = read_model(tmp_path / "run")
    assert trained.config.experts == (1,)
    expected = read_model(singles[1]).network.state_dict()
    for key, value in trained.network.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=2e-3, atol=1e-3)
    settings = TrainConfig.from_dict(chosen.to_dict())
    assert settings == chosen


@pytest.mark.parametrize("timesteps", [(0, 3), (5, 4)])
def test_impossible_timesteps_are_refused(timesteps: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="there are none"):
        replace(CONFIG, timesteps=timesteps)


def test_timesteps_beyond_the_chain_are_refused() -> None:
    with pytest.raises(DataError, match="no timestep 1001"):
        Trainer(replace(CONFIG, timesteps=(1, 1001)), Schedule(), pictures(), "cpu")


def test_timesteps_on_the_command_line(tmp_path: Path) -> None:
    run = ["train", "--data", str(DATA), "--out", str(tmp_path / "run"), "--dry-run"]
    for text, expected in (("1-20", [1, 20]), ("1", [1, 1])):
        shown = CliRunner().invoke(main, [*run, "--timesteps", text])
        assert shown.exit_code == 0 and f'"timesteps": {expected}' in shown.output
    for text in ("20-1", "one", "-3", "1-2-3x"):
        assert CliRunner().invoke(main, [*run, "--timesteps", text]).exit_code == 2


def test_models_of_one_network_join_to_themselves(singles: list[Path]) -> None:
    part = read_config(singles[0]), read_tensors(singles[0] / WEIGHTS)
    config, weights = join_models([part], (1,), None)
    assert config == part[0] and weights.keys() == part[1].keys()


def test_a_final_layer_beyond_the_schedule_is_refused() -> None:
    with pytest.raises(DataError, match="no timestep 2000: 1000 in all"):
        Trainer(replace(CONFIG, finals=(1, 2000)), Schedule(), pictures(), "cpu")
