"""sample, interpolate, evaluate --bound and --fid: results, and one line for everything bad."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DATA
from PIL import Image
from safetensors.torch import save_file
from test_cli import BIRD, DATA_ERROR, USAGE_ERROR, assert_refused, files, run
from test_ddpm_fid import write_script
from test_ddpm_samplers import SHORT

from diffcodec.ddpm.unet import UNet, UNetConfig
from diffcodec.model import CONFIG, WEIGHTS, ModelConfig

KITTEN = DATA / "kitten-64.png"


def write_unet(folder: Path, classes: int = 0, learned: bool = False) -> Path:
    """A model folder of a small U-Net with random weights and 20 timesteps."""
    config = UNetConfig(8, (1, 2), 1, (1,), 0.0, 4, 6 if learned else 3, classes)
    with torch.random.fork_rng():
        torch.manual_seed(6)
        network = UNet(config)
        with torch.no_grad():
            for parameter in network.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.05)
    folder.mkdir()
    variance = "learned" if learned else "beta"
    text = ModelConfig("tiny", config, SHORT, variance=variance).to_json()
    (folder / CONFIG).write_text(text)
    save_file(network.state_dict(), folder / WEIGHTS)
    return folder


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_unet(tmp_path_factory.mktemp("unet") / "plain")


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_unet(tmp_path_factory.mktemp("unet") / "classes", classes=2)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_unet(tmp_path_factory.mktemp("unet") / "learned", learned=True)


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


@pytest.mark.parametrize(
    "options, size",
    [
        ("-n 5 --size 16", (48, 32)),
        ("-n 3 --size 10 --steps 4 --batch 1", (20, 20)),
        ("-n 1 --size 8 --sampler ddim --steps 3 --eta 0.5", (8, 8)),
        ("-n 2 --size 8 --progressive", (88, 16)),
        ("-n 2 --size 8 --share-t 20,7 --steps 5", (24, 16)),
    ],
)
def test_sample_writes_figures(
    options: str, size: tuple[int, int], unet: Path, tmp_path: Path
) -> None:
    result = run("sample", *options.split(), "--model", unet, "-o", tmp_path / "a.png")
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert size_of(tmp_path / "a.png") == size


def test_variances_classes_and_guidance_change_samples(classes: Path, tmp_path: Path) -> None:
    found = []
    for options in (
        "--variance beta",
        "--variance posterior",
        "--label 0",
        "--label 1",
        "--label 1 --guidance 3",
    ):
        target = tmp_path / "a.png"
        line = f"sample -n 1 --size 8 --model {classes} -o {target} {options}"
        assert run(*line.split()).exit_code == 0
        found.append(target.read_bytes())
    assert len(set(found)) == 5


def test_interpolate_writes_a_row_for_every_t(unet: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.png"
    line = f"interpolate {KITTEN} {KITTEN} --t 0,5,20 -n 2 --steps 3 --model {unet} -o {target}"
    result = run(*line.split())
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert size_of(target) == (6 * 64, 3 * 64)
    with Image.open(target) as image, Image.open(KITTEN) as kitten:
        row = np.asarray(image)[:64]
        np.testing.assert_array_equal(row, np.tile(np.asarray(kitten.convert("RGB")), (1, 6, 1)))


def test_the_bound_is_reported_and_written(unet: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report, plot = tmp_path / "bound.json", tmp_path / "rd.png"
    result = run(
        *("evaluate", "--bound", "--data", BIRD, "--data", BIRD, "--model", unet),
        *("--json", report, "--plot", plot),
    )
    assert result.exit_code == 0, result.output + repr(result.exception)
    document = json.loads(report.read_text())
    found, pictures = document["bound"], document["pictures"]
    assert f"{found['bpd'][0]:.4f} ± {found['bpd'][1]:.4f} bits/dim" in result.stdout
    assert found["bpd"][0] == pytest.approx(np.mean([p["bpd"] for p in pictures]))
    for p in pictures:
        assert p["bpd"] == pytest.approx(p["prior_bpd"] + sum(p["steps_bpd"]) + p["distortion_bpd"])
    assert [row["t"] for row in found["curve"]] == [*range(20, -1, -1)]
    rates = [row["rate_bpd"][0] for row in found["curve"]]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(found["bpd"][0])
    assert size_of(plot)[0] > 500


def test_the_bound_of_the_codec_says_what_it_is(tiny_folder: Path) -> None:
    line = f"evaluate --bound --bound-steps 3 --data {BIRD} --model {tiny_folder}"
    result = run(*line.split())
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert "the paper's bound" in result.stdout
    assert "4 timesteps" in result.stdout


def test_a_learned_variance_is_used(learned: Path) -> None:
    result = run(*f"evaluate --bound --data {BIRD} --model {learned}".split())
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert "variance               learned" in result.stdout


def test_fid_is_reported_and_written(unet: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    weights, report = write_script(tmp_path / "net.pt"), tmp_path / "fid.json"
    result = run(
        *("evaluate", "--fid", "--inception-weights", weights, "--samples", 3, "--steps", 2),
        *("--batch", 2, "--data", BIRD, "--data", BIRD, "--model", unet, "--json", report),
    )
    assert result.exit_code == 0, result.output + repr(result.exception)
    document = json.loads(report.read_text())
    assert (document["samples"], document["pictures"]) == (3, 2)
    assert document["fid"] > 0
    assert f"FID                    {document['fid']:.3f}" in result.stdout


def test_help_names_the_figures() -> None:
    assert "Figure 7" in run("sample", "--help").stdout
    assert "Figures 8 and 9" in run("interpolate", "--help").stdout


@pytest.mark.parametrize(
    "line, message",
    [
        ("sample --model {unet} -o {out} --size 9", "multiple of 2"),
        ("sample --model {unet} -o {out} --steps 21", "20 timesteps"),
        ("sample --model {unet} -o {out} --eta 1", "ddim"),
        ("sample --model {unet} -o {out} --sampler ddim --eta 2", "eta"),
        ("sample --model {unet} -o {out} --sampler ddim --variance beta", "DDIM"),
        ("sample --model {unet} -o {out} --label 0", "no classes"),
        ("sample --model {classes} -o {out} --label 2", "2 classes"),
        ("sample --model {classes} -o {out} --guidance 1", "--label"),
        ("sample --model {learned} -o {out} --variance beta", "learned"),
        ("sample --model {unet} -o {out} --progressive --share-t 3", "two figures"),
        ("sample --model {unet} -o {out} --share-t 0", "1..20"),
        ("sample --model {unet} -o {out} --share-t x", "not a list"),
        ("sample --model {unet} -o {out} --device nonsense", "not available"),
        ("interpolate {bird} {bird} --model {unet} -o {out} --t 21", "0..20"),
        ("interpolate {bird} -o {out}", "SECOND"),
        ("evaluate --bound --data {bird} --model {unet} --bound-steps 20", "19 steps"),
        ("evaluate --bound --data {bird} --model {unet} --effort 1", "--effort goes with"),
        ("evaluate --data {bird} --model {unet} --plot {out}", "--plot goes with --bound"),
        ("evaluate --data {bird} --model {unet} --seed 3", "goes with --bound or --fid"),
        ("evaluate --bound --fid --data {bird}", "take one"),
        ("evaluate --fid --data {bird}", "--inception-weights"),
    ],
)
def test_impossible_options_are_usage_errors(
    line: str, message: str, unet: Path, classes: Path, learned: Path, tmp_path: Path
) -> None:
    words = line.format(
        unet=unet, classes=classes, learned=learned, bird=BIRD, out=tmp_path / "a.png"
    )
    assert_refused(run(*words.split()), USAGE_ERROR, message)
    assert not files(tmp_path)


@pytest.mark.parametrize(
    "line, message",
    [
        ("sample --model {unet} -o {out}/none/a.png", "no such folder"),
        ("sample --model {unet} -o {out}/a.txt", "cannot write"),
        ("interpolate {bird} {kitten} -o {out}/a.png", "differ in size"),
        ("interpolate {odd} {odd} -o {out}/a.png", "multiples of 8: crop"),
        ("evaluate --bound --data {odd}", "picture 0 is 11×8"),
        ("evaluate --bound --data {bird} --json {out}/none/a.json", "no such folder"),
        ("evaluate --bound --data {bird} --plot {out}/a.xyz", "cannot write plots"),
        ("evaluate --fid --inception-weights {out}/x --samples 2 --data {bird}", "TorchScript"),
        ("evaluate --fid --inception-weights {net} --samples 2 --data {bird}", "two or more"),
        ("evaluate --data {bird} --model {unet}", "no variances to code with"),
    ],
)
def test_bad_data_are_refused(line: str, message: str, unet: Path, tmp_path: Path) -> None:
    if "--plot" in line:
        pytest.importorskip("matplotlib")
    if "--fid" in line:
        pytest.importorskip("torchmetrics")
    odd, net = tmp_path / "odd.png", write_script(tmp_path / "net.pt")
    Image.new("RGB", (11, 8)).save(odd)
    before = files(tmp_path)
    words = line.format(unet=unet, bird=BIRD, kitten=KITTEN, odd=odd, net=net, out=tmp_path)
    assert_refused(run(*words.split()), DATA_ERROR, message)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "missing, line",
    [
        ("matplotlib.figure", "evaluate --bound --data {bird} --plot {out}/a.png"),
        (
            "torchmetrics.image",
            "evaluate --fid --inception-weights {out}/x --samples 2 --data {bird}",
        ),
    ],
)
def test_absent_libraries_are_named(
    missing: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    words = line.format(bird=BIRD, out=tmp_path).split()
    assert_refused(run(*words), DATA_ERROR, "pip install")
