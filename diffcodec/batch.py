"""Many files in one go: which file is made of which, and a worker run over all of them.

Knows paths and a worker function, nothing of codecs.
"""

from __future__ import annotations

import ctypes
import glob
import os
import time
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

from diffcodec.errors import DiffcodecError
from diffcodec.files import make_folder
from diffcodec.parallel import mark_worker, one_torch_thread


@dataclass(frozen=True)
class Job:
    """One file to make.  problem: why that is not even tried, or nothing."""

    source: Path
    target: Path
    problem: str = ""


@dataclass(frozen=True)
class Result:
    """What a worker made: a line and notes for the user; size in bytes; pixels of the picture;
    damaged: the source is, and this is what is left of it."""

    line: str
    size: int
    pixels: int
    notes: tuple[str, ...] = ()
    damaged: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a job ended: with a result, with an error in one line, or (neither) skipped."""

    job: Job
    result: Result | None = None
    error: str = ""


@dataclass
class Summary:
    """Counts of jobs by how they ended; damaged: how many of those done are; size in bytes and
    pixels of those done."""

    done: int = 0
    skipped: int = 0
    failed: int = 0
    damaged: int = 0
    size: int = 0
    pixels: int = 0
    seconds: float = 0.0

    def add(self, outcome: Outcome) -> None:
        """Count one more job."""
        if outcome.result is not None:
            self.done += 1
            self.damaged += outcome.result.damaged
            self.size += outcome.result.size
            self.pixels += outcome.result.pixels
        elif outcome.error:
            self.failed += 1
        else:
            self.skipped += 1


Worker = Callable[[Path, Path], Result]
"""From source to target; raises DiffcodecError when it cannot.  Called in any thread."""


def is_many(sources: Sequence[Path]) -> bool:
    """Whether ``sources`` are more than one plain file: several, a folder or a pattern."""
    return len(sources) != 1 or _is_folder(sources[0]) or _is_pattern(sources[0])


def collect(sources: Sequence[Path], suffixes: Set[str], out: Path, suffix: str) -> list[Job]:
    """The jobs that make of every source a file of type ``suffix`` in the folder ``out``.

    A source is a file, a folder (all files below it of the types ``suffixes``, but no hidden
    ones; their layout is kept) or a pattern (the layout below its first wildcard is kept).  What
    cannot be done becomes a job with a problem: a source that holds nothing, and one whose target
    another source has already.  The same source named twice counts once.
    """
    jobs = []
    owners: dict[Path, Path] = {}
    for source in sources:
        for job in _expand(source, suffixes, out, suffix):
            owner = None if job.problem else owners.get(job.target)
            if owner is None:
                jobs.append(job)
                if not job.problem:
                    owners[job.target] = job.source
            elif owner.resolve() != job.source.resolve():
                problem = f"refused, {job.target} is made from {owner}"
                jobs.append(Job(job.source, job.target, problem))
    return jobs


def _expand(source: Path, suffixes: Set[str], out: Path, suffix: str) -> Iterator[Job]:
    """The jobs of one source."""
    closed: list[OSError] = []
    if _is_folder(source):
        root, nothing = source, f"no file of type {', '.join(sorted(suffixes))} in this folder"
        names = _below(source, suffixes, closed)
    elif _is_pattern(source):
        root, names = _matches(source)
        nothing = "no file matches this pattern"
    else:
        yield Job(source, out / Path(source.name).with_suffix(suffix))
        return
    for name in names:
        yield Job(root / name, (out / name).with_suffix(suffix))
    for e in closed:
        yield Job(Path(e.filename), out, f"cannot be read ({e.strerror})")
    if not names and not closed:
        yield Job(source, out, nothing)


def _below(folder: Path, suffixes: Set[str], closed: list[OSError]) -> list[Path]:
    """Files of these types anywhere below a folder, relative to it, in a fixed order.

    Why folders cannot be looked into is added to ``closed``.
    """
    names = []
    for place, folders, files in os.walk(folder, onerror=closed.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (Path(place, name) for name in sorted(files) if not name.startswith("."))
        names += [path.relative_to(folder) for path in paths if path.suffix.lower() in suffixes]
    return names


def _matches(pattern: Path) -> tuple[Path, list[Path]]:
    """(folder before the first wildcard, files that match, relative to it, in a fixed order)."""
    parts = pattern.parts
    fixed = next(n for n, part in enumerate(parts) if glob.has_magic(part))
    root, rest = Path(*parts[:fixed]), str(Path(*parts[fixed:]))
    # Unlike Path.glob this is what a shell does: names that begin with a dot need one written.
    found = glob.glob(rest, root_dir=root, recursive=True)  # noqa: PTH207
    return root, sorted(Path(name) for name in found if (root / name).is_file())


def _is_pattern(path: Path) -> bool:
    """Whether a path has wildcards and is not, with them, the name of a file."""
    return glob.has_magic(str(path)) and not _is_file(path)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # of a folder that may not be looked into
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def run_jobs(
    jobs: Sequence[Job],
    worker: Worker,
    count: int,
    report: Callable[[Outcome], None],
    *,
    force: bool = False,
) -> Summary:
    """Run ``worker`` over all jobs, ``count`` at a time, and ``report`` each as it ends.

    A job whose target exists is skipped, unless ``force``: files are written in one piece, so
    what exists is whole.  One that fails is reported and the rest goes on.  ``report`` is called
    in the calling thread only.  With ``count`` 1 the worker is too, and has all cores to itself.
    An interrupt (Ctrl-C) reaches the workers as well, so that they clean up; it is raised again
    when they have ended.
    """
    begun = time.perf_counter()
    summary = Summary()

    def attempt(job: Job) -> Outcome:
        return _attempt(job, worker, force)

    def take(outcome: Outcome) -> None:
        summary.add(outcome)
        report(outcome)

    if count == 1:
        for job in jobs:
            take(attempt(job))
    else:
        _in_threads(jobs, attempt, count, take)
    summary.seconds = time.perf_counter() - begun
    return summary


def _attempt(job: Job, worker: Worker, force: bool) -> Outcome:
    """Do one job; whatever is wrong with it becomes one line."""
    if job.problem:
        return Outcome(job, error=f"{job.source}: {job.problem}")
    if not force and _is_file(job.target):
        return Outcome(job)
    try:
        make_folder(job.target.parent)
        return Outcome(job, worker(job.source, job.target))
    except DiffcodecError as e:
        error = str(e)
    except MemoryError:
        error = "not enough memory for a picture of this size"
    except Exception as e:  # a picture nobody thought of is no reason to leave out the others
        error = f"{type(e).__name__}: {e}"
    error = " ".join(error.split())
    named = error.startswith((str(job.source), str(job.target)))
    return Outcome(job, error=error if named else f"{job.source}: {error}")


def _in_threads(
    jobs: Sequence[Job],
    attempt: Callable[[Job], Outcome],
    count: int,
    take: Callable[[Outcome], None],
) -> None:
    waiting: SimpleQueue[Job] = SimpleQueue()
    ended: SimpleQueue[Outcome] = SimpleQueue()
    for job in jobs:
        waiting.put(job)

    def work() -> None:
        mark_worker()
        # no more jobs, or told to stop
        with suppress(Empty, SystemExit), one_torch_thread():
            while True:
                ended.put(attempt(waiting.get_nowait()))

    # Daemons: a second Ctrl-C need not wait for them.
    threads = [Thread(target=work, daemon=True) for _ in range(min(count, len(jobs)))]
    try:
        for thread in threads:
            thread.start()
        for _ in jobs:
            take(ended.get())
    except BaseException:
        for thread in threads:
            _stop(thread)
        raise
    finally:
        for thread in threads:
            if thread.ident is not None:
                thread.join()


def _stop(thread: Thread) -> None:
    """Raise SystemExit in a thread at its next step of Python, as Ctrl-C does in the main one.

    A flag to look at would do only where the worker looks; this also unwinds its ``with`` blocks,
    which remove what is half written.
    """
    if thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
        )
