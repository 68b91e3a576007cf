"""Decoding while the bytes arrive: from a pipe, or from a file that something else is writing.

The receiver's loop (codec.receive) pulls layers from a source; here that source waits.  Nothing
is decoded twice.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from diffcodec import api, chunks, extras
from diffcodec.api import Decoded
from diffcodec.container import MAGIC, Header, Layer, LayerReader, check_pixels, read_header
from diffcodec.contents import model_for
from diffcodec.errors import DataError, FormatError
from diffcodec.files import STANDARD
from diffcodec.model import Model

POLL = 0.05
"""Seconds between looks at a file that does not grow."""

LONGEST_HEADER = 4096
"""No header has more bytes; in fact none has 2700."""


class Feed:
    """The bytes that have arrived so far; ended: no more will come.

    descriptor: of an open file or pipe; timeout: seconds without growth after which a file
    counts as ended.  A pipe ends when its writer closes it.
    """

    def __init__(self, descriptor: int, timeout: float) -> None:
        self.content, self.ended = b"", False
        self._descriptor, self._timeout = descriptor, timeout
        self.grows = stat.S_ISREG(os.fstat(descriptor).st_mode)

    def wait(self, size: int) -> bool:
        """Wait until there are ``size`` bytes in all; False if there never will be."""
        last = time.monotonic()
        while len(self.content) < size and not self.ended:
            part = os.read(self._descriptor, 1 << 16)
            if part:
                self.content += part
                last = time.monotonic()
            elif self.grows and time.monotonic() - last < self._timeout:
                time.sleep(POLL)
            else:
                self.ended = True
        return len(self.content) >= size

    def wait_for_more(self) -> bool:
        """Wait for another byte; False if there is none."""
        return self.wait(len(self.content) + 1)


@contextmanager
def open_feed(path: Path, timeout: float) -> Iterator[Feed]:
    """The bytes of ``path``, or of standard input; DataError when it cannot be read."""
    try:
        if path == STANDARD:
            yield Feed(sys.stdin.fileno(), timeout)
            return
        descriptor = os.open(path, os.O_RDONLY)
        try:
            yield Feed(descriptor, timeout)
        finally:
            os.close(descriptor)
    except OSError as e:
        raise DataError(f"{path}: {(e.strerror or str(e)).lower()}") from e


class FollowingReader(LayerReader):
    """Layers of a file that is still arriving; waits for what it is asked for."""

    def __init__(self, feed: Feed, place: int, header: Header) -> None:
        super().__init__(feed.content, place, header)
        self._feed = feed

    def open(self) -> tuple[bytes, bool]:
        if self.has_lengths:
            self._wait_for(self._length, self.check_bytes)
        return super().open()

    def more(self, size: int) -> bytes:
        if not self.has_lengths:
            self._wait(self.place + size)
        return super().open()[0]

    def close(self, used: int, check: int) -> bool:
        if not self.has_lengths:
            self._wait(self.place + used + self.check_bytes)
        return super().close(used, check)

    def strip(self) -> Layer | None:
        self._wait_for(self.strip_length, self.strip_check_bytes)
        return super().strip()

    def grow(self) -> bool:
        return self._wait(len(self.content) + 1)

    def _wait(self, size: int) -> bool:
        arrived = self._feed.wait(size)
        self.content = self._feed.content
        return arrived

    def _wait_for(self, length: Callable[[], tuple[int, int] | None], behind: int) -> None:
        """Wait for a length, what it counts, and the bytes that come with it."""
        while (found := length()) is None and self.grow():
            pass
        if found is not None:
            self._wait(sum(found) + behind)


def follow(
    feed: Feed,
    refresh: Callable[[Decoded, int], None],
    *,
    model: Model | None = None,
    recon: str = "mean",
    seed: int = 0,
    max_pixels: int | None = None,
    device: str | None = None,
) -> Decoded:
    """Decode what ``feed`` brings until the picture is complete or no more comes.

    refresh: called with the picture and the number of bytes up to there after every whole layer;
    the rest, and what is returned and raised, as in :func:`diffcodec.decode`.
    """
    header, start = _read_header(feed)
    check_pixels(header, max_pixels)
    model = model_for(header, model).on(device)
    while header.chunks:
        try:
            chunks.read_block(feed.content, start)
            break
        except EOFError:
            if not feed.wait_for_more():
                break
    _wait_for_substance(feed, header, start, max_pixels)
    front = extras.read_front(header, feed.content, start)
    reader = FollowingReader(feed, front.end, header)
    return api.decode_layers(header, front, reader, model, recon=recon, seed=seed, refresh=refresh)


def _read_header(feed: Feed) -> tuple[Header, int]:
    while True:
        try:
            return read_header(feed.content)
        except FormatError:
            hopeless = feed.content[:1] not in (b"", MAGIC) or len(feed.content) > LONGEST_HEADER
            if hopeless or not feed.wait_for_more():
                raise


def _wait_for_substance(feed: Feed, header: Header, start: int, max_pixels: int | None) -> None:
    """Wait until a large picture has sent so much that its size can be believed."""
    _, end = extras.front_chunks(header, feed.content, start)
    while True:
        try:
            extras.check_presence(header, feed.content, end, max_pixels)
            return
        except FormatError:
            if not feed.wait_for_more():
                raise
