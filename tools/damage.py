"""Damage and cut files in every way and count what becomes of them.

    python tools/damage.py corrupt --count 100000 --seed 1
    python tools/damage.py prefixes
    python tools/damage.py quality --data tests/data/kitten-64.png --points 60

``corrupt`` changes bytes of small files of the model of tests/golden: first one byte after
another (of the largest file every 17th), then one to eight anywhere, mostly in the smallest.
Interrupted (SIGINT), it reports what it has so far.
An altered file may be refused, may show a lossy picture, or may be exact if picture and metadata
are those of the unaltered file; the exit code is 1 if anything else is called exact.
``prefixes`` decodes every prefix of small files, ``quality`` the prefixes of one picture's file
on a grid, with the PSNR of each.
"""

from __future__ import annotations

import re
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import click
import numpy as np
import torch
from mutations import GOLDEN, coded_pictures, corrupted

import diffcodec
from diffcodec import container, extras
from diffcodec.api import Decoded
from diffcodec.correction import Correction
from diffcodec.errors import DamageError, DiffcodecError, FormatError
from diffcodec.exact import Integers
from diffcodec.image import read_image
from diffcodec.model import TILE, Model, read_model
from diffcodec.quality import psnr

CHECKED = 20
"""Of so many refused files one is decoded again, down to where the message says it can be."""
STATES = 1000
SMALL = 400
"""Bytes of files that take a millisecond or two and are damaged most."""


class Remembering(Model):
    """A model that evaluates each state once: files that differ late share most of the work."""

    def __init__(self, model: Model) -> None:
        self.__dict__.update(model.__dict__)
        self._seen: dict[tuple[int, bytes], Integers] = {}

    def evaluate(
        self,
        x: torch.Tensor,
        t: int,
        tile: int = TILE,
        correction: Correction | None = None,
        final: bool = False,
        mirrored: bool = False,
    ) -> Integers:
        if correction is not None:
            return super().evaluate(x, t, tile, correction, final, mirrored)
        key = t, bytes([final, mirrored]) + x.numpy().tobytes() + bytes(x.shape[1:])
        if key not in self._seen:
            if len(self._seen) >= STATES:
                self._seen.clear()
            self._seen[key] = super().evaluate(x, t, tile, final=final, mirrored=mirrored)
        return self._seen[key]


def _files(model: Model) -> dict[str, bytes]:
    """Small files of every kind: those of few steps, and the golden ones of few bytes."""
    paths = sorted(GOLDEN.rglob("*.ddc"))
    golden = {f"{path.parent.name}/{path.stem}": path.read_bytes() for path in paths}
    small = {name: content for name, content in golden.items() if len(content) < 1100}
    return coded_pictures(model) | small


def _same(one: Decoded, other: Decoded) -> bool:
    return (
        one.pixels.shape == other.pixels.shape
        and np.array_equal(one.pixels, other.pixels)
        and one.metadata == other.metadata
    )


def _outcome(content: bytes, whole: Decoded, model: Model) -> tuple[str, DiffcodecError | None]:
    try:
        shown = diffcodec.decode(content, model=model, max_pixels=1 << 13)
    except DiffcodecError as e:
        return "refused", e
    if not shown.exact:
        return "lossy", None
    if _same(shown, whole):
        return "exact and identical", None
    if shown.metadata_cut and np.array_equal(shown.pixels, whole.pixels):
        return "pixels exact and identical, metadata reported as missing", None
    return "EXACT BUT DIFFERENT", None


def _what_is_left(content: bytes, original: bytes, error: DiffcodecError, model: Model) -> str:
    """Whether a refused file gives what its message promises."""
    found = re.search(r"--stop-t (\d+)", str(error))
    if not isinstance(error, DamageError) or not found:
        return "nothing is promised"
    t = int(found[1])
    try:
        shown = diffcodec.decode(content, model=model, stop_t=t)
        left = diffcodec.decode(content, model=model, salvage=True)
    except DiffcodecError as e:
        return f"BROKEN PROMISE: {e}"
    if left.exact or shown.exact:
        return "CALLED EXACT"
    same = np.array_equal(shown.pixels, diffcodec.decode(original, model=model, stop_t=t).pixels)
    return "layers before the damage decode" + ("" if same else ", to another picture")


@click.group()
def main() -> None:
    """Damage and cut files, and count what becomes of them."""
    torch.set_num_threads(1)


@main.command()
@click.option("--count", default=100_000, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--per-byte", default=16, show_default=True, help="Changes of a small file's bytes.")
def corrupt(count: int, seed: int, per_byte: int) -> None:
    """Change bytes of small files and count outcomes."""
    rng, model = Random(seed), Remembering(read_model(GOLDEN / "model"))
    files = _files(model)
    outcomes: Counter[tuple[str, str]] = Counter()
    left: Counter[str] = Counter()
    begun, done, refused = time.perf_counter(), 0, 0

    def one(content: bytes, name: str, kind: str) -> None:
        nonlocal done, refused
        done += 1
        if content == files[name]:
            return
        outcome, error = _outcome(content, wholes[name], model)
        outcomes[kind, outcome] += 1
        if outcome.isupper():
            click.echo(f"{name}: {outcome}: {content.hex()}", err=True)
        if error is not None:
            refused += 1
            if refused % CHECKED == 0:
                left[_what_is_left(content, files[name], error, model)] += 1

    wholes = {name: diffcodec.decode(content, model=model) for name, content in files.items()}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also in the background
    with suppress(KeyboardInterrupt):
        for name, content in files.items():
            changes = per_byte if len(content) < SMALL else 1
            for place in range(0, len(content), 1 + len(content) // 1024):
                for change in rng.sample(range(1, 256), changes):
                    byte = bytes([content[place] ^ change])
                    one(content[:place] + byte + content[place + 1 :], name, "one byte, in turn")
        names = [
            n for n, content in files.items() for _ in range(50 if len(content) < SMALL else 1)
        ]
        while done < count:
            name = rng.choice(names)
            one(corrupted(files[name], rng), name, "1 to 8 bytes, anywhere")
    for (kind, outcome), number in sorted(outcomes.items()):
        click.echo(f"{number:8d}  {kind}: {outcome}")
    for outcome, number in left.most_common():
        click.echo(f"{number:8d}  of refused files looked at again: {outcome}")
    seconds = time.perf_counter() - begun
    click.echo(f"{sum(outcomes.values())} altered files of {len(files)}, {seconds:.0f} s")
    wrong = [o for _, o in outcomes if o.isupper()] + [o for o in left if o[:2].isupper()]
    sys.exit(bool(wrong))


@main.command()
def prefixes() -> None:
    """Decode every prefix of small files, of the largest every 17th."""
    model = Remembering(read_model(GOLDEN / "model"))
    files = _files(model)
    outcomes: Counter[str] = Counter()
    begun = time.perf_counter()
    for name, content in files.items():
        header, start = container.read_header(content)
        _, start = extras.front_chunks(header, content, start)
        whole = diffcodec.decode(content, model=model)
        reached = header.plan.timesteps[0]
        for size in range(0, len(content), 1 + len(content) // 1024):
            outcome = _prefix(content[:size], size < start, whole, reached, model)
            if isinstance(outcome, int):
                reached, outcome = outcome, "lossy"
            outcomes[outcome] += 1
            if outcome.isupper():
                click.echo(f"{name}: {size} bytes: {outcome}", err=True)
    for outcome, number in outcomes.most_common():
        click.echo(f"{number:8d}  {outcome}")
    total, seconds = sum(outcomes.values()), time.perf_counter() - begun
    click.echo(f"{total} prefixes of {len(files)} files, {seconds:.0f} s")
    sys.exit(any(o.isupper() for o in outcomes))


def _prefix(
    content: bytes, refusable: bool, whole: Decoded, reached: int, model: Model
) -> str | int:
    """What becomes of a prefix, or the timestep of the lossy picture it shows."""
    try:
        shown = diffcodec.decode(content, model=model)
    except FormatError:
        return "refused inside header or front block" if refusable else "REFUSED"
    if refusable or shown.t > reached:
        return "MORE BYTES, FEWER STEPS"
    if not shown.exact:
        return shown.t
    if shown.metadata_cut and np.array_equal(shown.pixels, whole.pixels):
        return "pixels exact, metadata reported as missing"
    return "EXACT BUT CUT"


@main.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--points", default=60, show_default=True)
@click.option("--effort", default=2, show_default=True)
def quality(data: Path, points: int, effort: int) -> None:
    """PSNR along the prefixes of a picture's file, and the largest fall."""
    picture = read_image(data).without_metadata()
    content = diffcodec.encode(picture, effort=effort)
    whole: Any = diffcodec.decode(content).colour_values
    _, start = container.read_header(content)
    sizes = np.unique(np.geomspace(start, len(content) - 1, points).astype(int))
    best = worst = -np.inf
    for size in sizes:
        shown = diffcodec.decode(content[:size], max_pixels=container.MAX_PIXELS)
        value = psnr(shown.colour_values, whole)
        worst, best = max(worst, best - value), max(best, value)
        click.echo(f"{size:8d} bytes  t = {shown.t:3d}  {value:6.2f} dB")
    exact = diffcodec.decode(content).exact
    click.echo(
        f"{data}: {len(sizes)} prefixes of {len(content)} bytes, largest fall "
        f"{max(worst, 0.0):.3f} dB; the whole file is {'exact' if exact else 'NOT EXACT'}"
    )


if __name__ == "__main__":
    main()
