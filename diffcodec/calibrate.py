"""From a trained network to the integers that code: calibration on pictures."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffcodec.exact import X_UNIT, quantize
from diffcodec.final_layer import fit_neighbours
from diffcodec.model import Model
from diffcodec.model_check import NEIGHBOURS
from diffcodec.reverse import evaluate, final_distribution

U8 = NDArray[np.uint8]


def exact_tensors(
    model: Model, images: U8, seed: int, weight_max: int = 32767
) -> dict[str, Tensor]:
    """The integer network for the model's plan and the final layer's weights of neighbours.

    images: uint8 [N, 3, H, W], H and W multiples of 8, never of a test set; weight_max: see
    diffcodec.exact.quantize.
    """
    timesteps = list(model.plan.timesteps)
    generator = torch.Generator().manual_seed(seed)
    tensors = quantize(
        model.network, model.schedule, timesteps, torch.from_numpy(images), generator, weight_max
    )
    exact = Model(model.config, model.network.state_dict(), tensors)
    rng = np.random.default_rng(seed)
    pictures = []
    for x_0 in images:
        x_1 = exact.schedule.q_sample(x_0 / 127.5 - 1.0, 1, rng.standard_normal(x_0.shape))
        state = np.rint(x_1 * (1 << X_UNIT)).astype(np.int32)
        out = evaluate(exact, state, 1)
        pictures.append((x_0.astype(np.int64), final_distribution(exact, out, state, grey=False)))
    return {**tensors, NEIGHBOURS: torch.from_numpy(fit_neighbours(pictures))}
