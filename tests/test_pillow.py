"""The format DDC for Pillow: opening, drafts, saving, and errors Pillow's users expect."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, SHORT_PLAN, round_trip
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

import diffcodec
import diffcodec.pillow
from diffcodec.container import read_header
from diffcodec.model import Model
from diffcodec.pillow import DdcImageFile
from diffcodec.schedule import Schedule

U8 = NDArray[np.uint8]


@pytest.fixture(scope="module", params=["RGB", "L"])
def pixels(request: pytest.FixtureRequest) -> U8:
    shape = {"RGB": (12, 10, 3), "L": (12, 10)}[request.param]
    return np.random.default_rng(5).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def content(pixels: U8, tiny: Model) -> bytes:
    return round_trip(pixels, tiny, plan=SHORT_PLAN)


def open_ddc(source: bytes | Path, model: Model | None = None) -> DdcImageFile:
    image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    assert isinstance(image, DdcImageFile)
    image.model = model
    return image


def test_opening_reads_the_header_only(content: bytes, pixels: U8) -> None:
    """Neither layers nor a model are needed for size and mode."""
    image = open_ddc(content[: read_header(content)[1]])
    assert (image.format, image.size) == ("DDC", (10, 12))
    assert image.mode == ("L" if pixels.ndim == 2 else "RGB")
    assert image.get_format_mimetype() == "image/x-ddc"
    assert "diffcodec" not in image.info


@pytest.mark.parametrize("kind", ["path", "object"])
def test_pictures_come_back(
    content: bytes, pixels: U8, tiny: Model, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "a.ddc"
    path.write_bytes(content)
    with open_ddc(path if kind == "path" else content, tiny) as image:
        assert np.array_equal(np.asarray(image), pixels)
        assert image.info["diffcodec"] == {"exact": True, "t": 0}
        image.load()  # once more changes nothing
        image.putpixel((0, 0), 0)  # and it may be written to
        assert np.array_equal(np.asarray(image)[1:], pixels[1:])
        assert np.array_equal(np.asarray(pickle.loads(pickle.dumps(image)))[1:], pixels[1:])


@given(st.data())
def test_any_first_part_loads_as_the_picture_it_holds(
    content: bytes, tiny: Model, data: st.DataObject
) -> None:
    size = data.draw(st.integers(read_header(content)[1], len(content)))
    stop_t = data.draw(st.integers(0, 1000))
    image = open_ddc(content[:size], tiny)
    image.stop_t = stop_t
    expected = diffcodec.decode(content[:size], stop_t=stop_t, model=tiny)
    assert np.array_equal(np.asarray(image), expected.pixels)
    assert image.info["diffcodec"] == {"exact": expected.exact, "t": expected.t}


@pytest.mark.parametrize("kind", ["text", "cut header", "damaged header", "empty"])
def test_what_is_no_ddc_file_is_unidentified(content: bytes, kind: str) -> None:
    damaged = bytearray(content)
    damaged[1] ^= 0x40  # must be 0
    bad = {"text": b"hello", "cut header": content[:4], "damaged header": damaged, "empty": b""}
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(bytes(bad[kind])))


def test_damage_and_absent_models_are_os_errors(
    content: bytes, tiny: Model, shipped: Model
) -> None:
    """The header of so small a picture is verified with its first layer."""
    damaged, header = bytearray(content), bytearray(content)
    damaged[-2] ^= 1
    header[read_header(content)[1] - 1] ^= 1
    for bad, model in (
        (bytes(damaged), tiny),
        (bytes(header), tiny),
        (content, None),
        (content, shipped),
    ):
        image = open_ddc(bad, model)
        for _ in range(2):  # the second time too
            with pytest.raises(OSError) as caught:
                image.load()
            assert "\n" not in str(caught.value)
        assert "diffcodec" not in image.info
    image = open_ddc(content, tiny)
    image.close()
    with pytest.raises(OSError):
        image.load()


# -- drafts ----------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 40))
def test_drafts_follow_their_rule(content: bytes, width: int, height: int) -> None:
    image = open_ddc(content)
    assert image.draft("L", (width, height)) == (image.mode, (0, 0, 10, 12))
    factor = min(10 / width, 12 / height)
    if factor < 2:
        assert image.stop_t == 0
        return
    noise = {t: Schedule().sigma_levels(t) for t in SHORT_PLAN.timesteps[1:]}
    assert image.stop_t == max(t for t in noise if noise[t] <= 5 * factor)


def test_drafts_do_not_undo_what_was_asked_for(content: bytes, tiny: Model) -> None:
    image = open_ddc(content, tiny)
    image.stop_t = 150
    image.draft(None, (2, 2))
    assert image.stop_t == 150
    image.load()
    assert image.info["diffcodec"]["t"] == 180
    assert image.draft(None, (1, 1)) is None
    assert open_ddc(content).draft(None, None) is None


def test_thumbnails_read_only_what_shows_in_them(bird: U8, bird_file: bytes) -> None:
    whole = Image.fromarray(bird)
    image = open_ddc(bird_file)
    assert image.info == {}
    for thumbnail in (whole, image):
        thumbnail.thumbnail((4, 4))
    assert image.size == (4, 4)
    assert image.info["diffcodec"]["t"] == 39
    error = np.asarray(image).astype(float) - np.asarray(whole)
    assert np.sqrt(np.mean(np.square(error))) < 3


# -- saving ----------------------------------------------------------------------------------


@given(
    st.fixed_dictionaries(
        {"effort": st.just(1)},
        optional={
            "seed": st.integers(0, 3),
            "stop_t": st.integers(100, 1000),
            "max_bytes": st.integers(40, 80),
        },
    )
)
def test_saving_is_encoding(pixels: U8, tiny: Model, options: dict[str, int]) -> None:
    stream = io.BytesIO()
    unset = {"stop_t": None, "max_bytes": None, "quality": 3}
    Image.fromarray(pixels).save(stream, "DDC", model=tiny, **(unset | options))
    assert stream.getvalue() == diffcodec.encode(pixels, model=tiny, **options)


def test_saving_to_a_path_with_a_model_by_its_folder(
    pixels: U8, tiny: Model, tiny_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.ddc"
    Image.fromarray(pixels).save(path, model=tiny_folder, max_bytes=70)
    assert path.read_bytes() == diffcodec.encode(pixels, model=tiny, max_bytes=70)
    again = tmp_path / "b.ddc"
    open_ddc(path, tiny).save(again, model=str(tiny_folder), max_bytes=70)
    assert np.asarray(open_ddc(again, tiny)).shape == pixels.shape


def test_the_shipped_model_is_the_default(tmp_path: Path) -> None:
    path = tmp_path / "a.ddc"
    with Image.open(DATA / "budgerigar-32.png") as image:
        image.convert("RGB").crop((0, 0, 8, 8)).save(path, effort=1, stop_t=100)
    open_ddc(path).load()


@pytest.mark.parametrize("mode", ["CMYK", "F", "I", "HSV", "LAB"])
def test_modes_that_cannot_be_written(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "a.ddc"
    with pytest.raises(OSError, match=f"cannot write mode {mode} as DDC"):
        Image.new(mode, (4, 4)).save(path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"effort": 10}, "effort"), ({"max_bytes": 3}, "header"), ({"model": "none"}, "none")],
)
def test_options_that_cannot_be_met(options: dict[str, object], message: str) -> None:
    with pytest.raises(OSError, match=message):
        Image.new("L", (4, 4)).save(io.BytesIO(), "DDC", **options)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_and_metadata_are_known_and_kept(mode: str, tiny: Model) -> None:
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (9, 7, len(mode)), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", icc_profile=b"a profile")
    with Image.open(stream) as original:
        content = diffcodec.encode(original, model=tiny, effort=1)
    image = open_ddc(content, tiny)
    assert image.mode == mode
    image.load()
    np.testing.assert_array_equal(np.asarray(image), pixels)
    assert image.info["icc_profile"] == b"a profile"


def test_grey_planes_open_as_what_they_were(tiny: Model) -> None:
    pixels = np.repeat(np.arange(48, dtype=np.uint8).reshape(6, 8, 1), 3, axis=2)
    image = open_ddc(diffcodec.encode(pixels, model=tiny, effort=1), tiny)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), pixels)
