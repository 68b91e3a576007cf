"""The random trellis code: bits → values that look like draws from q, chosen from draws of p.

Sender and receiver share an endless random codebook.  The decoder's state is the last 32 bits
of the stream (a bit-shift trellis); coefficient i shifts in k_i new bits and then reads

    g_i = byte_sum(mix(state ^ key_i)),        an integer, nearly N(0, G_STD²),

which the channel scales to a candidate value of p = N(0, 1 + s_i).  The receiver only slides a
window over the bits.  The sender searches the bits for which the values lie close to the
shifts d_i it wants to convey, that is for which log q − log p of the whole sequence is large.

Invariants
* bits are used most significant first; state_i = the 32 bits that end at bit K_i = Σ_{j≤i} k_j
  of (initial state, stream);
* a value depends on bits up to K_i only, so any prefix of the bits gives a prefix of values;
* the number of survivors of the search is the sender's own business.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from diffcodec.noise import byte_sum, mix

G_STD = (4 * (256**2 - 1) / 12) ** 0.5
"""Standard deviation of g: four independent uniform bytes."""

U32 = NDArray[np.uint32]
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

_BINS = 512
_SAMPLE = 1024
_COST_RANGE = 30.0
"""Paths more than this many nats behind the best are never kept in preference to others."""


def states(bits: NDArray[np.uint8], ends: I64, initial: int) -> U32:
    """State after each coefficient; ``ends`` = K_i, all ≤ len(bits); bits are 0/1."""
    head = np.unpackbits(np.array([initial], dtype=">u4").view(np.uint8))
    stream = np.packbits(np.concatenate([head, bits, np.zeros(40, dtype=np.uint8)]))
    first = ends >> 3
    window = np.zeros(len(ends), dtype=np.uint64)
    for offset in range(5):
        window = (window << np.uint64(8)) | stream[first + offset]
    shift = np.uint64(8) - (ends & 7).astype(np.uint64)
    return ((window >> shift) & np.uint64(0xFFFFFFFF)).astype(np.uint32)


def decode(bits: NDArray[np.uint8], ends: I64, keys: U32, initial: int) -> I64:
    """The receiver: g for every coefficient, int64 in −510…510."""
    return byte_sum(mix(states(bits, ends, initial) ^ keys))


@njit(nogil=True, cache=True, fastmath=True, inline="always")
def _extend(state, key, d, scale, penalty, cost):  # type: ignore[no-untyped-def]
    """Cost in nats of a path after one more coefficient: −log q/p up to a constant."""
    # numba widens uint32 products to 64 bits: every operation is cast back, as mix() has it.
    h = np.uint32(state ^ key)
    h = np.uint32(h ^ np.uint32(h >> np.uint32(16)))
    h = np.uint32(h * np.uint32(0x7FEB352D))
    h = np.uint32(h ^ np.uint32(h >> np.uint32(15)))
    h = np.uint32(h * np.uint32(0x846CA68B))
    h = np.uint32(h ^ np.uint32(h >> np.uint32(16)))
    total = np.uint32(h & np.uint32(255)) + np.uint32(np.uint32(h >> np.uint32(8)) & np.uint32(255))
    total += np.uint32(np.uint32(h >> np.uint32(16)) & np.uint32(255))
    total += np.uint32(h >> np.uint32(24))
    y = np.float32(np.int32(total) - np.int32(510)) * scale
    return cost + np.float32(0.5) * (y - d) * (y - d) - penalty * y * y


# The inner loops are functions of their own so that the compiler sees what does not overlap.


@njit(nogil=True, cache=True, fastmath=True)
def _stay(count, state, cost, key, d, scale, penalty):  # type: ignore[no-untyped-def]
    """Costs of all paths, in place, after one more coefficient that takes no bit."""
    for p in range(count):
        cost[p] = _extend(state[p], key, d, scale, penalty, cost[p])


@njit(nogil=True, cache=True, fastmath=True)
def _shift(count, state, k):  # type: ignore[no-untyped-def]
    """Make room for ``k`` bits in every state."""
    factor = np.uint32(1 << k)  # numba would shift in 64 bits
    for p in range(count):
        state[p] = np.uint32(state[p] * factor)


@njit(nogil=True, cache=True, fastmath=True)
def _advance(count, state, cost, out, branch, key, d, scale, penalty):  # type: ignore[no-untyped-def]
    """Costs ``out`` of all paths after one more coefficient whose bits are ``branch``."""
    bits = np.uint32(branch)
    for p in range(count):
        out[p] = _extend(np.uint32(state[p] | bits), key, d, scale, penalty, cost[p])


@njit(nogil=True, cache=True, fastmath=True)
def _threshold(count, keep, cost, histogram):  # type: ignore[no-untyped-def]
    """(lowest cost seen, cost that about ``keep`` of ``count`` > ``keep`` paths do not exceed).

    Estimated from a sample: how many survive may wander a little, and that costs nothing, while
    an exact selection would take most of the search's time.
    """
    stride = max(1, count // _SAMPLE) | 1  # odd, so as not to keep step with the branches
    lowest = cost[0]
    highest = cost[0]
    taken = 0
    for p in range(0, count, stride):
        lowest = min(lowest, cost[p])
        highest = max(highest, cost[p])
        taken += 1
    width = max(min(highest - lowest, np.float32(_COST_RANGE)), np.float32(1e-20))
    factor = np.float32(_BINS - 1) / width
    histogram[:] = 0
    for p in range(0, count, stride):
        histogram[np.int32(min((cost[p] - lowest) * factor, np.float32(_BINS - 1)))] += 1
    wanted = taken * keep / count
    below = 0
    place = 0
    while place < _BINS - 1 and below + histogram[place] <= wanted:
        below += histogram[place]
        place += 1
    share = np.float32((wanted - below) / max(1, histogram[place]))
    return lowest, lowest + (np.float32(place) + share) / factor


@njit(nogil=True, cache=True, fastmath=True)
def _keep(count, state, origin, cost, branch, lowest, threshold, to_state, to_origin, to_cost):  # type: ignore[no-untyped-def]
    """Copy the paths that cost no more than ``threshold``, costs less ``lowest``: their number.

    There is no branch: every path is written, and the target moves on past those that are kept,
    so the targets have one place to spare.
    """
    bits = np.uint32(branch)
    n = 0
    for p in range(count):
        to_state[n] = np.uint32(state[p] | bits)
        to_origin[n] = origin[p]
        to_cost[n] = cost[p] - lowest
        n += np.int64(cost[p] <= threshold)  # type: ignore[assignment]
    return n


@njit(nogil=True, cache=True, fastmath=True)
def _part_twins(count, state, cost):  # type: ignore[no-untyped-def]
    """Make the twins of the cheapest path hopeless.

    Paths whose last 32 bits agree have the same future; without this they could crowd out
    every other path, for good.
    """
    best = 0
    for p in range(count):
        if cost[p] < cost[best]:
            best = p
    for p in range(count):
        if state[p] == state[best] and p != best:
            cost[p] += np.float32(1e6)


@njit(nogil=True, cache=True, fastmath=True)
def search(d, scale, penalty, k, keys, initial, survivors):  # type: ignore[no-untyped-def]
    """The sender: M-algorithm search for the stream that best conveys ``d``.

    d: float32 [n], shifts; scale: float32 [n], √(1+s)/G_STD; penalty: float32 [n],
    1/(2(1+s)); k: int64 [n], bits per coefficient, each ≤ 31; keys: uint32 [n];
    initial: uint32 state; survivors: M.  Returns uint8 [Σk] of 0/1.

    Every ≤ 32 bits all survivors' states are stored with a pointer to their ancestor in the
    previous store, which is all that is needed to read the best path back.
    """
    n = len(d)
    total_bits = 0
    widest = 0
    for i in range(n):
        total_bits += k[i]
        widest = max(widest, k[i])
    # The survivors' number wanders; the branches of one coefficient all fit before they are cut.
    most = survivors + survivors // 4 + 64
    room = 2 * most + 1
    state = np.empty(room, np.uint32)
    cost = np.empty(room, np.float32)
    origin = np.zeros(room, np.int32)
    new_state = np.empty(room, np.uint32)
    new_origin = np.empty(room, np.int32)
    new_cost = np.empty(room, np.float32)
    child_cost = np.empty(most << widest, np.float32)
    histogram = np.empty(_BINS, np.int32)
    stores = total_bits // max(1, 32 - widest) + 2
    kept_state = np.empty((stores, most), np.uint32)
    kept_origin = np.empty((stores, most), np.int32)
    kept_bits = np.zeros(stores, np.int64)
    state[0] = initial
    cost[0] = 0.0
    count = 1
    stored = 0
    pending = 0
    for i in range(n):
        if k[i] == 0:
            _stay(count, state, cost, keys[i], d[i], scale[i], penalty[i])
            continue
        if pending + k[i] > 32:
            kept_state[stored, :count] = state[:count]
            kept_origin[stored, :count] = origin[:count]
            kept_bits[stored] = pending
            stored += 1
            pending = 0
            _part_twins(count, state, cost)
            for p in range(count):
                origin[p] = p
        branches = 1 << k[i]
        _shift(count, state, k[i])
        for b in range(branches):
            child = child_cost[b * count : (b + 1) * count]
            _advance(count, state, cost, child, b, keys[i], d[i], scale[i], penalty[i])
        pending += k[i]
        total = count * branches
        lowest = np.float32(0.0)
        threshold = np.float32(np.inf)
        if total > survivors:
            lowest, threshold = _threshold(total, survivors, child_cost, histogram)
        kept = 0
        for b in range(branches):
            child = child_cost[b * count : (b + 1) * count]
            kept += _keep(
                count,
                state,
                origin,
                child,
                b,
                lowest,
                threshold,
                new_state[kept:],
                new_origin[kept:],
                new_cost[kept:],
            )
            kept = min(kept, most)
        count = kept
        state, new_state = new_state, state
        origin, new_origin = new_origin, origin
        cost, new_cost = new_cost, cost
    best: int = 0
    for p in range(count):
        if cost[p] < cost[best]:
            best = p
    bits = np.empty(total_bits, np.uint8)
    place = total_bits
    word = state[best]
    ancestor = origin[best]
    for b in range(pending):
        place -= 1
        bits[place] = (word >> np.uint32(b)) & np.uint32(1)
    for store in range(stored - 1, -1, -1):
        word = kept_state[store, ancestor]
        for b in range(kept_bits[store]):
            place -= 1
            bits[place] = (word >> np.uint32(b)) & np.uint32(1)
        ancestor = kept_origin[store, ancestor]
    return bits
