"""Between pictures and files: encode, decode."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence, Set
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import click

from diffcodec.batch import Outcome, Result, Worker, collect, is_many, run_jobs
from diffcodec.cli.base import (
    DAMAGED,
    PATH,
    Progress,
    T,
    check_device,
    device_option,
    main,
    max_pixels_option,
    size_limit,
)
from diffcodec.errors import DamageError, DataError, DiffcodecError, FormatError
from diffcodec.files import STANDARD, make_folder
from diffcodec.plans import DEFAULT_EFFORT, EFFORTS


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
    if STANDARD in (*sources, output):
        raise click.UsageError("standard input and output (-) are for one file")
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
    if summary.failed or summary.damaged:
        click.get_current_context().exit(1 if summary.failed else DAMAGED)


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


def _show(result: Result, target: Path | None = None) -> None:
    """Print what became of a file: to stderr if the file itself goes to standard output."""
    for note in result.notes:
        click.echo(note, err=True)
    click.echo(result.line, err=target == STANDARD)


def _single_target(source: Path, output: Path | None, suffix: str) -> Path:
    """Where to write what is made of one file."""
    from diffcodec.files import check_folder

    if output is None and source == STANDARD:
        raise click.UsageError("standard input needs -o FILE, or -o - for standard output")
    if output is None:
        return source.with_suffix(suffix)
    check_folder(output)
    return output


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
    effort: int
    seed: int
    strip: bool
    device: str


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
    default=DEFAULT_EFFORT,
    show_default=True,
    help="More effort: smaller files, slower encoding; from 6 on slower decoding, too.",
)
@click.option("--seed", type=click.IntRange(0, (1 << 32) - 1), default=0, show_default=True)
@click.option("--strip", is_flag=True, help="Leave out ICC profile, EXIF and XMP.")
@device_option
@_many_options
def encode(
    sources: tuple[Path, ...],
    output: Path | None,
    model: str | None,
    stop_t: int | None,
    bpp: float | None,
    max_bytes: int | None,
    target_psnr: float | None,
    effort: int,
    seed: int,
    strip: bool,
    device: str,
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
    convert photo.jpg png:- | diffcodec encode - -o - > photo.ddc
    """
    from diffcodec import registry
    from diffcodec.data import IMAGE_SUFFIXES

    size_limit(bpp, max_bytes, 1)  # impossible for every picture?
    check_device(device)
    settings = EncodeSettings(
        model, stop_t, bpp, max_bytes, target_psnr, effort, seed, strip, device
    )
    if is_many(sources):
        if model:
            registry.load_model(model)  # what is wrong with it is wrong with every file
        worker = partial(_encode_file, settings=settings)
        _many("encode", sources, output, IMAGE_SUFFIXES | {".pgm"}, ".ddc", worker, jobs, force)
        return
    target = _single_target(sources[0], output, ".ddc")
    with closing(Progress("encode")) as bar:
        result = _encode_file(sources[0], target, settings, bar)
    _show(result, target)


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
        max_bytes=size_limit(settings.bpp, settings.max_bytes, area),
        target_psnr=settings.target_psnr,
        device=settings.device,
        progress=progress,
    )
    write_bytes(target, content)
    values = area * picture.colours
    result = _result(len(content), area, values, time.perf_counter() - begun)
    return Result(f"{target}: {result}", len(content), area, tuple(notes))


@dataclass(frozen=True)
class DecodeSettings:
    """The options of ``decode``; overwrite: the target may exist; salvage: show what comes before
    damage."""

    model: str | None
    stop_t: int | None
    max_bytes: int | None
    recon: str
    seed: int
    max_pixels: int | None
    device: str
    overwrite: bool
    salvage: bool


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
@click.option("--follow", is_flag=True, help="Decode while SOURCE grows; OUTPUT gets ever better.")
@click.option(
    "--timeout",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    help="Of --follow: seconds without growth after which a file counts as ended.",
)
@max_pixels_option(
    "178956970; 4194304 if less than a byte for 4096 pixels is there and the file is not complete"
)
@device_option
@_many_options
def decode(
    sources: tuple[Path, ...],
    output: Path | None,
    model: str | None,
    stop_t: int | None,
    max_bytes: int | None,
    recon: str,
    seed: int,
    follow: bool,
    timeout: float,
    max_pixels: int | None,
    device: str,
    jobs: int,
    force: bool,
) -> None:
    """Decode SOURCE, whole or cut: exact if it is complete, else the best picture it holds.

    SOURCE may also be a folder (all .ddc files below it), a pattern in quotes, or several of
    these. Pictures that OUTPUT holds already are then skipped, however they were made.

    A damaged file is refused; with --force what comes before the damage is shown, with a warning
    and exit code 3.

    \b
    diffcodec decode photo.ddc
    diffcodec decode photo.ddc -o preview.png --stop-t 200
    diffcodec decode photo.ddc -o guess.png --max-bytes 5000 --recon sample
    diffcodec decode encoded -o pictures --jobs 4
    diffcodec decode - -o - < photo.ddc > photo.png
    curl https://example.org/photo.ddc | diffcodec decode - -o photo.png --follow
    """
    from diffcodec import registry

    if follow and (is_many(sources) or stop_t or max_bytes):
        raise click.UsageError("--follow is for one file, without --stop-t and --max-bytes")
    check_device(device)
    many = is_many(sources)
    settings = DecodeSettings(
        model,
        stop_t,
        max_bytes,
        recon,
        seed,
        max_pixels,
        device,
        overwrite=many or force or output is not None,
        salvage=force,
    )
    if many:
        if model:
            registry.load_model(model)  # what is wrong with it is wrong with every file
        worker = partial(_decode_file, settings=settings)
        _many("decode", sources, output, {".ddc"}, ".png", worker, jobs, force)
        return
    target = _single_target(sources[0], output, ".png")
    if follow:
        _follow(sources[0], target, settings, timeout)
        return
    result = _decode_file(sources[0], target, settings)
    _show(result, target)
    if result.damaged:
        click.get_current_context().exit(DAMAGED)


def _follow(source: Path, target: Path, settings: DecodeSettings, timeout: float) -> None:
    """``decode --follow``."""
    from diffcodec.cli.follow import follow_file

    if target == STANDARD:
        raise click.UsageError("--follow writes its picture many times: name a file with -o")
    if target.exists() and not settings.overwrite:
        raise DataError(f"{target} exists; name the output with -o")
    last = follow_file(
        source,
        target,
        model=settings.model,
        recon=settings.recon,
        seed=settings.seed,
        max_pixels=settings.max_pixels,
        device=settings.device,
        timeout=timeout,
    )
    click.echo(last)


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
            salvage=settings.salvage,
            max_pixels=settings.max_pixels,
            device=settings.device,
        )
    except DamageError as e:
        raise FormatError(f"{source}: {e}; --force shows what is left") from None
    except DiffcodecError as e:
        raise type(e)(f"{source}: {e}") from None
    if target.exists() and not settings.overwrite:
        raise DataError(f"{target} exists; name the output with -o")
    notes = []
    if decoded.damage:
        notes.append(f"warning: {source}: {decoded.damage}; only what comes before it is shown")
    suffix = ".png" if target == STANDARD else target.suffix
    written = image_bytes(decoded.pixels, suffix, decoded.metadata)
    write_bytes(target, written)
    if lost := not_kept(written, decoded.pixels, decoded.metadata):
        notes.append(f"note: not in a {suffix} file: {', '.join(lost)}")
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
    kind = "damaged" if decoded.damage else "lossy"
    quality = "exact" if decoded.exact else f"{kind}, t = {decoded.t}"
    result = _result(len(content), area, area * decoded.colours, time.perf_counter() - begun)
    line, damaged = f"{target}: {quality}, {result}", decoded.damage is not None
    return Result(line, len(content), area, tuple(notes), damaged)
