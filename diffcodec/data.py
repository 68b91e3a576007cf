"""Training data: folders of images, CIFAR-10 in its usual forms, and mosaics of tiles.

Everything is lossless uint8.  A data set is a list of pictures in memory (see stream.py for one
that is not); a training crop is chosen by a generator that is keyed by seed and step, so that
data order never depends on how a run was interrupted.
"""

from __future__ import annotations

import pickle
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import product, repeat
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffcodec.errors import DataError

U8 = NDArray[np.uint8]
Labelled = tuple[U8, int]
NO_CLASS = -1
IMAGE_SUFFIXES = {".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff", ".jpg", ".jpeg"}
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
MOSAIC_TILE = 32
MOSAIC_WIDTH = 3200


def is_mosaic(path: Path) -> bool:
    """True for the CIFAR-10 mosaics: 3200 pixels wide, 100 tiles of 32×32 a row."""
    if not path.is_file() or path.suffix.lower() not in IMAGE_SUFFIXES:
        return False
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path) as image:
            return image.width == MOSAIC_WIDTH and image.height % MOSAIC_TILE == 0
    except OSError:
        return False
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def read_mosaic(path: Path) -> U8:
    """All tiles of a mosaic in reading order, [N, 32, 32, 3]."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    rows, columns = pixels.shape[0] // MOSAIC_TILE, pixels.shape[1] // MOSAIC_TILE
    tiles = pixels.reshape(rows, MOSAIC_TILE, columns, MOSAIC_TILE, 3)
    return tiles.transpose(0, 2, 1, 3, 4).reshape(-1, MOSAIC_TILE, MOSAIC_TILE, 3)


class _ArraysOnly(pickle.Unpickler):
    """Reads CIFAR-10's pickles, which hold dicts, lists and numpy arrays and nothing else."""

    ALLOWED: ClassVar = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"refusing to load {module}.{name}")
        return super().find_class(module, name)


def _planes(rows: NDArray[np.generic]) -> U8:
    """CIFAR's rows of 3072 planar bytes as [N, 32, 32, 3]."""
    planar = np.asarray(rows, dtype=np.uint8).reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planar.transpose(0, 2, 3, 1))


def _read_pickle(stream: object) -> Iterator[Labelled]:
    content = _ArraysOnly(stream, encoding="bytes").load()  # type: ignore[arg-type]
    rows = _planes(content[b"data"])
    return zip(rows, map(int, content.get(b"labels", repeat(NO_CLASS, len(rows)))), strict=True)


def _read_binary(content: bytes) -> Iterator[Labelled]:
    rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, 3073)
    return zip(_planes(rows[:, 1:]), rows[:, 0].tolist(), strict=True)


def image_files(folder: Path) -> list[tuple[Path, int]]:
    """All images under a folder, in a fixed order, each with its class.

    The class is the number, in alphabetical order, of the sub-folder it lies in.
    """
    names = sorted(p.name for p in folder.iterdir() if p.is_dir())
    numbers = {name: number for number, name in enumerate(names)}
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    return [(p, numbers.get(p.relative_to(folder).parts[0], NO_CLASS)) for p in found]


def _from_folder(folder: Path) -> Iterator[Labelled]:
    pickles = sorted(p for p in folder.glob("data_batch_*") if not p.suffix)
    binaries = sorted(folder.glob("data_batch_*.bin"))
    for path in pickles:
        with path.open("rb") as stream:
            yield from _read_pickle(stream)
    if not pickles:
        for path in binaries:
            yield from _read_binary(path.read_bytes())
    if pickles or binaries:
        return
    for path, label in image_files(folder):
        for pixels, own in _from_file(path):
            yield pixels, own if own != NO_CLASS else label


def _from_archive(path: Path) -> Iterator[Labelled]:
    with tarfile.open(path) as archive:
        for member in sorted(archive.getmembers(), key=lambda m: m.name):
            name = Path(member.name).name
            stream = archive.extractfile(member)
            if stream is None or not name.startswith("data_batch_"):
                continue
            yield from (
                _read_binary(stream.read()) if name.endswith(".bin") else _read_pickle(stream)
            )


def _from_arrays(content: Mapping[str, NDArray[np.generic]]) -> Iterator[Labelled]:
    """An .npz: ``images`` (or its first array), and ``labels`` if it has any."""
    images = content["images"] if "images" in content else content[next(iter(content))]
    labels = content["labels"].tolist() if "labels" in content else repeat(NO_CLASS, len(images))
    yield from zip(images, labels, strict=True)


def _from_file(path: Path) -> Iterator[Labelled]:
    if path.suffix.lower() in {".gz", ".tgz", ".tar"}:
        yield from _from_archive(path)
    elif path.suffix.lower() == ".npz":
        with np.load(path, allow_pickle=False) as content:
            yield from _from_arrays(content)
    elif is_mosaic(path):
        yield from ((tile, NO_CLASS) for tile in read_mosaic(path))
    else:
        with Image.open(path) as image:
            yield np.asarray(image.convert("RGB")), NO_CLASS


def load_labelled(paths: list[Path]) -> tuple[list[U8], list[int]]:
    """Every picture under ``paths`` as uint8 [H, W, 3], in a fixed order, and their classes.

    A path is a folder (of images of any usual kind, of CIFAR-10's python pickles or of its
    binary batches), an archive of either form of CIFAR-10, an .npz of images [N, H, W, 3], a
    mosaic, or an image.  Of a folder of CIFAR-10 mosaics only ``train_*`` are read when there
    are any, so that pointing at the data set never trains on its test images.
    Classes come from CIFAR-10's batches, from sub-folders in alphabetical order, or from the
    ``labels`` of an .npz; otherwise they are NO_CLASS.
    Raises DataError when nothing can be read.
    """
    found: list[Labelled] = []
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        mosaics = sorted(path.glob("train_*")) if path.is_dir() else []
        sources = [p for p in mosaics if is_mosaic(p)] or [path]
        for source in sources:
            try:
                found.extend(_from_folder(source) if source.is_dir() else _from_file(source))
            except Exception as e:  # readers of foreign files raise almost anything
                raise DataError(f"{source}: cannot be read as training data ({e})") from e
    if not found:
        where = ", ".join(map(str, paths))
        hint = " (shards are read with --workers)" if ".tar" in {p.suffix for p in paths} else ""
        raise DataError(f"no images found in {where}{hint}")
    return [pixels for pixels, _ in found], [label for _, label in found]


def load_images(paths: list[Path]) -> list[U8]:
    """The pictures of :func:`load_labelled`."""
    return load_labelled(paths)[0]


def reduced(images: list[U8], factors: Sequence[int], smallest: int) -> list[U8]:
    """Every picture averaged over squares of each of ``factors`` pixels (1: as it is).

    Reductions whose shorter side would fall below ``smallest`` pixels are left out.
    """
    found = []
    for factor, pixels in product(factors, images):
        if factor == 1:
            found.append(pixels)
        elif min(pixels.shape[:2]) // factor >= smallest:
            height, width = (side // factor * factor for side in pixels.shape[:2])
            whole = Image.fromarray(np.ascontiguousarray(pixels[:height, :width]))
            found.append(np.asarray(whole.reduce(factor)))
    return found


def subsampled(pixels: U8) -> U8:
    """The picture with its colours at half the resolution (4:2:0), as JPEG and video keep them.

    Differences of R, G and B to the luma (BT.601) are averaged over 2×2 pixels and interpolated.
    """
    luma = pixels @ LUMA
    planes = []
    for number in range(3):
        difference = Image.fromarray(pixels[..., number] - luma)
        half = difference.reduce(2).resize(difference.size, Image.Resampling.BILINEAR)
        planes.append(luma + np.asarray(half))
    return np.rint(np.stack(planes, axis=2)).clip(0, 255).astype(np.uint8)


def with_subsampled(images: list[U8]) -> list[U8]:
    """The pictures, then all of them :func:`subsampled`."""
    return images + [subsampled(pixels) for pixels in images]


def random_crop(picture: U8, crop: int, rng: np.random.Generator) -> U8:
    """A crop [crop, crop, 3] of a picture, mirrored or not."""
    y = int(rng.integers(picture.shape[0] - crop + 1))
    x = int(rng.integers(picture.shape[1] - crop + 1))
    tile = picture[y : y + crop, x : x + crop]
    return tile[:, ::-1] if rng.random() < 0.5 else tile


class Order:
    """Which picture stands at which position: epoch after epoch, each shuffled by the seed."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def __call__(self, position: int) -> int:
        epoch, place = divmod(position, self.count)
        if epoch != self._epoch:
            rng = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            self._epoch, self._order = epoch, rng.permutation(self.count)
        return int(self._order[place])


class CropSampler:
    """Batches of random crops with horizontal flips, uint8 [B, 3, crop, crop].

    Batch number k of epoch-wise shuffled pictures depends only on (seed, k).
    """

    def __init__(
        self,
        images: Sequence[U8],
        crop: int,
        batch: int,
        seed: int,
        labels: Sequence[int] | None = None,
    ) -> None:
        small = sum(min(i.shape[:2]) < crop for i in images)
        if small:
            raise DataError(f"{small} of {len(images)} images are smaller than the crop of {crop}")
        self.images, self.crop, self.batch, self.seed = images, crop, batch, seed
        self.classes = labels if labels is not None else [NO_CLASS] * len(images)
        self.order = Order(len(images), seed)

    def __call__(self, step: int, first: int = 0, stop: int | None = None) -> U8:
        """The batch of training step ``step`` (0, 1, …), or its pictures first … stop − 1."""
        stop = self.batch if stop is None else stop
        rng = np.random.Generator(np.random.Philox(key=[self.seed + 1, step]))
        out = np.empty((stop - first, self.crop, self.crop, 3), dtype=np.uint8)
        for k in range(stop):
            tile = random_crop(self.images[self.order(step * self.batch + k)], self.crop, rng)
            if k >= first:
                out[k - first] = tile
        return np.ascontiguousarray(out.transpose(0, 3, 1, 2))

    def labels(self, step: int, first: int = 0, stop: int | None = None) -> NDArray[np.int64]:
        """The classes of the same pictures, NO_CLASS where there is none."""
        places = range(first, self.batch if stop is None else stop)
        found = [self.classes[self.order(step * self.batch + k)] for k in places]
        return np.array(found, dtype=np.int64)
