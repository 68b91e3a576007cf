"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from diffcodec.errors import DataError

STANDARD = Path("-")
"""Names standard input or output; a file of this name is reached by its full path."""


def _unwritable(path: Path, e: OSError) -> DataError:
    return DataError(f"{path}: cannot be written ({e.strerror or e})")


TEMPORARY = ".diffcodec-part"
"""Ends the names of temporary files, which begin with a dot."""
STALE = 3600.0
"""Seconds after which a temporary file that nobody wrote to is one that a kill left behind."""


@cache
def remove_stale(folder: Path) -> None:
    """Remove what killed processes left in a folder; looks once per process.

    A process that is killed outright (SIGKILL, power) cannot remove its temporary file.  Nothing
    mistakes it for output, but it takes space.
    """
    with suppress(OSError):
        for path in folder.glob(f".*{TEMPORARY}"):
            if time.time() - path.stat().st_mtime > STALE:
                path.unlink()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it when the block ends without error.

    Raises DataError when the folder is missing or cannot be written.
    """
    remove_stale(path.parent)
    # Named before it exists: an interrupt right after it is made must find it, too.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        temporary.touch(0o600, exist_ok=False)
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as e:
        raise _unwritable(path, e) from e
    finally:
        with suppress(OSError):
            temporary.unlink()


def check_folder(path: Path) -> None:
    """DataError if there is no folder to write ``path`` in, before hours go into it."""
    if not path.parent.is_dir():
        raise DataError(f"{path}: cannot be written (no such folder)")


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` in one piece (straight through to a pipe or device)."""
    if path == STANDARD:
        _write_standard(content)
        return
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_bytes(content)
            return
    except OSError as e:
        raise _unwritable(path, e) from e
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _write_standard(content: bytes) -> None:
    if sys.stdout.isatty():
        raise DataError("standard output is a terminal; name a file, or lead it into a pipe")
    try:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    except OSError as e:
        # What is still in the buffer would be tried again, and fail again, when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise DataError(f"standard output: cannot be written ({e.strerror or e})") from e


def read_bytes(path: Path) -> bytes:
    """All of ``path``, or of standard input; DataError with one line when it cannot be read."""
    try:
        return sys.stdin.buffer.read() if path == STANDARD else path.read_bytes()
    except OSError as e:
        raise DataError(f"{path}: {(e.strerror or str(e)).lower()}") from e


def make_folder(path: Path) -> None:
    """Make a folder and those above it, if they are absent; DataError if that is impossible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise DataError(f"{path}: cannot be made a folder ({e.strerror or e})") from e
