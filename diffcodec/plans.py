"""Coding plans: which timesteps a file codes, and at what extra rate.

A plan is part of the format: files name it by number, so an entry is never changed, only new
ones are added.  They suit the codec's schedule (T = 1000, β from (0.6 levels)² to 0.02); a file
made with another schedule writes its plan out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

MAX_TIMESTEP = ALL = 1000
LAST = 4
"""Timesteps up to here, a quarter of a small picture's evaluations, code over half of its bits."""
MOST = 39
"""Of what a small picture's mirror image brings, in bits, nine tenths come at timesteps up to here.
"""
ENDS = 3
"""Where a photograph's steps end at the latest: two thirds of what mirror images bring up to
t = 6 they bring here, in half the evaluations."""


@dataclass(frozen=True)
class Plan:
    """Timesteps t_0 > t_1 > … > t_K, η in 1/128, how steps are put into layers, and more.

    x at t_0 comes from the shared noise at no cost, the K steps t_0 → t_1 → … are coded, then
    x_0 given x at t_K, in ``passes`` over the pixels (see final_layer.py).  The first ``grouped``
    steps carry few bytes each and share one layer of the file, so that framing does not outweigh
    them; every later step is a layer of its own.
    At timesteps up to ``mirrored`` the network is asked of the mirror image, too; with
    ``adaptive`` it is fitted to a large picture in the course of coding, by the rule of that
    number (see adaptation.py; 0: not at all).
    """

    timesteps: tuple[int, ...]
    eta: int
    grouped: int = 1
    mirrored: int = 0
    adaptive: int = 0
    passes: int = 2

    def __post_init__(self) -> None:
        t = self.timesteps
        if len(t) < 2 or t[-1] < 1 or any(a <= b for a, b in pairwise(t)):
            raise ValueError(f"timesteps must fall and end at 1 or above: {t}")
        if t[0] > MAX_TIMESTEP or len(t) > 256:
            raise ValueError(f"at most 256 timesteps, none above {MAX_TIMESTEP}: {t}")
        if not 64 <= self.eta <= 255:
            raise ValueError(f"eta must lie in 64..255 (1/128): {self.eta}")
        if not 0 <= self.mirrored <= MAX_TIMESTEP:
            raise ValueError(f"mirrored must lie in 0..{MAX_TIMESTEP}: {self.mirrored}")
        if not 1 <= self.grouped < len(t):
            raise ValueError(f"the first layer holds 1..{len(t) - 1} steps: {self.grouped}")
        if self.passes not in (2, 4):
            raise ValueError(f"the final layer takes 2 or 4 passes: {self.passes}")

    @property
    def end(self) -> int:
        """t_K, where the steps end and the final layer begins."""
        return self.timesteps[-1]

    def mirrors(self, t: int) -> bool:
        """Whether the network is asked of the mirror image at timestep ``t``."""
        return t <= self.mirrored

    def evaluations(self, timesteps: Iterable[int]) -> int:
        """Of the network, at these timesteps."""
        return sum(1 + self.mirrors(t) for t in timesteps)

    def learns(self, height: int, width: int) -> bool:
        """Whether a picture's strips of the final layer learn from those before (lessons.py)."""
        return self.passes == 4 and height * width > SMALL_PIXELS

    def strips(self, height: int, width: int) -> list[slice]:
        """Row ranges of the final layer's strips; where they learn the first one is short."""
        tops = [*range(0, height, STRIP_ROWS), height]
        if self.learns(height, width) and height > FIRST_ROWS:
            tops.insert(1, FIRST_ROWS)
        return [slice(top, end) for top, end in pairwise(tops)]

    @property
    def layers(self) -> list[list[tuple[int, int]]]:
        """The coded steps (a, b), layer by layer."""
        steps = list(pairwise(self.timesteps))
        return [steps[: self.grouped], *([step] for step in steps[self.grouped :])]

    @property
    def steps(self) -> list[tuple[int, int]]:
        """The coded steps (a, b) of all layers."""
        return [step for layer in self.layers for step in layer]

    def label(self, number: int) -> str:
        """How the layer ``number`` = 0, 1, … of a file is called in messages."""
        layers = self.layers
        if number < len(layers):
            return f"layer {number + 1} (down to t = {layers[number][-1][1]})"
        return f"strip {number - len(layers) + 1} of the final layer"


PLANS: dict[int, Plan] = {
    0: Plan((680, 450, 290, 180, 115, 70, 40, 22, 11, 6, 4, 2, 1), 134, 6),
    # For photographs: the first layers of a large picture are layers of their own, and few.
    1: Plan((680, 290, 140, 70, 40, 25, 15, 9, 6, 4, 2, 1), 134, 1),
    2: Plan((680, 330, 190, 120, 80, 54, 36, 23, 13, 7, 4, 2, 1), 130, 6),
    3: Plan((680, 450, 290, 180, 115, 70, 45, 28, 18, 13, 9, 6, 4, 3, 2, 1), 131, 1),
    4: Plan((680, 400, 260, 170, 115, 80, 56, 39, 26, 17, 11, 8, 6, 4, 3, 2, 1), 130, 6),
}
# For those who give time for size.
PLANS |= {n: replace(PLANS[own], mirrored=ALL) for n, own in ((5, 4), (6, 3), (7, 0))}
PLANS |= {n: replace(PLANS[own], adaptive=1) for n, own in ((8, 3), (9, 6), (10, 0), (11, 7))}
PLANS |= {n: replace(PLANS[own], mirrored=LAST) for n, own in ((12, 4), (13, 0))}
PLANS |= {n: replace(PLANS[own], adaptive=2) for n, own in ((14, 3), (15, 6), (16, 0), (17, 7))}


def _ending(plan: Plan, end: int) -> Plan:
    """The same steps down to timestep ``end``, and the final layer in four passes from there."""
    return replace(plan, timesteps=tuple(t for t in plan.timesteps if t >= end), passes=4)


# The noisier a picture itself, the less its last steps know that the final layer does not.
PLANS |= {17 + end: _ending(PLANS[14], end) for end in (1, 2, 3)}
PLANS |= {20 + end: _ending(PLANS[15], end) for end in (1, 2, 3)}
PLANS |= {24: _ending(PLANS[16], 2), 25: _ending(PLANS[17], 1)}
PLANS |= {25 + end: _ending(replace(PLANS[14], mirrored=ENDS), end) for end in (1, 2, 3)}
PLANS |= {29: replace(PLANS[4], mirrored=MOST)}


@dataclass(frozen=True)
class Search:
    """How hard the sender looks: survivors of the trellis search, and tries at every step, of
    which the one that leaves least to say is sent."""

    survivors: int
    tries: int = 1


_SURVIVORS = (1024, 4096, 8192, 16384, 32768, 65536, 98304, 131072, 196608)

EFFORTS: dict[int, Search] = {n: Search(m) for n, m in enumerate(_SURVIVORS, 1)}
"""Effort 1…9."""

DEFAULT_EFFORT = 5

SMALL_EFFORTS: dict[int, Search] = EFFORTS | {
    5: Search(49152, 2),
    6: Search(98304, 2),
    7: Search(98304, 4),
    8: Search(131072, 8),
    9: Search(196608, 16),
}
"""The same of a small picture: its files differ enough for one of several to be worth choosing."""

MIRRORED_EFFORT = 6
"""From this effort on the network is asked of the mirror image at every timestep."""

SMALL_PIXELS = 64 * 64
"""Up to this many pixels a picture counts as small: it gets other defaults."""

STRIP_ROWS, FIRST_ROWS = 64, 16
"""Of a strip of the final layer; of the first one, where it is to teach the others."""


def search_for(effort: int, pixels: int) -> Search:
    """What an effort means for a picture of so many pixels."""
    return (SMALL_EFFORTS if pixels <= SMALL_PIXELS else EFFORTS)[effort]


def endings(plan: Plan) -> list[Plan]:
    """The numbered plans that differ from it in where the final layer begins, itself included."""

    def differs_there(other: Plan) -> bool:
        steps = min(len(plan.timesteps), len(other.timesteps))
        same = plan.timesteps[:steps] == other.timesteps[:steps]
        return same and replace(other, timesteps=plan.timesteps) == plan

    return [p for p in PLANS.values() if differs_there(p)] or [plan]


def plan_for(plan: Plan, effort: int) -> Plan:
    """A model's plan, or the numbered one that differs from it in ``mirrored`` alone."""
    twin = replace(plan, mirrored=ALL)
    return twin if effort >= MIRRORED_EFFORT and twin in PLANS.values() else plan
