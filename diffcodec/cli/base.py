"""What all commands share: the group, errors as one line, a progress bar."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import click
from tqdm import tqdm

from diffcodec.allocator import keep_freed_memory
from diffcodec.errors import DiffcodecError

DAMAGED = 3
"""Exit code: a picture was made of what is left of a damaged file."""
_NO_MEMORY = ("allocate memory", "out of memory")
"""In torch's own errors, of memory and of a GPU's."""
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


class Stopped(KeyboardInterrupt):
    """A signal that asks the program to end; like Ctrl-C it unwinds what is half written."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def heed_signals(ctx: click.Context) -> None:
    """Let SIGTERM and SIGHUP end the program like Ctrl-C, and not in the midst of a file."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Stopped(number)

    for number in [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]:
        with suppress(ValueError):  # not in the main thread
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, stop)
                ctx.call_on_close(partial(signal.signal, number, signal.SIG_DFL))


class Commands(click.Group):
    """Turns expected errors into one line and exit code 1, or 2 for wrong usage; a signal into
    one line and 128 + its number."""

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
        except KeyboardInterrupt as e:
            number = e.number if isinstance(e, Stopped) else signal.SIGINT
            click.echo(f"diffcodec: stopped by {signal.Signals(number).name}", err=True)
            ctx.exit(128 + number)
        except (MemoryError, RuntimeError) as e:
            if isinstance(e, RuntimeError) and not any(sign in str(e) for sign in _NO_MEMORY):
                raise
            click.echo("diffcodec: not enough memory for a picture of this size", err=True)
            ctx.exit(1)


def _show_versions(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    """Of ``--version``: print what matters to files and stop."""
    if not wanted or ctx.resilient_parsing:
        return
    from diffcodec.versions import versions

    for name, value in versions().items():
        click.echo(f"{name} {value}")
    ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show_versions,
    help="Show the versions that matter and exit.",
)
@click.pass_context
def main(ctx: click.Context) -> None:
    """Progressive image codec, lossy to lossless, built on a diffusion model.

    \b
    diffcodec encode photo.png -o photo.ddc      every pixel, in one file
    diffcodec truncate photo.ddc -o small.ddc --bpp 1
    diffcodec decode small.ddc -o small.png      a lossy picture
    diffcodec decode photo.ddc -o same.png       the original, exactly
    """
    heed_signals(ctx)
    keep_freed_memory()


def size_limit(bpp: float | None, max_bytes: int | None, area: int) -> int | None:
    """The size limit in bytes; UsageError if both kinds are given."""
    if bpp is not None and max_bytes is not None:
        raise click.UsageError("give --bpp or a number of bytes, not both")
    if bpp is not None and not math.isfinite(bpp):
        raise click.UsageError(f"--bpp must be a number of bits, not {bpp}")
    return int(bpp * area / 8) if bpp is not None else max_bytes


def max_pixels_option(default: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The option that limits the size of pictures; default: what holds without it."""
    text = f"Refuse larger pictures.  [default: {default}]"
    return click.option("--max-pixels", type=click.IntRange(1), help=text)


def device_option(command: Callable[..., None]) -> Callable[..., None]:
    """Where a network is evaluated."""
    option = click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
    return option(command)


def check_device(name: str) -> None:
    """UsageError unless this is the CPU, or CUDA on a machine that has it."""
    if name == "cpu":
        return
    import torch

    if name != "cuda" or not torch.cuda.is_available():
        raise click.UsageError(f"--device {name}: not available on this machine")


def integers(text: str) -> tuple[int, ...]:
    """'a,b,…' as positive integers."""
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.UsageError(f"'{text}' is not a list of integers such as 1,2") from None
    if min(values) < 1:
        raise click.UsageError(f"'{text}': all must be positive")
    return values
