"""The README: its examples run and print what it says, and its commands exist."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from conftest import DATA

from diffcodec.cli import main

README = (DATA.parent.parent / "README.md").read_text("utf-8")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(diffcodec [a-z]+[^`]*)`")
SECONDS = re.compile(r", [0-9.]+ s$", re.MULTILINE)


def section(title: str) -> list[str]:
    """Fenced blocks below a heading."""
    text = re.split(rf"^#+ {title}$", README, maxsplit=1, flags=re.MULTILINE)[1]
    return [match[2] for match in FENCED.finditer(re.split(r"^#+ ", text, flags=re.MULTILINE)[0])]


def commands() -> list[str]:
    """Every command line of diffcodec, in blocks and in the text."""
    blocks = "\n".join(match[2] for match in FENCED.finditer(README)).replace("\\\n", " ")
    lines = [line.removeprefix("$ ").split("  #")[0] for line in blocks.splitlines()]
    fragments = INLINE.findall(FENCED.sub("", README))
    return sorted({line for line in (*lines, *fragments) if line.startswith("diffcodec ")})


def run(line: str) -> str:
    """The output of a command line, without its seconds."""
    result = CliRunner().invoke(main, shlex.split(line)[1:])
    assert result.exit_code == 0, f"{line}\n{result.output}"
    return SECONDS.sub("", result.stdout.strip())


@pytest.mark.parametrize("line", commands())
def test_a_command_has_the_options_it_is_shown_with(line: str) -> None:
    words = shlex.split(line.split(" < ")[0].split(" > ")[0].replace("…", ""))[1:]
    context = click.Context(main, info_name="diffcodec")
    name, command, rest = main.resolve_command(context, words)
    assert command is not None and name is not None
    with contextlib.suppress(click.MissingParameter):  # the text leaves out what is clear
        command.make_context(name, rest, parent=context)


def test_three_commands(tmp_path: Path) -> None:
    """They print what the README says they print."""
    shutil.copy(DATA / "kitten-64.png", tmp_path / "kitten.png")
    with contextlib.chdir(tmp_path):
        for example in section("Three commands")[0].split("$ ")[1:]:
            line, printed = example.strip().split("\n")
            assert run(line) == SECONDS.sub("", printed)
        assert "exact" in run("diffcodec decode kitten.ddc -o same.png")


def test_many_files(tmp_path: Path) -> None:
    (tmp_path / "photos" / "trips").mkdir(parents=True)
    (tmp_path / "encoded" / "trips").mkdir(parents=True)
    shutil.copy(DATA / "budgerigar-32.png", tmp_path / "photos" / "a.png")
    shutil.copy(DATA / "budgerigar-32.png", tmp_path / "photos" / "trips" / "b.png")
    block = section("Many files")[0]
    with contextlib.chdir(tmp_path):
        first, last = (line[2:] for line in block.splitlines() if line.startswith("$ "))
        shutil.copy(DATA.parent / "golden" / "version-8" / "colour.ddc", "encoded/trips/b.ddc")
        found = run(first)
        for printed in block.splitlines()[1:-1]:
            assert SECONDS.sub("", printed) in found
        shutil.rmtree("encoded/trips")
        run(last)
        assert (tmp_path / "pictures" / "a.png").exists()


def test_python_and_pillow(tmp_path: Path) -> None:
    """On a smaller kitten, with a model of one's own in its folder."""
    shutil.copy(DATA / "budgerigar-32.png", tmp_path / "kitten.png")
    shutil.copytree(DATA.parent / "golden" / "model", tmp_path / "runs" / "mine")
    space: dict[str, object] = {}
    with contextlib.chdir(tmp_path):
        for block in (*section("From Python"), *section("Pillow")):
            exec(compile(block, "README.md", "exec"), space)
