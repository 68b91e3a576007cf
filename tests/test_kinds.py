"""Every kind of picture end to end: transparency, palettes, metadata, whole files and cut ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SHORT_PLAN, round_trip
from make_golden import FOLDERS, kinds
from numpy.typing import NDArray
from PIL import Image
from test_cli import DATA_ERROR, assert_refused, run

import diffcodec
from diffcodec import DataError, FormatError, api, extras
from diffcodec.container import read_header
from diffcodec.image import (
    Metadata,
    from_array,
    from_image,
    image_bytes,
    orientation_exif,
    to_array,
)
from diffcodec.model import Model

U8 = NDArray[np.uint8]
RGBA = np.random.default_rng(5).integers(0, 256, (24, 32, 4), dtype=np.uint8)
RGBA[:4, :, 3] = 0
EXIF = Image.Exif()
EXIF[0x0112], EXIF[0x010F] = 6, "Maker"
METADATA = Metadata(b"a profile" * 20, EXIF.tobytes(), "<x>é</x>".encode())


@pytest.fixture(scope="module")
def full(tiny: Model) -> bytes:
    """A file with everything: alpha, ICC profile, orientation, EXIF, XMP."""
    picture = replace(from_array(RGBA), metadata=METADATA)
    return diffcodec.encode(picture, model=tiny, effort=1, plan=SHORT_PLAN)


def last_pixel(content: bytes, model: Model) -> int:
    """Where the last strip ends."""
    return api.parse(content, model).layers[-1].end


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_arrays_come_back_as_they_were(channels: int, tiny: Model) -> None:
    pixels = RGBA[:, :, -channels:]
    round_trip(pixels[:, :, 0] if channels == 1 else pixels, tiny, plan=SHORT_PLAN)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA"])
def test_modes_come_back_as_they_were(mode: str, tiny: Model) -> None:
    image = Image.fromarray(RGBA if "A" in mode else RGBA[:, :, :3]).convert(
        mode.replace("PA", "P")
    )
    image = image.convert(mode)
    options = {"model": tiny, "effort": 1, "plan": SHORT_PLAN}
    decoded = diffcodec.decode(diffcodec.encode(image, **options), model=tiny)
    assert decoded.exact
    expected = image.convert({"1": "L", "P": "RGB", "PA": "RGBA"}.get(mode, mode))
    assert decoded.to_image().mode == expected.mode
    np.testing.assert_array_equal(decoded.pixels, np.asarray(expected))


def test_rgb_without_colour_costs_one_byte_more_than_its_luma(tiny: Model) -> None:
    grey = RGBA[:, :, 0]
    plain = round_trip(grey, tiny)
    # The test model's name takes the byte of options already.
    assert len(round_trip(np.dstack([grey] * 3), tiny)) == len(plain)
    assert len(round_trip(np.dstack([grey] * 4), tiny)) > len(plain)
    assert len(round_trip(RGBA[:, :, :3], tiny)) > 2 * len(plain)


def test_what_is_not_there_costs_nothing(full: bytes, tiny: Model) -> None:
    plain = diffcodec.encode(RGBA[:, :, :3], model=tiny, effort=1, plan=SHORT_PLAN)
    header = read_header(plain)[0]
    assert not (header.chunks or header.trailer or header.planes)
    front, trailer = extras.pack(replace(from_array(RGBA), metadata=METADATA))
    assert len(full) == len(plain) + len(front) + len(trailer)
    assert extras.pack(from_array(RGBA[:, :, :3])) == (b"", b"")


def test_everything_comes_back(full: bytes, tiny: Model) -> None:
    decoded = diffcodec.decode(full, model=tiny)
    assert decoded.exact
    assert not decoded.metadata_cut
    assert decoded.metadata == METADATA
    np.testing.assert_array_equal(decoded.pixels, RGBA)
    image = decoded.to_image()
    assert image.mode == "RGBA"
    assert from_image(image).metadata == METADATA
    contents = api.parse(full, tiny)
    assert contents.complete
    assert [chunk.kind for chunk in contents.chunks] == [1, 2, 3, 4, 5]


def test_a_cut_has_alpha_and_profile_and_can_be_shown_upright(full: bytes, tiny: Model) -> None:
    expected = Metadata(METADATA.icc, orientation_exif(6))
    start = api.parse(full, tiny).header_size
    for size in (start, start + 40, last_pixel(full, tiny) - 1):
        decoded = diffcodec.decode(full[:size], model=tiny)
        assert not decoded.exact
        assert decoded.metadata == expected
        assert decoded.metadata_cut
        np.testing.assert_array_equal(decoded.pixels[:, :, 3], RGBA[:, :, 3])
        assert not api.parse(full[:size], tiny).complete
    assert diffcodec.decode(full, model=tiny, stop_t=40).metadata == expected


def test_a_profile_that_is_large_beside_the_picture_comes_last(tiny: Model) -> None:
    metadata = Metadata(icc=np.random.default_rng(0).bytes(100))
    options = {"model": tiny, "effort": 1, "plan": SHORT_PLAN}
    for side, first in ((16, False), (60, True)):
        picture = replace(from_array(np.zeros((side, side), np.uint8)), metadata=metadata)
        content = diffcodec.encode(picture, **options)
        assert diffcodec.decode(content, model=tiny).metadata == metadata
        cut = diffcodec.decode(content[: last_pixel(content, tiny)], model=tiny)
        assert cut.exact
        assert cut.metadata_cut == (not first)
        assert cut.metadata == (metadata if first else Metadata())


def test_a_cut_trailer_leaves_exact_pixels(full: bytes, tiny: Model) -> None:
    for size in {*range(last_pixel(full, tiny), len(full), 7), len(full) - 1}:
        decoded = diffcodec.decode(full[:size], model=tiny)
        assert decoded.exact
        assert decoded.metadata_cut
        assert decoded.metadata == Metadata(METADATA.icc, orientation_exif(6))
        contents = api.parse(full[:size], tiny)
        assert (contents.complete, contents.damage) == (False, None)


def test_a_damaged_trailer_is_refused(full: bytes, tiny: Model) -> None:
    refused = 0
    places = range(last_pixel(full, tiny), len(full), 5)
    for place in places:
        damaged = bytearray(full)
        damaged[place] ^= 0x04
        try:
            decoded = diffcodec.decode(bytes(damaged), model=tiny)
        except FormatError:
            refused += 1
            assert api.parse(bytes(damaged), tiny).damage
            continue
        # A length that is too large now is the same as a cut.
        assert decoded.metadata_cut or decoded.metadata == METADATA
    assert refused > 0.9 * len(places)
    with pytest.raises(FormatError, match="after the end"):
        diffcodec.decode(full + b"\0", model=tiny)
    assert api.parse(full + b"\0", tiny).damage


def test_a_file_that_ends_before_its_layers_is_refused(full: bytes, tiny: Model) -> None:
    header, start = read_header(full)[1], api.parse(full, tiny).header_size
    assert start > header + 100
    for size in range(header, start, 29):
        for use in (diffcodec.decode, api.parse):
            with pytest.raises(FormatError, match="ends in"):
                use(full[:size], model=tiny)
        with pytest.raises(FormatError, match=f"keep at least {start}"):
            diffcodec.truncate(full, max_bytes=size)
        with pytest.raises(FormatError, match=f"header.* of {start} bytes"):
            diffcodec.encode(
                replace(from_array(RGBA), metadata=METADATA),
                model=tiny,
                plan=SHORT_PLAN,
                max_bytes=size,
            )
    assert diffcodec.truncate(full, max_bytes=start) == full[:start]
    limited = diffcodec.truncate(full, stop_t=1000, model=tiny)
    assert limited == full[:start]


def test_damage_before_the_layers_is_refused(full: bytes, tiny: Model) -> None:
    begin, end = read_header(full)[1], api.parse(full, tiny).header_size
    for place in range(begin, end, 11):
        damaged = bytearray(full)
        damaged[place] ^= 0x04
        with pytest.raises(FormatError):
            diffcodec.decode(bytes(damaged), model=tiny)


def test_limits_are_cuts_of_the_whole_file(full: bytes, tiny: Model) -> None:
    picture = replace(from_array(RGBA), metadata=METADATA)
    options = {"model": tiny, "effort": 1, "plan": SHORT_PLAN}
    for size in (last_pixel(full, tiny) - 5, last_pixel(full, tiny) + 5, len(full) + 5):
        assert diffcodec.encode(picture, max_bytes=size, **options) == full[:size]
    for stop_t in (1, 40):
        expected = diffcodec.truncate(full, stop_t=stop_t, model=tiny)
        assert diffcodec.encode(picture, stop_t=stop_t, **options) == expected


def test_large_files_too(tiny: Model) -> None:
    """Whose layers have lengths, so that they are taken apart without decoding."""
    pixels = np.zeros((66, 66, 2), np.uint8)
    pixels[20:40, 20:40] = 200
    picture = replace(from_array(pixels), metadata=METADATA)
    content = diffcodec.encode(picture, model=tiny, effort=1, plan=SHORT_PLAN)
    contents = api.parse(content)
    assert contents.complete
    assert not api.parse(content[:-1]).complete
    decoded = diffcodec.decode(content, model=tiny)
    assert (decoded.exact, decoded.metadata) == (True, METADATA)
    np.testing.assert_array_equal(decoded.pixels, pixels)


@pytest.mark.parametrize("version", sorted(FOLDERS))
@pytest.mark.parametrize("name", sorted(kinds()))
def test_golden_files_of_every_kind_decode_for_ever(
    name: str, version: int, exact_tiny: Model
) -> None:
    content, picture = (FOLDERS[version] / f"{name}.ddc").read_bytes(), kinds()[name]
    expected = to_array(picture.levels, picture.grey and not picture.planes, picture.alpha)
    decoded = diffcodec.decode(content, model=exact_tiny)
    assert decoded.exact
    np.testing.assert_array_equal(decoded.pixels, expected)
    assert decoded.metadata == picture.metadata
    contents = api.parse(content, exact_tiny)
    cut = diffcodec.decode(content[: contents.header_size], model=exact_tiny)
    if picture.alpha is not None:
        np.testing.assert_array_equal(cut.pixels[:, :, -1], picture.alpha)
    assert cut.metadata.orientation == picture.metadata.orientation


@pytest.mark.parametrize("folder", FOLDERS.values())
def test_golden_files_use_every_kind_of_chunk(folder: Path, exact_tiny: Model) -> None:
    found = [api.parse((folder / f"{name}.ddc").read_bytes(), exact_tiny) for name in kinds()]
    chunks = [chunk for contents in found for chunk in contents.chunks]
    assert {chunk.kind for chunk in chunks} == {1, 2, 3, 4, 5}
    assert {chunk.payload[0] for chunk in chunks if chunk.kind == 1} == {0, 1, 2}
    assert {contents.header.planes for contents in found} == {False, True}


def test_metadata_that_are_too_large_are_refused(tiny: Model) -> None:
    picture = replace(from_array(RGBA), metadata=Metadata(exif=bytes((1 << 24) + 1)))
    with pytest.raises(DataError, match="--strip"):
        diffcodec.encode(picture, model=tiny)


# -- the command line ------------------------------------------------------------------------


def save(path: Path, pixels: U8) -> Path:
    path.write_bytes(image_bytes(pixels, path.suffix, METADATA))
    return path


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_files_come_back_with_their_metadata(
    suffix: str, tmp_path: Path, tiny_folder: Path
) -> None:
    source = save(tmp_path / f"a{suffix}", RGBA)
    coded, back = tmp_path / "a.ddc", tmp_path / f"b{suffix}"
    model = ("--model", tiny_folder)
    encoded = run("encode", source, "-o", coded, "--effort", 1, *model)
    assert encoded.exit_code == 0, encoded.output
    assert encoded.stderr == ""
    decoded = run("decode", coded, "-o", back, *model)
    assert "exact" in decoded.stdout
    assert "note" not in decoded.stderr
    with Image.open(source) as image, Image.open(back) as again:
        found = from_image(again).metadata
        assert found == from_image(image).metadata
        assert (found.icc, found.xmp, found.orientation) == (METADATA.icc, METADATA.xmp, 6)
        np.testing.assert_array_equal(np.asarray(again), RGBA)
    area = RGBA.shape[0] * RGBA.shape[1]
    assert f"{8 * coded.stat().st_size / area / 3:.3f} bpd" in encoded.stdout
    assert f"{8 * coded.stat().st_size / area / 3:.3f} bpd" in decoded.stdout


def test_jpeg_keeps_its_metadata_and_says_what_is_coded(tmp_path: Path, tiny_folder: Path) -> None:
    source = save(tmp_path / "a.jpg", RGBA[:, :, :3])
    coded, back = tmp_path / "a.ddc", tmp_path / "b.jpg"
    encoded = run("encode", source, "-o", coded, "--effort", 1, "--model", tiny_folder)
    assert encoded.exit_code == 0, encoded.output
    assert "not the JPEG file" in encoded.stderr
    decoded = run("decode", coded, "-o", back, "--model", tiny_folder)
    assert "does not keep every pixel" in decoded.stderr
    with Image.open(back) as image:
        assert from_image(image).metadata == METADATA


def test_strip_leaves_metadata_out_and_alpha_in(tmp_path: Path, tiny_folder: Path) -> None:
    source = save(tmp_path / "a.webp", RGBA)
    coded, back = tmp_path / "a.ddc", tmp_path / "b.png"
    words = ("encode", source, "-o", coded, "--effort", 1, "--model", tiny_folder, "--strip")
    assert run(*words).exit_code == 0
    assert run("decode", coded, "-o", back, "--model", tiny_folder).exit_code == 0
    with Image.open(back) as image:
        assert from_image(image).metadata == Metadata()
        np.testing.assert_array_equal(np.asarray(image), RGBA)


def test_decode_tells_of_metadata_that_are_missing(
    full: bytes, tmp_path: Path, tiny_folder: Path
) -> None:
    source, target = tmp_path / "cut.ddc", tmp_path / "cut.png"
    source.write_bytes(full[:-1])
    words = ("decode", source, "-o", target, "--model", tiny_folder)
    result = run(*words)
    assert "exact" in result.stdout
    note = f"note: {source} ends inside its metadata; the pixels are exact\n"
    assert result.stderr.startswith(note)
    with Image.open(target) as image:
        assert image.getexif()[0x0112] == 6
    source.write_bytes(full[:-9] + bytes([full[-9] ^ 1]) + full[-8:])
    target.unlink()
    assert_refused(run(*words), DATA_ERROR, "damaged")
    assert not target.exists()


def test_decode_tells_what_a_format_cannot_hold(
    full: bytes, tmp_path: Path, tiny_folder: Path
) -> None:
    source = tmp_path / "a.ddc"
    source.write_bytes(full)
    words = ("decode", source, "--model", tiny_folder, "-o")
    result = run(*words, tmp_path / "a.bmp")
    assert "note: not in a .bmp file: transparency, ICC profile, EXIF, XMP" in result.stderr
    assert_refused(run(*words, tmp_path / "a.jpg"), DATA_ERROR, "use .png")


def test_info_tells_of_everything(full: bytes, tiny: Model) -> None:
    facts = api.describe(full, tiny)
    assert facts["colour"] == "RGB"
    assert facts["alpha_bytes"] > 0
    sizes = (facts["icc_bytes"], facts["exif_bytes"], facts["xmp_bytes"])
    assert sizes == (180, len(METADATA.exif), len(METADATA.xmp))
    assert facts["metadata"] == "whole"
    cut = api.describe(full[:-1], tiny)
    assert (cut["metadata"], cut["exif_bytes"], cut["complete"]) == ("not whole", None, False)
    assert facts["header_bytes"] == api.parse(full, tiny).header_size


def test_pillow_s_own_bytes_are_what_is_stored() -> None:
    """Also where Pillow gives XMP as text."""
    image = Image.fromarray(RGBA)
    image.info["XML:com.adobe.xmp"] = "<x>é</x>"
    assert from_image(image).metadata == Metadata(xmp="<x>é</x>".encode())
