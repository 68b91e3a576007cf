"""Bits, variable-length integers and checks: the smallest pieces of the format, in pairs.

Bits fill bytes from the most significant end.  Readers raise EOFError when the bytes end, so
that callers can tell a cut from a contradiction.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]


def zigzag(value: int) -> int:
    """0, −1, 1, −2, 2, … as 0, 1, 2, 3, 4, …."""
    return 2 * value if value >= 0 else -2 * value - 1


def from_zigzag(number: int) -> int:
    """Reverse of :func:`zigzag`."""
    return -(number + 1) // 2 if number % 2 else number // 2


class BitWriter:
    """Collects bits; :meth:`getvalue` needs a whole number of bytes."""

    def __init__(self) -> None:
        self._parts: list[U8] = []
        self.bit_length = 0

    def write_array(self, bits: U8) -> None:
        """Append an array of 0/1."""
        self._parts.append(bits)
        self.bit_length += len(bits)

    def write(self, value: int, count: int) -> None:
        """Append the ``count`` low bits of ``value``, most significant first."""
        self.write_array(
            np.array([value >> i & 1 for i in range(count - 1, -1, -1)], dtype=np.uint8)
        )

    def write_signed_gamma(self, value: int) -> None:
        """Elias gamma code of the zigzag of ``value``: 0 takes 1 bit, ±1 and −2 take 3 …"""
        number = zigzag(value) + 1
        self.write(number, 2 * number.bit_length() - 1)

    def align(self) -> None:
        """Fill the current byte with zeros."""
        self.write(0, -self.bit_length % 8)

    def write_bytes(self, content: bytes) -> None:
        self.write_array(np.unpackbits(np.frombuffer(content, dtype=np.uint8)))

    def write_varint(self, value: int) -> None:
        self.write_bytes(encode_varint(value))

    def getvalue(self) -> bytes:
        if self.bit_length % 8:
            raise ValueError("not a whole number of bytes")
        return np.packbits(np.concatenate(self._parts)).tobytes() if self._parts else b""


class BitReader:
    """Reads what :class:`BitWriter` wrote; ``position`` is in bits."""

    def __init__(self, content: bytes) -> None:
        self._bits = np.unpackbits(np.frombuffer(content, dtype=np.uint8))
        self.position = 0

    def read_array(self, count: int) -> U8:
        """The next ``count`` bits, fewer at the end of the bytes."""
        bits = self._bits[self.position : self.position + count]
        self.position += len(bits)
        return bits

    def read(self, count: int) -> int:
        bits = self.read_array(count)
        if len(bits) < count:
            raise EOFError
        return int("".join(map(str, bits)) or "0", 2)

    def read_signed_gamma(self) -> int:
        zeros = 0
        while not self.read(1):
            zeros += 1
        return from_zigzag((1 << zeros | self.read(zeros)) - 1)

    def align(self) -> None:
        self.position += -self.position % 8

    def read_bytes(self, count: int) -> bytes:
        bits = self.read_array(8 * count)
        if len(bits) < 8 * count:
            raise EOFError
        return np.packbits(bits).tobytes()

    def read_varint(self) -> int:
        value, used = decode_varint(np.packbits(self._bits[self.position :][:72]).tobytes(), 0)
        self.position += 8 * used
        return value


def encode_varint(value: int) -> bytes:
    """One byte below 240, two below 2288, else 240 + n and the value in n − 8 … bytes.

    0…239: itself.  240…247: 240 + 256·(b − 240) + next byte.  248 + n: n + 2 bytes, big-endian.
    """
    if value < 0:
        raise ValueError(f"{value} is negative")
    if value < 240:
        return bytes([value])
    if value < 2288:
        rest = value - 240
        return bytes([240 + (rest >> 8), rest & 255])
    size = max(2, -(-value.bit_length() // 8))
    if size > 8:
        raise ValueError(f"{value} is too large")
    return bytes([246 + size]) + value.to_bytes(size, "big")


def decode_varint(content: bytes, start: int) -> tuple[int, int]:
    """(value, bytes used) of the number at ``start``; EOFError if it is cut."""
    head = content[start : start + 1]
    if not head:
        raise EOFError
    first = head[0]
    if first < 240:
        return first, 1
    if first < 248:
        tail = content[start + 1 : start + 2]
        if not tail:
            raise EOFError
        return 240 + ((first - 240) << 8 | tail[0]), 2
    size = first - 246
    tail = content[start + 1 : start + 1 + size]
    if len(tail) < size:
        raise EOFError
    return int.from_bytes(tail, "big"), 1 + size


def crc8(content: bytes) -> int:
    """CRC-8 (polynomial 0x07, initial value 0xFF)."""
    crc = 0xFF
    for byte in content:
        crc = _CRC8[crc ^ byte]
    return crc


def _crc8_table() -> bytes:
    table = bytearray()
    for value in range(256):
        for _ in range(8):
            value = (value << 1) ^ (0x107 if value & 0x80 else 0)
        table.append(value & 0xFF)
    return bytes(table)


_CRC8 = _crc8_table()
