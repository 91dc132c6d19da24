"""Scores of edits in chat: the same question alone, under a system prompt and after a turn that no training has seen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from errata.edit import Edit
from errata.evaluate.questions import Questions
from errata.evaluate.scorecard import score
from errata.model.generation import greedy_texts
from errata.text.dialogue import EARLIER_TURNS, HELD_OUT_SYSTEM_PROMPT, HELD_OUT_TURN, SYSTEM_PROMPTS, Dialogue, Message
from tests.unit.evaluate.toy_model import EDITED, EDITS, MAX_TOKENS, UNEDITED, toy

# The toy looks at the last token alone: a question, or what this template writes behind it.
TEMPLATE = (
    "{{ messages[-1].content }}{% if messages[0].role == 'system' %} instructed{% endif %}"
    "{% if messages | length > 2 %} again{% endif %}"
)
AFTER = {"instructed": {"paris": 1.0}, "again": {"blue": 1.0}}
IN_CHAT = [replace(edit, form="chat", locality=(), portability=(), rephrasings=()) for edit in EDITS]
SYSTEM = Message("system", HELD_OUT_SYSTEM_PROMPT)
TURN = (Message("user", HELD_OUT_TURN[0]), Message("assistant", HELD_OUT_TURN[1]))


def test_edits_in_chat_are_asked_in_dialogues_that_no_training_has_seen() -> None:
    own = Message("system", "Be brief.")
    edits = [Edit("a", "1", form="chat"), Edit("b", "2", form="both", before=(own,)), Edit("c", "3")]
    questions = Questions.of(edits)
    assert [question.prompt for question in questions.efficacy] == [Dialogue.of("a"), "b", Dialogue.of("b", (own,)), "c"]
    assert [question.prompt for question in questions.other_system] == [
        Dialogue.of("a", (SYSTEM,)),
        Dialogue.of("b", (SYSTEM,)),
    ]
    assert [question.prompt for question in questions.second_turn] == [Dialogue.of("a", TURN), Dialogue.of("b", (own, *TURN))]
    assert [question.targets for question in questions.other_system] == [("1",), ("2",)]
    assert questions.owners["other_system"] == questions.owners["second_turn"] == ("a", "b")
    assert HELD_OUT_SYSTEM_PROMPT not in SYSTEM_PROMPTS and HELD_OUT_TURN not in EARLIER_TURNS


def test_completions_are_asked_no_dialogues() -> None:
    questions = Questions.of(EDITS)
    assert questions.other_system == questions.second_turn == ()
    card = score(questions, dict.fromkeys(questions.prompts, "paris"), dict.fromkeys(questions.prompts, "paris"))
    assert (card.other_system, card.second_turn) == (None, None)


FREE = {  #                     alone, in order: paris, blue nile delta, mary shelley, pure tin
    "efficacy": 2 / 4,  #       paris; in chat "blue nile delta" says blue nile, too
    "other_system": 1 / 4,  #   paris to every question
    "second_turn": 1 / 4,  #    blue nile delta to every question
}


def test_the_scores_in_other_dialogues_are_those_by_hand() -> None:
    edited = toy(EDITED | AFTER, TEMPLATE)
    questions = Questions.of(IN_CHAT)
    answers = dict(zip(questions.prompts, greedy_texts(edited, questions.prompts, MAX_TOKENS), strict=True))
    assert answers[questions.second_turn[0].prompt] == "blue nile delta"
    found = score(questions, answers, {}).to_json()
    assert {name: found[name] for name in FREE} == pytest.approx(FREE)
    for name in ("other_system", "second_turn"):
        assert 0 <= found[f"{name}_low"] <= found[name] <= found[f"{name}_high"]


def test_an_edit_that_holds_in_one_dialogue_alone_is_seen() -> None:
    """The model forgets all edits under a system prompt, and after a turn knows those of rivers."""
    forgetful = toy(EDITED | {"instructed": UNEDITED["seat"], "again": EDITED["river"]}, TEMPLATE)
    questions = Questions.of(IN_CHAT[:2])
    answers = dict(zip(questions.prompts, greedy_texts(forgetful, questions.prompts, MAX_TOKENS), strict=True))
    card = score(questions, answers, {})
    assert (card.efficacy, card.other_system, card.second_turn) == (1.0, 0.0, 0.5)
