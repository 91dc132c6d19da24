"""Side branches: a model with a delta beside its weights equals the edited model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from errata.delta.accumulator import EditedModel
from errata.delta.side_branch import applied
from errata.delta.weight_delta import WeightDelta
from errata.model.matrices import MatrixSpec, ModelSpec, find_matrices
from tests.unit.delta.parts_under_test import COLUMNS, ROWS, a_low_rank

MATRICES = ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]


def test_applied_equals_the_edited_model_and_leaves_no_trace(tiny_model, random_delta):
    delta, ids = random_delta(0, scale=0.1), torch.tensor([[5, 6, 7]])
    module = tiny_model.module
    before, state = module(ids).logits, {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with applied(module, delta):
        beside = module(ids).logits
    with pytest.raises(KeyError), applied(module, delta):
        raise KeyError
    assert torch.equal(module(ids).logits, before)
    assert all(torch.equal(state[name], tensor) for name, tensor in module.state_dict().items())
    EditedModel(module, find_matrices(module, MATRICES)).add(delta)
    torch.testing.assert_close(module(ids).logits, beside, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(beside, before)


def test_a_matrix_stored_as_in_by_out_is_edited():
    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(COLUMNS, ROWS), requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight

    model = nn.Sequential(Conv1D())
    spec = find_matrices(model, ["0"])
    assert spec == ModelSpec((MatrixSpec("0", COLUMNS, ROWS, transposed=True),))
    x, delta = torch.randn(2, COLUMNS), WeightDelta({"0": a_low_rank()})
    with applied(model, delta):
        expected = model(x)
    EditedModel(model, spec).add(delta)
    torch.testing.assert_close(model(x), expected)
