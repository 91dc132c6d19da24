"""The probe of places against plain loops, and the area under the curve by hand."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

import pytest
import torch
from torch import Tensor

from errata.editors.closed_form.places import auc, place_scores
from errata.editors.solve import base_preconditioner
from errata.model.language_model import LanguageModel
from errata.testbed.world import World

EDITS = World(20).edits("test", 6)
NAMES = ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.up_proj")


def inputs(model: LanguageModel, prompt: str, name: str) -> Tensor:
    """Return a module's input at each token of one prompt, [S, I]."""
    found: list[Tensor] = []
    handle = model.module.get_submodule(name).register_forward_pre_hook(lambda _m, args: found.append(args[0][0].double()))
    model.module(torch.tensor([model.renderer.ids(prompt)]))
    handle.remove()
    return found[0]


def place_of(model: LanguageModel, prompt: str, subject: str | None) -> int:
    if subject is None:
        return -1
    return len(model.tokenizer(prompt[: prompt.index(subject) + len(subject)])["input_ids"]) - 1


@pytest.mark.parametrize("with_metric", [False, True])
@pytest.mark.parametrize("position", ["prompt", "subject"])
def test_a_share_is_what_arrives_of_a_written_change(tiny_model: LanguageModel, position: str, with_metric: bool) -> None:
    bases = {}
    if with_metric:
        keys = {name: torch.cat([inputs(tiny_model, edit.prompt, name) for edit in EDITS]) for name in NAMES}
        bases = {name: base_preconditioner((k.T @ k / len(k)).float(), 10.0) for name, k in keys.items()}
    found = {place.matrix: place for place in place_scores(tiny_model, EDITS, NAMES, bases, 3) if place.position == position}
    for name in NAMES:
        near: list[float] = []
        far: list[float] = []
        for edit in EDITS:
            k_I = inputs(tiny_model, edit.prompt, name)[
                place_of(tiny_model, edit.prompt, edit.subject if position == "subject" else None)
            ]
            P_II = bases.get(name, torch.eye(len(k_I), dtype=torch.float64))
            for texts, shares in ((edit.rephrasings, near), ([probe.prompt for probe in edit.locality], far)):
                for text in texts:
                    arrives_S = inputs(tiny_model, text, name) @ P_II @ k_I / (k_I @ P_II @ k_I)
                    shares.append(float(arrives_S[-1] if position == "prompt" else arrives_S.max()))
        wins = [(one > other) + 0.5 * (one == other) for one in near for other in far]
        assert found[name].auc == pytest.approx(sum(wins) / len(wins), abs=1e-6)
        assert found[name].share_rephrasings == pytest.approx(median(near), rel=1e-3)


def test_a_prompt_that_is_its_own_rephrasing_gets_the_whole_change(tiny_model: LanguageModel) -> None:
    edits = [replace(edit, rephrasings=(edit.prompt,)) for edit in EDITS]
    for place in place_scores(tiny_model, edits, NAMES):
        assert place.share_rephrasings == pytest.approx(1.0, abs=1e-4) or place.position == "subject"
        assert place.auc_cosine == 1.0


def test_the_best_place_is_first_and_edits_without_a_subject_are_read_at_the_end(tiny_model: LanguageModel) -> None:
    scores = place_scores(tiny_model, EDITS, NAMES)
    assert len(scores) == 4 and [place.auc for place in scores] == sorted((place.auc for place in scores), reverse=True)
    without = place_scores(tiny_model, [replace(edit, subject=None) for edit in EDITS], NAMES)
    assert {place.position for place in without} == {"prompt"}
    with pytest.raises(ValueError, match="rephrasings against neighbours: give edits that have both"):
        place_scores(tiny_model, [replace(edit, locality=()) for edit in EDITS], NAMES)


def test_the_area_under_the_curve_counts_ties_half() -> None:
    assert auc([3.0, 4.0], [1.0, 2.0]) == 1.0
    assert auc([1.0], [1.0, 2.0]) == 0.25
    assert auc([0.0, 5.0], [1.0, 1.0, 7.0]) == pytest.approx(2 / 6)
