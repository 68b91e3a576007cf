"""A comparison: real files, never above the limit, and a sheet that shows them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import DATA
from PIL import Image

import diffcodec
from diffcodec.cli import main
from diffcodec.compare import OURS, Group, compare, contact_sheet, figures, liveliest
from diffcodec.errors import DataError
from diffcodec.model import Model
from diffcodec.peers import Peer
from diffcodec.similarity import available, similarity

BIRD = DATA / "budgerigar-32.png"
RATES = [2.0, 6.0, 1000.0]


@pytest.fixture(scope="module")
def groups(exact_tiny: Model, bird: np.ndarray) -> list[Group]:
    return compare(bird, exact_tiny, effort=1, rates=RATES)


def test_our_files_are_one_file_and_its_cuts(
    groups: list[Group], exact_tiny: Model, bird: np.ndarray
) -> None:
    content = diffcodec.encode(bird, model=exact_tiny, effort=1)
    assert [group.rate for group in groups] == [None, 2.0, 6.0], "1000 bpp is no cut"
    ours = [group.entries[0] for group in groups]
    assert {entry.codec for entry in ours} == {OURS}
    assert [entry.size for entry in ours] == [len(content), 256, 768]
    for entry in ours:
        shown = diffcodec.decode(content[: entry.size], model=exact_tiny).pixels
        np.testing.assert_array_equal(entry.shown, shown)


def test_no_file_is_above_the_limit(groups: list[Group], bird: np.ndarray) -> None:
    for group in groups:
        for entry in group.entries:
            assert group.limit is None or entry.size <= group.limit
            exact = figures(entry, bird)["psnr"] == math.inf
            assert exact == (group.rate is None)
    assert "JPEG" in groups[1].absent, "a JPEG of 32×32 pixels takes more than 256 bytes"


def test_a_format_that_fails_is_left_out(exact_tiny: Model, bird: np.ndarray) -> None:
    broken = Peer("broken", "NO SUCH KIND", lossless={}, lossy=lambda q: {"quality": q})

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of order")

    Image.SAVE["NO SUCH KIND"] = fail
    try:
        groups = compare(bird[:8, :8], exact_tiny, effort=1, rates=[50.0], peers=(broken,))
    finally:
        del Image.SAVE["NO SUCH KIND"]
    for group in groups:
        assert [entry.codec for entry in group.entries] == [OURS]
        assert group.absent == {"broken": "cannot be written here (out of order)"}


def test_transparency_is_refused(exact_tiny: Model) -> None:
    with pytest.raises(DataError, match="3 colours"):
        compare(np.zeros((8, 8, 4), np.uint8), exact_tiny, effort=1, rates=[1.0])


def test_the_liveliest_part() -> None:
    pixels = np.zeros((40, 60), np.uint8)
    pixels[20:28, 33:41] = np.random.default_rng(0).integers(0, 256, (8, 8))
    left, top = liveliest(pixels, 12)
    assert 33 - 4 <= left <= 33
    assert 20 - 4 <= top <= 20


def test_a_sheet_shows_the_crops(groups: list[Group], bird: np.ndarray) -> None:
    sheet = contact_sheet(bird, groups, (4, 8, 16))
    columns = {entry.codec for group in groups[1:] for entry in group.entries}
    cell, scale = 208, 13
    assert sheet.shape == (8 + 2 * (cell + 42), 8 + (len(columns) + 1) * (cell + 8), 3)
    original = sheet[42 : 42 + cell, 8 : 8 + cell]
    np.testing.assert_array_equal(original[::scale, ::scale], bird[8:24, 4:20])
    ours = sheet[42 : 42 + cell, 224 : 224 + cell][::scale, ::scale]
    np.testing.assert_array_equal(ours, groups[1].entries[0].shown[8:24, 4:20])


@pytest.mark.parametrize("crop", [(0, 0, 33), (20, 0, 16), (-1, 0, 8)])
def test_a_crop_outside_is_refused(
    groups: list[Group], bird: np.ndarray, crop: tuple[int, int, int]
) -> None:
    with pytest.raises(DataError, match="not inside the 32×32 picture"):
        contact_sheet(bird, groups, crop)
    with pytest.raises(DataError, match="no size is left"):
        contact_sheet(bird, groups[:1])


@pytest.mark.skipif(not available(), reason="torchmetrics is not installed")
def test_similarity_is_that_of_equal_and_worse_pictures() -> None:
    rng = np.random.default_rng(0)
    pixels = np.asarray(Image.open(DATA / "budgerigar.png").convert("RGB"))[:200, :200]
    noisy = np.clip(pixels + rng.normal(0, 15, pixels.shape), 0, 255).astype(np.uint8)
    assert similarity(pixels, pixels) == pytest.approx((1.0, 1.0))
    ssim, several = similarity(noisy, pixels)
    assert 0 < ssim < several < 1
    assert math.isnan(similarity(noisy[:175], pixels[:175])[1]), "too small for five scales"
    assert math.isnan(similarity(noisy[:10], pixels[:10])[0]), "too small for the window"
    assert similarity(noisy[..., 0], pixels[..., 0])[0] < 1, "grey"


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_command(tmp_path: Path, tiny_folder: Path) -> None:
    sheet = tmp_path / "sheet.png"
    options = ("--model", tiny_folder, "--effort", 1, "--rates", "4,900")
    code, out, err = run("compare", BIRD, *options, "-o", sheet)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == "exact"
    assert "at most 512 bytes (4 bpp)" in lines
    assert sum(line.split()[0] == OURS for line in lines if line.strip()) == 2
    assert "900 bpp is no cut" in err
    assert Image.open(sheet).width > 400

    code, out, err = run("compare", BIRD, *options, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [group["rate"] for group in found] == [None, 4.0]
    assert found[1]["files"][0]["bytes"] == 512
    assert found[0]["files"][0]["psnr"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("no.png",), 1, "no.png: no such file"),
        ((BIRD, "--rates", "1,x"), 2, "--rates: '1,x' is not a list of numbers"),
        ((BIRD, "--rates", "0"), 2, "--rates must be positive"),
        ((BIRD, "--crop", "1,2"), 2, "--crop: '1,2' is not 3 numbers"),
        ((BIRD, "--crop", "1,2,0"), 2, "side must be positive"),
    ],
)
def test_what_is_refused(arguments: tuple[object, ...], code: int, message: str) -> None:
    found, _, err = run("compare", *arguments)
    assert found == code
    assert message in err
    assert len(err.strip().splitlines()) == 1
