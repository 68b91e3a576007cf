"""The decoder written from docs/format.md finds what diffcodec does."""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from make_golden import FOLDERS, GOLDEN, kinds

import diffcodec
from diffcodec.container import VERSION
from diffcodec.image import to_array
from diffcodec.model import Model, read_model

PROGRAM = Path(__file__).parents[1] / "tools" / "reference_decoder.py"
KNOWN: dict[int, dict[str, dict[str, str]]] = {
    version: json.loads((folder / "digests.json").read_text())
    for version, folder in FOLDERS.items()
}
FILES = [(version, name) for version in sorted(KNOWN) for name in sorted(KNOWN[version])]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    sys.path.insert(0, str(PROGRAM.parent))
    try:
        import reference_decoder

        return reference_decoder
    finally:
        sys.path.remove(str(PROGRAM.parent))


@pytest.fixture(scope="module")
def network(reference: ModuleType):  # type: ignore[no-untyped-def]
    return reference.Network(GOLDEN / "model")


@pytest.fixture(scope="module")
def golden() -> Model:
    return read_model(GOLDEN / "model")


def content(name: str, version: int = VERSION) -> bytes:
    return (FOLDERS[version] / f"{name}.ddc").read_bytes()


def test_it_is_a_second_decoder() -> None:
    """It imports numpy and the standard library, and nothing of the first one."""
    tree = ast.parse(PROGRAM.read_text())
    names = {n.name for i in ast.walk(tree) if isinstance(i, ast.Import) for n in i.names}
    names |= {i.module or "" for i in ast.walk(tree) if isinstance(i, ast.ImportFrom)}
    assert {n.split(".")[0] for n in names} - set(sys.stdlib_module_names) == {"numpy"}


def test_fingerprints(network, golden: Model) -> None:  # type: ignore[no-untyped-def]
    assert network.fingerprint == golden.fingerprint


@pytest.mark.parametrize(("version", "name"), FILES)
def test_golden_files(reference: ModuleType, network, name: str, version: int) -> None:  # type: ignore[no-untyped-def]
    """Whole, and x̂_0 of the states on the way."""
    found = {}
    for case in KNOWN[version][name]:
        stop_t = 0 if case == "whole" else int(case.rpartition(" ")[2])
        shown = reference.decode(content(name, version), network, stop_t, "x0")
        head = f"{shown.pixels.shape} {shown.t} {shown.exact} ".encode()
        found[case] = hashlib.sha256(head + shown.pixels.tobytes()).hexdigest()[:16]
    assert found == KNOWN[version][name]


@pytest.mark.parametrize("version", sorted(KNOWN))
@pytest.mark.parametrize("name", sorted(kinds()))
def test_transparency_and_metadata(  # type: ignore[no-untyped-def]
    reference: ModuleType, network, name: str, version: int
) -> None:
    picture = kinds()[name]
    shown = reference.decode(content(name, version), network)
    assert shown.exact
    expected = to_array(picture.levels, picture.grey and not picture.planes, picture.alpha)
    np.testing.assert_array_equal(shown.pixels, expected)
    metadata = picture.metadata
    assert shown.metadata.get(2, b"") == metadata.icc
    assert shown.metadata.get(4, b"") == metadata.exif
    assert shown.metadata.get(5, b"") == metadata.xmp


CUT = ["colour", "grey", "strips", "alpha", "mirrored"]
CUT += ["adaptive", "adaptive-around", "mirrored-last"]


@pytest.mark.parametrize(
    ("version", "name"),
    list(product(sorted(KNOWN), CUT)),
)
def test_cut_files(  # type: ignore[no-untyped-def]
    reference: ModuleType, network, golden: Model, name: str, version: int
) -> None:
    """Cut anywhere, also inside steps and strips: the picture of appendix A."""
    data = content(name, version)
    shortest = len(diffcodec.truncate(data, stop_t=1000, model=golden))
    sizes = np.random.default_rng(len(data)).integers(shortest, len(data), 4)
    for size in [shortest, *sizes.tolist(), len(data) - 1]:
        shown = reference.decode(data[:size], network)
        expected = diffcodec.decode(data[:size], model=golden)
        assert (shown.t, shown.exact) == (expected.t, expected.exact), size
        np.testing.assert_array_equal(shown.pixels, expected.pixels, f"{size} bytes")


def test_damage_is_refused_by_both(reference: ModuleType, network, golden: Model) -> None:  # type: ignore[no-untyped-def]
    """Or, where a byte has no meaning, by neither, and then the picture is the same."""
    data = content("letters")
    rng = np.random.default_rng(5)
    refused = 0
    for place in rng.choice(len(data), 16, replace=False).tolist():
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(rng.integers(8))
        try:
            expected = diffcodec.decode(bytes(damaged), model=golden).pixels
        except diffcodec.DiffcodecError:
            refused += 1
            with pytest.raises(reference.RefusedError):
                reference.decode(bytes(damaged), network)
        else:
            shown = reference.decode(bytes(damaged), network)
            np.testing.assert_array_equal(shown.pixels, expected)
    assert refused >= 10


@pytest.mark.parametrize(
    ("name", "suffix"), [("noise", ".ppm"), ("grey", ".pgm"), ("alpha", ".npy")]
)
def test_the_program(tmp_path: Path, golden: Model, name: str, suffix: str) -> None:
    target = tmp_path / f"out{suffix}"
    command = [PROGRAM, FOLDERS[VERSION] / f"{name}.ddc", target, "--model", GOLDEN / "model"]
    run = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    assert run.stdout.startswith(f"{target}: exact")
    pixels = diffcodec.decode(content(name), model=golden).pixels
    if suffix == ".npy":
        np.testing.assert_array_equal(np.load(target), pixels)
    else:
        height, width = pixels.shape[:2]
        head = f"P{6 if pixels.ndim == 3 else 5}\n{width} {height}\n255\n".encode()
        assert target.read_bytes() == head + pixels.tobytes()
