"""Dialogues: their rules, their JSON, and the contexts of a question."""

from __future__ import annotations

import pytest

from errata.text.dialogue import Dialogue, Message, dialogue_fault, in_contexts, messages_from_json

SYSTEM, ASKED, SAID = Message("system", "Be brief."), Message("user", "Who?"), Message("assistant", "Bob.")


@pytest.mark.parametrize(
    ("messages", "part"),
    [
        ((), "the last message must be the user's"),
        ((SYSTEM,), "the last message must be the user's"),
        ((ASKED, SAID), "the last message must be the user's"),
        ((SAID, ASKED), "the user begins"),
        ((ASKED, ASKED), "must alternate"),
        ((ASKED, SAID, SAID, ASKED), "must alternate"),
        ((ASKED, SAID, SYSTEM, ASKED), "must be the first one"),
        ((SYSTEM, SYSTEM, ASKED), "the only one of its role"),
    ],
)
def test_what_is_no_dialogue_is_said(messages, part):
    assert part in str(dialogue_fault(messages))
    with pytest.raises(ValueError, match=part):
        Dialogue(messages)


@pytest.mark.parametrize("messages", [(ASKED,), (SYSTEM, ASKED), (ASKED, SAID, ASKED), (SYSTEM, ASKED, SAID, ASKED)])
def test_a_dialogue_is_read_as_it_was_written(messages):
    dialogue = Dialogue(messages)
    assert messages_from_json(dialogue.to_json()) == messages
    assert (dialogue.question, dialogue.before) == ("Who?", messages[:-1])


@pytest.mark.parametrize(
    ("data", "part"),
    [
        ("Who?", "a list of messages"),
        (None, "a list of messages"),
        (["Who?"], "message 0 must have a role and a content"),
        ([{"role": "user", "content": "a", "name": "b"}], "and nothing else"),
        ([{"role": "tool", "content": "a"}], "the roles are system, user, assistant"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": [{"type": "text"}]}], "message 1 must have a text"),
    ],
)
def test_the_wrong_message_is_named(data, part):
    with pytest.raises(ValueError, match=part):
        messages_from_json(data)


def test_a_dialogue_is_one_line():
    assert str(Dialogue.of("Who?")) == "Who?"
    assert str(Dialogue((SYSTEM, ASKED))) == "system: Be brief. | user: Who?"


def test_system_prompts_and_turns_come_before_the_question():
    dialogue = Dialogue((SYSTEM, ASKED))
    assert dialogue.with_system(None) == Dialogue.of("Who?")
    assert [m.content for m in dialogue.with_system("Other").messages] == ["Other", "Who?"]
    assert [m.role for m in dialogue.after("a", "b").messages] == ["system", "user", "assistant", "user"]


def test_contexts_keep_the_question_and_begin_with_the_dialogue_itself():
    dialogue = Dialogue((SYSTEM, ASKED))
    found = in_contexts(dialogue, 5)
    assert found[0] == dialogue and len(found) == len(set(found)) == 5
    assert {one.question for one in found} == {"Who?"}
    assert in_contexts(dialogue, 1) == [dialogue]
    assert in_contexts(dialogue, 4, offset=1)[1:] == found[2:5]


@pytest.mark.parametrize("dialogue", [Dialogue((SYSTEM, ASKED)), Dialogue((ASKED,)), Dialogue((ASKED, SAID, ASKED))])
def test_contexts_repeat_only_after_all_of_them(dialogue):
    for offset in range(50):
        _, *others = in_contexts(dialogue, 21, offset)
        assert len(set(others)) == 20
        assert in_contexts(dialogue, 31, offset) == [dialogue, *others, *others[:10]]
        assert in_contexts(dialogue, 6, offset)[1:] == others[:5]
