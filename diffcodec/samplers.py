"""Generation from the model: Algorithm 2, ancestral, over all T or a strided subset."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from diffcodec.model import Model
from diffcodec.reverse import to_levels

U8 = NDArray[np.uint8]


def strided_timesteps(total: int, steps: int) -> list[int]:
    """``steps`` timesteps from ``total`` down to 1, evenly spaced; ValueError if impossible."""
    if not 1 <= steps <= total:
        raise ValueError(f"steps must lie in 1..{total}, not {steps}")
    if steps == 1:
        return [total]
    return sorted({int(t) for t in np.rint(np.linspace(1, total, steps))}, reverse=True)


def ancestral(
    model: Model,
    count: int,
    size: int,
    *,
    seed: int,
    steps: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> U8:
    """Algorithm 2 with σ² = β̃: ``count`` pictures uint8 [count, size, size, 3].

    Noise is keyed by (seed, picture, timestep), so a picture does not depend on how many are
    drawn with it.  x̂_0 is clipped to [-1, 1] in every step, as in the paper's code.
    """
    schedule = model.schedule
    times = strided_timesteps(schedule.timesteps, steps or schedule.timesteps)

    def noise(t: int) -> NDArray[np.float64]:
        shape = (3, size, size)
        return np.stack(
            [
                np.random.Generator(np.random.Philox(key=[seed, k << 16 | t])).normal(size=shape)
                for k in range(count)
            ]
        )

    x = noise(0)  # 1: x_T ~ N(0, I)
    for number, (a, b) in enumerate(zip(times, [*times[1:], 0], strict=True)):  # 2
        log_snr = torch.full((count,), float(schedule.at(schedule.log_snr, a)))
        with torch.inference_mode():
            out = model.network(torch.from_numpy(x).float(), log_snr)
        x_0 = np.clip(schedule.predict_x0(x, a, out.eps.double().numpy()), -1.0, 1.0)
        if b == 0:
            x = x_0  # the last step shows the mean, without noise
        else:
            step = schedule.step(a, b)
            x = step.posterior_mean(x_0, x) + np.sqrt(step.variance) * noise(b)  # 3, 4
        if progress:
            progress(number + 1, len(times))
    return np.stack([to_levels(picture).transpose(1, 2, 0) for picture in x])  # 6


def grid(pictures: U8, columns: int | None = None) -> U8:
    """Tile pictures [N, H, W, 3] into one, nearly square, missing ones black."""
    count, height, width, _ = pictures.shape
    columns = columns or int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    sheet = np.zeros((rows * columns, height, width, 3), dtype=np.uint8)
    sheet[:count] = pictures
    tiles = sheet.reshape(rows, columns, height, width, 3).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(rows * height, columns * width, 3)
