"""FID and Inception Score: closed forms with a small network in Inception's place."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffcodec.ddpm.fid import Inception, require_torchmetrics, scores
from diffcodec.errors import DiffcodecError, ModelError

VALUES = torch.from_numpy(np.random.default_rng(0).integers(0, 60, (200, 3, 1, 2)).astype(np.uint8))


class Pixels:
    """Features: the first values of a picture.  Classes: with certainty that of the first."""

    def features(self, pictures: Tensor) -> Tensor:
        return pictures[:, :, 0, :2].flatten(1).float()

    def log_probabilities(self, pictures: Tensor) -> Tensor:
        classes = pictures[:, 0, 0, 0].long() % 4
        return torch.where(torch.arange(4) == classes[:, None], 0.0, -60.0)


class Script(nn.Module):
    """The interface of inception-2015-12-05.pt, with three features and four classes."""

    def forward(
        self, img: Tensor, return_features: bool = False, no_output_bias: bool = False
    ) -> Tensor:
        features = img.float().mean(dim=(2, 3)) / 255.0
        if return_features:
            return features
        return torch.softmax(torch.cat([features, features[:, :1]], dim=1), dim=1)


def write_script(path: Path) -> Path:
    with pytest.warns(DeprecationWarning):
        torch.jit.script(Script()).save(path)
    return path


def test_equal_sets_have_no_distance() -> None:
    pytest.importorskip("torchmetrics")
    found = scores(Pixels(), VALUES.split(7), VALUES.flip(0).split(64))
    assert found.fid == pytest.approx(0.0, abs=1e-3)  # roots of eigenvalues that should be 0
    assert (found.samples, found.pictures) == (200, 200)


@pytest.mark.parametrize("scale, shift", [(1, 10), (2, 0), (3, 20)])
def test_the_distance_is_that_of_gaussians(scale: int, shift: int) -> None:
    """Σ and c²Σ commute: |μ − μ'|² + (c − 1)² tr Σ."""
    pytest.importorskip("torchmetrics")
    other = VALUES * scale + shift
    found = scores(Pixels(), other.split(50), VALUES.split(50))
    one, two = (Pixels().features(v).double() for v in (VALUES, other))
    expected = (one.mean(0) - two.mean(0)).square().sum()
    expected += (scale - 1) ** 2 * one.T.cov().trace()
    assert found.fid == pytest.approx(float(expected), rel=1e-4)


def test_the_inception_score_counts_classes() -> None:
    """Every picture surely of one class: exp of the entropy of the classes, at most four."""
    pytest.importorskip("torchmetrics")
    found, again = (scores(Pixels(), VALUES.split(50), VALUES.split(50)) for _ in range(2))
    assert 3.0 < found.inception <= 4.0
    assert found == again
    same = scores(Pixels(), [VALUES * 4], [VALUES])
    assert same.inception == pytest.approx(1.0)
    assert same.inception_std == pytest.approx(0.0, abs=1e-6)


def test_torchscript_is_called_as_inception_is(tmp_path: Path) -> None:
    network = Inception(write_script(tmp_path / "net.pt"))
    pictures = VALUES.repeat(1, 1, 2, 2)
    torch.testing.assert_close(network.features(pictures), Script()(pictures, True))
    torch.testing.assert_close(
        network.log_probabilities(pictures).exp(), Script()(pictures, False, True)
    )


@pytest.mark.parametrize("content", [None, b"", b"no network\n", b"PK\x03\x04"])
def test_other_files_are_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match="TorchScript") as caught:
        Inception(path)
    assert "\n" not in str(caught.value)


def test_another_network_is_refused(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning):
        torch.jit.script(nn.Identity()).save(tmp_path / "net.pt")
    network = Inception(tmp_path / "net.pt")
    with pytest.raises(ModelError, match="inception-2015-12-05"):
        network.features(VALUES)


def test_without_torchmetrics_one_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.setitem(sys.modules, "torchmetrics.image", None)
    with pytest.raises(DiffcodecError, match="pip install"):
        require_torchmetrics()
