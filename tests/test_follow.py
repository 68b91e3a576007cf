"""Decoding while the bytes arrive, and standard input and output."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import DATA
from make_golden import FOLDERS, GOLDEN
from PIL import Image

import diffcodec
from diffcodec import api, codec
from diffcodec.api import Decoded
from diffcodec.cli import main
from diffcodec.container import VERSION, read_header
from diffcodec.errors import DataError, FormatError
from diffcodec.follow import Feed, follow, open_feed
from diffcodec.model import Model, read_model

MODEL = GOLDEN / "model"
PATIENCE = 30.0
"""Seconds after which a test that would wait for ever fails."""
NAMES = ["colour", "grey", "strips", "alpha", "alpha-planes"]


@pytest.fixture(scope="module")
def golden() -> Model:
    return read_model(MODEL)


def content_of(name: str) -> bytes:
    return (FOLDERS[VERSION] / f"{name}.ddc").read_bytes()


class Shown:
    """Collects what is refreshed; lets a writer wait for it."""

    def __init__(self) -> None:
        self.pictures: list[tuple[Decoded, int]] = []
        self._more = threading.Condition()

    def __call__(self, picture: Decoded, size: int) -> None:
        with self._more:
            self.pictures.append((picture, size))
            self._more.notify_all()

    def wait(self, count: int) -> bool:
        """Until there are so many; False if that takes too long."""
        with self._more:
            return self._more.wait_for(lambda: len(self.pictures) >= count, PATIENCE)


@contextmanager
def pipe(write) -> Iterator[Feed]:  # type: ignore[no-untyped-def]
    """A feed of what ``write(descriptor)`` writes in another thread."""
    receiving, sending = os.pipe()

    def work() -> None:
        try:
            write(sending)
        finally:
            os.close(sending)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield Feed(receiving, timeout=0.0)
    finally:
        os.close(receiving)
        thread.join()


def assert_prefixes(shown: Shown, content: bytes, model: Model) -> None:
    """Every refresh is the picture of just these first bytes."""
    for picture, size in shown.pictures:
        expected = diffcodec.decode(content[:size], model=model)
        np.testing.assert_array_equal(picture.pixels, expected.pixels, f"{size} bytes")


@pytest.mark.parametrize("name", NAMES)
def test_a_slow_pipe(golden: Model, name: str) -> None:
    """Pieces of any size: as many refreshes as layers, each right, and the same end."""
    content, rng, shown = content_of(name), np.random.default_rng(3), Shown()

    def write(descriptor: int) -> None:
        place = 0
        while place < len(content):
            size = int(rng.choice([1, 2, 7, 60, 500, 3000]))
            place += os.write(descriptor, content[place : place + size])

    with pipe(write) as feed:
        decoded = follow(feed, shown, model=golden)
    whole = diffcodec.decode(content, model=golden)
    assert decoded.exact
    np.testing.assert_array_equal(decoded.pixels, whole.pixels)
    assert decoded.metadata == whole.metadata
    assert not decoded.metadata_cut
    ends = [layer.end for layer in api.parse(content, golden).layers]
    assert [size for _, size in shown.pictures] == ends
    assert_prefixes(shown, content, golden)


@pytest.mark.parametrize("name", ["colour", "strips"])
def test_a_layer_is_shown_as_soon_as_its_last_byte_is_there(golden: Model, name: str) -> None:
    """The sender waits for the picture before it sends the next byte."""
    content, shown = content_of(name), Shown()
    ends = [layer.end for layer in api.parse(content, golden).layers]
    waited: list[bool] = []

    def write(descriptor: int) -> None:
        for count, (start, end) in enumerate(zip([0, *ends], ends, strict=False), 1):
            os.write(descriptor, content[start:end])
            waited.append(shown.wait(count))

    with pipe(write) as feed:
        assert follow(feed, shown, model=golden).exact
    assert waited == [True] * len(ends)


def test_nothing_is_decoded_twice(golden: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[int, int]] = []

    class Counted(codec.Step):
        def __init__(self, model, x, a, b, grey) -> None:  # type: ignore[no-untyped-def]
            steps.append((a, b))
            super().__init__(model, x, a, b, grey)

    monkeypatch.setattr(codec, "Step", Counted)
    content = content_of("colour")
    with pipe(lambda d: [os.write(d, bytes([b])) for b in content]) as feed:
        follow(feed, Shown(), model=golden)
    assert steps == read_header(content)[0].plan.steps


def test_a_growing_file_ends_when_the_picture_is_complete(golden: Model, tmp_path: Path) -> None:
    """And not after the timeout, which here would fail the whole suite."""
    content, path, shown = content_of("alpha-planes"), tmp_path / "a.ddc", Shown()
    path.write_bytes(content[:3])

    def grow() -> None:
        with path.open("ab") as stream:
            for start in range(3, len(content), 111):
                stream.write(content[start : start + 111])
                stream.flush()

    thread = threading.Thread(target=grow)
    with open_feed(path, timeout=7200.0) as feed:
        thread.start()
        decoded = follow(feed, shown, model=golden)
    thread.join()
    assert decoded.exact
    assert not decoded.metadata_cut
    assert not feed.ended
    assert_prefixes(shown, content, golden)


@pytest.mark.parametrize("name", ["colour", "strips", "alpha-planes"])
@pytest.mark.parametrize("share", [0.3, 0.8, 0.999])
def test_what_stops_growing_is_a_cut_file(
    golden: Model, tmp_path: Path, name: str, share: float
) -> None:
    content, path = content_of(name), tmp_path / "a.ddc"
    cut = content[: int(share * len(content))]
    path.write_bytes(cut)
    with open_feed(path, timeout=0.0) as feed:
        decoded = follow(feed, Shown(), model=golden)
    assert feed.ended
    expected = diffcodec.decode(cut, model=golden)
    assert (decoded.t, decoded.exact, decoded.metadata_cut) == (
        expected.t,
        expected.exact,
        expected.metadata_cut,
    )
    np.testing.assert_array_equal(decoded.pixels, expected.pixels)


def test_damage_is_reported_and_what_came_before_it_was_shown(golden: Model) -> None:
    content, shown = bytearray(content_of("strips")), Shown()
    ends = [layer.end for layer in api.parse(bytes(content), golden).layers]
    content[ends[1] - 1] ^= 1
    with pipe(lambda d: os.write(d, content)) as feed, pytest.raises(FormatError, match="layer 2"):
        follow(feed, shown, model=golden)
    assert [size for _, size in shown.pictures] == ends[:1]


def test_unverified_rows_are_never_shown(golden: Model) -> None:
    content, shown = bytearray(content_of("strips")), Shown()
    first = api.parse(bytes(content), golden).layers[-2]
    content[first.end - len(first.code) - 1] ^= 1  # the last byte of the strip's pixel check
    with pipe(lambda d: os.write(d, content)) as feed, pytest.raises(FormatError, match="rows 0"):
        follow(feed, shown, model=golden)
    assert shown.pictures[-1][1] <= first.start


@pytest.mark.parametrize("content", [b"", b"hello", b"\xde", content_of("alpha")[:40]])
def test_what_is_no_file_is_refused(golden: Model, content: bytes) -> None:
    with pipe(lambda d: os.write(d, content)) as feed, pytest.raises(FormatError):
        follow(feed, Shown(), model=golden)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"), open_feed(tmp_path / "a", 0.0):
        pass


# -- the commands ----------------------------------------------------------------------------


def run(*arguments: object, data: bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], input=data)


def pixels_of(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image)


def test_commands_in_a_pipe() -> None:
    """Binary clean: nothing but the file on standard output, messages beside it."""
    picture = (DATA / "budgerigar-32.png").read_bytes()
    encoded = run("encode", "-", "-o", "-", "--model", MODEL, "--effort", 1, data=picture)
    assert encoded.exit_code == 0
    assert encoded.stderr.startswith("-: ")
    cut = run("truncate", "-", "-o", "-", "--bytes", 900, data=encoded.stdout_bytes)
    assert cut.stdout_bytes == encoded.stdout_bytes[:900]
    assert cut.stderr.startswith("-: 900 of ")
    for content in (encoded.stdout_bytes, cut.stdout_bytes):
        shown = run("decode", "-", "-o", "-", "--model", MODEL, data=content)
        assert shown.exit_code == 0
        expected = diffcodec.decode(content, model=read_model(MODEL)).pixels
        np.testing.assert_array_equal(pixels_of(shown.stdout_bytes), expected)
    facts = run("info", "-", "--model", MODEL, data=encoded.stdout_bytes)
    assert "width: 32" in facts.stdout


def test_errors_write_nothing_to_standard_output() -> None:
    for command in ("encode", "decode"):
        result = run(command, "-", "-o", "-", data=b"hello")
        assert result.exit_code == 1
        assert result.stdout_bytes == b""
        assert len(result.stderr.splitlines()) == 1


def test_usage(tmp_path: Path) -> None:
    for arguments in (
        ("encode", "-"),
        ("decode", "-"),
        ("decode", "-", "a.ddc", "-o", tmp_path),
        ("encode", tmp_path, "-o", "-"),
        ("decode", "--follow", "-", "-o", "-"),
        ("decode", "--follow", "a.ddc", "--stop-t", 5),
        ("decode", "--follow", tmp_path, "-o", tmp_path),
    ):
        result = run(*arguments)
        assert result.exit_code == 2, arguments
        assert len(result.stderr.splitlines()) == 1


def test_follow_in_a_program(tmp_path: Path) -> None:
    """A process that reads from a slow one: a line for every layer, the last one says exact."""
    content, target = content_of("colour"), tmp_path / "out.png"
    end = api.parse(content, read_model(MODEL)).layers[0].end
    command = ["decode", "-", "-o", target, "--follow", "--model", MODEL]
    process = subprocess.Popen(
        [sys.executable, "-m", "diffcodec.cli", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    patience = threading.Timer(PATIENCE, process.kill)
    patience.start()
    process.stdin.write(content[:end])
    process.stdin.flush()
    first = process.stdout.readline().decode()  # comes before the rest is sent
    assert first == f"{target}: t = 40, {end} bytes, {end / 128:.3f} bpp\n"
    assert Image.open(target).size == (32, 32)
    rest, messages = process.communicate(content[end:])
    patience.cancel()
    lines = rest.decode().splitlines()
    assert process.returncode == 0
    assert messages == b""
    assert lines[-1] == f"{target}: exact, {len(content)} bytes, {len(content) / 128:.3f} bpp"
    expected = diffcodec.decode(content, model=read_model(MODEL)).pixels
    np.testing.assert_array_equal(pixels_of(target.read_bytes()), expected)
    assert [p.name for p in tmp_path.iterdir()] == ["out.png"]


def test_follow_of_a_file_that_ends_early(tmp_path: Path) -> None:
    source, target = tmp_path / "a.ddc", tmp_path / "a.png"
    source.write_bytes(content_of("colour")[:2000])
    result = run("decode", source, "--follow", "--timeout", 0, "--model", MODEL)
    assert result.exit_code == 0
    assert result.stderr == f"note: {source} did not grow for 0 s before the picture is complete\n"
    assert target.exists()
    assert run("decode", source, "--follow", "--model", MODEL).exit_code == 1  # exists
