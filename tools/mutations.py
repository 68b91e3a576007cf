"""Broken .ddc files made from good ones, for the tools that look at what becomes of them.

Everything is drawn from a ``random.Random`` that is passed in, so a run can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np

import diffcodec
from diffcodec import container, extras
from diffcodec.bits import crc8, decode_varint, encode_varint
from diffcodec.chunks import END
from diffcodec.container import Header, LayerReader, Writer
from diffcodec.image import Metadata, Picture, from_array, orientation_exif
from diffcodec.model import Model
from diffcodec.plans import PLANS, Plan

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
INTERESTING = (0, 1, 127, 128, 239, 240, 247, 248, 254, 255)
NUMBERS = (0, 1, 7, 64, 239, 240, 2288, 4096, 4097, 65535, 1 << 20, 1 << 24, 1 << 28, 1 << 32)
"""What bytes and lengths are replaced by, besides random ones."""


@dataclass(frozen=True)
class Seed:
    """A good file and where in it numbers of variable length stand: sizes, lengths, timesteps."""

    content: bytes
    numbers: tuple[int, ...]


class _Fields(NamedTuple):
    """Where things stand in a header: its varints, the model's number, what follows the fields."""

    numbers: list[int]
    model: int
    end: int
    pixels: int  # of the picture

    @property
    def has_check(self) -> bool:
        """Of its own: a small picture's header shares the first layer's."""
        return self.pixels > container.SMALL


def check_place(content: bytes) -> int | None:
    """Where the header's check stands, whatever the fields before it say; None if it is cut or the
    picture small, so that it has none."""
    try:
        found = _fields(content)
    except (EOFError, IndexError):
        return None
    return found.end if found.end < len(content) and found.has_check else None


def _fields(content: bytes) -> _Fields:
    """As docs/format.md, §2, has them."""
    flags, size = divmod(content[1], 16)
    options, place = (content[2], 3) if flags & container.FLAG_OPTIONS else (0, 2)
    numbers: list[int] = []

    def number() -> int:
        nonlocal place
        numbers.append(place)
        value, used = decode_varint(content, place)
        place += used
        return value

    width = height = container.SIDE_UNIT * size
    if size in (container.SIDES_FOLLOW, container.SIDE_FOLLOWS):
        width = height = number()
    if size == container.SIDES_FOLLOW:
        height = number()
    model = place
    place += 1 if content[place] else 1 + container.FINGERPRINT_BYTES
    if options & container.OPTION_PLAN:
        explicit = content[place] == container.EXPLICIT_PLAN
        place += 1
        if explicit:
            steps, place = content[place], place + 3
            for _ in range(steps + 1):
                number()
    if options & container.OPTION_SEED:
        number()
    if options & container.OPTION_LATTICE:
        place += 1
    if options & container.OPTION_NAME:
        length = number()
        place += length
    return _Fields(numbers, model, place, width * height)


def _block_numbers(content: bytes, place: int) -> tuple[list[int], int, bytes]:
    """(places of a block's varints, place of its check, what the check is of)."""
    numbers: list[int] = []
    framing = b""
    while content[place] != END:
        begin, place = place, place + 1
        for _ in range(2):
            numbers.append(place)
            length, used = decode_varint(content, place)
            place += used
        framing += content[begin : place + 4]
        place += 4 + length
    return numbers, place + 1, framing + bytes([END])


def repaired(content: bytes) -> bytes:
    """The same with the checks of header and front block made right, as far as they are there.

    A change that the checks would find gets past them like this.
    """
    place = check_place(content)
    if place is None:
        return content
    out = bytearray(content)
    model = content[_fields(content).model]
    out[place] = container._check(bytes(out[:place]), model)
    if content[1] >> 4 & container.FLAG_OPTIONS and content[2] & container.OPTION_CHUNKS:
        try:
            _, check, framing = _block_numbers(content, place + 1)
            out[check] = crc8(framing)
        except (EOFError, IndexError):
            pass
    return bytes(out)


def seed(content: bytes) -> Seed:
    """A good file with the places of its numbers, those of layers only if these have lengths."""
    numbers = _fields(content).numbers
    header, start = container.read_header(content)
    if header.chunks:
        numbers += _block_numbers(content, start)[0]
    _, end = extras.front_chunks(header, content, start)
    if header.has_lengths:
        reader = LayerReader(content, end, header)
        while len(reader.layers) < len(header.plan.layers) and reader.skip():
            pass
        for _ in header.strips:
            reader.strip()
        numbers += [layer.start for layer in reader.layers]
        if header.trailer:
            numbers += _block_numbers(content, reader.place)[0]
    return Seed(content, tuple(numbers))


def golden_seeds() -> list[Seed]:
    """The files of tests/golden."""
    return [seed(path.read_bytes()) for path in sorted(GOLDEN.rglob("*.ddc"))]


def coded_pictures(model: Model) -> dict[str, bytes]:
    """Name → a whole file of a tiny picture, coded in few steps: between them all of the format."""
    y, x = np.mgrid[:66, :63]
    shade = (3 * x + 2 * y).astype(np.uint8)
    colour = np.dstack([shade, 255 - shade, shade // 2])
    short = Plan((180, 40, 1), 133, 1)
    pictures = {
        "8x8": colour[:8, :8],
        "grey 5x11": shade[:5, :11],
        "grouped 7x9": colour[:7, :9],
        "constant 4x8": np.full((4, 8), 200, np.uint8),
        "planes 6x6": np.dstack([shade[:6, :6]] * 3),
        "alpha 9x6": np.dstack([colour[:9, :6], 255 - shade[:9, :6]]),
        "mask 5x8": np.dstack([shade[:5, :8], 255 * (shade[:5, :8] > 19).astype(np.uint8)]),
        "lengths 66x63": colour,
    }
    metadata = Metadata(b"a colour profile" * 9, orientation_exif(6), b"<x/>")
    files = {}
    for number, (name, pixels) in enumerate(pictures.items()):
        picture = from_array(pixels)
        if "alpha" in name or "mask" in name:
            picture = replace(picture, metadata=metadata)
        plan = Plan(short.timesteps, 133, 2) if "grouped" in name else short
        files[name] = diffcodec.encode(picture, model=model, effort=1, plan=plan, seed=number)
    return files


def made_up_seeds(rng: Random) -> list[Seed]:
    """Files of all kinds that only a reader of containers takes for pictures."""
    plans = [PLANS[0], PLANS[3], Plan((900, 300, 20, 1), 140, 2)]
    shapes = [(65, 64), (2, 9000), (130, 70), (7, 5), (300, 300)]
    return [seed(_made_up(rng, *rng.choice(shapes), rng.choice(plans))) for _ in range(40)]


def _made_up(rng: Random, height: int, width: int, plan: Plan) -> bytes:
    noise = np.random.default_rng(rng.getrandbits(32))
    grey, alpha = rng.random() < 0.5, rng.random() < 0.5
    shape = (height, width) if grey else (height, width, 3)
    picture = from_array(noise.integers(0, 256, shape, dtype=np.uint8))
    plane = np.tile(np.arange(width, dtype=np.uint8) // 3, (height, 1)) if alpha else None
    metadata = Metadata(
        icc=rng.choice([b"", b"profile", bytes(3000)]),
        exif=rng.choice([b"", orientation_exif(5)]),
        xmp=rng.choice([b"", b"<x/>"]),
    )
    front, trailer = extras.pack(Picture(picture.levels, grey, plane, metadata=metadata))
    header = Header(
        width,
        height,
        rng.choice([b"\x01\x02\x03", container.CATALOGUE[1].fingerprint]),
        plan,
        grey=grey,
        planes=grey and rng.random() < 0.3,
        seed=rng.choice([0, 5, container.MAX_SEED]),
        model=rng.choice(["", "mine", "né"]),
        float_arithmetic=rng.random() < 0.2,
        chunks=bool(front),
        trailer=bool(trailer),
    )
    writer = Writer(header, front)
    for _ in plan.layers:
        writer.add_layer(noise.bytes(rng.choice([0, 3, 40, 250])), rng.randrange(256))
    for _ in header.strips:
        writer.add_strip(noise.bytes(rng.choice([0, 3, 40])), b"")
    writer.add_trailer(trailer)
    return writer.getvalue()


class Mutator:
    """Makes one broken file after another out of ``seeds``.

    beginning: share of changes within the first 40 bytes, where most of the structure is;
    repair: share of files whose checks are repaired afterwards.
    """

    def __init__(
        self, seeds: Sequence[Seed], rng: Random, beginning: float = 0.5, repair: float = 0.5
    ) -> None:
        self.seeds, self.rng = seeds, rng
        self.beginning, self.repair = beginning, repair
        self._changes: list[Callable[[bytearray, Seed], None]] = [
            self._flip,
            self._set,
            self._insert,
            self._delete,
            self._repeat,
            self._noise,
            self._splice,
            self._cut,
            self._number,
            self._number,
        ]

    def __call__(self) -> bytes:
        """One to four changes."""
        origin = self.rng.choice(self.seeds)
        out = bytearray(origin.content)
        for _ in range(self.rng.choice((1, 1, 1, 2, 2, 3, 4))):
            self.rng.choice(self._changes)(out, origin)
        content = bytes(out)
        return repaired(content) if self.rng.random() < self.repair else content

    def _place(self, out: bytearray) -> int:
        most = min(len(out), 40) if self.rng.random() < self.beginning else len(out)
        return self.rng.randrange(max(most, 1))

    def _flip(self, out: bytearray, origin: Seed) -> None:
        if out:
            out[self._place(out)] ^= 1 << self.rng.randrange(8)

    def _set(self, out: bytearray, origin: Seed) -> None:
        if out:
            out[self._place(out)] = self.rng.choice((*INTERESTING, self.rng.randrange(256)))

    def _insert(self, out: bytearray, origin: Seed) -> None:
        place = self._place(out)
        out[place:place] = self.rng.randbytes(self.rng.choice((1, 1, 2, 8)))

    def _delete(self, out: bytearray, origin: Seed) -> None:
        place = self._place(out)
        del out[place : place + self.rng.choice((1, 1, 2, 8))]

    def _repeat(self, out: bytearray, origin: Seed) -> None:
        place, size = self._place(out), self.rng.choice((1, 4, 30))
        out[place:place] = out[place : place + size]

    def _noise(self, out: bytearray, origin: Seed) -> None:
        place = self._place(out)
        size = min(self.rng.choice((2, 4, 16)), len(out) - place)
        out[place : place + size] = self.rng.randbytes(max(size, 0))

    def _splice(self, out: bytearray, origin: Seed) -> None:
        other = self.rng.choice(self.seeds).content
        out[self._place(out) :] = other[self.rng.randrange(len(other)) :]

    def _cut(self, out: bytearray, origin: Seed) -> None:
        del out[self._place(out) :]

    def _number(self, out: bytearray, origin: Seed) -> None:
        """Another number where the original has one, mostly in the shortest form."""
        place = self.rng.choice(origin.numbers)
        try:
            used = decode_varint(bytes(out[place : place + 9]), 0)[1]
        except EOFError:
            return
        value = self.rng.choice((*NUMBERS, self.rng.getrandbits(self.rng.choice((4, 12, 33, 62)))))
        form = encode_varint(value) if self.rng.random() < 0.9 else bytes([255]) + bytes(9)
        out[place : place + used] = form


def corrupted(content: bytes, rng: Random) -> bytes:
    """The same number of bytes, one to eight of them changed: single bits and bytes, bursts, and
    bytes far from each other."""
    out = bytearray(content)
    kind = rng.randrange(4)
    if kind == 0:
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        out[rng.randrange(len(out))] ^= rng.randrange(1, 256)
    elif kind == 2:
        place = rng.randrange(len(out))
        for k in range(place, min(place + rng.randrange(2, 9), len(out))):
            out[k] ^= rng.randrange(1, 256)
    else:
        for _ in range(rng.randrange(2, 9)):
            out[rng.randrange(len(out))] ^= rng.randrange(1, 256)
    return bytes(out)


def single_changes(content: bytes) -> Callable[[int], bytes]:
    """Number 255·place + change − 1 → the content with that byte changed by exclusive or."""

    def change(number: int) -> bytes:
        place, bits = divmod(number, 255)
        return content[:place] + bytes([content[place] ^ (bits + 1)]) + content[place + 1 :]

    return change
