"""Models on disk and in memory: what loads, what is refused, what predictions depend on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN_MODEL, TINY, write_tiny_model
from safetensors.torch import load_file

from diffcodec import ModelError
from diffcodec.catalogue import CATALOGUE, number_of
from diffcodec.container import Header, read_header
from diffcodec.exact import mean
from diffcodec.model import (
    CONFIG,
    EXACT,
    WEIGHTS,
    Model,
    ModelConfig,
    read_model,
    save_model,
)
from diffcodec.model_check import NEIGHBOURS
from diffcodec.network import CodecUNet, NetworkConfig
from diffcodec.plans import ALL, MIRRORED_EFFORT, PLANS, plan_for
from diffcodec.registry import default_model, find_model, is_listed, load_model, shipped
from diffcodec.reverse import evaluate
from diffcodec.schedule import Schedule


def noisy(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A state as the codec hands it to the model, standard normal in 2**-16."""
    noise = np.random.default_rng(seed).standard_normal((3, height, width))
    return np.rint(noise * (1 << 16)).astype(np.int64)


def eps(model: Model, x: np.ndarray, t: int) -> np.ndarray:
    return evaluate(model, x, t, PLANS[0]).eps


@pytest.fixture()
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def test_a_model_survives_the_disk(tiny_folder: Path, tmp_path: Path) -> None:
    first = read_model(tiny_folder)
    save_model(tmp_path, first.config, load_file(tiny_folder / WEIGHTS))
    second = read_model(tmp_path)
    assert second.config == first.config
    assert second.fingerprint == first.fingerprint
    x = noisy(8, 8)
    np.testing.assert_array_equal(eps(first, x, 40), eps(second, x, 40))


def test_the_fingerprint_names_weights_and_settings_but_not_the_name(
    tiny: Model, tmp_path: Path
) -> None:
    weights = {k: v.clone() for k, v in tiny.network.state_dict().items()}

    def fingerprint(config: ModelConfig, number: int, change: float = 0.0) -> bytes:
        changed = dict(weights)
        key = sorted(changed)[number % len(changed)]
        changed[key] = changed[key] + change
        return Model(config, changed).fingerprint

    config = tiny.config
    assert fingerprint(config, 0) == tiny.fingerprint
    assert len(tiny.fingerprint) == 3
    assert fingerprint(ModelConfig("other", config.network, config.schedule), 0) == tiny.fingerprint
    changed = [fingerprint(config, number, 0.5) for number in range(8)]
    changed.append(fingerprint(ModelConfig("a", config.network, Schedule(beta_end=0.03)), 0))
    assert tiny.fingerprint not in changed
    assert len(set(changed)) == len(changed)


@pytest.mark.parametrize("size", [(8, 8), (24, 16), (1, 1), (9, 31)])
def test_predictions_have_the_picture_s_size(tiny: Model, size: tuple[int, int]) -> None:
    out = evaluate(tiny, noisy(*size), 100, PLANS[0])
    h, w = size
    assert tuple(out.eps.shape) == (3, h, w)
    assert tuple(out.coef_index.shape) == (192, -(-h // 8), -(-w // 8))


@pytest.mark.parametrize("size", [(8, 8), (24, 16), (8, 40)])
def test_mirrored_predictions_are_those_of_the_mirror_image(
    exact_tiny: Model, size: tuple[int, int]
) -> None:
    x = noisy(*size).astype(np.int32)
    turned = np.ascontiguousarray(x[:, :, ::-1])
    both, same = (vars(evaluate(exact_tiny, state, 40, PLANS[7])) for state in (x, turned))
    one, other = (vars(evaluate(exact_tiny, state, 40, PLANS[0])) for state in (x, turned))
    for name, value in both.items():
        np.testing.assert_array_equal(same[name][..., ::-1], value)
        mean = (one[name].astype(np.int64) + other[name][..., ::-1]) >> 1
        np.testing.assert_array_equal(value, mean)
        assert value.dtype == one[name].dtype
    assert not np.array_equal(one["eps"], both["eps"])


def test_a_file_of_either_plan_of_a_shipped_model_names_the_model_alone() -> None:
    for name in ("cifar10", "photo"):
        model = load_model(name)
        for effort in (MIRRORED_EFFORT - 1, MIRRORED_EFFORT):
            plan = plan_for(model.plan, effort)
            content = Header(32, 32, model.fingerprint, plan).encode()
            assert len(content) == 3
            header, _ = read_header(content)
            assert (header.fingerprint, header.plan) == (model.fingerprint, plan)
            assert (plan.mirrored == ALL) == (effort == MIRRORED_EFFORT)


def test_the_mean_of_the_largest_numbers_fits() -> None:
    large = torch.tensor([1 << 30, -(1 << 30), -(1 << 30), 3, -3, 0], dtype=torch.int32)
    other = torch.tensor([1 << 30, -(1 << 30), 1 << 30, 4, -4, -1], dtype=torch.int32)
    expected = [1 << 30, -(1 << 30), 0, 3, -4, -1]
    assert mean(large, other).tolist() == expected


def test_predictions_do_not_depend_on_the_number_of_threads(tiny: Model) -> None:
    before = torch.get_num_threads()
    outputs = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            outputs.append(evaluate(tiny, noisy(48, 40), 22, PLANS[0]))
            assert torch.get_num_threads() == threads, "the caller's setting must survive"
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(outputs[0].eps, outputs[1].eps)
    np.testing.assert_array_equal(outputs[0].coef_index, outputs[1].coef_index)


def test_predictions_depend_on_picture_and_time(tiny: Model) -> None:
    base = eps(tiny, noisy(16, 16), 100)
    assert np.any(eps(tiny, noisy(16, 16, seed=1), 100) != base)
    assert np.any(eps(tiny, noisy(16, 16), 11) != base)


def test_the_network_is_local(tiny: Model) -> None:
    """No normalisation, no attention: far away pixels do not matter."""
    x = noisy(128, 128)
    changed = x.copy()
    changed[:, :8, :8] += 1 << 16
    a, b = eps(tiny, x, 40), eps(tiny, changed, 40)
    assert np.any(a[:, :8, :8] != b[:, :8, :8])
    np.testing.assert_array_equal(a[:, 96:, 96:], b[:, 96:, 96:])


def test_a_fresh_network_predicts_the_best_linear_guess() -> None:
    """With heads at zero ε̂ = c_skip·x_t: the guess for data of variance 1/4."""
    network = CodecUNet(TINY)
    x = torch.from_numpy(noisy(16, 16)[None] / (1 << 16)).float()
    log_snr = torch.tensor([0.7])
    with torch.no_grad():
        out = network(x, log_snr)
    abar = 1.0 / (1.0 + np.exp(-0.7))
    expected = np.sqrt(1 - abar) / (0.25 * abar + 1 - abar) * x.numpy()
    np.testing.assert_allclose(out.eps.numpy(), expected, rtol=1e-5)
    assert not out.coef_logvar.any()
    assert not out.pixel.any()


# -- what cannot be loaded -------------------------------------------------------------------


def test_missing_parts_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a model folder"):
        read_model(tmp_path / "missing")
    (folder / WEIGHTS).unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        read_model(folder)


@pytest.mark.parametrize("content", [b"", b"damaged", b"\xff" * 100], ids=["empty", "text", "ff"])
def test_damaged_weights_are_refused(folder: Path, content: bytes) -> None:
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read"):
        read_model(folder)


def test_weights_cut_short_are_refused(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="cannot be read"):
        read_model(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "3", "null", "not json", '{"name": 1}', "\ufffd\x00"]
)
def test_configurations_that_are_none_are_refused(folder: Path, text: str) -> None:
    (folder / CONFIG).write_text(text)
    with pytest.raises(ModelError, match=CONFIG):
        read_model(folder)


def test_a_configuration_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / CONFIG).write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ModelError, match=CONFIG):
        read_model(folder)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("network", "channels", [16, 16]),
        ("network", "channels", 16),
        ("network", "channels", ["a", "b", "c"]),
        ("network", "channels", [16, 16, 0]),
        ("network", "blocks", [1, 1, -1]),
        ("network", "blocks", [1, 1, 1.5]),
        ("network", "embedding", "x"),
        ("network", "embedding", 31),
        ("network", "unknown", 1),
        ("schedule", "timesteps", 0),
        ("schedule", "timesteps", "many"),
        ("schedule", "beta_end", 2.0),
        ("schedule", "beta_end", None),
        ("schedule", "unknown", 1),
    ],
)
def test_impossible_settings_are_refused(folder: Path, part: str, key: str, value: object) -> None:
    values = json.loads((folder / CONFIG).read_text())
    values[part][key] = value
    (folder / CONFIG).write_text(json.dumps(values))
    with pytest.raises(ModelError):
        read_model(folder)


def test_weights_of_another_network_are_refused(folder: Path, tiny: Model) -> None:
    other = NetworkConfig(channels=(16, 16, 24), blocks=TINY.blocks, embedding=TINY.embedding)
    (folder / CONFIG).write_text(ModelConfig("x", other, tiny.schedule).to_json())
    with pytest.raises(ModelError, match="do not fit"):
        read_model(folder)


# -- the registry ----------------------------------------------------------------------------


def test_shipped_models_are_found_by_name_and_by_fingerprint() -> None:
    assert "cifar10" in shipped()
    for name, pixels in (("cifar10", 64 * 64), ("photo", 64 * 64 + 1)):
        model = load_model(name)
        assert model is default_model(pixels)
        assert find_model(model.fingerprint, "") is model
        assert is_listed(model)
        number = number_of(model.fingerprint, model.config.plan)
        assert number and model.plan == PLANS[CATALOGUE[number].plan]
        assert model.name == CATALOGUE[number_of(model.fingerprint) or 0].name


def test_a_folder_is_a_model_too(tiny_folder: Path) -> None:
    model = load_model(str(tiny_folder))
    assert model.name == "tiny1"
    assert not is_listed(model)
    assert load_model(str(tiny_folder / ".." / tiny_folder.name)) is model


def test_unknown_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'nonsense'.*cifar10"):
        load_model("nonsense")
    with pytest.raises(ModelError, match=r"'mine'.*010203"):
        find_model(b"\1\2\3", "mine")


def test_models_of_one_seed_are_the_same(tmp_path: Path) -> None:
    """The tests' own models do not depend on the order of tests."""
    torch.rand(3)
    for name in ("a", "b"):
        write_tiny_model(tmp_path / name, seed=5)
    assert read_model(tmp_path / "a").fingerprint == read_model(tmp_path / "b").fingerprint


@pytest.mark.parametrize("size", [(136, 72), (8, 200), (176, 176)])
@pytest.mark.parametrize("tile", [8, 40, 64])
@pytest.mark.parametrize("mirrored", [False, True])
def test_tiles_with_their_halo_equal_the_whole(
    exact_tiny: Model, size: tuple[int, int], tile: int, mirrored: bool
) -> None:
    """Exactly; the halo of the tiny network is smaller than these pictures."""
    assert exact_tiny.config.network.halo < max(size) - tile
    x = torch.randint(-90000, 90000, (3, *size), generator=torch.Generator().manual_seed(1))
    whole = exact_tiny.evaluate(x, 1, final=True, mirrored=mirrored)
    tiled = exact_tiny.evaluate(x, 1, tile=tile, final=True, mirrored=mirrored)
    for name, a, b in zip(whole._fields, whole, tiled, strict=True):
        assert torch.equal(a, b), name
    steps = exact_tiny.evaluate(x, 40, tile=tile, mirrored=mirrored)
    assert torch.equal(steps.eps, exact_tiny.evaluate(x, 40, mirrored=mirrored).eps)
    assert steps.coefs.numel() == steps.scale_index.numel() == 0


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        (NEIGHBOURS, torch.zeros(3, 5, dtype=torch.int64)),
        (NEIGHBOURS, torch.zeros(3, 6)),
        (NEIGHBOURS, torch.full((3, 6), 5000)),
        (f"{NEIGHBOURS}.2", torch.zeros(3, 6, dtype=torch.int64)),
        (f"{NEIGHBOURS}.2", torch.full((4, 3, 11), -5000)),
    ],
    ids=["shape", "floats", "too large", "shape of four passes", "too small"],
)
def test_unusable_weights_of_neighbours_are_refused(
    exact_tiny: Model, name: str, bad: torch.Tensor
) -> None:
    exact = load_file(GOLDEN_MODEL / EXACT)
    weights = load_file(GOLDEN_MODEL / WEIGHTS)
    assert Model(exact_tiny.config, weights, exact).fingerprint == exact_tiny.fingerprint
    assert exact_tiny.lessons(PLANS[0], learns=False).weights[1].any()
    with pytest.raises(ModelError, match="neighbours"):
        Model(exact_tiny.config, weights, {**exact, name: bad})
