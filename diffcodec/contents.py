"""A file taken apart: its layers, what is wrong with it, shorter copies, a description."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffcodec import chunks, container, extras
from diffcodec.chunks import Chunk
from diffcodec.codec import receive
from diffcodec.container import Header, Layer, LayerReader
from diffcodec.errors import DamageError, FormatError, ModelError
from diffcodec.extras import EXCESS
from diffcodec.image import U8, to_array
from diffcodec.lattices import LATTICES
from diffcodec.model import Model
from diffcodec.parallel import one_blas_thread, one_torch_thread
from diffcodec.plans import Plan
from diffcodec.registry import find_model
from diffcodec.steps import Settings


@dataclass(frozen=True)
class Contents:
    """A file taken apart: whole layers in order, then possibly one that is cut.

    header_size: of the header and the chunks after it, without which nothing can be shown;
    chunks: these and those after the layers, if they are whole; complete: every layer of the
    picture is whole, so is what comes after, and nothing is wrong; damage: what is wrong after
    ``layers``, in one line, or None.
    """

    header: Header
    header_size: int
    chunks: list[Chunk]
    layers: list[Layer]
    complete: bool
    damage: str | None


def model_for(header: Header, model: Model | None) -> Model:
    """The model that decodes the file: ``model``, or the installed one it names.

    ModelError if that is not the one it was written with or cannot decode it.
    """
    if model is None:
        model = find_model(header.fingerprint, header.model)
    elif model.fingerprint != header.fingerprint:
        raise ModelError(
            f"the file was written with model {header.fingerprint.hex()}, not with "
            f"{model.name} ({model.fingerprint.hex()})"
        )
    if header.float_arithmetic == model.exact:
        kind = "floating-point" if header.float_arithmetic else "exact"
        raise ModelError(f"the file was written with {kind} arithmetic, the model has the other")
    model.check_plan(header.plan)
    return model


def parse(content: bytes, model: Model | None = None, *, max_pixels: int | None = None) -> Contents:
    """Header and layers of a file; what is damaged is reported in ``damage``, not raised.

    The layers of a small file are found by decoding it, with ``model`` if it is given.  Raises
    FormatError for an unusable header or more pixels than max_pixels (default: 178,956,970),
    ModelError if the model is needed and absent.
    """
    header, start = container.read_header(content)
    container.check_pixels(header, max_pixels)
    front = extras.read_front(header, content, start)
    reader = LayerReader(content, front.end, header)
    decoder = None if header.has_lengths else model_for(header, model)
    damage = None
    try:
        if decoder is None:
            _skim(reader, header)
        else:
            with one_blas_thread(), one_torch_thread():  # the picture is small
                shown = receive(decoder, reader, settings_of(header))
            verify(header, reader, shown.levels)
            if len(reader.layers) < len(header.plan.layers) and not reader.at_end:
                rest = content[reader.place :]
                reader.layers.append(Layer(rest, None, reader.place, len(content) + 1, False))
    except FormatError as e:
        damage = str(e)
        sound = e.sound if isinstance(e, DamageError) else reader.sound
        reader.layers = [layer for layer in reader.layers if layer.end <= sound]
    layers = reader.layers
    expected = len(header.plan.layers) + len(header.strips)
    complete = damage is None and len(layers) == expected and layers[-1].whole
    listed = front.chunks
    try:
        if complete and header.trailer:
            listed = listed + extras.read_trailer(content, reader.place)[1]
        elif complete and not reader.at_end:
            raise FormatError(EXCESS)
    except EOFError:
        complete = False
    except FormatError as e:
        complete, damage = False, str(e)
    return Contents(header, front.end, listed, layers, complete, damage)


def pixel_bytes(levels: U8, grey: bool) -> bytes:
    """The bytes of levels uint8 [3, H, W] that a strip's check covers."""
    return to_array(levels, grey).tobytes()


def verify(header: Header, reader: LayerReader, levels: U8) -> None:
    """Check every whole strip of the final layer against the check of its pixels.

    levels: uint8 [3, H, W]; DamageError if they are others.
    """
    found = reader.layers[len(header.plan.layers) :]
    for rows, layer in zip(header.strips, found, strict=False):
        pixels = pixel_bytes(levels[:, rows], header.grey)
        if layer.whole and header.pixel_check(pixels) != layer.check:
            # Where the state after all steps has no check, a strip before this one is as good.
            is_sure = header.has_lengths or rows.start > 0
            sure = header.plan.end if is_sure else header.plan.layers[0][-1][1]
            raise DamageError(
                f"rows {rows.start} to {rows.stop - 1} differ from the original: the file is "
                "damaged or was written by another machine's arithmetic; "
                f"decode with --stop-t {sure} for the lossy picture",
                layer.start if is_sure else reader.sound,
            )


def _skim(reader: LayerReader, header: Header) -> None:
    """Find all layers of a file by their lengths."""
    steps = len(header.plan.layers)
    for number in range(steps + len(header.strips)):
        try:
            if number < steps:
                going_on = reader.skip()
            else:
                strip = reader.strip()
                going_on = strip is not None and strip.whole
        except FormatError as e:
            raise FormatError(f"{header.plan.label(number)} is damaged: {e}") from e
        if not going_on:
            return


def truncate(
    content: bytes,
    *,
    max_bytes: int | None = None,
    stop_t: int = 0,
    model: Model | None = None,
) -> bytes:
    """A shorter file of the same picture: a copy of its first bytes.

    stop_t: keep the layers down to the smallest coded timestep ≥ stop_t; model: as in
    :func:`parse`.  Raises FormatError when less than the header, and what must come with it,
    would be left or a layer to keep is damaged.
    """
    header, start = container.read_header(content)
    _, start = extras.front_chunks(header, content, start)
    end = len(content)
    if stop_t:
        contents = parse(content, model, max_pixels=container.MAX_PIXELS)
        last = smallest_coded(header.plan, stop_t)
        wanted = sum(layer[0][0] > last for layer in header.plan.layers)
        kept = contents.layers[:wanted]
        if contents.damage and len(kept) < wanted:
            raise FormatError(contents.damage)
        end = min(end, kept[-1].end if kept else start)
    if max_bytes is not None:
        end = min(end, max_bytes)
    if end < start:
        raise FormatError(
            f"{end} bytes do not even hold the header{_and_front(header)}; keep at least {start}"
        )
    return content[:end]


def smallest_coded(plan: Plan, stop_t: int) -> int:
    """The smallest timestep of the plan that is ≥ ``stop_t`` (t_0 if there is none)."""
    return min((t for t in plan.timesteps if t >= stop_t), default=plan.timesteps[0])


def check_size(header: Header, max_bytes: int | None, front: bytes = b"") -> None:
    """FormatError if a size limit leaves no room for the header and the chunks after it."""
    size = len(header.encode()) + len(front)
    if max_bytes is not None and max_bytes < size:
        raise FormatError(
            f"{max_bytes} bytes do not even hold the header{_and_front(header)} of {size} bytes"
        )


def _and_front(header: Header) -> str:
    return " with transparency, colour profile and orientation" if header.chunks else ""


def settings_of(header: Header) -> Settings:
    size = header.height, header.width
    return Settings(header.plan, *size, header.seed, header.grey, header.lattice)


def describe(
    content: bytes, model: Model | None = None, *, max_pixels: int | None = None
) -> dict[str, Any]:
    """Header and layers as plain data, for ``diffcodec info``; options as of :func:`parse`.

    noise_levels needs the model's schedule and is None when the model is not installed.
    """
    header, _ = container.read_header(content)
    plan = header.plan
    try:
        model = model or find_model(header.fingerprint, header.model)
        contents = parse(content, model, max_pixels=max_pixels)
    except ModelError as e:
        if not header.has_lengths:
            raise ModelError(f"{e}; the layers of so small a file cannot be told without it") from e
        model, contents = None, parse(content, max_pixels=max_pixels)
    area = header.width * header.height
    ends = [layer[-1][1] for layer in plan.layers]
    kinds = {"alpha": chunks.ALPHA, "icc": chunks.ICC, "exif": chunks.EXIF, "xmp": chunks.XMP}
    # Transparency by what it takes in the file; metadata by what the user gets.
    sizes = {c.kind: c.size for c in contents.chunks}
    sizes |= {c.kind: len(c.payload) for c in contents.chunks if c.kind == chunks.ALPHA}
    rows = []
    for number, layer in enumerate(contents.layers):
        t = ends[number] if number < len(ends) else 0
        end = min(layer.end, len(content))
        rows.append(
            {
                "t": t,
                "noise_levels": _noise_levels(model, t),
                "bits": 8 * len(layer.code),
                "bpp": 8 * end / area,
                "whole": layer.whole,
            }
        )
    return {
        "width": header.width,
        "height": header.height,
        "colour": _colour(header),
        **{f"{key}_bytes": sizes.get(kind) for key, kind in kinds.items()},
        "metadata": ("whole" if contents.complete else "not whole") if header.trailer else None,
        "model": header.model or (model.name if model else "not installed"),
        "fingerprint": header.fingerprint.hex(),
        "arithmetic": "float (decodes on like machines only)"
        if header.float_arithmetic
        else "exact",
        "timesteps": list(plan.timesteps),
        "mirrored": plan.mirrored,
        "adaptive": plan.adaptive,
        "passes": plan.passes,
        "lattice": LATTICES[header.lattice].name if header.lattice else None,
        "eta": plan.eta / 128,
        "seed": header.seed,
        "header_bytes": contents.header_size,
        "file_bytes": len(content),
        "complete": contents.complete,
        "damage": contents.damage,
        "layers": rows,
    }


def _colour(header: Header) -> str:
    if header.planes:
        return "RGB, all of it grey"
    return "grey" if header.grey else "RGB"


def _noise_levels(model: Model | None, t: int) -> float | None:
    if t == 0:
        return 0.0
    return None if model is None else float(model.schedule.sigma_levels(t))
