"""tools/reproduce_paper.py: its measures against what they must be, and a run of no length."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from diffcodec.ddpm.objectives import LOG2E, transition_bits
from diffcodec.ddpm.process import ReverseProcess
from diffcodec.schedule import Schedule

SOURCE = Path(__file__).parents[1] / "tools" / "reproduce_paper.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reproduce_paper", SOURCE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


SCHEDULE = Schedule(timesteps=40, beta_start=1e-4, beta_end=0.3)


def plain(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    return 0.9 * x_t


def test_the_bound_estimate_is_the_sum_of_all_terms(tool: ModuleType) -> None:
    process = ReverseProcess(plain, SCHEDULE, clip=True)
    generator = torch.Generator().manual_seed(3)
    x_0 = torch.randint(0, 256, (96, 3, 2, 2), generator=generator) / 127.5 - 1.0
    estimate, error = tool.bound_bpd(process, x_0, seed=4)
    rest = float(SCHEDULE.one_minus_alphas_cumprod[-1])
    total = 0.5 * LOG2E * (rest + (1 - rest) * x_0.square().mean() - 1 - np.log(rest))
    for t in range(1, 41):
        many, a = x_0.repeat(20, 1, 1, 1), torch.full((20 * 96,), t)
        x_t = process.q_sample(many, a, torch.randn(many.shape, generator=generator))
        total = total + transition_bits(process, process(x_t, a, a - 1), many, x_t, a).mean()
    assert 0 < error < 0.2 * estimate
    assert abs(estimate - float(total)) < 5 * error


def test_the_frechet_distance_of_gaussians(tool: ModuleType) -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(4000, 3)) * [1, 2, 3]
    assert tool.frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert tool.frechet(a, a + np.array([1, 0, 2])) == pytest.approx(5)
    assert tool.frechet(a, 2 * a) == pytest.approx(1 + 4 + 9, rel=0.1)


def test_a_network_that_knows_the_picture_draws_it(tool: ModuleType) -> None:
    picture = torch.linspace(-1, 1, 48).view(1, 3, 4, 4)
    schedule = Schedule(beta_start=1e-4)
    abar = torch.from_numpy(schedule.alphas_cumprod).float()

    def knowing(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        a = abar[t][:, None, None, None]
        return (x_t - a.sqrt() * picture) / (1 - a).sqrt()

    process = ReverseProcess(knowing, schedule, clip=True)
    drawn = tool.ancestral(process, 2, 4, seed=1).astype(int)
    wanted = (127.5 * (picture[0] + 1)).round().permute(1, 2, 0).numpy()
    assert np.abs(drawn - wanted).max() <= 1
    assert tool.rmse_levels(process, picture, 500, seed=1) < 0.1


def test_the_cells_differ_in_what_is_learnt_only(tool: ModuleType) -> None:
    plan = tool.Plan(16, 8, 5, 2, 2, 1)
    configs = [plan.config(cell).to_dict() for cell in tool.CELLS]
    own = ("objective", "prediction", "variance")
    assert len({tuple(c[key] for key in own) for c in configs}) == 6
    for config in configs:
        config["network"].pop("out_channels")
        for key in own:
            config.pop(key)
    assert all(config == configs[0] for config in configs)


def test_a_short_run_makes_the_table_and_is_not_repeated(tool: ModuleType, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("train", "test"):
        images = rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(40) % 4)
    out = tmp_path / "out"
    out.mkdir()
    (out / "plan.json").write_text(json.dumps(asdict(tool.Plan(16, 8, 1, 2, 2, 1))))
    options = ["--budget", "1", "--data", tmp_path / "train.npz", "--test", tmp_path / "test.npz"]
    command = [*map(str, options), "--out", str(out)]
    result = CliRunner().invoke(tool.main, command)
    assert result.exit_code == 0, result.output
    text = (out / "table.md").read_text()
    assert len([line for line in text.splitlines() if line.startswith("| ")]) == 7
    assert "not FID" in text and "16×16" in text
    before = {p: p.stat().st_mtime_ns for p in out.glob("*/*")}
    assert CliRunner().invoke(tool.main, command).exit_code == 0
    assert {p: p.stat().st_mtime_ns for p in out.glob("*/*")} == before
