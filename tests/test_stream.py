"""Training data left on disk: folders, shards, patterns, and reading ahead in processes."""

from __future__ import annotations

import io
import os
import signal
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from diffcodec.data import NO_CLASS, load_labelled
from diffcodec.ddpm.unet import UNetConfig
from diffcodec.errors import DataError
from diffcodec.train import Trainer, train
from diffcodec.train.checkpoint import read_checkpoint
from diffcodec.train.settings import PAPER_SCHEDULE, TrainConfig
from diffcodec.train.stream import StreamSampler, batches, expand, index_pictures

U8 = NDArray[np.uint8]
IMAGES: U8 = np.random.default_rng(0).integers(0, 256, (10, 12, 14, 3), dtype=np.uint8)
CLASSES = [k % 3 for k in range(10)]
SHAPE = UNetConfig(channels=8, multipliers=(1,), blocks=1, attention=(), groups=4, dropout=0.0)
CONFIG = TrainConfig(
    network=SHAPE, objective="simple", steps=4, batch=4, crop=8, warmup=1, holdout=2, decay=0.0
)


def png(pixels: U8) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    shard.addfile(entry, io.BytesIO(content))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards as WebDataset writes them, the second without classes for its last picture."""
    folder = tmp_path_factory.mktemp("shards")
    for number in range(2):
        with tarfile.open(folder / f"train-{number:02d}.tar", "w") as shard:
            for k in range(5 * number, 5 * number + 5):
                add(shard, f"{k:06d}.png", png(IMAGES[k]))
                add(shard, f"{k:06d}.cls", str(CLASSES[k]).encode())
                add(shard, f"{k:06d}.txt", b"a caption nobody reads")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures in sub-folders named after their classes."""
    path = tmp_path_factory.mktemp("folder")
    for k, name in enumerate(CLASSES):
        (path / "abc"[name]).mkdir(exist_ok=True)
        (path / "abc"[name] / f"{k}.png").write_bytes(png(IMAGES[k]))
    return path


def both(shards: Path) -> list[Path]:
    return expand(f"{shards}/train-{{00..01}}.tar")


def test_shards_hold_the_pictures_and_their_classes(shards: Path) -> None:
    pictures = index_pictures(both(shards))
    assert len(pictures) == 10
    for k in range(10):
        np.testing.assert_array_equal(pictures[k], IMAGES[k])
    assert pictures.labels.tolist() == CLASSES
    np.testing.assert_array_equal(pictures.between(3, 8)[1], IMAGES[4])


def test_folders_are_the_same_on_disk_and_in_memory(folder: Path) -> None:
    images, labels = load_labelled([folder])
    pictures = index_pictures([folder])
    assert labels == pictures.labels.tolist() == sorted(CLASSES)
    for k, pixels in enumerate(images):
        np.testing.assert_array_equal(pictures[k], pixels)


def test_pictures_of_no_class(folder: Path) -> None:
    assert index_pictures([folder / "a"]).labels.tolist() == [NO_CLASS] * 4
    assert load_labelled([folder / "a"])[1] == [NO_CLASS] * 4


def test_shards_are_those_of_the_webdataset_library(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    with wds.TarWriter(str(tmp_path / "a.tar")) as sink:
        for k in range(3):
            sink.write({"__key__": f"x/{k:03d}", "png": Image.fromarray(IMAGES[k]), "cls": k})
    pictures = index_pictures([tmp_path / "a.tar"])
    assert pictures.labels.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(pictures[2], IMAGES[2])


def test_patterns(shards: Path, tmp_path: Path) -> None:
    wanted = [shards / "train-00.tar", shards / "train-01.tar"]
    assert expand(f"{shards}/train-*.tar") == wanted
    assert expand(f"{shards}/train-{{00..02}}.tar") == [*wanted, shards / "train-02.tar"]
    assert expand(str(shards)) == [shards]
    assert expand("/") == [Path("/")]
    odd = tmp_path / "{a,b}[1]"
    odd.touch()
    assert expand(str(odd)) == [odd]
    with pytest.raises(DataError, match="nbalanced"):
        expand("train-{0..1.tar")
    with pytest.raises(DataError, match=r"train-02.tar: no such file"):
        index_pictures(expand(f"{shards}/train-{{00..02}}.tar"))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_depend_on_seed_and_step_only(shards: Path, workers: int) -> None:
    """Not on where reading began, on the part asked for, nor on who reads."""
    sampler = StreamSampler(index_pictures(both(shards)), 8, 4, seed=5)
    whole = [(sampler(k), sampler.labels(k)) for k in range(6)]
    found = list(batches(sampler, range(2, 6), 1, 3, workers))
    assert len(found) == 4
    for (pixels, labels), (all_pixels, all_labels) in zip(found, whole[2:], strict=True):
        np.testing.assert_array_equal(pixels.numpy(), all_pixels[1:3])
        np.testing.assert_array_equal(labels.numpy(), all_labels[1:3])
    assert not np.array_equal(StreamSampler(sampler.pictures, 8, 4, seed=6)(0), whole[0][0])


def test_an_epoch_shows_every_picture_once_with_its_class(shards: Path) -> None:
    sampler = StreamSampler(index_pictures(both(shards)), 12, 5, seed=1)
    seen = []
    for step in range(2):
        for pixels, label in zip(sampler(step), sampler.labels(step), strict=True):
            column = pixels.transpose(1, 2, 0)
            windows = [IMAGES[:, :, x : x + 12] for x in range(3)]
            hits = {
                int(k)
                for window in windows
                for w in (window, window[:, :, ::-1])
                for k in np.flatnonzero((w == column).all(axis=(1, 2, 3)))
            }
            (number,) = hits
            assert CLASSES[number] == label
            seen.append(number)
    assert sorted(seen) == list(range(10))


def test_a_run_from_shards_resumes_exactly(shards: Path, tmp_path: Path) -> None:
    def run(name: str, workers: int, until: int | None, resume: bool = False) -> Trainer:
        return train(
            both(shards), tmp_path / name, CONFIG, workers=workers, until_step=until,
            resume=resume, report=lambda _: None,
        )  # fmt: skip

    whole = run("whole", 1, None)
    run("parts", 1, 2)
    parts = run("parts", 2, None, resume=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(parts.model.state_dict()[name], value)


def test_an_interrupt_of_all_processes_ends_on_a_checkpoint(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C reaches the processes that read as well: they leave it to the trainer."""
    original = Trainer.train_step

    def interrupt(self: Trainer) -> object:
        loss = original(self)
        if self.step == 2:
            assert len(children()) == 2
            for child in children():
                os.kill(child, signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return loss

    monkeypatch.setattr(Trainer, "train_step", interrupt)
    longer = replace(CONFIG, steps=50)
    trainer = train(both(shards), tmp_path, longer, workers=2, report=lambda _: None)
    assert trainer.step == 2
    assert (tmp_path / "checkpoint.pt").exists()


def children() -> list[int]:
    import multiprocessing

    return [p.pid for p in multiprocessing.active_children() if p.pid]


def test_class_conditional_shards(shards: Path) -> None:
    config = replace(CONFIG, network=replace(SHAPE, classes=3))
    trainer = Trainer(config, PAPER_SCHEDULE, index_pictures(both(shards)), "cpu")
    assert float(trainer.train_step()[0]) > 0
    wrong = replace(CONFIG, network=replace(SHAPE, classes=2))
    with pytest.raises(DataError, match="picture 2 has class 2, not one of 0 to 1"):
        Trainer(wrong, PAPER_SCHEDULE, index_pictures(both(shards)), "cpu")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_is_one_line_that_names_it(tmp_path: Path, workers: int) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        add(shard, "0.png", png(IMAGES[0])[:100])
    sampler = StreamSampler(index_pictures([tmp_path / "a.tar"]), 8, 1, seed=0)
    with pytest.raises(DataError, match=r"a.tar, picture at byte 512: cannot be read") as caught:
        next(batches(sampler, range(1), 0, 1, workers))
    assert "Traceback" not in str(caught.value)


def test_a_run_that_meets_a_damaged_picture_can_go_on_without_it(tmp_path: Path) -> None:
    """What was learnt until then is kept."""
    folder, out = tmp_path / "pictures", tmp_path / "run"
    folder.mkdir()
    for k in range(10):
        (folder / f"{k}.png").write_bytes(png(IMAGES[k]))
    config = replace(CONFIG, batch=2, steps=5, holdout=0)
    last = StreamSampler(index_pictures([folder]), 8, 2, config.seed).order(7)
    (folder / f"{last}.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=f"{last}.png: cannot be read"):
        train([folder], out, config, workers=1, report=lambda _: None)
    assert read_checkpoint(out)["step"] == 3
    (folder / f"{last}.png").write_bytes(png(IMAGES[0]))
    assert train([folder], out, config, workers=1, resume=True, report=lambda _: None).step == 5


def test_a_picture_smaller_than_the_crop_is_named(shards: Path) -> None:
    with pytest.raises(DataError, match=r"train-0[01].tar: a picture is smaller than the crop"):
        StreamSampler(index_pictures(both(shards)), 16, 2, seed=0)(0)


@pytest.mark.parametrize("content", [b"", b"hello", b"\0" * 100])
def test_a_damaged_shard_is_one_line_that_names_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DataError, match=str(tmp_path)):
        index_pictures([tmp_path / "a.tar"])


def test_a_class_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        add(shard, "0.png", png(IMAGES[0]))
        add(shard, "0.cls", b"cat")
    with pytest.raises(DataError, match=r"a.tar: cannot be read as a shard"):
        index_pictures([tmp_path / "a.tar"])


def test_what_is_read_into_memory_only_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=IMAGES)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "data_batch_1.bin").write_bytes(b"")
    (tmp_path / "mosaic.png").write_bytes(png(np.zeros((32, 3200, 3), np.uint8)))
    for name in ("a.npz", "b", "mosaic.png"):
        with pytest.raises(DataError, match="without --workers"):
            index_pictures([tmp_path / name])[0]
