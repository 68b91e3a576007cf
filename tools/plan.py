"""Find the coding plan (which timesteps) that makes files smallest, by dynamic programming.

    python tools/plan.py --model models/cifar10 --data TRAIN.webp --steps 10

One network evaluation at timestep a gives the ideal cost of every step a → b, because only the
gain √(expm1(λ_b − λ_a)) depends on b.  To it are added what the trellis wastes and the bytes
of framing, and the cheapest path from a first timestep to t = 1 with K steps is found.  Use
training images: a plan is part of the format and must not be tuned on a test set.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch

from diffcodec.data import load_images
from diffcodec.model import read_model
from diffcodec.objective import block_transform, pixel_cost_bits, step_cost_bits


@click.command()
@click.option("--model", "folder", type=click.Path(path_type=Path), required=True)
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--images", default=96, show_default=True, help="taken from the end of the data")
@click.option("--grid", default=40, show_default=True, help="candidate timesteps")
@click.option("--steps", "most", default=12, show_default=True, help="largest K to report")
@click.option("--overhead", default=1.06, show_default=True, help="real over ideal bits of a step")
@click.option("--frame", default=16.0, show_default=True, help="bits of framing per layer")
@click.option("--grouped", default=60, show_default=True, help="steps to t >= this share a layer")
@torch.inference_mode()
def main(
    folder: Path,
    data: Path,
    images: int,
    grid: int,
    most: int,
    overhead: float,
    frame: float,
    grouped: int,
) -> None:
    """Print the best plan for each K and its expected bits/dim."""
    model = read_model(folder)
    batch = torch.from_numpy(np.stack(load_images([data])[-images:]).transpose(0, 3, 1, 2).copy())
    x_0 = batch.float() / 127.5 - 1.0
    dims = x_0[0].numel()
    lam = model.schedule.log_snr
    targets = np.linspace(-6.5, lam[1], grid)
    ts = sorted({model.schedule.nearest_timestep(v) for v in targets}, reverse=True)
    cost = np.full((len(ts), len(ts)), np.inf)
    generator = torch.Generator().manual_seed(0)
    for i, a in enumerate(ts[:-1]):
        noise = torch.randn(x_0.shape, generator=generator)
        abar = float(model.schedule.alphas_cumprod[a])
        log_snr = torch.full((len(x_0),), float(lam[a]))
        out = model.network(abar**0.5 * x_0 + (1 - abar) ** 0.5 * noise, log_snr)
        error = block_transform(noise - out.eps)
        for j in range(i + 1, len(ts)):
            bits = step_cost_bits(error, out.coef_logvar, float(lam[ts[j]] - lam[a]))
            own_layer = ts[j] < grouped
            cost[i, j] = overhead * float(bits.mean()) + own_layer * frame / dims
    noise = torch.randn(x_0.shape, generator=generator)
    sigma = float(np.exp(-0.5 * lam[1]))
    out = model.network(x_0 + sigma * noise, torch.full((len(x_0),), float(lam[1])))
    mean = (x_0 + sigma * (noise - out.eps) + 1.0) * 127.5
    final = float(
        pixel_cost_bits(batch.float(), mean, out.pixel, torch.tensor([sigma * 127.5])).mean()
    )
    click.echo(f"final layer {final:.4f} bits/dim")
    # Nothing before the first timestep is conveyed: what x there should have told is paid later.
    best = np.array([0.5 * np.log2(1 + 0.25 * np.exp(lam[t])) for t in ts])
    back: list[np.ndarray] = []
    for k in range(1, most + 1):
        total = best[:, None] + cost
        back.append(np.argmin(total, axis=0))
        best = np.min(total, axis=0)
        path = [len(ts) - 1]
        for choice in reversed(back):
            path.append(int(choice[path[-1]]))
        plan = tuple(ts[i] for i in reversed(path))
        click.echo(f"K={k}: {best[-1] + final:.4f} bits/dim  {plan}")


if __name__ == "__main__":
    main()
