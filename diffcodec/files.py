"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diffcodec.errors import DataError


def _unwritable(path: Path, e: OSError) -> DataError:
    return DataError(f"{path}: cannot be written ({e.strerror or e})")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it when the block ends without error.

    Raises DataError when the folder is missing or cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as e:
        raise _unwritable(path, e) from e
    os.close(handle)
    temporary = Path(name)
    try:
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
        with suppress(FileNotFoundError):
            temporary.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` in one piece (straight through to a pipe or device)."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_bytes(content)
            return
    except OSError as e:
        raise _unwritable(path, e) from e
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def read_bytes(path: Path) -> bytes:
    """All of ``path``; DataError with one line when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as e:
        raise DataError(f"{path}: {(e.strerror or str(e)).lower()}") from e


def make_folder(path: Path) -> None:
    """Make a folder and those above it, if they are absent; DataError if that is impossible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise DataError(f"{path}: cannot be made a folder ({e.strerror or e})") from e
