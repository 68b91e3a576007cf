"""Kill diffcodec at random times and check what is left.

    python tools/interrupt.py --coding 120 --training 12

Runs encode, decode, truncate and encode of a folder, and stops them with SIGINT, SIGTERM and
SIGKILL, at random times or in the midst of writing, or by a disk that is full (a small tmpfs where
that may be mounted, and a limit of the size of files).  An output must then be the old one or the
new one, whole; nothing else may be left, but for the temporary file of a process that was killed
outright, which later runs must neither trip over nor mistake for a picture, and remove once it is
an hour old.  A training run that is killed again and again must end with the same parameters, bit
for bit, as one that was not.  Exits with 1 at the first violation.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "tests" / "data" / "budgerigar-32.png"
MODEL = ROOT / "tests" / "golden" / "model"
PART = ".diffcodec-part"
OLD = b"what was here before"
SIGNALS = {"SIGINT": 130, "SIGTERM": 143, "SIGKILL": -signal.SIGKILL}
KINDS = (*SIGNALS, "file size limit", "full disk")
DISK_BYTES = 1 << 16


@dataclass(frozen=True)
class Ending:
    """How a process ended; interrupted: before it was done."""

    code: int
    stderr: str

    @property
    def interrupted(self) -> bool:
        return self.code != 0


def run(
    arguments: list[str],
    number: int = 0,
    when: Callable[[subprocess.Popen[str]], None] | None = None,
    file_limit: int | None = None,
) -> Ending:
    """Run diffcodec; send it the signal ``number`` when ``when`` returns."""

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # programs in the background are born deaf
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

    process = subprocess.Popen(
        [sys.executable, "-m", "diffcodec.cli", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    )
    if when is not None:
        when(process)
        if process.poll() is None:
            process.send_signal(number)
    _, stderr = process.communicate()
    return Ending(process.returncode, stderr)


def after(seconds: float) -> Callable[[subprocess.Popen[str]], None]:
    """Wait so long, or until the process has ended."""

    def wait(process: subprocess.Popen[str]) -> None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)

    return wait


def at_a_write(folder: Path) -> Callable[[subprocess.Popen[str]], None]:
    """Wait until a new temporary file appears in the folder, or the process has ended."""
    known = parts(folder)

    def wait(process: subprocess.Popen[str]) -> None:
        while process.poll() is None and parts(folder) <= known:
            time.sleep(0.0002)

    return wait


def parts(folder: Path) -> set[str]:
    return {path.name for path in folder.glob(f".*{PART}")}


def check_manners(kind: str, ending: Ending) -> None:
    """One line (of many files, one for each) and the right exit code; else AssertionError."""
    lines = [line for line in ending.stderr.splitlines() if line.startswith("diffcodec: ")]
    stops = [line for line in lines if line.startswith("diffcodec: stopped by")]
    if ending.code == 0:
        return
    if kind in ("SIGINT", "SIGTERM") and ending.code == -getattr(signal, kind):
        # Python itself was still starting: nothing of diffcodec has run.
        assert "diffcodec/cli/base.py" not in ending.stderr, ending
        return
    assert ending.code == SIGNALS.get(kind, 1), (kind, ending)
    assert "Traceback" not in ending.stderr, (kind, ending)
    assert len(stops) == (kind in ("SIGINT", "SIGTERM")), (kind, ending)
    assert bool(lines) == (kind != "SIGKILL"), (kind, ending)


# -- encode, decode, truncate, many files ------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A command that makes these files in ``out``; seconds it takes."""

    name: str
    arguments: list[str]
    outputs: dict[str, bytes]
    seconds: float


def cases(work: Path, out: Path, names: set[str]) -> list[Case]:
    """Run every command once without interruption."""
    model = ["--model", str(MODEL)]
    pictures = work / "pictures"
    pictures.mkdir()
    pixels = np.asarray(Image.open(PICTURE).convert("RGB"))
    for k in range(5):
        Image.fromarray(pixels[k : k + 12, : 10 + k]).save(pictures / f"{k}.png")
    coded = work / "in.ddc"
    assert run(["encode", str(PICTURE), "-o", str(coded), "--effort", "1", *model]).code == 0
    effort = ["--effort", "1"]
    commands = {
        "encode": ["encode", str(PICTURE), "-o", str(out / "a.ddc"), *effort, *model],
        "decode": ["decode", str(coded), "-o", str(out / "a.png"), *model],
        "truncate": ["truncate", str(coded), "-o", str(out / "a.ddc"), "--bytes", "3000"],
        "folder": ["encode", str(pictures), "-o", str(out), "--jobs", "2", *effort, *model],
    }
    found = []
    for name, arguments in commands.items():
        if name in names:
            begun = time.perf_counter()
            ending = run(arguments)
            assert ending.code == 0, ending
            seconds = time.perf_counter() - begun
            outputs = {path.name: path.read_bytes() for path in out.iterdir()}
            found.append(Case(name, arguments, outputs, seconds))
            empty(out)
    return found


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system of its own for the folder, if this user may mount one."""
    options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    mounted = subprocess.run(["mount", *options], capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path, leave: int) -> None:
    """Write a file that leaves so many bytes of the folder's file system, or fewer."""
    free = shutil.disk_usage(folder).free
    (folder / "filler").write_bytes(bytes(max(free - leave, 0)))


def interrupt_once(case: Case, kind: str, out: Path, rng: random.Random) -> bool:
    """One try; whether it came before the end.  AssertionError if anything is amiss."""
    single = case.name != "folder"
    for name in case.outputs if single else ():
        (out / name).write_bytes(OLD)
    before = {path.name for path in out.iterdir()}
    largest = max(map(len, case.outputs.values()))
    if kind == "full disk":
        fill(out, rng.randrange(largest))
        ending = run(case.arguments)
        (out / "filler").unlink()
    elif kind == "file size limit":
        ending = run(case.arguments, file_limit=rng.randrange(largest))
    else:
        delay = after(rng.uniform(0.1, 1.0) * case.seconds)
        when = rng.choice([delay, at_a_write(out)])
        ending = run(case.arguments, getattr(signal, kind), when)
    check_manners(kind, ending)
    for name, content in case.outputs.items():
        path = out / name
        if single or path.exists():
            kept = ([OLD] if single else []) + [content]
            assert path.read_bytes() in kept, (case.name, kind, name)
        assert ending.interrupted or path.read_bytes() == content, (case.name, kind, name)
    left = {path.name for path in out.iterdir()} - set(case.outputs) - before
    assert not left or (kind == "SIGKILL" and left <= parts(out)), (case.name, kind, left)
    if not single and all((out / name).exists() for name in case.outputs):
        for name in case.outputs:
            (out / name).unlink()
    return ending.interrupted


def interrupt_coding(count: int, names: set[str], rng: random.Random) -> Counter[tuple[str, str]]:
    """Interrupt until it came before the end ``count`` times: (command, kind) → how often."""
    done: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as name:
        work, out, disk = (Path(name) / part for part in ("work", "out", "disk"))
        for folder in (work, out, disk):
            folder.mkdir()
        with small_disk(disk) as mounted:
            known = cases(work, out, names)
            on_disk = cases_on(known, out, disk)
            kinds = KINDS if mounted else KINDS[:-1]
            while sum(done.values()) < count:
                number, kind = rng.randrange(len(known)), rng.choice(kinds)
                full = kind == "full disk"
                case, place = (on_disk[number], disk) if full else (known[number], out)
                done[case.name, kind] += interrupt_once(case, kind, place, rng)
            empty(disk)
        check_leftovers(known[-1], out)
    return done


def cases_on(known: list[Case], out: Path, other: Path) -> list[Case]:
    """The same commands with their outputs in another folder."""

    def moved(argument: str) -> str:
        return argument.replace(str(out), str(other))

    return [Case(c.name, [*map(moved, c.arguments)], c.outputs, c.seconds) for c in known]


def check_leftovers(case: Case, out: Path) -> None:
    """What SIGKILL left is no picture to later runs, and goes when it is old."""
    left = parts(out)
    print(f"temporary files that SIGKILL left: {len(left)}")
    others = {path.name for path in out.iterdir()} - left - set(case.outputs)
    for name in others:
        (out / name).unlink()
    two_hours_ago = time.time() - 7200
    old = [out / name for name in left][::2]
    for path in old:
        os.utime(path, (two_hours_ago, two_hours_ago))
    assert run([*case.arguments, "--force"]).code == 0
    assert parts(out) == left - {path.name for path in old}
    for name, content in case.outputs.items():
        assert (out / name).read_bytes() == content
    with tempfile.TemporaryDirectory() as shown:
        assert run(["decode", str(out), "-o", shown, "--model", str(MODEL)]).code == 0
        assert len(list(Path(shown).iterdir())) == sum(n.endswith(".ddc") for n in case.outputs)


# -- training ----------------------------------------------------------------------------------


def interrupt_training(count: int, steps: int, rng: random.Random) -> Counter[tuple[str, str]]:
    """Interrupt one run ``count`` times and compare its end with an uninterrupted one's."""
    done: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as name:
        whole, broken = Path(name) / "whole", Path(name) / "broken"
        network = ["--channels", "8,8,8", "--blocks", "1,1,1", "--crop", "16", "--batch", "4"]
        begin = ["--data", str(PICTURE.parent), *network, "--holdout", "0", "--steps", str(steps)]
        often = ["--checkpoint-minutes", "0.0005"]
        begun = time.perf_counter()
        ending = run(["train", "--out", str(whole), *begin, *often])
        assert ending.code == 0, ending
        seconds = time.perf_counter() - begun
        size = (whole / "checkpoint.pt").stat().st_size
        go_on = ["--data", str(PICTURE.parent), "--resume"]
        while True:
            resume = (broken / "checkpoint.pt").exists()
            command = ["train", "--out", str(broken), *(go_on if resume else begin), *often]
            if sum(done.values()) >= count:
                break
            kind = rng.choice(KINDS[:-1])
            if kind == "file size limit":
                ending = run(command, file_limit=rng.randrange(1000, size))
            else:
                delay = after(rng.uniform(0.2, 0.7) * seconds)
                write = at_a_write(broken) if broken.exists() else delay
                ending = run(command, getattr(signal, kind), rng.choice([delay, write]))
            check_manners(kind, ending)
            done["train", kind] += ending.interrupted
            left = {p.name for p in broken.iterdir() if p.name.startswith(".")}
            assert not left or kind == "SIGKILL", (kind, left)
            for part in left:
                (broken / part).unlink()
        ending = run(command)
        assert ending.code == 0, ending
        for part in ("model.safetensors", "config.json"):
            same = (whole / part).read_bytes() == (broken / part).read_bytes()
            assert same, f"{part} of the interrupted run differs"
        check_same_state(whole, broken)
    return done


def check_same_state(whole: Path, broken: Path) -> None:
    """Weights, EMA and optimisers of both runs are the same, bit for bit."""
    import torch

    states = []
    for folder in (whole, broken):
        state = torch.load(folder / "checkpoint.pt", weights_only=True)
        states.append([t for t in _tensors(state)])
    assert len(states[0]) == len(states[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def _tensors(state: object) -> Iterator[object]:
    if isinstance(state, dict):
        for key in sorted(state, key=str):
            yield from _tensors(state[key])
    elif isinstance(state, list):
        for item in state:
            yield from _tensors(item)
    elif hasattr(state, "dtype"):
        yield state


def show(title: str, done: Counter[tuple[str, str]]) -> None:
    print(f"{title}: {sum(done.values())} interruptions")
    for kind in KINDS:
        row = {command: n for (command, k), n in sorted(done.items()) if k == kind and n}
        if row:
            listed = ", ".join(f"{command} {n}" for command, n in row.items())
            print(f"  {kind}: {sum(row.values())} ({listed})")


@click.command()
@click.option("--coding", default=120, show_default=True, help="Interruptions of commands.")
@click.option("--training", default=12, show_default=True, help="Interruptions of training.")
@click.option("--steps", default=300, show_default=True, help="Length of the training run.")
@click.option("--only", multiple=True, help="Of encode, decode, truncate, folder.")
@click.option("--seed", default=0, show_default=True)
def main(coding: int, training: int, steps: int, only: tuple[str, ...], seed: int) -> None:
    """Kill diffcodec at random times; nothing half done may be left."""
    rng = random.Random(seed)
    names = set(only) or {"encode", "decode", "truncate", "folder"}
    if coding:
        show("coding commands", interrupt_coding(coding, names, rng))
    if training:
        show("training", interrupt_training(training, steps, rng))
        print("the training run ended with the parameters of the uninterrupted one")


if __name__ == "__main__":
    main()
