"""Other formats: the best file that fits, exact files that are exact, what is missing."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import load_picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from diffcodec.peers import PEERS, Peer, fitting, lossless_entry, lossy_entry, written
from diffcodec.quality import psnr

PRESENT = [peer for peer in PEERS if peer.missing() is None]
LOSSY = [peer for peer in PRESENT if peer.lossy]
KITTEN = Image.fromarray(load_picture("kitten-64.png"))


def named(name: str) -> Peer:
    return next(peer for peer in PEERS if peer.name == name)


def test_what_pillow_always_has_is_present() -> None:
    assert {"PNG", "JPEG"} <= {peer.name for peer in PRESENT}


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("peer", PRESENT, ids=lambda peer: peer.name)
def test_an_exact_entry_is_exact(peer: Peer, mode: str) -> None:
    image = KITTEN.convert(mode)
    entry = lossless_entry(peer, image)
    if entry is None:
        assert peer.name in {"JPEG", "AVIF"}
    else:
        np.testing.assert_array_equal(entry.shown, np.asarray(image))
        assert entry.size > 500


@pytest.mark.parametrize("peer", LOSSY, ids=lambda peer: peer.name)
def test_a_lossy_entry_fits_and_uses_the_room(peer: Peer) -> None:
    pixels = np.asarray(KITTEN)
    small, large = (lossy_entry(peer, KITTEN, size) for size in (1500, 3000))
    assert small and large
    assert small.size <= 1500 < large.size <= 3000
    assert psnr(small.shown, pixels) < psnr(large.shown, pixels)
    assert lossy_entry(peer, KITTEN, 20) is None


@given(st.integers(700, 8000))
def test_the_next_quality_is_too_large(size: int) -> None:
    """Of JPEG, whose size grows with quality."""
    peer = named("JPEG")
    assert peer.lossy
    found = fitting(KITTEN, peer.kind, peer.lossy, peer.qualities, size)
    sizes = [len(written(KITTEN, peer.kind, **peer.lossy(q))) for q in peer.qualities]
    below = [s for s in sizes if s <= size]
    assert (found is None) == (not below)
    if found:
        assert len(found[0]) == max(below)


def test_a_format_pillow_lacks_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda feature: False)
    assert "without avif" in (named("AVIF").missing() or "")
    assert named("PNG").missing() is None
