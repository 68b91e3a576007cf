"""What one change at a time does to the files of a fixed set of pictures.

    python tools/ablate.py --data train_4.webp --first 9488 --limit 4 --plan 4 \\
        --change effort=4 --change eta=128 --change arithmetic=float

Changes, each against the same base:

- ``effort=1…9``: survivors of the trellis search and tries at every step;
- ``eta=64…255``: the rate spent over the ideal one, in 1/128;
- ``plan=N`` or ``plan=680,330,…,1``: timesteps, η and first layer of plan N, or timesteps with
  the rest as it is (an exact model has constants for its own timesteps only; with
  ``--arithmetic float`` any will do);
- ``model=NAME`` or a folder, with its own plan;
- ``arithmetic=float`` or ``exact``.

The base has the model's own plan, or that of ``--plan``, which other efforts then keep.  Of a plan
that is mirrored or adaptive neither η nor timesteps can be changed: files name it by its number.

Every picture is encoded, decoded and compared; a file that does not come back ends the run.
Bytes are of whole files.  A plan that has no number, as any with another η, is written out in the
header; in a small picture that takes more than most changes do, and dB of a cut file suffer from
it too, so changes are compared by the bytes that are neither header nor framing.  Ideal bits are
those of exact samples on their own path (see diffcodec/evaluate.py).  Seconds are medians of
wall time.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from exact_cost import in_floats

from diffcodec.channel import segment_head
from diffcodec.codec import SentLayer
from diffcodec.coefficients import layout
from diffcodec.container import Header
from diffcodec.data import U8, load_images
from diffcodec.errors import DiffcodecError
from diffcodec.evaluate import evaluate_picture, summarise
from diffcodec.model import Model
from diffcodec.plans import PLANS, Plan, plan_for
from diffcodec.registry import load_model


@dataclass(frozen=True)
class Setup:
    """What a set of pictures is coded with; without a plan, with the model's own."""

    model: str = "cifar10"
    arithmetic: str = "exact"
    effort: int = 5
    plan: Plan | None = None

    def load(self) -> Model:
        """The model, in the arithmetic asked for."""
        model = load_model(self.model)
        return in_floats(model) if self.arithmetic == "float" else model

    def check(self) -> None:
        """DiffcodecError unless files can be written so."""
        model = self.load()
        model.check_plan(self.coded_plan)
        Header(1, 1, model.fingerprint, self.coded_plan).encode()

    @property
    def coded_plan(self) -> Plan:
        return self.plan or plan_for(load_model(self.model).plan, self.effort)

    def changed(self, change: str) -> Setup:
        """This but for one ``name=value``; ValueError that says what is wrong with it."""
        name, _, value = change.partition("=")
        if name == "effort":
            return replace(self, effort=_within(name, value, 1, 9))
        if name == "eta":
            eta = _within(name, value, 64, 255)
            return replace(self, plan=replace(self.coded_plan, eta=eta))
        if name == "plan":
            return replace(self, plan=_plan(value, self.coded_plan))
        if name == "model" and value:
            return replace(self, model=value)
        if name == "arithmetic" and value in ("exact", "float"):
            return replace(self, arithmetic=value)
        raise ValueError(
            f"'{change}': changes are effort=N, eta=N, plan=…, model=… and arithmetic=float|exact"
        )


def _within(name: str, value: str, low: int, high: int) -> int:
    if not value.isdecimal() or not low <= int(value) <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, not '{value}'")
    return int(value)


def _plan(value: str, base: Plan) -> Plan:
    try:
        numbers = [int(part) for part in value.split(",")]
    except ValueError:
        raise ValueError(f"a plan is a number or timesteps, not '{value}'") from None
    if len(numbers) == 1:
        if numbers[0] not in PLANS:
            raise ValueError(f"there is no plan {numbers[0]}")
        return PLANS[numbers[0]]
    return replace(base, timesteps=tuple(numbers), grouped=min(base.grouped, len(numbers) - 1))


@dataclass
class Layer:
    """Sums of one layer over pictures; scale: of the variances, in quarter octaves."""

    corrections: int = 0
    scale: int = 0
    segments: int = 0


@dataclass
class Measured:
    """One setup over all pictures: what ``summarise`` says, and what the segments' heads say."""

    summary: dict[str, Any]
    heads: dict[int, Layer] = field(default_factory=dict)


def measure(
    setup: Setup, pictures: list[U8], rates: tuple[float, ...], ideal: bool = True
) -> Measured:
    """Encode and decode all; SystemExit if one does not come back."""
    model, reports = setup.load(), []
    heads: dict[int, Layer] = {b: Layer() for _, b in pairwise(setup.coded_plan.timesteps)}
    for number, pixels in enumerate(pictures):
        segments = len(layout(*pixels.shape[:2]).segments)

        def watch(sent: SentLayer, single: bool = segments == 1) -> None:
            if sent.b and single:  # of several segments in a row only decoding tells where each is
                scale, corrections = segment_head(sent.code, sent.x.size)
                own = heads[sent.b]
                own.scale, own.corrections = own.scale + scale, own.corrections + corrections
                own.segments += 1

        report = evaluate_picture(
            str(number),
            pixels,
            model,
            effort=setup.effort,
            seed=number,
            rates=rates,
            ideal=ideal,
            ideal_seed=number,
            plan=setup.plan,
            watch_layer=watch,
        )
        if not report.exact:
            raise SystemExit(f"picture {number} did not come back")
        reports.append(report)
    return Measured(summarise(reports), heads)


def heading(rates: tuple[float, ...]) -> str:
    """Of a Markdown table with a line for the base and for every change."""
    titles = ["change", "bytes", "of them header and framing", "Δ of the rest"]
    titles += [
        "steps, real bits",
        "steps, ideal bits",
        "final, real bits",
        "corrections",
        "mean scale",
    ]
    titles += ["noise ratio", *(f"dB at {r:g} bpp" for r in rates)]
    return "\n".join(_head([*titles, "encode, s", "decode, s"]))


def line(name: str, m: Measured, base: Measured, rates: tuple[float, ...]) -> str:
    """Bits are means per picture, corrections of all pictures together."""
    steps, heads, s = m.summary["layers"][:-1], m.heads.values(), m.summary
    segments, psnr = sum(h.segments for h in heads), m.summary["psnr_at_bpp"]
    payload, before = (x["bytes"] - x["header_and_framing"] for x in (s, base.summary))
    cells = [name, f"{s['bytes']:.1f}", f"{s['header_and_framing']:.1f}"]
    cells.append(f"{100 * (payload / before - 1):+.2f} %")
    cells += [f"{sum(x[k] for x in steps):.0f}" for k in ("real_bits", "ideal_bits")]
    cells.append(f"{s['layers'][-1]['real_bits']:.0f}")
    cells.append(str(sum(h.corrections for h in heads)) if segments else "–")
    cells.append(f"{sum(h.scale for h in heads) / segments:.2f}" if segments else "–")
    cells.append(f"{np.mean([x['noise_ratio'] for x in steps]):.3f}")
    cells += [f"{psnr[r]:.2f}" if r in psnr else "–" for r in (f"{rate:g}" for rate in rates)]
    cells += [f"{s[f'{verb}_seconds_median']:.2f}" for verb in ("encode", "decode")]
    return _row(cells)


def layers(m: Measured) -> str:
    """A Markdown table with a line for every layer; bits are means per picture."""
    titles = ["t", "noise, levels", "real bits", "ideal bits", "corrections", "mean scale"]
    lines = _head([*titles, "noise ratio", "PSNR"])
    for layer in m.summary["layers"]:
        own = m.heads.get(layer["t"], Layer())
        seen = own.segments > 0
        cells = [str(layer["t"]), f"{layer['noise_levels']:.2f}", f"{layer['real_bits']:.0f}"]
        cells.append(f"{layer['ideal_bits']:.0f}")
        cells.append(str(own.corrections) if seen else "–")
        cells.append(f"{own.scale / own.segments:.2f}" if seen else "–")
        cells += (
            [f"{layer['noise_ratio']:.3f}", f"{layer['psnr']:.2f}"] if layer["t"] else ["–"] * 2
        )
        lines.append(_row(cells))
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _head(titles: list[str]) -> list[str]:
    return [_row(titles), "|" + "---|" * len(titles)]


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--first", default=0, show_default=True, help="number of the first picture")
@click.option("--limit", default=4, show_default=True, type=click.IntRange(min=1))
@click.option("--model", default="cifar10", show_default=True, help="of the base; name or folder")
@click.option("--effort", default=5, show_default=True, type=click.IntRange(1, 9))
@click.option("--plan", type=click.Choice([str(n) for n in PLANS]), help="of the base, by number")
@click.option("--arithmetic", default="exact", type=click.Choice(["exact", "float"]))
@click.option("--change", "changes", multiple=True, help="name=value; may be given again")
@click.option("--rates", default="0.75,1.25,2", show_default=True, help="bpp of cut files")
@click.option("--ideal/--no-ideal", default=True, show_default=True)
@click.option("--by-layer", is_flag=True, help="also a table of layers for base and each change")
def main(
    data: Path,
    first: int,
    limit: int,
    model: str,
    effort: int,
    plan: str | None,
    arithmetic: str,
    changes: tuple[str, ...],
    rates: str,
    ideal: bool,
    by_layer: bool,
) -> None:
    """Print a table with a line for the base and for every change."""
    torch.set_num_threads(1)
    base = Setup(model, arithmetic, effort, PLANS[int(plan)] if plan else None)
    try:
        at = tuple(float(rate) for rate in rates.split(",") if rate)
        setups = {"base": base} | {change: base.changed(change) for change in changes}
        for setup in setups.values():
            setup.check()
    except (ValueError, DiffcodecError) as e:
        raise click.UsageError(str(e)) from e
    pictures = load_images([data])[first : first + limit]
    if not pictures:
        raise click.UsageError(f"there is no picture {first}")
    found: dict[str, Measured] = {}
    click.echo(heading(at))
    for name, setup in setups.items():
        found[name] = measure(setup, pictures, at, ideal)
        click.echo(line(name, found[name], found["base"], at))
    for name in found if by_layer else ():
        click.echo(f"\n{name}\n\n{layers(found[name])}")


if __name__ == "__main__":
    main()
