"""Training data: every form CIFAR-10 comes in, folders, mosaics, and damaged files."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from diffcodec.data import (
    LUMA,
    NO_CLASS,
    CropSampler,
    is_mosaic,
    load_images,
    load_labelled,
    read_mosaic,
    reduced,
    subsampled,
)
from diffcodec.errors import DataError

U8 = NDArray[np.uint8]
IMAGES: U8 = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
PLANAR = IMAGES.transpose(0, 3, 1, 2).reshape(6, 3072)


def pickled(rows: U8) -> bytes:
    """As CIFAR-10's batches, whose keys are Python 2 strings."""
    content = {b"data": rows, b"labels": list(range(len(rows)))}
    return pickle.dumps(content, protocol=2)


def binary(rows: U8) -> bytes:
    labels = np.arange(len(rows), dtype=np.uint8)[:, None]
    return np.concatenate([labels, rows], axis=1).tobytes()


def batches(kind: str) -> dict[str, bytes]:
    pack, suffix = {"python": (pickled, ""), "binary": (binary, ".bin")}[kind]
    return {
        f"data_batch_1{suffix}": pack(PLANAR[:4]),
        f"data_batch_2{suffix}": pack(PLANAR[4:]),
        f"test_batch{suffix}": pack(255 - PLANAR),
        "batches.meta.txt" if kind == "binary" else "batches.meta": b"not a batch",
    }


def assert_loads(path: Path) -> None:
    np.testing.assert_array_equal(np.stack(load_images([path])), IMAGES)


@pytest.mark.parametrize("kind", ["python", "binary"])
def test_folders_of_batches(kind: str, tmp_path: Path) -> None:
    for name, content in batches(kind).items():
        (tmp_path / name).write_bytes(content)
    assert_loads(tmp_path)


@pytest.mark.parametrize("kind", ["python", "binary"])
@pytest.mark.parametrize(
    ("name", "mode"), [("a.tar.gz", "w:gz"), ("a.tgz", "w:gz"), ("a.tar", "w")]
)
def test_archives_of_batches(kind: str, name: str, mode: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for member, content in reversed(batches(kind).items()):
            entry = tarfile.TarInfo(f"cifar-10/{member}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    assert_loads(path)


def mosaic(path: Path, tiles: U8) -> None:
    """100 tiles in one row."""
    row = np.zeros((32, 3200, 3), dtype=np.uint8)
    row[:, : 32 * len(tiles)] = tiles.transpose(1, 0, 2, 3).reshape(32, -1, 3)
    Image.fromarray(row).save(path, lossless=True)


def test_mosaics(tmp_path: Path) -> None:
    path = tmp_path / "train_1.webp"
    mosaic(path, IMAGES)
    assert is_mosaic(path)
    assert not is_mosaic(tmp_path)
    np.testing.assert_array_equal(read_mosaic(path)[:6], IMAGES)
    assert len(load_images([path])) == 100


def test_mosaics_of_test_images_are_never_trained_on(tmp_path: Path) -> None:
    mosaic(tmp_path / "train_1.png", IMAGES)
    mosaic(tmp_path / "test_1.png", 255 - IMAGES)
    loaded = load_images([tmp_path])
    assert len(loaded) == 100
    np.testing.assert_array_equal(np.stack(loaded[:6]), IMAGES)


def test_folders_of_images_of_any_size_in_a_fixed_order(tmp_path: Path) -> None:
    pictures = [IMAGES[0], IMAGES[1][:20], IMAGES[2][:, :9]]
    (tmp_path / "sub").mkdir()
    for name, pixels in zip(("b.png", "a.bmp", "sub/c.ppm"), pictures, strict=True):
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("ignored")
    loaded = load_images([tmp_path])
    for found, expected in zip(loaded, [pictures[1], pictures[0], pictures[2]], strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("key", ["images", "other"])
def test_npz(key: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{key: IMAGES})
    assert_loads(tmp_path / "a.npz")


def test_several_paths_are_joined(tmp_path: Path) -> None:
    for number in (0, 1):
        Image.fromarray(IMAGES[number]).save(tmp_path / f"{number}.png")
    loaded = load_images([tmp_path / "1.png", tmp_path / "0.png"])
    np.testing.assert_array_equal(np.stack(loaded), IMAGES[[1, 0]])


class Malicious:
    """Runs code when it is unpickled by anything that trusts it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (Path.touch, (self.target,))


def test_pickles_that_would_run_code_are_refused(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (tmp_path / "data_batch_1").write_bytes(
        pickle.dumps({b"data": PLANAR, b"labels": Malicious(victim)})
    )
    with pytest.raises(DataError, match="refusing to load"):
        load_images([tmp_path])
    assert not victim.exists()


def archive_cut_short() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        entry = tarfile.TarInfo("data_batch_1.bin")
        entry.size = len(binary(PLANAR))
        archive.addfile(entry, io.BytesIO(binary(PLANAR)))
    return stream.getvalue()[:5000]


def npz(**arrays: object) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(IMAGES[0]).save(stream, "PNG")
    return stream.getvalue()


DAMAGED = {
    "empty pickle": ("data_batch_1", b""),
    "text pickle": ("data_batch_1", b"hello"),
    "pickle cut short": ("data_batch_1", pickled(PLANAR)[:3000]),
    "pickle of a list": ("data_batch_1", pickle.dumps([1, 2])),
    "pickle without data": ("data_batch_1", pickle.dumps({b"labels": []})),
    "pickle of other shape": ("data_batch_1", pickled(PLANAR[:, :100])),
    "binary cut short": ("data_batch_1.bin", binary(PLANAR)[:-1]),
    "no archive": ("a.tar.gz", b"hello"),
    "empty archive file": ("a.tar.gz", b""),
    "archive cut short": ("a.tar.gz", archive_cut_short()),
    "no npz": ("a.npz", b"hello"),
    "npz cut short": ("a.npz", npz(images=IMAGES)[:5000]),
    "npz of nothing": ("a.npz", npz()),
    "npz of objects": ("a.npz", npz(images=np.array([{}], dtype=object))),
    "npz of a number": ("a.npz", npz(images=np.array(3))),
    "image cut short": ("a.png", png()[:1000]),
    "no image": ("a.png", b"hello"),
    "empty image": ("a.png", b""),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_data_is_one_named_error(kind: str, tmp_path: Path) -> None:
    name, content = DAMAGED[kind]
    path = tmp_path / name
    path.write_bytes(content)
    source = tmp_path if name.startswith("data_batch") else path
    with pytest.raises(DataError, match=str(tmp_path)):
        load_images([source])


def test_missing_and_empty_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_images([tmp_path / "missing"])
    with pytest.raises(DataError, match="no images"):
        load_images([tmp_path])


@pytest.mark.parametrize("kind", ["python", "binary"])
def test_batches_have_classes(kind: str, tmp_path: Path) -> None:
    for name, content in batches(kind).items():
        (tmp_path / name).write_bytes(content)
    assert load_labelled([tmp_path])[1] == [0, 1, 2, 3, 0, 1]


def test_arrays_may_have_classes(tmp_path: Path) -> None:
    for labels, found in [({}, [NO_CLASS] * 6), ({"labels": np.arange(6)}, list(range(6)))]:
        (tmp_path / "a.npz").write_bytes(npz(images=IMAGES, **labels))
        assert load_labelled([tmp_path / "a.npz"])[1] == found
    (tmp_path / "a.npz").write_bytes(npz(images=IMAGES, labels=np.arange(5)))
    with pytest.raises(DataError, match=r"a.npz"):
        load_labelled([tmp_path / "a.npz"])


# -- crops -----------------------------------------------------------------------------------


def labelled(count: int, side: int) -> list[U8]:
    """Pictures that say in every pixel which they are, where, in three bytes."""
    y, x = np.mgrid[:side, :side]
    return [np.stack([np.full_like(y, k), y, x], axis=2).astype(np.uint8) for k in range(count)]


def test_batches_depend_on_their_number_only() -> None:
    images = labelled(5, 20)
    forward = CropSampler(images, 8, 3, seed=1)
    first = [forward(k) for k in range(7)]
    backward = CropSampler(images, 8, 3, seed=1)
    for k in reversed(range(7)):
        np.testing.assert_array_equal(backward(k), first[k])
    assert not np.array_equal(CropSampler(images, 8, 3, seed=2)(0), first[0])


def test_crops_are_contiguous_parts_mirrored_or_not() -> None:
    sampler = CropSampler(labelled(4, 20), 8, 16, seed=3)
    batch = sampler(0).astype(int)
    assert batch.shape == (16, 3, 8, 8)
    step = batch[:, 2, 0, 1] - batch[:, 2, 0, 0]
    assert set(step.tolist()) == {1, -1}
    for crop, direction in zip(batch, step, strict=True):
        assert len(np.unique(crop[0])) == 1
        np.testing.assert_array_equal(np.diff(crop[1], axis=0), 1)
        np.testing.assert_array_equal(np.diff(crop[2], axis=1), direction)


def test_an_epoch_shows_every_picture_once() -> None:
    sampler = CropSampler(labelled(12, 8), 8, 4, seed=5)
    for epoch in (0, 1):
        seen = np.concatenate([sampler(3 * epoch + k)[:, 0, 0, 0] for k in range(3)])
        assert sorted(seen.tolist()) == list(range(12))


def test_a_part_of_a_batch_is_that_part() -> None:
    sampler = CropSampler(labelled(5, 20), 8, 4, seed=1, labels=[4, 3, 2, 1, 0])
    for step in range(3):
        np.testing.assert_array_equal(sampler(step, 1, 3), sampler(step)[1:3])
        np.testing.assert_array_equal(sampler.labels(step, 1, 3), sampler.labels(step)[1:3])
        np.testing.assert_array_equal(sampler.labels(step), 4 - sampler(step)[:, 0, 0, 0])


def test_pictures_smaller_than_the_crop_are_refused() -> None:
    with pytest.raises(DataError, match="1 of 3 images are smaller"):
        CropSampler([*labelled(2, 16), *labelled(1, 15)], 16, 2, seed=0)


def test_reductions_average_whole_squares_and_leave_out_what_becomes_too_small() -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, size, dtype=np.uint8) for size in [(33, 40, 3), (16, 64, 3)]]
    found = reduced(images, (1, 2), smallest=16)
    assert len(found) == 3 and found[0] is images[0] and found[1] is images[1]
    squares = images[0][:32].reshape(16, 2, 20, 2, 3).mean(axis=(1, 3))
    assert np.abs(found[2] - squares).max() <= 0.5


@settings(max_examples=20)
@given(st.integers(2, 33), st.integers(2, 33), st.integers(0, 999))
def test_subsampling_keeps_the_luma_and_halves_the_colours(h: int, w: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    picture = rng.integers(64, 192, (h, w, 3), dtype=np.uint8)
    found = subsampled(picture)
    assert found.shape == picture.shape and found.dtype == np.uint8
    assert np.abs(found @ LUMA - picture @ LUMA).max() <= 0.51
    flat = np.broadcast_to(picture[:1, :1], picture.shape)
    np.testing.assert_array_equal(subsampled(flat), flat)
    # A colour that alternates from pixel to pixel is gone.
    fine = np.full((8, 8, 3), 100, dtype=np.uint8)
    fine[::2, ::2] = fine[1::2, 1::2] = (150, 100, 50)
    assert np.ptp((subsampled(fine) - (subsampled(fine) @ LUMA)[..., None]), axis=(0, 1)).max() <= 1
