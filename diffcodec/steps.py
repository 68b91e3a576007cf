"""A step of the reverse process over a whole picture, in bounded memory and on all cores.

The network sees the whole picture once.  Everything after it goes band by band (a row of the
channel's segments), so that only the state and the network's outputs exist for all of it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffcodec import channel
from diffcodec.adaptation import RULES
from diffcodec.channel import HEAD_BYTES, Received
from diffcodec.coefficients import bands
from diffcodec.correction import EPS_UNIT
from diffcodec.final_layer import Distribution
from diffcodec.model import Model
from diffcodec.noise import NOISE_UNIT, derive_key, shared_normal
from diffcodec.parallel import thread_map
from diffcodec.plans import SMALL_PIXELS, Plan
from diffcodec.reverse import (
    NetworkOutput,
    Prior,
    evaluate,
    final_distribution,
    predict_x0,
    to_levels,
)
from diffcodec.tables import Y_UNIT

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]

GROUP_PIXELS = 1 << 20
"""Bands are worked on together up to this many pixels, so that all cores have segments."""

NUDGE = 0.02
"""Of a further try's shifts, in standard deviations of q."""


@dataclass(frozen=True)
class Settings:
    """What sender and receiver agree on beforehand (all of it is in the file's header)."""

    plan: Plan
    height: int
    width: int
    seed: int = 0
    grey: bool = False
    lattice: int = 0

    @property
    def adapts(self) -> bool:
        """Whether the network is fitted to the picture; of a small one there is too little."""
        return self.plan.adaptive > 0 and self.height * self.width > SMALL_PIXELS

    @property
    def learns(self) -> bool:
        """Whether the final layer's strips learn from those before."""
        return self.plan.learns(self.height, self.width)

    @property
    def strips(self) -> list[slice]:
        """The rows of the final layer's strips."""
        return self.plan.strips(self.height, self.width)

    def key(self, b: int) -> int:
        """Of everything random in the step to timestep b."""
        return derive_key(self.seed, 1, b)

    @property
    def groups(self) -> list[list[slice]]:
        """Bands of segments, those that are worked on together in one list."""
        groups: list[list[slice]] = []
        for band in bands(self.height):
            if groups and (band.stop - groups[-1][0].start) * self.width <= GROUP_PIXELS:
                groups[-1].append(band)
            else:
                groups.append([band])
        return groups

    @property
    def bands(self) -> list[slice]:
        """All rows of the picture, a row of segments at a time."""
        return [rows for group in self.groups for rows in group]


class Cut:
    """Hands out the bytes of one layer's payload in order, until they end."""

    def __init__(self, code: bytes, more: Callable[[int], bytes] | None = None) -> None:
        """more: gives the payload once it has so many bytes or no more will come."""
        self.code, self.place, self._more = code, 0, more

    def has(self, count: int) -> bool:
        """Whether so many bytes come next; waits for them if they may be on their way."""
        end = self.place + count
        if end > len(self.code) and self._more is not None:
            self.code = self._more(end)
        return end <= len(self.code)

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes, or what there is; 0: a look at the next few, taking none."""
        part = self.code[self.place : self.place + (count or HEAD_BYTES)]
        self.place += len(part) if count else 0
        return part


class Step:
    """One step a → b.  ``x`` int32 [3, H, W] is x_a at first; :meth:`move` makes it x_b, band by
    band, and :meth:`arrive` ends the step.

    out: what the network says of x_a, where that is known already;
    shown: levels uint8 [3, H, W] of x̂_0(x_a), filled in where :meth:`prior` was called.
    """

    def __init__(
        self,
        model: Model,
        x: I32,
        a: int,
        b: int,
        settings: Settings,
        out: NetworkOutput | None = None,
    ) -> None:
        self.model, self.x, self.a, self.b, self.grey = model, x, a, b, settings.grey
        self._out = out or evaluate(model, x, a, settings.plan)
        self._reverse = model.schedule.step(a, b)
        self.shown: U8 = np.zeros(x.shape, dtype=np.uint8)
        adaptation = model.adaptation
        self._seen = adaptation.empty() if adaptation and adaptation.learns(a) else None

    def copy(self) -> Step:
        """Another try at the same step, from the same x_a."""
        other = copy.copy(self)
        other.x, other.shown = self.x.copy(), self.shown.copy()
        other._seen = None if self._seen is None else self._seen.copy()
        return other

    def prior(self, rows: slice) -> Prior:
        """p_θ(x_b | x_a) of a band that is still x_a."""
        x_a, out = self.x[:, rows], self._out.rows(rows)
        x0_hat = predict_x0(self.model, x_a, self.a, out, self.grey)
        self.shown[:, rows] = to_levels(x0_hat)
        return Prior(self._reverse, x0_hat, out.coef_index, x_a, self.grey)

    def divergence(self, x_0: U8, bands: list[slice]) -> float:
        """KL(q || p_θ) in bits for levels x_0 uint8 [3, H, W], of bands that are still x_a."""
        priors = [(self.prior(rows), rows) for rows in bands]
        return sum(float(np.sum(p.divergence(p.shifts(x_0[:, rows])))) for p, rows in priors)

    def flow(self, rows: slice, prior: Prior) -> F64:
        """y in 2**-12 that leads along the probability flow: x_b with the noise ε̂ of x_a."""
        schedule, rest = self.model.schedule, self.model.schedule.one_minus_alphas_cumprod
        r_a, r_b = (float(schedule.at(rest, t)) for t in (self.a, self.b))
        gain = (math.sqrt(r_b) - self._reverse.coef_xa * math.sqrt(r_a)) / prior.deviation
        eps = self._out.rows(rows).eps / (1 << EPS_UNIT)
        return prior.layout.forward(eps) * (gain * (1 << Y_UNIT))

    def move(self, rows: slice, prior: Prior, y: I64) -> None:
        """The band becomes x_b as conveyed by y [coefficients] in 2**-12."""
        noise = prior.noise(y)
        self.x[:, rows] = prior.sample(noise)
        if self.model.adaptation and self._seen is not None:
            self.model.adaptation.look(noise, rows.start, self._seen)

    def arrive(self, complete: bool = True) -> I32:
        """x_b, from which an adapted model learns if all of y arrived.

        Lets go of the network's outputs before there are those of the next step.
        """
        if self.model.adaptation and complete and self._seen is not None:
            self.model.adaptation.learn(self.b, self._out.features, self._seen, self._gain)
        del self._out
        return self.x

    @property
    def _gain(self) -> float:
        """g: of what y is expected to be for an error of ε̂."""
        schedule = self.model.schedule
        abar = float(schedule.at(schedule.alphas_cumprod, self.a))
        rest = float(schedule.at(schedule.one_minus_alphas_cumprod, self.a))
        deviation = math.sqrt(self._reverse.variance)
        return self._reverse.coef_x0 / deviation * (math.sqrt(rest) / math.sqrt(abar))


@dataclass(frozen=True)
class _Segment:
    """One segment of a group: its band's number and prior, coefficients, and key's number."""

    band: int
    prior: Prior
    own: I64
    number: int

    @property
    def s_index(self) -> I64:
        return self.prior.s_index[self.own]

    @property
    def mute(self) -> NDArray[np.bool_] | None:
        return None if self.prior.mute is None else self.prior.mute[self.own]


def _segments(priors: list[Prior], first: int) -> list[_Segment]:
    """All segments of a group, in coding order, numbered from ``first``."""
    places = [(n, p, own) for n, p in enumerate(priors) for own in p.layout.segments]
    return [_Segment(n, p, own, first + k) for k, (n, p, own) in enumerate(places)]


def _gather(priors: list[Prior], segments: list[_Segment], values: list[Received]) -> list[I64]:
    """y of every band of a group."""
    y = [np.empty(p.layout.size, dtype=np.int64) for p in priors]
    for segment, received in zip(segments, values, strict=True):
        y[segment.band][segment.own] = received.y
    return y


def send_step(
    step: Step,
    x_0: U8,
    settings: Settings,
    survivors: int,
    pulse: Callable[[], None],
    number: int = 0,
) -> tuple[bytes, float]:
    """Convey x_b ~ q(x_b | x_a, x_0) for levels x_0: (bytes, noise ratio E[(y − d)²]).

    ``pulse`` is called after every group of bands; every ``number`` gives another x_b.
    """
    codes: list[bytes] = []
    error = 0.0
    for group in settings.groups:
        priors = [step.prior(rows) for rows in group]
        shifts = [p.shifts(x_0[:, rows]) for p, rows in zip(priors, group, strict=True)]
        segments = _segments(priors, len(codes))
        asked = shifts
        if number:
            asked = _nudged(shifts, derive_key(settings.key(step.b), number, len(codes)))
        results = _send(segments, asked, settings.key(step.b), settings.plan.eta, survivors)
        y = _gather(priors, segments, [received for _, received in results])
        for rows, p, own, d in zip(group, priors, y, shifts, strict=True):
            step.move(rows, p, own)
            error += float(np.sum(np.square(own / (1 << Y_UNIT) - d)))
        codes += [code for code, _ in results]
        pulse()
    return b"".join(codes), error / x_0.size


def _nudged(shifts: list[F64], key: int) -> list[F64]:
    """So little noise on top that it costs nothing, but the search takes another way."""
    scale = NUDGE / (1 << NOISE_UNIT)
    return [
        d + scale * shared_normal(derive_key(key, band), len(d)) for band, d in enumerate(shifts)
    ]


def _send(
    segments: list[_Segment], shifts: list[F64], key: int, eta: int, survivors: int
) -> list[tuple[bytes, Received]]:
    def work(number: int) -> tuple[bytes, Received]:
        own = segments[number]
        return channel.send_segment(
            shifts[own.band][own.own],
            own.s_index,
            derive_key(key, own.number),
            eta=eta,
            survivors=survivors,
            mute=own.mute,
        )

    return thread_map(work, len(segments))


def receive_step(step: Step, cut: Cut, settings: Settings, draw: bool = False) -> bool:
    """Decode x_b from the bytes of its layer and tell whether all of it arrived.

    What did not arrive is drawn from p_θ with ``draw``.  Otherwise it follows the
    flow: wholly in segments of which there is nothing, halfway in one that was cut, where the
    mean of p_θ and the flow are equally far off (both shares measured).
    """
    complete, first = True, 0
    for group in settings.groups:
        priors = [step.prior(rows) for rows in group]
        segments = _segments(priors, first)
        codes = [_take(own, cut, settings.plan.eta) for own in segments]
        results = _receive(segments, codes, settings.key(step.b), settings.plan.eta, draw)
        if not all(received.complete for received in results):
            complete = False
            if not draw:
                _follow_flow(step, group, priors, segments, codes, results)
        for rows, p, y in zip(group, priors, _gather(priors, segments, results), strict=True):
            step.move(rows, p, y)
        first += len(segments)
    return complete


def _follow_flow(
    step: Step,
    group: list[slice],
    priors: list[Prior],
    segments: list[_Segment],
    codes: list[bytes],
    results: list[Received],
) -> None:
    """Fill in the y of ``results`` that are not known."""
    flows = [step.flow(rows, p) for rows, p in zip(group, priors, strict=True)]
    for own, code, received in zip(segments, codes, results, strict=True):
        filled = np.rint((0.5 if code else 1.0) * flows[own.band][own.own]).astype(np.int64)
        np.copyto(received.y, filled, where=~received.reached)


def _take(own: _Segment, cut: Cut, eta: int) -> bytes:
    """The bytes of the next segment, as far as they are there or come."""

    def size() -> int:
        return channel.segment_size(cut.take(0), own.s_index, eta=eta, mute=own.mute)

    wanted = size()
    while (seen := len(cut.take(0))) < min(wanted, HEAD_BYTES) and cut.has(seen + 1):
        wanted = size()  # until the head is there, which says how long the segment is
    cut.has(wanted)
    return cut.take(wanted)


def _receive(
    segments: list[_Segment], codes: list[bytes], key: int, eta: int, draw: bool
) -> list[Received]:
    def work(number: int) -> Received:
        own = segments[number]
        return channel.receive_segment(
            codes[number],
            own.s_index,
            derive_key(key, own.number),
            eta=eta,
            mute=own.mute,
            draw=draw,
        )

    return thread_map(work, len(segments))


def estimated_levels(model: Model, x: I32, t: int, out: NetworkOutput, settings: Settings) -> U8:
    """x̂_0(x_t), eq. 15, of the network's outputs at x: levels uint8 [3, H, W]."""
    levels = np.empty(x.shape, dtype=np.uint8)
    for rows in settings.bands:
        levels[:, rows] = to_levels(predict_x0(model, x[:, rows], t, out.rows(rows), settings.grey))
    return levels


def adapted(model: Model, settings: Settings) -> Model:
    """The model with which to code one picture."""
    if not settings.adapts:
        return model
    return model.adapted(settings.height, settings.width, RULES[settings.plan.adaptive])


class Final:
    """p_θ(x_0 | x_t) at the end of the steps, strip by strip; shown: levels uint8 [3, H, W] of
    x̂_0(x_t); lessons: of the strips so far."""

    def __init__(
        self, model: Model, x: I32, settings: Settings, out: NetworkOutput | None = None
    ) -> None:
        self.model, self.x, self.settings = model, x, settings
        self._out = out or evaluate(model, x, settings.plan.end, settings.plan)
        self.shown = estimated_levels(model, x, settings.plan.end, self._out, settings)
        self.lessons = model.lessons(settings.plan, settings.learns, settings.lattice)

    def distribution(self, rows: slice) -> Distribution:
        """What the coder needs for these rows, which begin at a multiple of 8."""
        out, x_t, own = self._out.rows(rows), self.x[:, rows], self.settings
        return final_distribution(self.model, out, x_t, own.plan, own.grey)
