"""What all commands share: the group, errors as one line, a progress bar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from diffcodec.allocator import keep_freed_memory
from diffcodec.errors import DiffcodecError

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
def main() -> None:
    """Progressive image codec, lossy to lossless, built on a diffusion model.

    \b
    diffcodec encode photo.png -o photo.ddc      every pixel, in one file
    diffcodec truncate photo.ddc -o small.ddc --bpp 1
    diffcodec decode small.ddc -o small.png      a lossy picture
    diffcodec decode photo.ddc -o same.png       the original, exactly
    """
    keep_freed_memory()
