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

_BINS = 1024
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


@njit(nogil=True, cache=True, fastmath=True)
def _select(count, keep, state, parent, cost, to_state, to_parent, to_cost, rank, histogram):  # type: ignore[no-untyped-def]
    """Copy the ``keep`` cheapest of ``count`` > ``keep`` paths, costs relative to the best.

    The threshold comes from a histogram, not a sort.  The copies have no branch: they always
    write and move on only past a path that is kept, so the targets have one place to spare.
    """
    best = cost[0]
    worst = cost[0]
    for p in range(count):
        best = min(best, cost[p])
        worst = max(worst, cost[p])
    width = min(worst - best, np.float32(_COST_RANGE))
    factor = np.float32(_BINS - 1) / max(width, np.float32(1e-20))
    top = np.float32(_BINS - 1)
    for p in range(count):
        rank[p] = np.int32(min((cost[p] - best) * factor, top))
    histogram[:] = 0
    for p in range(0, count - 1, 2):  # two counters: equal neighbours need not wait
        histogram[0, rank[p]] += 1
        histogram[1, rank[p + 1]] += 1
    if count % 2:
        histogram[0, rank[count - 1]] += 1
    threshold = 0
    n_below = 0
    while n_below + histogram[0, threshold] + histogram[1, threshold] <= keep:
        n_below += histogram[0, threshold] + histogram[1, threshold]
        threshold += 1
    n = 0
    at = n_below
    for p in range(count):
        to_state[n] = state[p]
        to_parent[n] = parent[p]
        to_cost[n] = cost[p] - best
        n += np.int64(rank[p] < threshold)  # type: ignore[assignment]
    for p in range(count):  # the threshold's own bin fills what is left, in order
        if at == keep:
            break
        if rank[p] == threshold:
            to_state[at] = state[p]
            to_parent[at] = parent[p]
            to_cost[at] = cost[p] - best
            at += 1
    return at


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
    capacity = survivors << widest
    # One place more than there are survivors: where _select writes what it does not keep.
    state = np.empty(survivors + 1, np.uint32)
    cost = np.empty(survivors + 1, np.float32)
    origin = np.zeros(survivors + 1, np.int32)
    rank = np.empty(capacity, np.int32)
    new_state = np.empty(capacity, np.uint32)
    new_cost = np.empty(capacity, np.float32)
    new_origin = np.empty(capacity, np.int32)
    histogram = np.empty((2, _BINS), np.int32)
    stores = total_bits // max(1, 32 - widest) + 2
    kept_state = np.empty((stores, survivors), np.uint32)
    kept_origin = np.empty((stores, survivors), np.int32)
    kept_bits = np.zeros(stores, np.int64)
    state[0] = initial
    cost[0] = 0.0
    count = 1
    stored = 0
    pending = 0
    for i in range(n):
        if k[i] == 0:
            for p in range(count):
                cost[p] = _extend(state[p], keys[i], d[i], scale[i], penalty[i], cost[p])
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
        for b in range(branches):
            base = b * count
            for p in range(count):
                s = np.uint32(np.uint32(state[p] << np.uint32(k[i])) | np.uint32(b))
                new_state[base + p] = s
                new_cost[base + p] = _extend(s, keys[i], d[i], scale[i], penalty[i], cost[p])
                new_origin[base + p] = origin[p]
        pending += k[i]
        total = count * branches
        if total <= survivors:
            state[:total] = new_state[:total]
            cost[:total] = new_cost[:total]
            origin[:total] = new_origin[:total]
            count = total
        else:
            count = _select(
                total,
                survivors,
                new_state,
                new_origin,
                new_cost,
                state,
                origin,
                cost,
                rank,
                histogram,
            )
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
