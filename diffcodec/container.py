"""The .ddc container, version 1: bytes ↔ header and layers.  docs/format.md is its specification.

Knows nothing of models or pictures.  Writers and readers stand side by side and walk the fields
in the order of the specification's table.
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass
from itertools import pairwise

from diffcodec.bits import crc8, decode_varint, encode_varint
from diffcodec.errors import FormatError
from diffcodec.plans import PLANS, Plan

MAGIC = b"\xddC"
VERSION = 1
FLAG_SEED, FLAG_FLOAT, FLAG_NAME, FLAG_GREY = 1, 2, 4, 8
EXPLICIT_PLAN = 255
"""Plan number that says the plan follows."""

FINGERPRINT_BYTES = 3
CHECK_EVERY = 24
"""A check byte follows the layer that brings the unchecked bytes to this many."""

MAX_SIDE = 1 << 20
MAX_PIXELS = 1 << 28
MAX_SEED = (1 << 32) - 1
MAX_LAYER = 1 << 32


@dataclass(frozen=True)
class Header:
    """Everything a decoder needs before the first layer.

    model: name, empty for a model shipped with diffcodec (its fingerprint finds it);
    float_arithmetic: the network was evaluated in floating point, so that only a machine like
    the writer's decodes the file.
    """

    width: int
    height: int
    fingerprint: bytes
    plan: Plan
    grey: bool = False
    seed: int = 0
    model: str = ""
    float_arithmetic: bool = False

    def encode(self) -> bytes:
        """The header's bytes, check included."""
        number = next((n for n, plan in PLANS.items() if plan == self.plan), None)
        name = self.model.encode()
        if not (1 <= self.width <= MAX_SIDE and 1 <= self.height <= MAX_SIDE):
            raise FormatError(f"a picture of {self.width}x{self.height} is not supported")
        if self.width * self.height > MAX_PIXELS:
            raise FormatError(f"{self.width}x{self.height} is more than {MAX_PIXELS} pixels")
        if not 0 <= self.seed <= MAX_SEED or len(name) > 255:
            raise FormatError("seed or model name is out of range")
        flags = FLAG_SEED * bool(self.seed) | FLAG_FLOAT * self.float_arithmetic
        flags |= FLAG_NAME * bool(name) | FLAG_GREY * self.grey
        out = bytearray(MAGIC)
        out.append(VERSION << 4 | flags)
        out += encode_varint(self.width) + encode_varint(self.height)
        out += self.fingerprint
        if number is None:
            t = self.plan.timesteps
            out += bytes([EXPLICIT_PLAN, len(t) - 1, self.plan.eta, self.plan.grouped])
            for value in (t[0], *(a - b for a, b in pairwise(t))):
                out += encode_varint(value)
        else:
            out.append(number)
        if self.seed:
            out += encode_varint(self.seed)
        if name:
            out += encode_varint(len(name)) + name
        return bytes(out) + bytes([crc8(bytes(out))])


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
    if content[:2] != MAGIC[: len(content)] or not content:
        raise FormatError("not a .ddc file (it does not begin with the signature DD 43)")
    cursor.take(2)
    first = cursor.take(1)[0]
    if first >> 4 != VERSION:
        raise FormatError(
            f"written in version {first >> 4} of the format; this program reads version {VERSION}"
        )
    width = cursor.varint(1, MAX_SIDE, "the width")
    height = cursor.varint(1, MAX_SIDE, "the height")
    fingerprint = cursor.take(FINGERPRINT_BYTES)
    plan = _read_plan(cursor)
    seed = cursor.varint(0, MAX_SEED, "the seed") if first & FLAG_SEED else 0
    name = b""
    if first & FLAG_NAME:
        name = cursor.take(cursor.varint(1, 255, "the length of the model's name"))
    check = crc8(content[: cursor.place])
    if cursor.take(1)[0] != check:
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
        grey=bool(first & FLAG_GREY),
        seed=seed,
        model=model,
        float_arithmetic=bool(first & FLAG_FLOAT),
    )
    return header, cursor.place


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
    try:
        return Plan(tuple(timesteps), eta, grouped)
    except ValueError as e:
        raise FormatError(f"the header is damaged: {e}") from None


@dataclass(frozen=True)
class Layer:
    """One layer as found in a file.

    code: its payload, as far as present; start, end: its place in the file, framing included
    (end is where it would end if it is cut); pixel_check: CRC-32 of a strip's pixels.
    """

    code: bytes
    start: int
    end: int
    pixel_check: int | None = None


@dataclass(frozen=True)
class Contents:
    """A parsed file: whole layers in order, then possibly one that is cut.

    cut: the last of ``layers`` is incomplete; complete: every layer of the picture is whole.
    """

    header: Header
    header_size: int
    layers: list[Layer]
    cut: bool
    complete: bool


class Writer:
    """Appends layers to a header."""

    def __init__(self, header: Header) -> None:
        self._out = bytearray(header.encode())
        self._unchecked = bytearray()

    @property
    def size(self) -> int:
        return len(self._out)

    def add_layer(self, code: bytes) -> None:
        """A layer of coded steps: length, payload, and a check byte when one is due."""
        framed = encode_varint(len(code)) + code
        self._out += framed
        self._unchecked += framed
        if len(self._unchecked) >= CHECK_EVERY:
            self._out.append(crc8(bytes(self._unchecked)))
            self._unchecked.clear()

    def add_strip(self, code: bytes, pixels: bytes) -> None:
        """A strip of the final layer: length, CRC-32 of its pixels, payload."""
        self._out += encode_varint(len(code))
        self._out += (binascii.crc32(pixels) & 0xFFFFFFFF).to_bytes(4, "big") + code

    def getvalue(self) -> bytes:
        return bytes(self._out)


def parse(content: bytes, strips: int) -> Contents:
    """Read header and layers; ``strips``: strips of the final layer the picture must have.

    A file that simply ends is cut, which is no error.  Raises FormatError for damage: a check
    that does not match, impossible lengths, bytes after the end.
    """
    header, place = read_header(content)
    reader = _LayerReader(content, place)
    steps = len(header.plan.layers)
    for number in range(steps + strips):
        if not reader.read(is_strip=number >= steps, label=layer_label(header.plan, number)):
            break
    complete = len(reader.layers) == steps + strips and not reader.cut
    if complete and reader.place != len(content):
        raise FormatError("there are bytes after the end of the picture; the file is damaged")
    return Contents(header, place, reader.layers, reader.cut, complete)


def layer_label(plan: Plan, number: int) -> str:
    """How a layer is called in messages."""
    layers = plan.layers
    if number < len(layers):
        return f"layer {number + 1} (down to t = {layers[number][-1][1]})"
    return f"the final layer, strip {number - len(layers) + 1}"


class _LayerReader:
    """Walks the layers of a file; stops at the first that is cut."""

    def __init__(self, content: bytes, place: int) -> None:
        self.content, self.place, self.checked = content, place, place
        self.layers: list[Layer] = []
        self.cut = False

    def read(self, is_strip: bool, label: str) -> bool:
        """Read one layer; False when the bytes end in or before it."""
        start = self.place
        try:
            size, used = decode_varint(self.content, start)
        except EOFError:
            return False
        if size > MAX_LAYER:
            raise FormatError(f"{label} is damaged: impossible length {size}")
        body = start + used + (4 if is_strip else 0)
        end = body + size
        if is_strip and len(self.content) < body:
            return False
        check = None
        if is_strip:
            check = int.from_bytes(self.content[body - 4 : body], "big")
        elif end - self.checked >= CHECK_EVERY:
            end += 1
        if end > len(self.content):
            self.layers.append(Layer(self.content[body : body + size], start, end, check))
            self.cut = True
            return False
        if not is_strip and end > body + size:
            if crc8(self.content[self.checked : end - 1]) != self.content[end - 1]:
                raise FormatError(f"{label} is damaged (its check does not match)")
            self.checked = end
        self.layers.append(Layer(self.content[body : body + size], start, end, check))
        self.place = end
        return True
