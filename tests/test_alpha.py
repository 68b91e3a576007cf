"""Transparency without loss: every kind of plane comes back, every wrong payload is refused."""

from __future__ import annotations

import lzma

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from diffcodec import alpha
from diffcodec.errors import FormatError

U8 = NDArray[np.uint8]
Y, X = np.mgrid[:50, :70]
PLANES: dict[str, tuple[U8, int]] = {
    "constant": (np.full((9, 4), 255, np.uint8), alpha.CONSTANT),
    "one pixel": (np.array([[7]], np.uint8), alpha.CONSTANT),
    "mask": (np.where((X - 30) ** 2 + (Y - 20) ** 2 < 300, 255, 0).astype(np.uint8), alpha.PLAIN),
    "gradient": ((2 * X + Y).astype(np.uint8), alpha.PREDICTED),
    "soft edge": (np.clip(300 - 9 * np.hypot(X, Y), 0, 255).astype(np.uint8), alpha.PREDICTED),
    "noise": (np.random.default_rng(0).integers(0, 256, (9, 31), dtype=np.uint8), alpha.PLAIN),
}


@pytest.mark.parametrize("name", PLANES)
def test_kinds_of_planes_round_trip(name: str) -> None:
    plane, method = PLANES[name]
    payload = alpha.encode_plane(plane)
    assert payload[0] == method
    assert len(payload) <= plane.size + 9
    np.testing.assert_array_equal(alpha.decode_plane(payload, *plane.shape), plane)


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_any_plane_round_trips(plane: U8) -> None:
    payload = alpha.encode_plane(plane)
    np.testing.assert_array_equal(alpha.decode_plane(payload, *plane.shape), plane)


def test_a_plane_of_any_strides_round_trips() -> None:
    plane = PLANES["gradient"][0].T[::-1, ::2]
    payload = alpha.encode_plane(plane)
    np.testing.assert_array_equal(alpha.decode_plane(payload, *plane.shape), plane)


def test_residuals_are_those_of_the_specification() -> None:
    """First the value, then the left one, above it, and the median edge detector."""
    plane = np.array([[10, 250, 3], [20, 4, 255], [0, 30, 60]], np.uint8)
    # Row 1: corner 10 ≤ 20, 250 → 250; corner 250 ≥ 4, 3 → 3.
    # Row 2: corner 20 ≥ 0, 4 → 0; corner 4 ≤ 30, 255 → 255.
    expected = np.array([[10, 240, 9], [10, 10, 252], [236, 30, 61]], np.uint8)
    np.testing.assert_array_equal(alpha._residuals(plane), expected)
    restored = expected.copy()
    alpha._restore(restored)
    np.testing.assert_array_equal(restored, plane)


def test_a_plane_of_another_size_is_refused() -> None:
    plane = PLANES["gradient"][0]
    payload = alpha.encode_plane(plane)
    for height in (1, 49, 51):
        with pytest.raises(FormatError, match="wrong size"):
            alpha.decode_plane(payload, height, 70)


def test_nothing_larger_than_the_plane_is_unpacked() -> None:
    bomb = lzma.compress(bytes(1 << 24), lzma.FORMAT_RAW, filters=alpha._FILTERS)
    with pytest.raises(FormatError, match="wrong size"):
        alpha.decode_plane(bytes([alpha.PLAIN]) + bomb, 4, 4)


@pytest.mark.parametrize("payload", ["", "00", "000102", "03", "0300", "01", "0100", "02ff00"])
def test_payloads_that_are_none_are_refused(payload: str) -> None:
    with pytest.raises(FormatError):
        alpha.decode_plane(bytes.fromhex(payload), 2, 2)


@pytest.mark.parametrize("name", ["mask", "gradient"])
def test_every_prefix_is_refused(name: str) -> None:
    plane, _ = PLANES[name]
    payload = alpha.encode_plane(plane)
    for size in range(len(payload)):
        with pytest.raises(FormatError):
            alpha.decode_plane(payload[:size], *plane.shape)
    with pytest.raises(FormatError):
        alpha.decode_plane(payload + b"\0", *plane.shape)


@given(st.binary(max_size=40))
def test_noise_never_raises_anything_else(payload: bytes) -> None:
    try:
        plane = alpha.decode_plane(payload, 3, 5)
    except FormatError:
        return
    assert plane.shape == (3, 5)
