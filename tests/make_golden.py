"""Write tests/golden: a small exact model, and for this version of the format files made with it
and digests of what they decode to.

    python tests/make_golden.py

It adds what is missing and changes nothing else: these files must decode to the same pixels for
ever.  What an encoder writes is its own business, so files are not compared.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from conftest import SHORT_PLAN, converted, load_picture, write_tiny_model
from numpy.typing import NDArray

import diffcodec
from diffcodec.calibrate import exact_tensors
from diffcodec.container import VERSION
from diffcodec.image import Metadata, Picture, from_array, orientation_exif
from diffcodec.model import EXACT, Model, read_model, save_exact
from diffcodec.plans import PLANS

GOLDEN = Path(__file__).parent / "golden"
FOLDERS = {version: GOLDEN / f"version-{version}" for version in (VERSION,)}
STOPS = (680, 180, 40, 6, 1)


def make_model(folder: Path) -> Model:
    """Random weights, everything that would start at zero included, and their integers."""
    write_tiny_model(folder, seed=20, name="golden")
    (folder / EXACT).unlink(missing_ok=True)
    bird = load_picture("budgerigar-32.png").transpose(2, 0, 1)
    images = np.stack([bird, bird[:, :, ::-1], 255 - bird, bird[:, ::-1]])
    model = read_model(folder)
    save_exact(folder, model.config, exact_tensors(model, images, seed=0))
    return read_model(folder)


def pictures() -> dict[str, tuple[NDArray[np.uint8], dict[str, object]]]:
    """Name → (pixels, options of the encoder): between them they use all of the format."""
    rng = np.random.default_rng(4)
    bird = load_picture("budgerigar-32.png")
    y, x = np.mgrid[:70, :90]
    slope = np.stack([3 * x + 5 * y, 255 - 2 * x, (x * y) // 9], axis=2) % 256
    letters = np.full((13, 21, 3), 255, np.uint8)
    letters[2:11, 3:5] = letters[2:4, 3:12] = letters[9:11, 14:19] = 0
    return {
        "colour": (bird, {}),
        "grey": (bird[:19, :27].mean(axis=2).astype(np.uint8), {"seed": 77}),
        "noise": (rng.integers(0, 256, (11, 16, 3), dtype=np.uint8), {"plan": SHORT_PLAN}),
        "strips": (slope.astype(np.uint8), {"plan": SHORT_PLAN, "seed": (1 << 32) - 1}),
        "letters": (letters, {}),
        "mirrored": (bird[5:26, 3:16], {"plan": PLANS[7]}),
        "mirrored-last": (bird[2:19, 9:30], {"plan": PLANS[13], "seed": 5}),
        "adaptive": (slope[:67, :89].astype(np.uint8), {"plan": PLANS[11], "seed": 3}),
        "adaptive-around": (slope[:83, :71].astype(np.uint8), {"plan": PLANS[16], "seed": 9}),
        "lessons": (slope[:69, 4:81].astype(np.uint8), {"plan": PLANS[24], "seed": 2}),
        "lessons-grey": (slope[:66, :70, 1].astype(np.uint8), {"plan": PLANS[25], "seed": 4}),
        "lattice": (converted(65, 64), {"plan": PLANS[24], "seed": 6}),
        "pixel": (np.array([[[1, 128, 254]]], np.uint8), {}),
    }


def kinds() -> dict[str, Picture]:
    """Name → a picture with transparency or metadata; between them they use all of the format."""
    y, x = np.mgrid[:24, :30]
    shade = (6 * x + 4 * y).astype(np.uint8)
    soft = np.clip(300 - 12 * np.hypot(x - 9, y - 7), 0, 255).astype(np.uint8)
    mask = np.where(np.hypot(x - 15, y - 12) < 9, 255, 0).astype(np.uint8)
    exif = orientation_exif(6)
    metadata = Metadata(b"a colour profile", exif, "<x>é</x>".encode())
    return {
        "alpha": from_array(np.dstack([shade, 255 - shade, soft // 2, soft])),
        "alpha-mask": replace(from_array(np.dstack([shade, mask])), metadata=Metadata(exif=exif)),
        "alpha-planes": replace(
            from_array(np.dstack([shade, shade, shade, np.full_like(shade, 99)])),
            metadata=metadata,
        ),
        "planes": from_array(np.dstack([shade] * 3)),
    }


def digest(decoded: diffcodec.Decoded) -> str:
    """SHA-256 of a decoded picture's shape, timestep and pixels, 16 digits of it."""
    head = f"{decoded.pixels.shape} {decoded.t} {decoded.exact} ".encode()
    return hashlib.sha256(head + decoded.pixels.tobytes()).hexdigest()[:16]


def digests(content: bytes, model: Model) -> dict[str, str]:
    """Digests of the whole file and, by x̂_0, of the states on the way.

    What else a decoder shows of a file that is cut is its own choice and may get better.
    """
    found = {"whole": digest(diffcodec.decode(content, model=model))}
    for t in STOPS:
        shown = diffcodec.decode(content, model=model, stop_t=t, recon="x0")
        found[f"stop at {t}"] = digest(shown)
    return found


def main() -> None:
    folder = GOLDEN / "model"
    model = read_model(folder) if folder.exists() else make_model(folder)
    own = FOLDERS[VERSION]
    own.mkdir(exist_ok=True)
    digest_path = own / "digests.json"
    known = json.loads(digest_path.read_text()) if digest_path.exists() else {}
    for name, (pixels, options) in pictures().items():
        if name not in known:
            content = diffcodec.encode(pixels, model=model, effort=2, **options)  # type: ignore[arg-type]
            assert np.array_equal(diffcodec.decode(content, model=model).pixels, pixels)
            (own / f"{name}.ddc").write_bytes(content)
            known[name] = digests(content, model)
    digest_path.write_text(json.dumps(known, indent=2) + "\n")
    for name, picture in kinds().items():
        path = own / f"{name}.ddc"
        if not path.exists():
            path.write_bytes(diffcodec.encode(picture, model=model, effort=2))
    print(f"{own}: {len(known) + len(kinds())} files, model {model.fingerprint.hex()}")


if __name__ == "__main__":
    main()
