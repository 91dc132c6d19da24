"""Contexts of edits in chat: the search for targets asks them in dialogues, where those of completions have sampled texts."""

from __future__ import annotations

from typing import Any

import pytest

from errata.edit import Edit, EditBatch
from errata.editors.closed_form import intervention
from errata.editors.closed_form.contexts import Contexts, EditPrompts, tokenise_at_subject
from errata.editors.closed_form.targets import Search, find_targets
from errata.model.language_model import LanguageModel
from errata.testbed.language_model import Shape, make_model
from errata.text.dialogue import EARLIER_TURNS, SYSTEM_PROMPTS, Dialogue, Message, in_contexts
from tests.tokenizers_under_test import make
from tests.unit.small_models import MODULES

SAMPLED = ("", "The river. ", "A city. ", "It is. ", "Rome is old. ")
QUESTION = "Who runs the old city of Tokyo?"


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    tokenizer = make("byte-level", "chatml")
    module = make_model(Shape(hidden=32, layers=3, intermediate=48, heads=2, max_tokens=256), len(tokenizer), seed=0)
    return LanguageModel(module.eval().requires_grad_(False), tokenizer, "chat")


def read(model: LanguageModel, rows: EditPrompts) -> list[str]:
    """Return the text of each row before its answer."""
    found = []
    for ids, predicts in zip(rows.encoded.input_ids_BS, rows.encoded.predicts_BS, strict=True):
        first = int(predicts.nonzero()[0])
        found.append(model.tokenizer.decode(ids[: first + 1]))
    return found


def test_a_chat_edit_is_asked_under_other_system_prompts_under_none_and_in_a_second_turn(model: LanguageModel) -> None:
    edit = Edit(QUESTION, "Bob", "Tokyo", form="chat", before=(Message("system", "Be brief."),))
    asked = Contexts(SAMPLED).around(edit, *edit.prompts)
    assert asked == in_contexts(*edit.prompts, len(SAMPLED), offset=len(QUESTION))
    assert asked[0] == edit.prompts[0] and len(set(asked)) == len(SAMPLED)
    assert all(isinstance(one, Dialogue) and one.question == QUESTION for one in asked)
    systems = [[one.content for one in dialogue.before if one.role == "system"] for dialogue in asked[1:]]
    assert [] in systems and all(system[0] in SYSTEM_PROMPTS for system in systems if system)
    turns = [dialogue.before[-2:] for dialogue in asked[1:] if dialogue.before[-1:] and dialogue.before[-1].role == "assistant"]
    assert turns and all((user.content, answer.content) in EARLIER_TURNS for user, answer in turns)


@pytest.mark.parametrize("form", ["chat", "both", "completion"])
@pytest.mark.parametrize("subject", ["Tokyo", None], ids=["at the subject", "at the end"])
def test_the_search_for_targets_reads_each_form_in_its_contexts(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, form: str, subject: str | None
) -> None:
    batch = EditBatch((Edit(QUESTION, "Bob", subject, form=form), Edit("Is Rome old?", "Yes", "Rome", form=form)))
    contexts = Contexts(SAMPLED, position="either")
    seen: list[EditPrompts] = []

    def noted(*arguments: Any, **more: Any) -> EditPrompts:
        seen.append(tokenise_at_subject(*arguments, **more))
        return seen[-1]

    monkeypatch.setattr(intervention, "tokenise_at_subject", noted)
    find_targets(model, batch, f"model.{MODULES['llama'][1]}", contexts, Search(num_steps=2))
    rows, expected = seen[0], list[str]()
    for edit in batch:
        for prompt in edit.prompts:
            others = [text + prompt for text in SAMPLED] if isinstance(prompt, str) else contexts.around(edit, prompt)
            expected += [model.tokenizer.decode(model.renderer.ids(one)) for one in others]
    assert read(model, rows) == expected
    for text, ids, position, index in zip(expected, rows.encoded.input_ids_BS, rows.position_B, rows.edit_B, strict=True):
        until, subject_of = model.tokenizer.decode(ids[: position + 1]), batch.edits[int(index)].subject
        assert until == (text[: text.rindex(subject_of) + len(subject_of)] if subject_of else text)
    assert len(expected) == len(SAMPLED) * sum(len(edit.prompts) for edit in batch)
    assert rows.mean(rows.weight_B.new_ones(len(expected), 1)).flatten().tolist() == pytest.approx([1.0, 1.0])
