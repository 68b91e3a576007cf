"""Transparency, losslessly: a plane of bytes ↔ the payload of its chunk.

A plane is constant, or coded by LZMA as it is (masks), or coded by LZMA as the residuals of the
median edge detector, the predictor of LOCO-I (soft edges).  The encoder takes the shortest.
"""

from __future__ import annotations

import lzma
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from diffcodec.errors import FormatError

U8 = NDArray[np.uint8]

CONSTANT, PLAIN, PREDICTED = 0, 1, 2
"""Methods: the first byte of a payload."""

# The reader's memory is that of the dictionary; the other numbers are in the stream itself.
_FILTERS: list[dict[str, Any]] = [
    {
        "id": lzma.FILTER_LZMA2,
        "dict_size": 1 << 23,
        "lc": 3,
        "lp": 0,
        "pb": 0,
        "mode": lzma.MODE_NORMAL,
        "nice_len": 128,
        "mf": lzma.MF_BT4,
        "depth": 0,
    }
]


def encode_plane(plane: U8) -> bytes:
    """The payload for a plane uint8 [H, W]: a method byte and its data."""
    plane = np.ascontiguousarray(plane)
    if (plane == plane[0, 0]).all():
        return bytes([CONSTANT, plane[0, 0]])
    forms = {PLAIN: plane, PREDICTED: _residuals(plane)}
    coded = (
        bytes([method]) + lzma.compress(form.tobytes(), lzma.FORMAT_RAW, filters=_FILTERS)
        for method, form in forms.items()
    )
    return min(coded, key=len)


def decode_plane(payload: bytes, height: int, width: int) -> U8:
    """The plane uint8 [height, width]; FormatError if the payload is not that of one."""
    if len(payload) < 2 or payload[0] not in {CONSTANT, PLAIN, PREDICTED}:
        raise FormatError("its coding is unknown")
    if payload[0] == CONSTANT:
        if len(payload) != 2:
            raise FormatError("its contents have the wrong size")
        return np.full((height, width), payload[1], np.uint8)
    content = _expand(payload[1:], height * width)
    plane = np.frombuffer(content, np.uint8).reshape(height, width).copy()
    if payload[0] == PREDICTED:
        _restore(plane)
    return plane


def _expand(packed: bytes, size: int) -> bytes:
    """Unpack LZMA data of ``size`` bytes, never more; FormatError if it has more or fewer."""
    reader = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS)
    try:
        content = reader.decompress(packed, size)
        # Past the last byte there is only the mark of the end.
        rest = b"" if reader.eof else reader.decompress(b"", 1)
    except (lzma.LZMAError, EOFError) as e:
        raise FormatError("its contents cannot be unpacked") from e
    if len(content) != size or rest or not reader.eof or reader.unused_data:
        raise FormatError("its contents have the wrong size")
    return content


@njit(nogil=True, cache=True, inline="always")
def _predict(plane, y, x):  # type: ignore[no-untyped-def]
    """The value expected at (y, x) from those to the left, above, and above to the left."""
    if y == 0:
        return np.int64(plane[0, x - 1]) if x > 0 else np.int64(0)
    above = np.int64(plane[y - 1, x])
    if x == 0:
        return above
    left = np.int64(plane[y, x - 1])
    corner = np.int64(plane[y - 1, x - 1])
    if corner >= max(left, above):
        return min(left, above)
    if corner <= min(left, above):
        return max(left, above)
    return left + above - corner


@njit(nogil=True, cache=True)
def _residuals(plane):  # type: ignore[no-untyped-def]
    """Values less predictions, modulo 256: uint8 [H, W]."""
    out = np.empty_like(plane)
    for y in range(plane.shape[0]):
        for x in range(plane.shape[1]):
            out[y, x] = np.uint8((np.int64(plane[y, x]) - _predict(plane, y, x)) & 255)
    return out


@njit(nogil=True, cache=True)
def _restore(plane):  # type: ignore[no-untyped-def]
    """Residuals to values, in place."""
    for y in range(plane.shape[0]):
        for x in range(plane.shape[1]):
            plane[y, x] = np.uint8((np.int64(plane[y, x]) + _predict(plane, y, x)) & 255)
