"""Pictures in and out: what is kept exactly, what is refused."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffcodec.errors import DataError
from diffcodec.image import (
    Metadata,
    from_array,
    from_image,
    image_bytes,
    not_kept,
    orientation_exif,
    read_image,
    to_array,
)

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


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16", "La", "RGBa"])
def test_modes_that_would_lose_something_are_refused(mode: str) -> None:
    with pytest.raises(DataError, match=r"mode .*not supported; convert to") as caught:
        from_image(Image.new(mode, (4, 4)))
    assert "\n" not in str(caught.value)


def shown(image: Image.Image) -> np.ndarray:
    """What became of an image's pixels on the way in."""
    picture = from_image(image)
    return to_array(picture.levels, picture.grey and not picture.planes, picture.alpha)


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_and_the_colours_under_it_are_kept(channels: int) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    pixels[:2, :, -1] = 0
    picture = from_array(pixels)
    assert picture.alpha is not None
    assert picture.colours == channels - 1
    np.testing.assert_array_equal(to_array(picture.levels, picture.grey, picture.alpha), pixels)
    np.testing.assert_array_equal(shown(Image.fromarray(pixels)), pixels)


@pytest.mark.parametrize("channels", [3, 4])
def test_rgb_without_colour_is_one_plane(channels: int) -> None:
    pixels = np.repeat(GREY[:, :, None], channels, axis=2)
    picture = from_array(pixels)
    assert picture.grey
    assert picture.planes
    assert picture.colours == 3
    pixels[2, 3, 1] ^= 1
    picture = from_array(pixels)
    assert not picture.grey
    assert not picture.planes


def test_transparent_palettes_become_alpha() -> None:
    image = Image.fromarray(RGB).convert("P")
    for transparency in (3, bytes(range(0, 250, 50))):
        image.info["transparency"] = transparency
        np.testing.assert_array_equal(shown(image), np.asarray(image.convert("RGBA")))
    del image.info["transparency"]
    assert shown(image).shape == (5, 7, 3)
    own = Image.new("P", (2, 2), 1)
    own.putpalette([10, 20, 30, 40, 50, 60, 70, 80], "RGBA")
    np.testing.assert_array_equal(shown(own)[0, 0], [50, 60, 70, 80])
    pair = Image.new("PA", (2, 2))
    pair.putpalette([10, 20, 30] * 256)
    np.testing.assert_array_equal(shown(pair)[0, 0], [10, 20, 30, 0])


def png(mode: str, pixels: np.ndarray, **options: object) -> Image.Image:
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "PNG", **options)
    return Image.open(io.BytesIO(stream.getvalue()))


def test_a_transparent_colour_becomes_alpha() -> None:
    colour = shown(png("RGB", RGB, transparency=tuple(int(v) for v in RGB[1, 2])))
    np.testing.assert_array_equal(colour[:, :, :3], RGB)
    assert (colour[:, :, 3] == 0).sum() == 1
    assert colour[1, 2, 3] == 0
    grey = shown(png("L", GREY, transparency=int(GREY[0, 0])))
    np.testing.assert_array_equal(grey[:, :, 1] == 0, GREY[0, 0] == GREY)
    black = np.where(GREY > 99, 255, 0).astype(np.uint8)
    masked = shown(png("1", black, transparency=1))
    np.testing.assert_array_equal(masked, np.dstack([black, 255 - black]))


@pytest.mark.parametrize(("mode", "key"), [("RGB", 0), ("RGB", (1, 2)), ("L", b"ab"), ("1", "0")])
def test_a_transparent_colour_that_makes_no_sense_is_refused(mode: str, key: object) -> None:
    image = Image.new(mode, (4, 4))
    image.info["transparency"] = key
    with pytest.raises(DataError, match="convert to RGBA"):
        from_image(image)


@pytest.mark.parametrize(("depth", "factor"), [(2, 85), (4, 17)])
def test_a_transparent_sample_of_few_bits_is_found(depth: int, factor: int) -> None:
    """PNG names the colour in samples of its own depth; no levels but its samples are spread."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    content = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 8 // depth, 1, depth, 0, 0, 0, 0))
        + chunk(b"tRNS", b"\0\2")
        + chunk(b"IDAT", zlib.compress(bytes([0, 0b00011011 if depth == 2 else 0x12])))
        + chunk(b"IEND", b"")
    )
    found = shown(Image.open(io.BytesIO(content)))[0]
    assert found[found[:, 1] == 0][:, 0].tolist() == [2 * factor]


def test_deep_samples_are_refused_and_not_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "deep.tiff"
    fields = [(256, 3, 1, 1), (257, 3, 1, 1), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1)]
    fields += [(273, 4, 1, 122), (277, 3, 1, 1), (278, 3, 1, 1), (279, 4, 1, 2)]
    tags = b"".join(struct.pack("<HHII", *f) for f in fields)
    path.write_bytes(b"II*\0\x08\0\0\0\x09\0" + tags + bytes(4) + b"\x12\x34")
    with pytest.raises(DataError, match="convert to 8-bit"):
        read_image(path)


EXIF = Image.Exif()
EXIF[0x0112], EXIF[0x010F] = 6, "Maker"
METADATA = Metadata(b"a profile" * 9999, EXIF.tobytes(), "<x>é</x>".encode())


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_metadata_are_written_and_read_byte_for_byte(suffix: str) -> None:
    content = image_bytes(RGB, suffix, METADATA)
    assert not_kept(content, RGB, METADATA) == []
    found = from_image(Image.open(io.BytesIO(content))).metadata
    assert (found.icc, found.xmp, found.orientation) == (METADATA.icc, METADATA.xmp, 6)
    assert found.exif.removeprefix(b"Exif\0\0") == METADATA.exif.removeprefix(b"Exif\0\0")
    again = image_bytes(RGB, suffix, found)  # EXIF from WebP lacks JPEG's prefix
    assert from_image(Image.open(io.BytesIO(again))).metadata == found


def test_tiff_has_exif_in_tags_of_its_own() -> None:
    """Pillow turns a TIFF picture upright, so its orientation is done with."""
    content = image_bytes(RGB, ".tiff", METADATA)
    assert not_kept(content, RGB, METADATA) == []
    found = from_image(Image.open(io.BytesIO(content)))
    assert (found.metadata.icc, found.metadata.xmp) == (METADATA.icc, METADATA.xmp)
    exif = Image.Exif()
    exif.load(found.metadata.exif)
    assert dict(exif) == {0x010F: "Maker"}
    assert found.metadata.orientation == 1
    assert (found.height, found.width) == (7, 5)


def test_what_a_format_cannot_hold_is_told() -> None:
    everything = ["ICC profile", "EXIF", "XMP"]
    clear = np.dstack([RGB, GREY])
    assert not_kept(image_bytes(RGB, ".bmp", METADATA), RGB, METADATA) == everything
    assert not_kept(image_bytes(clear, ".bmp"), clear, Metadata()) == ["transparency"]
    assert not_kept(image_bytes(clear, ".webp"), clear, Metadata()) == []
    large = replace(METADATA, xmp=b"x" * 70000)
    assert not_kept(image_bytes(RGB, ".jpg", large), RGB, large) == ["XMP"]
    with pytest.raises(DataError, match=r"use \.png"):
        image_bytes(clear, ".jpg")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_read_from_exif(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert Metadata(exif=exif.tobytes()).orientation == orientation
    assert Metadata(exif=orientation_exif(orientation)).orientation == orientation
    assert bool(orientation_exif(orientation)) == (orientation != 1)


@pytest.mark.parametrize("exif", [b"", b"junk", b"Exif\0\0", b"Exif\0\0II*\0" + bytes(9)])
def test_exif_that_makes_no_sense_has_no_orientation(exif: bytes) -> None:
    assert Metadata(exif=exif).orientation == 1


def test_metadata_can_be_left_out() -> None:
    image = Image.fromarray(np.dstack([RGB, GREY]))
    image.info.update(METADATA.info)
    picture = from_image(image)
    assert picture.metadata == METADATA
    stripped = picture.without_metadata()
    assert stripped.metadata == Metadata()
    assert stripped.alpha is picture.alpha


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
