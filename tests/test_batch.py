"""Many files in one go: what becomes of which, skipping, failing, interrupting."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result as Run
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_cli import files, run

import diffcodec
from diffcodec.batch import Job, Outcome, Result, collect, is_many, run_jobs
from diffcodec.errors import DataError
from diffcodec.files import atomic_path, write_bytes
from diffcodec.model import Model

SUFFIXES = {".png", ".jpg"}
NAME = st.sampled_from(["a", "b", "a.x", "ä"])


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def targets(jobs: list[Job], out: Path) -> list[str]:
    return [str(job.target.relative_to(out)) for job in jobs if not job.problem]


def copy(source: Path, target: Path) -> Result:
    """A worker: copies, refuses what says it is bad and breaks on what it never heard of."""
    content = source.read_bytes()
    if content == b"bad":
        raise DataError(f"{source}: bad\nindeed")
    if content == b"odd":
        raise ZeroDivisionError("odd")
    write_bytes(target, content)
    return Result(f"{target}: copied", len(content), 1)


# -- which file is made of which -------------------------------------------------------------


@pytest.fixture()
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of nested pictures, the working folder of the test."""
    touch(tmp_path, "in/b.png", "in/A.PNG", "in/notes.txt", "in/x/c.jpg", "in/x/y/b.png")
    touch(tmp_path, "in/.hidden.png", "in/.cache/d.png", "in/[1].png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


OUT = Path("out")


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (["in"], ["A.z", "[1].z", "b.z", "x/c.z", "x/y/b.z"]),
        (["in", "in/b.png"], ["A.z", "[1].z", "b.z", "x/c.z", "x/y/b.z"]),
        (["in/b.png", "in/x/c.jpg"], ["b.z", "c.z"]),
        (["in/b.png", "in/../in/b.png"], ["b.z"]),
        (["in/*.png"], ["[1].z", "b.z"]),
        (["in/**/*.png"], ["[1].z", "b.z", "x/y/b.z"]),
        (["in/*/c.jpg"], ["x/c.z"]),
        (["in/*"], ["A.z", "[1].z", "b.z", "notes.z"]),
        (["in/[1].png", "missing.png"], ["[1].z", "missing.z"]),
    ],
)
def test_targets_of_sources(tree: Path, sources: list[str], expected: list[str]) -> None:
    absolute = [[Path(s) for s in sources], [tree / s for s in sources]]
    for paths in absolute:
        for given_paths in (paths, paths * 2):
            jobs = collect(given_paths, SUFFIXES, OUT, ".z")
            assert targets(jobs, OUT) == expected
            assert not any(job.problem for job in jobs)


@pytest.mark.parametrize("source", ["in/*.gif", "in/x/y/z", "none/*"])
def test_sources_that_hold_nothing_are_a_problem(tree: Path, source: str) -> None:
    (tree / "in/x/y/z").mkdir()
    (job,) = collect([Path(source)], SUFFIXES, OUT, ".z")
    assert job.problem.startswith("no file")


def test_folders_that_cannot_be_read_are_a_problem(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir

    def scandir(path: str) -> object:
        if Path(path).name == "x":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    jobs = collect([Path("in")], SUFFIXES, OUT, ".z")
    assert targets(jobs, OUT) == ["A.z", "[1].z", "b.z"]
    assert [(str(j.source), j.problem) for j in jobs if j.problem] == [
        ("in/x", "cannot be read (Permission denied)")
    ]


def test_one_plain_file_is_not_many(tree: Path) -> None:
    for one in ("in/b.png", "in/[1].png", "missing.png", "in/b.png/c"):
        assert not is_many([Path(one)])
    for many in (["in"], ["in/*.png"], ["none/?.png"], ["in/b.png", "in/b.png"]):
        assert is_many([Path(name) for name in many])


def test_the_second_source_of_a_target_is_refused_by_name(tree: Path) -> None:
    touch(tree, "in/b.jpg", "other/b.png")
    jobs = collect([Path("in"), Path("other")], SUFFIXES, OUT, ".z")
    refused = {str(job.source): job.problem for job in jobs if job.problem}
    assert refused == {
        "in/b.png": "refused, out/b.z is made from in/b.jpg",
        "other/b.png": "refused, out/b.z is made from in/b.jpg",
    }


@given(st.lists(st.tuples(st.lists(NAME, max_size=2), NAME, st.sampled_from(sorted(SUFFIXES)))))
def test_every_picture_of_a_folder_has_one_job_and_every_target_one_source(
    tmp_path_factory: pytest.TempPathFactory, paths: list[tuple[list[str], str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("in")
    names = {"/".join([*(f"d{part}" for part in parts), name + end]) for parts, name, end in paths}
    touch(folder, "first.png", *names)
    jobs = collect([folder], SUFFIXES, OUT, ".z")
    assert {str(job.source.relative_to(folder)) for job in jobs} == names | {"first.png"}
    assert len(jobs) == len(names | {"first.png"})
    made = [job for job in jobs if not job.problem]
    assert len({job.target for job in made}) == len(made)
    for job in made:
        assert job.target == OUT / job.source.relative_to(folder).with_suffix(".z")


# -- running ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
def test_the_rest_goes_on_when_files_are_bad(tmp_path: Path, count: int) -> None:
    contents = {"a": b"1", "bad": b"bad", "b": b"22", "odd": b"odd", "c": b"333", "d": b"4"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    out = tmp_path / "out"
    write_bytes(tmp_path / "d.z", b"before")
    jobs = [Job(tmp_path / name, out / name / "x.z") for name in contents if name != "d"]
    jobs += [Job(tmp_path / "d", tmp_path / "d.z"), Job(tmp_path / "e", out / "e.z", "refused")]
    jobs += [Job(tmp_path / "a", tmp_path / "a" / "x.z")]
    seen: list[Outcome] = []
    summary = run_jobs(jobs, copy, count, seen.append)
    assert (summary.done, summary.skipped, summary.failed) == (3, 1, 4)
    assert (summary.size, summary.pixels) == (6, 3)
    assert {o.job for o in seen} == set(jobs)
    errors = {o.job.source.name: o.error for o in seen if o.error and o.job.source.name != "a"}
    assert errors == {
        "bad": f"{tmp_path / 'bad'}: bad indeed",
        "odd": f"{tmp_path / 'odd'}: ZeroDivisionError: odd",
        "e": f"{tmp_path / 'e'}: refused",
    }
    assert sorted(files(out)) == ["a/x.z", "b/x.z", "c/x.z"]
    assert (tmp_path / "d.z").read_bytes() == b"before"


def test_force_does_what_is_done_again(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "a.z"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    summary = run_jobs([Job(source, target)], copy, 1, lambda _: None, force=True)
    assert (summary.done, target.read_bytes()) == (1, b"new")


def test_so_many_at_a_time(tmp_path: Path) -> None:
    """All workers meet: none would arrive if another had to end first."""
    gate = threading.Barrier(3, timeout=10)
    caller = threading.get_ident()

    def meet(source: Path, target: Path) -> Result:
        gate.wait()
        return Result("met", 0, 1)

    def report(outcome: Outcome) -> None:
        assert threading.get_ident() == caller

    jobs = [Job(tmp_path / str(n), tmp_path / f"{n}.z") for n in range(6)]
    assert run_jobs(jobs, meet, 3, report).done == 6


@pytest.mark.usefixtures("heeds_interrupts")
@pytest.mark.parametrize("count", [1, 2])
def test_an_interrupt_ends_the_work_and_leaves_no_partial_file(tmp_path: Path, count: int) -> None:
    """A true SIGINT, while files are being written that would take for ever."""
    writing = threading.Barrier(count)

    def interrupt() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def endless(source: Path, target: Path) -> Result:
        with atomic_path(target) as temporary:
            temporary.write_bytes(b"half")
            if writing.wait() == 0:
                threading.Timer(0.05, interrupt).start()
            while time.perf_counter() - begun < 20:
                time.sleep(0.002)
        raise AssertionError("never interrupted")

    out = tmp_path / "out"
    jobs = [Job(tmp_path / str(n), out / f"{n}.z") for n in range(9)]
    begun, threads = time.perf_counter(), threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, endless, count, lambda _: None)
    assert time.perf_counter() - begun < 5
    assert threading.active_count() <= threads
    assert not files(out)


# -- the commands ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures, one of them below, and a file that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "below").mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (("a.png", (9, 8, 3)), ("b.bmp", (5, 16)), ("below/a.webp", (12, 7, 3))):
        picture = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        picture.save(folder / name, lossless=True)
    (folder / "bad.jpg").write_bytes(b"hello")
    (folder / "notes.txt").write_bytes(b"hello")
    return folder


@pytest.fixture(scope="module")
def encoded(pictures: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures as .ddc files, made two at a time."""
    out = tmp_path_factory.mktemp("encoded") / "new"
    result = encode(pictures, "-o", out, "--jobs", 2, model=tiny_folder)
    check(result, done=3, failed=1)
    assert f"diffcodec: {pictures / 'bad.jpg'}: not a picture" in result.stderr
    return out


def encode(*words: object, model: Path) -> Run:
    return run("encode", *words, "--effort", 1, "--model", model)


def check(result: Run, *, done: int = 0, skipped: int = 0, failed: int = 0) -> None:
    """A line for each file, a summary that counts right, and the exit code that follows."""
    assert result.exit_code == (1 if failed else 0), result.output + repr(result.exception)
    assert "Traceback" not in result.output
    *lines, summary = result.stdout.splitlines()
    assert summary.startswith(f"{done} done, {skipped} skipped, {failed} failed: ")
    assert len(lines) == done + skipped
    assert sum(line.endswith(": done already") for line in lines) == skipped
    assert result.stderr.count("diffcodec: ") == failed


def test_many_pictures_become_the_files_that_single_ones_become(
    pictures: Path, encoded: Path, tiny: Model, tiny_folder: Path, tmp_path: Path
) -> None:
    check(encode(pictures, "-o", tmp_path, model=tiny_folder), done=3, failed=1)
    expected = {}
    for name in ("a.png", "b.bmp", "below/a.webp"):
        content = diffcodec.encode(Image.open(pictures / name), model=tiny, effort=1)
        expected[str(Path(name).with_suffix(".ddc"))] = content
    assert files(encoded) == files(tmp_path) == expected


@pytest.mark.parametrize("jobs", [1, 2])
def test_many_files_become_pictures_again(
    pictures: Path, encoded: Path, tiny_folder: Path, tmp_path: Path, jobs: int
) -> None:
    words = ("decode", encoded, "-o", tmp_path, "--model", tiny_folder, "--jobs", jobs)
    check(run(*words), done=3)
    assert sorted(files(tmp_path)) == ["a.png", "b.png", "below/a.png"]
    for name in ("a.png", "b.bmp", "below/a.webp"):
        with Image.open(tmp_path / Path(name).with_suffix(".png")) as image:
            assert np.array_equal(np.asarray(image), np.asarray(Image.open(pictures / name)))
    check(run(*words), skipped=3)


def test_options_hold_for_every_file(
    pictures: Path, encoded: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    sources = (pictures / "a.png", pictures / "b.bmp")
    check(encode(*sources, "-o", tmp_path, "--max-bytes", 60, model=tiny_folder), done=2)
    whole = files(encoded)
    assert files(tmp_path) == {name: whole[name][:60] for name in ("a.ddc", "b.ddc")}


def test_what_is_done_is_skipped_unless_forced(
    pictures: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.ddc").write_bytes(b"whatever")
    words = (str(pictures / "[ab].*"), "-o", tmp_path, "--max-bytes", 60)
    check(encode(*words, model=tiny_folder), done=1, skipped=1)
    assert (tmp_path / "a.ddc").read_bytes() == b"whatever"
    check(encode(*words, "--force", model=tiny_folder), done=2)
    assert len((tmp_path / "a.ddc").read_bytes()) == 60


def test_force_replaces_a_picture_beside_the_file(
    encoded: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    source, target = tmp_path / "a.ddc", tmp_path / "a.png"
    source.write_bytes((encoded / "a.ddc").read_bytes())
    target.write_bytes(b"precious")
    words = ("decode", source, "--model", tiny_folder)
    assert run(*words).exit_code == 1
    assert target.read_bytes() == b"precious"
    assert run(*words, "--force").exit_code == 0
    assert target.read_bytes() != b"precious"


@pytest.mark.parametrize("command", ["encode", "decode"])
@pytest.mark.parametrize(
    "words",
    ["{0}", "{0}/*.*", "{0}/a.png {0}/b.bmp", "{0} -o {1} --jobs 0", "{0} -o {1} --jobs x"],
)
def test_wrong_usage(command: str, words: str, pictures: Path, tmp_path: Path) -> None:
    before = files(pictures)
    result = run(command, *words.format(pictures, tmp_path / "out").split())
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert files(pictures) == before
    assert not any(tmp_path.iterdir())


def test_what_is_wrong_with_every_file_is_said_once(
    pictures: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    for result in (
        encode(pictures, "-o", tmp_path / "out", model=tmp_path / "none"),
        run("decode", pictures, "-o", tmp_path / "out", "--model", "none"),
        encode(pictures, "-o", tmp_path / "file", model=tiny_folder),
    ):
        assert result.exit_code == 1
        assert len(result.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_notes_name_their_file(tiny_folder: Path, tmp_path: Path) -> None:
    sources = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    for source in sources:
        Image.new("L", (8, 8)).save(source)
    result = encode(*sources, "-o", tmp_path, "--max-bytes", 60, model=tiny_folder)
    check(result, done=2)
    for source in sources:
        assert f"note: {source}: the pixels of a JPEG file are coded" in result.stderr


@pytest.mark.usefixtures("heeds_interrupts")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_in_a_command(
    pictures: Path,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    code: int,
) -> None:
    def interrupted(*_: object, **__: object) -> bytes:
        signal.raise_signal(number)
        return b""

    monkeypatch.setattr("diffcodec.api.encode", interrupted)
    result = encode(pictures, "-o", tmp_path, model=tiny_folder)
    assert result.exit_code == code
    assert result.stderr == f"diffcodec: stopped by {number.name}\n"
    assert not files(tmp_path)
