"""Where the steps of a picture end and its final layer begins, and whether that makes use of the
colours' lattice: the sender tries it on a part.

Of a picture that is grainy itself the last steps tell nothing that the final layer could not tell
as well, without what the channel loses and in less time; of a smooth one, or one that was
compressed before, they tell more.
"""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from diffcodec.final_layer import Distribution, ideal_bits
from diffcodec.model import Model
from diffcodec.parallel import one_torch_thread, thread_map
from diffcodec.plans import Plan
from diffcodec.reverse import evaluate, final_distribution, q_sample
from diffcodec.steps import Settings, Step

I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]

SIDE = 128
"""Of the parts that are looked at, in pixels."""
PARTS = 2
"""So many along each side of the picture, evenly spread."""
OVERHEAD = 1.03
"""What a step takes beside its divergence, and the final layer does not (measured)."""


Way = tuple[Plan, int]
"""A plan and the number of the lattice on which colours lie, or 0."""


def best_way(
    model: Model, levels: U8, plans: list[Plan], lattices: list[int], grey: bool, seed: int
) -> Way:
    """That of ``plans``, which differ in nothing else than where their steps end, and that of
    ``lattices`` which will take the fewest bits for levels uint8 [3, H, W]."""
    ways = list(product(plans, lattices))
    if len(ways) == 1:
        return ways[0]
    parts = _parts(levels)

    def work(number: int) -> list[float]:
        with one_torch_thread():
            rng = np.random.default_rng((seed, number))
            return _bits(model, parts[number], ways, grey, rng)

    total = np.sum(thread_map(work, len(parts)), axis=0)
    return ways[int(np.argmin(total))]


def _bits(
    model: Model, part: U8, ways: list[Way], grey: bool, rng: np.random.Generator
) -> list[float]:
    """What each way will take for a part, from where the first plan ends."""
    plans = list(dict.fromkeys(plan for plan, _ in ways))
    longest = max(plans, key=lambda plan: len(plan.timesteps))
    settings = Settings(longest, part.shape[1], part.shape[2], grey=grey)
    ends = [t for t in longest.timesteps if t <= max(plan.end for plan in plans)]
    states = {t: q_sample(model, part, t, rng) for t in ends}
    costs = {ends[0]: 0.0}  # of the steps down to each end
    for a, b in pairwise(ends):
        step = Step(model, states[a], a, b, settings)
        costs[b] = costs[a] + OVERHEAD * step.divergence(part, settings.bands)
    expected = {plan: _expected(model, states[plan.end], plan, grey) for plan in plans}
    return [
        costs[plan.end] + _final_bits(model, part, expected[plan], plan, lattice, grey)
        for plan, lattice in ways
    ]


def _expected(model: Model, x: I32, plan: Plan, grey: bool) -> Distribution:
    """What the final layer expects of a part in the state x, with a lattice or without."""
    return final_distribution(model, evaluate(model, x, plan.end, plan), x, plan, grey)


def _parts(levels: U8) -> list[U8]:
    """Squares of the picture, or all of one that is small."""
    _, height, width = levels.shape
    rows, columns = (
        sorted({(2 * k + 1) * max(0, side - SIDE) // (2 * PARTS) for k in range(PARTS)})
        for side in (height, width)
    )
    return [
        np.ascontiguousarray(levels[:, top : top + SIDE, left : left + SIDE])
        for top in rows
        for left in columns
    ]


def _final_bits(
    model: Model, part: U8, p: Distribution, plan: Plan, lattice: int, grey: bool
) -> float:
    """With the first rows for a lesson, which are not counted."""
    levels, lessons = part.astype(np.int64), model.lessons(plan, True, lattice)
    cut = part.shape[1] // 2
    ideal_bits(levels[:, :cut], p.rows(0, cut), grey, lessons)
    return 2.0 * ideal_bits(levels[:, cut:], p.rows(cut, part.shape[1]), grey, lessons)
