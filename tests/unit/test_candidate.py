"""Candidates: an edit that its target does not answer is made again and again, and then refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from errata.candidate import MAX_REPEATS, make_candidate
from errata.delta.parts import LowRank
from errata.delta.side_branch import applied
from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, Edit, EditBatch, EditRejected
from errata.editors.editor import Editor
from errata.editors.state import EditorState
from errata.guard.inspector import Inspector
from errata.guard.limits import Guard, Limit
from errata.guard.probes import Probes
from errata.model.encoding import encode
from errata.model.generation import greedy, greedy_texts
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices

MATRIX = "model.layers.1.mlp.down_proj"
ANYTHING = Limit(1e6, 1e6)
PROMPTS = ("question", "the old river", "yes")


class Nothing(Editor):
    """Changes nothing, and counts its calls in the state."""

    num_calls = 0

    def start(self, model, spec):
        return EditorState()

    def edit(self, model, batch, state, cache=None):
        self.num_calls += 1
        delta = WeightDelta({MATRIX: LowRank(torch.zeros(64, 1), torch.zeros(96, 1))})
        return delta, EditorState(state.num_edits + len(batch))


class Gradual(Nothing):
    """Pushes the last token of the prompt towards the first of the target by a part of what is needed, in each call."""

    def __init__(self, step: float) -> None:
        self.step = step

    @torch.no_grad()
    def edit(self, model, batch, state, cache=None):
        _, after = super().edit(model, batch, state)
        encoded = encode(model.renderer, batch.prompts, batch.targets)
        kept = []
        handle = model.module.get_submodule(MATRIX).register_forward_pre_hook(lambda _m, args: kept.append(args[0]))
        model.module(input_ids=encoded.input_ids_BS, attention_mask=encoded.attention_mask_BS)
        handle.remove()
        keys, values = [], []
        for row, predicts_S in enumerate(encoded.predicts_BS):
            at = int(predicts_S.nonzero()[0])
            key = kept[0][row, at]
            keys.append(key / key.square().sum())
            values.append(self.step * model.module.get_output_embeddings().weight[encoded.targets_T[row]])
        return WeightDelta({MATRIX: LowRank(torch.stack(values, 1), torch.stack(keys, 1))}), after


def inspector_of(model: LanguageModel, **guard: object) -> Inspector:
    settings = {"change": ANYTHING, "growth": ANYTHING} | guard
    return Inspector(model, find_matrices(model.module, [MATRIX]), Guard(**settings), Probes((), ()))  # type: ignore[arg-type]


def said(model: LanguageModel, *prompts: str) -> list[str]:
    return [text.strip() for text in greedy_texts(model, list(prompts), 16, fit_context=True)]


def one_word(model: LanguageModel) -> None:
    """Let an answer end nowhere, so that the first word is an answer: the random model writes no end."""
    model.tokenizer.eos_token = None


def test_a_batch_is_refused_for_each_unanswered_edit(tiny_model: LanguageModel) -> None:
    one_word(tiny_model)
    targets = ["Xq", tiny_model.tokenizer.decode(greedy(tiny_model, [PROMPTS[1]], 1)[0]).strip(), "Zz"]
    batch = EditBatch(tuple(Edit(prompt, target) for prompt, target in zip(PROMPTS, targets, strict=True)))
    editor = Nothing()
    with pytest.raises(EditRejected) as refused:
        make_candidate(editor, batch, EditorState(), inspector_of(tiny_model), 0)
    assert editor.num_calls == 5, "what is not answered is made again four times"
    found = [(fault.edit, fault.field, fault.code) for fault in refused.value.faults]
    assert found == [(0, "target", Code.INEFFECTIVE), (2, "target", Code.INEFFECTIVE)]
    for fault in refused.value.faults:
        assert fault.says == inspector_answer(tiny_model, batch, fault.edit)
        assert f"answers {fault.says!r}" in fault.reason
        assert "instead of the target although the edit was made 5 times" in fault.reason


class OnlyOnce(Nothing):
    """Refuses the first edit of every later call."""

    def edit(self, *arguments: Any, **named: Any) -> tuple[WeightDelta, EditorState]:
        if self.num_calls:
            raise EditRejected("cannot be made twice", code=Code.OUT_OF_CAPACITY, edit=0)
        return super().edit(*arguments, **named)


def test_a_refusal_in_a_later_round_names_the_edit_that_is_not_answered(tiny_model: LanguageModel) -> None:
    """The editor's positions are those of the round: its first edit is the second of the batch."""
    one_word(tiny_model)
    right = tiny_model.tokenizer.decode(greedy(tiny_model, [PROMPTS[0]], 1)[0]).strip()
    batch = EditBatch((Edit(PROMPTS[0], right), Edit(PROMPTS[1], "Xq")))
    with pytest.raises(EditRejected, match="one more time, cannot be made twice") as refused:
        make_candidate(OnlyOnce(), batch, EditorState(), inspector_of(tiny_model), 0)
    assert [(fault.edit, fault.code) for fault in refused.value.faults] == [(1, Code.INEFFECTIVE)]


def inspector_answer(model: LanguageModel, batch: EditBatch, edit: int) -> str:
    (answer,) = inspector_of(model).answers(EditBatch((batch.edits[edit],)))[0]
    return answer


def test_a_single_edit_is_made_again_until_it_is_answered(tiny_model: LanguageModel) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_model.module.state_dict().items()}
    batch, step = EditBatch((one_token_edit(tiny_model),)), smallest_step(tiny_model)
    editor = Gradual(step / 2.5)
    made = make_candidate(editor, batch, EditorState(), inspector_of(tiny_model), 3, said(tiny_model, PROMPTS[0]))
    assert made.scorecard["repeats"] == 2 and editor.num_calls == 3 and made.state.num_edits == 3
    assert made.scorecard["efficacy"] == 1.0 and made.scorecard["failed"] == [] and made.scorecard["warnings"] == []
    assert made.scorecard["answers"] == [[said(tiny_model, PROMPTS[0])[0], batch.edits[0].target]]
    assert (made.parent, made.expected_head, made.edits) == (3, 3, batch.edits)
    for name, tensor in tiny_model.module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny_model.module.modules())
    with applied(tiny_model.module, made.delta):
        assert inspector_answer(tiny_model, batch, 0).split()[0] == batch.edits[0].target


def test_an_edit_that_is_answered_immediately_is_not_repeated(tiny_model: LanguageModel) -> None:
    batch, step = EditBatch((one_token_edit(tiny_model),)), smallest_step(tiny_model)
    editor = Gradual(1.5 * step)
    made = make_candidate(editor, batch, EditorState(), inspector_of(tiny_model), 0)
    assert editor.num_calls == 1 and "repeats" not in made.scorecard and "answers" not in made.scorecard


def test_a_single_edit_without_effect_is_refused_after_the_last_repeat(tiny_model: LanguageModel) -> None:
    editor, batch = Nothing(), EditBatch((Edit(PROMPTS[0], "Xq"),))
    with pytest.raises(EditRejected, match=f"although the edit was made {MAX_REPEATS + 1} times") as refused:
        make_candidate(editor, batch, EditorState(), inspector_of(tiny_model), 0)
    assert editor.num_calls == MAX_REPEATS + 1
    ((fault),) = refused.value.faults
    assert (fault.edit, fault.field, fault.code) == (0, "target", Code.INEFFECTIVE)


def test_repeats_stop_where_the_guard_refuses_the_stronger_edit(tiny_model: LanguageModel) -> None:
    batch, step = EditBatch((one_token_edit(tiny_model),)), smallest_step(tiny_model)
    inspector = inspector_of(tiny_model)
    delta, _ = Gradual(step / 2.5).edit(tiny_model, batch, EditorState())
    (norm,) = inspector.measure(batch, delta)[0].relative_norm.values()
    inspector = inspector_of(tiny_model, change=Limit(1.5 * norm, 1.5 * norm))
    with pytest.raises(EditRejected, match=r"instead of the target; one more time, .* would change by") as refused:
        make_candidate(Gradual(step / 2.5), batch, EditorState(), inspector, 0)
    assert refused.value.code is Code.INEFFECTIVE


def test_a_guard_that_is_not_strict_publishes_with_a_warning(tiny_model: LanguageModel) -> None:
    batch = EditBatch((Edit(PROMPTS[0], "Xq"), Edit(PROMPTS[1], "Zz")))
    editor, before = Nothing(), said(tiny_model, *PROMPTS[:2])
    made = make_candidate(editor, batch, EditorState(), inspector_of(tiny_model, strict=False), 0, before)
    assert editor.num_calls == 1 and "repeats" not in made.scorecard
    assert made.scorecard["warnings"] == ["1.00 of the edits would not be answered with their targets, more than 0"]
    assert [row["target"] for row in made.scorecard["failed"]] == ["Xq", "Zz"] and made.scorecard["efficacy"] == 0.0
    assert made.scorecard["answers"] == [[b, row["answer"]] for b, row in zip(before, made.scorecard["failed"], strict=True)]


def one_token_edit(model: LanguageModel) -> Edit:
    """Make an edit to a word that the model does not say, one token long; the answer may go on after it."""
    one_word(model)
    word = next(w for w in ("bridge", "river", "dog", "cat", "street") if len(model.tokenizer(f" {w}")["input_ids"]) == 1)
    return Edit(PROMPTS[0], word)


def smallest_step(model: LanguageModel) -> float:
    """Find the smallest step of `Gradual` whose edit is answered."""
    batch, inspector = EditBatch((one_token_edit(model),)), inspector_of(model)
    low, high = 0.0, 1024.0
    for _ in range(20):
        middle = (low + high) / 2
        delta, _ = Gradual(middle).edit(model, batch, EditorState())
        low, high = (low, middle) if inspector.measure(batch, delta)[0].efficacy == 1.0 else (middle, high)
    assert high < 1024
    return high
