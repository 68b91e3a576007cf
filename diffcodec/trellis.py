"""The random trellis code: bits → values that look like draws from q, chosen from draws of p.

Sender and receiver share an endless random codebook.  The decoder's state is the last 32 bits
of the stream (a bit-shift trellis); coefficient i shifts in k_i new bits and then reads

    g_i = ± byte_sum(mix((state | 1) ^ key_i)),        an integer, nearly N(0, G_STD²),

the sign being that of the latest bit, + for 1: of two paths that differ in it alone, one always
lies towards the shift.  The channel scales g_i to a candidate value of p = N(0, 1 + s_i).  The
receiver only slides a window over the bits.  The sender searches the bits for which the values
lie close to the shifts d_i it wants to convey, that is for which log q − log p of the whole
sequence is large.

Invariants
* bits are used most significant first; state_i = the 32 bits that end at bit K_i = lead +
  Σ_{j≤i} k_j of (initial state, stream), of which ``lead`` bits come before any coefficient;
* a value depends on bits up to K_i only, so any prefix of the bits gives a prefix of values;
* the number of survivors of the search is the sender's own business.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from diffcodec.noise import byte_sum, mix
from diffcodec.simd import LANES, places_above, places_within

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
    state = states(bits, ends, initial)
    sign = 2 * (state & np.uint32(1)).astype(np.int64) - 1
    return sign * byte_sum(mix((state | np.uint32(1)) ^ keys))


@njit(nogil=True, cache=True, fastmath=True, inline="always")
def _odd_value(state, key):  # type: ignore[no-untyped-def]
    """g of a state whose last bit is 1; that of its twin with a 0 is the opposite."""
    # numba widens uint32 products to 64 bits: every operation is cast back, as mix() has it.
    h = np.uint32(state ^ key)
    h = np.uint32(h ^ np.uint32(h >> np.uint32(16)))
    h = np.uint32(h * np.uint32(0x7FEB352D))
    h = np.uint32(h ^ np.uint32(h >> np.uint32(15)))
    h = np.uint32(h * np.uint32(0x846CA68B))
    h = np.uint32(h ^ np.uint32(h >> np.uint32(16)))
    # The bytes two and two, then both sums.
    low = np.uint32(h & np.uint32(0x00FF00FF))
    high = np.uint32(np.uint32(h >> np.uint32(8)) & np.uint32(0x00FF00FF))
    pairs = np.uint32(low + high)
    total = np.uint32(np.uint32(pairs & np.uint32(0xFFFF)) + np.uint32(pairs >> np.uint32(16)))
    return np.int32(np.int32(total) - np.int32(510))


# A path's cost in nats is −log q/p up to what all paths share: ½ (y − d)² − y² / (2 (1 + s)) less
# ½ d², and with y = g · scale that is g (a g − b), a = (½ − penalty) scale² and b = d · scale.
# The inner loops are functions of their own so that the compiler sees what does not overlap.


@njit(nogil=True, cache=True, fastmath=True)
def _stay_one(count, state, cost, key, a, b):  # type: ignore[no-untyped-def]
    """Costs of all paths, in place, after one more coefficient that takes no bit."""
    for p in range(count):
        odd = _odd_value(np.uint32(state[p] | np.uint32(1)), key)
        flip = np.int32(np.int32(state[p] & np.uint32(1)) - np.int32(1))
        g = np.float32(np.int32(np.int32(odd ^ flip) - flip))
        cost[p] += g * (a * g - b)


@njit(nogil=True, cache=True, fastmath=True)
def _stay_four(count, state, cost, keys, a, b):  # type: ignore[no-untyped-def]
    """The same after four of them: less than one after another, as all see the same states."""
    key0, key1, key2, key3 = keys[0], keys[1], keys[2], keys[3]
    a0, a1, a2, a3 = a[0], a[1], a[2], a[3]
    b0, b1, b2, b3 = b[0], b[1], b[2], b[3]
    for p in range(count):
        odd = np.uint32(state[p] | np.uint32(1))
        g0 = np.float32(_odd_value(odd, key0))
        g1 = np.float32(_odd_value(odd, key1))
        g2 = np.float32(_odd_value(odd, key2))
        g3 = np.float32(_odd_value(odd, key3))
        towards = b0 * g0 + b1 * g1 + b2 * g2 + b3 * g3
        cost[p] += a0 * g0 * g0 + a1 * g1 * g1 + a2 * g2 * g2 + a3 * g3 * g3
        cost[p] += -towards if state[p] == odd else towards


@njit(nogil=True, cache=True, fastmath=True)
def _stay(first, stop, count, state, cost, keys, away, towards):  # type: ignore[no-untyped-def]
    """Costs of all paths, in place, after the coefficients first … stop − 1, which take no bit."""
    fours = first + (stop - first) // 4 * 4
    for i in range(first, fours, 4):
        own = slice(i, i + 4)
        _stay_four(count, state, cost, keys[own], away[own], towards[own])
    for i in range(fours, stop):
        _stay_one(count, state, cost, keys[i], away[i], towards[i])


@njit(nogil=True, cache=True, fastmath=True)
def _part(count, state, cost, far, key, a, b):  # type: ignore[no-untyped-def]
    """All paths become the nearer of their children after one more coefficient that takes a bit.

    far: costs of the further ones, whose states differ in the last bit.
    """
    for p in range(count):
        odd = np.uint32(state[p] | np.uint32(1))
        g = np.float32(_odd_value(odd, key))
        both = cost[p] + a * g * g
        towards = b * g
        cost[p] = both - abs(towards)
        far[p] = both + abs(towards)
        state[p] = np.uint32(odd - np.uint32(towards < 0))


@njit(nogil=True, cache=True, fastmath=True)
def _shift(count, state, k):  # type: ignore[no-untyped-def]
    """Make room for ``k`` bits in every state."""
    factor = np.uint32(1 << k)  # numba would shift in 64 bits
    for p in range(count):
        state[p] = np.uint32(state[p] * factor)


@njit(nogil=True, cache=True, fastmath=True)
def _advance(count, state, cost, zero, one, branch, key, a, b):  # type: ignore[no-untyped-def]
    """Costs of all paths after one more coefficient whose bits are ``branch`` and a 0 or a 1."""
    bits = np.uint32(2 * branch + 1)
    for p in range(count):
        g = np.float32(_odd_value(np.uint32(state[p] | bits), key))
        both = cost[p] + a * g * g
        zero[p] = both + b * g
        one[p] = both - b * g


@njit(nogil=True, cache=True, fastmath=True)
def _threshold(count, keep, first, second, histogram):  # type: ignore[no-untyped-def]
    """Cost that about ``keep`` of ``count`` paths in each of two arrays together do not exceed.

    Estimated from a sample: how many survive may wander a little, and that costs nothing, while
    an exact selection would take most of the search's time.
    """
    stride = max(1, 2 * count // _SAMPLE) | 1  # odd, so as not to keep step with the branches
    lowest = first[0]
    highest = first[0]
    taken = 0
    for p in range(0, count, stride):
        lowest = min(lowest, first[p], second[p])
        highest = max(highest, first[p], second[p])
        taken += 2
    width = max(min(highest - lowest, np.float32(_COST_RANGE)), np.float32(1e-20))
    factor = np.float32(_BINS - 1) / width
    histogram[:] = 0
    for p in range(0, count, stride):
        histogram[np.int32(min((first[p] - lowest) * factor, np.float32(_BINS - 1)))] += 1
        histogram[np.int32(min((second[p] - lowest) * factor, np.float32(_BINS - 1)))] += 1
    wanted = taken * keep / (2 * count)
    below = 0
    place = 0
    while place < _BINS - 1 and below + histogram[place] <= wanted:
        below += histogram[place]
        place += 1
    share = np.float32((wanted - below) / max(1, histogram[place]))
    return lowest + (np.float32(place) + share) / factor


@njit(nogil=True, cache=True, fastmath=True)
def _keep(number, places, state, origin, cost, branch, to_state, to_origin, to_cost):  # type: ignore[no-untyped-def]
    """Copy the paths at ``places``."""
    bits = np.uint32(branch)
    for n in range(number):
        to_state[n] = np.uint32(state[places[n]] | bits)
    for n in range(number):
        to_origin[n] = origin[places[n]]
    for n in range(number):
        to_cost[n] = cost[places[n]]


@njit(nogil=True, cache=True, fastmath=True)
def _settle(number, state, origin, cost, far, holes, extras):  # type: ignore[no-untyped-def]
    """The further children of the paths ``extras`` go to the places ``holes``.

    Their nearer twins cost no more, so that these are still where their parents were.
    """
    for n in range(number):
        state[holes[n]] = np.uint32(state[extras[n]] ^ np.uint32(1))
    for n in range(number):
        origin[holes[n]] = origin[extras[n]]
    for n in range(number):
        cost[holes[n]] = far[extras[n]]


@njit(nogil=True, cache=True, fastmath=True)
def _replace(count, most, state, origin, cost, far, threshold, holes, extras):  # type: ignore[no-untyped-def]
    """Keep the children of :func:`_part` that cost no more than ``threshold``: their number.

    Most survivors are nearer children, which stay where they are; further ones take the places
    of those that do not survive.
    """
    free = places_above(count, cost, threshold, holes)  # neither child survives
    wanted = places_within(count, far, threshold, extras)  # both do
    wanted = min(wanted, free + most - count)
    for n in range(free, wanted):  # places behind the last one
        holes[n] = count + n - free
    _settle(wanted, state, origin, cost, far, holes, extras)
    end = count + max(0, wanted - free)
    for n in range(free - 1, wanted - 1, -1):  # the holes that are left, last ones first
        end -= 1
        state[holes[n]] = state[end]
        origin[holes[n]] = origin[end]
        cost[holes[n]] = cost[end]
    return end


@njit(nogil=True, cache=True, fastmath=True)
def _part_twins(count, state, cost):  # type: ignore[no-untyped-def]
    """Make the twins of the cheapest path hopeless, and its cost 0: only differences count.

    Paths whose last 32 bits agree have the same future; without this they could crowd out
    every other path, for good.
    """
    best = 0
    for p in range(count):
        if cost[p] < cost[best]:
            best = p
    lowest = cost[best]
    for p in range(count):
        twin = state[p] == state[best] and p != best
        cost[p] += np.float32(1e6) if twin else -lowest


@njit(nogil=True, cache=True, fastmath=True)
def search(d, scale, penalty, k, keys, initial, lead, survivors):  # type: ignore[no-untyped-def]
    """The sender: M-algorithm search for the stream that best conveys ``d``.

    d: float32 [n], shifts; scale: float32 [n], √(1+s)/G_STD; penalty: float32 [n],
    1/(2(1+s)); k: int64 [n], bits per coefficient, each ≤ 31; keys: uint32 [n];
    initial: uint32 state; lead: bits before the first coefficient, ≤ 31; survivors: M.
    Returns uint8 [lead + Σk] of 0/1.

    Every ≤ 32 bits all survivors' states are stored with a pointer to their ancestor in the
    previous store, which is all that is needed to read the best path back.
    """
    n = len(d)
    total_bits = lead
    widest = 0
    for i in range(n):
        total_bits += k[i]
        widest = max(widest, k[i])
    # The survivors' number wanders; the branches of one coefficient all fit before they are cut.
    most = max(survivors + survivors // 4 + 64, 1 << lead)
    room = 2 * most + 1
    state = np.empty(room, np.uint32)
    cost = np.empty(room, np.float32)
    origin = np.zeros(room, np.int32)
    new_state = np.empty(room, np.uint32)
    new_origin = np.empty(room, np.int32)
    new_cost = np.empty(room, np.float32)
    child_cost = np.empty(most << widest, np.float32)
    histogram = np.empty(_BINS, np.int32)
    holes = np.empty(most + LANES, np.int32)
    extras = np.empty(most + LANES, np.int32)
    stores = total_bits // max(1, 32 - widest) + 2
    kept_state = np.empty((stores, most), np.uint32)
    kept_origin = np.empty((stores, most), np.int32)
    kept_bits = np.zeros(stores, np.int64)
    count = 1 << lead
    for p in range(count):
        state[p] = np.uint32(np.uint32(initial * np.uint32(count)) | np.uint32(p))
    cost[:count] = 0.0
    stored = 0
    pending = lead
    away = (np.float32(0.5) - penalty) * scale * scale
    towards = d * scale
    parting: I64 = np.flatnonzero(k)
    done = 0
    for i in parting:
        _stay(done, i, count, state, cost, keys, away, towards)
        done = i + 1
        key, a, b = keys[i], away[i], towards[i]
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
        pending += k[i]
        total = count * branches
        if k[i] == 1 and total > survivors:
            _part(count, state, cost, child_cost, key, a, b)
            threshold = _threshold(count, survivors, cost, child_cost, histogram)
            count = _replace(count, most, state, origin, cost, child_cost, threshold, holes, extras)
            continue
        for pair in range(branches // 2):
            zero = child_cost[2 * pair * count : (2 * pair + 1) * count]
            one = child_cost[(2 * pair + 1) * count : (2 * pair + 2) * count]
            _advance(count, state, cost, zero, one, pair, key, a, b)
        threshold = np.float32(np.inf)
        if total > survivors:
            half = total // 2
            threshold = _threshold(half, survivors, child_cost, child_cost[half:], histogram)
        kept = 0
        for branch in range(branches):
            costs = child_cost[branch * count : (branch + 1) * count]
            number = min(places_within(count, costs, threshold, extras), most - kept)
            to = slice(kept, kept + number)
            _keep(
                number,
                extras,
                state,
                origin,
                costs,
                branch,
                new_state[to],
                new_origin[to],
                new_cost[to],
            )
            kept += number
        count = kept
        state, new_state = new_state, state
        origin, new_origin = new_origin, origin
        cost, new_cost = new_cost, cost
    _stay(done, n, count, state, cost, keys, away, towards)
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
