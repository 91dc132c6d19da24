"""Kinds of parts: each agrees with its dense matrix."""

from __future__ import annotations

import pytest
import torch

from tests.unit.delta.parts_under_test import COLUMNS, PARTS


@pytest.mark.parametrize("kind", PARTS)
def test_every_kind_agrees_with_its_dense_matrix(kind):
    part = PARTS[kind]
    assert part.kind == kind
    assert part.norm() == pytest.approx(float(part.dense().norm()), rel=1e-5)
    x = torch.randn(3, 4, COLUMNS)
    torch.testing.assert_close(part.side_branch(x), x @ part.dense().T)
