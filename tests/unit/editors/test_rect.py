"""RECT against its published equation, in fp64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from errata.delta.accumulator import EditedModel
from errata.delta.parts import Dense, Sparse
from errata.editors.closed_form.memit import MEMIT
from errata.editors.wrappers.rect import RECT
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from tests.unit.editors.wrapped import INNER, an_inner
from tests.unit.small_models import (
    BATCHES,
    EXACT,
    MODULES,
    a_model,
    keys,
    played,
    relative,
    weight_of,
    write,
)


@pytest.fixture(params=MODULES)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return a_model(request.param)


def the_largest(change_OI: Tensor, weight_OI: Tensor, kept: float) -> Tensor:
    """Mask the entries whose ρ = |ΔW| / (|W| + 1e-8) is among the largest share `kept`."""
    ratios = (change_OI.double().abs() / (weight_OI.double().abs() + 1e-8)).flatten().tolist()
    order = sorted(range(len(ratios)), key=lambda i: -ratios[i])
    mask = torch.zeros(len(ratios), dtype=torch.bool)
    mask[order[: round(kept * len(ratios))]] = True
    return mask.view(change_OI.shape)


@pytest.mark.parametrize(("inner", "kept"), zip(INNER, [0.2, 0.4] * 3, strict=True))
def test_rect_keeps_the_entries_that_are_largest_relative_to_the_weights(model: LanguageModel, inner: str, kept: float) -> None:
    """Entries are those of the wrapped editor, or zero; the weights are those after the earlier batches."""
    plain = an_inner(inner, model)
    editor, spec = RECT(plain, kept=kept), find_matrices(model.module, plain.modules)
    edited, state = EditedModel(model.module, spec), editor.start(model, spec)
    for batch in BATCHES[:2]:
        free, _ = plain.edit(model, batch, state)
        delta, state = editor.edit(model, batch, state)
        assert set(delta.parts) == set(free.parts) == set(spec.names)
        for name, part in delta:
            change_OI = free.parts[name].dense()
            mask_OI = the_largest(change_OI, weight_of(model, name), kept)
            assert int(mask_OI.sum()) == round(kept * mask_OI.numel())
            assert torch.equal(part.dense(), (change_OI * mask_OI).float()), name
            assert int((part.dense() != 0).sum()) == int((change_OI[mask_OI] != 0).sum()) > 0
        edited.add(delta)


def test_rect_returns_the_smaller_kind_of_part(model: LanguageModel) -> None:
    """A part is sparse if its indices and values take fewer bytes than the matrix."""
    (few,), _, _ = played(RECT(an_inner("MEMIT", model), kept=0.2), model, BATCHES[:1])
    (many,), _, _ = played(RECT(an_inner("MEMIT", model), kept=0.5), model, BATCHES[:1])
    (every,), _, _ = played(RECT(an_inner("MEMIT", model), kept=1.0), model, BATCHES[:1])
    (free,), _, _ = played(an_inner("MEMIT", model), model, BATCHES[:1])
    assert all(torch.equal(part.dense(), free.parts[name].dense()) for name, part in every)
    assert {type(part) for _, part in few} == {Sparse} and {type(part) for _, part in many} == {Dense}
    assert few.num_bytes < few.dense_bytes == many.num_bytes


@pytest.mark.parametrize("kept", [0.0, -0.1, 1.01, math.nan])
def test_rect_refuses_a_number_that_is_no_share(kept: float) -> None:
    with pytest.raises(ValueError, match="kept is a share"):
        RECT(MEMIT(), kept=kept)


def test_rect_remembers_keys_of_the_edited_model(model: LanguageModel) -> None:
    """Past keys are measured on the edited model, which has only the kept entries."""
    editor = RECT(an_inner("AlphaEdit", model), kept=0.2)
    (delta,), (_, state), contexts = played(editor, model, BATCHES[:1])
    for name, part in delta:
        write(model, name, part.dense())
    for name, _ in delta:
        assert relative(state.tensors[name], keys(model, BATCHES[0], contexts, name)) < EXACT, name
