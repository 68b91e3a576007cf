"""Models of several networks, each for a range of timesteps (Balaji et al. 2022).

Steps with much noise and with little ask for different things.  A network for each range knows
more of it than one for all, and takes no more time.  ``floors`` are the lowest timesteps of the
networks, falling to 1: network k answers at the timesteps from floors[k] up to the one before.
In files the tensors of network k have the names of a single one's after ``k.``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from diffcodec.errors import ModelError
from diffcodec.schedule import Schedule

SINGLE = (1,)
"""Floors of a model of one network."""
MOST = 16


def check_floors(floors: Sequence[int]) -> None:
    """ValueError unless they fall to 1."""
    whole = all(type(t) is int for t in floors)
    if not whole or not floors or floors[-1] != 1 or any(a <= b for a, b in pairwise(floors)):
        raise ValueError(f"the networks' lowest timesteps must fall to 1, not {list(floors)}")
    if len(floors) > MOST:
        raise ValueError(f"more than {MOST} networks")


def expert_at(floors: Sequence[int], t: int) -> int:
    """Which network answers at timestep ``t``."""
    return next(k for k, floor in enumerate(floors) if t >= floor)


def ceilings(schedule: Schedule, floors: Sequence[int]) -> list[float]:
    """The log-SNR halfway between the lowest timestep of each network and the next one's highest,
    for all but the last."""
    if floors[0] > schedule.timesteps:
        raise ModelError(f"there is no timestep {floors[0]} in a chain of {schedule.timesteps}")
    return [float(schedule.log_snr[t] + schedule.log_snr[t - 1]) / 2.0 for t in floors[:-1]]


def split(tensors: dict[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """The tensors of each of ``count`` networks; ModelError for one that is nobody's."""
    if count == 1:
        return [tensors]
    parts: list[dict[str, Tensor]] = [{} for _ in range(count)]
    for name, tensor in tensors.items():
        number, _, own = name.partition(".")
        if number not in map(str, range(count)):
            raise ModelError(f"tensor {name[:200]!r} belongs to none of the {count} networks")
        parts[int(number)][own] = tensor
    return parts


def join(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The reverse of :func:`split`."""
    if len(parts) == 1:
        return dict(parts[0])
    return {f"{k}.{name}": t for k, part in enumerate(parts) for name, t in part.items()}
