"""Files of every version of the format decode to the same pixels for ever (make_golden.py)."""

from __future__ import annotations

import json

import numpy as np
import pytest
from make_golden import FOLDERS, GOLDEN, digests, pictures

import diffcodec
from diffcodec.container import MAGIC, read_header
from diffcodec.model import Model, read_model
from diffcodec.plans import ALL

KNOWN: dict[int, dict[str, dict[str, str]]] = {
    version: json.loads((folder / "digests.json").read_text())
    for version, folder in FOLDERS.items()
}
FILES = [(version, name) for version in sorted(KNOWN) for name in sorted(KNOWN[version])]


@pytest.fixture(scope="module")
def golden() -> Model:
    return read_model(GOLDEN / "model")


@pytest.mark.parametrize(("version", "name"), FILES)
def test_golden_files_decode_to_the_known_pixels(golden: Model, name: str, version: int) -> None:
    content = (FOLDERS[version] / f"{name}.ddc").read_bytes()
    assert content[:1] == MAGIC
    assert digests(content, golden) == KNOWN[version][name]
    decoded = diffcodec.decode(content, model=golden)
    assert decoded.exact
    np.testing.assert_array_equal(decoded.pixels, pictures()[name][0])


@pytest.mark.parametrize("version", sorted(KNOWN))
def test_golden_files_use_what_the_format_has(golden: Model, version: int) -> None:
    """Several strips, all kinds of plan, a seed, grey, and a file with corrections."""
    folder = FOLDERS[version]
    headers = {
        name: read_header((folder / f"{name}.ddc").read_bytes())[0] for name in KNOWN[version]
    }
    assert {h.grey for h in headers.values()} == {False, True}
    assert len({h.plan for h in headers.values()}) == 8
    assert {h.plan.mirrored for h in headers.values()} == {0, 4, ALL}
    assert {h.plan.adaptive for h in headers.values()} == {0, 1, 2}
    assert max(h.seed for h in headers.values()) == (1 << 32) - 1
    assert headers["strips"].height > 64
    assert {h.has_lengths for h in headers.values()} == {False, True}
    assert {h.lattice for h in headers.values()} == {0, 1}
    assert {h.fingerprint for h in headers.values()} == {golden.fingerprint}
