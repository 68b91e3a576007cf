"""The integer network: exact by construction, close to the float one, the same everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import diffcodec
from diffcodec import exact
from diffcodec.errors import ModelError
from diffcodec.exact import ACTIVATION_MAX, SUM_LIMIT, ExactNetwork, Integers, quantize
from diffcodec.network import CodecUNet, NetworkConfig
from diffcodec.schedule import Schedule

TIMES = [400, 60, 5, 1]
CONFIG = NetworkConfig(channels=(16, 16, 16), blocks=(1, 1, 1), embedding=32)


def random_network(seed: int) -> CodecUNet:
    """A small network in which every parameter matters (nothing is left at zero)."""
    torch.manual_seed(seed)
    network = CodecUNet(CONFIG).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.abs().max() == 0:
                parameter.normal_(std=0.05)
    return network


@pytest.fixture(scope="module")
def pair() -> tuple[CodecUNet, dict[str, Tensor]]:
    network = random_network(3)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (16, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return network, quantize(network, Schedule(), TIMES, images, generator)


def state(t: int, seed: int, size: int = 16) -> Tensor:
    """x_t of a random picture, int64 in 2**-16."""
    generator = torch.Generator().manual_seed(seed)
    x_0 = torch.rand((3, size, size), generator=generator) * 2 - 1
    abar = float(Schedule().alphas_cumprod[t])
    x_t = abar**0.5 * x_0 + (1 - abar) ** 0.5 * torch.randn(x_0.shape, generator=generator)
    return (x_t * 65536).round().long()


def same(a: Integers, b: Integers) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


@pytest.mark.parametrize("t", TIMES)
def test_agrees_with_the_float_network(pair: tuple[CodecUNet, dict[str, Tensor]], t: int) -> None:
    network, tensors = pair
    out = ExactNetwork(tensors, CONFIG.blocks)(state(t, 7), t)
    log_snr = torch.tensor([float(Schedule().log_snr[t])])
    with torch.inference_mode():
        true = network(state(t, 7)[None].float() / 65536, log_snr)
    error = out.eps.double() / (1 << exact.EPS_UNIT) - true.eps[0].double()
    # 11-bit activations give some parts in a thousand; white noise as a picture also exceeds
    # the calibrated ranges here and there, which costs some per cent.
    assert float(error.std()) < 0.05 * float(true.eps.std())


def test_every_partial_sum_stays_below_2_24(pair: tuple[CodecUNet, dict[str, Tensor]]) -> None:
    for key, weight in pair[1].items():
        if key.endswith(".weight"):
            rows = weight.long().flatten(1)
            if key.removesuffix(".weight") in exact.SIGNED:
                reach = rows.abs().sum(1)
            else:
                reach = torch.maximum(rows.clamp(min=0).sum(1), -rows.clamp(max=0).sum(1))
            assert int(reach.max()) * ACTIVATION_MAX < SUM_LIMIT, key


def test_too_large_weights_are_refused(pair: tuple[CodecUNet, dict[str, Tensor]]) -> None:
    broken = dict(pair[1])
    broken["stem.weight"] = torch.full_like(broken["stem.weight"], 3000)
    with pytest.raises(ModelError, match="2\\*\\*24"):
        ExactNetwork(broken, CONFIG.blocks)


def test_equals_a_float64_reference(
    pair: tuple[CodecUNet, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = ExactNetwork(pair[1], CONFIG.blocks)
    ordinary = [network(state(t, 11), t) for t in TIMES]

    def in_float64(_self: ExactNetwork, a: Tensor, name: str) -> Tensor:
        weight = network.weights[name].double()
        return F.conv2d(a.double(), weight, padding=weight.shape[-1] // 2).float()

    monkeypatch.setattr(ExactNetwork, "_conv", in_float64)
    for t, found in zip(TIMES, ordinary, strict=True):
        assert same(network(state(t, 11), t), found)


def test_a_tile_with_its_halo_equals_the_whole(
    pair: tuple[CodecUNet, dict[str, Tensor]],
) -> None:
    """No output depends on anything but a neighbourhood: nothing normalises over the picture."""
    network = ExactNetwork(pair[1], CONFIG.blocks)
    x = state(60, 13, size=160)
    whole = network(x, 60).eps
    tile = network(x[:, :152, :152], 60).eps
    assert torch.equal(whole[:, :64, :64], tile[:, :64, :64])


SCRIPT = """
import hashlib, sys
import numpy as np, torch
import diffcodec
torch.set_num_threads(int(sys.argv[1]))
torch.backends.mkldnn.enabled = sys.argv[2] == "on"
pixels = np.random.default_rng(5).integers(0, 256, (24, 17, 3), dtype=np.uint8)
print(hashlib.sha256(diffcodec.encode(pixels, effort=1)).hexdigest())
"""


def test_one_file_for_all_threads_and_instruction_sets() -> None:
    if not diffcodec.default_model().exact:
        pytest.fail("the shipped model has no integer network")
    digests = set()
    for threads, onednn, isa in (
        (1, "on", ""),
        (2, "on", "SSE41"),
        (2, "on", "AVX2"),
        (1, "off", ""),
    ):
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        if isa:
            environment["ONEDNN_MAX_CPU_ISA"] = isa
        command = [sys.executable, "-c", SCRIPT, str(threads), onednn]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        digests.add(done.stdout.strip())
    assert len(digests) == 1
