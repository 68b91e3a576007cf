"""Pictures in and out: what is kept exactly, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffcodec.errors import DataError
from diffcodec.image import from_array, from_image, image_bytes, read_image, to_array

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RGB[:, :, 0].copy()


@pytest.mark.parametrize("pixels", [RGB, GREY], ids=["rgb", "grey"])
def test_arrays_round_trip(pixels: np.ndarray) -> None:
    picture = from_array(pixels)
    assert picture.levels.shape == (3, 5, 7)
    assert (picture.height, picture.width) == (5, 7)
    assert picture.grey == (pixels.ndim == 2)
    np.testing.assert_array_equal(to_array(picture.levels, picture.grey), pixels)


def test_planes_are_red_green_blue() -> None:
    np.testing.assert_array_equal(from_array(RGB).levels[2], RGB[:, :, 2])
    assert (from_array(GREY).levels == GREY).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_modes_without_loss_are_accepted(mode: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    picture = from_image(image)
    assert picture.grey == (mode in {"L", "1"})
    expected = np.asarray(image.convert("L" if picture.grey else "RGB"))
    np.testing.assert_array_equal(to_array(picture.levels, picture.grey), expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F"])
def test_modes_that_would_lose_something_are_refused(mode: str) -> None:
    with pytest.raises(DataError, match=r"transparency|not supported"):
        from_image(Image.new(mode, (4, 4)))


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_transparent_colours_are_refused(mode: str) -> None:
    image = Image.new(mode, (4, 4))
    image.info["transparency"] = 0
    with pytest.raises(DataError, match="transparency"):
        from_image(image)


def test_metadata_that_is_dropped_is_listed() -> None:
    image = Image.fromarray(RGB)
    assert from_image(image).dropped == ()
    image.info.update(icc_profile=b"a", exif=b"b", xmp=b"c")
    assert from_image(image).dropped == ("ICC profile", "EXIF", "XMP")


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".ppm", ".tiff", ".webp", ".PNG"])
@pytest.mark.parametrize("pixels", [RGB, GREY], ids=["rgb", "grey"])
def test_files_round_trip(tmp_path: Path, suffix: str, pixels: np.ndarray) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(image_bytes(pixels, suffix))
    found = np.asarray(Image.open(path).convert("RGB"))
    np.testing.assert_array_equal(found, np.asarray(Image.fromarray(pixels).convert("RGB")))
    if suffix != ".webp":  # WebP knows no grey
        picture = read_image(path)
        np.testing.assert_array_equal(to_array(picture.levels, picture.grey), pixels)


@pytest.mark.parametrize("suffix", ["", ".nonsense", ".ddc"])
def test_unknown_types_are_refused(suffix: str) -> None:
    with pytest.raises(DataError, match="cannot write"):
        image_bytes(RGB, suffix)


def test_errors_name_the_file(tmp_path: Path) -> None:
    text, animation = tmp_path / "text.png", tmp_path / "animation.gif"
    text.write_text("no picture")
    frames = [Image.new("L", (4, 4), v) for v in (0, 200)]
    frames[0].save(animation, save_all=True, append_images=frames[1:], duration=9)
    for path in (text, animation, tmp_path / "missing.png", tmp_path):
        with pytest.raises(DataError, match=str(path)):
            read_image(path)


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    """Cut anywhere; the last 12 bytes of a PNG only mark its end."""
    content = image_bytes(np.tile(RGB, (9, 9, 1)), ".png")
    path = tmp_path / "a.png"
    for size in range(0, len(content) - 20, 97):
        path.write_bytes(content[:size])
        with pytest.raises(DataError):
            read_image(path)
