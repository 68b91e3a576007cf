"""Files are written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from diffcodec.errors import DataError
from diffcodec.files import atomic_path, read_bytes, write_bytes
from diffcodec.parallel import one_blas_thread, thread_map


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


def blas_threads() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_blas_has_one_thread_until_the_last_user_leaves() -> None:
    with threadpool_limits(limits=2, user_api="blas"):
        before = blas_threads()
        assert before
        first, second = one_blas_thread(), one_blas_thread()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)  # as in two threads, not one inside the other
        assert set(blas_threads()) == {1}
        second.__exit__(None, None, None)
        assert blas_threads() == before
        with pytest.raises(ZeroDivisionError), one_blas_thread():
            assert 1 // 0
        assert blas_threads() == before


def in_a_thread(work: Callable[[], object]) -> None:
    thread = Thread(target=work)
    thread.start()
    thread.join()


def test_any_thread_limits_blas_and_lifts_the_limit() -> None:
    found: list[int] = []

    def limited() -> None:
        with one_blas_thread():
            found.extend(blas_threads())

    with threadpool_limits(limits=2, user_api="blas"):
        before = blas_threads()
        with one_blas_thread():
            pass
        in_a_thread(limited)
        assert set(found) == {1}
        assert blas_threads() == before
        block = one_blas_thread()
        block.__enter__()
        in_a_thread(lambda: block.__exit__(None, None, None))
        assert blas_threads() == before
