"""Checks that all editors share."""

from __future__ import annotations

import pytest
import torch

from errata.edit import Code, Edit, EditBatch, EditRejected
from errata.editors.editor import check_finite
from errata.model.capture import capture
from errata.model.encoding import encode
from errata.model.language_model import LanguageModel

MODULE = "model.layers.1.mlp.down_proj"
PROMPTS, TARGETS = ["question", "the old river"], ["answer", "bridge street xq"]


@pytest.mark.parametrize("value, refused", [(3e38, False), (torch.inf, True), (torch.nan, True)])
def test_numbers_that_are_not_finite_are_refused_with_their_edit(
    tiny_model: LanguageModel, value: float, refused: bool
) -> None:
    batch = EditBatch(tuple(Edit(prompt, target) for prompt, target in zip(PROMPTS, TARGETS, strict=True)))
    encoded = encode(tiny_model.renderer, PROMPTS, TARGETS)
    captured, nll_T = capture(tiny_model.module, encoded, [MODULE])
    captured[MODULE].grads_TO[-2:] = value  # Twice, so that the sum of the largest numbers is not finite either.
    if not refused:
        check_finite(batch, encoded, captured, nll_T)
        return
    with pytest.raises(EditRejected) as rejected:
        check_finite(batch, encoded, captured, nll_T)
    assert (rejected.value.code, rejected.value.edit) == (Code.NOT_FINITE, 1)
