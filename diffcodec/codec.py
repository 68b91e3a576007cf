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

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from diffcodec import final_layer
from diffcodec.errors import FormatError
from diffcodec.model import Model
from diffcodec.plans import Search
from diffcodec.render import Render, mean
from diffcodec.reverse import start, state_check
from diffcodec.steps import Cut, Final, Settings, Step, adapted, receive_step
from diffcodec.tries import best_try

I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class SentLayer:
    """A layer's bytes and, for study, what became of it.

    b: the timestep reached (0 for a strip of the final layer); check: of the state x_b, one
    byte; noise_ratio: E[(y − d)²], which is 1 when the channel conveys exactly what was asked;
    shown: levels uint8 [3, H, W] of x̂_0 *before* it; x: the state x_b (the last for a strip), which
    the next layer overwrites.
    """

    b: int
    code: bytes
    check: int
    noise_ratio: float
    shown: U8
    x: I32


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

    def more(self, size: int) -> bytes:
        """The bytes of :meth:`open` once there are ``size`` of them, or all that ever come."""

    def close(self, used: int, check: int) -> bool:
        """The layer took ``used`` bytes and led to a state with this ``check``.

        Returns whether the sender's did, False if that is not known.  Raises FormatError if it
        did not.
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


Watch = Callable[[int, Callable[[], U8]], None]
"""Called with (timestep of the state, a function that shows it as levels uint8 [3, H, W])."""


def _no_pulse() -> None:
    pass


def _no_watch(t: int, show: Callable[[], U8]) -> None:
    pass


def send(
    model: Model,
    x_0: U8,
    settings: Settings,
    search: Search,
    pulse: Callable[[], None] = _no_pulse,
) -> Iterator[SentLayer]:
    """Algorithm 3: code levels ``x_0`` uint8 [3, H, W], one layer at a time.

    ``pulse`` is called after every group of bands of a step and every strip.
    """
    grey, plan, model = settings.grey, settings.plan, adapted(model, settings)
    x = start(plan.timesteps[0], settings.seed, settings.height, settings.width)  # line 1
    out = None
    for a, b in plan.steps:  # line 2
        step = Step(model, x, a, b, settings, out)
        sent = best_try(step, x_0, settings, search, pulse)
        x, out = sent.step.arrive(), sent.ahead  # line 3
        yield SentLayer(b, sent.code, state_check(x), sent.ratio, sent.step.shown, x)
    final = Final(model, x, settings, out)
    for rows in settings.strips:  # line 5
        own = x_0[:, rows].astype(np.int64)
        code = final_layer.send_strip(own, final.distribution(rows), grey, final.lessons)
        pulse()
        yield SentLayer(0, code, 0, 1.0, final.shown, x)


def receive(
    model: Model,
    source: Source,
    settings: Settings,
    *,
    stop_t: int = 0,
    render: Render = mean,
    draw: bool = False,
    watch: Watch = _no_watch,
) -> Reconstruction:
    """Algorithm 4: decode the layers that arrived, in order.

    Stops at the smallest coded timestep ≥ ``stop_t``; ``render`` makes a picture of a state
    x_t; with ``draw`` what did not arrive of a step is drawn from p_θ; ``watch`` is called after
    every whole layer and strip.  Raises FormatError for the first layer whose
    contents are impossible or whose check the state it leads to does not match.
    """
    grey, plan, model = settings.grey, settings.plan, adapted(model, settings)
    x = start(plan.timesteps[0], settings.seed, settings.height, settings.width)  # line 1
    t, evaluations = plan.timesteps[0], 0
    sure = t  # the last state that a check vouches for
    for number, steps in enumerate(plan.layers):
        if steps[0][1] < stop_t:  # the layer is not even looked at: it may be damaged
            levels, more = render(model, x, t, settings)
            return Reconstruction(levels, t, evaluations + more)
        with _naming(plan.label(number), sure):
            layer = _Layer(source)
            for a, b in steps:  # line 2
                if layer.is_over or b < stop_t:
                    levels, more = render(model, x, a, settings)
                    return Reconstruction(levels, t, evaluations + more)
                step = Step(model, x, a, b, settings)
                complete = receive_step(step, layer.cut, settings, draw)
                x = step.arrive(complete)  # line 3
                evaluations += plan.evaluations([a])
                if not complete:  # what arrived of x_b still makes the better picture
                    layer.check_cut()
                    levels, more = render(model, x, b, settings)
                    return Reconstruction(levels, t, evaluations + more)
                t = b
            if layer.finish(x):
                sure = t
        watch(t, partial(_show, model, x, t, settings, render))
    final = Final(model, x, settings)
    levels, done = final.shown, stop_t == 0
    for number, rows in enumerate(settings.strips):
        with _naming(plan.label(len(plan.layers) + number), sure):
            strip = source.strip() if stop_t == 0 else None
            if strip is None:
                done = False
                break
            values, certain = final_layer.receive_strip(
                strip.code, final.distribution(rows), grey, strip.whole, final.lessons
            )
            levels[:, rows] = np.where(certain, values, levels[:, rows])
            done &= strip.whole
        if strip.whole:
            watch(t, levels.copy)
    evaluations += plan.evaluations([plan.end])
    return Reconstruction(levels, 0 if done else t, evaluations)  # line 5


def _show(model: Model, x: I32, t: int, settings: Settings, render: Render) -> U8:
    return render(model, x.copy(), t, settings)[0]


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

    def __init__(self, source: Source) -> None:
        self.source = source
        code, self.may_be_cut = source.open()
        self.cut = Cut(code, source.more)

    @property
    def is_over(self) -> bool:
        """Whether the file ends here, rather than nothing more being needed."""
        return self.may_be_cut and not self.cut.has(1)

    def check_cut(self) -> None:
        """FormatError unless the file ends here, so that a part of the layer may be missing."""
        if not self.may_be_cut:
            raise FormatError("it is shorter than its contents")

    def finish(self, x: I32) -> bool:
        """All steps of the layer are decoded and led to state ``x``; whether that is certain."""
        return self.source.close(self.cut.place, state_check(x))
