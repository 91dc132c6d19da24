"""SPHERE against its published equation, in fp64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from errata.delta.accumulator import EditedModel
from errata.delta.parts import Dense, LowRank
from errata.editors import make_editor
from errata.editors.closed_form.alphaedit import AlphaEdit
from errata.editors.wrappers.sphere import SPHERE, principal_directions
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from tests.unit.editors.wrapped import INNER, an_inner
from tests.unit.small_models import BATCHES, EXACT, MODULES, a_model, relative, weight_of


@pytest.fixture(params=MODULES)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return a_model(request.param)


def projector(weight_OI: Tensor, energy: float, strength: float) -> Tensor:
    """Return I - α U Uᵀ from the eigenvectors of the mean of ŵ ŵᵀ."""
    rows_OI = weight_OI / weight_OI.norm(dim=1, keepdim=True)
    values_I, vectors_II = torch.linalg.eigh(rows_OI.T @ rows_OI / len(rows_OI))
    found, kept = 0.0, 0
    while found < energy * float(values_I.sum()) * (1 - 1e-9):
        kept += 1
        found += float(values_I[-kept])
    U_IR = vectors_II[:, len(values_I) - kept :]
    return torch.eye(len(values_I), dtype=torch.float64) - strength * U_IR @ U_IR.T


@pytest.mark.parametrize(("inner", "energy", "strength"), [(name, 0.3, 0.8) for name in INNER] + [("AlphaEdit", 0.5, 1.0)])
def test_a_change_is_weakened_along_the_principal_directions(
    model: LanguageModel, inner: str, energy: float, strength: float
) -> None:
    """The directions are those of the weights after the earlier batches."""
    plain = an_inner(inner, model)
    editor, spec = SPHERE(plain, energy=energy, strength=strength), find_matrices(model.module, plain.modules)
    edited, state = EditedModel(model.module, spec), editor.start(model, spec)
    for batch in BATCHES[:2]:
        free, _ = plain.edit(model, batch, state)
        delta, state = editor.edit(model, batch, state)
        for name, part in delta:
            wanted_OI = free.parts[name].dense().double() @ projector(weight_of(model, name), energy, strength)
            assert relative(part.dense(), wanted_OI) < EXACT
            assert isinstance(part, LowRank if isinstance(free.parts[name], LowRank) else Dense)
            assert not isinstance(part, LowRank) or part.rank == free.parts[name].rank  # type: ignore[union-attr]
        edited.add(delta)
    edited.set([])


def test_the_principal_directions_have_the_share_of_the_energy_that_is_asked_for() -> None:
    weight_OI = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5]))[:, [2, 0, 1, 3]]  # Unit rows: all directions weigh the same.
    assert principal_directions(weight_OI, 0.5).shape == (4, 2)
    assert principal_directions(weight_OI, 1.0).shape == (4, 4)
    alike_OI = torch.tensor([[1.0, 0.0, 0.0]] * 3 + [[0.0, 1.0, 0.0]])
    assert torch.allclose(principal_directions(alike_OI, 0.75).abs(), torch.tensor([[1.0], [0.0], [0.0]]).double())


def test_it_wraps_alphaedit_unless_another_is_named() -> None:
    sphere = make_editor("SPHERE", preset="llama3_8b")
    assert isinstance(sphere, SPHERE) and type(sphere.host) is AlphaEdit


@pytest.mark.parametrize("field", ["energy", "strength"])
def test_shares_are_checked(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} is a share, above 0 and at most 1, but is 1.5"):
        replace(SPHERE(AlphaEdit()), **{field: 1.5})
