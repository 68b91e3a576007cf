"""Decode one set of files under many configurations and compare every pixel.

    python tools/check_determinism.py --data test_first5000.webp --limit 200

The files are written once, by this process.  Every configuration then runs in a process of its
own: thread counts, instruction sets oneDNN may use, oneDNN off, denormals flushed, a float64
reference of the same integers.  The digest of all decoded pixels,
whole and stopped early, must be the same everywhere; the exit code is 1 otherwise.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import torch
import torch.nn.functional as F

import diffcodec
from diffcodec.data import load_images
from diffcodec.exact import ExactNetwork

CONFIGURATIONS: dict[str, dict[str, str]] = {
    "2 threads": {"THREADS": "2"},
    "1 thread": {"THREADS": "1"},
    "SSE4.1": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "AVX-512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "oneDNN off": {"ONEDNN": "off"},
    "denormals flushed": {"FLUSH": "on"},
    "float64 reference": {"REFERENCE": "on"},
}


def _float64_convolution(network: ExactNetwork, a: torch.Tensor, name: str) -> torch.Tensor:
    weight = network.weights[name].double()
    return F.conv2d(a.double(), weight, padding=weight.shape[-1] // 2).float()


def work(folder: Path, stops: list[int]) -> dict[str, str]:
    """Decode all files of ``folder`` under this process's configuration: digests per stop."""
    torch.set_num_threads(int(os.environ.get("THREADS", "2")))
    torch.backends.mkldnn.enabled = os.environ.get("ONEDNN") != "off"  # type: ignore[assignment]
    torch.set_flush_denormal(os.environ.get("FLUSH") == "on")
    if os.environ.get("REFERENCE") == "on":
        ExactNetwork._conv = _float64_convolution  # type: ignore[method-assign]
    digests = {}
    for stop in stops:
        digest = hashlib.sha256()
        for path in sorted(folder.glob("*.ddc")):
            shown = diffcodec.decode(path.read_bytes(), stop_t=stop)
            digest.update(shown.pixels.tobytes() + bytes([shown.exact]))
        digests[f"t = {stop}"] = digest.hexdigest()[:16]
    return digests


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--limit", default=20, show_default=True)
@click.option("--effort", default=1, show_default=True)
@click.option("--stop", "stops", type=int, multiple=True, default=(0, 1, 20, 150))
@click.option("--worker", type=click.Path(path_type=Path), hidden=True)
def main(data: Path, limit: int, effort: int, stops: tuple[int, ...], worker: Path | None) -> None:
    """Print digests per configuration and the number of configurations that differ."""
    if worker:
        click.echo(json.dumps(work(worker, list(stops))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for k, content in enumerate(
            diffcodec.encode_batch(load_images([data])[:limit], effort=effort)
        ):
            (folder / f"{k:05d}.ddc").write_bytes(content)
        found = {}
        for label, settings in CONFIGURATIONS.items():
            command = [sys.executable, __file__, "--data", str(data), "--worker", str(folder)]
            command += [part for stop in stops for part in ("--stop", str(stop))]
            done = subprocess.run(
                command, env={**os.environ, **settings}, capture_output=True, text=True, check=True
            )
            found[label] = json.loads(done.stdout.splitlines()[-1])
            click.echo(f"{label:18s} " + "  ".join(f"{k}: {v}" for k, v in found[label].items()))
    mismatches = sum(result != found["2 threads"] for result in found.values())
    click.echo(f"{mismatches} of {len(found)} configurations differ")
    sys.exit(mismatches > 0)


if __name__ == "__main__":
    main()
