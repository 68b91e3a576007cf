"""The colour × DCT transform of a block."""

from __future__ import annotations

import numpy as np
import pytest

from diffcodec.transform import BANDS, COLOUR, dct_matrix, matrix


@pytest.mark.parametrize("n", range(1, 9))
def test_dct_is_orthonormal_and_ordered_by_frequency(n: int) -> None:
    dct = dct_matrix(n)
    np.testing.assert_allclose(dct @ dct.T, np.eye(n), atol=1e-12)
    changes = [int(np.sum(np.diff(np.sign(row)) != 0)) for row in dct]
    assert changes == list(range(n))
    np.testing.assert_allclose(dct[0], n**-0.5)


def test_colours_are_orthonormal_and_grey_is_the_first() -> None:
    np.testing.assert_allclose(COLOUR @ COLOUR.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(COLOUR @ np.ones(3), [3**0.5, 0, 0], atol=1e-12)


def test_matrix_is_orthonormal() -> None:
    np.testing.assert_allclose(matrix() @ matrix().T, np.eye(BANDS), atol=1e-12)


def test_a_flat_red_block_has_three_coefficients() -> None:
    """Channel c·64 + 8·v + u; a flat block of red 1 has 8 × the red weight in each DC."""
    block = np.zeros((3, 8, 8))
    block[0] = 1.0
    expected = np.zeros(BANDS)
    expected[[0, 64, 128]] = 8.0 * COLOUR[:, 0]
    np.testing.assert_allclose(matrix() @ block.reshape(-1), expected, atol=1e-12)


def test_rows_of_a_block_vary_with_v() -> None:
    """A block whose rows follow frequency v has only the band 8·v."""
    block = np.broadcast_to(dct_matrix()[5][:, None], (3, 8, 8))
    found = matrix() @ block.reshape(-1)
    assert np.flatnonzero(np.abs(found) > 1e-9).tolist() == [40]
