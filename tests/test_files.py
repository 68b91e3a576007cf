"""Files are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffcodec.errors import DataError
from diffcodec.files import atomic_path, read_bytes, write_bytes
from diffcodec.parallel import thread_map


def test_contents_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for content in (b"first", b"", b"\0" * 100_000):
        write_bytes(path, content)
        assert read_bytes(path) == content
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_a_failure_in_the_middle_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"precious")
    with pytest.raises((error, DataError)), atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        assert path.read_bytes() == b"precious"
        raise error
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert path.read_bytes() == b"precious"


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for path in (
        tmp_path / "missing" / "a",
        tmp_path / "file" / "a",
        tmp_path / "folder",
        tmp_path / ("n" * 300),
    ):
        with pytest.raises(DataError, match="cannot be written"):
            write_bytes(path, b"content")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_places_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match=str(path)):
            read_bytes(path)


@pytest.mark.parametrize("count", [0, 1, 2, 37])
def test_thread_map_keeps_the_order(count: int) -> None:
    assert thread_map(lambda n: n * n, count) == [n * n for n in range(count)]


def test_thread_map_passes_errors_on() -> None:
    with pytest.raises(ZeroDivisionError):
        thread_map(lambda n: 1 // n, 3)
