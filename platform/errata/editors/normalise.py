"""Running mean and variance of keys and gradients, collected in training and frozen at edit time.

Chan's parallel update in fp64, with the sum of squares (not a running variance), so that one-row batches are exact.
T rows, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Normaliser(nn.Module):
    """Feature-wise normalisation by the statistics of every row that `update` has seen.

    `centred` standardises, `(x - mean) / std`, as MEND and its successors do. Otherwise rows are divided by their root mean
    square, so that a zero gradient, of a fact that the model already knows, gives a zero update.
    """

    count: Tensor
    mean_F: Tensor
    squares_F: Tensor

    def __init__(self, num_features: int, centred: bool) -> None:
        super().__init__()
        self.centred = centred
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean_F", torch.zeros(num_features, dtype=torch.float64))
        self.register_buffer("squares_F", torch.zeros(num_features, dtype=torch.float64))

    @torch.no_grad()
    def update(self, rows_TF: Tensor) -> None:
        rows_TF = rows_TF.double()
        num_new, mean_F = len(rows_TF), rows_TF.mean(0)
        total = self.count + num_new
        shift_F = mean_F - self.mean_F
        self.squares_F += (rows_TF - mean_F).square().sum(0) + shift_F.square() * self.count * num_new / total
        self.mean_F += shift_F * num_new / total
        self.count.copy_(total)

    def forward(self, rows_TF: Tensor) -> Tensor:
        """Normalise the rows; before two rows have been seen, they are unchanged."""
        if self.count < 2:
            return rows_TF
        if self.centred:
            std_F = (self.squares_F / (self.count - 1)).sqrt()
            return ((rows_TF.double() - self.mean_F) / (std_F + 1e-7)).to(rows_TF.dtype)
        rms_F = (self.squares_F / self.count + self.mean_F.square()).sqrt()
        return rows_TF * (1 / (rms_F + 1e-7)).to(rows_TF.dtype)
