"""The errors a user can cause.  Each carries one line: what is wrong and what to do."""

from __future__ import annotations


class DiffcodecError(Exception):
    """Base of all expected errors; the command line prints it and exits with code 1."""


class DataError(DiffcodecError):
    """An input picture or data set cannot be used."""


class FormatError(DiffcodecError):
    """Bytes are not a .ddc file this version can read, or are damaged."""


class DamageError(FormatError):
    """A layer, or what comes after the last one, is damaged.

    sound: bytes of the file before the damage; as a cut file they decode to all that is left.
    """

    def __init__(self, message: str, sound: int = 0) -> None:
        super().__init__(message)
        self.sound = sound


class ModelError(DiffcodecError):
    """A model is missing, malformed, or not the one a file was written with."""
