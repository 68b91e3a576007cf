"""Table 2 of Ho et al. 2020 at reduced size: what to predict, and which objective to train.

    python tools/reproduce_paper.py --budget 40 --data TRAIN --labels LABELS.npz --test TEST \
        --out runs/table2

Six small U-Nets, equal but for what they predict (μ̃ or ε) and what is minimised, are trained on
the same pictures in the same order for the same number of steps, then measured on pictures they
never saw.  Nothing here is an FID or an Inception score: the Fréchet distance is taken in the
features of a small classifier trained here.  A run that was stopped continues where it was.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffcodec.data import U8, load_labelled, reduced
from diffcodec.ddpm.objectives import LOG2E, transition_bits
from diffcodec.ddpm.process import Prediction, ReverseProcess, Variance
from diffcodec.ddpm.store import read_process
from diffcodec.ddpm.unet import UNetConfig
from diffcodec.files import make_folder, write_bytes
from diffcodec.train import train
from diffcodec.train.settings import PAPER_SCHEDULE, TrainConfig
from diffcodec.train.tasks import Part, make_task

F64 = NDArray[np.float64]
TRAINING_SHARE, SAMPLING_SHARE = 0.65, 0.2
"""Of the budget; what is left is for the bound and for the classifier."""
SAMPLING_STEPS = 50
BOUND_DRAWS = 12
RMSE_TIMESTEPS = (10, 100, 300, 500)
BATCH = 32


@dataclass(frozen=True)
class Cell:
    """A cell of the table and what the paper has in it (IS, FID; none where unstable)."""

    name: str
    prediction: Prediction
    objective: str
    variance: Variance
    row: str
    paper: str


CELLS = (
    Cell("mean-learned", "mean", "bound", "learned", "μ̃, L, learned diagonal Σ", "23.69"),
    Cell("mean-fixed", "mean", "bound", "posterior", "μ̃, L, fixed isotropic Σ", "13.22"),
    Cell("mean-simple", "mean", "simple", "posterior", "μ̃, ‖μ̃ − μ̃_θ‖²", "unstable"),
    Cell("eps-learned", "eps", "bound", "learned", "ε, L, learned diagonal Σ", "unstable"),
    Cell("eps-fixed", "eps", "bound", "posterior", "ε, L, fixed isotropic Σ", "13.51"),
    Cell("eps-simple", "eps", "simple", "posterior", "ε, ‖ε − ε_θ‖² (L_simple)", "3.17"),
)


@dataclass(frozen=True)
class Plan:
    """What a run does, settled when it begins.

    size: side of the pictures; steps: of training, a cell; samples: pictures drawn from each
    model; pictures: test pictures whose bound is taken.
    """

    size: int
    channels: int
    steps: int
    samples: int
    pictures: int
    seed: int

    def config(self, cell: Cell) -> TrainConfig:
        """Adam and EMA as in the paper; a larger rate and no dropout, for a short run.

        In float32: bfloat16 would round μ̃ by as much as σ is at small t, but not ε.
        """
        shape = UNetConfig(
            channels=self.channels,
            multipliers=(1, 2) if self.size <= 16 else (1, 2, 2),
            blocks=1,
            dropout=0.0,
            groups=8,
            out_channels=6 if cell.variance == "learned" else 3,
        )
        return TrainConfig(
            network=shape,
            objective="bound" if cell.objective == "bound" else "simple",
            prediction=cell.prediction,
            variance=cell.variance,
            steps=self.steps,
            batch=BATCH,
            crop=self.size,
            lr=1e-3,
            warmup=100,
            decay=0.0,
            holdout=0,
            seed=self.seed,
            precision="float32",
        )


def make_plan(minutes: float, size: int, channels: int, seed: int, available: int) -> Plan:
    """As much of everything as fits the budget, by timing a step and an evaluation.

    In processor time, so that other work on the machine does not make the run a smaller one.
    """
    draft = Plan(size, channels, 1, 1, 1, seed)
    config = draft.config(CELLS[-1])
    task = make_task(config, PAPER_SCHEDULE)
    network = task.network()
    images = torch.randint(0, 256, (BATCH, 3, size, size), dtype=torch.uint8)
    part = Part(images, torch.full((BATCH,), -1), 0, BATCH)
    noise, t = torch.randn(BATCH, 3, size, size), torch.full((BATCH,), 500)
    step, forward = [], []
    for k in range(6):
        begun = time.process_time()
        task.total(task.loss(network, part, (seed, k), True)).backward()
        between = time.process_time()
        with torch.inference_mode():
            network(noise, t)
        step.append(between - begun)
        forward.append((time.process_time() - between) / BATCH)
    seconds = 60.0 * minutes / len(CELLS)
    evaluations = seconds / float(np.median(forward))
    bound = (1.0 - TRAINING_SHARE - SAMPLING_SHARE) / 2 * evaluations / (BOUND_DRAWS + 1)
    return Plan(
        size,
        channels,
        steps=max(2, int(TRAINING_SHARE * seconds / (1.15 * float(np.median(step))))),
        samples=int(np.clip(SAMPLING_SHARE * evaluations / SAMPLING_STEPS, BATCH, 2048)),
        pictures=int(np.clip(bound, BATCH, available)),
        seed=seed,
    )


# -- measures ----------------------------------------------------------------------------------


def scaled(images: U8) -> Tensor:
    """uint8 [N, H, W, 3] as float32 [N, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float() / 127.5 - 1.0


def bound_bpd(process: ReverseProcess, x_0: Tensor, seed: int) -> tuple[float, float]:
    """The variational bound (eq. 5) of pictures, bits/dim: mean and its standard error.

    L_0 and L_T of every picture exactly; the sum of the others from BOUND_DRAWS timesteps of
    each, drawn with probability ∝ 1/t and weighted by its inverse.
    The terms are those of diffcodec.ddpm.bound, which takes many timesteps of one picture;
    here a few of each of a thousand pictures are wanted, so a batch is of pictures.
    """
    T, count = process.schedule.timesteps, len(x_0)
    generator = torch.Generator().manual_seed(seed)
    weights = 1.0 / torch.arange(2, T + 1, dtype=torch.float64)
    chance = weights / weights.sum()
    drawn = torch.multinomial(chance, count * BOUND_DRAWS, True, generator=generator)
    t = torch.cat([torch.ones(count, 1).long(), drawn.view(count, -1) + 2], dim=1)
    scale = torch.cat([torch.ones(count, 1), 1.0 / (BOUND_DRAWS * chance[t[:, 1:] - 2])], dim=1)
    abar = float(process.schedule.alphas_cumprod[-1])
    rest = float(process.schedule.one_minus_alphas_cumprod[-1])
    total = 0.5 * LOG2E * (rest + abar * x_0.double().square() - 1.0 - np.log(rest))
    bits = total.mean(dim=(1, 2, 3))
    for column in range(t.shape[1]):
        for part in torch.arange(count).split(BATCH):
            a, images = t[part, column], x_0[part]
            x_t = process.q_sample(images, a, torch.randn(images.shape, generator=generator))
            terms = transition_bits(process, process(x_t, a, a - 1), images, x_t, a)
            bits[part] += scale[part, column] * terms
    return float(bits.mean()), float(bits.std() / count**0.5)


def rmse_levels(process: ReverseProcess, x_0: Tensor, t: int, seed: int) -> float:
    """Root mean square error of x̂_0 at t, levels of 0–255."""
    generator, squares = torch.Generator().manual_seed(seed), []
    for images in x_0.split(BATCH):
        a = torch.full((len(images),), t)
        x_t = process.q_sample(images, a, torch.randn(images.shape, generator=generator))
        squares.append((process(x_t, a, a - 1).x_0 - images).square().mean(dim=(1, 2, 3)))
    return 127.5 * float(torch.cat(squares).mean().sqrt())


def ancestral(process: ReverseProcess, count: int, size: int, seed: int) -> U8:
    """Pictures by Algorithm 2 over SAMPLING_STEPS evenly spaced timesteps, [N, H, W, 3]."""
    generator, done = torch.Generator().manual_seed(seed), []
    spaced = np.linspace(process.schedule.timesteps, 0, SAMPLING_STEPS + 1).round().astype(int)
    for part in torch.arange(count).split(BATCH):
        x = torch.randn(len(part), 3, size, size, generator=generator)
        for a, b in pairwise(spaced.tolist()):
            p = process(x, torch.full((len(x),), a), torch.full((len(x),), b))
            noise = torch.randn(x.shape, generator=generator) if b else torch.zeros(())
            x = p.mean + (0.5 * p.log_variance).exp() * noise
        done.append((127.5 * (x.clamp(-1, 1) + 1.0)).round().to(torch.uint8))
    return torch.cat(done).permute(0, 2, 3, 1).numpy()


class Classifier(nn.Module):
    """A small network whose 64 features before the last layer compare sets of pictures."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = (3, 32, 64, 64)
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=1 + (k > 0), padding=1)
            for k, (a, b) in enumerate(pairwise(widths))
        )
        self.last = nn.Linear(widths[-1], classes)

    def features(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x))
        return x.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.features(x))


def train_classifier(images: U8, labels: NDArray[np.int64], steps: int, seed: int) -> Classifier:
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(int(labels.max()) + 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        index = rng.integers(len(images), size=128)
        x = scaled(images[index])
        x = x.flip(3) if rng.random() < 0.5 else x
        loss = F.cross_entropy(model(x), torch.from_numpy(labels[index]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


def features(model: Classifier, images: U8) -> F64:
    parts = [model.features(x) for x in scaled(images).split(256)]
    return torch.cat(parts).double().numpy()


def frechet(a: F64, b: F64) -> float:
    """|m_a − m_b|² + tr(C_a + C_b − 2 (C_a C_b)^½) of two sets of features [N, D]."""
    ca, cb = np.cov(a.T), np.cov(b.T)
    values, vectors = np.linalg.eigh(ca)
    root = (vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cb @ root).clip(min=0.0)).sum()
    gap = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    return float(gap + np.trace(ca) + np.trace(cb) - 2.0 * cross)


# -- the run -----------------------------------------------------------------------------------


def shrink(images: list[U8], size: int) -> U8:
    """All pictures at side ``size``, averaged over squares, [N, size, size, 3]."""
    factor = images[0].shape[0] // size
    return np.stack(reduced(images, (factor,), size))


def save_grid(images: U8, path: Path, side: int = 8) -> None:
    tiles = images[: side * side].reshape(side, side, *images.shape[1:])
    Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in tiles])).save(path)


@torch.inference_mode()
def measure(folder: Path, plan: Plan, test: U8, classifier: Classifier) -> dict[str, object]:
    """All figures of a trained cell."""
    process, x_0 = read_process(folder), scaled(test[: plan.pictures])
    bound, error = bound_bpd(process, x_0, plan.seed)
    pictures = ancestral(process, plan.samples, plan.size, plan.seed)
    if len(pictures) >= 64:
        save_grid(pictures, folder / "samples.png")
    return {
        "bound": bound,
        "standard_error": error,
        "rmse": {t: rmse_levels(process, x_0[:256], t, plan.seed) for t in RMSE_TIMESTEPS},
        "frechet": frechet(features(classifier, pictures), features(classifier, test)),
    }


def table(plan: Plan, results: dict[str, dict[str, object]], facts: dict[str, float]) -> str:
    """The results in Markdown, with all that one must know to read them."""
    errors = [f"RMSE of x̂_0, t = {t} (levels)" for t in RMSE_TIMESTEPS]
    head = ["predicted, minimised", "bound on test pictures (bits/dim)", *errors]
    head += ["Fréchet distance, small classifier's features (not FID)", "paper: FID at full size"]
    lines = [
        f"Pictures of {plan.size}×{plan.size}, {plan.steps} steps of {BATCH} pictures, a U-Net "
        f"of {facts['parameters'] / 1e6:.2f} M parameters with {plan.channels} channels, Adam "
        f"1e-3, EMA, seed {plan.seed}, the same for all; clipped x̂_0.  Bound: {plan.pictures} "
        f"test pictures, ± its standard error.  Fréchet distance: {plan.samples} samples of "
        f"{SAMPLING_STEPS} steps against {facts['test']:.0f} test pictures, in the 64 features of "
        f"a classifier trained here ({100 * facts['accuracy']:.0f} % of held-out training "
        f"pictures right); as many training pictures instead of samples: {facts['floor']:.3f}.",
        "",
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
    ]
    for cell in CELLS:
        if cell.name not in results:
            continue
        r = results[cell.name]
        row = [cell.row, f"{r['bound']:.3f} ± {r['standard_error']:.3f}"]
        row += [f"{r['rmse'][str(t)]:.1f}" for t in RMSE_TIMESTEPS]  # type: ignore[index]
        lines.append("| " + " | ".join([*row, f"{r['frechet']:.3f}", cell.paper]) + " |")
    return "\n".join(lines) + "\n"


def read_pictures(
    data: tuple[Path, ...], labels: Path | None, size: int
) -> tuple[U8, NDArray[np.int64]]:
    """Training pictures at the size asked for, and their classes."""
    images, own = load_labelled(list(data))
    found = np.array(own, dtype=np.int64)
    if labels is not None:
        with np.load(labels, allow_pickle=False) as content:
            found = content["train" if "train" in content else content.files[0]].astype(np.int64)
    if len(found) != len(images) or found.min() < 0:
        raise click.UsageError("every training picture needs a class; give them with --labels")
    return shrink(images, size), found


def prepare(
    out: Path, plan: Plan, images: U8, labels: NDArray[np.int64], test: U8
) -> tuple[Classifier, dict[str, float]]:
    """The training pictures as one file, and the classifier with the facts about it."""
    if not (out / "train.npz").exists():
        np.savez(out / "train.npz", images=images)
    path, record = out / "classifier.safetensors", out / "classifier.json"
    if record.exists():
        model = Classifier(int(labels.max()) + 1)
        model.load_state_dict(load_file(path))
        return model.eval().requires_grad_(False), json.loads(record.read_text())
    kept = len(images) // 10
    model = train_classifier(images[kept:], labels[kept:], max(20, plan.steps), plan.seed)
    right = model(scaled(images[:kept])).argmax(dim=1).numpy() == labels[:kept]
    facts = {
        "accuracy": float(right.mean()),
        "floor": frechet(features(model, images[-plan.samples :]), features(model, test)),
        "test": float(len(test)),
    }
    save_file(model.state_dict(), path)
    write_bytes(record, json.dumps(facts).encode())
    return model, facts


PATHS = {"type": click.Path(path_type=Path, exists=True), "required": True, "multiple": True}


@click.command()
@click.option(
    "--budget",
    type=click.FloatRange(0, min_open=True),
    required=True,
    help="Minutes of processor time.",
)
@click.option("--data", **PATHS, help="CIFAR-10's training pictures, in any form.")
@click.option("--test", **PATHS, help="Its test pictures.")
@click.option("--labels", type=click.Path(path_type=Path, exists=True), help="Classes, an .npz.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--size", type=click.Choice(["16", "32"]), default="16", show_default=True)
@click.option("--channels", type=click.IntRange(8), default=32, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
def main(
    budget: float,
    data: tuple[Path, ...],
    test: tuple[Path, ...],
    labels: Path | None,
    out: Path,
    size: str,
    channels: int,
    seed: int,
) -> None:
    """Train and measure the cells of Table 2 at reduced size; print them as a table."""
    make_folder(out)
    held_out = shrink(load_labelled(list(test))[0], int(size))
    images, classes = read_pictures(data, labels, int(size))
    settled = out / "plan.json"
    if not settled.exists():
        plan = make_plan(budget, int(size), channels, seed, len(held_out))
        write_bytes(settled, json.dumps(asdict(plan)).encode())
    plan = Plan(**json.loads(settled.read_text()))
    click.echo(str(plan))
    classifier, facts = prepare(out, plan, images, classes, held_out)
    results: dict[str, dict[str, object]] = {}
    for cell in CELLS:
        folder, config = out / cell.name, plan.config(cell)
        result = folder / "result.json"
        if not result.exists():
            begun = folder.joinpath("checkpoint.pt").exists()
            trainer = train([out / "train.npz"], folder, config, resume=begun, report=click.echo)
            if trainer.step < config.steps:
                sys.exit("stopped; the same command continues")
            write_bytes(result, json.dumps(measure(folder, plan, held_out, classifier)).encode())
        results[cell.name] = json.loads(result.read_text())
        click.echo(f"{cell.name}: {results[cell.name]}")
    network = make_task(plan.config(CELLS[-1]), PAPER_SCHEDULE).network()
    facts["parameters"] = float(sum(p.numel() for p in network.parameters()))
    text = table(plan, results, facts)
    write_bytes(out / "table.md", text.encode())
    click.echo(text)


if __name__ == "__main__":
    main()
