"""The command line: results, and one line with the right exit code for everything bad."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import DATA, write_tiny_model
from PIL import Image

import diffcodec
from diffcodec.cli import main
from diffcodec.model import read_model
from diffcodec.quality import psnr
from diffcodec.schedule import Schedule

BIRD = DATA / "budgerigar-32.png"
DATA_ERROR, USAGE_ERROR = 1, 2


def run(*arguments: object) -> Result:
    """The command in this process; a traceback would show as an exception here."""
    return CliRunner().invoke(main, [str(a) for a in arguments])


def run_line(line: str, ddc: Path, model: Path, folder: Path) -> Result:
    """Run a command line with {bird}, {ddc} and {out} filled in, with the model where one codes."""
    words = line.format(bird=BIRD, ddc=ddc, out=folder / "out.ddc").split()
    if words[0] in {"encode", "sample", "evaluate"}:
        words += ["--model", str(model)]
    return run(*words)


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, hidden files too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_refused(result: Result, code: int, message: str = "") -> None:
    assert result.exit_code == code, result.output + repr(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    # What a terminal shows: progress bars wipe themselves out; notes are no errors.
    shown = [line.rpartition("\r")[2].strip() for line in result.stderr.split("\n")]
    lines = [line for line in shown if line and not line.startswith("note: ")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("diffcodec: ")
    assert message in lines[0]


@pytest.fixture()
def picture(tmp_path: Path) -> Path:
    """A small picture in a folder of its own."""
    path = tmp_path / "in" / "picture.png"
    path.parent.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """The 32×32 picture as written with the tiny model, without its colour profile."""
    path = tmp_path_factory.mktemp("cli") / "bird.ddc"
    result = run("encode", BIRD, "-o", path, "--effort", 1, "--model", tiny_folder, "--strip")
    assert result.exit_code == 0, result.output
    return path


# -- what works ------------------------------------------------------------------------------


def test_encode_and_decode_by_default_names(picture: Path) -> None:
    original = np.asarray(Image.open(picture))
    encoded = run("encode", picture, "--effort", 1)
    assert encoded.exit_code == 0, encoded.output
    coded = picture.with_suffix(".ddc")
    assert f"{coded}: {coded.stat().st_size} bytes" in encoded.stdout
    picture.unlink()
    decoded = run("decode", coded)
    assert decoded.exit_code == 0, decoded.output
    assert "exact" in decoded.stdout
    np.testing.assert_array_equal(np.asarray(Image.open(picture)), original)
    assert sorted(files(picture.parent)) == ["picture.ddc", "picture.png"]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".ppm", ".webp", ".tiff"])
def test_decode_writes_lossless_formats_exactly(
    tiny_file: Path, tiny_folder: Path, tmp_path: Path, suffix: str
) -> None:
    target = tmp_path / f"out{suffix}"
    assert run("decode", tiny_file, "-o", target, "--model", tiny_folder).exit_code == 0
    np.testing.assert_array_equal(
        np.asarray(Image.open(target).convert("RGB")), np.asarray(Image.open(BIRD).convert("RGB"))
    )


def test_grey_pictures_stay_grey(tmp_path: Path, tiny_folder: Path) -> None:
    source, coded, target = (tmp_path / name for name in ("a.png", "a.ddc", "b.png"))
    Image.open(BIRD).convert("L").save(source)
    assert run("encode", source, "-o", coded, "--model", tiny_folder).exit_code == 0
    assert run("decode", coded, "-o", target, "--model", tiny_folder).exit_code == 0
    with Image.open(target) as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(source)))


@pytest.mark.parametrize(
    ("option", "value", "size"),
    [("--bytes", 300, 300), ("--bpp", 1.5, 192), ("--bytes", 10**9, None)],
)
def test_truncate_copies_the_first_bytes(
    tiny_file: Path, tiny_folder: Path, tmp_path: Path, option: str, value: float, size: int | None
) -> None:
    target = tmp_path / "cut.ddc"
    assert run("truncate", tiny_file, "-o", target, option, value).exit_code == 0
    content = tiny_file.read_bytes()
    assert target.read_bytes() == content[:size]
    shown = run("decode", target, "-o", tmp_path / "cut.png", "--model", tiny_folder)
    assert shown.exit_code == 0
    assert ("exact" in shown.stdout) == (size is None)
    assert ("lossy, t = " in shown.stdout) == (size is not None)


def test_limits_of_encode_equal_truncate(
    tiny_file: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    target = tmp_path / "small.ddc"
    common = ("encode", BIRD, "-o", target, "--effort", 1, "--model", tiny_folder, "--strip")
    for options in (("--max-bytes", 500), ("--bpp", 2.0), ("--stop-t", 5)):
        assert run(*common, *options).exit_code == 0
        cut = tmp_path / "cut.ddc"
        name = "--bytes" if options[0] == "--max-bytes" else options[0]
        cutting = ("truncate", tiny_file, "-o", cut, "--model", tiny_folder)
        assert run(*cutting, name, options[1]).exit_code == 0
        assert target.read_bytes() == cut.read_bytes()


def test_decode_stops_where_told(tiny_file: Path, tiny_folder: Path, tmp_path: Path) -> None:
    result = run(
        "decode", tiny_file, "-o", tmp_path / "a.png", "--model", tiny_folder, "--stop-t", 100
    )
    assert "lossy, t = 115" in result.stdout


@pytest.mark.parametrize("recon", ["x0", "sample", "flow"])
def test_decode_of_the_first_bytes_in_every_way(
    tiny_file: Path, tiny_folder: Path, tmp_path: Path, recon: str
) -> None:
    target = tmp_path / "a.png"
    options = ("--max-bytes", 600, "--recon", recon, "--seed", 3)
    result = run("decode", tiny_file, "-o", target, "--model", tiny_folder, *options)
    assert "lossy, t = " in result.stdout
    assert "600 bytes" in result.stdout
    content = tiny_file.read_bytes()[:600]
    shown = diffcodec.decode(content, model=read_model(tiny_folder), recon=recon, seed=3)
    np.testing.assert_array_equal(np.asarray(Image.open(target)), shown.pixels)


def test_encode_to_a_target_psnr(tiny_folder: Path, tmp_path: Path) -> None:
    coded, shown = tmp_path / "a.ddc", tmp_path / "a.png"
    options = ("--model", tiny_folder, "--target-psnr", 30)
    assert run("encode", BIRD, "-o", coded, *options).exit_code == 0
    assert "lossy" in run("decode", coded, "-o", shown, "--model", tiny_folder).stdout
    original, found = (np.asarray(Image.open(p).convert("RGB")) for p in (BIRD, shown))
    assert 30.0 <= psnr(original, found) < 31.0


def test_info_for_people_and_machines(tiny_file: Path, tiny_folder: Path) -> None:
    plain = run("info", tiny_file, "--model", tiny_folder)
    assert plain.exit_code == 0
    assert "width: 32" in plain.stdout
    facts = json.loads(run("info", tiny_file, "--json", "--model", tiny_folder).stdout)
    assert (facts["width"], facts["height"], facts["colour"]) == (32, 32, "RGB")
    assert facts["complete"] is True
    assert facts["file_bytes"] == tiny_file.stat().st_size
    assert facts["layers"][-1]["bpp"] == pytest.approx(8 * facts["file_bytes"] / 1024)
    assert facts["model"] == "tiny1"


def test_info_marks_a_cut_layer(tiny_file: Path, tiny_folder: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.ddc"
    cut.write_bytes(tiny_file.read_bytes()[:-1])
    words = ("info", cut, "--model", tiny_folder)
    assert run(*words).stdout.rstrip().endswith("(cut)")
    assert json.loads(run(*words, "--json").stdout)["complete"] is False


def test_info_of_a_small_file_needs_its_model(tiny_file: Path) -> None:
    assert_refused(run("info", tiny_file), DATA_ERROR, "tiny1")


def test_info_shows_the_layers_before_damage(
    tiny_file: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    content = tiny_file.read_bytes()
    whole = json.loads(run("info", tiny_file, "--model", tiny_folder, "--json").stdout)["layers"]
    source = tmp_path / "damaged.ddc"
    check = round(whole[-2]["bpp"] * 32 * 32 / 8) - 1  # the last byte of the last step
    source.write_bytes(with_byte(content, check, 0x01))
    result = run("info", source, "--model", tiny_folder, "--json")
    assert result.exit_code == DATA_ERROR
    facts = json.loads(result.stdout)
    assert facts["layers"] == whole[:1]  # those that a check vouches for
    assert "--stop-t" in facts["damage"]
    assert facts["damage"] in result.stderr


def test_sample_writes_a_grid(tiny_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "grid.png"
    result = run(
        "sample", "-n", 5, "--steps", 3, "--size", 16, "--model", tiny_folder, "-o", target
    )
    assert result.exit_code == 0, result.output
    assert Image.open(target).size == (48, 32)


def test_evaluate_reports_and_writes_strict_json(tiny_folder: Path, tmp_path: Path) -> None:
    """Strict: NaN and Infinity are no JSON, other programs refuse them."""
    report = tmp_path / "report.json"
    result = run(
        *("evaluate", "--data", BIRD, "--model", tiny_folder, "--effort", 1),
        *("--rates", "0.5,2", "--json", report),
    )
    assert result.exit_code == 0, result.output
    assert "exact round trips      1 of 1" in result.stdout

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} in JSON")

    document = json.loads(report.read_text(), parse_constant=refuse)
    assert document["mean"]["pictures"] == 1
    assert set(document["mean"]["psnr_at_bpp"]) == {"0.5", "2"}


def test_evaluate_begins_where_it_is_told_to(tiny_folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in "abc":
        noise = rng.integers(0, 256, (8, 8 + ord(name) % 4, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{name}.png")
    report, common = tmp_path / "report.json", ("evaluate", "--data", tmp_path, "--effort", 1)
    common += ("--model", tiny_folder, "--no-ideal", "--rates", "9", "--json", report)

    def sizes(*options: object) -> list[int]:
        assert run(*common, *options).exit_code == 0
        return [picture["bytes"] for picture in json.loads(report.read_text())["pictures"]]

    every = sizes()
    assert len(every) == 3
    assert sizes("--first", 1, "--limit", 1) == every[1:2]
    assert_refused(run(*common, "--first", 3), DATA_ERROR, "no pictures after the first 3")


def test_quantize_makes_files_that_decode_everywhere(tiny_folder: Path, tmp_path: Path) -> None:
    """A model folder gets its integer network; files say so and belong to it alone."""
    folder, coded, back = tmp_path / "model", tmp_path / "a.ddc", tmp_path / "a.png"
    shutil.copytree(tiny_folder, folder)
    made = run("quantize", folder, "--data", BIRD, "--images", 8)
    assert made.exit_code == 0, made.output
    result = run("encode", BIRD, "-o", coded, "--model", folder, "--effort", 1)
    assert result.exit_code == 0, result.output
    assert (
        json.loads(run("info", coded, "--json", "--model", folder).stdout)["arithmetic"] == "exact"
    )
    assert "exact" in run("decode", coded, "-o", back, "--model", folder).stdout
    np.testing.assert_array_equal(
        np.asarray(Image.open(back)), np.asarray(Image.open(BIRD).convert("RGB"))
    )
    refused = run("decode", coded, "-o", tmp_path / "b.png", "--model", tiny_folder)
    assert_refused(refused, DATA_ERROR, "model")
    again = run("quantize", folder, "--data", BIRD, "--images", 8, "--subsampled")
    assert again.exit_code == 0, again.output
    assert again.output != made.output  # other pictures, another fingerprint


@pytest.mark.parametrize("what", ["missing model", "missing data", "small pictures"])
def test_quantize_refuses(what: str, tiny_folder: Path, picture: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    before = files(tmp_path)
    arguments = {
        "missing model": (tmp_path / "none", "--data", BIRD),
        "missing data": (folder, "--data", tmp_path / "none"),
        "small pictures": (folder, "--data", picture),
    }[what]
    assert_refused(run("quantize", *arguments), DATA_ERROR)
    assert files(tmp_path) == before


def test_train_dry_run_prints_the_settings_and_writes_nothing(tmp_path: Path) -> None:
    result = run("train", "--data", DATA, "--out", tmp_path / "run", "--steps", 7, "--dry-run")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["steps"] == 7
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "command",
    ["", "encode", "decode", "truncate", "info", "sample", "evaluate", "train", "quantize"],
)
def test_help_needs_nothing(command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


# -- pictures that are refused ---------------------------------------------------------------


def png_of_16_bits(colour_type: int) -> bytes:
    """A 2×2 PNG of 16 bits per channel whose low bytes are not zero."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    channels = {0: 1, 2: 3, 6: 4}[colour_type]
    row = b"\0" + bytes(range(1, 1 + 4 * channels))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, colour_type, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(row * 2))
        + chunk(b"IEND", b"")
    )


def image_bytes(mode: str, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (4, 4)).save(stream, kind, **options)
    return stream.getvalue()


PICTURES = {
    "empty": (b"", "not a picture"),
    "text": (b"hello\n", "not a picture"),
    "half a png": (BIRD.read_bytes()[:1500], "cannot be read as a picture"),
    "CMYK": (image_bytes("CMYK", "TIFF"), "CMYK"),
    "16-bit grey": (png_of_16_bits(0), "8-bit"),
    "16-bit colour": (png_of_16_bits(2), "8-bit"),
    "16-bit colour ppm": (b"P6 2 2 65535\n" + bytes(range(24)), "8-bit"),
    "32-bit float": (image_bytes("F", "TIFF"), "8-bit"),
    "animation": (
        image_bytes(
            "L", "GIF", save_all=True, append_images=[Image.new("L", (4, 4), 9)], duration=5
        ),
        "animations",
    ),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_encode_refuses(kind: str, tmp_path: Path, tiny_folder: Path) -> None:
    """What would lose something or is no picture, naming the file; nothing is written."""
    content, message = PICTURES[kind]
    source = tmp_path / "picture.png"
    source.write_bytes(content)
    before = files(tmp_path)
    result = run("encode", source, "--model", tiny_folder, "--effort", 1)
    assert_refused(result, DATA_ERROR, message)
    assert str(source) in result.stderr
    assert files(tmp_path) == before


@pytest.mark.parametrize("command", ["encode", "decode", "info"])
def test_missing_files_are_refused(command: str, tmp_path: Path) -> None:
    for path in (tmp_path / "missing.png", tmp_path / "missing" / "a.png"):
        assert_refused(run(command, path), DATA_ERROR, str(path))
    assert not files(tmp_path)


def test_a_folder_has_no_layers(tmp_path: Path) -> None:
    assert_refused(run("info", tmp_path), DATA_ERROR, str(tmp_path))


# -- .ddc files that are refused -------------------------------------------------------------


def with_byte(content: bytes, place: int, change: int) -> bytes:
    damaged = bytearray(content)
    damaged[place] ^= change
    return bytes(damaged)


DAMAGE = {
    "empty": lambda content: b"",
    "text": lambda content: b"hello\n",
    "a picture": lambda content: BIRD.read_bytes(),
    "cut inside the header": lambda content: content[:5],
    "another version": lambda content: with_byte(content, 2, 0x30),
    "damaged header": lambda content: with_byte(content, 3, 0x01),
    "damaged layer": lambda content: with_byte(content, 100, 0x01),
    "bytes after the end": lambda content: content + b"\0",
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("command", ["decode", "truncate", "info"])
def test_damaged_files_are_refused(
    command: str, kind: str, tiny_file: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    source = tmp_path / "damaged.ddc"
    source.write_bytes(DAMAGE[kind](tiny_file.read_bytes()))
    before = files(tmp_path)
    options = {
        "decode": ("-o", tmp_path / "a.png", "--model", tiny_folder),
        "truncate": ("-o", tmp_path / "a.ddc", "--stop-t", 1, "--model", tiny_folder),
        "info": ("--model", tiny_folder),
    }[command]
    if (command, kind) == ("truncate", "bytes after the end"):
        pytest.skip("they are cut off")
    assert_refused(run(command, source, *options), DATA_ERROR, str(source))
    assert files(tmp_path) == before


def test_damaged_final_layer_is_an_error_and_never_a_picture(
    tiny_file: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    content = tiny_file.read_bytes()
    source, target = tmp_path / "damaged.ddc", tmp_path / "a.png"
    target.write_bytes(b"precious")
    for place in range(len(content) - 40, len(content), 3):
        source.write_bytes(with_byte(content, place, 0x40))
        assert_refused(
            run("decode", source, "-o", target, "--model", tiny_folder), DATA_ERROR, "damaged"
        )
    assert files(tmp_path) == {"damaged.ddc": source.read_bytes(), "a.png": b"precious"}


def test_damage_in_a_later_layer_is_no_obstacle_below_it(
    tiny_file: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    """A damaged final layer leaves the lossy picture."""
    source = tmp_path / "damaged.ddc"
    source.write_bytes(with_byte(tiny_file.read_bytes(), -3, 0x40))
    result = run("decode", source, "-o", tmp_path / "a.png", "--model", tiny_folder, "--stop-t", 1)
    assert result.exit_code == 0, result.output
    assert "lossy, t = 1" in result.stdout


# -- models ----------------------------------------------------------------------------------


def test_unknown_models_are_refused(picture: Path, tmp_path: Path) -> None:
    before = files(tmp_path)
    for command in (
        ("encode", picture),
        ("decode", picture),
        ("sample", "-o", tmp_path / "grid.png"),
        ("evaluate", "--data", picture),
    ):
        assert_refused(run(*command, "--model", "nonsense"), DATA_ERROR, "nonsense")
    assert files(tmp_path) == before


def test_a_folder_without_a_model_is_refused(picture: Path, tmp_path: Path) -> None:
    assert_refused(run("encode", picture, "--model", tmp_path), DATA_ERROR, "model")


def test_a_file_of_an_absent_model_says_which(tiny_file: Path, tmp_path: Path) -> None:
    result = run("decode", tiny_file, "-o", tmp_path / "a.png")
    assert_refused(result, DATA_ERROR, "tiny1")
    assert "--model" in result.stderr
    assert not files(tmp_path)


def test_another_model_than_the_file_s_is_refused(tiny_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_tiny_model(other, seed=2)
    target = tmp_path / "a.png"
    result = run("decode", tiny_file, "-o", target, "--model", other)
    assert_refused(result, DATA_ERROR, "written with model")
    assert not target.exists()


def test_a_model_whose_schedule_is_too_short_is_refused(picture: Path, tmp_path: Path) -> None:
    """Its chain has fewer timesteps than the plan or the samples ask for."""
    short = tmp_path / "short"
    write_tiny_model(short, seed=3, schedule=Schedule(timesteps=100))
    assert_refused(run("encode", picture, "--model", short), DATA_ERROR)
    target = tmp_path / "grid.png"
    common = ("sample", "--model", short, "-o", target, "-n", 1, "--size", 8, "--steps")
    result = run(*common, 200)
    assert result.exit_code in {DATA_ERROR, USAGE_ERROR}
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert not target.exists()
    assert run(*common, 5).exit_code == 0


# -- usage -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        "encode",
        "encode {bird} -o {out} --bpp 1 --max-bytes 100",
        "encode {bird} -o {out} --effort 10",
        "encode {bird} -o {out} --effort 0",
        "encode {bird} -o {out} --stop-t 0",
        "encode {bird} -o {out} --stop-t 1001",
        "encode {bird} -o {out} --bpp 0",
        "encode {bird} -o {out} --bpp -1",
        "encode {bird} -o {out} --bpp nan",
        "encode {bird} -o {out} --bpp inf",
        "encode {bird} -o {out} --max-bytes 0",
        "encode {bird} -o {out} --seed -1",
        "encode {bird} -o {out} --seed 4294967296",
        "encode {bird} -o {out} --nonsense",
        "decode {ddc} -o {out} --stop-t 0",
        "truncate {ddc} -o {out}",
        "truncate {ddc} --bytes 100",
        "truncate {ddc} -o {out} --bytes 100 --bpp 1",
        "truncate {ddc} -o {out} --bytes 100 --stop-t 1",
        "truncate {ddc} -o {out} --bytes 0",
        "truncate {ddc} -o {out} --bpp nan",
        "truncate {ddc} -o {out} --bpp inf",
        "sample -o {out} -n 0",
        "sample -o {out} --size 12",
        "sample -o {out} --steps 0",
        "evaluate",
        "evaluate --data {bird} --rates a,b",
        "evaluate --data {bird} --rates nan",
        "evaluate --data {bird} --rates inf",
        "evaluate --data {bird} --rates -1",
        "quantize {bird} --data {bird} --crop 12",
        "quantize {bird}",
        "train --data {bird} --out {out} --crop 12 --dry-run",
        "train --data {bird} --out {out} --channels 1,2 --dry-run",
        "train --data {bird} --out {out} --blocks 1,0,1 --dry-run",
        "train --data {bird} --out {out} --reductions 1,x --dry-run",
        "train --data {bird} --out {out} --init cifar10 --blocks 1,1,1 --dry-run",
        "train --data {bird} --out {out} --device nonsense --dry-run",
        "train --data {bird} --out {out} --resume --batch 5",
        "nonsense",
    ],
)
def test_impossible_options_are_usage_errors(
    arguments: str, tiny_file: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    assert_refused(run_line(arguments, tiny_file, tiny_folder, tmp_path), USAGE_ERROR)
    assert not files(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        "encode {bird} -o {out} --max-bytes 3",
        "encode {bird} -o {out} --bpp 0.000001",
        "truncate {ddc} -o {out} --bytes 3",
        "truncate {ddc} -o {out} --bpp 0.000001",
        "evaluate --data {out}",
        "train --data {out}/none --out {out}",
    ],
)
def test_limits_that_leave_nothing_are_refused(
    arguments: str, tiny_file: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    assert_refused(run_line(arguments, tiny_file, tiny_folder, tmp_path), DATA_ERROR)
    assert not files(tmp_path)


# -- writing ---------------------------------------------------------------------------------


def test_a_folder_that_is_missing_or_a_file_in_its_place_is_refused(
    tiny_file: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"precious")
    before = files(tmp_path)
    for parent in ("missing", "file"):
        out = tmp_path / parent
        for command in (
            ("encode", BIRD, "-o", out / "a.ddc", "--effort", 1, "--model", tiny_folder),
            ("decode", tiny_file, "-o", out / "a.png", "--model", tiny_folder),
            ("truncate", tiny_file, "-o", out / "a.ddc", "--bytes", 200),
        ):
            assert_refused(run(*command), DATA_ERROR, "cannot be written")
    assert files(tmp_path) == before


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_a_missing_folder_is_refused_before_the_work(command: str, tmp_path: Path) -> None:
    result = run(command, tmp_path / "no-such-source", "-o", tmp_path / "missing" / "a.out")
    assert_refused(result, DATA_ERROR, "missing/a.out: cannot be written (no such folder)")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tiny_file: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    result = run("truncate", tiny_file, "-o", locked / "a.ddc", "--bytes", 200)
    assert_refused(result, DATA_ERROR, "cannot be written")


def test_an_output_that_is_a_folder_is_refused_and_nothing_is_left(
    tiny_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    result = run("truncate", tiny_file, "-o", tmp_path / "folder", "--bytes", 200)
    assert_refused(result, DATA_ERROR, "cannot be written")
    assert not files(tmp_path)


@pytest.mark.parametrize("name", ["out", "out.nonsense", "out.pdx"])
def test_picture_types_that_cannot_be_written_are_refused(
    name: str, tiny_file: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    result = run("decode", tiny_file, "-o", tmp_path / name, "--model", tiny_folder)
    assert_refused(result, DATA_ERROR, "cannot write pictures")
    assert not files(tmp_path)


def test_an_existing_output_survives_failure(
    tiny_file: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    target = tmp_path / "precious.png"
    target.write_bytes(b"precious")
    text = tmp_path / "text.ddc"
    text.write_bytes(b"hello")
    before = files(tmp_path)
    for command in (
        ("encode", text, "-o", target, "--model", tiny_folder),
        ("encode", BIRD, "-o", target, "--max-bytes", 3, "--model", tiny_folder),
        ("decode", text, "-o", target, "--model", tiny_folder),
        ("truncate", tiny_file, "-o", target, "--bytes", 3),
        ("sample", "-o", target, "--model", tmp_path),
    ):
        assert run(*command).exit_code == DATA_ERROR
    assert files(tmp_path) == before


def test_a_written_file_has_ordinary_permissions(tiny_file: Path, tmp_path: Path) -> None:
    target = tmp_path / "cut.ddc"
    assert run("truncate", tiny_file, "-o", target, "--bytes", 200).exit_code == 0
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert target.stat().st_mode == plain.stat().st_mode
