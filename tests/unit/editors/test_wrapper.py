"""Wrappers of an editor that looks back at the unedited model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from errata.editors import Editor
from errata.editors.closed_form import nse
from errata.editors.closed_form.locate_then_edit import block_of
from errata.editors.closed_form.targets import find_targets
from errata.editors.wrappers.oedit import OEdit, OEditPlus
from errata.editors.wrappers.prune import PRUNE
from errata.editors.wrappers.rect import RECT
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from tests.unit.editors.wrapped import LARGE, an_inner
from tests.unit.small_models import (
    BATCHES,
    EXACT,
    MODULES,
    a_model,
    at_subject,
    played,
    relative,
    subjects_of,
)


@pytest.fixture(params=MODULES)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return a_model(request.param)


@pytest.mark.parametrize(
    "over",
    [
        lambda inner: inner,
        lambda inner: RECT(inner, kept=0.2),
        PRUNE,
        lambda inner: OEdit(inner, knowledge_rate=0.0),
        lambda inner: OEditPlus(inner, knowledge_rate=0.0),
    ],
    ids=["alone", "RECT", "PRUNE", "O-Edit", "O-Edit+"],
)
def test_nse_looks_back_at_the_unedited_model(
    model: LanguageModel, over: Callable[[Any], Editor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """NSE's targets start from the outputs of the original model, under every wrapper."""
    editor = over(an_inner("NSE", model, LARGE))
    site = block_of(find_matrices(model.module, editor.modules).names[-1])
    original = [at_subject(model, batch.prompts, subjects_of(batch), site, True) for batch in BATCHES[:2]]
    begun: list[Tensor] = []

    def watched(*args: Any) -> Any:
        found = find_targets(*args)
        begun.append(found.before_nD)
        return found

    monkeypatch.setattr(nse, "find_targets", watched)
    played(editor, model, BATCHES[:2])
    for before_nD, original_nD in zip(begun, original, strict=True):
        assert relative(before_nD, original_nD) < EXACT
