"""What both sides learn about a picture: exactly the same, and something true."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from conftest import load_picture
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import diffcodec
from diffcodec import correction, tiles
from diffcodec.adaptation import NOISE_UNIT, RULES, Adaptation, Rule, inner_products, solve
from diffcodec.contents import describe
from diffcodec.correction import OUTPUTS, OWN, WEIGHT_UNIT, Correction
from diffcodec.errors import ModelError
from diffcodec.model import Model
from diffcodec.plans import PLANS
from diffcodec.reverse import evaluate
from diffcodec.steps import Settings, adapted


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 40), seed=st.integers(0, 1 << 32))
def test_equations_are_solved(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    half = rng.standard_normal((size, size + 3))
    matrix, right = half @ half.T + np.eye(size), rng.standard_normal((size, 5))
    kept = matrix.copy(), right.copy()
    np.testing.assert_allclose(solve(matrix, right), np.linalg.solve(matrix, right), rtol=1e-6)
    np.testing.assert_array_equal(matrix, kept[0])
    np.testing.assert_array_equal(right, kept[1])
    np.testing.assert_array_equal(solve(matrix, right), solved_by_columns(matrix, right))


def solved_by_columns(a: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """As docs/format.md has it: column after column, all rows below."""
    a, x = a.copy(), x.copy()
    for j in range(len(a)):
        factors = a[j + 1 :, j, None] / a[j, j]
        a[j + 1 :, j + 1 :] -= factors * a[j, j + 1 :]
        x[j + 1 :] -= factors * x[j]
    for j in reversed(range(len(a))):
        x[j] /= a[j, j]
        x[:j] -= a[:j, j, None] * x[j]
    return x


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize("top", [900, 32767])
def test_inner_products_are_exact(top: int, tiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With instructions for tiles, where there are, and when their sums would overflow."""
    monkeypatch.setattr(tiles, "ALLOWED", tiles.ALLOWED and tiled)
    rows = np.random.default_rng(11).integers(-top, top, (37, 3000)).astype(np.int16)
    true = rows.astype(np.int64) @ rows.T.astype(np.int64)
    np.testing.assert_array_equal(np.tril(inner_products(rows)), np.tril(true))


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 70), width=st.integers(1, 40), stride=st.sampled_from([1, 2, 4, 8]))
def test_what_is_looked_at_are_whole_cells_of_the_picture(
    height: int, width: int, stride: int
) -> None:
    adaptation = Adaptation(5, height, width, RULES[1])
    adaptation.stride = stride
    adaptation.rows = -(-(height // 2) // stride)
    adaptation.columns = -(-(width // 2) // stride)
    noise = np.random.default_rng(height).standard_normal((3, height, width))
    seen = adaptation.empty()
    for top in range(0, height, 24):
        adaptation.look(noise[:, top : top + 24], top, seen)
    cells = product(range(adaptation.rows), range(adaptation.columns))
    for i, j in cells:
        y, x = 2 * stride * i, 2 * stride * j
        cell = np.rint(noise[:, y : y + 2, x : x + 2] * (1 << NOISE_UNIT))
        assert cell.shape == (3, 2, 2)
        np.testing.assert_array_equal(seen[:, i, j], cell.reshape(-1))
    assert 2 * stride * adaptation.rows >= height - 1


@given(
    height=st.integers(1, 1 << 14),
    width=st.integers(1, 1 << 14),
    rule=st.sampled_from(list(RULES.values())),
)
def test_of_large_pictures_a_part_is_enough(height: int, width: int, rule: Rule) -> None:
    adaptation = Adaptation(3, height, width, rule)
    cells, most = (height // 2) * (width // 2), rule.most_cells
    if cells <= rule.strides[-1] ** 2 * most:
        assert adaptation.rows * adaptation.columns <= 1.1 * most + height + width
    assert (adaptation.stride == 1) == (cells <= most)


def picture_to_learn(
    rng: np.random.Generator, rows: int, columns: int
) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """Features int16 [6, rows, columns] and the error of ε̂ float64 [OUTPUTS, cells] they tell."""
    features = rng.integers(-300, 300, (6, rows, columns)).astype(np.int16)
    weights = rng.uniform(-3e-4, 3e-4, (6, OUTPUTS))
    return features, weights.T @ features.reshape(6, -1)


def test_what_the_features_tell_of_the_error_is_learnt_in_spite_of_the_noise() -> None:
    """Also when ε̂ is corrected already, and more so the more is seen."""
    rng = np.random.default_rng(1)
    adaptation, gain = Adaptation(6, 256, 256, RULES[1]), 1.5
    features, error = picture_to_learn(rng, 128, 128)
    left = [float(np.square(error).mean())]
    for _ in range(3):
        told = adaptation.weights / (1 << WEIGHT_UNIT)
        phi = np.concatenate([features.reshape(6, -1), np.full((1, 128 * 128), 128)])
        rest = error - told.T @ phi
        y = gain * rest + rng.standard_normal(error.shape)
        seen = np.rint(y * (1 << NOISE_UNIT)).astype(np.int16).reshape(-1, 128, 128)
        adaptation.learn(40, features, seen, gain)
        corrected = error - (adaptation.weights / (1 << WEIGHT_UNIT)).T @ phi
        left.append(float(np.square(corrected).mean()))
    assert left[1] < 0.2 * left[0]
    assert left[3] < left[1]


def test_noise_alone_teaches_next_to_nothing() -> None:
    rng = np.random.default_rng(2)
    adaptation = Adaptation(6, 128, 128, RULES[1])
    features, _ = picture_to_learn(rng, 64, 64)
    seen = np.rint(rng.standard_normal((OUTPUTS, 64, 64)) * (1 << NOISE_UNIT)).astype(np.int16)
    adaptation.learn(40, features, seen, 1.0)
    phi = np.concatenate([features.reshape(6, -1), np.full((1, 64 * 64), 128)])
    wrong = (adaptation.weights / (1 << WEIGHT_UNIT)).T @ phi
    assert 0 < np.square(wrong).mean() < 0.001


def test_a_shift_by_a_cell_is_learnt_from_the_neighbours() -> None:
    """Whose features the second rule looks at; the first cannot know."""
    rng = np.random.default_rng(9)
    features, error = picture_to_learn(rng, 128, 128)
    moved = np.roll(error.reshape(OUTPUTS, 128, 128), 1, axis=2)
    left = {}
    for number, rule in RULES.items():
        adaptation = Adaptation(6, 256, 256, rule)
        wanted = Correction(adaptation.weights, 2, rule.cells, rule.sizes)
        told = wanted.wanted(features)
        for _ in range(3):
            corrected = moved - corrected_by(adaptation, told)
            y = 1.5 * corrected + rng.standard_normal(moved.shape)
            adaptation.learn(40, told, np.rint(y * (1 << NOISE_UNIT)).astype(np.int16), 1.5)
        rest = moved - corrected_by(adaptation, told)
        left[number] = float(np.square(rest).mean() / np.square(moved).mean())
    assert left[1] > 0.9
    assert left[2] < 0.2  # the ridge is worth 30,000 cells, and there are 16,384


def corrected_by(adaptation: Adaptation, told: NDArray[np.int16]) -> NDArray[np.float64]:
    """What the weights make of features [told, rows, columns]: [OUTPUTS, rows, columns]."""
    phi = np.concatenate([told, np.full_like(told[:1], 128)])
    return np.tensordot((adaptation.weights / (1 << WEIGHT_UNIT)).T, phi, axes=1)


def test_the_second_rule_leaves_the_noisiest_steps_alone() -> None:
    rng = np.random.default_rng(10)
    adaptation = Adaptation(2, 128, 128, RULES[2])
    assert [t for t in PLANS[14].timesteps if not adaptation.learns(t)] == [680, 450, 290]
    assert adaptation.correction(290) is None
    told = rng.integers(-300, 300, (12, 64, 64)).astype(np.int16)
    seen = np.stack([told[0]] * OUTPUTS)
    adaptation.learn(115, told, seen, 1.0)
    assert not adaptation.weights.any()
    adaptation.learn(70, told, seen, 1.0)
    wanted = adaptation.correction(70)
    assert adaptation.weights.any()
    assert wanted is not None and wanted.weights is not adaptation.weights


@pytest.mark.parametrize("chunk", [6, 12, correction.CHUNK])
@pytest.mark.parametrize(
    ("cells", "sizes"), [(OWN, False), (RULES[2].cells, True), (((0, 0), (2, -1)), False)]
)
def test_a_correction_is_what_it_says(
    cells: tuple[tuple[int, int], ...], sizes: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many rows of cells it is computed of at a time."""
    monkeypatch.setattr(correction, "CHUNK", chunk)
    rng = np.random.default_rng(3)
    count = 3 * (len(cells) + sizes)
    weights = rng.integers(-(1 << 20), 1 << 20, (count + 1, OUTPUTS)).astype(np.float64)
    features = rng.integers(-(1 << 14), 1 << 14, (3, 4, 6)).astype(np.int16)
    eps = rng.integers(-(1 << 17), 1 << 17, (3, 8, 12)).astype(np.int32)
    own = Correction(weights, 2, cells, sizes)
    found = eps.copy()
    own.apply(found, features)
    told = own.wanted(features)
    for c, y, x in product(range(3), range(8), range(12)):
        column = weights[:, 4 * c + 2 * (y % 2) + x % 2].astype(np.int64)
        around = [(min(max(y // 2 + i, 0), 3), min(max(x // 2 + j, 0), 5)) for i, j in cells]
        phi = np.concatenate([features[:, i, j].astype(np.int64) for i, j in around])
        if sizes:
            phi = np.append(phi, np.abs(features[:, y // 2, x // 2]))
        np.testing.assert_array_equal(told[:, y // 2, x // 2], phi)
        total = int(column[:-1] @ phi + column[-1] * 128)
        assert found[c, y, x] == eps[c, y, x] - ((total + 512) >> 10)


@pytest.mark.parametrize("rule", RULES.values())
@pytest.mark.parametrize("pitch", [2, 4, 8, 16])
def test_tiles_see_the_same_features(exact_tiny: Model, pitch: int, rule: Rule) -> None:
    x = torch.randint(-90000, 90000, (3, 136, 72), generator=torch.Generator().manual_seed(1))
    count = exact_tiny.network.config.channels[0] * (len(rule.cells) + rule.sizes)
    weights = np.random.default_rng(4).integers(-9999, 9999, (count + 1, 12)).astype(np.float64)
    wanted = Correction(weights, pitch, rule.cells, rule.sizes)
    whole = exact_tiny.evaluate(x, 1, correction=wanted, final=True)
    tiled = exact_tiny.evaluate(x, 1, tile=48, correction=wanted, final=True)
    for name, a, b in zip(whole._fields, whole, tiled, strict=True):
        assert torch.equal(a, b), name
    assert whole.features.shape == (count, -(-136 // pitch), -(-72 // pitch))
    assert not torch.equal(whole.eps, exact_tiny.evaluate(x, 1, final=True).eps)


@pytest.mark.parametrize("number", [9, 15])
def test_mirrored_predictions_are_corrected_once(exact_tiny: Model, number: int) -> None:
    """The mean less the correction, whichever of the two it was applied to."""
    settings = Settings(PLANS[number], 72, 64)
    own = adapted(exact_tiny, settings)
    assert own is not exact_tiny and own.adaptation is not None
    x = np.random.default_rng(5).integers(-90000, 90000, (3, 72, 64)).astype(np.int32)
    plain = evaluate(exact_tiny, x, 40, PLANS[7])
    shape = own.adaptation.weights.shape
    own.adaptation.weights = np.random.default_rng(6).integers(-99999, 99999, shape) * 1.0
    once = evaluate(own, x, 40, PLANS[0])
    delta = evaluate(exact_tiny, x, 40, PLANS[0]).eps - once.eps
    both = evaluate(own, x, 40, PLANS[7])
    assert np.abs(delta).max() > 9
    assert np.abs(plain.eps - both.eps - delta).max() <= 1
    np.testing.assert_array_equal(once.features, both.features)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("number", [10, 11, 16, 17])
def test_adaptive_plans_are_lossless_and_can_be_cut(
    exact_tiny: Model, number: int, grey: bool
) -> None:
    pixels = np.tile(load_picture("budgerigar-32.png"), (3, 3, 1))[:67, :75]
    if grey:
        pixels = pixels[..., 1]
    content = diffcodec.encode(pixels, model=exact_tiny, effort=1, plan=PLANS[number])
    assert describe(content, exact_tiny)["adaptive"]
    whole = diffcodec.decode(content, model=exact_tiny)
    assert whole.exact
    np.testing.assert_array_equal(whole.pixels, pixels)
    for size in (len(content) // 3, len(content) // 2, len(content) - 9):
        shown = diffcodec.decode(content[:size], model=exact_tiny)
        assert not shown.exact and shown.pixels.shape == pixels.shape


def test_what_is_learnt_saves_bytes() -> None:
    """Of a picture unlike those the model knows, where there is something to learn."""
    y, x = np.mgrid[:128, :128]
    rng = np.random.default_rng(7)
    shade = 128 + 60 * np.sin(x / 3.0) * np.cos(y / 5.0) + rng.normal(0, 1, (128, 128))
    pixels = np.dstack([shade, shade[::-1], shade.T]).clip(0, 255).astype(np.uint8)
    model = diffcodec.load_model("photo")
    plans = (3, 8, 14)
    sizes = [len(diffcodec.encode(pixels, model=model, effort=1, plan=PLANS[n])) for n in plans]
    assert max(sizes[1:]) < 0.99 * sizes[0]


def test_small_pictures_are_left_alone(exact_tiny: Model) -> None:
    assert adapted(exact_tiny, Settings(PLANS[8], 64, 64)) is exact_tiny
    assert adapted(exact_tiny, Settings(PLANS[8], 65, 64)) is not exact_tiny
    assert adapted(exact_tiny, Settings(PLANS[3], 65, 64)) is exact_tiny


def test_floating_point_does_not_adapt(tiny: Model) -> None:
    with pytest.raises(ModelError, match="diffcodec quantize"):
        diffcodec.encode(np.zeros((80, 80, 3), np.uint8), model=tiny, plan=PLANS[8])
