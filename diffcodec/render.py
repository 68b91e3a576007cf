"""What a receiver shows of a picture that has not arrived in full: ways from x_t to x_0.

* :func:`estimate` is x̂_0 itself, eq. 15;
* :func:`mean`, for the least squared error, is x̂_0 asked for one step further along the flow:
  the network errs less at two noise levels than at one (0.05 to 0.25 dB, measured), and of small
  pictures it is asked there of the mirror image, too (0.02 dB, not worth seconds);
* :func:`sample` goes on by Algorithm 2 from x_t: details that could be there (Fig. 7);
* :func:`flow` goes on to the end without noise, along the probability flow (DDIM, Song et al.
  2021).

All take the timesteps that the file's plan still holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from diffcodec.correction import EPS_UNIT
from diffcodec.exact import X_UNIT
from diffcodec.model import Model
from diffcodec.noise import derive_key, shared_normal
from diffcodec.plans import ALL, SMALL_PIXELS
from diffcodec.reverse import evaluate, predict_x0
from diffcodec.steps import Settings, Step, estimated_levels

I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]

Render = Callable[[Model, I32, int, Settings], tuple[U8, int]]
"""(levels uint8 [3, H, W], network evaluations) for a state x_t; it may overwrite the state."""

_RENDER = 2
"""Purpose of derived keys (0 and 1 are the format's)."""


def estimate(model: Model, x: I32, t: int, settings: Settings) -> tuple[U8, int]:
    """x̂_0(x_t), eq. 15."""
    out = evaluate(model, x, t, settings.plan)
    return estimated_levels(model, x, t, out, settings), settings.plan.evaluations([t])


def mean(model: Model, x: I32, t: int, settings: Settings) -> tuple[U8, int]:
    """x̂_0 after one step of the flow; of small pictures the mean with the mirror image's ε̂."""
    t, done = _flow(model, x, t, settings, most=1)
    if not done or x[0].size > SMALL_PIXELS:  # at the end of the steps the final layer's own x̂_0
        levels, more = estimate(model, x, t, settings)
        return levels, done + more
    out = evaluate(model, x, t, replace(settings.plan, mirrored=ALL))
    return estimated_levels(model, x, t, out, settings), done + 2


def sample(seed: int) -> Render:
    """Ancestral sampling with the model's own variances: p_θ(x_b | x_a) of the codec."""

    def render(model: Model, x: I32, t: int, settings: Settings) -> tuple[U8, int]:
        steps = _left(t, settings)
        for a, b in steps:
            step = Step(model, x, a, b, settings)
            key = derive_key(seed, _RENDER, b)
            for number, rows in enumerate(settings.bands):
                prior = step.prior(rows)
                noise = shared_normal(derive_key(key, number), prior.layout.size)
                step.move(rows, prior, np.rint(noise * prior.spread()).astype(np.int64))
        levels, more = estimate(model, x, settings.plan.end, settings)
        return levels, settings.plan.evaluations(a for a, _ in steps) + more

    return render


def flow(model: Model, x: I32, t: int, settings: Settings) -> tuple[U8, int]:
    """x_b = √ᾱ_b x̂_0 + √(1 − ᾱ_b) ε̂ from step to step, then x̂_0."""
    t, done = _flow(model, x, t, settings, most=len(settings.plan.steps))
    levels, more = estimate(model, x, t, settings)
    return levels, done + more


def _flow(model: Model, x: I32, t: int, settings: Settings, most: int) -> tuple[int, int]:
    """At most so many steps, in place: (where they ended, network evaluations)."""
    steps, schedule = _left(t, settings)[:most], model.schedule
    for a, b in steps:
        out = evaluate(model, x, a, settings.plan)
        keep = math.sqrt(float(schedule.at(schedule.alphas_cumprod, b)))
        rest = math.sqrt(float(schedule.at(schedule.one_minus_alphas_cumprod, b)))
        for rows in settings.bands:
            own = out.rows(rows)
            x0_hat = predict_x0(model, x[:, rows], a, own, settings.grey)
            x_b = keep * x0_hat + rest * (own.eps / (1 << EPS_UNIT))
            x[:, rows] = np.rint(x_b * (1 << X_UNIT)).astype(np.int64)
        del out  # before the next one is made: of a large picture it is large
        t = b
    return t, settings.plan.evaluations(a for a, _ in steps)


RENDERS: dict[str, Callable[[int], Render]] = {
    "mean": lambda _seed: mean,
    "x0": lambda _seed: estimate,
    "sample": sample,
    "flow": lambda _seed: flow,
}
"""By name, given a seed."""


def _left(t: int, settings: Settings) -> list[tuple[int, int]]:
    """The steps of the plan from timestep t on."""
    return list(pairwise(s for s in settings.plan.timesteps if s <= t))
