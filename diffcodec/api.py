"""From pictures to .ddc bytes and back: what the command line and Python users call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffcodec import container, extras
from diffcodec.codec import Reconstruction, SentLayer, receive, send
from diffcodec.container import Header, LayerReader, Writer
from diffcodec.contents import (
    Contents,
    check_size,
    describe,
    model_for,
    parse,
    pixel_bytes,
    settings_of,
    smallest_coded,
    truncate,
    verify,
)
from diffcodec.endings import best_way
from diffcodec.errors import DamageError, DataError, FormatError
from diffcodec.extras import EXCESS, Front
from diffcodec.image import (
    Metadata,
    Picture,
    from_array,
    from_image,
    to_array,
    to_image,
)
from diffcodec.lattice import lattice_of
from diffcodec.model import Model
from diffcodec.parallel import one_blas_thread, one_torch_thread, thread_map
from diffcodec.plans import (
    DEFAULT_EFFORT,
    EFFORTS,
    SMALL_PIXELS,
    Plan,
    endings,
    plan_for,
    search_for,
)
from diffcodec.quality import psnr
from diffcodec.registry import default_model, is_listed
from diffcodec.render import RENDERS, mean
from diffcodec.steps import Settings

__all__ = [
    "Contents",
    "Decoded",
    "decode",
    "decode_batch",
    "decode_layers",
    "describe",
    "encode",
    "encode_batch",
    "parse",
    "smallest_coded",
    "truncate",
]

U8 = NDArray[np.uint8]
Progress = Callable[[int, int], None]
"""Called with (parts of the work done, parts in all)."""


@dataclass(frozen=True)
class Decoded:
    """pixels: uint8 [H, W, 3] or [H, W], with alpha [H, W, 4] or [H, W, 2], as they were encoded;
    exact: verified equal to the original;
    t: timestep of the last whole layer (0: all); evaluations: of the network;
    float_arithmetic: only a machine like the writer's is sure to get this picture;
    metadata: what arrived of them (EXIF, XMP and a large ICC profile come after all pixels;
    before that EXIF says how to turn the picture and nothing else);
    metadata_cut: the file ends before all of the metadata that were encoded;
    damage: what is wrong with the file after the part that is shown, in one line, or None."""

    pixels: U8
    exact: bool
    t: int
    evaluations: int
    float_arithmetic: bool
    metadata: Metadata = field(default_factory=Metadata)
    metadata_cut: bool = False
    damage: str | None = None

    @property
    def colours(self) -> int:
        """Colour values of a pixel, 1 or 3; transparency does not count."""
        return 3 if self.pixels.ndim == 3 and self.pixels.shape[2] >= 3 else 1

    @property
    def colour_values(self) -> U8:
        """``pixels`` without transparency, [H, W] or [H, W, 3]."""
        if self.pixels.ndim == 2:
            return self.pixels
        return self.pixels[..., :3] if self.colours == 3 else self.pixels[..., 0]

    def to_image(self) -> Image.Image:
        """A Pillow image of mode L, LA, RGB or RGBA, with the metadata in its ``info``."""
        return to_image(self.pixels, self.metadata)


def encode(
    picture: Picture | Image.Image | NDArray[Any],
    *,
    model: Model | None = None,
    effort: int = DEFAULT_EFFORT,
    seed: int = 0,
    stop_t: int = 0,
    max_bytes: int | None = None,
    target_psnr: float | None = None,
    plan: Plan | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    watch: Callable[[SentLayer], None] | None = None,
) -> bytes:
    """Encode one picture; lossless unless ``stop_t``, ``max_bytes`` or ``target_psnr`` limits it.

    picture: an array is uint8 [H, W] or [H, W, 3], or with alpha [H, W, 2] or [H, W, 4]; of a
    Pillow image ICC profile, EXIF and XMP are kept (``Picture.without_metadata`` drops them);
    model: by default what suits the picture's size; effort: 1…9; stop_t: no layer finer than the
    smallest coded timestep ≥ stop_t is written; max_bytes: the file is cut there;
    target_psnr: it is cut where it reaches this PSNR, in dB, give or take 1 % of its bytes;
    plan: instead of the model's, which is mirrored from effort 6 on and, where it may be, cut
    short before steps that bring nothing (an exact model knows the timesteps of its own plan only);
    device: "cuda" evaluates the network there, for the same bytes (see :meth:`Model.on`);
    watch is called after every step and strip.  Raises DataError, FormatError or ModelError.
    """
    picture = _picture(picture)
    area = picture.width * picture.height
    if effort not in EFFORTS:
        raise DataError(f"effort must lie in {min(EFFORTS)}..{max(EFFORTS)}, not {effort}")
    model = (model or default_model(area)).on(device)
    front, trailer = extras.pack(picture)
    chosen = plan or plan_for(model.plan, effort)
    model.check_plan(chosen)
    plans = endings(chosen) if plan is None else [chosen]
    with one_blas_thread():
        chosen, lattice = best_way(
            model, picture.levels, plans, _lattices(picture), picture.grey, seed
        )
    header = _header(picture, model, chosen, lattice, seed, bool(front), bool(trailer))
    check_size(header, max_bytes, front)
    writer, settings = Writer(header, front), settings_of(header)
    rows = settings.strips
    pulse = _Pulse(progress, len(header.plan.steps) * len(settings.groups) + len(rows))
    last = smallest_coded(header.plan, stop_t)
    if last == header.plan.timesteps[0]:
        return writer.getvalue()
    start, strip = writer.size, 0  # of the layer that comes next
    sent = send(model, picture.levels, settings, search_for(effort, area), pulse)
    with one_blas_thread(), one_torch_thread(area <= SMALL_PIXELS):
        for layer in _whole_layers(sent, header.plan, watch):
            if layer.b:
                start = writer.size
                writer.add_layer(layer.code, layer.check)
            else:
                pixels = pixel_bytes(picture.levels[:, rows[strip]], picture.grey)
                start = start if strip else writer.size
                writer.add_strip(layer.code, pixels)
                strip += 1
            if (max_bytes and writer.size >= max_bytes) or (stop_t and layer.b <= last):
                break
            if target_psnr and layer.b and _reaches(target_psnr, model, layer, settings, picture):
                break
        else:
            writer.add_trailer(trailer)
    content = writer.getvalue()[:max_bytes]
    if target_psnr is None:
        return content
    return _just_enough(content, start, target_psnr, picture, model)


def _picture(picture: Picture | Image.Image | NDArray[Any]) -> Picture:
    if isinstance(picture, Picture):
        return picture
    if isinstance(picture, Image.Image):
        return from_image(picture)
    return from_array(np.asarray(picture))


def _lattices(picture: Picture) -> list[int]:
    """Numbers of the lattices on which its colours may be coded, 0 (none) included."""
    if picture.grey or picture.width * picture.height <= SMALL_PIXELS:
        return [0]
    found = lattice_of(picture.levels)
    return [0, found] if found else [0]


def _header(
    picture: Picture,
    model: Model,
    plan: Plan,
    lattice: int,
    seed: int,
    chunks: bool,
    trailer: bool,
) -> Header:
    return Header(
        width=picture.width,
        height=picture.height,
        fingerprint=model.fingerprint,
        plan=plan,
        grey=picture.grey,
        seed=seed,
        model="" if is_listed(model) else model.name,
        float_arithmetic=not model.exact,
        chunks=chunks,
        trailer=trailer,
        planes=picture.planes,
        lattice=lattice,
    )


class _Pulse:
    """Counts parts of the work and tells ``progress``."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self) -> None:
        self._done += 1
        if self._progress:
            self._progress(self._done, self._total)


def _whole_layers(
    sent: Iterator[SentLayer], plan: Plan, watch: Callable[[SentLayer], None] | None
) -> Iterator[SentLayer]:
    """The steps that share a layer of the file put together."""
    ends = {layer[-1][1] for layer in plan.layers} | {0}
    pending = b""
    for layer in sent:
        if watch:
            watch(layer)
        pending += layer.code
        if layer.b in ends:
            yield replace(layer, code=pending)
            pending = b""


def _reaches(
    target: float, model: Model, layer: SentLayer, settings: Settings, picture: Picture
) -> bool:
    """Whether the picture shown after ``layer`` has this PSNR."""
    shown, _ = mean(model, layer.x.copy(), layer.b, settings)
    return psnr(shown, picture.levels) >= target


def _just_enough(
    content: bytes, start: int, target: float, picture: Picture, model: Model
) -> bytes:
    """The smallest prefix, not smaller than ``start``, with this PSNR; all if none has it."""
    colours = to_array(picture.levels, picture.grey and not picture.planes)

    def reaches(size: int) -> bool:
        shown = decode(content[:size], model=model, max_pixels=container.MAX_PIXELS)
        return psnr(shown.colour_values, colours) >= target

    low, high = start, len(content)
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        if reaches(middle):
            high = middle
        else:
            low = middle
    return content[:high]


def encode_batch(
    pictures: Sequence[Picture | Image.Image | NDArray[Any]],
    *,
    model: Model | None = None,
    effort: int = DEFAULT_EFFORT,
    seed: int = 0,
    device: str | None = None,
) -> list[bytes]:
    """Encode several pictures losslessly, on all cores; the same bytes as one by one."""

    def work(number: int) -> bytes:
        return encode(pictures[number], model=model, effort=effort, seed=seed, device=device)

    return thread_map(work, len(pictures))


def decode_batch(
    contents: Sequence[bytes],
    *,
    stop_t: int = 0,
    model: Model | None = None,
    max_pixels: int | None = None,
    device: str | None = None,
) -> list[Decoded]:
    """Decode several files, on all cores; the same pictures as one by one."""

    def work(number: int) -> Decoded:
        own = contents[number]
        return decode(own, stop_t=stop_t, model=model, max_pixels=max_pixels, device=device)

    return thread_map(work, len(contents))


def decode(
    content: bytes,
    *,
    stop_t: int = 0,
    model: Model | None = None,
    recon: str = "mean",
    seed: int = 0,
    salvage: bool = False,
    max_pixels: int | None = None,
    device: str | None = None,
) -> Decoded:
    """Decode whatever ``content`` holds, down to timestep ``stop_t``; exact if it is complete.

    model: use this one instead of looking it up by the file's fingerprint; recon: how a lossy
    picture is made of the last state, "mean", "x0", "sample" (with ``seed``) or "flow", see
    diffcodec.render; salvage: of a file that is damaged after its header and front block show
    what comes before the damage, never as exact, and name it in ``damage``; max_pixels: refuse
    larger pictures; by default those of more than 178,956,970 pixels, and those of more than
    4,194,304 of which there is less than a byte for 4096 pixels, unless the file is complete;
    device: as in :func:`encode`, for the same picture.
    Raises DataError for another recon, FormatError for a picture that is too large and for
    damage (also when the verified pixels differ; DamageError if it can be salvaged), ModelError
    if the model is absent.
    """
    header, start = container.read_header(content)
    container.check_pixels(header, max_pixels)
    model = model_for(header, model).on(device)
    extras.check_presence(
        header, content, extras.front_chunks(header, content, start)[1], max_pixels
    )
    front = extras.read_front(header, content, start)

    def show(present: bytes) -> Decoded:
        reader = LayerReader(present, front.end, header)
        return decode_layers(header, front, reader, model, stop_t=stop_t, recon=recon, seed=seed)

    try:
        return show(content)
    except DamageError as e:
        if not salvage:
            raise
        return replace(show(content[: e.sound]), exact=False, damage=str(e))


def decode_layers(
    header: Header,
    front: Front,
    reader: LayerReader,
    model: Model,
    *,
    stop_t: int = 0,
    recon: str = "mean",
    seed: int = 0,
    refresh: Callable[[Decoded, int], None] | None = None,
) -> Decoded:
    """:func:`decode` after the header and the chunks behind it; DamageError if the rest is wrong.

    refresh: called with the picture so far and the bytes it takes after every whole layer.
    """
    if recon not in RENDERS:
        raise DataError(f"recon must be one of {', '.join(RENDERS)}, not '{recon}'")

    def decoded(shown: Reconstruction, metadata: Metadata, cut: bool) -> Decoded:
        return Decoded(
            pixels=to_array(shown.levels, header.grey and not header.planes, front.alpha),
            exact=shown.t == 0,
            t=shown.t,
            evaluations=shown.evaluations,
            float_arithmetic=header.float_arithmetic,
            metadata=metadata,
            metadata_cut=cut,
        )

    def watch(t: int, show: Callable[[], U8]) -> None:
        if refresh is not None:
            levels = show()
            verify(header, reader, levels)
            shown = Reconstruction(levels, t, 0)
            refresh(decoded(shown, front.metadata, header.trailer), reader.place)

    try:
        with one_blas_thread(), one_torch_thread(header.width * header.height <= SMALL_PIXELS):
            shown = receive(
                model,
                reader,
                settings_of(header),
                stop_t=stop_t,
                render=RENDERS[recon](seed),
                draw=recon == "sample",
                watch=watch,
            )
    except DamageError:
        raise
    except FormatError as e:
        raise DamageError(str(e), reader.sound) from e
    verify(header, reader, shown.levels)
    metadata, cut = front.metadata, header.trailer
    try:
        if shown.t == 0 and not header.trailer and not reader.at_end:
            raise FormatError(EXCESS)
        while shown.t == 0 and cut:
            try:
                metadata = replace(metadata, **extras.read_trailer(reader.content, reader.place)[0])
                cut = False
            except EOFError:
                if not reader.grow():
                    break
    except FormatError as e:
        raise DamageError(str(e), reader.place) from e
    return decoded(shown, metadata, cut)
