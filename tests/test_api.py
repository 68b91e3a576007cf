"""What Python users call: encode, decode, truncate, parse, describe."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import SHORT_PLAN, round_trip, write_tiny_model
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import diffcodec
from diffcodec import DataError, FormatError, ModelError, api
from diffcodec.codec import SentLayer
from diffcodec.container import Header, read_header
from diffcodec.model import Model, read_model
from diffcodec.plans import PLANS, Plan

U8 = NDArray[np.uint8]


@pytest.fixture(scope="module")
def pixels() -> U8:
    return np.random.default_rng(3).integers(0, 256, (13, 10, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def content(pixels: U8, tiny: Model) -> bytes:
    return round_trip(pixels, tiny, seed=9)


def test_the_shipped_model_is_the_default(bird: U8, bird_file: bytes) -> None:
    decoded = diffcodec.decode(bird_file)
    assert decoded.exact
    np.testing.assert_array_equal(decoded.pixels, bird)


@pytest.mark.parametrize("width", [8, 520])
def test_effort_5_is_the_default_of_small_and_large_pictures(width: int, exact_tiny: Model) -> None:
    picture = np.random.default_rng(4).integers(0, 256, (8, width), dtype=np.uint8)
    options = {"model": exact_tiny, "max_bytes": 600}
    assert diffcodec.encode(picture, **options) == diffcodec.encode(picture, effort=5, **options)
    assert diffcodec.encode_batch([picture], model=exact_tiny) == [
        diffcodec.encode(picture, effort=5, model=exact_tiny)
    ]


def test_images_arrays_and_pictures_give_the_same_file(pixels: U8, tiny: Model) -> None:
    options = {"model": tiny, "effort": 1, "plan": SHORT_PLAN}
    expected = diffcodec.encode(pixels, **options)
    assert diffcodec.encode(Image.fromarray(pixels), **options) == expected
    assert diffcodec.encode(pixels[:, ::-1][:, ::-1], **options) == expected  # any strides


@pytest.mark.parametrize("effort", [1, 4, 9])
def test_every_effort_is_decoded_alike(pixels: U8, tiny: Model, effort: int) -> None:
    round_trip(pixels[:8, :8], tiny, effort=effort, plan=SHORT_PLAN)


@given(st.integers(1, 1000))
def test_encoding_down_to_t_is_truncating_at_t(
    pixels: U8, content: bytes, tiny: Model, stop_t: int
) -> None:
    limited = diffcodec.encode(pixels, model=tiny, effort=1, seed=9, stop_t=stop_t)
    assert limited == diffcodec.truncate(content, stop_t=stop_t, model=tiny)
    last = api.smallest_coded(PLANS[0], stop_t)
    assert diffcodec.decode(limited, model=tiny).t <= last
    assert diffcodec.decode(limited, model=tiny, stop_t=stop_t).t == last


@given(st.data())
def test_a_byte_limit_is_a_cut_of_the_full_file(
    pixels: U8, content: bytes, tiny: Model, data: st.DataObject
) -> None:
    header = read_header(content)[1]
    size = data.draw(st.integers(header, len(content) + 10))
    limited = diffcodec.encode(pixels, model=tiny, effort=1, seed=9, max_bytes=size)
    assert limited == content[:size] == diffcodec.truncate(content, max_bytes=size)


def test_a_limit_inside_the_header_is_refused(pixels: U8, content: bytes, tiny: Model) -> None:
    header = read_header(content)[1]
    for size in (0, 1, header - 1):
        with pytest.raises(FormatError, match="header"):
            diffcodec.encode(pixels, model=tiny, max_bytes=size, seed=9)
        with pytest.raises(FormatError, match="header"):
            diffcodec.truncate(content, max_bytes=size)
    assert len(diffcodec.truncate(content, max_bytes=header)) == header


def test_truncating_twice_is_truncating_once(content: bytes) -> None:
    once = diffcodec.truncate(content, max_bytes=150)
    assert diffcodec.truncate(diffcodec.truncate(content, max_bytes=300), max_bytes=150) == once
    assert diffcodec.truncate(once, max_bytes=10_000) == once


@pytest.mark.parametrize(("stop_t", "t"), [(1, 1), (2, 2), (3, 4), (600, 680), (1000, 680)])
def test_smallest_coded_timestep(stop_t: int, t: int) -> None:
    assert api.smallest_coded(PLANS[0], stop_t) == t


def test_stopping_early_reads_less_of_the_network(content: bytes, tiny: Model) -> None:
    all_steps = diffcodec.decode(content, model=tiny).evaluations
    assert all_steps == len(PLANS[0].steps) + 1
    assert diffcodec.decode(content, model=tiny, stop_t=100).evaluations < all_steps


def test_progress_and_watch_follow_the_layers(pixels: U8, tiny: Model) -> None:
    calls: list[tuple[int, int]] = []
    seen: list[SentLayer] = []
    diffcodec.encode(
        pixels,
        model=tiny,
        effort=1,
        plan=SHORT_PLAN,
        progress=lambda done, total: calls.append((done, total)),
        watch=seen.append,
    )
    assert calls == [(n, 5) for n in range(1, 6)]
    assert [layer.b for layer in seen] == [180, 40, 6, 1, 0]


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((4, 4, 3)),
        np.zeros((4, 4, 5), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((4, 4, 3), np.uint16),
    ],
    ids=["float", "five channels", "empty", "one axis", "16 bits"],
)
def test_arrays_that_are_no_pictures_are_refused(bad: NDArray[np.generic], tiny: Model) -> None:
    with pytest.raises(DataError):
        diffcodec.encode(bad, model=tiny)


@pytest.mark.parametrize("seed", [-1, 1 << 32])
def test_seeds_that_do_not_fit_the_header_are_refused(seed: int, pixels: U8, tiny: Model) -> None:
    with pytest.raises(FormatError, match="seed"):
        diffcodec.encode(pixels, model=tiny, seed=seed)


def test_the_wrong_model_is_refused(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("other")
    write_tiny_model(folder, seed=2)
    with pytest.raises(ModelError, match="written with model"):
        diffcodec.decode(content, model=read_model(folder))
    with pytest.raises(ModelError, match="tiny1"):
        diffcodec.decode(content)


def test_pixels_that_differ_are_an_error_and_never_a_picture(content: bytes, tiny: Model) -> None:
    """Every single damaged byte of the final layer is found, by its CRC or on the way."""
    strip = api.parse(content, tiny).layers[-1]
    for place in range(strip.end - len(strip.code) - 4, strip.end, 7):
        damaged = bytearray(content)
        damaged[place] ^= 0x24
        with pytest.raises(FormatError):
            diffcodec.decode(bytes(damaged), model=tiny)


def test_damage_anywhere_is_refused_or_leaves_an_inexact_picture(
    exact_tiny: Model, pixels: U8
) -> None:
    """Never another exception, and never a wrong picture that claims to be exact.

    In integers: of a file of floats, other bytes on every machine, more may seem cut.
    """
    refused = tried = 0
    for seed in range(4):
        content = round_trip(pixels, exact_tiny, seed=seed)
        for place in range(seed, len(content), 20):
            damaged = bytearray(content)
            damaged[place] ^= 0x08
            tried += 1
            try:
                decoded = diffcodec.decode(bytes(damaged), model=exact_tiny)
            except (FormatError, ModelError):
                refused += 1
                continue
            assert not decoded.exact or np.array_equal(decoded.pixels, pixels)
    assert refused > 0.9 * tried


def test_batches_are_the_same_as_one_by_one(tiny: Model) -> None:
    """Also pictures of several segments, whose work is parallel in itself."""
    rng = np.random.default_rng(1)
    shapes = [(8, 9, 3), (70, 70, 3), (5, 3), (66, 8, 3)]
    pictures = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    single = [diffcodec.encode(p, model=tiny, effort=1, seed=4) for p in pictures]
    assert api.encode_batch(pictures, model=tiny, effort=1, seed=4) == single
    assert api.encode_batch([], model=tiny) == []


def test_decoding_a_batch(bird: U8, bird_file: bytes) -> None:
    shown = api.decode_batch([bird_file, bird_file[:300], bird_file])
    assert [d.exact for d in shown] == [True, False, True]
    np.testing.assert_array_equal(shown[0].pixels, bird)
    np.testing.assert_array_equal(shown[1].pixels, diffcodec.decode(bird_file[:300]).pixels)
    assert {d.t for d in api.decode_batch([bird_file] * 2, stop_t=20)} == {26}


def test_a_damaged_file_in_a_batch_is_an_error(bird_file: bytes) -> None:
    with pytest.raises(FormatError):
        api.decode_batch([bird_file, b"damaged"])


def test_describe_adds_up(content: bytes, tiny: Model) -> None:
    facts = api.describe(content, tiny)
    assert (facts["width"], facts["height"], facts["seed"]) == (10, 13, 9)
    assert facts["timesteps"] == list(PLANS[0].timesteps)
    payload = sum(row["bits"] for row in facts["layers"]) // 8
    assert payload < facts["file_bytes"] == len(content)
    assert all(row["whole"] for row in facts["layers"])
    assert [row["t"] for row in facts["layers"]] == [70, 40, 22, 11, 6, 4, 2, 1, 0][
        -len(facts["layers"]) :
    ]
    assert not api.describe(content[:-1], tiny)["complete"]


def test_describe_knows_the_noise_of_shipped_models(bird_file: bytes, shipped: Model) -> None:
    rows = api.describe(bird_file)["layers"]
    assert rows[-1]["noise_levels"] == 0.0
    assert rows[-2]["noise_levels"] == pytest.approx(shipped.schedule.sigma_levels(1))


def test_errors_share_a_base_and_are_one_line(tiny: Model) -> None:
    assert issubclass(DataError, diffcodec.DiffcodecError)
    assert issubclass(ModelError, diffcodec.DiffcodecError)
    with pytest.raises(diffcodec.DiffcodecError) as caught:
        diffcodec.decode(b"nonsense", model=tiny)
    assert "\n" not in str(caught.value)


def test_a_small_file_is_taken_apart_by_its_own_model_only(
    content: bytes, tiny: Model, exact_tiny: Model
) -> None:
    """The same refusals as decoding: another model, a plan the exact model has no constants for."""
    with pytest.raises(ModelError, match="written with model"):
        api.parse(content, exact_tiny)
    header = Header(8, 8, exact_tiny.fingerprint, Plan((500, 1), 133, 1), model="golden")
    for take_apart in (api.parse, api.describe):
        with pytest.raises(ModelError, match="timesteps"):
            take_apart(header.encode() + b"some bytes", exact_tiny)
