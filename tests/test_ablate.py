"""tools/ablate.py: changes as they are written, and a run over one tiny picture."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import DATA, GOLDEN_MODEL
from PIL import Image

sys.path.insert(0, str(DATA.parent.parent / "tools"))

from ablate import Setup, main, measure

import diffcodec
from diffcodec.channel import segment_head, send_segment
from diffcodec.model import read_model
from diffcodec.plans import PLANS

BASE = Setup(str(GOLDEN_MODEL), "exact", 1)


@pytest.fixture
def folder(bird: np.ndarray, tmp_path: Path) -> Path:
    Image.fromarray(bird[:16, :16]).save(tmp_path / "bird.png")
    return tmp_path


def test_a_change_changes_one_thing() -> None:
    base = Setup()
    assert base.changed("effort=3") == Setup(effort=3)
    assert base.changed("arithmetic=float") == Setup(arithmetic="float")
    assert base.changed("model=photo") == Setup(model="photo")
    assert base.changed("plan=0").coded_plan == PLANS[0]
    eta = base.changed("eta=140").coded_plan
    assert (eta.eta, eta.timesteps) == (140, base.coded_plan.timesteps)
    steps = base.changed("plan=680,40,1").coded_plan
    assert (steps.timesteps, steps.eta, steps.grouped) == ((680, 40, 1), base.coded_plan.eta, 2)


@pytest.mark.parametrize(
    "change", ["effort=10", "eta=x", "plan=99", "plan=1,a", "colour=red", "model=", "arithmetic=x"]
)
def test_what_is_no_change_is_refused(change: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        Setup().changed(change)


def test_heads_tell_scale_and_corrections() -> None:
    d = np.random.default_rng(0).standard_normal(300)
    d[17] = 90.0
    code, _ = send_segment(d, np.zeros(300, dtype=np.int64), 5, eta=134, survivors=16)
    assert segment_head(code, 300)[1] == 1
    d[17] = 0.0
    code, _ = send_segment(2 * d, np.zeros(300, dtype=np.int64), 5, eta=134, survivors=16)
    scale, corrections = segment_head(code, 300)
    assert scale == pytest.approx(8, abs=2)  # four times the variance: eight quarter octaves
    assert corrections == 0
    assert segment_head(b"", 300) == (0, 0)


def test_measures_are_those_of_the_files(bird: np.ndarray) -> None:
    pixels = bird[:16, :16]
    found = measure(BASE, [pixels], rates=())
    content = diffcodec.encode(pixels, model=read_model(GOLDEN_MODEL), effort=1)
    assert found.summary["bytes"] == len(content)
    assert found.summary["exact"] == 1
    assert all(layer.segments == 1 for layer in found.heads.values())


def test_a_run_prints_base_and_changes(folder: Path) -> None:
    found = CliRunner().invoke(
        main,
        f"--data {folder} --model {GOLDEN_MODEL} --effort 1 --by-layer --rates 8 "
        "--change eta=160 --change arithmetic=float",
        catch_exceptions=False,
    )
    assert found.exit_code == 0, found.output
    lines = found.output.splitlines()
    first = {line.split(" | ")[0]: line.split(" | ") for line in lines[2:5]}
    assert list(first) == ["| base", "| eta=160", "| arithmetic=float"]
    assert first["| base"][3] == "+0.00 %"
    assert float(first["| eta=160"][4]) > float(first["| base"][4])  # more rate, more step bits
    assert sum(line.startswith("| 0 ") for line in lines) == 3  # a final layer in every table


def test_of_a_plan_that_only_its_number_names_nothing_changes(folder: Path) -> None:
    """The shipped model's own is mirrored; ``--plan`` gives another base."""
    command = ["--data", str(folder), "--effort", "1", "--rates", "", "--change", "eta=128"]
    found = CliRunner().invoke(main, command)
    assert found.exit_code == 2
    assert "must be one that has a number" in found.output
    found = CliRunner().invoke(main, [*command, "--plan", "4"], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    assert found.output.splitlines()[3].startswith("| eta=128 |")


def test_a_plan_the_model_has_no_constants_for_is_wrong_usage(folder: Path) -> None:
    found = CliRunner().invoke(
        main,
        ["--data", str(folder), "--model", str(GOLDEN_MODEL), "--change", "plan=681,3,1"],
    )
    assert found.exit_code == 2
    assert "timesteps" in found.output
