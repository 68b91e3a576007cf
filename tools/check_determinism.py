"""Decode one set of files under many configurations and compare every pixel.

    python tools/check_determinism.py --data test_first5000.webp --limit 200

The files are written once, by this process.  Every configuration then runs in a process of its
own: thread counts, instruction sets (with and without those for 16-bit integers), oneDNN off,
denormals flushed, a float64 reference of the same integers, the network in torch's operations (as
on a GPU) here and on a GPU if there is one, many pictures at a time, pictures in tiles.  Every
decoded picture, whole and stopped early, must be the same everywhere; the exit code is 1 otherwise.
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F

import diffcodec
from diffcodec.convolution import BORDER, I16, I32, Conv2d
from diffcodec.data import load_images
from diffcodec.exact import Integers
from diffcodec.model import Model
from diffcodec.simd import target_has

AVX2, AVX512 = "+avx,+avx2,+fma", "+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512cd"
PLAIN = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": ""}
CONFIGURATIONS: dict[str, dict[str, str]] = {
    "2 threads": {"THREADS": "2"},
    "1 thread": {"THREADS": "1"},
    "denormals flushed": {"FLUSH": "on"},
    "float64 reference": {"REFERENCE": "on"},
    "torch's operations": {"DEVICE": "cpu:0"},
    "batches of 16": {"BATCH": "16"},
    "in four tiles": {"TILES": "on"},
}
if target_has("avx512bw"):
    CONFIGURATIONS["AVX-512"] = {
        "NUMBA_CPU_NAME": "skylake-avx512",
        "NUMBA_CPU_FEATURES": f"{AVX2},{AVX512}",
    }
if target_has("avx2"):
    CONFIGURATIONS |= {
        "AVX2": {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": AVX2},
        "neither": PLAIN,
        "neither, SSE4.1 in oneDNN": {**PLAIN, "ONEDNN_MAX_CPU_ISA": "SSE41"},
        "neither, oneDNN off": {**PLAIN, "ONEDNN": "off"},
    }
if torch.cuda.is_available():
    CONFIGURATIONS["CUDA"] = {"DEVICE": "cuda"}


def _float64(convolution: Conv2d, a: I16) -> I32:
    """The sums of rows of a map, in double precision."""
    weight = torch.from_numpy(convolution.weight)
    inset = BORDER - weight.shape[-1] // 2
    inside = a[inset : a.shape[0] - inset, inset : a.shape[1] - inset, : weight.shape[1]]
    x = torch.from_numpy(inside).permute(2, 0, 1)[None].double()
    found = F.conv2d(x, weight.double())[0]
    return found.permute(1, 2, 0).to(torch.int32).contiguous().numpy()


def _in_tiles() -> Callable[..., Integers]:
    """Every picture of more than 8 pixels in two or four tiles."""
    whole = Model.evaluate

    def evaluate(model: Model, x: torch.Tensor, t: int, **named: Any) -> Integers:
        half = -(-max(x.shape[1:]) // 16) * 8
        return whole(model, x, t, tile=half, **named)

    return evaluate


def configure() -> None:
    """Bring this process into the configuration its environment describes."""
    torch.set_num_threads(int(os.environ.get("THREADS", "2")))
    torch.backends.mkldnn.enabled = os.environ.get("ONEDNN") != "off"  # type: ignore[assignment]
    torch.set_flush_denormal(os.environ.get("FLUSH") == "on")
    if os.environ.get("REFERENCE") == "on":
        Conv2d._sums = _float64  # type: ignore[method-assign]
    if os.environ.get("TILES") == "on":
        Model.evaluate = _in_tiles()  # type: ignore[method-assign]


def work(folder: Path, stops: list[int]) -> dict[str, list[str]]:
    """Decode all files of ``folder`` under this process's configuration: digests per stop."""
    configure()
    contents = [path.read_bytes() for path in sorted(folder.glob("*.ddc"))]
    size, device = int(os.environ.get("BATCH", "1")), os.environ.get("DEVICE")
    digests: dict[str, list[str]] = {}
    for stop in stops:
        found = digests.setdefault(f"t = {stop}", [])
        for first in range(0, len(contents), size):
            part = contents[first : first + size]
            for shown in diffcodec.decode_batch(part, stop_t=stop, device=device):
                content = shown.pixels.tobytes() + bytes([shown.exact])
                found.append(hashlib.sha256(content).hexdigest()[:16])
    return digests


def mismatches(found: dict[str, list[str]], expected: dict[str, list[str]]) -> dict[str, int]:
    """Pictures that differ, per stop."""
    return {k: sum(map(operator.ne, found[k], v)) for k, v in expected.items()}


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--limit", default=20, show_default=True)
@click.option("--effort", default=1, show_default=True)
@click.option("--stop", "stops", type=int, multiple=True, default=(0, 1, 20, 150))
@click.option("--worker", type=click.Path(path_type=Path), hidden=True)
def main(data: Path, limit: int, effort: int, stops: tuple[int, ...], worker: Path | None) -> None:
    """Print, per configuration, how many pictures differ from those of the first one."""
    if worker:
        click.echo(json.dumps(work(worker, list(stops))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for k, content in enumerate(
            diffcodec.encode_batch(load_images([data])[:limit], effort=effort)
        ):
            (folder / f"{k:05d}.ddc").write_bytes(content)
        expected: dict[str, list[str]] = {}
        total = 0
        for label, settings in CONFIGURATIONS.items():
            command = [sys.executable, __file__, "--data", str(data), "--worker", str(folder)]
            command += [part for stop in stops for part in ("--stop", str(stop))]
            done = subprocess.run(
                command, env={**os.environ, **settings}, capture_output=True, text=True, check=True
            )
            found = json.loads(done.stdout.splitlines()[-1])
            expected = expected or found
            counts = mismatches(found, expected)
            total += sum(counts.values())
            click.echo(f"{label:18s} " + "  ".join(f"{k}: {n} differ" for k, n in counts.items()))
    click.echo(f"{total} mismatches, {len(CONFIGURATIONS)} configurations, {limit} pictures")
    sys.exit(total > 0)


if __name__ == "__main__":
    main()
