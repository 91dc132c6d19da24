"""Running mean and variance of rows, in any batches."""

from __future__ import annotations

import torch

from errata.editors.normalise import Normaliser


def test_statistics_do_not_depend_on_how_rows_are_batched() -> None:
    rows_TF = torch.randn(57, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1
    for sizes in ([57], [1] * 57, [10, 20, 27]):
        normaliser = Normaliser(5, centred=True)
        for part in rows_TF.split(sizes):
            normaliser.update(part)
        expected = (rows_TF - rows_TF.mean(0)) / rows_TF.std(0)
        torch.testing.assert_close(normaliser(rows_TF), expected, rtol=1e-5, atol=1e-5)


def test_uncentred_zero_stays_zero_and_the_mean_square_is_one() -> None:
    rows_TF = torch.randn(400, 3, generator=torch.Generator().manual_seed(1)) * 7 + 2
    normaliser = Normaliser(3, centred=False)
    normaliser.update(rows_TF)
    assert not normaliser(torch.zeros(2, 3)).any()
    torch.testing.assert_close(normaliser(rows_TF).square().mean(0), torch.ones(3), rtol=1e-5, atol=1e-5)


def test_one_row_does_not_normalise() -> None:
    normaliser = Normaliser(3, centred=True)
    normaliser.update(torch.ones(1, 3))
    assert torch.equal(normaliser(torch.full((1, 3), 5.0)), torch.full((1, 3), 5.0))
