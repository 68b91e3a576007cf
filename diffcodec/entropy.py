"""Ordinary entropy coding by constriction: corrections of outliers and final-layer symbols.

Probabilities are handed over as multiples of 2**-24 that sum to one with no zero entry, so
constriction's float input is the same on both sides.  (Its fast path rescales them once more so
that no symbol is impossible; docs/format.md has the rule.)
"""

from __future__ import annotations

import math
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from diffcodec.errors import FormatError

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

PRECISION = 24

Categorical = constriction.stream.model.Categorical
Uniform = constriction.stream.model.Uniform
CATEGORICAL_FAMILY = Categorical(perfect=False)
"""Of categorical models, a row of probabilities each."""
RangeEncoder = constriction.stream.queue.RangeEncoder
RangeDecoder = constriction.stream.queue.RangeDecoder
SymbolModel = Any
"""constriction's models carry no type annotations."""


def integer_probabilities(weights: F64) -> I64:
    """Integers ≥ 1 that sum to 2**24, close to ``weights`` (non-negative, any scale).

    Only additions, products and floors: the same everywhere for the same weights.  What is
    left over goes to the largest entry.
    """
    total = math.fsum(weights)  # exact, whatever the order of summation
    spare = (1 << PRECISION) - len(weights)
    counts = np.floor(weights * (spare / total)).astype(np.int64) + 1
    counts[int(np.argmax(weights))] += (1 << PRECISION) - int(counts.sum())
    return counts


def categorical(counts: I64) -> SymbolModel:
    """constriction's model of integer probabilities that sum to 2**24."""
    if int(counts.sum()) != 1 << PRECISION or int(counts.min()) < 1:
        raise ValueError("probabilities must be positive and sum to 2**24")
    return Categorical(counts / float(1 << PRECISION), perfect=False)


class Encoder:
    """A constriction range coder whose bytes are trimmed to what the decoder needs."""

    def __init__(self) -> None:
        self._coder = RangeEncoder()

    def encode(self, symbols: I64, model: SymbolModel, *parameters: F64) -> None:
        """Append symbols of one model, or of a family with an array of each of its parameters."""
        self._coder.encode(np.ascontiguousarray(symbols, dtype=np.int32), model, *parameters)

    def getvalue(self) -> bytes:
        """The shortest code that the decoder, which reads zeros after its end, takes for ours."""
        position, (lower, width) = self._coder.pos()
        words = self._coder.get_compressed().astype(">u4").tobytes()
        if lower + width <= 1 << 64:  # otherwise a carry into earlier words is pending
            for size in range(9):
                unit = 1 << (64 - 8 * size)
                point = -(-lower // unit) * unit
                if point < lower + width:
                    tail = (point >> (64 - 8 * size)).to_bytes(size, "big") if size else b""
                    words = words[: 4 * position] + tail
                    break
        return words.rstrip(b"\0")


class Decoder:
    """The reader of :class:`Encoder`'s bytes."""

    def __init__(self, code: bytes) -> None:
        padded = code + bytes(-len(code) % 4 + 8)
        self._coder = RangeDecoder(np.frombuffer(padded, dtype=">u4").astype(np.uint32))

    def decode(self, count: int, model: SymbolModel, *parameters: F64) -> I64:
        """The next ``count`` symbols of one model, or of a family with arrays of its parameters.

        FormatError on impossible bytes.
        """
        try:
            found = self._coder.decode(model, *(parameters or (count,)))
            return np.asarray(found, dtype=np.int64)
        except (AssertionError, ValueError) as e:
            raise FormatError(f"entropy-coded data is damaged ({e})") from e


def _uniform(size: int) -> SymbolModel:
    return Uniform(max(2, size))


def encode_escapes(counts: I64) -> bytes:
    """Corrections of a segment: sparse integers [n], not all zero.

    How many, then for each: its place among those left, and the magnitude in Elias gamma
    with its sign, all as equally likely symbols of the range coder.
    """
    coder = Encoder()
    n = len(counts)
    places = np.flatnonzero(counts)
    _encode_gamma(coder, len(places))
    start = 0
    for left, place in zip(range(len(places), 0, -1), places, strict=True):
        coder.encode(np.array([place - start]), _uniform(n - start - left + 1))
        start = int(place) + 1
        value = int(counts[place])
        _encode_gamma(coder, abs(value))
        coder.encode(np.array([value < 0]), _uniform(2))
    return coder.getvalue()


def decode_escapes(code: bytes, n: int) -> I64:
    """Reverse of :func:`encode_escapes`; FormatError if the numbers cannot be."""
    coder = Decoder(code)
    counts = np.zeros(n, dtype=np.int64)
    number = _decode_gamma(coder)
    if number > n:
        raise FormatError(f"{number} corrections of {n} coefficients")
    start = 0
    for left in range(number, 0, -1):
        choices = n - start - left + 1
        place = start + int(coder.decode(1, _uniform(choices))[0])
        if place - start >= choices:
            raise FormatError("a correction lies outside its segment")
        magnitude = _decode_gamma(coder)
        negative = int(coder.decode(1, _uniform(2))[0])
        counts[place] = -magnitude if negative else magnitude
        start = place + 1
    return counts


def _encode_gamma(coder: Encoder, value: int) -> None:
    """value ≥ 1: the number of bits after the first (0…20), then these bits."""
    size = value.bit_length() - 1
    if size > 20:
        raise ValueError(f"correction {value} is too large")
    coder.encode(np.array([size]), _GAMMA)
    if size:
        coder.encode(np.array([value - (1 << size)]), Uniform(1 << size))


def _decode_gamma(coder: Decoder) -> int:
    size = int(coder.decode(1, _GAMMA)[0])
    rest = int(coder.decode(1, Uniform(1 << size))[0]) if size else 0
    return (1 << size) + rest


_GAMMA = categorical(integer_probabilities(0.5 ** np.arange(21, dtype=np.float64)))
"""Number of bits of a magnitude: each further bit half as likely."""
