"""Earlier edits are asked of every candidate, and of the version itself where it is not known what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from errata.candidate import CandidateVersion, make_candidate, make_repair
from errata.delta.accumulator import EditedModel
from errata.delta.weight_delta import WeightDelta
from errata.edit import Edit, EditBatch, EditRejected
from errata.editors.repeated import edit_repeatedly
from errata.editors.state import EditorState
from errata.guard.earlier_edits import Said
from errata.guard.inspector import Inspector
from errata.guard.probe_answers import deciding_tokens, is_decided
from errata.model.generation import greedy_fitting
from errata.model.language_model import LanguageModel
from tests.unit.test_made_again import OTHER, A, B, Scripted, earlier, inspector_of, json_of, model, said  # noqa: F401

Fixtures = tuple[Edit, ...]


def commit(inspector: Inspector, made: CandidateVersion) -> None:
    """Put a candidate into the weights, as the live model does."""
    EditedModel(inspector.model.module, inspector.spec).add(made.delta)
    inspector.committed(EditBatch(made.edits), made.observed)


def generations(inspector: Inspector, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the edits of each call that generates."""
    found: list[int] = []
    generate = inspector.said

    def counted(batch: EditBatch, delta: WeightDelta) -> list[Said]:
        found.append(len(batch))
        return generate(batch, delta)

    monkeypatch.setattr(inspector, "said", counted)
    return found


def test_what_stays_as_it_was_is_not_generated_again(
    model: LanguageModel,  # noqa: F811
    earlier: Fixtures,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An edit that is right in other words is generated once; then these words are recognised."""
    inspector = inspector_of(model)
    ((text,),) = inspector.answers(EditBatch((earlier[0],)))
    spoken = replace(earlier[0], target=OTHER, aliases=(text,))
    inspector.at_version((spoken, *earlier[1:]))
    calls = generations(inspector, monkeypatch)
    assert inspector.measure(EditBatch((A,)), WeightDelta({}))[0].retention == 1.0
    assert calls == [1, 1], "the batch, and of the earlier edits the one in other words"
    assert inspector.measure(EditBatch((A,)), WeightDelta({}))[0].retention == 1.0
    assert calls == [1, 1, 1]
    editor = Scripted(model, writes=[{A}], unwrites=[{earlier[1].prompt}])
    delta, _ = editor.edit(model, EditBatch((A,)), EditorState())
    assert earlier[1] in inspector.measure(EditBatch((A,)), delta)[1].lost
    assert calls[:3] == [1, 1, 1] and 1 <= calls[-1] <= 2, "only those whose tokens changed"


def test_a_part_of_many_is_asked_in_turn(model: LanguageModel, earlier: Fixtures) -> None:  # noqa: F811
    """The third edit is asked of the second version if two are asked of each."""
    inspector = inspector_of(model, earlier, num_retained=2)
    editor = Scripted(model, writes=[{A}, {B}])
    asked = []
    for edit in (A, B):
        made = make_candidate(editor, EditBatch((edit,)), EditorState(), inspector, 0)
        assert made.observed is not None
        asked.append([one for one in made.observed.said if one in earlier])
        commit(inspector, made)
    assert len(asked[0]) == 2 and set(asked[0]) | set(asked[1]) == set(earlier)


def test_a_version_of_unknown_answers_is_asked_a_few_edits_at_a_time(
    model: LanguageModel,  # noqa: F811
    earlier: Fixtures,  # noqa: F811
) -> None:
    inspector = inspector_of(model, (*earlier, Edit("never", "answered")))
    held = inspector.earlier.held
    assert [len(held.open), inspector.look(3), len(held.open), inspector.look(3), len(held.open)] == [4, True, 1, True, 0]
    assert not inspector.look(3) and [one.edit.prompt for one in held.lost] == ["never"]
    assert held.lost[0].says is not None and held.lost[0].says != "answered"


def test_an_edit_that_no_candidate_was_asked_is_found_and_made_again(
    model: LanguageModel,  # noqa: F811
    earlier: Fixtures,  # noqa: F811
) -> None:
    """One earlier edit is asked of a candidate that loses another one; the look finds that, and the repair has no own edits."""
    inspector = inspector_of(model, earlier, num_retained=1)
    while inspector.look(8):
        pass
    asked = inspector.earlier.next(EditBatch((A,)))[0].edit
    victim, *_ = (edit for edit in earlier if edit != asked)
    victim = replace(victim, id="victim")
    inspector.at_version([victim, *(edit for edit in earlier if edit.prompt != victim.prompt)])
    editor = Scripted(model, writes=[{A}, {victim}], unwrites=[{victim.prompt}])
    commit(inspector, make_candidate(editor, EditBatch((A,)), EditorState(), inspector, 0))
    while inspector.look(8):
        pass
    assert [one.edit for one in inspector.earlier.held.lost] == [victim]
    made = make_repair(editor, EditBatch((victim,)), EditorState(), inspector, 1)
    assert made.edits == () and made.scorecard["repaired"] == ["victim"] and made.scorecard["num_edits"] == 0
    assert made.scorecard["again"] == json_of((victim,)) and said(model, made, [A, *earlier]) == [True] * 4
    commit(inspector, made)
    assert inspector.earlier.held.lost == [] and len(inspector.earlier.held) == 4


def test_a_repair_that_loses_as_many_as_it_answers_is_refused(
    model: LanguageModel,  # noqa: F811
    earlier: Fixtures,  # noqa: F811
) -> None:
    first, second, third = earlier
    lost = replace(first, target="street" if first.target != "street" else "city")
    inspector = inspector_of(model, (lost, second, third))
    while inspector.look(8):
        pass
    editor = Scripted(model, writes=[{lost}], unwrites=[{second.prompt}])
    with pytest.raises(EditRejected, match="1 other edits would no longer be answered"):
        make_repair(editor, EditBatch((lost,)), EditorState(), inspector, 0)


def test_a_version_tells_which_edits_it_loses(model: LanguageModel, earlier: Fixtures) -> None:  # noqa: F811
    named = [replace(edit, id=edit.prompt) for edit in earlier]
    editor = Scripted(model, writes=[{A}], unwrites=[{named[0].prompt}])
    made = make_candidate(editor, EditBatch((A,)), EditorState(), inspector_of(model, named), 0)
    assert made.scorecard["lost"] == [named[0].id]


def test_new_edits_give_a_lost_edit_new_tries(model: LanguageModel, earlier: Fixtures) -> None:  # noqa: F811
    inspector = inspector_of(model, earlier)
    while inspector.look(8):
        pass
    held = inspector.earlier.held
    held.tried(earlier[:2])
    wrong = {earlier[0]: Said(None, "wrong")}
    inspector.earlier.committed(EditBatch(()), wrong, is_exact=True)
    assert held.by_edit[earlier[0]].num_repairs == 1, "a repair has lost it"
    held.by_edit[earlier[0]].is_answered = True
    inspector.earlier.committed(EditBatch((A,)), wrong, is_exact=True)
    assert held.by_edit[earlier[0]].num_repairs == 0 and held.by_edit[earlier[1]].num_repairs == 1


def test_an_answer_is_kept_up_to_what_decides_it(model: LanguageModel) -> None:  # noqa: F811
    ids = model.tokenizer("question answer . the river")["input_ids"]
    question = Edit("question", "answer").question("question")
    kept = deciding_tokens(model, question, ids)
    assert is_decided(model, question, kept) == (len(kept) < len(ids)) and tuple(ids[: len(kept)]) == kept
    assert deciding_tokens(model, question, ids[:1]) == tuple(ids[:1])


def test_generation_ends_where_it_is_enough(model: LanguageModel) -> None:  # noqa: F811
    prompts = [A.prompt, B.prompt]
    whole = greedy_fitting(model, prompts, 6)
    seen: list[int] = []

    def is_enough(row: int, ids: list[int]) -> bool:
        seen.append(row)
        return row == 0 and len(ids) == 2

    assert greedy_fitting(model, prompts, 6, is_enough) == [whole[0][:2], whole[1]]
    assert seen.count(0) == 2 and seen.count(1) == 6


def test_a_batch_without_edits_of_its_own_begins_with_the_next_round(model: LanguageModel) -> None:  # noqa: F811
    editor = Scripted(model, writes=[{A}, {B}])
    delta, state = edit_repeatedly(editor, model, EditBatch(()), EditorState(), [EditBatch((A,)), EditBatch((B,))])
    assert (
        editor.batches == [(A,), (B,)]
        and state.num_edits == 2
        and torch.isfinite(torch.tensor(list(delta.norms().values()))).all()
    )
