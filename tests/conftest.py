"""Shared fixtures: a tiny random model, the shipped model, test pictures, the round trip."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

import diffcodec
from diffcodec.exact import Integers
from diffcodec.model import Model, ModelConfig, read_model, save_model
from diffcodec.network import CodecUNet, NetworkConfig
from diffcodec.plans import Plan
from diffcodec.schedule import Schedule

# The same examples in every run: a failure anywhere is a failure everywhere.
settings.register_profile(
    "diffcodec",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=20,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("diffcodec")

_AVX2 = "+avx,+avx2,+fma"
MACHINES = {
    "neither": ("x86-64", ""),
    "avx2": ("haswell", _AVX2),
    "avx512bw": (
        "skylake-avx512",
        f"{_AVX2},+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512cd",
    ),
}
"""Processors by the best instructions they have, as numba is told of them: name and features."""
DATA = Path(__file__).parent / "data"
GOLDEN_MODEL = Path(__file__).parent / "golden" / "model"
TINY = NetworkConfig(channels=(16, 16, 16), blocks=(1, 1, 1), embedding=32)
SHORT_PLAN = Plan((680, 180, 40, 6, 1), 133, 2)
"""A plan of few steps, written out in the header, for tests that need many files."""


def write_tiny_model(
    folder: Path,
    seed: int,
    schedule: Schedule | None = None,
    head_std: float = 0.05,
    name: str | None = None,
) -> None:
    """A model with random weights; what starts at zero is random too, so that heads speak."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = CodecUNet(TINY)
        with torch.no_grad():
            for parameter in network.parameters():
                if not parameter.any():
                    parameter.normal_(std=head_std)
    folder.mkdir(parents=True, exist_ok=True)
    config = ModelConfig(name or f"tiny{seed}", TINY, schedule or Schedule())
    save_model(folder, config, network.state_dict())


def output_with(program: str, machine: str = "") -> list[str]:
    """The lines that a Python program prints on this machine or, as far as numba's compiled loops
    go, on one of MACHINES; it can import the tests."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_CPU")}
    env["PYTHONPATH"] = str(Path(__file__).parent)
    if machine:
        env |= dict(zip(("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"), MACHINES[machine], strict=True))
    run = subprocess.run(
        [sys.executable, "-c", program], env=env, check=True, capture_output=True, text=True
    )
    return run.stdout.splitlines()


def round_trip(pixels: np.ndarray, model: Model, **options: object) -> bytes:
    """Encode, decode, require equality bit for bit, and return the file."""
    options.setdefault("effort", 1)
    content = diffcodec.encode(pixels, model=model, **options)  # type: ignore[arg-type]
    decoded = diffcodec.decode(content, model=model)
    assert decoded.exact
    assert decoded.t == 0
    assert decoded.pixels.dtype == np.uint8
    np.testing.assert_array_equal(decoded.pixels, pixels)
    return content


def same_integers(a: Integers, b: Integers) -> bool:
    """Whether two networks, or two ways to one, say the same in the same types."""
    pairs = list(zip(a, b, strict=True))
    return all(p.dtype == q.dtype and torch.equal(p, q) for p, q in pairs)


def load_picture(name: str) -> np.ndarray:
    """A picture of tests/data as uint8 [H, W, 3]."""
    with Image.open(DATA / name) as image:
        return np.asarray(image.convert("RGB"))


def converted(height: int, width: int, grain: float = 2.0, seed: int = 0) -> np.ndarray:
    """A soft picture uint8 [height, width, 3] of whole luminances and differences of colours, made
    R, G, B as JPEG files are."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    soft = 120 + 60 * np.sin(3 * x + 5 * y), 128 + 30 * np.cos(4 * x), 128 - 40 * np.sin(2 * y + x)
    luminance, blue, red = (np.rint(p + grain * rng.standard_normal(p.shape)) for p in soft)
    blue, red = blue - 128, red - 128
    green = luminance - 0.114 * 1.772 / 0.587 * blue - 0.299 * 1.402 / 0.587 * red
    levels = np.stack([luminance + 1.402 * red, green, luminance + 1.772 * blue], axis=2)
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_tiny_model(folder, seed=1)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Model:
    return read_model(tiny_folder)


@pytest.fixture(scope="session")
def shipped() -> Model:
    return diffcodec.load_model("cifar10")


@pytest.fixture(scope="session")
def bird() -> np.ndarray:
    """The 32×32 test picture."""
    return load_picture("budgerigar-32.png")


@pytest.fixture(scope="session")
def bird_file(bird: np.ndarray, shipped: Model) -> bytes:
    """The 32×32 test picture as written with the shipped model."""
    return round_trip(bird, shipped, effort=2)


@pytest.fixture(scope="session")
def exact_tiny() -> Model:
    """The model of the golden files: random weights, integer arithmetic."""
    return read_model(GOLDEN_MODEL)


@pytest.fixture
def heeds_interrupts() -> Iterator[None]:
    """SIGINT as in a terminal; programs started in the background are born ignoring it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
