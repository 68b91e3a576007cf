"""Relative entropy coding of one Gaussian step: send y ~ N(d, 1) using p = N(0, 1 + s).

One *segment* is some thousands of coefficients, in the shared pseudo-random order that spreads
surprises evenly.  Its code is a whole number of bytes:

    scale    j, 1 bit if it is 0, 2 if it is 1: all s are multiplied by 2**(j/4)
    escapes  if there are corrections: align to a byte, varint length, range-coder bytes
    trellis  the remaining bits, their number known to both sides

The trellis gets η·Σ½log2(1+s) bits, rounded so that the segment ends on a byte; bits are dealt
to coefficients in proportion to their rates.  Coefficients of negligible rate are drawn from
the shared noise and cost nothing.

``send_segment`` and ``receive_segment`` share :func:`_deal`, so there is one version of what
both must agree on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from diffcodec import tables, trellis
from diffcodec.bits import BitReader, BitWriter
from diffcodec.entropy import decode_escapes, encode_escapes
from diffcodec.errors import FormatError
from diffcodec.noise import counter_hash, derive_key, permutation, shared_normal
from diffcodec.prices import LANES
from diffcodec.tables import OCTAVE, RATE_UNIT, S_MAX, S_MIN, Y_UNIT

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

ETA_UNIT = 128
"""η is an integer in units of 1/128: the rate spent over the ideal one."""

NEGLIGIBLE = -8 * OCTAVE
"""Coefficients with s below 2**-8 are not coded."""

SCALE_STEP = OCTAVE // 4
"""One step of the segment's scale: a quarter of an octave of s."""

SCALE_RANGE = (-24, 48)

RARE_SCALE = 2
"""Scales 0 and 1 have short codes; the others are told by how far they are from this one."""

ESCAPE_AT = 4.0
"""Shifts beyond this many standard deviations √(1+s) are corrected explicitly."""

MAX_ESCAPE_BYTES = 8
"""More than one correction can take; the message has two to spare."""

SEARCH_LIMIT = 1 << 22
"""The sender never looks at more candidates than this for one coefficient."""

MARK_LIMIT = 1 << 28
"""Nor does it take more bytes than this to read the best path of a segment back: 87,000 survivors
where 12,288 coefficients take a bit each, more where they take less, fewer where they take more."""

LEAD = 7
"""Bits of a segment that come before its first coefficient.

A choice among 128 paths at the beginning conveys more than the last 7 bits would at the end, where
only few coefficients are left to depend on them.
"""

MIN_BITS = 4
"""A segment expected to take less than this is left out: its y are drawn from the noise."""

# Purposes of derived keys.
_ORDER, _CANDIDATES, _STATE, _FILL = 1, 2, 3, 4


@dataclass(frozen=True)
class Received:
    """What a segment's code says of its coefficients, in the caller's order.

    y: the conveyed values in units of 2**-12; complete: whether all of the code was there;
    reached: the coefficients whose y is known, [n].  The other y are 0, the mean, or drawn:
    good for a picture but not for going on.
    """

    y: I64
    complete: bool
    reached: NDArray[np.bool_]


@dataclass(frozen=True)
class _Deal:
    """What both sides derive from the predicted variances, in coded (shuffled) order."""

    order: I64
    s_index: I64
    keys: NDArray[np.uint32]
    initial: int
    base: I64  # y in 2**-12 where nothing is coded


def _limited(s_index: I64, mute: NDArray[np.bool_] | None) -> I64:
    limited = np.clip(s_index, S_MIN + 1, S_MAX)
    return limited if mute is None else np.where(mute, S_MIN, limited)


def _deal(s_index: I64, key: int, mute: NDArray[np.bool_] | None) -> _Deal:
    order = permutation(derive_key(key, _ORDER), len(s_index))
    return _Deal(
        order=order,
        s_index=_limited(s_index, mute)[order],
        keys=counter_hash(derive_key(key, _CANDIDATES), len(s_index)),
        initial=derive_key(key, _STATE),
        base=shared_normal(derive_key(key, _FILL), len(s_index)),
    )


def _scaled(limited: I64, scale: int) -> tuple[I64, I64]:
    """(s index after scaling, rate in 2**-16 bit) per coefficient; negligible ones get rate 0."""
    s_index, rate = _scaled_tables(scale)
    return s_index[limited - S_MIN], rate[limited - S_MIN]


@cache
def _scaled_tables(scale: int) -> tuple[I64, I64]:
    """:func:`_scaled` of every index from S_MIN to S_MAX."""
    limited = np.arange(S_MIN, S_MAX + 1)
    s_index = np.clip(limited + SCALE_STEP * scale, S_MIN, S_MAX)
    coded = (s_index >= NEGLIGIBLE) & (limited > S_MIN)
    return s_index, np.where(coded, tables.rates()[s_index - S_MIN], 0)


def _is_empty(limited: I64, eta: int) -> bool:
    return _budget_bits(_scaled(limited, 0)[1], eta) < MIN_BITS


def _budget_bits(rate: I64, eta: int) -> int:
    return int(rate.sum()) * eta // ETA_UNIT >> RATE_UNIT


def _bit_ends(rate: I64, bits: int) -> I64:
    """K_i: ``bits`` dealt in proportion to the rates, LEAD ahead of them."""
    total = int(rate.sum())
    if total == 0:
        return np.zeros(len(rate), dtype=np.int64)
    return np.minimum(bits, LEAD + np.cumsum(rate) * bits // total)


def _trellis_bits(rate: I64, eta: int, head_bits: int) -> int:
    """Number of trellis bits: head and trellis together are the whole bytes nearest to budget."""
    budget = _budget_bits(rate, eta) if rate.any() else 0
    return max(-(-head_bits // 8), (head_bits + budget + 4) // 8) * 8 - head_bits


def choose_scale(d: F64, s_index: I64) -> int:
    """The j that minimises Σ ½[ln(1 + cs) + (1 + d²)/(1 + cs)], c = 2**(j/4), plus its own code.

    d²/(1+cs) is capped at ESCAPE_AT², as escapes do.
    """
    place = np.clip(s_index, S_MIN, S_MAX) - S_MIN
    numbers = np.bincount(place, minlength=S_MAX - S_MIN + 1)
    inverse, own, heads = _scales()
    costs = 0.5 * (own @ numbers + _excess(np.square(d), place, inverse)) + heads
    return SCALE_RANGE[0] + int(np.argmin(costs))


@njit(nogil=True, cache=True, fastmath=True)
def _excess(squares: F64, place: I64, inverse: F64) -> F64:
    """Σ d²/(1 + cs), each capped, for every scale."""
    found = np.empty(len(inverse))
    for j in range(len(inverse)):
        total = 0.0
        for i in range(len(squares)):
            total += min(squares[i] * inverse[j, place[i]], ESCAPE_AT**2)
        found[j] = total
    return found


@cache
def _scales() -> tuple[F64, F64, F64]:
    """For every j: 1/(1 + cs) and ln(1 + cs) + 1/(1 + cs) of every index of s, nats of its code."""
    scales = range(SCALE_RANGE[0], SCALE_RANGE[1] + 1)
    moved = np.arange(S_MIN, S_MAX + 1) + SCALE_STEP * np.array(scales)[:, None]
    total = 1.0 + 2.0 ** (np.clip(moved, S_MIN, S_MAX) / OCTAVE)
    bits = [_head(j, escapes=False).bit_length for j in scales]
    return 1.0 / total, np.log(total) + 1.0 / total, math.log(2.0) * np.array(bits)


def _head(scale: int, escapes: bool) -> BitWriter:
    """What a segment begins with, up to its escapes."""
    writer = BitWriter()
    if not escapes and scale in (0, 1):
        writer.write(1, 1 + scale)
        return writer
    writer.write(0 if escapes else 1, 3)
    writer.write_signed_gamma(scale - RARE_SCALE)
    return writer


def _read_head(reader: BitReader, n: int) -> tuple[int, int | None]:
    """(scale, bytes of escapes that follow or None without) of a segment of n coefficients.

    EOFError if it is cut.
    """
    for scale in (0, 1):
        if reader.read(1):
            return scale, None
    escapes = not reader.read(1)
    scale = RARE_SCALE + reader.read_signed_gamma()
    if not SCALE_RANGE[0] <= scale <= SCALE_RANGE[1]:
        raise FormatError(f"segment scale {scale} is out of range")
    if not escapes:
        return scale, None
    reader.align()
    length = reader.read_varint()
    if length > MAX_ESCAPE_BYTES * (n + 2):
        raise FormatError(f"corrections of {n} coefficients cannot take {length} bytes")
    return scale, length


def send_segment(
    d: F64,
    s_index: I64,
    key: int,
    *,
    eta: int,
    survivors: int,
    mute: NDArray[np.bool_] | None = None,
) -> tuple[bytes, Received]:
    """Sender: convey shifts ``d`` (units of one standard deviation of q).

    d: float64 [n]; s_index: int64 [n], log2 of the predicted variance of d in 1/8; key: 32-bit
    key of (seed, step, segment); mute: coefficients known to have d = 0 on both sides.
    Returns the bytes and exactly what the receiver will get from them.
    """
    deal = _deal(s_index, key, mute)
    shifts = d[deal.order]
    if _is_empty(deal.s_index, eta):
        return b"", _undecided(deal)
    active = deal.s_index > S_MIN
    scale = choose_scale(shifts[active], deal.s_index[active])
    s_scaled, rate = _scaled(deal.s_index, scale)
    spread = 2.0 ** (s_scaled / OCTAVE) + 1.0
    step = escape_steps(s_scaled)
    far = active & (np.abs(shifts) > ESCAPE_AT * np.sqrt(spread))
    counts = np.where(far, np.rint(shifts * (1 << Y_UNIT) / step), 0).astype(np.int64)

    writer = _head(scale, bool(counts.any()))
    if counts.any():
        message = encode_escapes(counts)
        writer.align()
        writer.write_varint(len(message))
        writer.write_bytes(message)
    bits = _trellis_bits(rate, eta, writer.bit_length)
    ends = _bit_ends(rate, bits)
    rest = shifts - counts * step / (1 << Y_UNIT)
    coded = rate > 0
    path = np.zeros(bits, dtype=np.uint8)
    if coded.any():
        lead = min(bits, LEAD)
        k = np.diff(ends[coded], prepend=lead)
        found = trellis.search(
            rest[coded].astype(np.float32),
            (np.sqrt(spread[coded]) / tables.LEVEL_UNIT).astype(np.float32),
            (0.5 / spread[coded]).astype(np.float32),
            k,
            deal.keys[coded],
            np.uint32(deal.initial),
            lead,
            affordable_survivors(survivors, k),
        )
        path[: len(found)] = found
    writer.write_array(path)
    y = _conveyed(deal, deal.base, path, ends, coded, s_scaled, counts)
    return writer.getvalue(), Received(_back(deal, y), True, np.ones(len(d), dtype=bool))


def affordable_survivors(wanted: int, k: I64) -> int:
    """As many survivors, or as few as the limits allow where coefficients take k bits, [n]."""
    marks = trellis.mark_words(k) * 4  # bytes for every LANES of them
    affordable = min(SEARCH_LIMIT >> int(k.max()), LANES * (MARK_LIMIT // max(marks, 1)))
    return max(1, min(wanted, affordable))


def escape_steps(s_index: I64) -> I64:
    """Size of one unit of a correction, 2√(1+s), in 2**-12."""
    return tables.candidate_scales()[s_index - S_MIN]


def _undecided(deal: _Deal) -> Received:
    """Nothing was sent: y is shared noise around the model's own mean."""
    return Received(_back(deal, deal.base), True, np.ones(len(deal.order), dtype=bool))


def _back(deal: _Deal, values: NDArray[Any]) -> NDArray[Any]:
    """From coded order to the caller's."""
    out = np.empty_like(values)
    out[deal.order] = values
    return out


HEAD_BYTES = 16
"""Where a segment's head says how long the segment is, it has said so within these."""


def segment_head(code: bytes, n: int) -> tuple[int, int]:
    """(scale j, corrected coefficients) of a whole segment of n coefficients, for study.

    Nothing is said by a segment without a code: (0, 0).
    """
    if not code:
        return 0, 0
    reader = BitReader(code)
    scale, escapes = _read_head(reader, n)
    if escapes is None:
        return scale, 0
    return scale, int(np.count_nonzero(decode_escapes(reader.read_bytes(escapes), n)))


def segment_size(
    code: bytes, s_index: I64, *, eta: int, mute: NDArray[np.bool_] | None = None
) -> int:
    """Bytes taken by the segment that ``code`` begins with; only HEAD_BYTES are looked at.

    More than there are if its head is cut.  Raises FormatError for impossible contents.
    """
    limited = _limited(s_index, mute)
    if _is_empty(limited, eta):
        return 0
    reader = BitReader(code[:HEAD_BYTES])
    try:
        scale, escapes = _read_head(reader, len(s_index))
    except EOFError:
        return len(code) + 1
    head = reader.position + 8 * (escapes or 0)
    return (head + _trellis_bits(_scaled(limited, scale)[1], eta, head)) // 8


def receive_segment(
    code: bytes,
    s_index: I64,
    key: int,
    *,
    eta: int,
    mute: NDArray[np.bool_] | None = None,
    draw: bool = False,
) -> Received:
    """Receiver: what :func:`send_segment` conveyed.

    ``code`` may be cut anywhere; then ``complete`` is False and y holds what arrived, the rest
    being 0 or, with ``draw``, drawn from p.  Raises FormatError for impossible contents.
    """
    deal = _deal(s_index, key, mute)
    if _is_empty(deal.s_index, eta):
        return _undecided(deal)
    reader = BitReader(code)
    n = len(s_index)
    try:
        scale, escapes = _read_head(reader, n)
        counts = np.zeros(n, dtype=np.int64)
        if escapes is not None:
            counts = decode_escapes(reader.read_bytes(escapes), n)
    except EOFError:
        return Received(_back(deal, _missing(deal, draw)), False, np.zeros(n, dtype=bool))
    s_scaled, rate = _scaled(deal.s_index, scale)
    bits = _trellis_bits(rate, eta, reader.position)
    ends = _bit_ends(rate, bits)
    available = reader.read_array(bits)
    use = (rate > 0) & (ends <= len(available))
    complete = len(available) == bits
    rest = deal.base if complete else _missing(deal, draw)
    y = _conveyed(deal, rest, available, ends, use, s_scaled, counts)
    return Received(_back(deal, y), complete, _back(deal, use | complete))


def _conveyed(
    deal: _Deal,
    rest: I64,
    path: NDArray[np.uint8],
    ends: I64,
    use: NDArray[np.bool_],
    s_scaled: I64,
    counts: I64,
) -> I64:
    """y in coded order: where ``use`` says so what the path has, else ``rest``; corrected."""
    g = trellis.decode(path, ends[use], deal.keys[use], deal.initial)
    y = rest.copy()
    y[use] = tables.candidates(g, s_scaled[use])
    return y + counts * escape_steps(s_scaled)


def _missing(deal: _Deal, draw: bool) -> I64:
    """y of coefficients that did not arrive, in coded order."""
    if not draw:
        return np.zeros(len(deal.order), dtype=np.int64)
    spread = np.sqrt(1.0 + 2.0 ** (deal.s_index / OCTAVE))
    return np.rint(deal.base * spread).astype(np.int64)
