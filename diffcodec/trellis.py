"""The random trellis code: bits → values that look like draws from q, chosen from draws of p.

Sender and receiver share an endless random codebook.  The decoder's state is the last 32 bits
of the stream (a bit-shift trellis).  Coefficient i shifts in k_i new bits; those that follow and
take none are of the same *run*, and eight at a time they have one hashed word of its state,

    mix((state | 1) ^ key_j),                          j being the first of the eight,

a nibble each, first the lower ones of its four bytes, then the upper ones, which chooses one of the
sixteen LEVELS: nearly a draw from N(0, LEVEL_UNIT²).  It is negated if the state's latest bit is 0:
of two paths that differ in that alone, one always lies towards the shifts.  The channel scales g_i
to a candidate value of p = N(0, 1 + s_i).  The receiver only slides a window over the bits.  The
sender searches the bits for which the values lie close to the shifts d_i it wants to convey, that
is for which log q − log p of the whole sequence is large.

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

from diffcodec.noise import mix
from diffcodec.paths import HOPELESS, bits_set, fork, vectors_of
from diffcodec.prices import COST_UNIT, LANES, NIBBLES, price, room_for_prices
from diffcodec.tables import LEVELS

U32 = NDArray[np.uint32]
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

_SAMPLE = 256
"""About so many costs tell which paths survive."""
_CLOSE = COST_UNIT >> 6
"""The threshold is known to this."""


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


def places(ends: I64) -> I64:
    """How many coefficients of its run come before each; ``ends`` = K_i, ascending."""
    numbers = np.arange(len(ends))
    begins = np.diff(ends, prepend=-1) > 0
    return numbers - np.maximum.accumulate(np.where(begins, numbers, 0))


def decode(bits: NDArray[np.uint8], ends: I64, keys: U32, initial: int) -> I64:
    """The receiver: g for every coefficient, int64 in −264…264.

    bits: uint8 [K] of 0/1; ends: K_i, ascending, all ≤ K; keys: uint32 [n]; initial: uint32 state.
    """
    state, place = states(bits, ends, initial), places(ends) % NIBBLES
    words = mix((state | np.uint32(1)) ^ keys[np.arange(len(ends)) - place]).astype(np.int64)
    sign = 2 * (state & np.uint32(1)).astype(np.int64) - 1
    return sign * LEVELS[words >> 8 * (place % 4) + 4 * (place // 4) & 15]


@njit(nogil=True, cache=True)
def _not_above(values, limit):  # type: ignore[no-untyped-def]
    """How many of the values, int32, do not exceed the limit."""
    number = np.int32(0)
    for p in range(len(values)):
        number = np.int32(number + np.int32(values[p] <= limit))
    return number


@njit(nogil=True, cache=True)
def _threshold(values, wanted):  # type: ignore[no-untyped-def]
    """Cost that hardly more than ``wanted`` of the values, but at least one, do not exceed.

    By counting, as compilers have vectors for it and none for sorting or for histograms.
    """
    low = high = np.int64(values[0])
    step = np.int64(COST_UNIT)
    while _not_above(values, np.int32(low)) > wanted:
        low -= step
        step *= 2
    while _not_above(values, np.int32(high)) <= wanted:
        high += step
        step *= 2
    while high - low > _CLOSE:
        middle = (low + high) // 2
        if _not_above(values, np.int32(middle)) > wanted:
            high = middle
        else:
            low = middle
    return np.int32(high)


@njit(nogil=True, cache=True)
def _limit(count, paths, keep, k, tables, nibbles, some, children, marks):  # type: ignore[no-untyped-def]
    """Cost that about ``keep`` of the children of all paths do not exceed.

    Estimated from those of a sample of the paths, evenly spread: how many survive may wander a
    little, and that costs nothing, while an exact selection would take most of the search's time.
    """
    no_limit = np.int32(HOPELESS - 1)
    if count << k <= keep:
        return no_limit
    stride = max(1, count // max(LANES, _SAMPLE >> k)) | 1
    n = 0
    for p in range(0, count, stride):
        some[0][n] = paths[0][p]
        some[1][n] = paths[1][p]
        n += 1
    some[1][n : n + LANES] = HOPELESS
    taken, room = 0, len(children[0]) - LANES
    for pair in range(1 << (k - 1)):
        taken = fork(n, some, pair, k, tables, nibbles, no_limit, children, taken, room, marks)
    return _threshold(children[1][:taken], taken * keep / (count << k))


@njit(nogil=True, cache=True)
def _empty_paths(room):  # type: ignore[no-untyped-def]
    """State and cost of so many paths, from where lines of the cache begin."""
    states = np.empty(room + LANES, np.uint32)
    costs = np.empty(room + LANES, np.int32)
    first, own = -states.ctypes.data % 64 // 4, -costs.ctypes.data % 64 // 4
    return states[first : first + room], costs[own : own + room]


@njit(nogil=True, cache=True)
def _part_twins(count, paths):  # type: ignore[no-untyped-def]
    """Make the twins of the cheapest path hopeless, and its cost 0: only differences count.

    Paths whose last 32 bits agree have the same future; without this they could crowd out
    every other path, for good.
    """
    state, cost = paths
    best = np.argmin(cost[:count])
    lowest = cost[best]
    for p in range(count):
        twin = state[p] == state[best] and p != best
        cost[p] += np.int32(HOPELESS // 2) if twin else -lowest


@njit(nogil=True, cache=True)
def _parent(marks, child, count):  # type: ignore[no-untyped-def]
    """(place among ``count`` parents, its last bits) of one of their children, as marked."""
    at = 0
    own = bits_set(marks[at])
    while child >= own:
        child -= own
        at += 1
        own = bits_set(marks[at])
    lane = 0  # of the bit that is set and has ``child`` others below it
    while child > 0 or not marks[at] >> np.uint32(lane) & np.uint32(1):
        child -= np.int64(marks[at] >> np.uint32(lane) & np.uint32(1))
        lane += 1
    pair, vector = at // vectors_of(count), at % vectors_of(count)
    return vector * LANES + lane % LANES, 2 * pair + (1 if lane < LANES else 0)


@njit(nogil=True, cache=True)
def _read_back(marks, first, counts, k, child, lead):  # type: ignore[no-untyped-def]
    """The bits of a path: of the parent of its parent …, and its own last ones."""
    bits = np.empty(lead + k.sum(), np.uint8)
    place = len(bits)
    for step in range(len(k) - 1, -1, -1):
        child, last = _parent(marks[first[step] :], child, counts[step])
        for b in range(k[step]):
            place -= 1
            bits[place] = last >> b & 1
    for _ in range(lead):
        place -= 1
        bits[place] = child & 1
        child >>= 1
    return bits


@njit(nogil=True, cache=True)
def mark_words(k):  # type: ignore[no-untyped-def]
    """Words that mark the surviving children of every LANES paths, where coefficients take k bits
    each, int64 [n]: one for every pair that differs in its last bit alone."""
    words = np.int64(0)
    for bits in k:
        if bits > 0:
            words += np.int64(1) << (bits - 1)
    return words


@njit(nogil=True, cache=True)
def search(d, scale, penalty, k, keys, initial, lead, survivors):  # type: ignore[no-untyped-def]
    """The sender: M-algorithm search for the stream that best conveys ``d``.

    d: float32 [n], shifts; scale: float32 [n], √(1+s)/LEVEL_UNIT; penalty: float32 [n],
    1/(2(1+s)); k: int64 [n], bits per coefficient, each ≤ 31; keys: uint32 [n];
    initial: uint32 state; lead: bits before the first coefficient, ≤ 31; survivors: M.
    Returns uint8 [lead + Σk] of 0/1.

    The children of all paths are looked at after the whole run to which their own bits lead; the
    cheapest survive.  Which they are is marked: that is all it takes to read the best path back.
    """
    starts: I64 = np.flatnonzero(k)
    own = k[starts]
    ahead = max(lead - 1, 0)
    if lead > 0:  # the last bit ahead parts the paths on which the first coefficients are
        starts = np.append(np.zeros(1, np.int64), starts)
        own = np.append(np.ones(1, np.int64), own)
    if len(own) == 0:
        return np.zeros(0, np.uint8)
    stops = np.append(starts[1:], len(d))
    widest = own.max()
    longest = (stops - starts).max()
    # The survivors' number wanders; the children of a sample all fit.
    most = max(survivors + survivors // 4 + 4 * LANES, 1 << lead)
    room = max(most, 2 * _SAMPLE, 2 * LANES << widest) + 4 * LANES
    paths, spare = _empty_paths(room), _empty_paths(room)
    some = _empty_paths(_SAMPLE + 2 * LANES)
    marks = np.empty(mark_words(own) * vectors_of(most), np.uint32)
    scratch = np.empty(_SAMPLE // LANES + 2, np.uint32)
    first = np.empty(len(own), np.int64)
    counts = np.empty(len(own), np.int64)
    tables = room_for_prices(longest)
    levels = LEVELS.astype(np.float32)
    away = (np.float32(0.5) - penalty) * scale * scale
    towards = d * scale
    count = np.int64(1) << ahead
    for p in range(count):
        paths[0][p] = np.uint32(np.uint32(initial * np.uint32(count)) | np.uint32(p))
    paths[1][:count] = 0
    paths[1][count : count + LANES] = HOPELESS
    at, since = 0, ahead
    for step in range(len(own)):
        since += own[step]
        if since > 32:
            _part_twins(count, paths)
            since = own[step]
        run = slice(starts[step], stops[step])
        price(away[run], towards[run], keys[run], levels, tables)
        given = own[step], tables, stops[step] - starts[step]
        limit = _limit(count, paths, survivors, *given, some, spare, scratch)
        kept = 0
        first[step], counts[step] = at, count
        for pair in range(1 << (own[step] - 1)):
            kept = fork(count, paths, pair, *given, limit, spare, kept, most, marks[at:])
            at += vectors_of(count)
        count = kept
        paths, spare = spare, paths
    return _read_back(marks, first, counts, own, np.argmin(paths[1][:count]), ahead)
