"""The command line: arguments and printing, nothing else.

Exit codes: 0 done, 1 something is wrong with the data (one line says what), 2 usage.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from diffcodec import __version__
from diffcodec.allocator import keep_freed_memory
from diffcodec.batch import Outcome, Result, Worker, collect, is_many, run_jobs
from diffcodec.errors import DataError, DiffcodecError, FormatError
from diffcodec.files import make_folder
from diffcodec.plans import EFFORTS, PLANS, default_effort

PATH = click.Path(path_type=Path)
T = click.IntRange(1, 1000)


class Progress:
    """A progress bar on stderr that appears only when the work takes over a second."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar: tqdm[Any] | None = None

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = tqdm(total=total, desc=self._label, delay=1.0, leave=False)
        self._bar.update(done - self._bar.n)
        if done >= total:
            self.close()

    def clear(self) -> None:
        """Wipe the bar, if it shows, so that a line can be printed in its place."""
        if self._bar is not None and self._bar.last_print_n:
            self._bar.clear()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class Commands(click.Group):
    """Turns expected errors into one line and exit code 1, or 2 for wrong usage."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DiffcodecError as e:
            click.echo(f"diffcodec: {' '.join(str(e).split())}", err=True)
            ctx.exit(1)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as e:
            name = f"{e.ctx.info_name} " if e.ctx and e.ctx.parent else ""
            message = " ".join(e.format_message().split())
            click.echo(f"diffcodec: {message} (see diffcodec {name}--help)", err=True)
            ctx.exit(2)
        except MemoryError:
            click.echo("diffcodec: not enough memory for a picture of this size", err=True)
            ctx.exit(1)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Progressive image codec, lossy to lossless, built on a diffusion model.

    \b
    diffcodec encode photo.png -o photo.ddc      every pixel, in one file
    diffcodec truncate photo.ddc -o small.ddc --bpp 1
    diffcodec decode small.ddc -o small.png      a lossy picture
    diffcodec decode photo.ddc -o same.png       the original, exactly
    """
    keep_freed_memory()


def _limit(bpp: float | None, max_bytes: int | None, area: int) -> int | None:
    """The size limit in bytes; UsageError if both kinds are given."""
    if bpp is not None and max_bytes is not None:
        raise click.UsageError("give --bpp or a number of bytes, not both")
    if bpp is not None and not math.isfinite(bpp):
        raise click.UsageError(f"--bpp must be a number of bits, not {bpp}")
    return int(bpp * area / 8) if bpp is not None else max_bytes


def _result(size: int, area: int, values: int, seconds: float) -> str:
    return f"{size} bytes, {8 * size / area:.3f} bpp, {8 * size / values:.3f} bpd, {seconds:.2f} s"


def _many(
    name: str,
    sources: Sequence[Path],
    output: Path | None,
    suffixes: Set[str],
    suffix: str,
    worker: Worker,
    jobs: int,
    force: bool,
) -> None:
    """Run ``worker`` over many files: a line for each, then a summary; exit code 1 on failure."""
    if output is None:
        raise click.UsageError("a folder, a pattern or several sources need -o FOLDER")
    found = collect(sources, suffixes, output, suffix)
    make_folder(output)
    bar, ended = Progress(name), 0
    bar(0, len(found))

    def report(outcome: Outcome) -> None:
        nonlocal ended
        ended += 1
        bar.clear()
        _report(outcome)
        bar(ended, len(found))

    try:
        summary = run_jobs(found, worker, jobs, report, force=force)
    finally:
        bar.close()
    click.echo(
        f"{summary.done} done, {summary.skipped} skipped, {summary.failed} failed: "
        f"{summary.size} bytes, {8 * summary.size / max(summary.pixels, 1):.3f} bpp, "
        f"{summary.seconds:.2f} s"
    )
    if summary.failed:
        click.get_current_context().exit(1)


def _report(outcome: Outcome) -> None:
    """Print how one of many files went."""
    job, result = outcome.job, outcome.result
    if outcome.error:
        click.echo(f"diffcodec: {outcome.error}", err=True)
    elif result is None:
        click.echo(f"{job.target}: done already")
    else:
        _show(replace(result, notes=tuple(_naming(job.source, note) for note in result.notes)))


def _naming(source: Path, note: str) -> str:
    """A note about one file, with the file's name if it lacks it."""
    kind, _, text = note.partition(": ")
    return note if str(source) in text else f"{kind}: {source}: {text}"


def _show(result: Result) -> None:
    """Print what became of a file."""
    for note in result.notes:
        click.echo(note, err=True)
    click.echo(result.line)


def _many_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of commands that take many files."""
    jobs = click.option(
        *("--jobs", "-j"),
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="So many files at a time.",
    )
    force = click.option("--force", is_flag=True, help="Replace files that exist.")
    return jobs(force(command))


@dataclass(frozen=True)
class EncodeSettings:
    """The options of ``encode`` that shape a file."""

    model: str | None
    stop_t: int | None
    bpp: float | None
    max_bytes: int | None
    target_psnr: float | None
    effort: int | None
    seed: int
    strip: bool


@main.command()
@click.argument("sources", metavar="SOURCE...", type=PATH, nargs=-1, required=True)
@click.option(
    "-o", "--output", type=PATH, help="Default: SOURCE with the suffix .ddc. Of many: a folder."
)
@click.option("--model", help="Name of a shipped model, or a model folder.")
@click.option("--stop-t", type=T, help="No layer finer than timestep T.")
@click.option("--bpp", type=click.FloatRange(0, min_open=True), help="Limit in bits per pixel.")
@click.option("--max-bytes", type=click.IntRange(1), help="Limit in bytes.")
@click.option("--target-psnr", type=click.FloatRange(0, 99), help="Just good enough for this, dB.")
@click.option(
    "--effort",
    type=click.IntRange(min(EFFORTS), max(EFFORTS)),
    help="More effort: smaller files, slower encoding, decoding as fast.  "
    "[default: 5 up to 64×64 pixels, else 3]",
)
@click.option("--seed", type=click.IntRange(0, (1 << 32) - 1), default=0, show_default=True)
@click.option("--strip", is_flag=True, help="Leave out ICC profile, EXIF and XMP.")
@_many_options
def encode(
    sources: tuple[Path, ...],
    output: Path | None,
    model: str | None,
    stop_t: int | None,
    bpp: float | None,
    max_bytes: int | None,
    target_psnr: float | None,
    effort: int | None,
    seed: int,
    strip: bool,
    jobs: int,
    force: bool,
) -> None:
    """Encode the picture SOURCE; lossless unless limited.

    SOURCE may also be a folder (all pictures below it), a pattern in quotes, or several of these.
    Files that OUTPUT holds already are then skipped, however they were made.

    \b
    diffcodec encode photo.png
    diffcodec encode photo.png -o small.ddc --bpp 0.5
    diffcodec encode photo.png -o half.ddc --stop-t 20
    diffcodec encode photos -o encoded --jobs 4
    diffcodec encode 'photos/**/*.png' -o encoded
    """
    from diffcodec import registry
    from diffcodec.data import IMAGE_SUFFIXES

    _limit(bpp, max_bytes, 1)  # impossible for every picture?
    settings = EncodeSettings(model, stop_t, bpp, max_bytes, target_psnr, effort, seed, strip)
    if is_many(sources):
        if model:
            registry.load_model(model)  # what is wrong with it is wrong with every file
        worker = partial(_encode_file, settings=settings)
        _many("encode", sources, output, IMAGE_SUFFIXES | {".pgm"}, ".ddc", worker, jobs, force)
        return
    target = output or sources[0].with_suffix(".ddc")
    _show(_encode_file(sources[0], target, settings, Progress("encode")))


def _encode_file(
    source: Path,
    target: Path,
    settings: EncodeSettings,
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Encode one picture file; DiffcodecError when that is impossible."""
    from diffcodec import api, registry
    from diffcodec.files import write_bytes
    from diffcodec.image import read_image

    picture = read_image(source)
    if settings.strip:
        picture = picture.without_metadata()
    area = picture.width * picture.height
    loaded = registry.load_model(settings.model) if settings.model else None
    notes = []
    if picture.source in {"JPEG", "MPO"}:
        notes.append(
            "note: the pixels of a JPEG file are coded: a lossless file can be larger than it, "
            "and gives back the pixels, not the JPEG file"
        )
    begun = time.perf_counter()
    content = api.encode(
        picture,
        model=loaded,
        effort=settings.effort,
        seed=settings.seed,
        stop_t=settings.stop_t or 0,
        max_bytes=_limit(settings.bpp, settings.max_bytes, area),
        target_psnr=settings.target_psnr,
        progress=progress,
    )
    write_bytes(target, content)
    values = area * picture.colours
    result = _result(len(content), area, values, time.perf_counter() - begun)
    return Result(f"{target}: {result}", len(content), area, tuple(notes))


@dataclass(frozen=True)
class DecodeSettings:
    """The options of ``decode``; overwrite: the target may exist."""

    model: str | None
    stop_t: int | None
    max_bytes: int | None
    recon: str
    seed: int
    overwrite: bool


@main.command()
@click.argument("sources", metavar="SOURCE...", type=PATH, nargs=-1, required=True)
@click.option(
    "-o", "--output", type=PATH, help="Default: SOURCE with the suffix .png. Of many: a folder."
)
@click.option("--model", help="Model folder, for files of a model that is not shipped.")
@click.option("--stop-t", type=T, help="Stop at the smallest coded timestep >= T.")
@click.option("--max-bytes", type=click.IntRange(1), help="Use only the file's first bytes.")
@click.option(
    "--recon",
    type=click.Choice(["mean", "x0", "sample", "flow"]),
    default="mean",
    show_default=True,
    help="What to show of a lossy picture: the least error (mean; x0: a little more, but faster), "
    "a realistic guess (sample), or the likeliest way on (flow).",
)
@click.option("--seed", type=click.IntRange(0, (1 << 32) - 1), default=0, help="Of --recon sample.")
@_many_options
def decode(
    sources: tuple[Path, ...],
    output: Path | None,
    model: str | None,
    stop_t: int | None,
    max_bytes: int | None,
    recon: str,
    seed: int,
    jobs: int,
    force: bool,
) -> None:
    """Decode SOURCE, whole or cut: exact if it is complete, else the best picture it holds.

    SOURCE may also be a folder (all .ddc files below it), a pattern in quotes, or several of
    these. Pictures that OUTPUT holds already are then skipped, however they were made.

    \b
    diffcodec decode photo.ddc
    diffcodec decode photo.ddc -o preview.png --stop-t 200
    diffcodec decode photo.ddc -o guess.png --max-bytes 5000 --recon sample
    diffcodec decode encoded -o pictures --jobs 4
    """
    from diffcodec import registry

    if is_many(sources):
        settings = DecodeSettings(model, stop_t, max_bytes, recon, seed, overwrite=True)
        if model:
            registry.load_model(model)  # what is wrong with it is wrong with every file
        worker = partial(_decode_file, settings=settings)
        _many("decode", sources, output, {".ddc"}, ".png", worker, jobs, force)
        return
    target = output or sources[0].with_suffix(".png")
    overwrite = force or output is not None
    settings = DecodeSettings(model, stop_t, max_bytes, recon, seed, overwrite)
    _show(_decode_file(sources[0], target, settings))


def _decode_file(source: Path, target: Path, settings: DecodeSettings) -> Result:
    """Decode one file; DiffcodecError when that is impossible."""
    from diffcodec import api, registry
    from diffcodec.files import read_bytes, write_bytes
    from diffcodec.image import image_bytes, not_kept

    content = read_bytes(source)[: settings.max_bytes]
    loaded = registry.load_model(settings.model) if settings.model else None
    begun = time.perf_counter()
    try:
        decoded = api.decode(
            content,
            stop_t=settings.stop_t or 0,
            model=loaded,
            recon=settings.recon,
            seed=settings.seed,
        )
    except DiffcodecError as e:
        raise type(e)(f"{source}: {e}") from None
    if target.exists() and not settings.overwrite:
        raise DataError(f"{target} exists; name the output with -o")
    notes = []
    written = image_bytes(decoded.pixels, target.suffix, decoded.metadata)
    write_bytes(target, written)
    if lost := not_kept(written, decoded.pixels, decoded.metadata):
        notes.append(f"note: not in a {target.suffix} file: {', '.join(lost)}")
    if decoded.exact and decoded.metadata_cut:
        notes.append(f"note: {source} ends inside its metadata; the pixels are exact")
    if target.suffix.lower() in {".jpg", ".jpeg", ".gif"}:
        notes.append(f"note: a {target.suffix} file does not keep every pixel")
    if decoded.float_arithmetic:
        notes.append(
            f"warning: {source} was written in floating point; another machine than the writer's "
            "may decode something else"
        )
    area = decoded.pixels.shape[0] * decoded.pixels.shape[1]
    quality = "exact" if decoded.exact else f"lossy, t = {decoded.t}"
    result = _result(len(content), area, area * decoded.colours, time.perf_counter() - begun)
    return Result(f"{target}: {quality}, {result}", len(content), area, tuple(notes))


@main.command()
@click.argument("source", type=PATH)
@click.option("-o", "--output", type=PATH, required=True)
@click.option("--bytes", "max_bytes", type=click.IntRange(1), help="Keep this many bytes.")
@click.option("--bpp", type=click.FloatRange(0, min_open=True), help="Keep this many bits/pixel.")
@click.option("--stop-t", type=T, help="Keep layers down to the smallest timestep >= T.")
@click.option("--model", help="Folder of the model the file was written with.")
def truncate(
    source: Path,
    output: Path,
    max_bytes: int | None,
    bpp: float | None,
    stop_t: int | None,
    model: str | None,
) -> None:
    """Cut a file: the first bytes of a .ddc file are a smaller, coarser .ddc file.

    \b
    diffcodec truncate photo.ddc -o small.ddc --bpp 0.5
    """
    from diffcodec import api, registry
    from diffcodec.container import read_header
    from diffcodec.files import read_bytes, write_bytes

    if sum(option is not None for option in (max_bytes, bpp, stop_t)) != 1:
        raise click.UsageError("give exactly one of --bytes, --bpp and --stop-t")
    content = read_bytes(source)
    loaded = registry.load_model(model) if model else None
    try:
        header, _ = read_header(content)
        area = header.width * header.height
        limit = _limit(bpp, max_bytes, area)
        kept = api.truncate(content, max_bytes=limit, stop_t=stop_t or 0, model=loaded)
    except DiffcodecError as e:
        raise type(e)(f"{source}: {e}") from None
    write_bytes(output, kept)
    click.echo(f"{output}: {len(kept)} of {len(content)} bytes, {8 * len(kept) / area:.3f} bpp")


@main.command()
@click.argument("source", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
@click.option("--model", help="Folder of the model the file was written with.")
def info(source: Path, as_json: bool, model: str | None) -> None:
    """Show header and layers of a .ddc file: timestep, noise in levels, bits, cumulative bpp."""
    from diffcodec import api, registry
    from diffcodec.files import read_bytes

    content = read_bytes(source)
    loaded = registry.load_model(model) if model else None
    try:
        facts = api.describe(content, loaded)
    except DiffcodecError as e:
        raise type(e)(f"{source}: {e}") from None
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        _show_info(facts)
    if facts["damage"]:
        raise FormatError(f"{source}: {facts['damage']}")


def _show_info(facts: dict[str, Any]) -> None:
    for key, value in facts.items():
        if key != "layers" and value is not None:
            click.echo(f"{key.replace('_', ' ')}: {value}")
    click.echo("    t  noise (levels)       bits  up to here (bpp)")
    for row in facts["layers"]:
        noise = "?" if row["noise_levels"] is None else f"{row['noise_levels']:.2f}"
        mark = "" if row["whole"] else "  (cut)"
        click.echo(f"{row['t']:5d}  {noise:>14}  {row['bits']:9d}  {row['bpp']:16.4f}{mark}")


@main.command()
@click.option("-n", "count", type=click.IntRange(1, 1024), default=16, show_default=True)
@click.option("--steps", type=click.IntRange(1, 1000), help="Default: all T.")
@click.option("--size", type=click.IntRange(8, 512), default=32, show_default=True)
@click.option("--seed", type=click.IntRange(0, (1 << 32) - 1), default=0, show_default=True)
@click.option("--model", help="Name of a shipped model, or a model folder.")
@click.option("-o", "--output", type=PATH, required=True)
def sample(
    count: int, steps: int | None, size: int, seed: int, model: str | None, output: Path
) -> None:
    """Draw pictures from the model by Algorithm 2 and write them as a grid.

    \b
    diffcodec sample -n 16 --steps 100 -o grid.png
    """
    from diffcodec import registry, samplers
    from diffcodec.files import write_bytes
    from diffcodec.image import image_bytes

    if size % 8:
        raise click.UsageError("--size must be a multiple of 8")
    loaded = registry.load_model(model or registry.SMALL)
    if steps is not None and steps > loaded.schedule.timesteps:
        raise click.UsageError(f"--steps: the model has {loaded.schedule.timesteps} timesteps")
    begun = time.perf_counter()
    pictures = samplers.ancestral(
        loaded,
        count,
        size,
        seed=seed,
        steps=steps,
        progress=Progress("sample"),
    )
    write_bytes(output, image_bytes(samplers.grid(pictures), output.suffix))
    click.echo(f"{output}: {count} pictures, {time.perf_counter() - begun:.1f} s")


@main.command()
@click.option("--data", type=PATH, required=True, multiple=True, help="Folder, archive or image.")
@click.option("--limit", type=click.IntRange(1), help="Only the first so many pictures.")
@click.option("--model", help="Name of a shipped model, or a model folder.")
@click.option(
    "--effort",
    type=click.IntRange(min(EFFORTS), max(EFFORTS)),
    help="[default: as encode]",
)
@click.option(
    "--rates",
    default="0.5,0.75,1.25,2.0,4.0",
    show_default=True,
    help="bpp at which each file is cut and decoded.",
)
@click.option("--ideal/--no-ideal", default=True, help="Also the model's ideal chain.")
@click.option("--log", is_flag=True, help="A line on stderr for every picture.")
@click.option("--json", "json_path", type=PATH, help="Write all figures, picture by picture.")
def evaluate(
    data: tuple[Path, ...],
    limit: int | None,
    model: str | None,
    effort: int | None,
    rates: str,
    ideal: bool,
    log: bool,
    json_path: Path | None,
) -> None:
    """Encode, decode and measure pictures: real bytes beside the model's ideal bits.

    \b
    diffcodec evaluate --data test_first5000.webp --limit 200 --json result.json
    """
    from diffcodec import registry
    from diffcodec.data import load_images
    from diffcodec.evaluate import evaluate_picture, finite, summarise, to_dict
    from diffcodec.files import write_bytes

    try:
        cuts = tuple(float(rate) for rate in rates.split(",") if rate)
    except ValueError:
        raise click.BadParameter(
            "must be numbers separated by commas", param_hint="--rates"
        ) from None
    if not all(math.isfinite(rate) and rate > 0 for rate in cuts):
        raise click.UsageError("--rates must be positive numbers")
    pictures = load_images(list(data))[:limit]
    area = pictures[0].shape[0] * pictures[0].shape[1]
    loaded = registry.load_model(model) if model else registry.default_model(area)
    effort = effort or default_effort(area)
    # Compilation of the search and of the tables is no part of any picture's time.
    evaluate_picture("warm-up", pictures[0][:32, :32], loaded, effort=effort)
    reports = []
    for number, pixels in enumerate(tqdm(pictures, desc="evaluate", leave=False)):
        report = evaluate_picture(
            str(number), pixels, loaded, effort=effort, rates=cuts, ideal=ideal
        )
        reports.append(report)
        if log:
            click.echo(
                f"{number}: {report.bytes} bytes, {report.bpd:.4f} bpd, "
                f"encode {report.encode_seconds:.2f} s, decode {report.decode_seconds:.2f} s",
                err=True,
            )
    summary = summarise(reports)
    _print_summary(summary)
    if json_path:
        document = {
            "model": loaded.name,
            "fingerprint": loaded.fingerprint.hex(),
            "effort": effort,
            "mean": summary,
            "pictures": [to_dict(r) for r in reports],
        }
        write_bytes(json_path, (json.dumps(finite(document), indent=1) + "\n").encode())
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


@main.command()
@click.option("--data", type=PATH, required=True, multiple=True, help="Folder, archive or image.")
@click.option("--out", type=PATH, required=True, help="Run folder: checkpoint, model, log.")
@click.option("--resume", is_flag=True, help="Continue exactly where the run in --out stopped.")
@click.option("--steps", type=click.IntRange(1), help="Optimiser steps  [default: 20000].")
@click.option("--batch", type=click.IntRange(1), help="Pictures per step  [default: 64].")
@click.option("--crop", type=click.IntRange(8), help="Side of training crops  [default: 32].")
@click.option("--reductions", help="Learn pictures also reduced by, e.g., 1,2  [default: 1].")
@click.option("--init", help="Begin with the weights of this model (a name or a folder).")
@click.option("--lr-scale", type=click.FloatRange(0, 10, min_open=True), help="Scale of all rates.")
@click.option(
    "--decay",
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of the steps during which the rates fall to zero  [default: 0.6].",
)
@click.option(
    "--emphasis",
    type=click.FloatRange(0, 3),
    help="Extra weight of the noisiest steps: better pictures of cut files  [default: 0].",
)
@click.option("--seed", type=click.IntRange(0, 1 << 31), help="Keys all randomness of the run.")
@click.option("--channels", help="Features at 1/2, 1/4, 1/8 size  [default: 96,144,192].")
@click.option("--blocks", help="Residual blocks at these sizes  [default: 2,2,3].")
@click.option("--holdout", type=click.IntRange(0), help="Pictures kept out  [default: 512].")
@click.option("--name", default="model", show_default=True, help="The model's name.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--checkpoint-minutes", default=5.0, show_default=True)
@click.option("--dry-run", is_flag=True, help="Print the settings and stop.")
def train(
    data: tuple[Path, ...],
    out: Path,
    resume: bool,
    name: str,
    device: str,
    checkpoint_minutes: float,
    dry_run: bool,
    channels: str | None,
    blocks: str | None,
    reductions: str | None,
    init: str | None,
    **settings: Any,
) -> None:
    """Train a model (Algorithm 1, code length as the objective); see also models/*/card.md.

    \b
    diffcodec train --data ~/cifar-10-python.tar.gz --out runs/cifar10 --name cifar10
    diffcodec train --data pictures/ --out runs/mine --steps 50000
    diffcodec train --data pictures/ --out runs/mine --resume
    diffcodec train --data pictures/ --out runs/mine --resume --steps 90000   # make it longer
    diffcodec train --data pictures/ --out runs/mine --init photo --lr-scale 0.5
    """
    import torch

    from diffcodec import registry
    from diffcodec.network import NetworkConfig
    from diffcodec.train import TrainConfig
    from diffcodec.train import train as run

    given = {k: v for k, v in settings.items() if v is not None}
    lengthen = given.pop("steps", None) if resume else None
    network = NetworkConfig()
    network = NetworkConfig(
        channels=_triple(channels) or network.channels, blocks=_triple(blocks) or network.blocks
    )
    if reductions:
        given["reductions"] = _integers(reductions)
    if init and (channels or blocks):
        raise click.UsageError("--init gives the network's shape; leave out --channels, --blocks")
    begin = registry.load_model(init) if init else None
    if begin:
        network = begin.config.network
    config = replace(TrainConfig(network=network), **given)
    if config.crop % 8:
        raise click.UsageError("--crop must be a multiple of 8")
    if device != "cpu" and not (device == "cuda" and torch.cuda.is_available()):
        raise click.UsageError(f"--device {device}: not available on this machine")
    if resume and (given or channels or blocks or init):
        raise click.UsageError("--resume takes its settings from the run; give none but --steps")
    if not resume:
        click.echo(json.dumps(config.to_dict()))
    if dry_run:
        return
    report: Callable[[str], None] = click.echo
    run(
        list(data),
        out,
        config,
        init=begin,
        device=device,
        resume=resume,
        lengthen=lengthen,
        name=name,
        checkpoint_minutes=checkpoint_minutes,
        report=report,
    )


@main.command()
@click.argument("model", type=PATH)
@click.option("--data", type=PATH, required=True, multiple=True, help="Never a test set.")
@click.option("--plan", type=click.IntRange(0, max(PLANS)), help="Default: the model's.")
@click.option("--images", type=click.IntRange(1), default=128, show_default=True)
@click.option("--crop", type=click.IntRange(8), default=32, show_default=True)
@click.option("--int8", is_flag=True, help="Weights of 8 bits: for large pictures, see below.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def quantize(
    model: Path,
    data: tuple[Path, ...],
    plan: int | None,
    images: int,
    crop: int,
    int8: bool,
    seed: int,
) -> None:
    """Give the model folder MODEL its integer network, so that files decode everywhere.

    \b
    diffcodec quantize runs/cifar10 --data train_0.webp
    diffcodec quantize runs/photo --data photos/ --plan 3 --crop 64 --int8

    The integers are made for the timesteps of one plan (docs/format.md), which is then the
    model's: 2 is for small pictures, 3 for photographs. The activations' ranges are calibrated
    on crops of the pictures.  With --int8 the network runs at twice the speed on large pictures
    and its steps cost 0.2 % more bits.  Files written with the model before cannot be read with
    it after.
    """
    from diffcodec.calibrate import exact_tensors
    from diffcodec.data import CropSampler, load_images
    from diffcodec.int8 import WEIGHT_MAX
    from diffcodec.model import Model, read_model, save_exact

    if crop % 8:
        raise click.UsageError("--crop must be a multiple of 8")
    trained = read_model(model)
    batch = CropSampler(load_images(list(data)), crop, images, seed)(0)
    if plan is not None:
        trained = Model(replace(trained.config, plan=plan), trained.network.state_dict())
    limit = {"weight_max": WEIGHT_MAX} if int8 else {}
    save_exact(model, trained.config, exact_tensors(trained, batch, seed, **limit))
    click.echo(f"{model}: fingerprint {read_model(model).fingerprint.hex()}")


def _triple(text: str | None) -> tuple[int, int, int] | None:
    """'a,b,c' as three positive integers."""
    if text is None:
        return None
    values = _integers(text)
    if len(values) != 3:
        raise click.UsageError(f"'{text}' is not three integers such as 96,144,192")
    return values[0], values[1], values[2]


def _integers(text: str) -> tuple[int, ...]:
    """'a,b,…' as positive integers."""
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.UsageError(f"'{text}' is not a list of integers such as 1,2") from None
    if min(values) < 1:
        raise click.UsageError(f"'{text}': all must be positive")
    return values


if __name__ == "__main__":
    main()
