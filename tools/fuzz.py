"""Feed broken files to the container reader or to the whole decoder and count what happens.

    python tools/fuzz.py --target reader --count 1000000 --seed 1
    python tools/fuzz.py --target decoder --count 20000 --seed 1
    python tools/fuzz.py --target reader --count 1000000 --coverage    # needs atheris

A file may be decoded or refused in one line (a DiffcodecError).  Findings are any other
exception, more than 10 seconds, more memory than the file's contents and the size that it
declares can need, and any file, process or connection opened for writing.  They are written to
--out, and the exit code is then 1.  Interrupted (SIGINT), it reports what it has so far.

The targets: ``reader`` is everything before a model is touched, ``decoder`` is diffcodec.decode
with the model of tests/golden, on pictures of up to 8192 pixels.  Without --coverage mutations
are drawn from a seeded generator; with it libFuzzer steers them by the branches they reach.
"""

from __future__ import annotations

import hashlib
import re
import resource
import signal
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import click

SECONDS = 10.0
DECODER_PIXELS = 1 << 13
SAMPLED = 8
"""Memory is traced for one input of so many: it makes them three times as slow."""
MEMORY_LIMIT = 3 << 30
"""Of address space beyond what the process has when it begins."""
COMPILED = ["diffcodec.alpha", "diffcodec.convolution", "diffcodec.pointwise", "diffcodec.trellis"]
"""What --coverage does not watch: numba would not compile these modules."""

Target = Callable[[bytes, Random], None]
Bound = Callable[[bytes], int]


class HangError(BaseException):
    """An input took more than SECONDS."""


def read(content: bytes, rng: Random) -> None:
    """Everything a reader does before a model is touched."""
    from diffcodec import api, chunks, container, extras

    header, start = container.read_header(content)
    front = extras.read_front(header, content, start)
    extras.check_presence(header, content, front.end, None)
    if header.has_lengths:
        api.parse(content)
        return
    # Without lengths only a decoder knows where layers end: any place will do.
    reader = container.LayerReader(content, front.end, header)
    for _ in header.plan.layers:
        code, _cut = reader.open()
        used = rng.randrange(len(code) + 1)
        end = reader.place + used
        reader.close(used, content[end] if end < len(content) else 0)
    for _ in header.strips:
        reader.strip()
    try:
        extras.read_trailer(content, reader.place)
    except EOFError:
        chunks.find(front.chunks, chunks.FRONT)


def reader_bound(content: bytes) -> int:
    """Bytes that reading may take at a time: copies of the file and of what it declares."""
    from diffcodec import container
    from diffcodec.chunks import ALPHA, MAX_METADATA, read_block
    from diffcodec.errors import FormatError

    bound = (4 << 20) + 16 * len(content)
    try:
        header, start = container.read_header(content)
        listed = read_block(content, start)[0] if header.chunks else []
    except (FormatError, EOFError):
        return bound
    for chunk in listed:
        if chunk.kind == ALPHA and chunk.size == header.width * header.height:
            bound += 4 * chunk.size + (12 << 20)  # and the dictionary of LZMA
        elif chunk.size <= MAX_METADATA:
            bound += 4 * chunk.size
    return bound + (4 * MAX_METADATA if header.trailer else 0)


def make_decoder(model: Any) -> Target:
    """diffcodec.decode with this model and options drawn at random."""
    import numpy as np

    import diffcodec

    def decode(content: bytes, rng: Random) -> None:
        shown = diffcodec.decode(
            content,
            model=model,
            stop_t=rng.choice((0, 0, 0, 1, 6, 180)),
            recon=rng.choice(("mean", "x0", "x0", "x0", "flow")),
            salvage=rng.random() < 0.3,
            max_pixels=DECODER_PIXELS,
        )
        if shown.pixels.dtype != np.uint8 or (shown.exact and (shown.t or shown.damage)):
            raise AssertionError("this is not what decode promises")

    return decode


def decoder_bound(content: bytes) -> int:
    """As for the reader, and 2 KiB for a pixel: bands are as wide as the picture, in float64."""
    from diffcodec import container
    from diffcodec.errors import FormatError

    try:
        header, _ = container.read_header(content)
    except FormatError:
        return reader_bound(content)
    return reader_bound(content) + (24 << 20) + 2048 * header.width * header.height


class Watch:
    """Runs inputs through a target, counts outcomes and keeps findings."""

    def __init__(self, target: Target, bound: Bound, out: Path, rng: Random) -> None:
        self.target, self.bound, self.out, self.rng = target, bound, out, rng
        self.outcomes: Counter[str] = Counter()
        self.findings = 0
        self.slowest = self.peak = 0.0
        self.watching = False
        self.events: list[str] = []
        sys.addaudithook(self._audit)
        signal.signal(signal.SIGALRM, self._alarm)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.watching:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = isinstance(flags, int) and flags & 0o1103  # write, read and write, create …
            if not writes and not (isinstance(mode, str) and set(mode) & set("wax+")):
                return
            if "__pycache__" in str(path):  # numba's, of the program and not of the input
                return
            self.events.append(f"open {path}")
            return
        if event in {"os.listdir", "os.scandir"} or "__pycache__" in str(arguments):
            return
        if event.startswith(("os.", "subprocess.", "socket.", "shutil.", "tempfile.")):
            self.events.append(event)

    def _alarm(self, _number: int, _frame: FrameType | None) -> None:
        raise HangError

    def __call__(self, content: bytes) -> None:
        from diffcodec.errors import DiffcodecError

        traced = self.rng.randrange(SAMPLED) == 0
        self.events.clear()
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        self.watching = True
        begun = time.process_time()
        if traced:
            tracemalloc.start()
        try:
            self.target(content, self.rng)
            outcome = "accepted"
        except DiffcodecError as e:
            outcome = f"refused: {type(e).__name__}: {_general(str(e))}"
            if "\n" in str(e):
                outcome = f"FINDING more than one line: {outcome}"
        except HangError:
            outcome = "FINDING hang"
        except Exception as e:
            outcome = f"FINDING {type(e).__name__}: {_general(str(e))}"
        seconds = time.process_time() - begun
        self.watching = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        if traced:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            self.peak = max(self.peak, peak)
            if peak > self.bound(content):
                outcome = f"FINDING memory: {peak >> 20} MiB over {self.bound(content) >> 20}"
        if self.events:
            outcome = f"FINDING wrote: {self.events[0]}"
        if seconds > SECONDS:
            outcome = "FINDING hang"
        self.slowest = max(self.slowest, seconds)
        self.outcomes[outcome] += 1
        if outcome.startswith("FINDING"):
            self._keep(content, outcome)

    def _keep(self, content: bytes, outcome: str) -> None:
        self.findings += 1
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / f"{hashlib.sha256(content).hexdigest()[:16]}.ddc"
        path.write_bytes(content)
        click.echo(f"{path}: {outcome}", err=True)

    def report(self, seconds: float, details: bool) -> None:
        """Print the counts."""
        total = sum(self.outcomes.values())
        kinds: Counter[str] = Counter()
        for outcome, count in self.outcomes.items():
            kinds[outcome if details else ":".join(outcome.split(":")[:2])] += count
        for outcome, count in kinds.most_common():
            click.echo(f"{count:9d}  {outcome}")
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        click.echo(
            f"{total} inputs, {self.findings} findings, {seconds:.0f} s, slowest "
            f"{self.slowest:.2f} s of a core, most traced memory {self.peak / 2**20:.1f} MiB, "
            f"resident {most:.0f} MiB"
        )


def _general(message: str) -> str:
    """Without what differs from input to input."""
    return re.sub(r"'.*'|\b[0-9a-f]{6}\b|\d+", "N", " ".join(message.split()))[:90]


def _limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + MEMORY_LIMIT
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _steered(
    watch: Watch, seeds: list[Any], count: int, seed: int, done: Callable[[], None]
) -> None:
    """libFuzzer's loop; it ends the process."""
    import tempfile

    import atheris
    from mutations import Mutator, repaired

    rng = Random(seed)
    mutate = Mutator(seeds, rng)

    def mutated(data: bytes, most: int, own: int) -> bytes:
        kind = rng.random()
        if kind < 0.2:
            return mutate()[:most]
        data = atheris.Mutate(data, most)
        return repaired(data) if kind < 0.6 else data

    corpus = tempfile.TemporaryDirectory()
    for number, own in enumerate(seeds):
        (Path(corpus.name) / str(number)).write_bytes(own.content)
    left = count

    def one(data: bytes) -> None:
        nonlocal left
        watch(data)
        left -= 1
        if not left:
            done()  # libFuzzer leaves without running what Python has registered for its end

    options = [f"-runs={count}", f"-seed={seed}", "-max_len=30000", "-timeout=0", "-rss_limit_mb=0"]
    arguments = [sys.argv[0], *options, "-print_final_stats=1", corpus.name]
    atheris.Setup(arguments, one, custom_mutator=mutated)
    atheris.Fuzz()


@click.command()
@click.option("--target", type=click.Choice(["reader", "decoder"]), required=True)
@click.option("--count", default=1_000_000, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--coverage", is_flag=True, help="Steered by coverage; needs atheris.")
@click.option("--details", is_flag=True, help="Count every message.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("fuzz-findings"))
def main(target: str, count: int, seed: int, coverage: bool, details: bool, out: Path) -> None:
    """Mutate good files and count outcomes."""
    if coverage:
        import atheris

        with atheris.instrument_imports(include=["diffcodec"], exclude=COMPILED):
            import diffcodec.api  # noqa: F401
    import torch
    from mutations import GOLDEN, Mutator, coded_pictures, golden_seeds, made_up_seeds
    from mutations import seed as as_seed

    from diffcodec.model import read_model

    torch.set_num_threads(1)
    rng = Random(seed)
    seeds, shares = golden_seeds(), {"beginning": 0.5, "repair": 0.5}
    if target == "reader":
        function, bound = read, reader_bound
        seeds += made_up_seeds(rng)
    else:
        model = read_model(GOLDEN / "model")
        function, bound = make_decoder(model), decoder_bound
        coded = [as_seed(content) for content in coded_pictures(model).values()]
        seeds = [s for s in seeds if len(s.content) < 2000] + 5 * coded  # these are fast
        shares = {"beginning": 0.1, "repair": 0.8}
    watch = Watch(function, bound, out, rng)
    for own in seeds:  # compiles and caches what is made once
        if target == "decoder":
            function(own.content, rng)
    _limit_memory()
    begun = time.perf_counter()

    def done() -> None:
        watch.report(time.perf_counter() - begun, details)

    if coverage:
        _steered(watch, seeds, count, seed, done)
        return
    mutate = Mutator(seeds, rng, **shares)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also in the background
    with suppress(KeyboardInterrupt):
        for _ in range(count):
            watch(mutate())
    done()
    sys.exit(bool(watch.findings))


if __name__ == "__main__":
    main()
