"""The .ddc container, version 8: bytes ↔ header and layers, as docs/format.md has them.

Knows nothing of models or pictures.  Writers and readers stand side by side and walk the fields
in the order of the specification's table.
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass
from itertools import pairwise

from diffcodec.bits import crc8, decode_varint, encode_varint, from_zigzag, zigzag
from diffcodec.catalogue import CATALOGUE, number_of
from diffcodec.errors import FormatError
from diffcodec.lattices import LATTICES
from diffcodec.plans import PLANS, STRIP_ROWS, Plan

MAGIC = b"\xde"
VERSION = 8
FORMER_MAGIC, VERSION_1 = b"\xdd", b"\xddC"
"""What files of versions 1 to 7 began with, and of version 1; nobody was given any of these."""

FLAG_GREY, FLAG_OPTIONS, FLAGS_UNKNOWN = 1, 2, 12
SIDES_FOLLOW, SIDE_FOLLOWS, SIDE_UNIT = 0, 15, 8
"""Sizes below the flags: width and height, or one for both, follow; or both are so many units."""
OPTION_PLAN, OPTION_SEED, OPTION_FLOAT, OPTION_NAME = 1, 2, 4, 8
OPTION_CHUNKS, OPTION_TRAILER, OPTION_PLANES, OPTION_LATTICE = 16, 32, 64, 128
"""What differs from the default costs a byte of options and its own; the default costs none."""

UNLISTED = 0
"""Number of a model that says its fingerprint follows."""

DEFAULT_PLAN = 0
"""Of models that are not listed; the others have their own."""

EXPLICIT_PLAN = 255
"""Plan number that says the plan follows."""

FINGERPRINT_BYTES = 3
SMALL = 64 * 64
"""Up to this many pixels layers of steps have no lengths, and header and layers share a check."""

MAX_SIDE = 1 << 20
MAX_PIXELS = 1 << 28
MAX_SEED = (1 << 32) - 1
MAX_LAYER = 1 << 32

DECODED_PIXELS = 178_956_970
"""Larger pictures are decoded only when asked for by number (Pillow's limit for all formats)."""
TRUSTED_PIXELS = 1 << 22
"""Larger ones only if the file is complete or has a byte for every PIXELS_PER_BYTE."""
PIXELS_PER_BYTE = 1 << 12


@dataclass(frozen=True)
class Header:
    """Everything a decoder needs before the first layer.

    model: name, empty for one of the catalogue (its fingerprint finds it);
    float_arithmetic: the network was evaluated in floating point, so that only a machine like
    the writer's decodes the file; chunks, trailer: blocks of chunks come before the first layer,
    after the last one; planes: the one plane of a grey picture is to be shown as three; lattice:
    number of that on which the colours lie (see lattice.py), 0 for none.
    """

    width: int
    height: int
    fingerprint: bytes
    plan: Plan
    grey: bool = False
    seed: int = 0
    model: str = ""
    float_arithmetic: bool = False
    chunks: bool = False
    trailer: bool = False
    planes: bool = False
    lattice: int = 0

    @property
    def pixel_check_bytes(self) -> int:
        """Of a strip's check of its pixels."""
        return 4 if self.has_lengths else 2

    def pixel_check(self, pixels: bytes) -> int:
        """The CRC-32 of a strip's pixels, or its lower half."""
        return binascii.crc32(pixels) & ((1 << 8 * self.pixel_check_bytes) - 1)

    def expected_length(self, steps: int) -> int:
        """Bytes of a small picture's strip after so many bytes of layers of steps.

        Not far from the truth for pictures as they are, so that the difference takes one byte.
        """
        values = self.width * self.height * (1 if self.grey else 3)
        return (steps // 3 + values // 48) // -(-self.height // STRIP_ROWS)

    @property
    def strips(self) -> list[slice]:
        """The rows of the final layer's strips."""
        return self.plan.strips(self.height, self.width)

    @property
    def has_lengths(self) -> bool:
        """Whether layers of steps say how long they are; a small picture need not afford it."""
        return self.width * self.height > SMALL

    @property
    def _may_have_lattice(self) -> bool:
        """Whether there are colours, and pixels enough to learn which."""
        return not self.grey and self.width * self.height > SMALL

    def has_check(self, number: int) -> bool:
        """Whether a layer of steps, 0 being the first, ends with a check of the state.

        In a small picture the first one's tells whether the header is sound and sender and receiver
        compute alike, and the check of the pixels whether they did to the end.
        """
        return number == 0 or self.has_lengths

    def layer_check(self, header: bytes, check: int) -> int:
        """The check of a layer of steps after which the state has ``check``; header: as written."""
        if self.has_lengths:
            return check
        return crc8(header + self.fingerprint + bytes([check]))

    def encode(self) -> bytes:
        """The header's bytes, check included."""
        number = next((n for n, plan in PLANS.items() if plan == self.plan), None)
        listed = number_of(self.fingerprint, number)
        name = self.model.encode()
        if not (1 <= self.width <= MAX_SIDE and 1 <= self.height <= MAX_SIDE):
            raise FormatError(f"a picture of {self.width}x{self.height} is not supported")
        if self.width * self.height > MAX_PIXELS:
            raise FormatError(f"{self.width}x{self.height} is more than {MAX_PIXELS} pixels")
        if not 0 <= self.seed <= MAX_SEED or len(name) > 255:
            raise FormatError("seed or model name is out of range")
        if self.planes and not self.grey:
            raise FormatError("only a grey picture has one plane to be shown as three")
        if self.lattice and not self._may_have_lattice:
            raise FormatError("the colours of a grey or small picture are not coded on a lattice")
        own_plan = number is not None and number == _default_plan(listed or UNLISTED)
        options = OPTION_PLAN * (not own_plan) | OPTION_SEED * bool(self.seed)
        options |= OPTION_FLOAT * self.float_arithmetic | OPTION_NAME * bool(name)
        options |= OPTION_CHUNKS * self.chunks | OPTION_TRAILER * self.trailer
        options |= OPTION_PLANES * self.planes | OPTION_LATTICE * bool(self.lattice)
        square = self.width == self.height
        units = self.width // SIDE_UNIT if square and self.width % SIDE_UNIT == 0 else SIDE_FOLLOWS
        size = min(units, SIDE_FOLLOWS) if square else SIDES_FOLLOW
        flags = FLAG_GREY * self.grey | FLAG_OPTIONS * bool(options)
        out = bytearray(MAGIC)
        out.append(flags << 4 | size)
        if options:
            out.append(options)
        if size in (SIDES_FOLLOW, SIDE_FOLLOWS):
            out += encode_varint(self.width)
        if size == SIDES_FOLLOW:
            out += encode_varint(self.height)
        out += bytes([listed]) if listed else bytes([UNLISTED]) + self.fingerprint
        if number is None:
            t = self.plan.timesteps
            if Plan(t, self.plan.eta, self.plan.grouped) != self.plan or self.plan.end != 1:
                raise FormatError(
                    "a plan with mirror images, adaptation, four passes or another end than t = 1 "
                    "must be one that has a number"
                )
            out += bytes([EXPLICIT_PLAN, len(t) - 1, self.plan.eta, self.plan.grouped])
            for value in (t[0], *(a - b for a, b in pairwise(t))):
                out += encode_varint(value)
        elif not own_plan:
            out.append(number)
        if self.seed:
            out += encode_varint(self.seed)
        if self.lattice:
            out.append(self.lattice)
        if name:
            out += encode_varint(len(name)) + name
        if self.has_lengths:
            out.append(_check(bytes(out), listed or UNLISTED))
        return bytes(out)


def _default_plan(model: int) -> int:
    return CATALOGUE[model].plan if model in CATALOGUE else DEFAULT_PLAN


def _check(header: bytes, model: int) -> int:
    """Of all bytes before it and, if they name the model by number, of its fingerprint."""
    return crc8(header + (CATALOGUE[model].fingerprint if model in CATALOGUE else b""))


class _Cursor:
    """Reads header fields; the end of the bytes becomes a FormatError."""

    def __init__(self, content: bytes) -> None:
        self.content, self.place = content, 0

    def take(self, count: int) -> bytes:
        part = self.content[self.place : self.place + count]
        if len(part) < count:
            raise FormatError("the file ends inside its header; nothing can be decoded")
        self.place += count
        return part

    def varint(self, low: int, high: int, what: str) -> int:
        try:
            value, used = decode_varint(self.content, self.place)
        except EOFError:
            raise FormatError("the file ends inside its header; nothing can be decoded") from None
        self.place += used
        if not low <= value <= high:
            raise FormatError(f"the header is damaged: {what} is {value}")
        return value


def read_header(content: bytes) -> tuple[Header, int]:
    """(header, number of bytes it takes); FormatError with one line when it is unusable."""
    cursor = _Cursor(content)
    _check_version(content)
    cursor.take(1)
    flags, size = divmod(cursor.take(1)[0], 16)
    options = cursor.take(1)[0] if flags & FLAG_OPTIONS else 0
    grey, planes = bool(flags & FLAG_GREY), bool(options & OPTION_PLANES)
    if flags & FLAGS_UNKNOWN or (planes and not grey):
        raise FormatError("the header is damaged or asks for more than this version knows")
    width = height = SIDE_UNIT * size
    if size in (SIDES_FOLLOW, SIDE_FOLLOWS):
        width = height = cursor.varint(1, MAX_SIDE, "the width")
    if size == SIDES_FOLLOW:
        height = cursor.varint(1, MAX_SIDE, "the height")
    number = cursor.take(1)[0]
    fingerprint = _read_fingerprint(cursor, number)
    plan = _read_plan(cursor) if options & OPTION_PLAN else PLANS[_default_plan(number)]
    seed = cursor.varint(0, MAX_SEED, "the seed") if options & OPTION_SEED else 0
    lattice = _read_lattice(cursor) if options & OPTION_LATTICE else 0
    name = b""
    if options & OPTION_NAME:
        name = cursor.take(cursor.varint(1, 255, "the length of the model's name"))
    check = _check(content[: cursor.place], number)
    if width * height > SMALL and cursor.take(1)[0] != check:
        raise FormatError("the header is damaged (its check does not match)")
    if width * height > MAX_PIXELS:
        raise FormatError(f"the picture of {width}x{height} is larger than {MAX_PIXELS} pixels")
    try:
        model = name.decode()
    except UnicodeDecodeError:
        raise FormatError("the header is damaged: the model's name is not UTF-8") from None
    header = Header(
        width,
        height,
        fingerprint,
        plan,
        grey=grey,
        seed=seed,
        model=model,
        float_arithmetic=bool(options & OPTION_FLOAT),
        chunks=bool(options & OPTION_CHUNKS),
        trailer=bool(options & OPTION_TRAILER),
        planes=planes,
        lattice=lattice,
    )
    if lattice and not header._may_have_lattice:
        raise FormatError("the header is damaged: a lattice for a grey or small picture")
    return header, cursor.place


def _check_version(content: bytes) -> None:
    if content[:1] == FORMER_MAGIC and len(content) > 1:
        version = 1 if content[:2] == VERSION_1 else content[1] >> 4
        raise FormatError(
            f"written in version {version} of the format; this program reads version {VERSION}: "
            "use the diffcodec that wrote it"
        )
    if content[:1] != MAGIC:
        raise FormatError("not a .ddc file (it does not begin with the signature DE)")


def check_pixels(header: Header, max_pixels: int | None) -> None:
    """FormatError if the picture has more than ``max_pixels`` pixels (None: DECODED_PIXELS)."""
    area = header.width * header.height
    limit = DECODED_PIXELS if max_pixels is None else max_pixels
    if area > limit:
        raise FormatError(
            f"the picture of {header.width}x{header.height} has more than {limit} pixels; "
            f"--max-pixels {area} decodes it nevertheless"
        )


def _read_fingerprint(cursor: _Cursor, number: int) -> bytes:
    if number == UNLISTED:
        return cursor.take(FINGERPRINT_BYTES)
    if number not in CATALOGUE:
        raise FormatError(
            f"the file was written with model number {number}, unknown to this program; "
            "a later version may have it"
        )
    return CATALOGUE[number].fingerprint


def _read_lattice(cursor: _Cursor) -> int:
    number = cursor.take(1)[0]
    if number not in LATTICES:
        raise FormatError(
            f"the file's colours lie on lattice {number}, unknown to this program; "
            "a later version may have it"
        )
    return number


def _read_plan(cursor: _Cursor) -> Plan:
    number = cursor.take(1)[0]
    if number != EXPLICIT_PLAN:
        if number not in PLANS:
            raise FormatError(f"the file uses coding plan {number}, unknown to this program")
        return PLANS[number]
    steps, eta, grouped = cursor.take(3)
    timesteps = [cursor.varint(1, 1 << 16, "a timestep")]
    for _ in range(steps):
        timesteps.append(timesteps[-1] - cursor.varint(1, 1 << 16, "a timestep"))
    if timesteps[-1] != 1:
        raise FormatError(f"the header is damaged: its plan ends at t = {timesteps[-1]}")
    try:
        return Plan(tuple(timesteps), eta, grouped)
    except ValueError as e:
        raise FormatError(f"the header is damaged: {e}") from None


@dataclass(frozen=True)
class Layer:
    """One layer as found in a file.

    code: its payload, as far as present; check: of the receiver's state after it (one byte) or,
    for a strip, of its pixels, None if it has none or that is not present; start, end: its
    place in the file, framing included (end is where it would end if it is cut); whole: all of it
    is there.
    """

    code: bytes
    check: int | None
    start: int
    end: int
    whole: bool


class Writer:
    """Appends layers to a header and to what comes between them (``front``)."""

    def __init__(self, header: Header, front: bytes = b"") -> None:
        self._own = header.encode()
        self._out = bytearray(self._own + front)
        self._header, self._layers = header, 0
        self._first, self._steps_end = self.size, self.size

    @property
    def size(self) -> int:
        return len(self._out)

    def add_layer(self, code: bytes, check: int) -> None:
        """A layer of coded steps: length, payload, check of the receiver's state after it.

        Of a small picture without what it need not afford.
        """
        if self._header.has_lengths:
            self._out += encode_varint(len(code))
        self._out += code
        if self._header.has_check(self._layers):
            self._out.append(self._header.layer_check(self._own, check))
        self._layers += 1
        self._steps_end = self.size

    def add_strip(self, code: bytes, pixels: bytes) -> None:
        """A strip of the final layer: length, check of its pixels (a byte a value), payload."""
        header, length = self._header, len(code)
        if not header.has_lengths:
            steps = self._steps_end - self._first
            length = zigzag(length - header.expected_length(steps))
        check = header.pixel_check(pixels).to_bytes(header.pixel_check_bytes, "big")
        self._out += encode_varint(length) + check + code

    def add_trailer(self, trailer: bytes) -> None:
        """What comes after the last strip."""
        self._out += trailer

    def getvalue(self) -> bytes:
        return bytes(self._out)


class LayerReader:
    """Walks the layers of a file in order; ``layers`` are those seen so far.

    A small picture's layers of steps have no lengths: only who decodes one knows where it ends.
    """

    def __init__(self, content: bytes, place: int, header: Header) -> None:
        self.content, self.place = content, place
        self.latest = place
        """Where the layer begins that was asked for last."""
        self._checked = place
        self.has_lengths = header.has_lengths
        self._header, self._own = header, content[: read_header(content)[1]]
        self._first, self._steps_end = place, place
        self.layers: list[Layer] = []

    @property
    def check_bytes(self) -> int:
        """Of the layer of steps that comes next."""
        return int(self._header.has_check(len(self.layers)))

    @property
    def at_end(self) -> bool:
        """Whether every byte was read."""
        return self.place == len(self.content)

    def open(self) -> tuple[bytes, bool]:
        """(bytes of the next layer of steps or more, whether the file may end before its end).

        Raises FormatError for an impossible length.
        """
        self.latest = self.place
        if not self.has_lengths:
            return self.content[self.place :], True
        found = self._length()
        if found is None:
            return b"", True
        size, body = found
        return self.content[body : body + size], body + size >= len(self.content)

    def grow(self) -> bool:
        """Wait for another byte; False: here all of them are known."""
        return False

    def more(self, size: int) -> bytes:
        """The bytes of :meth:`open`: as many as there are, nothing more will come."""
        return self.open()[0]

    @property
    def sound(self) -> int:
        """Where that ends which checks vouch for, or which is not known to be damaged."""
        return self.latest if self.has_lengths else self._checked

    def close(self, used: int, check: int) -> bool:
        """The layer took ``used`` bytes and led to a state with this ``check``.

        Returns whether the file says so, too.  Raises FormatError if it says otherwise.
        """
        layer = self._layer(used)
        if layer is None:
            return False
        if used > len(layer.code) or (layer.whole and used < len(layer.code)):
            raise FormatError("its length is not that of its contents")
        if layer.check not in (None, self._header.layer_check(self._own, check)):
            raise FormatError("its check does not match")
        self._add(layer)
        self._steps_end = self.place
        if layer.check is None:
            return False
        self._checked = layer.end
        return True

    def skip(self) -> bool:
        """Go past a layer of steps by its length; False if the file ends in or before it."""
        layer = self._layer(0)
        if layer is not None:
            self._add(layer)
        return layer is not None and layer.whole

    def _layer(self, used: int) -> Layer | None:
        """The layer of steps that begins here, ``used`` bytes long if it has no length."""
        size, body = used, self.place
        if self.has_lengths:
            found = self._length()
            if found is None:
                return None
            size, body = found
        end = body + size + self.check_bytes
        whole = end <= len(self.content)
        check = self.content[end - 1] if whole and self.check_bytes else None
        return Layer(self.content[body : body + size], check, self.place, end, whole)

    def _add(self, layer: Layer) -> None:
        if layer.start < len(self.content):
            self.layers.append(layer)
        self.place = min(layer.end, len(self.content))

    def strip(self) -> Layer | None:
        """The next strip, which may be cut; None if nothing of its payload can be there."""
        self.latest = self.place
        found = self.strip_length()
        if found is None or found[1] + self.strip_check_bytes > len(self.content):
            return None
        size, body = found[0], found[1] + self.strip_check_bytes
        end = body + size
        code = self.content[body:end]
        check = int.from_bytes(self.content[found[1] : body], "big")
        layer = Layer(code, check, self.place, end, end <= len(self.content))
        self._add(layer)
        return layer

    @property
    def strip_check_bytes(self) -> int:
        """Of every strip."""
        return self._header.pixel_check_bytes

    def strip_length(self) -> tuple[int, int] | None:
        """(length of the strip here, where its check begins); None if the file ends first."""
        found = self._length()
        if found is None or self._header.has_lengths:
            return found
        steps = self._steps_end - self._first
        size = self._header.expected_length(steps) + from_zigzag(found[0])
        if not 0 <= size <= MAX_LAYER:
            raise FormatError(f"impossible length {size}")
        return size, found[1]

    def _length(self) -> tuple[int, int] | None:
        """(length of the layer here, where its payload begins); None if the file ends first."""
        try:
            size, used = decode_varint(self.content, self.place)
        except EOFError:
            return None
        if size > MAX_LAYER:
            raise FormatError(f"impossible length {size}")
        return size, self.place + used
