"""The contract of every memory on transformers, for the memory editors of tests/editors_under_test.py.

An empty memory and an unrelated question leave the base model's bits, a dropped record leaves none of its own, a later record
of a fact wins, and no answer depends on the texts that are read together with it, or on how they are read.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from errata.delta.accumulator import EditedModel
from errata.delta.kinds import stored
from errata.delta.memory_delta import MemoryDelta, held_after
from errata.delta.side_branch import applied
from errata.edit import Edit, EditBatch
from errata.edit_memory.bank import Bank
from errata.edit_memory.hooks import bank_of, read_bank
from errata.editors import Editor
from errata.editors.memory_based.elder import ELDER
from errata.guard.inspector import Inspector
from errata.guard.limits import Guard, Limit
from errata.guard.memory_answers import is_read_before
from errata.guard.probes import Probes
from errata.model.encoding import Encoded, answer_log_probs, encode
from errata.model.generation import greedy, greedy_texts
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.model.packing import packed_requests
from errata.testbed.world import World
from tests.editors_under_test import SAID, STATES, UNDER_TEST, editor_under_test

INSIDE = [name for name, one in UNDER_TEST.items() if one.made_of is STATES]
NAMES = INSIDE + [name for name, one in UNDER_TEST.items() if one.made_of is SAID]
EDITS = World(20).edits("test", 12)
EDITED, UNRELATED = EDITS[:4], [edit.prompt for edit in EDITS[6:]]


@pytest.fixture(params=NAMES)
def editor(request: pytest.FixtureRequest, tiny_model: LanguageModel) -> Editor:
    return exact(editor_under_test(str(request.param), tiny_model))


def exact(editor: Editor) -> Editor:
    """Return the editor with a threshold that separates the states of a random model.

    Experts also get steps enough to say different answers at states that are near each other.
    """
    if isinstance(editor, ELDER):
        return replace(editor, radius=1, num_steps=120)
    changed: Editor = replace(editor, threshold=0.99999)  # type: ignore[type-var, call-arg]
    return changed


def edited_by(editor: Editor, model: LanguageModel, edits: list[Edit]) -> MemoryDelta:
    state = editor.start(model, find_matrices(model.module, editor.modules))
    delta, _ = editor.edit(model, EditBatch(tuple(edits)), state)
    assert isinstance(delta, MemoryDelta)
    return delta


@torch.no_grad()
def logits_of(model: LanguageModel, prompts: list[str]) -> list[Tensor]:
    """Return the logits over each prompt, each read alone."""
    rows = [torch.tensor([model.renderer.ids(prompt)]) for prompt in prompts]
    return [model.module(input_ids=ids_1S, use_cache=False).logits for ids_1S in rows]


def answers(model: LanguageModel, edits: list[Edit]) -> list[str]:
    return greedy_texts(model, [edit.prompt for edit in edits], max_tokens=4)


def test_an_empty_memory_leaves_no_hooks(editor: Editor, tiny_model: LanguageModel) -> None:
    made = edited_by(editor, tiny_model, EDITED)
    empty = MemoryDelta(made.kind, made.site, (), ("a fact that is not held",))
    before = logits_of(tiny_model, UNRELATED)
    edited = EditedModel(tiny_model.module, find_matrices(tiny_model.module, editor.modules))
    edited.add(empty)
    with applied(tiny_model.module, empty):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny_model.module.modules())
        assert all(map(torch.equal, before, logits_of(tiny_model, UNRELATED)))


def test_each_edit_is_answered_and_unrelated_questions_keep_their_bits(editor: Editor, tiny_model: LanguageModel) -> None:
    before, said = logits_of(tiny_model, UNRELATED), answers(tiny_model, EDITED)
    with applied(tiny_model.module, stored(edited_by(editor, tiny_model, EDITED))):
        assert answers(tiny_model, EDITED) == [edit.target for edit in EDITED] != said
        assert all(map(torch.equal, before, logits_of(tiny_model, UNRELATED)))
    assert answers(tiny_model, EDITED) == said
    assert all(map(torch.equal, before, logits_of(tiny_model, UNRELATED)))


def test_a_later_record_of_a_fact_wins_and_a_dropped_one_restores_the_model(editor: Editor, tiny_model: LanguageModel) -> None:
    first = edited_by(editor, tiny_model, EDITED)
    others = [replace(edit, target=other.target) for edit, other in zip(EDITED, EDITS[4:8], strict=True)]
    edited = EditedModel(tiny_model.module, find_matrices(tiny_model.module, editor.modules))
    before, said = logits_of(tiny_model, [edit.prompt for edit in EDITED]), answers(tiny_model, EDITED)
    for targets in (EDITED, others, EDITED):
        edited.add(edited_by(editor, tiny_model, targets))
        assert answers(tiny_model, EDITED) == [edit.target for edit in targets]
    kept, gone = first.records[:1], first.records[1:]
    with applied(tiny_model.module, MemoryDelta(first.kind, first.site, (), tuple(record.fact for record in gone))):
        assert answers(tiny_model, EDITED) == [EDITED[0].target, *said[1:]]
    assert answers(tiny_model, EDITED) == [edit.target for edit in EDITED], "the change was beside the model alone"
    edited.add(MemoryDelta(first.kind, first.site, (), tuple(record.fact for record in (*kept, *gone))))
    assert all(map(torch.equal, before, logits_of(tiny_model, [edit.prompt for edit in EDITED])))
    assert bank_of(tiny_model.module) is None


def test_an_answer_does_not_depend_on_its_neighbours(editor: Editor, tiny_model: LanguageModel) -> None:
    """Check batches of edited and unedited questions of several lengths: with padding, with a shared beginning, and alone."""
    prompts = [text for pair in zip([edit.prompt for edit in EDITED], UNRELATED, strict=False) for text in pair]
    prompts += ["the " * 9 + prompt for prompt in prompts]
    with applied(tiny_model.module, edited_by(editor, tiny_model, EDITED)):
        alone = [greedy(tiny_model, [prompt], 4)[0] for prompt in prompts]
        for size in (2, 3, len(prompts)):
            assert greedy(tiny_model, prompts, 4, batch_size=size) == alone
    targets = [edit.target for edit in EDITED]
    assert [tiny_model.tokenizer.decode(ids) for ids in alone[:8:2]] == targets


@pytest.mark.parametrize("name", INSIDE)
def test_a_text_is_read_alike_in_parts_packed_and_whole(name: str, tiny_model: LanguageModel) -> None:
    editor = exact(editor_under_test(name, tiny_model))
    batch = EditBatch(tuple(replace(edit, prompt="the old river " * 6 + edit.prompt) for edit in EDITED))
    model = tiny_model
    whole = encode(model.renderer, batch.prompts, batch.targets)
    with applied(model.module, edited_by(editor, model, list(batch))), torch.no_grad():
        together = packed_requests(model, batch.rows)
        assert type(together) is not Encoded, "the texts share a beginning"
        wanted_T = whole.targets_T
        for encoded in (whole, together):
            assert torch.equal(answer_log_probs(model.module, encoded).argmax(-1), wanted_T)
        for prompt, target in zip(batch.prompts, batch.targets, strict=True):
            ids = [*model.renderer.ids(prompt), *model.renderer.answer_ids(prompt, target)]
            cache, said = None, []
            for part in (ids[:3], *([one] for one in ids[3:])):
                read = model.module(input_ids=torch.tensor([part]), past_key_values=cache, use_cache=True)
                cache = read.past_key_values
                said.append(int(read.logits[0, -1].argmax()))
            num_answer = len(ids) - len(model.renderer.ids(prompt))
            assert said[-1 - num_answer : -1] == ids[-num_answer:]


def test_the_inspector_sees_the_memory_of_a_candidate_and_of_its_version(editor: Editor, tiny_model: LanguageModel) -> None:
    spec, first, second = find_matrices(tiny_model.module, editor.modules), EditBatch(tuple(EDITED[:2])), EDITED[2:]
    inspector = Inspector(tiny_model, spec, Guard(unanswered=Limit(1.0, 1.0)), Probes(tuple(UNRELATED), ()))
    edited = EditedModel(tiny_model.module, spec)
    made = edited_by(editor, tiny_model, list(first))
    locality, fires = (None, 0.0) if is_read_before(made) else (1.0, None)
    found, observed = inspector.measure(first, made)
    assert (found.efficacy, found.relative_norm, found.norm_growth) == (1.0, {}, {})
    assert (found.locality, found.fires) == (locality, fires)
    edited.add(made)
    inspector.committed(first, observed)
    found, _ = inspector.measure(EditBatch(tuple(second)), edited_by(editor, tiny_model, second))
    assert (found.efficacy, found.retention, found.locality, found.fires) == (1.0, 1.0, locality, fires)
    removal = MemoryDelta(made.kind, made.site, (), tuple(record.fact for record in made.records))
    found, observed = inspector.measure(EditBatch(()), removal)
    assert found.retention == 0.0 and set(observed.lost) == set(first)


def test_the_memory_of_another_model_is_not_read(editor: Editor, tiny_model: LanguageModel) -> None:
    bank = held_after([edited_by(editor, tiny_model, EDITED)])
    assert isinstance(bank, Bank) and len(bank) == len(EDITED)
    read_bank(tiny_model.module, bank)
    read_bank(tiny_model.module, bank)
    assert len(tiny_model.module._forward_pre_hooks) == 1, "a bank takes the place of the one before"
    read_bank(tiny_model.module, None)
    assert not tiny_model.module._forward_pre_hooks
