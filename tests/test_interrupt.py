"""Processes that are killed: a small version of tools/interrupt.py."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner
from conftest import DATA

from diffcodec.cli import main
from diffcodec.files import STALE, TEMPORARY, atomic_path, remove_stale
from diffcodec.train import Trainer
from diffcodec.train.checkpoint import read_checkpoint

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture(scope="module")
def interrupt() -> ModuleType:
    sys.path.insert(0, str(TOOLS))
    try:
        import interrupt

        return interrupt
    finally:
        sys.path.remove(str(TOOLS))


@pytest.fixture(scope="module")
def place(interrupt: ModuleType, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """(the command encode, the folder of its output)."""
    folder = tmp_path_factory.mktemp("interrupted")
    (folder / "work").mkdir()
    (folder / "out").mkdir()
    return interrupt.cases(folder / "work", folder / "out", {"encode"})[0], folder / "out"


@pytest.mark.parametrize("kind", ["SIGINT", "SIGTERM", "SIGKILL", "file size limit"])
def test_an_output_is_the_old_one_or_the_new_one(interrupt: ModuleType, place, kind: str) -> None:  # type: ignore[no-untyped-def]
    case, out = place
    interrupt.interrupt_once(case, kind, out, random.Random(kind))


@pytest.mark.usefixtures("heeds_interrupts")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_training_stops_on_a_whole_checkpoint_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    original = Trainer.train_step

    def interrupted(self: Trainer) -> object:
        loss = original(self)
        if self.step == 2:
            signal.raise_signal(number)
        return loss

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    network = ("--channels", "8,8,8", "--blocks", "1,1,1", "--crop", "8", "--batch", "2")
    options = ("--data", DATA, "--out", tmp_path / "run", "--holdout", 0, "--steps", 9)
    result = CliRunner().invoke(main, [str(a) for a in ("train", *options, *network)])
    assert result.exit_code == 128 + number
    assert result.stderr.splitlines() == [
        "note: stopped at step 2; --resume goes on from there",
        f"diffcodec: stopped by {number.name}",
    ]
    assert read_checkpoint(tmp_path / "run")["step"] == 2


def test_what_a_kill_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    old, young, other = (tmp_path / f".a.{n}{TEMPORARY}" for n in range(3))
    kept = tmp_path / f"a{TEMPORARY}"  # does not begin with a dot: not ours
    for path in (old, young, other, kept):
        path.write_bytes(b"half")
    for path in (old, kept):
        os.utime(path, (time.time() - 2 * STALE,) * 2)
    remove_stale.cache_clear()
    with atomic_path(tmp_path / "b") as temporary:
        temporary.write_bytes(b"whole")
        assert temporary.name.startswith(".b.")
        assert temporary.name.endswith(TEMPORARY)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["b", young.name, other.name, kept.name]
    )
