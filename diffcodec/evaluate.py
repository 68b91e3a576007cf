"""Real bytes against the model's own ideal, and quality along a file.

The *ideal channel* is a chain of exact samples of q: y = d + N(0, I), each step at its
KL(q || p_θ) bits with the predicted variances, and the final layer at its exact code length.
It runs on its own path with the same model and plan.  Ideal bits and real bytes are reported
side by side and never mixed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffcodec.api import decode, encode, parse
from diffcodec.bits import decode_varint
from diffcodec.codec import SentLayer
from diffcodec.contents import settings_of
from diffcodec.errors import FormatError
from diffcodec.final_layer import ideal_bits
from diffcodec.image import Picture, from_array, to_array
from diffcodec.model import Model
from diffcodec.plans import Plan
from diffcodec.quality import psnr, rmse
from diffcodec.render import mean
from diffcodec.reverse import start
from diffcodec.steps import Cut, Final, Settings, Step, adapted, receive_step
from diffcodec.tables import Y_UNIT

PREVIEW_BPP = 0.1
"""Where the time to a first picture is measured."""

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class LayerReport:
    """One coded step or the final layer.

    t: timestep reached; noise_levels: noise of x_t in levels; real_bits: payload without
    framing; ideal_bits; noise_ratio: E[(y − d)²]; psnr, rmse: of x̂_0 after the layer;
    ideal_rmse: the same on the ideal channel's own path.
    """

    t: int
    noise_levels: float
    real_bits: int
    ideal_bits: float
    noise_ratio: float
    psnr: float
    rmse: float
    ideal_rmse: float


@dataclass(frozen=True)
class ImageReport:
    """One picture.  bytes counts the whole file; overhead: coded steps, real over ideal."""

    name: str
    width: int
    height: int
    bytes: int
    header_and_framing: int
    bpp: float
    bpd: float
    ideal_bpd: float
    step_overhead: float
    layers: list[LayerReport]
    psnr_at_bpp: dict[str, float]
    preview_seconds: float
    encode_seconds: float
    decode_seconds: float
    evaluations: int
    exact: bool

    @property
    def area(self) -> int:
        """Pixels."""
        return self.width * self.height


def ideal_chain(
    model: Model,
    picture: Picture,
    plan: Plan,
    rng: np.random.Generator,
    watch: Callable[[U8], None] | None = None,
    lattice: int = 0,
) -> list[float]:
    """Ideal bits of every step of the plan, then of the final layer (see the module).

    lattice: number of that on which the colours are known to lie (see lattice.py), 0 for none;
    watch is called with x̂_0, levels uint8 [3, H, W], after every step, on the chain's own path.
    """
    settings = Settings(plan, picture.height, picture.width, grey=picture.grey, lattice=lattice)
    model = adapted(model, settings)
    x = start(plan.timesteps[0], int(rng.integers(1 << 32)), picture.height, picture.width)
    bits: list[float] = []
    for a, b in plan.steps:
        step, total = Step(model, x, a, b, settings), 0.0
        for rows in settings.bands:
            p = step.prior(rows)
            d = p.shifts(picture.levels[:, rows])
            total += float(np.sum(p.divergence(d)))
            y = d + rng.standard_normal(d.shape)
            step.move(rows, p, np.rint(y * (1 << Y_UNIT)).astype(np.int64))
        if watch and bits:
            watch(step.shown)  # of x_a, where the step before arrived
        x = step.arrive()
        bits.append(total)
    final = Final(model, x, settings)
    if watch:
        watch(final.shown)
    total = 0.0
    for rows in settings.strips:
        own = picture.levels[:, rows].astype(np.int64)
        total += ideal_bits(own, final.distribution(rows), picture.grey, final.lessons)
    return [*bits, total]


def evaluate_picture(
    name: str,
    pixels: U8,
    model: Model,
    *,
    effort: int,
    seed: int = 0,
    rates: tuple[float, ...] = (),
    ideal: bool = True,
    ideal_seed: int = 0,
    plan: Plan | None = None,
    watch_layer: Callable[[SentLayer], None] | None = None,
) -> ImageReport:
    """Encode and decode one picture uint8 [H, W, 3] or [H, W] and report on everything.

    rates: bpp at which the one file is cut and decoded.  Without ``ideal`` what it takes to
    compare with the ideal channel is not computed and NaN.  plan: the model's own by default;
    ``watch_layer`` sees every layer as it is sent.
    """
    picture = from_array(pixels)
    sent: list[SentLayer] = []

    def keep(layer: SentLayer) -> None:
        sent.append(layer)
        if watch_layer:
            watch_layer(layer)

    started = time.perf_counter()
    content = encode(picture, model=model, effort=effort, seed=seed, plan=plan, watch=keep)
    encoded = time.perf_counter()
    decoded = decode(content, model=model)
    finished = time.perf_counter()
    area = picture.width * picture.height
    preview = _preview_seconds(content, int(PREVIEW_BPP * area / 8), model)
    contents = parse(content, model)
    plan = contents.header.plan
    bound, errors = [math.nan] * (len(plan.steps) + 1), [math.nan] * len(plan.steps)
    if ideal:
        rng, errors = np.random.default_rng(ideal_seed), []

        def watch(levels: U8) -> None:
            errors.append(rmse(levels, picture.levels))

        bound = ideal_chain(model, picture, plan, rng, watch, contents.header.lattice)
    layers = _layer_reports(model, picture, sent, bound, errors)
    payload = sum(len(layer.code) for layer in contents.layers)
    sizes = {f"{rate:g}": int(rate * area / 8) for rate in rates}
    sizes = {k: n for k, n in sizes.items() if contents.header_size <= n < len(content)}
    shown = shown_at(content, list(sizes.values()), model)
    return ImageReport(
        name=name,
        width=picture.width,
        height=picture.height,
        bytes=len(content),
        header_and_framing=len(content) - payload,
        bpp=8 * len(content) / area,
        bpd=8 * len(content) / area / picture.colours,
        ideal_bpd=sum(bound) / area / picture.colours,
        step_overhead=sum(r.real_bits for r in layers[:-1]) / sum(bound[:-1]),
        layers=layers,
        psnr_at_bpp={k: psnr(p, pixels) for k, p in zip(sizes, shown, strict=True)},
        preview_seconds=preview,
        encode_seconds=encoded - started,
        decode_seconds=finished - encoded,
        evaluations=decoded.evaluations,
        exact=decoded.exact and bool(np.array_equal(decoded.pixels, pixels)),
    )


def _preview_seconds(content: bytes, size: int, model: Model) -> float:
    """Seconds to decode the first ``size`` bytes; NaN if they do not hold the header."""
    begun = time.perf_counter()
    try:
        decode(content[:size], model=model)
    except FormatError:
        return math.nan
    return time.perf_counter() - begun


def shown_at(content: bytes, sizes: list[int], model: Model) -> list[U8]:
    """What decoding the first n bytes shows, for every n of ``sizes``.

    The same pictures as one by one, but a large file is gone through only once.
    """
    contents = parse(content, model)
    header, layers = contents.header, contents.layers
    if not header.has_lengths or header.plan.grouped > 1:
        return [decode(content[:size], model=model).pixels for size in sizes]
    settings = settings_of(header)
    model = adapted(model, settings)
    x = start(header.plan.timesteps[0], header.seed, header.height, header.width)
    grey = header.grey and not header.planes
    found: dict[int, U8] = {}
    for layer, (a, b) in zip(layers, header.plan.steps, strict=False):
        if all(size < layer.start for size in sizes):
            break
        payload = layer.start + decode_varint(content, layer.start)[1]
        step = Step(model, x, a, b, settings)
        for size in sizes:
            if layer.start <= size < layer.end and size > payload:
                part = step.copy()
                if receive_step(part, Cut(layer.code[: size - payload]), settings):
                    continue  # all but the check: it is learnt from, which only a decoder may
                found[size] = to_array(mean(model, part.x, b, settings)[0], grey)
        if not layer.whole:
            break
        receive_step(step, Cut(layer.code), settings)
        x = step.arrive()
        if layer.end in sizes:
            whole = (
                Final(model, x, settings).shown
                if b == header.plan.end
                else mean(model, x.copy(), b, settings)[0]
            )
            found[layer.end] = to_array(whole, grey)
    return [
        found[size] if size in found else decode(content[:size], model=model).pixels
        for size in sizes
    ]


def _layer_reports(
    model: Model,
    picture: Picture,
    sent: list[SentLayer],
    ideal: list[float],
    ideal_rmse: list[float],
) -> list[LayerReport]:
    steps = len(ideal) - 1
    rows = []
    for number, (layer, bits) in enumerate(zip(sent[:steps], ideal, strict=False)):
        # x̂_0 *after* a step is what the next layer starts from.
        shown = sent[number + 1].shown
        rows.append(
            LayerReport(
                t=layer.b,
                noise_levels=float(model.schedule.sigma_levels(layer.b)),
                real_bits=8 * len(layer.code),
                ideal_bits=bits,
                noise_ratio=layer.noise_ratio,
                psnr=psnr(shown, picture.levels),
                rmse=rmse(shown, picture.levels),
                ideal_rmse=ideal_rmse[number],
            )
        )
    final = sum(8 * len(layer.code) for layer in sent[steps:])
    rows.append(LayerReport(0, 0.0, final, ideal[-1], 1.0, math.inf, 0.0, 0.0))
    return rows


def summarise(reports: list[ImageReport]) -> dict[str, Any]:
    """Means over pictures; ratios are of sums, so that large pictures count by their bits.

    The steps of some may end sooner than those of others: means of a layer are of those with it.
    """

    def mean(value: Callable[[ImageReport], float]) -> float:
        return float(np.mean([value(r) for r in reports]))

    def median(value: Callable[[ImageReport], float]) -> float:
        return float(np.median([value(r) for r in reports]))

    by_timestep: dict[int, list[LayerReport]] = {}
    for report in reports:
        for layer in report.layers:
            by_timestep.setdefault(layer.t, []).append(layer)
    layers = []
    for t, column in sorted(by_timestep.items(), reverse=True):
        real, ideal = sum(c.real_bits for c in column), sum(c.ideal_bits for c in column)
        layers.append(
            {
                "t": t,
                "pictures": len(column),
                "noise_levels": column[0].noise_levels,
                "real_bits": real / len(column),
                "ideal_bits": ideal / len(column),
                "overhead": real / ideal if ideal else math.nan,
                "noise_ratio": float(np.mean([c.noise_ratio for c in column])),
                "psnr": float(np.mean([c.psnr for c in column])),
                "rmse": float(np.mean([c.rmse for c in column])),
                "ideal_rmse": float(np.mean([c.ideal_rmse for c in column])),
            }
        )
    step_real = sum(r.real_bits for i in reports for r in i.layers[:-1])
    step_ideal = sum(r.ideal_bits for i in reports for r in i.layers[:-1])
    rates = dict.fromkeys(rate for r in reports for rate in r.psnr_at_bpp)
    return {
        "pictures": len(reports),
        "exact": sum(r.exact for r in reports),
        "bytes": mean(lambda r: r.bytes),
        "header_and_framing": mean(lambda r: r.header_and_framing),
        "bpp": mean(lambda r: r.bpp),
        "bpd": mean(lambda r: r.bpd),
        "ideal_bpd": mean(lambda r: r.ideal_bpd),
        "step_overhead": step_real / step_ideal,
        "psnr_at_bpp": {
            rate: float(np.mean([r.psnr_at_bpp[rate] for r in reports if rate in r.psnr_at_bpp]))
            for rate in rates
        },
        "preview_seconds_per_megapixel": 1e6 * median(lambda r: r.preview_seconds / r.area),
        "encode_seconds_per_megapixel": 1e6 * median(lambda r: r.encode_seconds / r.area),
        "decode_seconds_per_megapixel": 1e6 * median(lambda r: r.decode_seconds / r.area),
        "encode_seconds_median": median(lambda r: r.encode_seconds),
        "decode_seconds_median": median(lambda r: r.decode_seconds),
        "evaluations": mean(lambda r: r.evaluations),
        "layers": layers,
    }


def finite(value: Any) -> Any:
    """``value`` as JSON can hold it: numbers that are not finite become None."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_dict(report: ImageReport) -> dict[str, Any]:
    return asdict(report)
