"""The paper's figures of samples: progressive generation, shared latents, interpolation.

Every function gives one picture, uint8 [H, W, 3], whose tiles are the network's pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffcodec.ddpm.samplers import Sampler, from_pixels, to_pixels

U8 = NDArray[np.uint8]
Progress = Callable[[int, int], None]
FRAMES = 10
"""Estimates x̂_0 in a row of :func:`progressive`."""


def grid(pictures: U8, columns: int | None = None) -> U8:
    """Tile pictures [N, H, W, 3] into one, nearly square, missing ones black."""
    count, height, width, _ = pictures.shape
    columns = columns or int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    sheet = np.zeros((rows * columns, height, width, 3), dtype=np.uint8)
    sheet[:count] = pictures
    tiles = sheet.reshape(rows, columns, height, width, 3).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(rows * height, columns * width, 3)


class _Counted:
    """Joins the steps of several chains into one progress."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def __call__(self, *_: int) -> None:
        self._done += 1
        if self._progress:
            self._progress(self._done, self._total)


def progressive(
    sampler: Sampler, count: int, height: int, width: int, progress: Progress | None = None
) -> U8:
    """Figure 6: ``count`` rows, each x̂_0 of one chain at FRAMES timesteps, then the sample."""
    times = sampler.times(sampler.T)[:-1]
    places = np.unique(np.rint(np.linspace(0, len(times) - 1, FRAMES)).astype(int))
    shown: dict[int, list[Tensor]] = {times[place]: [] for place in places}

    def watch(a: int, x_0: Tensor) -> None:
        if a in shown:
            shown[a].append(x_0)

    x_0 = sampler.draw(range(count), height, width, watch, progress)
    columns = torch.stack([*(torch.cat(parts) for parts in shown.values()), x_0], dim=1)
    return grid(to_pixels(columns.flatten(0, 1)), columns.shape[1])


def shared_latents(
    sampler: Sampler,
    shared: Sequence[int],
    count: int,
    height: int,
    width: int,
    progress: Progress | None = None,
) -> U8:
    """Figure 7: a row for every t of ``shared``, ``count`` samples x_0 ~ p_θ(x_0 | x_t), then x_t.

    All x_t, t in 1..T, belong to one chain.
    """
    main = sampler.times(sampler.T, *shared)
    branches = {t: sampler.times(t) for t in shared}
    batches = -(-count // sampler.batch)
    total = main.index(min(shared)) + batches * sum(len(b) - 1 for b in branches.values())
    counted = _Counted(total, progress)
    x, reached, latents = sampler.start([0], height, width), sampler.T, {}
    for t in sorted(set(shared), reverse=True):
        x = sampler.run(x, main[main.index(reached) : main.index(t) + 1], [0], None, counted)
        reached, latents[t] = t, x
    rows = []
    for t in shared:
        fan = latents[t].expand(count, -1, -1, -1)
        rows += [sampler.run(fan, branches[t], range(1, count + 1), None, counted), latents[t]]
    return grid(to_pixels(torch.cat(rows)), count + 1)


def interpolation(
    sampler: Sampler,
    first: U8,
    second: U8,
    mixed_at: Sequence[int],
    count: int,
    progress: Progress | None = None,
) -> U8:
    """Figures 8 and 9: a row for every t of ``mixed_at``, 0..T (0 mixes the pictures themselves).

    first, second: uint8 [H, W, 3] of the same size.  A row is ``first``, its reconstruction,
    ``count`` interpolations x̄_0, the reconstruction of ``second``, ``second``.
    x̄_t = (1 − λ) x_t + λ x′_t has the same noise in x_t and x′_t, and all chains of a row the
    same noise in every step.
    """
    sources = torch.stack([from_pixels(first), from_pixels(second)])
    weights = torch.linspace(0.0, 1.0, count + 2)[:, None, None, None]
    chains = [sampler.times(t) for t in mixed_at]
    batches = -(-(count + 2) // sampler.batch)
    counted = _Counted(batches * sum(len(chain) - 1 for chain in chains), progress)
    noise = sampler.start([0], *first.shape[:2])
    rows = []
    for t, chain in zip(mixed_at, chains, strict=True):
        latents = sources
        if t > 0:
            latents = sampler.process.q_sample(sources, torch.tensor([t, t]), noise)
        mixed = (1.0 - weights) * latents[:1] + weights * latents[1:]
        decoded = sampler.run(mixed, chain, [0] * (count + 2), None, counted) if t > 0 else mixed
        rows += [sources[:1], decoded, sources[1:]]
    return grid(to_pixels(torch.cat(rows)), count + 4)
