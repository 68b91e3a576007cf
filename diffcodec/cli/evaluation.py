"""The command evaluate: real bytes, the paper's bound, or scores of samples."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from diffcodec.cli.base import PATH, Progress, check_device, main
from diffcodec.cli.sampling import (
    chain_options,
    check_size,
    load,
    make_sampler,
    process_options,
)
from diffcodec.errors import DataError
from diffcodec.plans import DEFAULT_EFFORT, EFFORTS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from diffcodec.ddpm.samplers import Sampler

    U8 = NDArray[np.uint8]

_GOES_WITH = {
    "coding files, not with --bound or --fid": ("effort", "rates", "ideal", "log"),
    "--bound": ("bound_steps", "plot"),
    "--fid": ("inception_weights", "samples", "steps", "sampler", "eta"),
    "--bound or --fid": ("variance", "seed", "batch"),
}
_SHOWN = (1000, 750, 500, 250, 100, 50, 20, 10, 5, 2, 1, 0)
"""Timesteps of the rate–distortion curve that are printed; JSON has all of it."""


@main.command()
@click.option("--data", type=PATH, required=True, multiple=True, help="Folder, archive or image.")
@click.option("--first", type=click.IntRange(0), default=0, help="Leave out so many pictures.")
@click.option("--limit", type=click.IntRange(1), help="Only so many pictures.")
@click.option(
    "--effort",
    type=click.IntRange(min(EFFORTS), max(EFFORTS)),
    default=DEFAULT_EFFORT,
    show_default=True,
)
@click.option(
    "--rates",
    default="0.5,0.75,1.25,2.0,4.0",
    show_default=True,
    help="bpp at which each file is cut and decoded.",
)
@click.option("--ideal/--no-ideal", default=True, help="Also the model's ideal chain.")
@click.option("--log", is_flag=True, help="A line on stderr for every picture.")
@click.option("--bound", is_flag=True, help="The paper's variational bound instead of files.")
@click.option(
    "--bound-steps",
    type=click.IntRange(1),
    help="Of the bound only so many random timesteps a picture  [default: all].",
)
@click.option("--plot", type=PATH, help="Plot of rate and distortion (Figure 5).")
@click.option("--fid", is_flag=True, help="FID and Inception Score of samples against the data.")
@click.option(
    "--inception-weights", type=PATH, help="inception-2015-12-05.pt, which diffcodec has not."
)
@click.option("--samples", type=click.IntRange(2, 1 << 20), help="Pictures to draw for --fid.")
@chain_options
@process_options
@click.option("--json", "json_path", type=PATH, help="Write all figures, picture by picture.")
@click.pass_context
def evaluate(ctx: click.Context, /, **options: Any) -> None:
    """Encode, decode and measure pictures: real bytes beside the model's ideal bits.

    \b
    diffcodec evaluate --data test_first5000.webp --limit 200 --json result.json

    With --bound: L_T, all L_{t-1} and L_0 of the model in bits/dim, and its rate-distortion
    curve, with standard errors over the pictures.

    \b
    diffcodec evaluate --bound --data test/ --limit 32 --json bound.json --plot rd.png
    diffcodec evaluate --bound --bound-steps 50 --data test/ --model runs/ddpm

    With --fid: how near samples are to the data (50,000 of both are usual).

    \b
    diffcodec evaluate --fid --inception-weights inception-2015-12-05.pt --data train/ \\
        --samples 5000 --steps 100
    """
    from diffcodec.data import load_images
    from diffcodec.files import check_folder

    _check_options(ctx, options)
    for output in (options["plot"], options["json_path"]):
        if output:
            check_folder(output)
    pictures = load_images(list(options["data"]))[options["first"] :][: options["limit"]]
    if not pictures:
        raise DataError(f"there are no pictures after the first {options['first']}")
    if options["bound"]:
        _evaluate_bound(pictures, **options)
    elif options["fid"]:
        _evaluate_fid(pictures, **options)
    else:
        _evaluate_files(pictures, **options)


def _check_options(ctx: click.Context, options: dict[str, Any]) -> None:
    bound, fid = options["bound"], options["fid"]
    if bound and fid:
        raise click.UsageError("--bound and --fid are two measurements: take one")
    allowed = (not (bound or fid), bound, fid, bound or fid)
    for (what, names), fits in zip(_GOES_WITH.items(), allowed, strict=True):
        for name in names:
            given = ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
            if given and not fits:
                raise click.UsageError(f"--{name.replace('_', '-')} goes with {what}")
    options["rates"] = _cuts(options["rates"])
    if fid and not (options["inception_weights"] and options["samples"]):
        raise click.UsageError("--fid needs --inception-weights and --samples")


def _write_json(path: Path | None, document: dict[str, Any]) -> None:
    from diffcodec.evaluate import finite
    from diffcodec.files import write_bytes

    if path:
        write_bytes(path, (json.dumps(finite(document), indent=1) + "\n").encode())


# -- the bound -------------------------------------------------------------------------------


def _evaluate_bound(pictures: list[U8], **options: Any) -> None:
    from diffcodec import registry
    from diffcodec.ddpm import plots
    from diffcodec.ddpm.bound import Strata, bound, summarise
    from diffcodec.ddpm.process import CodecEps
    from diffcodec.ddpm.store import size_multiple
    from diffcodec.files import write_bytes

    if options["plot"]:
        plots.require_matplotlib(options["plot"].suffix)
    name = options["model"] or registry.default_name(_area(pictures))
    process = load(name, options["variance"], options["device"])
    multiple, total = size_multiple(process), process.schedule.timesteps
    for number, pixels in enumerate(pictures):
        check_size(f"picture {number}", pixels, multiple)
    if (options["bound_steps"] or 1) > total - 1:
        raise click.UsageError(f"--bound-steps: the bound has {total - 1} steps")
    strata = Strata.of(process.schedule, options["bound_steps"])
    found = bound(
        process,
        pictures,
        strata,
        seed=options["seed"],
        batch=options["batch"],
        device=options["device"],
        progress=Progress("bound"),
    )
    summary = summarise(found, strata)
    _print_bound(summary)
    click.echo(f"variance               {process.variance}")
    if isinstance(process.network, CodecEps):
        click.echo(
            "This is the paper's bound, with one variance for all values; the codec itself has a "
            "predicted one for every coefficient, a better final layer, and fewer steps."
        )
    if options["plot"]:
        plot = plots.rate_distortion(summary, total, options["plot"].suffix)
        write_bytes(options["plot"], plot)
    each = [
        {
            "prior_bpd": b.prior,
            "rate_bpd": b.rate,
            "distortion_bpd": b.decoder,
            "bpd": b.total,
            "steps_bpd": b.steps.tolist(),
            "rmse": b.rmse.tolist(),
        }
        for b in found
    ]
    kind = {"model": name, "variance": process.variance, "seed": options["seed"]}
    _write_json(options["json_path"], {**kind, "bound": summary, "pictures": each})


def _print_bound(summary: dict[str, Any]) -> None:
    def line(what: str, value: list[float], unit: str, digits: int = 4) -> None:
        error = "" if math.isnan(value[1]) else f" ± {value[1]:.{digits}f}"
        click.echo(f"{what:22} {value[0]:.{digits}f}{error} {unit}")

    times = [row["t"] for row in summary["curve"]]
    click.echo("      t   rate (bits/dim)   RMSE (levels)")
    for k in sorted({min(range(len(times)), key=lambda k: abs(times[k] - t)) for t in _SHOWN}):
        row = summary["curve"][k]
        click.echo(f"{row['t']:7.1f}  {row['rate_bpd'][0]:16.4f}  {row['rmse'][0]:14.2f}")
    line("bound", summary["bpd"], "bits/dim")
    line("  rate, L_1 ... L_T", summary["rate_bpd"], "bits/dim")
    line("    of this L_T", summary["prior_bpd"], "bits/dim", 6)
    line("  distortion, L_0", summary["distortion_bpd"], "bits/dim")
    line("RMSE at t = 1", summary["distortion_rmse"], "levels of 0-255", 3)
    click.echo(
        f"over                   {summary['pictures']} pictures, {summary['timesteps']} timesteps "
        "each; ± is the standard error"
    )


# -- scores of samples -----------------------------------------------------------------------


def _evaluate_fid(pictures: list[U8], **options: Any) -> None:
    from diffcodec import registry
    from diffcodec.ddpm import fid
    from diffcodec.ddpm.store import size_multiple

    fid.require_torchmetrics()
    network = fid.Inception(options["inception_weights"], options["device"])
    height, width = pictures[0].shape[:2]
    if len(pictures) < 2 or any(p.shape[:2] != (height, width) for p in pictures):
        raise DataError("FID needs two or more pictures of one size: crop or resize them")
    name = options["model"] or registry.default_name(_area(pictures))
    process = load(name, options["variance"], options["device"])
    check_size("the data", pictures[0], size_multiple(process))
    sampler, count = make_sampler(process, **options), options["samples"]
    scores = fid.scores(
        network,
        _drawn(sampler, count, height, width),
        _stacked(pictures, options["batch"]),
        options["seed"],
    )
    click.echo(f"FID                    {scores.fid:.3f}")
    click.echo(f"Inception Score        {scores.inception:.3f} ± {scores.inception_std:.3f}")
    click.echo(f"over                   {count} samples, {len(pictures)} pictures")
    if min(count, len(pictures)) < 10_000:
        click.echo("Of so few pictures FID is biased upwards: compare only equal numbers.")
    kind = {"model": name, "sampler": options["sampler"], "steps": options["steps"]}
    _write_json(options["json_path"], {**kind, "seed": options["seed"], **asdict(scores)})


def _drawn(sampler: Sampler, count: int, height: int, width: int) -> Iterator[Tensor]:
    """Samples uint8 [B, 3, H, W], batch by batch."""
    import torch

    from diffcodec.ddpm.samplers import to_pixels

    progress = Progress("samples")
    for begin in range(0, count, sampler.batch):
        numbers = range(begin, min(begin + sampler.batch, count))
        pixels = to_pixels(sampler.draw(numbers, height, width))
        yield torch.from_numpy(pixels).movedim(-1, -3).contiguous()
        progress(numbers.stop, count)


def _stacked(pictures: Sequence[U8], batch: int) -> Iterator[Tensor]:
    """Pictures of one size as uint8 [B, 3, H, W]."""
    import numpy as np
    import torch

    for begin in range(0, len(pictures), batch):
        stack = np.stack(pictures[begin : begin + batch])
        yield torch.from_numpy(stack).movedim(-1, -3).contiguous()


# -- files -----------------------------------------------------------------------------------


def _area(pictures: list[U8]) -> int:
    return int(pictures[0].shape[0] * pictures[0].shape[1])


def _cuts(text: str) -> tuple[float, ...]:
    """'a,b,…' as bpp."""
    try:
        cuts = tuple(float(rate) for rate in text.split(",") if rate)
    except ValueError:
        raise click.BadParameter(
            "must be numbers separated by commas", param_hint="--rates"
        ) from None
    if not all(math.isfinite(rate) and rate > 0 for rate in cuts):
        raise click.UsageError("--rates must be positive numbers")
    return cuts


def _evaluate_files(pictures: list[U8], **options: Any) -> None:
    from diffcodec import registry
    from diffcodec.evaluate import evaluate_picture, summarise, to_dict

    check_device(options["device"])
    area = _area(pictures)
    name = options["model"] or registry.default_name(area)
    loaded = registry.load_model(name).on(options["device"])
    effort = options["effort"]
    # Compilation of the search and of the tables is no part of any picture's time.
    evaluate_picture("warm-up", pictures[0][:32, :32], loaded, effort=effort)
    reports = []
    for number, pixels in enumerate(tqdm(pictures, desc="evaluate", leave=False)):
        report = evaluate_picture(
            str(number),
            pixels,
            loaded,
            effort=effort,
            rates=options["rates"],
            ideal=options["ideal"],
        )
        reports.append(report)
        if options["log"]:
            click.echo(
                f"{number}: {report.bytes} bytes, {report.bpd:.4f} bpd, "
                f"encode {report.encode_seconds:.2f} s, decode {report.decode_seconds:.2f} s",
                err=True,
            )
    summary = summarise(reports)
    _print_summary(summary)
    document = {
        "model": loaded.name,
        "fingerprint": loaded.fingerprint.hex(),
        "effort": effort,
        "mean": summary,
        "pictures": [to_dict(r) for r in reports],
    }
    _write_json(options["json_path"], document)
    if summary["exact"] != len(reports):
        sys.exit(1)


def _print_summary(summary: dict[str, Any]) -> None:
    click.echo("    t  noise (levels)   payload bits   ideal bits   ratio  noise ratio   PSNR dB")
    for row in summary["layers"]:
        quality = "exact" if math.isinf(row["psnr"]) else f"{row['psnr']:.2f}"
        click.echo(
            f"{row['t']:5d}  {row['noise_levels']:14.2f}  {row['real_bits']:13.1f}"
            f"  {row['ideal_bits']:11.1f}  {row['overhead']:6.3f}  {row['noise_ratio']:11.3f}"
            f"  {quality:>8}"
        )
    click.echo(f"exact round trips      {summary['exact']} of {summary['pictures']}")
    click.echo(f"file                   {summary['bytes']:.1f} bytes = {summary['bpd']:.4f} bpd")
    click.echo(f"  header and framing   {summary['header_and_framing']:.1f} bytes")
    if not math.isnan(summary["ideal_bpd"]):
        click.echo(f"ideal channel          {summary['ideal_bpd']:.4f} bpd (not bytes)")
        click.echo(f"coded steps over ideal {summary['step_overhead']:.4f}")
    for rate, value in summary["psnr_at_bpp"].items():
        click.echo(f"cut at {rate} bpp: {value:.2f} dB")
    click.echo(
        f"median seconds         encode {summary['encode_seconds_median']:.3f}, "
        f"decode {summary['decode_seconds_median']:.3f}; "
        f"{summary['evaluations']:.0f} network evaluations"
    )
    click.echo(
        f"seconds per megapixel  encode {summary['encode_seconds_per_megapixel']:.1f}, "
        f"decode {summary['decode_seconds_per_megapixel']:.1f}, "
        f"cut at 0.1 bpp {summary['preview_seconds_per_megapixel']:.1f}"
    )
