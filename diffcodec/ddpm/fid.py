"""Fréchet Inception Distance and Inception Score of samples, by torchmetrics.

The Inception network is not part of diffcodec: its file is the TorchScript form of the one from
2015-12-05 that these scores are defined by, which takes uint8 pictures of any size.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from diffcodec.errors import DiffcodecError, ModelError

SPLITS = 10
"""Parts of the samples whose Inception Scores are averaged, as is usual."""


class FeatureNetwork(Protocol):
    """What the scores need of a network, of uint8 pictures [B, 3, H, W]."""

    def features(self, pictures: Tensor) -> Tensor:
        """[B, n]: of Inception the 2048 of its last pooling."""

    def log_probabilities(self, pictures: Tensor) -> Tensor:
        """[B, k]: of Inception its 1008 classes, without the bias of the last layer."""


class Inception:
    """The network of a TorchScript file such as inception-2015-12-05.pt."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        """ModelError if the file is not one of TorchScript."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                self._network = torch.jit.load(path, map_location=device).eval()
        except (OSError, RuntimeError, ValueError) as e:
            reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
            raise ModelError(
                f"{path}: not the TorchScript file of an Inception network ({reason}); "
                "inception-2015-12-05.pt of StyleGAN2-ADA and its successors is meant"
            ) from e
        self._device = device

    def features(self, pictures: Tensor) -> Tensor:
        return self._call(pictures, return_features=True)

    def log_probabilities(self, pictures: Tensor) -> Tensor:
        return self._call(pictures, no_output_bias=True).clamp(min=1e-30).log()

    def _call(self, pictures: Tensor, **options: bool) -> Tensor:
        try:
            with torch.inference_mode():
                out: Tensor = self._network(pictures.to(self._device), **options)
        except RuntimeError as e:
            raise ModelError(
                f"the network does not take uint8 pictures and {'/'.join(options)}: "
                "it is not inception-2015-12-05.pt"
            ) from e
        return out.cpu()


@dataclass(frozen=True)
class Scores:
    """fid: lower is better; inception: mean over SPLITS parts of the samples, and their spread;
    samples, pictures: how many of the model's and of the data were compared."""

    fid: float
    inception: float
    inception_std: float
    samples: int
    pictures: int


def require_torchmetrics() -> None:
    """DiffcodecError that says what to install when the scores cannot be computed."""
    try:
        import torchmetrics.image  # noqa: F401
    except (ImportError, RuntimeError) as e:  # a torchvision of another torch is a RuntimeError
        raise DiffcodecError(
            f"FID needs torchmetrics, which does not load ({e}): pip install 'diffcodec[fid]'"
        ) from e


def scores(
    network: FeatureNetwork, samples: Iterable[Tensor], pictures: Iterable[Tensor], seed: int = 0
) -> Scores:
    """Compare batches uint8 [B, 3, H, W] of samples and of data, at least two pictures each.

    seed: of the random order in which the Inception Score splits the samples.
    """
    require_torchmetrics()
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore

    distance = FrechetInceptionDistance(feature=_Call(network.features))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it keeps what it is given
        score = InceptionScore(feature=_Call(network.log_probabilities), splits=SPLITS)
    count = Counter(samples=0, pictures=0)
    for batch in pictures:
        distance.update(batch, real=True)
        count["pictures"] += len(batch)
    for batch in samples:
        distance.update(batch, real=False)
        score.update(batch)
        count["samples"] += len(batch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, spread = score.compute()
    return Scores(float(distance.compute()), float(mean), float(spread), **count)


class _Call(nn.Module):
    """A function as the module that torchmetrics wants."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, pictures: Tensor) -> Tensor:
        return self._function(pictures).double()
