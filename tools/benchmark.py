"""Every figure of the README's results, in one command that can be stopped and started again.

    python tools/benchmark.py --cifar10 test_first5000.webp --kodak kodak/ -o benchmark
    python tools/benchmark.py --cifar10 test_first5000.webp --kodak kodak/ -o quick --quick

A picture's figures are a line of OUT/<part>.jsonl, written when it is done; what is there with the
same settings is not measured again.  At the end come OUT/results.json and, with matplotlib, the
plots: rate and distortion of real files beside the paper's Table 4 and our model's ideal, and
photographs beside other formats.  Without --quick this takes hours.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image
from tqdm import tqdm

from diffcodec import load_model
from diffcodec.data import load_images
from diffcodec.errors import DataError
from diffcodec.evaluate import evaluate_picture, finite, to_dict
from diffcodec.files import make_folder, write_bytes
from diffcodec.peers import PEERS, U8, Entry, embedded_jpeg_2000, lossless_entry, lossy_entry
from diffcodec.quality import psnr
from diffcodec.versions import versions

PAPER_TABLE_4 = ((1.776, 0.951), (0.120, 12.0), (0.054, 18.5), (0.029, 24.4))
"""(bits/dim, RMSE in levels) of Ho et al. 2020 on CIFAR-10's test set: a bound, not bytes."""

ONE_FILE = "JPEG 2000, one file"
EMBEDDED = ("diffcodec", ONE_FILE)
"""One file for all rates; of the others there is a file for each."""


@dataclass(frozen=True)
class Part:
    """Pictures that are measured alike.

    count: pictures; ideal: so many of them also on the ideal channel; rates: bpp; peers: whether
    other formats are measured too.
    """

    name: str
    data: str
    model: str
    effort: int
    count: int
    rates: tuple[float, ...]
    ideal: int = 0
    peers: bool = True


SMALL_RATES = (0.1, 0.15, 0.25, 0.5, 0.75, 1.25, 2.0, 3.0, 5.0, 8.0)
PHOTO_RATES = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
PARTS = (
    Part("small", "cifar10", "cifar10", 5, 200, SMALL_RATES, ideal=32),
    Part("photos", "kodak", "photo", 4, 24, PHOTO_RATES),
    Part("small-other-model", "cifar10", "photo", 5, 16, (), peers=False),
    Part("photos-other-model", "kodak", "cifar10", 4, 2, (), peers=False),
    Part("budgerigar", "budgerigar", "photo", 4, 1, (), peers=False),
    Part("budgerigar-other-model", "budgerigar", "cifar10", 4, 1, (), peers=False),
)
QUICK = {"small": 8, "photos": 1, "small-other-model": 4}
"""Pictures of each part with --quick; none of the other parts."""

BUDGERIGAR = Path(__file__).resolve().parent.parent / "tests" / "data" / "budgerigar.png"


def peers_of(pixels: U8, rates: tuple[float, ...]) -> dict[str, Any]:
    """Bytes of exact files and PSNR at each rate (bpp) of every format; None where it has none."""
    image, area = Image.fromarray(pixels), pixels.shape[0] * pixels.shape[1]
    found: dict[str, Any] = {}
    for peer in PEERS:
        if peer.missing():
            continue
        exact = _or_none(lossless_entry, peer, image)
        files = {rate: _or_none(lossy_entry, peer, image, int(rate * area / 8)) for rate in rates}
        found[peer.name] = {
            "bytes": exact.size if exact else None,
            "psnr_at_bpp": {
                f"{rate:g}": psnr(file.shown, pixels) if file else None
                for rate, file in files.items()
            },
        }
    whole, parts = embedded_jpeg_2000(image, list(rates))
    curve = {f"{rate:g}": psnr(part, pixels) for rate, part in zip(rates, parts, strict=True)}
    found[ONE_FILE] = {"bytes": len(whole), "psnr_at_bpp": curve}
    return found


def _or_none(write: Callable[..., Entry | None], *arguments: Any) -> Entry | None:
    """An entry, None also if the format cannot be written."""
    try:
        return write(*arguments)
    except DataError as e:
        click.echo(str(e), err=True)
        return None


def settings_of(part: Part, number: int, pixels: U8) -> str:
    """A digest of all that a picture's figures depend on."""
    model = load_model(part.model).fingerprint.hex()
    ideal, names = number < part.ideal, [p.name for p in PEERS if not p.missing()]
    facts = [model, part.effort, part.rates, ideal, names if part.peers else [], versions()]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    digest.update(pixels.tobytes())
    return digest.hexdigest()[:16]


def measure(part: Part, number: int, pixels: U8) -> dict[str, Any]:
    """All figures of one picture, as JSON can hold them."""
    model = load_model(part.model)
    report = evaluate_picture(
        str(number),
        pixels,
        model,
        effort=part.effort,
        rates=part.rates,
        ideal=number < part.ideal,
    )
    row = {"settings": settings_of(part, number, pixels), "picture": number}
    row |= {"values": int(pixels.size), "area": report.area, "report": to_dict(report)}
    if part.peers:
        row["peers"] = peers_of(pixels, part.rates)
    return finite(row)


def rows_of(part: Part, pictures: list[U8], out: Path) -> list[dict[str, Any]]:
    """The rows of a part: those that its file has, and the others as they are measured."""
    path = out / f"{part.name}.jsonl"
    known = {row["settings"]: row for row in _read(path)}
    broken = path.exists() and not path.read_bytes().endswith(b"\n")
    rows = []
    with path.open("a", encoding="utf-8") as stream:
        stream.write("\n" if broken else "")  # what follows must not join half a line
        for number, pixels in enumerate(tqdm(pictures[: part.count], desc=part.name)):
            row = known.get(settings_of(part, number, pixels))
            if row is None:
                row = measure(part, number, pixels)
                stream.write(json.dumps(row) + "\n")
                stream.flush()
            rows.append(row)
    return rows


def _read(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file; the last may be half written."""
    if path.exists():
        for line in filter(None, path.read_text("utf-8").splitlines()):
            try:
                yield json.loads(line)
            except ValueError:
                click.echo(f"{path}: a line is not whole and left aside", err=True)


def _mean(values: list[Any]) -> float | None:
    """Mean, or None if a value is missing: a mean over some pictures would flatter."""
    return None if not values or None in values else float(np.mean(values))


def summary(part: Part, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What a table says of a part."""
    reports = [row["report"] for row in rows]
    ideal = [r for r in reports if r["ideal_bpd"] is not None]
    layers = [layer for r in ideal for layer in r["layers"][:-1]]
    codecs: dict[str, dict[str, Any]] = {
        "diffcodec": _codec([(r["bytes"], r["psnr_at_bpp"]) for r in reports], rows, part.rates)
    }
    for name in rows[0].get("peers", {}):
        peer = [(row["peers"][name]["bytes"], row["peers"][name]["psnr_at_bpp"]) for row in rows]
        codecs[name] = _codec(peer, rows, part.rates)

    def per_megapixel(key: str) -> float | None:
        found = [r[key] / (r["width"] * r["height"]) for r in reports if r[key] is not None]
        return 1e6 * float(np.median(found)) if found else None

    return {
        "pictures": len(rows),
        "exact": sum(r["exact"] for r in reports),
        "model": part.model,
        "effort": part.effort,
        "bytes": _mean([r["bytes"] for r in reports]),
        "codecs": codecs,
        "ideal_pictures": len(ideal),
        "ideal_bpd": _mean([r["ideal_bpd"] for r in ideal]),
        "step_overhead": sum(x["real_bits"] for x in layers) / sum(x["ideal_bits"] for x in layers)
        if layers
        else None,
        "evaluations": _mean([r["evaluations"] for r in reports]),
        "header_and_framing": _mean([r["header_and_framing"] for r in reports]),
        "encode_seconds": float(np.median([r["encode_seconds"] for r in reports])),
        "decode_seconds": float(np.median([r["decode_seconds"] for r in reports])),
        "encode_seconds_per_megapixel": per_megapixel("encode_seconds"),
        "decode_seconds_per_megapixel": per_megapixel("decode_seconds"),
        "preview_seconds_per_megapixel": per_megapixel("preview_seconds"),
        "ideal_curve": ideal_curve(rows),
    }


def _codec(
    files: list[tuple[int | None, dict[str, float]]],
    rows: list[dict[str, Any]],
    rates: tuple[float, ...],
) -> dict[str, Any]:
    """Mean bits per value of exact files; mean PSNR and root of the mean squared error by bpp."""
    sizes = [
        None if size is None else 8 * size / row["values"]
        for (size, _), row in zip(files, rows, strict=True)
    ]
    quality = {f"{rate:g}": [curve.get(f"{rate:g}") for _, curve in files] for rate in rates}
    return {
        "bpd": _mean(sizes),
        "psnr_at_bpp": {rate: _mean(found) for rate, found in quality.items()},
        "rmse_at_bpp": {rate: _rmse(found) for rate, found in quality.items()},
    }


def _rmse(psnrs: list[Any]) -> float | None:
    """RMSE in levels over all pictures (of equal size) with these PSNR."""
    mean = _mean([None if p is None else 255.0**2 / 10 ** (p / 10) for p in psnrs])
    return None if mean is None else math.sqrt(mean)


def ideal_curve(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Bits per value and RMSE after each step on the ideal channel's own path: no real bytes."""
    found = [row for row in rows if row["report"]["ideal_bpd"] is not None]
    if not found:
        return []
    layers = [row["report"]["layers"][:-1] for row in found]
    values = np.array([row["values"] for row in found])
    bits = np.cumsum([[x["ideal_bits"] for x in picture] for picture in layers], axis=1)
    errors = np.square([[x["ideal_rmse"] for x in picture] for picture in layers])
    bpd, rmse = (bits / values[:, None]).mean(axis=0), np.sqrt(errors.mean(axis=0))
    return [{"bpd": float(b), "rmse": float(e)} for b, e in zip(bpd, rmse, strict=True)]


def _style(name: str) -> dict[str, Any]:
    if name == "diffcodec":
        return {"linewidth": 2.5, "markersize": 6, "color": "black"}
    return {"linewidth": 1.0, "markersize": 3}


def plot_small(result: dict[str, Any], path: Path) -> None:
    """Rate and distortion as in the paper: bounds without bytes are hollow, files are filled."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
    for name, codec in result["codecs"].items():
        curve = [(float(r) / 3, e) for r, e in codec["rmse_at_bpp"].items() if e is not None]
        if curve:
            style = _style(name)
            label = f"{name}: real files" + (", one file cut" if name in EMBEDDED else "")
            axes.plot(*zip(*curve, strict=True), "o-", label=label, **style)
    if ideal := result["ideal_curve"]:
        points = [(p["bpd"], p["rmse"]) for p in ideal if p["bpd"] > 0.003]
        label = f"our model's ideal channel, {result['ideal_pictures']} pictures: no bytes"
        axes.plot(
            *zip(*points, strict=True), "s--", color="black", markerfacecolor="white", label=label
        )
    label = "Ho et al. 2020, Table 4: a bound, no bytes"
    axes.plot(*zip(*PAPER_TABLE_4, strict=True), "D", color="tab:red", mfc="white", label=label)
    axes.set(xscale="log", yscale="log", xlabel="bits per value", ylabel="RMSE, levels of 0–255")
    axes.set_title(f"CIFAR-10 test pictures: {result['pictures']}, one file each, headers counted")
    axes.grid(which="both", alpha=0.2)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_photos(result: dict[str, Any], path: Path) -> None:
    """PSNR over bpp."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
    for name, codec in result["codecs"].items():
        curve = [(float(r), p) for r, p in codec["psnr_at_bpp"].items() if p is not None]
        if curve:
            label = name + (": one file, cut" if name == "diffcodec" else "")
            axes.plot(*zip(*curve, strict=True), "o-", label=label, **_style(name))
    axes.set(xscale="log", xlabel="bits per pixel", ylabel="PSNR, dB")
    axes.set_title(f"Photographs: {result['pictures']}, mean PSNR of real files")
    axes.grid(which="both", alpha=0.2)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def show(name: str, result: dict[str, Any]) -> None:
    """Print a part as tables for a README."""
    rates = list(result["codecs"]["diffcodec"]["psnr_at_bpp"])
    heads = ["lossless, bpd", *(f"dB at {rate} bpp" for rate in rates)]
    click.echo(f"\n{name}: {result['pictures']} pictures, {result['exact']} exact round trips")
    click.echo("| | " + " | ".join(heads) + " |\n" + "|---" * (len(heads) + 1) + "|")
    for codec, found in result["codecs"].items():
        size = "–" if found["bpd"] is None else f"{found['bpd']:.3f}"
        cells = ["–" if p is None else f"{p:.1f}" for p in found["psnr_at_bpp"].values()]
        click.echo(f"| {codec} | " + " | ".join([size, *cells]) + " |")
    skipped = {"codecs", "pictures", "exact", "ideal_curve"}
    for key, value in result.items():
        if key not in skipped and value is not None:
            text = f"{value:.6g}" if isinstance(value, float) else str(value)
            click.echo(f"{key.replace('_', ' ')}: {text}")


@click.command()
@click.option("--cifar10", type=click.Path(path_type=Path), help="CIFAR-10's test pictures.")
@click.option("--kodak", type=click.Path(path_type=Path), help="The Kodak set.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="A folder.")
@click.option("--quick", is_flag=True, help="A few pictures: minutes instead of hours.")
@click.option("--limit", type=click.IntRange(1), help="At most so many pictures of each part.")
def main(
    cifar10: Path | None, kodak: Path | None, out: Path, quick: bool, limit: int | None
) -> None:
    """Measure all parts whose pictures are given."""
    make_folder(out)
    given = {"cifar10": cifar10, "kodak": kodak}
    data = {name: load_images([path]) for name, path in given.items() if path}
    if not data:
        raise click.UsageError("give --cifar10, --kodak or both")
    data["budgerigar"] = load_images([BUDGERIGAR])
    results: dict[str, Any] = {"versions": versions(), "parts": {}}
    for part in PARTS:
        pictures = data.get(part.data, [])[: QUICK.get(part.name, 0) if quick else None][:limit]
        if not pictures:
            continue
        # Compilation of the search and of the tables is no part of any picture's time.
        evaluate_picture("warm-up", pictures[0][:16, :16], load_model(part.model), effort=1)
        results["parts"][part.name] = summary(part, rows_of(part, pictures, out))
    write_bytes(out / "results.json", (json.dumps(finite(results), indent=1) + "\n").encode())
    for name, result in results["parts"].items():
        show(name, result)
    if find_spec("matplotlib") is None:
        click.echo("no plots: pip install 'diffcodec[plots]'", err=True)
        return
    for name, plot in (("small", plot_small), ("photos", plot_photos)):
        if name in results["parts"]:
            plot(results["parts"][name], out / f"{name}.png")
            click.echo(f"{out / name}.png")


if __name__ == "__main__":
    main()
