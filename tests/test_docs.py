"""The tutorial: its marked examples run, in order, in one folder; the pages are all there."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import DATA

from diffcodec.cli import main

DOCS = DATA.parent.parent / "docs"
MARKED = re.compile(r"^<!-- run -->\n```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, contents) of every fenced block that is marked to be run."""
    return [(match[1], match[2]) for match in MARKED.finditer(text)]


def run_commands(text: str) -> None:
    """Every line is ``$ diffcodec …``; it must succeed."""
    for line in text.splitlines():
        prompt, name, *arguments = shlex.split(line)
        assert (prompt, name) == ("$", "diffcodec"), line
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, f"{line}\n{result.output}"


def test_the_examples_of_the_tutorial(tmp_path: Path) -> None:
    for name in ("kitten-64.png", "budgerigar-32.png"):
        shutil.copy(DATA / name, tmp_path)
    found = blocks((DOCS / "tutorial.md").read_text("utf-8"))
    assert {language for language, _ in found} == {"", "python"}
    space: dict[str, object] = {"__name__": "tutorial"}
    with contextlib.chdir(tmp_path), contextlib.redirect_stdout(io.StringIO()):
        for language, text in found:
            if language == "python":
                exec(compile(text, "tutorial.md", "exec"), space)
            else:
                run_commands(text)
    made = {path.name for path in tmp_path.iterdir()}
    assert {"kitten.ddc", "same.png", "kitten.html", "kitten.gif", "thumbnail.png"} <= made
    assert (tmp_path / "small.ddc").stat().st_size == 512


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_links_between_pages(page: Path) -> None:
    for target in LINK.findall(page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_diagram_is_well_formed() -> None:
    from xml.etree import ElementTree

    for path in (DOCS / "images").glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
