"""The format DDC for Pillow: after ``import diffcodec.pillow`` it opens and saves .ddc files.

    import diffcodec.pillow
    from PIL import Image

    Image.open("a.png").save("a.ddc", effort=3)
    image = Image.open("a.ddc")  # reads the header; the picture is decoded when it is needed
    image.thumbnail((64, 64))    # decodes only as far as a thumbnail shows

``save`` takes ``effort``, ``stop_t``, ``max_bytes``, ``seed`` and ``model`` (a model, its folder or
its name), as :func:`diffcodec.encode` does, and raises OSError for what it cannot write.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

from PIL import Image, ImageFile

from diffcodec import api
from diffcodec.chunks import ALPHA
from diffcodec.container import FLAGS_UNKNOWN, MAGIC, Header, read_header
from diffcodec.errors import DataError, DiffcodecError, FormatError
from diffcodec.image import from_image
from diffcodec.model import Model
from diffcodec.registry import load_model
from diffcodec.schedule import Schedule

FORMAT = "DDC"
HEADER_BYTES = 4096
"""More than any header takes."""

OPTIONS = ("effort", "stop_t", "max_bytes", "seed", "model")
"""Arguments of ``Image.save`` that go to the encoder."""

DRAFT_NOISE = 5.0
"""Levels of noise that a draft may leave for every pixel of the file to one of the draft.

Measured with the shipped model: what is left out then differs by about 3.5 levels RMS at the
draft's size.  ``Image.thumbnail`` asks for a draft of twice its own size; at its size about 2.
"""

_SCHEDULE = Schedule()


class DdcImageFile(ImageFile.ImageFile):
    """A .ddc file, whole or cut.

    Set before the picture is loaded: stop_t, to stop at the smallest coded timestep ≥ stop_t;
    model, for a file whose model is not shipped; max_pixels, as for :func:`diffcodec.decode`.
    After loading ``info["diffcodec"]`` holds ``exact`` (whether this is the original, verified)
    and ``t`` (timestep of the last whole layer, 0 if all are).  A file that is cut loads as the
    lossy picture it is; damage is an OSError.
    """

    format = FORMAT
    format_description = "diffcodec, progressive lossy to lossless"
    stop_t: int = 0
    model: Model | None = None
    max_pixels: int | None = None
    _header: Header

    def _open(self) -> None:
        """SyntaxError, by which Pillow goes on to other formats, if the header is unusable."""
        assert self.fp is not None
        try:
            self._header, start = read_header(self.fp.read(HEADER_BYTES))
        except FormatError as e:
            raise SyntaxError(str(e)) from e
        self._size = (self._header.width, self._header.height)
        self._mode = "L" if self._header.grey and not self._header.planes else "RGB"
        self.fp.seek(start)
        # The first chunk's kind; transparency comes before all others.
        if self._header.chunks and self.fp.read(1) == bytes([ALPHA]):
            self._mode += "A"
        # By Pillow's convention, tiles are what is not decoded yet.
        self.tile = [ImageFile._Tile("ddc", (0, 0, *self._size), 0, None)]

    def load(self) -> Any:  # Pillow's pixel access, a type without a public name
        """Decode the picture, once; OSError for damage or an absent model."""
        if self.tile:
            self._decode()
        return super().load()

    def _decode(self) -> None:
        if self.fp is None:
            raise OSError("the file is closed")
        self.fp.seek(0)
        try:
            decoded = api.decode(
                self.fp.read(), stop_t=self.stop_t, model=self.model, max_pixels=self.max_pixels
            )
        except DiffcodecError as e:
            raise OSError(str(e)) from e
        # A copy: Pillow would otherwise share the array's memory, and write to it.
        image = decoded.to_image().copy()
        self.info.update(image.info)
        self.im, self._mode, self._size = image.im, image.mode, image.size
        self.info["diffcodec"] = {"exact": decoded.exact, "t": decoded.t}
        self.tile, self.readonly = [], 0
        if self._exclusive_fp:
            self.fp.close()
        self.fp = None

    def draft(
        self, mode: str | None, size: tuple[int, int] | None
    ) -> tuple[str, tuple[int, int, float, float]] | None:
        """Prepare to load the picture only as finely as it shows at ``size`` (width, height).

        The rule: in a picture reduced by a factor k of at least 2 noise shrinks by about k, so
        the file is decoded to its coarsest timestep with no more than 5·k levels of it, or to
        ``stop_t`` if that is coarser.  The picture keeps its size (a coarse .ddc file is no
        smaller) and its mode.  Returns (mode, box of the whole picture); None if it is loaded.
        """
        if not self.tile or size is None:
            return None
        factor = min(self.width / max(size[0], 1), self.height / max(size[1], 1))
        if factor >= 2:
            self.stop_t = max(self.stop_t, self._coarsest(DRAFT_NOISE * factor))
        return self.mode, (0, 0, *self.size)

    def _coarsest(self, noise: float) -> int:
        """The largest coded timestep with at most so many levels of noise, 0 if there is none."""
        coded = self._header.plan.timesteps[1:]
        return max((t for t in coded if _SCHEDULE.sigma_levels(t) <= noise), default=0)


def _accept(prefix: bytes) -> bool:
    return prefix[:1] == MAGIC and not prefix[1] >> 4 & FLAGS_UNKNOWN


def _save(image: Image.Image, stream: IO[bytes], filename: str | bytes) -> None:
    """Write ``image`` with the options given to ``Image.save``; OSError if that is impossible."""
    given: dict[str, Any] = image.encoderinfo
    options = {key: given[key] for key in OPTIONS if given.get(key) is not None}
    try:
        if isinstance(options.get("model"), str | Path):
            options["model"] = load_model(str(options["model"]))
        content = api.encode(image, **options)
    except DiffcodecError as e:
        raise OSError(_refusal(image) or str(e)) from e
    stream.write(content)


def _refusal(image: Image.Image) -> str:
    """Why pictures of this mode cannot be written, or nothing if they can."""
    try:
        from_image(image)
    except DataError as e:
        return f"cannot write mode {image.mode} as {FORMAT} ({e})"
    return ""


Image.register_open(FORMAT, DdcImageFile, _accept)
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, ".ddc")
Image.register_mime(FORMAT, "image/x-ddc")
