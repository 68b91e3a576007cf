"""Generation: Algorithm 2, over all T or a strided subset, and DDIM; any network, any batch.

All randomness is keyed by (seed, picture number, timestep), so that a picture depends neither
on how many are drawn with it nor on how they are split into batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffcodec.ddpm.process import Gaussian, Network, ReverseProcess

Step = Callable[[Tensor, Tensor, Tensor, Tensor | None], Gaussian]
"""(x_a [B, 3, H, W], a int64 [B], b int64 [B], labels) → p(x_b | x_a); a ReverseProcess is one."""

Watch = Callable[[int, Tensor], None]
"""Told the timestep a and x̂_0(x_a) [B, 3, H, W] of every step of a chain."""

U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Noise:
    """Standard normal noise of the pictures ``numbers`` in 0..2^48 − 1, shape (3, H, W) each.

    Equal numbers get equal noise.
    """

    seed: int
    numbers: Sequence[int]
    shape: tuple[int, int, int]

    def __call__(self, t: int) -> Tensor:
        """[B, 3, H, W] float32 for the state x_t; t = 0 keys the start of the chain."""
        return torch.stack([keyed_normal(self.seed, k, t, self.shape) for k in self.numbers])


def keyed_normal(seed: int, number: int, t: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise, float32, of one picture at one timestep."""
    rng = np.random.Generator(np.random.Philox(key=[seed, number << 16 | t]))
    return torch.from_numpy(rng.normal(size=tuple(shape))).float()


def strided_timesteps(total: int, steps: int) -> list[int]:
    """``steps`` timesteps from ``total`` down to 1, evenly spaced; ValueError if impossible."""
    if not 1 <= steps <= total:
        raise ValueError(f"steps must lie in 1..{total}, not {steps}")
    if steps == 1:
        return [total]
    return sorted({int(t) for t in np.rint(np.linspace(1, total, steps))}, reverse=True)


def ancestral(
    step: Step,
    x: Tensor,
    times: Sequence[int],
    noise: Callable[[int], Tensor],
    labels: Tensor | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """Algorithm 2 from x at the first of the falling ``times`` to the last one.

    x: [B, 3, H, W]; noise(t): z of the state x_t, as x; labels: int64 [B].  The result is on the
    device of x, like the network must be.
    """
    every = torch.ones(len(x), dtype=torch.int64, device=x.device)
    with torch.inference_mode():
        for a, b in pairwise(times):  # 2: for t = T, …, 1 do
            z = noise(b).to(x.device) if b > 0 else 0.0  # 3: z ~ N(0, I) if t > 1, else z = 0
            p = step(x, a * every, b * every, labels)
            x = p.mean + (0.5 * p.log_variance).exp() * z  # 4: x_{t−1} = μ_θ(x_t, t) + σ_t z
            if watch:
                watch(a, p.x_0)
    return x  # 6


@dataclass(frozen=True)
class DDIM:
    """Song, Meng and Ermon 2021, eq. 12, as a step of :func:`ancestral`.

    eta: 0 is deterministic, 1 is Algorithm 2 with σ² = β̃.
    """

    process: ReverseProcess
    eta: float = 0.0

    def __call__(self, x_a: Tensor, a: Tensor, b: Tensor, labels: Tensor | None = None) -> Gaussian:
        x_0 = self.process(x_a, a, b, labels).x_0
        eps = self.process.predict_eps(x_0, x_a, a)
        variance = self.eta**2 * self.process.transition(a, b).posterior
        schedule, times = self.process.schedule, b.cpu().numpy()
        abar, rest = (
            torch.from_numpy(schedule.at(table, times)).to(x_a)[:, None, None, None]
            for table in (schedule.alphas_cumprod, schedule.one_minus_alphas_cumprod)
        )
        mean = abar.sqrt() * x_0 + (rest - variance).clamp(min=0.0).sqrt() * eps
        return Gaussian(mean, variance.log(), x_0)


@dataclass(frozen=True)
class Guided:
    """Classifier-free guidance (Ho and Salimans 2021, eq. 6) of a class-conditional network.

    ε = (1 + w) ε_θ(x_t, class) − w ε_θ(x_t); a mean, being affine in ε, is mixed likewise, a
    learned variance is that of the class.
    """

    network: Network
    weight: float

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            raise ValueError("guidance needs labels")
        known, free = (self.network(x_t, t, k) for k in (labels, torch.full_like(labels, -1)))
        mixed = (1.0 + self.weight) * known[:, :3] - self.weight * free[:, :3]
        return torch.cat([mixed, known[:, 3:]], dim=1)


@dataclass(frozen=True)
class Sampler:
    """Everything that says how x_0 is drawn, ready for any number of pictures.

    steps: network evaluations of a whole chain, all T by default; label: class of a
    class-conditional network, None for no class; guidance: w of :class:`Guided`; batch: at most
    so many pictures go through the network together.
    """

    process: ReverseProcess
    steps: int | None = None
    ddim: bool = False
    eta: float = 0.0
    label: int | None = None
    guidance: float = 0.0
    seed: int = 0
    batch: int = 16
    device: str = "cpu"

    @property
    def step(self) -> Step:
        process = self.process
        if self.guidance:
            process = replace(process, network=Guided(process.network, self.guidance))
        return DDIM(process, self.eta) if self.ddim else process

    @property
    def T(self) -> int:  # noqa: N802
        return self.process.schedule.timesteps

    def times(self, start: int, *through: int) -> list[int]:
        """The chain's timesteps from ``start`` on, with ``through`` among them, and 0."""
        strided = strided_timesteps(self.T, self.steps or self.T)
        chosen = {start, *through, *(t for t in strided if t < start), 0}
        return sorted(chosen, reverse=True)

    def run(
        self,
        x: Tensor,
        times: Sequence[int],
        numbers: Sequence[int],
        watch: Watch | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """x at times[0] → x at times[-1], [N, 3, H, W] float32 on the CPU, batch by batch.

        numbers: of the pictures, which key their noise; progress(done, total) counts steps.
        """
        parts = list(_slices(len(x), self.batch))
        total, done = len(parts) * (len(times) - 1), 0

        def watched(a: int, x_0: Tensor) -> None:
            nonlocal done
            done += 1
            if watch:
                watch(a, x_0.cpu())
            if progress:
                progress(done, total)

        out = []
        for part in parts:
            state = x[part].to(self.device)
            noise = Noise(self.seed, numbers[part], (3, *x.shape[2:]))
            labels = None
            if self.label is not None:
                labels = torch.full((len(state),), self.label, device=state.device)
            out.append(ancestral(self.step, state, times, noise, labels, watched).cpu())
        return torch.cat(out)

    def start(self, numbers: Sequence[int], height: int, width: int) -> Tensor:
        """1: x_T ~ N(0, I), [N, 3, H, W]."""
        return Noise(self.seed, numbers, (3, height, width))(0)

    def draw(
        self,
        numbers: Sequence[int],
        height: int,
        width: int,
        watch: Watch | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Samples x_0 [N, 3, H, W], float32."""
        x = self.start(numbers, height, width)
        return self.run(x, self.times(self.T), numbers, watch, progress)


def _slices(total: int, size: int) -> Iterator[slice]:
    for begin in range(0, total, size):
        yield slice(begin, min(begin + size, total))


def to_pixels(x: Tensor) -> U8:
    """[…, 3, H, W] in the [-1, 1] scale as uint8 […, H, W, 3], clipped."""
    levels = ((x.double() + 1.0) * 127.5).round().clamp(0.0, 255.0).to(torch.uint8)
    return levels.movedim(-3, -1).cpu().numpy()


def from_pixels(pixels: U8) -> Tensor:
    """uint8 […, H, W, 3] as float32 […, 3, H, W] in the [-1, 1] scale."""
    x = torch.from_numpy(pixels.astype(np.float32)).movedim(-1, -3)
    return (x / 127.5 - 1.0).contiguous()
