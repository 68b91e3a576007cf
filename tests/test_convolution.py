"""Convolutions of 16-bit integers: true sums, whatever the shape and the machine."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import output_with
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffcodec import convolution, tiles
from diffcodec.convolution import BORDER, I16, Conv2d, empty_map, over_rows
from diffcodec.errors import ModelError
from diffcodec.exact import round_outputs
from diffcodec.heads import coef_into, eps_into, inputs, pixel_into
from diffcodec.pointwise import accumulate, quantize_into
from diffcodec.simd import target_has

SIDE = st.integers(1, 13)


def random_case(
    seed: int, height: int, width: int, ins: int, outs: int, size: int, limit: int = 1 << 31
) -> tuple[I16, I16, I16]:
    """(values [H, W, in], the same as a map with anything in its surplus, weights)."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-2047, 2048, (height, width, ins)).astype(np.int16)
    reach = min(32767, (limit - 1) // (2047 * ins * size * size))
    weight = rng.integers(-reach, reach + 1, (outs, ins, size, size)).astype(np.int16)
    a = empty_map(height, width, ins)
    a[BORDER : BORDER + height, BORDER : BORDER + width, :ins] = values
    return values, a, weight


def sums_of(weight: I16, a: I16, step: int = 1) -> NDArray[np.int32]:
    """All that :meth:`Conv2d.by_rows` hands over, once every row."""
    bands: dict[int, NDArray[np.int32]] = {}

    def use(sums: NDArray[np.int32], first: int, stop: int) -> None:
        assert len(sums) == stop - first > 0
        assert first % step == 0
        bands[first] = sums

    reach = 2047.0 * float(np.abs(weight.astype(np.int64)).sum(axis=(1, 2, 3)).max())
    Conv2d(weight, reach).by_rows(a, use, step)
    found = np.concatenate([bands[first] for first in sorted(bands)])
    assert len(found) == len(a) - 2 * BORDER
    return found


def true_sums(values: I16, weight: I16) -> NDArray[np.int64]:
    x = torch.from_numpy(values).permute(2, 0, 1)[None].double()
    found = F.conv2d(x, torch.from_numpy(weight).double(), padding=weight.shape[-1] // 2)
    return found[0].permute(1, 2, 0).long().numpy()


@settings(deadline=None)
@given(
    st.integers(0, 99), SIDE, SIDE, st.integers(1, 40), st.integers(1, 230),
    st.sampled_from([1, 3]), st.booleans(),
)  # fmt: skip
def test_sums_are_true(
    seed: int, height: int, width: int, ins: int, outs: int, size: int, tiled: bool
) -> None:
    """Odd numbers of channels and blocks of 1 to 6 vectors of them included, weights of one byte
    and of two, in tiles where the machine has them and without."""
    values, a, weight = random_case(seed, height, width, ins, outs, size)
    with patch.object(tiles, "ALLOWED", tiles.ALLOWED and tiled):
        found = sums_of(weight, a)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found[:, :width, :outs], true_sums(values, weight))


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("limit", [1 << 24, 1 << 31])
def test_sums_are_true_in_floats(size: int, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on machines without the instruction: in float32 or, of large ones, in float64."""
    monkeypatch.setattr(tiles, "ALLOWED", False)
    monkeypatch.setattr(convolution, "MULTIPLY_ADD", "")
    values, a, weight = random_case(1, 7, 6, 5, 9, size, limit)
    np.testing.assert_array_equal(sums_of(weight, a)[:, :6, :9], true_sums(values, weight))


def test_every_row_is_worked_on_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "PART", 100)
    rows: list[tuple[int, int]] = []
    over_rows(50, 10_000, lambda first, stop: rows.append((first, stop)))
    assert len(rows) > 1
    assert sorted(k for first, stop in rows for k in range(first, stop)) == list(range(50))


@settings(deadline=None)
@given(st.integers(1, 40), st.sampled_from([1, 2, 4]), st.integers(1, 2000), st.booleans())
def test_bands_give_what_the_whole_gives(height: int, step: int, band: int, tiled: bool) -> None:
    """However large the bands, which are of several rows where these belong together."""
    values, a, weight = random_case(2, height, 11, 6, 20, 3)
    with (
        patch.object(convolution, "PART", 100),
        patch.object(convolution, "BAND", band),
        patch.object(tiles, "ALLOWED", tiles.ALLOWED and tiled),
    ):
        found = sums_of(weight, a, step)
    np.testing.assert_array_equal(found[:, :11, :20], true_sums(values, weight))


@pytest.mark.skipif(not tiles.ALLOWED, reason="this machine has no instructions for tiles")
@settings(deadline=None)
@given(
    st.integers(0, 99), st.integers(1, 70), st.integers(1, 1200), st.sampled_from([9, 1000, 32767])
)
def test_inner_products_are_true_or_refused(seed: int, count: int, length: int, top: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(-top - 1, top + 1, (count, length)).astype(np.int16)
    true = rows.astype(np.int64) @ rows.T.astype(np.int64)
    found = tiles.inner_products(rows)
    assert (found is None) == (true.diagonal().max() >= 1 << 31)
    if found is not None:
        np.testing.assert_array_equal(np.tril(found[:count, :count]), np.tril(true))


@pytest.mark.parametrize("fold", [1, 2, 4])
@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_quantized_maps(fold: int, kind: type) -> None:
    """Rounded to even, limited, in the order of places, and nothing is written beside them."""
    rng = np.random.default_rng(fold)
    height, width, channels, first = 3, 5, 6, 2
    x = (1000 * rng.standard_normal((fold * height, fold * width + 2, channels + 1))).astype(kind)
    mul = (rng.standard_normal(fold**2 * channels) * 2).astype(np.float32)
    add = (300 * rng.standard_normal(fold**2 * channels)).astype(np.float32)
    a = empty_map(height, width, first + len(mul))
    quantize_into(a, first, x, (height, width), mul, add, (-512, 2047), 0.25, fold)
    used = x[:, : fold * width, :channels].astype(np.float32)
    places = used.reshape(height, fold, width, fold, channels).transpose(0, 2, 1, 3, 4)
    v = places.reshape(height, width, -1) * mul + add
    expected = np.clip(np.rint(np.where(v > 0, v, v * np.float32(0.25))), -512, 2047)
    inside = np.s_[BORDER : BORDER + height, BORDER : BORDER + width, first:]
    np.testing.assert_array_equal(a[inside], expected)
    assert {-512, 2047} <= set(a[inside].ravel().tolist())
    a[inside] = 0
    assert not a.any()


@pytest.mark.parametrize("largest", [9999, (1 << 31) - 1])
@pytest.mark.parametrize("fold", [1, 2])
def test_accumulated_steps(fold: int, largest: int) -> None:
    """Of sums that float32 cannot hold, what they are rounded to counts."""
    rng = np.random.default_rng(fold)
    height, width, channels = 3, 5, 6
    r = rng.integers(-900, 900, (fold * height, fold * width, channels)).astype(np.float32)
    shape = (height, width + 3, fold**2 * channels + 2)
    sums = rng.integers(-largest, largest, shape).astype(np.int32)
    mul = (rng.standard_normal(fold**2 * channels) * (9999 / largest)).astype(np.float32)
    add = rng.standard_normal(fold**2 * channels).astype(np.float32)
    step = np.rint(sums[:, :width, : len(mul)].astype(np.float32) * mul + add)
    step = step.reshape(height, width, fold, fold, channels).transpose(0, 2, 1, 3, 4)
    expected = np.clip(r + step.reshape(r.shape), -5000, 5000)
    accumulate(r, sums, mul, add, 5000, fold)
    np.testing.assert_array_equal(r, expected)
    assert abs(r).max() == 5000


def test_inputs_are_the_state_and_its_detail() -> None:
    """x and x − mean of the places of 3×3 that there are, folded two by two (docs/format.md)."""
    rng = np.random.default_rng(3)
    x = rng.integers(-300_000, 300_000, (3, 8, 16)).astype(np.int32)
    state = torch.from_numpy(x)[None].double()
    mean = F.avg_pool2d(state, 3, stride=1, padding=1, count_include_pad=False).float().round()
    expected = F.pixel_unshuffle(torch.cat([state, state - mean], dim=1), 2)[0]
    np.testing.assert_array_equal(inputs(x), expected.permute(1, 2, 0).numpy())


def test_outputs_are_rounded_like_those_of_networks_in_floats() -> None:
    rng = np.random.default_rng(4)
    sums = [rng.integers(-(1 << 20), 1 << 20, (4, 6, n)).astype(np.int32) for n in (14, 26, 193)]
    mul = [(5e-6 * rng.standard_normal(n)).astype(np.float32) for n in (12, 24, 192)]
    add = [rng.standard_normal(n).astype(np.float32) for n in (12, 24, 192)]
    real = [
        torch.from_numpy(s[..., : len(m)]).double() * torch.from_numpy(m).double()
        + torch.from_numpy(a).double()
        for s, m, a in zip(sums, mul, add, strict=True)
    ]
    noise, pixel, coef = (part.permute(2, 0, 1) for part in real)
    x = rng.integers(-300_000, 300_000, (3, 8, 12)).astype(np.int32)
    skip, gain = 1.7e-5, 0.9
    eps = torch.from_numpy(x).double() * skip + F.pixel_shuffle(noise[None], 2)[0] * gain
    expected = round_outputs(eps, coef, F.pixel_shuffle(pixel[None], 2)[0])
    found = np.empty_like(x)
    eps_into(found, sums[0], mul[0], add[0], x, skip, gain)
    np.testing.assert_array_equal(found, expected.eps.numpy())
    scale, coefs = np.empty(x.shape, np.int16), np.empty(x.shape, np.int16)
    pixel_into(scale, coefs, sums[1], mul[1], add[1])
    np.testing.assert_array_equal(scale, expected.scale_index.numpy())
    np.testing.assert_array_equal(coefs, expected.coefs.numpy())
    index = np.empty((192, 4, 6), np.int16)
    coef_into(index, sums[2], mul[2], add[2])
    np.testing.assert_array_equal(index, expected.coef_index.numpy())
    for part in (scale, coefs, index):
        assert len(np.unique(part)) > 10


PROGRAM = """
import hashlib
import numpy as np
from diffcodec import convolution, tiles
rng = np.random.default_rng(0)
a = convolution.empty_map(9, 7, 30)
a[1:10, 1:8] = rng.integers(-2047, 2048, (9, 7, 30))
weight = rng.integers(-3000, 3001, (200, 30, 3, 3)).astype(np.int16)
bands = []
convolution.Conv2d(weight, 1e9).by_rows(a, lambda sums, first, stop: bands.append(sums))
sums = np.concatenate(bands)[:, :7, :200]
kernel = "tiles" if tiles.ALLOWED else convolution.MULTIPLY_ADD or "none"
print(kernel, hashlib.sha256(np.ascontiguousarray(sums).tobytes()).hexdigest())
"""


def test_all_machines_find_the_same_sums() -> None:
    def found(machine: str = "") -> list[str]:
        return output_with(PROGRAM, machine)[0].split()

    kernel, here = found()
    if kernel == "none":
        pytest.skip("this machine does not have the instructions")
    assert found("neither") == ["none", here]
    assert found("avx2") == ["llvm.x86.avx2.pmadd.wd", here]
    if target_has("avx512bw"):
        assert found("avx512bw") == ["llvm.x86.avx512.pmaddw.d.512", here]


def test_float32_that_rounds_is_refused_where_it_would_carry_sums() -> None:
    """As with ONEDNN_DEFAULT_FPMATH_MODE=BF16; float64 is safe, and vectors need neither."""
    original = F.conv2d

    def rounding(x: torch.Tensor, weight: torch.Tensor, **options: int) -> torch.Tensor:
        if x.dtype == torch.float32:
            x, weight = x.bfloat16().float(), weight.bfloat16().float()
        return original(x, weight, **options)

    weight = np.ones((1, 1, 1, 1), np.int16)
    with patch.object(convolution.F, "conv2d", rounding):
        with patch.object(convolution, "MULTIPLY_ADD", ""):
            with pytest.raises(ModelError, match="not exact; unset ONEDNN_DEFAULT_FPMATH_MODE"):
                Conv2d(weight, float((1 << 24) - 1))
            Conv2d(weight, float(1 << 24))
        with patch.object(convolution, "MULTIPLY_ADD", "instruction"):
            Conv2d(weight, 1.0)
    with patch.object(convolution, "MULTIPLY_ADD", ""):
        Conv2d(weight, 1.0)
