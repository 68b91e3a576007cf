"""Encode two pictures, cut the files, decode every cut, check the whole ones: `make demo`.

Everything it writes goes to ./demo-output.  Exit code 1 if a whole file does not decode to
exactly the pixels that were encoded.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

import diffcodec
from diffcodec.evaluate import psnr
from diffcodec.files import write_bytes
from diffcodec.image import image_bytes

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"
OUT = Path("demo-output")
PICTURES = {"kitten-64": 5, "budgerigar": 2}
"""Name and effort; the larger picture takes less effort, to keep the demonstration short."""

RATES = (0.25, 0.5, 1.0, 2.0)
"""bpp at which the files are cut."""


def show(name: str, effort: int) -> bool:
    """Encode, cut, decode and print one picture; whether the whole file decodes exactly."""
    pixels = np.asarray(Image.open(DATA / f"{name}.png").convert("RGB"))
    area = pixels.shape[0] * pixels.shape[1]
    write_bytes(OUT / f"{name}-original.png", image_bytes(pixels, ".png"))

    begun = time.perf_counter()
    whole = diffcodec.encode(pixels, effort=effort)
    seconds = time.perf_counter() - begun
    print(f"\n{name}: {pixels.shape[1]}x{pixels.shape[0]}, encoded in {seconds:.1f} s")
    print(f"{'bytes':>8}  {'bpp':>7}  {'PSNR dB':>7}  {'decoded':>8}  file")

    exact = False
    sizes = [int(rate * area / 8) for rate in RATES]
    labels = [f"{rate:g}bpp" for rate in RATES]
    cuts = [(s, label) for s, label in zip(sizes, labels, strict=True) if s < len(whole)]
    for size, label in [*cuts, (len(whole), "whole")]:
        content = diffcodec.truncate(whole, max_bytes=size)
        target = OUT / f"{name}-{label}.ddc"
        write_bytes(target, content)
        begun = time.perf_counter()
        decoded = diffcodec.decode(content)
        seconds = time.perf_counter() - begun
        picture = target.with_suffix(".png")
        write_bytes(picture, image_bytes(decoded.pixels, ".png"))
        exact = decoded.exact and np.array_equal(decoded.pixels, pixels)
        quality = "exact" if exact else f"{psnr(decoded.pixels, pixels):.2f}"
        print(f"{size:8d}  {8 * size / area:7.3f}  {quality:>7}  {seconds:6.1f} s  {picture}")
    return bool(exact)


def main() -> int:
    """Run the demonstration; returns the exit code."""
    OUT.mkdir(exist_ok=True)
    exact = [show(name, effort) for name, effort in PICTURES.items()]
    print(f"\nThe pictures and the .ddc files are in {OUT.resolve()}")
    if not all(exact):
        print("demo: a whole file did not decode to the original", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
