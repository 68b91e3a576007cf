"""Several tries at a step, of which the sender keeps the one that leaves least to say.

Any x_b that looks like a draw from q will do, and some are luckier than others: given them the
network expects the picture more.  The receiver does not notice that there was a choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from diffcodec import final_layer
from diffcodec.parallel import one_torch_thread, thread_map
from diffcodec.plans import Search
from diffcodec.reverse import NetworkOutput, evaluate
from diffcodec.steps import Final, Settings, Step, send_step

U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Try:
    """code: bytes of the step; ratio: its noise ratio E[(y − d)²]; step: has moved to x_b;
    ahead: what the network says of x_b, if it was asked; bits: of ``code`` and of what is next."""

    code: bytes
    ratio: float
    step: Step
    ahead: NetworkOutput | None = None
    bits: float = 0.0


def best_try(
    step: Step, x_0: U8, settings: Settings, search: Search, pulse: Callable[[], None]
) -> Try:
    """Convey x_b ~ q(x_b | x_a, x_0) for levels x_0 uint8 [3, H, W]; see :func:`send_step`."""
    if search.tries == 1:
        code, ratio = send_step(step, x_0, settings, search.survivors, pulse)
        return Try(code, ratio, step)

    def attempt(number: int) -> Try:
        own = step.copy()
        with one_torch_thread():
            code, ratio = send_step(own, x_0, settings, search.survivors, _quiet, number)
            out = evaluate(own.model, own.x, own.b, settings.plan)
            bits = 8.0 * len(code) + _bits_ahead(own, out, x_0, settings)
        return Try(code, ratio, own, out, bits)

    found = thread_map(attempt, search.tries)
    for _ in settings.groups:
        pulse()
    return min(found, key=lambda one: one.bits)  # the first of equals


def _quiet() -> None:
    pass


def _bits_ahead(step: Step, out: NetworkOutput, x_0: U8, settings: Settings) -> float:
    """What the step after ``step`` has to convey, in bits, or what the final layer takes."""
    model, x, b = step.model, step.x, step.b
    following = dict(pairwise(settings.plan.timesteps)).get(b)
    if following is None:
        final = Final(model, x, settings, out)
        own = ((x_0[:, rows].astype(np.int64), rows) for rows in settings.strips)
        codes = (
            final_layer.send_strip(levels, final.distribution(rows), settings.grey, final.lessons)
            for levels, rows in own
        )
        return 8.0 * sum(len(code) for code in codes)
    return Step(model, x, b, following, settings, out).divergence(x_0, settings.bands)
