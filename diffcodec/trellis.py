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
from diffcodec.paths import HOPELESS, LANES, branch, stay

G_STD = (4 * (256**2 - 1) / 12) ** 0.5
"""Standard deviation of g: four independent uniform bytes."""

U32 = NDArray[np.uint32]
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

_SAMPLE = 1024
"""About so many costs tell which paths survive."""
_HALVINGS = 12
"""Until the threshold is known to a fraction of a nat."""


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


@njit(nogil=True, cache=True)
def _not_above(values, limit):  # type: ignore[no-untyped-def]
    """How many of the values do not exceed the limit."""
    number = np.int32(0)
    for p in range(len(values)):
        number = np.int32(number + np.int32(values[p] <= limit))
    return number


@njit(nogil=True, cache=True)
def _threshold(values, wanted):  # type: ignore[no-untyped-def]
    """Cost that hardly more than ``wanted`` of the values, but at least one, do not exceed.

    By counting, as compilers have vectors for it and none for sorting or for histograms.
    """
    low = high = values[0]
    step = np.float32(1.0)
    while _not_above(values, low) > wanted:
        low -= step
        step *= np.float32(2.0)
    while _not_above(values, high) <= wanted:
        high += step
        step *= np.float32(2.0)
    for _ in range(_HALVINGS):
        middle = np.float32(0.5) * (low + high)
        if _not_above(values, middle) > wanted:
            high = middle
        else:
            low = middle
    return high


@njit(nogil=True, cache=True)
def _limit(count, paths, keep, k, key, away, towards, some, children):  # type: ignore[no-untyped-def]
    """Cost that about ``keep`` of the children of all paths do not exceed.

    Estimated from those of a sample of the paths, evenly spread: how many survive may wander a
    little, and that costs nothing, while an exact selection would take most of the search's time.
    """
    no_limit = np.float32(HOPELESS / 2)
    if count << k <= keep:
        return no_limit
    stride = max(1, count // max(LANES, _SAMPLE >> k)) | 1
    n = 0
    for p in range(0, count, stride):
        some[0][n] = paths[0][p]
        some[2][n] = paths[2][p]
        n += 1
    some[2][n : n + LANES] = HOPELESS
    taken, room = 0, len(children[0]) - LANES
    for pair in range(1 << (k - 1)):
        taken = branch(n, some, pair, k, key, away, towards, no_limit, children, taken, room)
    return _threshold(children[2][:taken], taken * keep / (count << k))


@njit(nogil=True, cache=True)
def _empty_paths(room):  # type: ignore[no-untyped-def]
    """State, origin and cost of so many paths."""
    return np.empty(room, np.uint32), np.zeros(room, np.int32), np.empty(room, np.float32)


@njit(nogil=True, cache=True)
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


@njit(nogil=True, cache=True)
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
    # The survivors' number wanders; the children of a sample all fit.
    most = max(survivors + survivors // 4 + 4 * LANES, 1 << lead)
    room = max(most, 2 * _SAMPLE, 2 * LANES << widest) + 4 * LANES
    paths, spare = _empty_paths(room), _empty_paths(room)
    some = _empty_paths(_SAMPLE + 2 * LANES)
    stores = total_bits // max(1, 32 - widest) + 2
    kept_state = np.empty((stores, most), np.uint32)
    kept_origin = np.empty((stores, most), np.int32)
    kept_bits = np.zeros(stores, np.int64)
    count = 1 << lead
    for p in range(count):
        paths[0][p] = np.uint32(np.uint32(initial * np.uint32(count)) | np.uint32(p))
    paths[2][:count] = 0.0
    paths[2][count : count + LANES] = HOPELESS
    stored = 0
    pending = lead
    away = (np.float32(0.5) - penalty) * scale * scale
    towards = d * scale
    parting: I64 = np.flatnonzero(k)
    done = 0
    for i in parting:
        stay(done, i, count, paths, keys, away, towards)
        done = i + 1
        if pending + k[i] > 32:
            kept_state[stored, :count] = paths[0][:count]
            kept_origin[stored, :count] = paths[1][:count]
            kept_bits[stored] = pending
            stored += 1
            pending = 0
            _part_twins(count, paths[0], paths[2])
            for p in range(count):
                paths[1][p] = p
        pending += k[i]
        own = (k[i], keys[i], away[i], towards[i])
        threshold = _limit(count, paths, survivors, *own, some, spare)
        kept = 0
        for pair in range(1 << (k[i] - 1)):
            kept = branch(count, paths, pair, *own, threshold, spare, kept, most)
        count = kept
        paths, spare = spare, paths
    stay(done, n, count, paths, keys, away, towards)
    state, origin, cost = paths
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
