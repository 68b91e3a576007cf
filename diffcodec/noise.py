"""Randomness that sender and receiver share: counters through an integer hash.

Nothing here keeps state and nothing is a float: a value depends on its key, its index and (for
normal noise) the length of its stream alone, so it is the same on every machine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

U32 = NDArray[np.uint32]
I64 = NDArray[np.int64]

GOLDEN = 0x9E3779B9
NOISE_UNIT = 12
"""Shared noise is in units of 2**-12 standard deviations."""

_MASK = 0xFFFFFFFF
# 2**12 / sqrt(8 (256**2 - 1) / 12) in units of 2**-20: eight bytes have this spread.
_NOISE_SCALE = round((1 << 32) / (8 * (256**2 - 1) / 12) ** 0.5)


def mix(x: U32) -> U32:
    """A bijective 32-bit hash (Wellons' lowbias32); every output bit depends on every input."""
    x = x.astype(np.uint32)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return x


def _mix(x: int) -> int:
    """:func:`mix` of one word; an array of one takes twenty times as long."""
    x ^= x >> 16
    x = x * 0x7FEB352D & _MASK
    x ^= x >> 15
    x = x * 0x846CA68B & _MASK
    return x ^ x >> 16


def derive_key(*parts: int) -> int:
    """One 32-bit key out of non-negative integers (seed, purpose, timestep, segment …)."""
    key = 0
    for part in parts:
        if part < 0:
            raise ValueError(f"key parts must not be negative: {parts}")
        while True:
            key = _mix((key ^ (part & _MASK)) + GOLDEN & _MASK)
            part >>= 32
            if not part:
                break
    return key


def counter_hash(key: int, stop: int, start: int = 0) -> U32:
    """The hashed words ``start`` … ``stop`` − 1 of the stream ``key``."""
    index = np.arange(start, stop, dtype=np.uint32) * np.uint32(GOLDEN)
    return mix(index + np.uint32(key))


def byte_sum(words: U32) -> I64:
    """Sum of the four bytes of each word, minus its mean: integers in −510…510."""
    total = np.zeros(words.shape, dtype=np.int64)
    for shift in (0, 8, 16, 24):
        total += (words >> np.uint32(shift)) & np.uint32(0xFF)
    return total - 510


def shared_normal(key: int, count: int, start: int = 0, stop: int | None = None) -> I64:
    """``count`` nearly normal integers of standard deviation 2**12 (sum of eight bytes).

    Or only those from ``start`` to before ``stop``.
    """
    stop = count if stop is None else stop
    total = byte_sum(counter_hash(key, stop, start))
    total += byte_sum(counter_hash(key, count + stop, count + start))
    return (total * _NOISE_SCALE + (1 << 19)) >> 20


def permutation(key: int, count: int) -> I64:
    """A pseudo-random permutation of 0…count−1: the order of the hashed indices."""
    return np.argsort(counter_hash(key, count), kind="stable").astype(np.int64)
