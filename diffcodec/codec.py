"""Algorithms 3 and 4 of Ho et al. 2020, each one loop.

    Algorithm 3, sending x_0                      Algorithm 4, receiving
    1: send x_T ~ q(x_T | x_0) using p(x_T)       1: receive x_T using p(x_T)
    2: for t = T−1, …, 1 do                       2: for t = T−1, …, 0 do
    3:   send x_t ~ q(x_t | x_{t+1}, x_0)         3:   receive x_t using p_θ(x_t | x_{t+1})
              using p_θ(x_t | x_{t+1})            4: end for
    4: end for                                    5: return x_0
    5: send x_0 using p_θ(x_0 | x_1)

x_T comes from shared randomness (its KL is about 0), the x_t go through the relative entropy
channel with the stride of the plan, x_0 through the final layer.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diffcodec import channel, final_layer
from diffcodec.channel import Received
from diffcodec.errors import FormatError
from diffcodec.final_layer import STRIP_ROWS
from diffcodec.model import Model
from diffcodec.noise import derive_key
from diffcodec.parallel import thread_map
from diffcodec.plans import Plan
from diffcodec.reverse import Prior, evaluate, final_distribution, predict_x0, start
from diffcodec.tables import Y_UNIT

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Settings:
    """What sender and receiver agree on beforehand (all of it is in the file's header)."""

    plan: Plan
    height: int
    width: int
    seed: int = 0
    grey: bool = False


@dataclass(frozen=True)
class SentLayer:
    """A layer's bytes and, for study, what became of it.

    b: the timestep reached (0 for a strip of the final layer); check: of the state x_b, one
    byte; noise_ratio: E[(y − d)²], which is 1 when the channel conveys exactly what was asked;
    x0_hat: the prediction *before* it.
    """

    b: int
    code: bytes
    check: int
    noise_ratio: float
    x0_hat: F64


class Strip(Protocol):
    """A strip of the final layer: its bytes, and whether they are all there."""

    @property
    def code(self) -> bytes: ...
    @property
    def whole(self) -> bool: ...


class Source(Protocol):
    """Where layers come from, one after another."""

    def open(self) -> tuple[bytes, bool]:
        """(bytes of the next layer of steps or more, whether they may end before the layer)."""

    def close(self, used: int, check: int) -> None:
        """The layer took ``used`` bytes and led to a state with this ``check``.

        Raises FormatError if the sender's did not.
        """

    def strip(self) -> Strip | None:
        """The next strip of the final layer, None if nothing of it arrived."""


@dataclass(frozen=True)
class Reconstruction:
    """What the receiver can show: levels uint8 [3, H, W].

    t: timestep of the last whole layer (0: everything arrived); evaluations: of the network.
    """

    levels: U8
    t: int
    evaluations: int


def send(model: Model, x_0: U8, settings: Settings, survivors: int) -> Iterator[SentLayer]:
    """Algorithm 3: code levels ``x_0`` uint8 [3, H, W], one layer at a time."""
    grey, plan = settings.grey, settings.plan
    truth = x_0 / 127.5 - 1.0
    x = start(plan.timesteps[0], settings.seed, settings.height, settings.width)  # line 1
    for a, b in plan.steps:  # line 2
        p = Prior(model, x, a, b, grey)
        d = p.shifts(truth)
        code, y = _send_step(p, d, _key(settings, b), plan.eta, survivors)  # line 3
        x = p.sample(y)
        yield SentLayer(b, code, state_check(x), _noise_ratio(y, d), p.x0_hat)
    decoder, x0_hat = final_distribution(model, x, grey)
    for rows in strips(settings.height):  # line 5
        code = final_layer.send_strip(x_0[:, rows].astype(np.int64), _rows(decoder, rows), grey)
        yield SentLayer(0, code, 0, 1.0, x0_hat)


def receive(model: Model, source: Source, settings: Settings, *, stop_t: int = 0) -> Reconstruction:
    """Algorithm 4: decode the layers that arrived, in order.

    Stops at the smallest coded timestep ≥ ``stop_t``.  Raises FormatError for the first layer
    whose contents are impossible or whose check the state it leads to does not match.
    """
    grey, plan = settings.grey, settings.plan
    x = start(plan.timesteps[0], settings.seed, settings.height, settings.width)  # line 1
    t, evaluations = plan.timesteps[0], 0
    for number, steps in enumerate(plan.layers):
        with _Layer(source, plan.label(number), t) as layer:
            for a, b in steps:  # line 2
                evaluations += 1
                if layer.is_over or b < stop_t:
                    x0_hat = predict_x0(model, x, a, evaluate(model, x, a), grey)
                    return Reconstruction(to_levels(x0_hat), t, evaluations)
                p = Prior(model, x, a, b, grey)
                y, complete = _receive_step(p, layer, _key(settings, b), plan.eta)
                x = p.sample(y)  # line 3
                if not complete:  # what arrived of x_b still makes the better picture
                    x0_hat = predict_x0(model, x, b, evaluate(model, x, b), grey)
                    return Reconstruction(to_levels(x0_hat), t, evaluations + 1)
                t = b
            layer.finish(x)
    decoder, x0_hat = final_distribution(model, x, grey)
    levels, done = to_levels(x0_hat), stop_t == 0
    for number, rows in enumerate(strips(settings.height)):
        with _naming(plan.label(len(plan.layers) + number), t):
            strip = source.strip() if stop_t == 0 else None
            if strip is None:
                done = False
                break
            values, certain = final_layer.receive_strip(
                strip.code, _rows(decoder, rows), grey, strip.whole
            )
            levels[:, rows] = np.where(certain, values, levels[:, rows])
            done &= strip.whole
    return Reconstruction(levels, 0 if done else t, evaluations + 1)  # line 5


@contextmanager
def _naming(label: str, t: int) -> Iterator[None]:
    """Any FormatError inside becomes one that names the layer and what decodes without it."""
    try:
        yield
    except FormatError as e:
        raise FormatError(
            f"{label} is damaged or was written with other arithmetic ({e}); "
            f"what comes before it decodes with --stop-t {t}"
        ) from e


class _Layer:
    """The bytes of one layer of steps, consumed step by step."""

    def __init__(self, source: Source, label: str, t: int) -> None:
        self.source, self.naming = source, _naming(label, t)
        self.code, self.may_be_cut, self.place = b"", True, 0

    def __enter__(self) -> _Layer:
        self.naming.__enter__()
        self.code, self.may_be_cut = self.source.open()
        return self

    def __exit__(self, *error: Any) -> None:
        self.naming.__exit__(*error)

    @property
    def rest(self) -> bytes:
        return self.code[self.place :]

    @property
    def is_over(self) -> bool:
        """Whether the file ends here, rather than nothing more being needed."""
        return self.may_be_cut and not self.rest

    def finish(self, x: I64) -> None:
        """All steps of the layer are decoded and led to state ``x``."""
        self.source.close(self.place, state_check(x))


def state_check(x: I64) -> int:
    """One byte of the CRC-32 of a state [3, H, W]; both sides must find the same."""
    return binascii.crc32(x.astype(">i4").tobytes()) & 0xFF


def strips(height: int) -> list[slice]:
    """Row ranges of the final layer's independently coded strips."""
    return [slice(top, min(top + STRIP_ROWS, height)) for top in range(0, height, STRIP_ROWS)]


def to_levels(x_0: F64) -> U8:
    """From the [-1, 1] scale to uint8 levels, clipped."""
    return np.clip(np.rint((x_0 + 1.0) * 127.5), 0, 255).astype(np.uint8)


def _rows(p: final_layer.Distribution, rows: slice) -> final_layer.Distribution:
    return p.rows(rows.start, rows.stop)


def _key(settings: Settings, b: int) -> int:
    return derive_key(settings.seed, 1, b)


def _send_step(p: Prior, d: F64, key: int, eta: int, survivors: int) -> tuple[bytes, I64]:
    """All segments of one step: (bytes, y of every coefficient), segments in parallel."""

    def work(number: int) -> tuple[bytes, Received]:
        own = p.layout.segments[number]
        mute = None if p.mute is None else p.mute[own]
        return channel.send_segment(
            d[own], p.s_index[own], derive_key(key, number), eta=eta, survivors=survivors, mute=mute
        )

    results = thread_map(work, len(p.layout.segments))
    y = np.empty(p.layout.size, dtype=np.int64)
    for own, (_, received) in zip(p.layout.segments, results, strict=True):
        y[own] = received.y
    return b"".join(code for code, _ in results), y


def _receive_step(p: Prior, layer: _Layer, key: int, eta: int) -> tuple[I64, bool]:
    """y of every coefficient from one step's bytes, and whether all of them arrived."""
    y = np.empty(p.layout.size, dtype=np.int64)
    complete = True
    for number, own in enumerate(p.layout.segments):
        mute = None if p.mute is None else p.mute[own]
        received, used = channel.receive_segment(
            layer.rest, p.s_index[own], derive_key(key, number), eta=eta, mute=mute
        )
        y[own] = received.y
        complete &= received.complete
        layer.place += used
    if not complete and not layer.may_be_cut:
        raise FormatError("it is shorter than its contents")
    return y, complete


def _noise_ratio(y: I64, d: F64) -> float:
    return float(np.mean(np.square(y / (1 << Y_UNIT) - d)))
