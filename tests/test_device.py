"""The exact network in torch's own operations, as on a GPU: the same integers, the same files.

What a machine without a GPU can tell: "cpu:0" is a device like any other to the code, and on "meta"
every operation is refused whose tensors are not all there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import load_picture, same_integers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import diffcodec
from diffcodec import device
from diffcodec.adaptation import AROUND, RULES, inner_products
from diffcodec.cli import main
from diffcodec.correction import CELL, OUTPUTS, OWN, Correction
from diffcodec.device import DeviceNetwork, find_device
from diffcodec.errors import ModelError
from diffcodec.exact import ACTIVATION_MAX
from diffcodec.model import Model
from diffcodec.registry import load_model

HERE = "cpu:0"
SIDES = st.sampled_from([8, 16, 24])


def correction(model: Model, seed: int, around: bool) -> Correction:
    cells = AROUND if around else OWN
    told = model.network.config.channels[0] * (len(cells) + around)
    weights = np.random.default_rng(seed).normal(scale=3000.0, size=(told + 1, OUTPUTS))
    return Correction(np.rint(weights), CELL * (1 + around), cells, around)


@pytest.mark.parametrize("name", ["cifar10", "photo"])
@given(
    seed=st.integers(0, 1 << 30),
    height=SIDES,
    width=SIDES,
    size=st.sampled_from([1.0, 40.0]),
    final=st.booleans(),
    kind=st.sampled_from([None, False, True]),
)
def test_says_what_the_network_of_this_machine_says(
    name: str, seed: int, height: int, width: int, size: float, final: bool, kind: bool | None
) -> None:
    """For states, likely and far too large, at all timesteps of the plan in turn."""
    model = load_model(name)
    times = model.plan.timesteps
    t = times[seed % len(times)]
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn((3, height, width), generator=generator) * size * 65536).int()
    wanted = None if kind is None else correction(model, seed, kind)
    there = model.on(HERE)
    assert there is not model
    assert same_integers(
        there.evaluate(x, t, correction=wanted, final=final),
        model.evaluate(x, t, correction=wanted, final=final),
    )


def test_pictures_in_tiles_too() -> None:
    model = load_model("photo")
    t = model.plan.timesteps[3]
    generator = torch.Generator().manual_seed(5)
    x = (torch.randn((3, 48, 80), generator=generator) * 65536).int()
    assert same_integers(model.on(HERE).evaluate(x, t, tile=32), model.evaluate(x, t))


@pytest.mark.parametrize(("effort", "height", "width"), [(1, 32, 32), (6, 24, 16), (1, 72, 64)])
def test_the_same_files(effort: int, height: int, width: int) -> None:
    """Small and large, mirrored, adapted: bytes and pictures, whole and cut."""
    pixels = load_picture("budgerigar.png")[100 : 100 + height, 60 : 60 + width]
    content = diffcodec.encode(pixels, effort=effort)
    assert diffcodec.encode(pixels, effort=effort, device=HERE) == content
    np.testing.assert_array_equal(diffcodec.decode(content, device=HERE).pixels, pixels)
    cut = content[: len(content) // 3]
    one, other = diffcodec.decode(cut), diffcodec.decode(cut, device=HERE)
    np.testing.assert_array_equal(one.pixels, other.pixels)
    assert one.t == other.t


def test_batches_take_a_device() -> None:
    pictures = [load_picture("budgerigar.png")[k : k + 16, :16] for k in (0, 50)]
    contents = diffcodec.encode_batch(pictures, effort=1, device=HERE)
    assert contents == diffcodec.encode_batch(pictures, effort=1)
    for pixels, decoded in zip(
        pictures, diffcodec.decode_batch(contents, device=HERE), strict=True
    ):
        np.testing.assert_array_equal(decoded.pixels, pixels)


def test_sums_of_products_are_whole() -> None:
    rows = np.random.default_rng(0).integers(-(1 << 15), 1 << 15, (37, 4096)).astype(np.int16)
    true = rows.astype(np.int64) @ rows.astype(np.int64).T
    np.testing.assert_array_equal(inner_products(rows, HERE), true)


@pytest.mark.parametrize("final", [False, True])
def test_nothing_is_left_behind_in_memory(final: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the state that goes there and the outputs that come back all is on the device."""
    left: list[Tensor] = []

    def come_back(tensor: Tensor) -> Tensor:
        assert tensor.device.type == "meta"
        left.append(tensor)
        return torch.zeros(tensor.shape, dtype=tensor.dtype)

    monkeypatch.setattr(Tensor, "cpu", come_back)
    model = load_model("photo")
    there = [DeviceNetwork(network, torch.device("meta")) for network in model._exact]
    x = torch.zeros((3, 16, 24), dtype=torch.int32)
    for network, plain in zip(there, model._exact, strict=True):
        t = next(iter(network.rows))
        out = network(x, t, correction(model, 0, True), final=final)
        own = plain(x, t, correction(model, 0, True), final=final)
        assert [part.shape for part in out] == [part.shape for part in own]
    assert len(left) == 2 * (4 if final else 3)


@pytest.mark.parametrize(
    ("dtype", "short"), [(torch.float64, torch.float32), (torch.float32, torch.bfloat16)]
)
def test_a_device_that_rounds_is_refused(
    dtype: torch.dtype, short: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float64 that is float32, and float32 that is shorter, as some settings of torch's make it:
    each alone, the other being as it should."""

    def product(a: Tensor, b: Tensor) -> Tensor:
        if a.dtype == dtype:
            return (a.to(short).float() @ b.to(short).float()).to(dtype)
        return a @ b

    assert find_device(HERE).type == "cpu"
    monkeypatch.setattr(device, "_product", product)
    with pytest.raises(ModelError, match="does not multiply whole numbers exactly"):
        find_device(HERE)


@given(
    seed=st.integers(0, 1 << 30),
    ins=st.sampled_from([1, 24, 130, 400]),
    size=st.sampled_from([1, 3]),
    largest=st.sampled_from([0, 127, 3000, 32767]),
)
def test_parts_make_up_the_weights_and_stay_exact(
    seed: int, ins: int, size: int, largest: int
) -> None:
    """Together they are the weights, and no sum of products of one reaches 2**24."""
    rng = np.random.default_rng(seed)
    weight = rng.integers(-largest - 1, largest + 1, (5, ins, size, size)).astype(np.int16)
    whole = np.zeros(weight.shape, np.int64)
    for part in device.parts_of(weight):
        own = part.weight.numpy().astype(np.int64)
        assert part.weight.dtype == torch.float32
        np.testing.assert_array_equal(own, part.weight.numpy())
        assert ACTIVATION_MAX * np.abs(own).sum(axis=0).max() < 1 << 24
        channels = slice(part.first, part.first + len(own))
        whole[:, channels, part.down, part.right] += part.scale * own.T
    np.testing.assert_array_equal(whole, weight)


@pytest.mark.parametrize("name", ["nonsense", "cuda:99", "meta:x"])
def test_a_device_that_is_not_there_is_one_line(name: str) -> None:
    with pytest.raises(ModelError, match="not available on this machine"):
        load_model("cifar10").on(name)


def test_floating_point_stays_where_it_is(tiny: Model) -> None:
    with pytest.raises(ModelError, match="floating point"):
        tiny.on(HERE)


def test_a_model_stays_on_its_device() -> None:
    model = load_model("cifar10")
    there = model.on(HERE)
    assert there.on(None) is there
    assert there.on(HERE) is there
    assert there.adapted(80, 80, RULES[2]).device == HERE
    assert model.on(HERE) is there
    assert there.on("cpu") is model
    assert there.fingerprint == model.fingerprint


@pytest.mark.parametrize("command", ["encode", "decode", "evaluate --data"])
def test_the_command_line_refuses_what_is_not_there(command: str, tmp_path: Path) -> None:
    picture = Path(__file__).parent / "data" / "budgerigar.png"
    output = [] if "evaluate" in command else ["-o", str(tmp_path / "out")]
    arguments = [*command.split(), str(picture), *output, "--device", "nonsense"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert result.output.startswith("diffcodec: --device nonsense: not available on this machine")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("says", ["CUDA out of memory. Tried to allocate 2.00 GiB.", "no kernel"])
def test_too_little_memory_there_is_one_line(
    says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is wrong with the program is not taken for it."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(says)

    monkeypatch.setattr(Model, "evaluate", fail)
    picture = Path(__file__).parent / "data" / "budgerigar.png"
    result = CliRunner().invoke(main, ["encode", str(picture), "-o", str(tmp_path / "a.ddc")])
    line = "diffcodec: not enough memory for a picture of this size"
    assert (result.output.strip() == line) == ("memory" in says)
    assert result.exit_code == 1
    assert not list(tmp_path.iterdir())
