"""Training data too large for memory: folders and tar shards, decoded while training.

Only an index is held: which file, where in it, how long.  Shards are uncompressed tar archives
as WebDataset writes them: ``KEY.png`` (or another image) and, of class-conditional data,
``KEY.cls`` with the number of its class.  As every picture can be reached on its own, data order
depends on seed and step only, not on shards, processes or interruptions.
"""

from __future__ import annotations

import io
import signal
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffcodec.data import (
    IMAGE_SUFFIXES,
    MOSAIC_TILE,
    MOSAIC_WIDTH,
    NO_CLASS,
    U8,
    CropSampler,
    Order,
    image_files,
    random_crop,
)
from diffcodec.errors import DataError

I64 = NDArray[np.int64]
Batch = tuple[Tensor, Tensor]
"""Pictures uint8 [n, 3, H, W] and their classes int64 [n]."""
SHARD_SUFFIX = ".tar"
IN_MEMORY = "(CIFAR-10's files, mosaics and arrays are read without --workers)"
WHOLE = -1
"""Length of a picture that is a file of its own."""


@dataclass(frozen=True)
class Pictures:
    """Pictures on disk.

    files: paths of images or shards; place: int64 [N, 3], of each picture the number of its
    file, its offset and its length there (WHOLE for all of it); labels: int64 [N] or NO_CLASS.
    """

    files: list[str]
    place: I64
    labels: I64

    def __len__(self) -> int:
        return len(self.place)

    def between(self, start: int, stop: int) -> Pictures:
        return Pictures(self.files, self.place[start:stop], self.labels[start:stop])

    def __getitem__(self, index: int) -> U8:
        """Picture ``index`` as uint8 [H, W, 3]; DataError that names it if it is damaged."""
        number, offset, length = self.place[index].tolist()
        path = Path(self.files[number])
        try:
            with path.open("rb") as stream:
                stream.seek(offset)
                content = stream.read(None if length == WHOLE else length)
            with Image.open(io.BytesIO(content)) as image:
                if image.width == MOSAIC_WIDTH and image.height % MOSAIC_TILE == 0:
                    raise ValueError(f"it is a mosaic {IN_MEMORY}")
                return np.asarray(image.convert("RGB"))
        except Exception as e:  # Pillow raises many kinds for a damaged image
            where = "" if length == WHOLE else f", picture at byte {offset}"
            raise DataError(f"{path}{where}: cannot be read as an image ({e})") from e


def expand(pattern: str) -> list[Path]:
    """The paths of a pattern such as ``train-{0000..0099}.tar`` or ``train-*.tar``.

    Of a path without wildcards, or of one that exists, that is the path itself.
    """
    from braceexpand import braceexpand

    if Path(pattern).exists():
        return [Path(pattern)]
    try:
        names = list(braceexpand(pattern))
    except ValueError as e:  # unbalanced
        raise DataError(f"{pattern}: {e}") from e
    found: list[Path] = []
    for path in map(Path, names):
        matches = sorted(path.parent.glob(path.name)) if path.name else []
        found.extend(matches or [path])
    return found


def index_pictures(paths: list[Path]) -> Pictures:
    """The pictures of folders, shards and image files, in a fixed order."""
    files: list[str] = []
    rows: list[tuple[int, int, int, int]] = []
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        if path.is_dir():
            for image, label in image_files(path):
                rows.append((len(files), 0, WHOLE, label))
                files.append(str(image))
        elif path.suffix.lower() == SHARD_SUFFIX:
            rows.extend((len(files), *member) for member in _members(path))
            files.append(str(path))
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            rows.append((len(files), 0, WHOLE, NO_CLASS))
            files.append(str(path))
        else:
            raise DataError(
                f"{path}: neither a folder, nor an image, nor a {SHARD_SUFFIX} {IN_MEMORY}"
            )
    if not rows:
        raise DataError(f"no images found in {', '.join(map(str, paths))} {IN_MEMORY}")
    table = np.array(rows, dtype=np.int64)
    return Pictures(files, table[:, :3], table[:, 3])


def _members(path: Path) -> Iterator[tuple[int, int, int]]:
    """(offset, length, class) of the images of a shard."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                name = PurePosixPath(member.name)
                key = str(name.with_suffix(""))
                if name.suffix.lower() in IMAGE_SUFFIXES:
                    images[key] = member.offset_data, member.size
                elif name.suffix == ".cls":
                    content = shard.extractfile(member)
                    labels[key] = int(content.read(20)) if content else NO_CLASS
    except (OSError, tarfile.TarError, ValueError) as e:
        raise DataError(f"{path}: cannot be read as a shard ({e})") from e
    for key, (offset, length) in images.items():
        yield offset, length, labels.get(key, NO_CLASS)


class StreamSampler:
    """As :class:`CropSampler`, of pictures on disk: only those asked for are read."""

    def __init__(self, pictures: Pictures, crop: int, batch: int, seed: int) -> None:
        self.pictures, self.crop, self.batch, self.seed = pictures, crop, batch, seed
        self.order = Order(len(pictures), seed)

    def __call__(self, step: int, first: int = 0, stop: int | None = None) -> U8:
        stop = self.batch if stop is None else stop
        tiles = [self._tile(step, k) for k in range(first, stop)]
        return np.ascontiguousarray(np.stack(tiles).transpose(0, 3, 1, 2))

    def _tile(self, step: int, k: int) -> U8:
        bits = np.random.Philox(key=[self.seed + 1, step], counter=[0, 0, 0, k])
        index = self.order(step * self.batch + k)
        picture = self.pictures[index]
        if min(picture.shape[:2]) < self.crop:
            path = self.pictures.files[int(self.pictures.place[index, 0])]
            raise DataError(f"{path}: a picture is smaller than the crop of {self.crop}")
        return random_crop(picture, self.crop, np.random.Generator(bits))

    def labels(self, step: int, first: int = 0, stop: int | None = None) -> I64:
        places = range(first, self.batch if stop is None else stop)
        return self.pictures.labels[[self.order(step * self.batch + k) for k in places]]


Sampler = CropSampler | StreamSampler


class _Steps(Dataset[Batch | DataError]):
    """Item k: this process's pictures of step k, or the error of reading them."""

    def __init__(self, sampler: Sampler, first: int, stop: int) -> None:
        self.sampler, self.part = sampler, (first, stop)

    def __getitem__(self, step: int) -> Batch | DataError:
        try:
            found = self.sampler(step, *self.part), self.sampler.labels(step, *self.part)
            return torch.from_numpy(found[0]), torch.from_numpy(found[1])
        except DataError as e:  # raised here, it would arrive with a traceback in its text
            return e


def _leave_signals_to_the_trainer(_worker: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _same(batch: Any) -> Any:
    return batch


def batches(
    sampler: Sampler, steps: range, first: int, stop: int, workers: int = 0
) -> Iterator[Batch]:
    """Pictures first … stop − 1 of the batches of ``steps``, read ahead by so many processes."""
    dataset = _Steps(sampler, first, stop)
    loader: DataLoader[Batch | DataError] = DataLoader(
        dataset,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        collate_fn=_same,
        worker_init_fn=_leave_signals_to_the_trainer,
    )
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        yield batch
