"""The benchmark: what is measured is kept, what is kept is not measured again, means are means."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DATA

sys.path.insert(0, str(DATA.parent.parent / "tools"))

import benchmark
from benchmark import Part, ideal_curve, rows_of, summary

RATES = (3.0, 500.0)


@pytest.fixture(scope="module")
def part(tiny_folder: Path) -> Part:
    return Part("small", "cifar10", str(tiny_folder), 1, 5, RATES, ideal=1)


@pytest.fixture(scope="module")
def pictures(bird: np.ndarray) -> list[np.ndarray]:
    return [np.ascontiguousarray(bird[:16, :16]), np.ascontiguousarray(bird[16:, 16:])]


@pytest.fixture(scope="module")
def measured(
    part: Part, pictures: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("benchmark")
    return out, rows_of(part, pictures, out)


def test_an_interrupted_run_goes_on(
    part: Part,
    pictures: list[np.ndarray],
    measured: tuple[Path, list[dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, rows = measured
    text = (out / "small.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()] == rows
    (tmp_path / "small.jsonl").write_text(text[: len(text) - 200])  # the second line is not whole
    seen = []

    def measure(part: Part, number: int, pixels: np.ndarray) -> dict[str, Any]:
        seen.append(number)
        return rows[number]

    monkeypatch.setattr(benchmark, "measure", measure)
    assert rows_of(part, pictures, tmp_path) == rows
    assert rows_of(part, pictures, tmp_path) == rows
    assert seen == [1], "only what was not whole, and once"
    other = Part(part.name, part.data, part.model, 2, 5, RATES, ideal=1)
    rows_of(other, pictures, tmp_path)
    assert seen == [1, 0, 1], "another effort is another measurement"


def test_the_summary(part: Part, measured: tuple[Path, list[dict[str, Any]]]) -> None:
    rows = measured[1]
    found = summary(part, rows)
    ours = found["codecs"]["diffcodec"]
    assert found["pictures"] == found["exact"] == 2
    assert found["ideal_pictures"] == 1
    assert ours["bpd"] == pytest.approx(np.mean([row["report"]["bpd"] for row in rows]))
    assert ours["psnr_at_bpp"]["500"] is None, "a rate above the file's has no picture"
    errors = [255**2 / 10 ** (row["report"]["psnr_at_bpp"]["3"] / 10) for row in rows]
    assert ours["rmse_at_bpp"]["3"] == pytest.approx(math.sqrt(np.mean(errors)))
    png = [8 * row["peers"]["PNG"]["bytes"] / 768 for row in rows]
    assert found["codecs"]["PNG"]["bpd"] == pytest.approx(np.mean(png))
    assert found["codecs"]["JPEG"]["bpd"] is None
    curve = ideal_curve(rows)
    assert [p["bpd"] for p in curve] == sorted(p["bpd"] for p in curve)
    layers = rows[0]["report"]["layers"]
    assert curve[0]["bpd"] == pytest.approx(layers[0]["ideal_bits"] / 768)
    assert curve[-1]["rmse"] == pytest.approx(layers[-2]["ideal_rmse"])
    json.dumps(found, allow_nan=False)


def test_the_plots(part: Part, measured: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib").use("Agg")
    found = summary(part, measured[1])
    for plot in (benchmark.plot_small, benchmark.plot_photos):
        path = tmp_path / f"{plot.__name__}.png"
        plot(found, path)
        assert path.read_bytes()[:4] == b"\x89PNG"
