"""Edits that a candidate makes again, its own and earlier ones, with an editor that writes and unwrites by a script."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pytest
import torch

from errata.candidate import MAX_REPEATS, CandidateVersion, make_candidate
from errata.delta.parts import LowRank
from errata.delta.side_branch import applied
from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, Edit, EditBatch, EditRejected
from errata.editors.editor import Editor
from errata.editors.state import EditorState
from errata.guard.earlier_edits import EarlierEdits, Said
from errata.guard.held_edits import HeldEdit
from errata.guard.inspector import FEW, Inspector
from errata.guard.limits import Guard, Limit, VersionRefused
from errata.guard.probes import Probes
from errata.model.generation import greedy
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices

MATRIX = "model.layers.1.mlp.down_proj"
ANYTHING = Limit(1e9, 1e9)
OTHER = "stage"  # What an unwritten prompt is answered by.

A, B, C = (Edit(*text) for text in (("question", "painter"), ("yes", "clarinet"), ("the cat", "city")))
BATCH = EditBatch((A, B, C))
EARLIER = ("a bridge", "street", "the old river")


class Scripted(Editor):
    """Writes in its n-th call those edits of the batch that `writes[n]` has, and gives the prompts `unwrites[n]` another word.

    Only the first token of an answer changes, and each prompt by itself: the keys are dual to those of all prompts. Every call
    writes more strongly than the one before it. After the script's end nothing changes.
    """

    def __init__(
        self, model: LanguageModel, writes: Sequence[Collection[Edit]], unwrites: Sequence[Collection[str]] = ()
    ) -> None:
        self.writes, self.unwrites = writes, unwrites
        self.batches: list[tuple[Edit, ...]] = []  # What each call was given,
        self.seen: list[list[str]] = []  # and what the model said then.
        prompts = (*(edit.prompt for edit in BATCH), *EARLIER)
        duals_IP = torch.linalg.pinv(torch.stack([key_of(model, prompt) for prompt in prompts]))
        self.duals = dict(zip(prompts, duals_IP.T, strict=True))

    def start(self, model, spec):
        return EditorState()

    @torch.no_grad()
    def edit(self, model, batch, state, cache=None):
        number = len(self.batches)
        self.batches.append(batch.edits)
        self.seen.append(first_words(model, [edit.prompt for edit in batch]))
        written = [(edit.prompt, edit.target) for edit in batch if edit in _at(self.writes, number)]
        written += [(prompt, OTHER) for prompt in _at(self.unwrites, number)]
        keys = [self.duals[prompt] for prompt, _ in written] or [torch.zeros(96)]
        head = model.module.get_output_embeddings().weight
        values = [1e3 * 10**number * head[token_of(model, word)] for _, word in written] or [torch.zeros(64)]
        delta = WeightDelta({MATRIX: LowRank(torch.stack(values, 1), torch.stack(keys, 1))})
        return delta, EditorState(state.num_edits + len(batch))


def _at(script: Sequence[Collection], number: int) -> Collection:
    return script[number] if number < len(script) else ()


def key_of(model: LanguageModel, prompt: str) -> torch.Tensor:
    """Return the input of the matrix at the last token of a prompt."""
    kept: list[torch.Tensor] = []
    handle = model.module.get_submodule(MATRIX).register_forward_pre_hook(lambda _m, args: kept.append(args[0]))
    model.module(input_ids=torch.tensor([model.renderer.ids(prompt)]))
    handle.remove()
    return kept[0][0, -1]


def token_of(model: LanguageModel, word: str) -> int:
    (token,) = model.tokenizer(f" {word}")["input_ids"]
    return token


def first_words(model: LanguageModel, prompts: Sequence[str]) -> list[str]:
    return [model.tokenizer.decode(ids).strip() for ids in greedy(model, list(prompts), 1)]


@pytest.fixture
def model(tiny_model: LanguageModel) -> LanguageModel:
    """Load a model whose answers end nowhere, so that the first word is an answer: the random model writes no end."""
    tiny_model.tokenizer.eos_token = None
    return tiny_model


@pytest.fixture
def earlier(model: LanguageModel) -> tuple[Edit, ...]:
    """Make edits that the model answers."""
    return tuple(Edit(prompt, word) for prompt, word in zip(EARLIER, first_words(model, EARLIER), strict=True))


def inspector_of(model: LanguageModel, earlier: Sequence[Edit] = (), **guard: object) -> Inspector:
    settings = {"change": ANYTHING, "growth": ANYTHING} | guard
    inspector = Inspector(model, find_matrices(model.module, [MATRIX]), Guard(**settings), Probes((), ()))  # type: ignore[arg-type]
    inspector.at_version(earlier)
    return inspector


def make(editor: Scripted, batch: EditBatch, inspector: Inspector) -> CandidateVersion:
    return make_candidate(editor, batch, EditorState(), inspector, 0)


def said(model: LanguageModel, made: CandidateVersion, edits: Sequence[Edit]) -> list[bool]:
    """Say which edits the model with the candidate's delta answers."""
    with applied(model.module, made.delta):
        return [word == edit.target for word, edit in zip(first_words(model, [e.prompt for e in edits]), edits, strict=True)]


def json_of(*rounds: Sequence[Edit]) -> list[list[dict]]:
    return [[edit.to_json() for edit in one] for one in rounds]


def test_of_a_batch_only_what_is_not_answered_is_made_again_on_top(model: LanguageModel) -> None:
    editor = Scripted(model, writes=[{A}, {B}, {C}])
    made = make(editor, BATCH, inspector_of(model))
    assert editor.batches == [(A, B, C), (B, C), (C,)]
    assert made.scorecard["again"] == json_of((B, C), (C,)) and made.scorecard["repeats"] == 2
    assert made.scorecard["efficacy"] == 1.0 and made.scorecard["failed"] == []
    assert made.edits == BATCH.edits and made.state.num_edits == 6, "each call continues from the state of the one before"
    assert all(said(model, made, BATCH.edits))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.module.modules())


def test_an_edit_is_made_again_on_the_model_that_the_calls_before_have_changed(model: LanguageModel) -> None:
    editor = Scripted(model, writes=[{A}, {B, C}], unwrites=[{B.prompt}])
    make(editor, BATCH, inspector_of(model))
    assert editor.seen == [first_words(model, [e.prompt for e in BATCH]), [OTHER, *first_words(model, [C.prompt])]]


def test_an_edit_that_is_made_again_may_cost_another_one_of_its_batch(model: LanguageModel) -> None:
    editor = Scripted(model, writes=[{A, B}, {C}, {A}], unwrites=[(), {A.prompt}])
    made = make(editor, BATCH, inspector_of(model))
    assert made.scorecard["again"] == json_of((C,), (A,)) and all(said(model, made, BATCH.edits))


def test_earlier_edits_that_an_update_loses_are_made_again_in_it(model: LanguageModel, earlier: tuple[Edit, ...]) -> None:
    first, _, third = earlier
    editor = Scripted(model, writes=[{A, B, C}, {first, third}], unwrites=[{first.prompt, third.prompt}])
    made = make(editor, BATCH, inspector_of(model, earlier))
    assert editor.batches[0] == BATCH.edits and set(editor.batches[1]) == {first, third} and len(editor.batches) == 2
    assert made.scorecard["again"] == json_of(editor.batches[1])
    assert (made.scorecard["retention"], made.scorecard["lost_retention"]) == (1.0, 0.0)
    assert made.edits == BATCH.edits and made.scorecard["num_edits"] == 3, "the version's own edits are those posted"
    assert made.observed is not None and made.observed.lost == ()
    assert all(said(model, made, [*BATCH, *earlier]))


def test_earlier_edits_are_made_again_once_the_own_ones_are_answered(
    model: LanguageModel, earlier: tuple[Edit, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not even asked until then."""
    asked, ask = list[int](), EarlierEdits.ask

    def noted(self: EarlierEdits, chosen: Sequence[HeldEdit], delta: WeightDelta) -> dict[HeldEdit, Said] | None:
        asked.append(len(delta.parts))
        return ask(self, chosen, delta)

    monkeypatch.setattr(EarlierEdits, "ask", noted)
    editor = Scripted(model, writes=[{A, B}, {C}, {earlier[1]}], unwrites=[{earlier[1].prompt}])
    made = make(editor, BATCH, inspector_of(model, earlier))
    assert made.scorecard["again"] == json_of((C,), (earlier[1],))
    assert [count for count in asked if count] == [1, 1], "after the second and the third call"


def test_own_edits_leave_rounds_to_the_earlier_ones(
    model: LanguageModel, earlier: tuple[Edit, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("errata.candidate.MAX_REPEATS", 2)
    editor = Scripted(model, writes=[{A, B}, {A, B}, {C}, {earlier[1]}], unwrites=[{earlier[1].prompt}])
    made = make(editor, BATCH, inspector_of(model, earlier))
    assert made.scorecard["again"] == json_of((C,), (C,), (earlier[1],)) and "lost" not in made.scorecard


def test_an_update_that_ruins_the_model_is_refused_by_the_guard_at_once(model: LanguageModel) -> None:
    """Also if it answers none of the batch: no stronger one is tried, and the batch can be halved."""
    probes = Probes(sentences=("the city of the cat is the city of the old river",) * 4)
    # A random model's perplexity is nearly that of chance, and cannot rise by much.
    settings: dict[str, Any] = {"change": ANYTHING, "growth": ANYTHING, "perplexity": Limit(1.001, 1.002)}
    inspector = Inspector(model, find_matrices(model.module, [MATRIX]), Guard(**settings), probes)

    class Ruin(Scripted):
        def edit(self, model, batch, state, cache=None):
            super().edit(model, batch, state, cache)
            weight_OI = model.module.get_submodule(MATRIX).weight
            noise_OI = torch.randn(weight_OI.shape, generator=torch.Generator().manual_seed(0))
            return WeightDelta({MATRIX: LowRank(100 * noise_OI, torch.eye(weight_OI.shape[1]))}), state

    editor = Ruin(model, writes=[()])
    with pytest.raises(VersionRefused, match="perplexity"):
        make(editor, BATCH, inspector)
    assert len(editor.batches) == 1


def test_an_earlier_edit_that_the_batch_replaces_is_not_made_again(model: LanguageModel, earlier: tuple[Edit, ...]) -> None:
    later = Edit(earlier[0].prompt, "home")
    editor = Scripted(model, writes=[{later}])
    made = make(editor, EditBatch((later,)), inspector_of(model, earlier))
    assert len(editor.batches) == 1 and "again" not in made.scorecard and made.scorecard["retention"] == 1.0


def test_the_best_attempt_is_published_if_later_ones_lose_more(model: LanguageModel, earlier: tuple[Edit, ...]) -> None:
    first, second, third = (edit.prompt for edit in earlier)
    editor = Scripted(model, writes=[{A, B, C}], unwrites=[{first}, {second, third}])
    made = make(editor, BATCH, inspector_of(model, earlier))
    assert len(editor.batches) == MAX_REPEATS + 1, "it might have become better"
    assert "again" not in made.scorecard and "repeats" not in made.scorecard
    assert made.scorecard["lost_retention"] == pytest.approx(1 / FEW) and made.state.num_edits == 3
    assert said(model, made, [*BATCH, *earlier]) == [True, True, True, False, True, True]


def test_of_equal_attempts_the_first_is_published(model: LanguageModel, earlier: tuple[Edit, ...]) -> None:
    """Two edits are lost, one of them comes back, and more calls change nothing."""
    editor = Scripted(model, writes=[{A, B, C}, {earlier[0]}], unwrites=[{earlier[0].prompt, earlier[1].prompt}])
    made = make(editor, BATCH, inspector_of(model, earlier))
    assert len(editor.batches) == MAX_REPEATS + 1 and made.scorecard["repeats"] == 1
    assert {edit["prompt"] for edit in made.scorecard["again"][0]} == {earlier[0].prompt, earlier[1].prompt}


def test_own_edits_count_more_than_earlier_ones(model: LanguageModel, earlier: tuple[Edit, ...]) -> None:
    """The second call answers the last own edit and loses no more than the first did."""
    editor = Scripted(model, writes=[{A, B}, {C}], unwrites=[{earlier[1].prompt}])
    made = make(editor, BATCH, inspector_of(model, earlier))
    assert made.scorecard["again"] == json_of((C,)) and made.scorecard["efficacy"] == 1.0
    assert said(model, made, [*BATCH, *earlier]) == [True, True, True, True, False, True]


def test_strength_that_costs_earlier_edits_is_refused(model: LanguageModel, earlier: tuple[Edit, ...]) -> None:
    editor = Scripted(model, writes=[{A, B}, {C}], unwrites=[(), {earlier[0].prompt}])
    with pytest.raises(EditRejected, match="stronger, earlier edits would no longer be answered") as refused:
        make(editor, BATCH, inspector_of(model, earlier))
    ((fault),) = refused.value.faults
    assert (fault.edit, fault.field, fault.code) == (2, "target", Code.INEFFECTIVE) and "instead of the target" in fault.reason


def test_the_refusal_names_what_the_best_attempt_leaves(model: LanguageModel) -> None:
    editor = Scripted(model, writes=[{A}, {B}], unwrites=[(), (), {B.prompt}])
    with pytest.raises(EditRejected) as refused:
        make(editor, BATCH, inspector_of(model))
    assert [fault.edit for fault in refused.value.faults] == [2]
    assert f"although the edit was made {MAX_REPEATS + 1} times" in refused.value.reason


def limit_of_one_call(model: LanguageModel, earlier: Sequence[Edit]) -> Limit:
    """Return the limit on the change that the first call of an editor keeps, and a second one does not."""
    editor = Scripted(model, writes=[{A, B, C}], unwrites=[{earlier[0].prompt}])
    delta, _ = editor.edit(model, BATCH, EditorState())
    (norm,) = inspector_of(model).measure(BATCH, delta)[0].relative_norm.values()
    return Limit(1.5 * norm, 1.5 * norm)


def test_an_earlier_attempt_stays_if_the_guard_refuses_the_stronger_one(
    model: LanguageModel, earlier: tuple[Edit, ...]
) -> None:
    editor = Scripted(model, writes=[{A, B, C}, {earlier[0]}], unwrites=[{earlier[0].prompt}])
    made = make(editor, BATCH, inspector_of(model, earlier, change=limit_of_one_call(model, earlier)))
    assert editor.batches == [BATCH.edits, (earlier[0],)] and "again" not in made.scorecard
    assert made.scorecard["lost_retention"] == pytest.approx(1 / FEW) and made.state.num_edits == 3
    assert all(said(model, made, BATCH.edits))


def test_an_earlier_attempt_that_answers_not_all_is_refused_with_the_limit(
    model: LanguageModel, earlier: tuple[Edit, ...]
) -> None:
    editor = Scripted(model, writes=[{A, B}, {C}], unwrites=[{earlier[0].prompt}])
    with pytest.raises(EditRejected, match=r"instead of the target; one more time, .* would change by") as refused:
        make(editor, BATCH, inspector_of(model, earlier, change=limit_of_one_call(model, earlier)))
    assert [fault.edit for fault in refused.value.faults] == [2]


def test_a_guard_that_is_not_strict_makes_nothing_again(model: LanguageModel, earlier: tuple[Edit, ...]) -> None:
    editor = Scripted(model, writes=[{A}, {B, C, earlier[0]}], unwrites=[{earlier[0].prompt}])
    made = make(editor, BATCH, inspector_of(model, earlier, strict=False))
    assert editor.batches == [BATCH.edits] and not made.scorecard.keys() & {"again", "repeats"}
    assert made.scorecard["efficacy"] == pytest.approx(1 / 3) and made.scorecard["lost_retention"] == pytest.approx(1 / FEW)


def test_an_earlier_attempt_stays_if_the_editor_refuses_to_make_more(model: LanguageModel, earlier: tuple[Edit, ...]) -> None:
    class Once(Scripted):
        def edit(self, model, batch, state, cache=None):
            if self.batches:
                raise EditRejected("cannot be made twice", code=Code.OUT_OF_CAPACITY, edit=0)
            return super().edit(model, batch, state, cache)

    editor = Once(model, writes=[{A, B, C}], unwrites=[{earlier[0].prompt}])
    made = make(editor, BATCH, inspector_of(model, earlier))
    assert "again" not in made.scorecard and made.scorecard["lost_retention"] == pytest.approx(1 / FEW)
