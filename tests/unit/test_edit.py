"""Edits and batches: JSON, checks by field, and rejections."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from errata.edit import Code, Edit, EditBatch, EditRejected, Fault, Probe, Question, batches_of
from errata.model.edit_check import check_edits
from errata.text.dialogue import Dialogue, Message

FULL = Edit("Ada works as a", "clerk", "Ada", ("the job of Ada is",), (Probe("p", "q"),), (Probe("r", "s"),), "e1")


ALIASES = Edit(
    "a", "b", locality=(Probe("p", "USA", aliases=("United States", "America")), Probe("r", "s", "k", ("t",), "It is t."))
)
KINDS = Edit("a", "b", portability=(Probe("p", "q", "two_hop"), Probe("r", "s"), Probe("t", "u", "any word")))


ASKED = Edit("Who is it?", "Ada", form="chat", aliases=("A.", "Lovelace"), answer="It is Ada.")
DATED = Edit("a", "b", source="https://a.example/b", valid_from="2019-01-01", valid_to="2020-01-01", reason="It moved.")
LATER = Edit("And now?", "Bob", form="chat", before=(Message("user", "Hi"), Message("assistant", "Ada.")), answer="Bob is it.")


@pytest.mark.parametrize("edit", [FULL, KINDS, ALIASES, Edit("a", "b"), Edit("a", "b", aliases=("c",)), ASKED, LATER, DATED])
def test_an_edit_is_read_from_json_as_it_was_written(edit):
    assert Edit.from_json(edit.to_json()) == edit


def test_a_probe_without_a_kind_is_written_without_the_field():
    assert FULL.to_json()["portability"] == [{"prompt": "r", "target": "s"}]
    old = {"prompt": "a", "target": "b", "portability": [{"prompt": "r", "target": "s", "kind": None}]}
    assert Edit.from_json(old).portability == (Probe("r", "s"),)


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"prompt": "a"}, "target"),
        ({"prompt": 3, "target": "b"}, "prompt"),
        ({"prompt": "a", "target": "b", "colour": "c"}, "colour"),
    ],
)
def test_from_json_names_the_field(data, field):
    with pytest.raises(EditRejected) as rejected:
        Edit.from_json(data)
    assert rejected.value.field == field


def test_all_faults_of_a_batch_are_listed(tiny_model):
    edits = [Edit("a", " "), FULL, Edit("Bob", "x", subject="Ada", rephrasings=("",)), Edit("question " * 60, "a")]
    with pytest.raises(EditRejected) as rejected:
        check_edits(edits, tiny_model.renderer, tiny_model.max_tokens)
    assert (rejected.value.edit, rejected.value.field, rejected.value.code) == (0, "target", Code.EMPTY_FIELD)
    assert [(fault.edit, fault.field, fault.code) for fault in rejected.value.faults] == [
        (0, "target", Code.EMPTY_FIELD),
        (2, "subject", Code.SUBJECT_NOT_IN_PROMPT),
        (2, "rephrasings", Code.EMPTY_FIELD),
        (3, "prompt", Code.TOO_LONG),
    ]
    assert "has 60 tokens; the model's context holds 48" in str(rejected.value)
    check_edits([FULL], tiny_model.renderer, tiny_model.max_tokens)
    with pytest.raises(EditRejected) as rejected:
        check_edits([])
    assert rejected.value.code == Code.EMPTY_BATCH


def test_a_rejection_survives_pickling():
    rejected = EditRejected("too long", code=Code.TOO_LONG, edit=3, field="prompt")
    copy = pickle.loads(pickle.dumps(rejected))
    assert (str(copy), copy.code, copy.edit, copy.field) == ("edit 3, prompt: too long", Code.TOO_LONG, 3, "prompt")
    assert isinstance(copy, ValueError)
    several = EditRejected.of([*rejected.faults, Fault(4, None, Code.NOT_FINITE, "is not finite")])
    copy = pickle.loads(pickle.dumps(several))
    assert (copy.faults, str(copy)) == (several.faults, "edit 3, prompt: too long; edit 4: is not finite")


def test_a_fault_has_what_the_model_says_where_it_was_asked():
    faults = [Fault(0, "target", Code.INEFFECTIVE, "is not answered", says=""), Fault(1, None, Code.TOO_LONG, "is too long")]
    rejected = pickle.loads(pickle.dumps(EditRejected.of(faults)))
    assert (rejected.says, [fault.says for fault in rejected.faults]) == ("", ["", None]), "an empty answer is one"
    assert [fault.to_json().get("says", "was not asked") for fault in rejected.faults] == ["", "was not asked"]
    assert set(faults[1].to_json()) == {"edit", "field", "code", "reason"}
    assert EditRejected("no", code=Code.TOO_LONG).says is None


def test_batches_keep_the_order_and_the_rest():
    edits = [Edit(str(i), "x") for i in range(5)]
    assert [batch.prompts for batch in batches_of(edits, 2)] == [["0", "1"], ["2", "3"], ["4"]]
    assert EditBatch(edits).edits == tuple(edits)
    with pytest.raises(ValueError, match="at least one"):
        next(batches_of(edits, 0))


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"subject": 3}, "subject"),
        ({"id": 3}, "id"),
        ({"rephrasings": "abc"}, "rephrasings"),
        ({"rephrasings": ["a", 3]}, "rephrasings"),
        ({"aliases": "abc"}, "aliases"),
        ({"aliases": ["a", None]}, "aliases"),
        ({"answer": ["a"]}, "answer"),
        ({"locality": {"prompt": "p", "target": "t"}}, "locality"),
        ({"locality": ["p"]}, "locality"),
        ({"portability": [{"prompt": "p"}]}, "portability"),
        ({"portability": [{"prompt": "p", "target": 3}]}, "portability"),
        ({"locality": [{"prompt": "p", "target": "t", "kind": 3}]}, "locality"),
        ({"locality": [{"prompt": "p", "target": "t", "aliases": "abc"}]}, "locality"),
        ({"locality": [{"prompt": "p", "target": "t", "aliases": ["a", 3]}]}, "locality"),
        ({"portability": [{"prompt": "p", "target": "t", "answer": 3}]}, "portability"),
        ({"locality": [{"prompt": "p", "target": "t", "colour": "red"}]}, "locality"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(more, field):
    with pytest.raises(EditRejected) as refused:
        Edit.from_json({"prompt": "p", "target": "t", **more})
    assert refused.value.field == field and "must be" in refused.value.reason


def test_a_probe_must_ask_and_answer_something():
    for probe in (Probe(" ", "t"), Probe("p", ""), Probe("p", "t", aliases=("a", " "))):
        edit = Edit("p", "t", locality=(probe,), portability=(Probe("p", "t"),))
        assert [fault.field for fault in edit.faults()] == ["locality"]


def test_who_posted_an_edit_is_kept() -> None:
    edit = Edit("a", "b", id="1", poster="ada")
    assert edit.to_json() == {"prompt": "a", "target": "b", "id": "1", "poster": "ada"}
    assert Edit.from_json(edit.to_json()) == edit
    assert "poster" not in Edit("a", "b").to_json() and Edit.from_json({"prompt": "a", "target": "b"}).poster is None
    with pytest.raises(EditRejected, match="poster: must be a string"):
        Edit.from_json({"prompt": "a", "target": "b", "poster": 7})


def test_aliases_and_answers_lose_white_space_at_their_ends() -> None:
    given = {"question": "q", "target": " b", "aliases": [" c\n", "\ufeffd"], "answer": "It is b. \n"}
    edit = Edit.from_json(given)
    assert (edit.aliases, edit.answer, edit.targets) == (("c", "d"), "It is b.", ("b", "c", "d"))
    assert Edit.from_json({"prompt": "a", "target": "b", "aliases": None, "answer": None}) == Edit("a", "b")


@pytest.mark.parametrize(
    ("edit", "faults"),
    [
        (ASKED, []),
        (replace(ASKED, form="both"), []),
        (replace(ASKED, answer="Lovelace is it."), []),
        (
            replace(ASKED, answer="It is Bob."),
            [("answer", Code.INVALID_VALUE, "does not contain the target")],
        ),
        (replace(ASKED, answer=""), [("answer", Code.INVALID_VALUE, "does not contain the target")]),
        (replace(ASKED, form="completion"), [("answer", Code.INVALID_VALUE, "is written in chat alone")]),
        (replace(ASKED, answer="Ada\x07"), [("answer", Code.NOT_TEXT, "U+0007")]),
        (replace(ASKED, aliases=("A.", " \u200b")), [("aliases", Code.EMPTY_FIELD, "one of them is empty")]),
        (replace(ASKED, aliases=("A.", "\ud800")), [("aliases", Code.NOT_TEXT, "surrogate")]),
        (Edit("a", "b", aliases=("c",)), []),
        (replace(ASKED, before=(Message("system", "\u202e"),)), [("messages", Code.NOT_TEXT, "U+202E")]),
        (
            Edit("a\u00ad", "b", rephrasings=("c\u2066",)),
            [("prompt", Code.NOT_TEXT, "AD"), ("rephrasings", Code.NOT_TEXT, "66")],
        ),
        (Edit("a", " b"), [("target", Code.INVALID_VALUE, "is not as it is learnt")]),
        (Edit("é", "b", "e\u0301"), [("subject", Code.INVALID_VALUE, "is not as it is learnt")]),
        (replace(ASKED, answer="Ada\n"), [("answer", Code.INVALID_VALUE, "is not as it is learnt")]),
        (replace(ASKED, aliases=("A.\u00a0",)), [("aliases", Code.INVALID_VALUE, "is not as it is learnt")]),
        (Edit("a", "b", locality=(Probe("c", "d\ufffd"),)), [("locality", Code.NOT_TEXT, "U+FFFD")]),
        (Edit("a", "b", portability=(Probe("c\u202e", "d"),)), [("portability", Code.NOT_TEXT, "U+202E")]),
    ],
)
def test_faults_of_aliases_and_answers(edit: Edit, faults: list[tuple[str, Code, str]]) -> None:
    found = list(edit.faults(3))
    assert [(fault.edit, fault.field, fault.code) for fault in found] == [(3, name, code) for name, code, _ in faults]
    assert all(said in fault.reason for fault, (_, _, said) in zip(found, faults, strict=True))


def test_an_answer_is_written_in_chat_and_the_target_in_a_completion() -> None:
    edit = replace(ASKED, form="both")
    completed, asked = edit.prompts
    assert (completed, asked) == ("Who is it?", Dialogue.of("Who is it?"))
    assert [edit.question(prompt) for prompt in edit.prompts] == [
        Question(completed, "Ada", edit.targets),
        Question(asked, "It is Ada.", edit.targets),
    ]
    assert EditBatch((edit,)).targets == ["Ada", "It is Ada."]
    assert replace(edit, answer=None).wording(asked) == "Ada"


def test_the_first_wrong_answer_is_that_of_a_form() -> None:
    edit = replace(ASKED, form="both")
    assert edit.first_wrong(["Ada", "I think that it is Lovelace."]) is None
    assert edit.first_wrong(["I think that it is Ada", "It is Ada."]) == "I think that it is Ada"
    assert edit.first_wrong(["Ada", "It is Bob."]) == "It is Bob."


@pytest.mark.parametrize(
    ("data", "field", "code"),
    [
        ({"valid_from": "2019"}, "valid_from", Code.INVALID_DATE),
        ({"valid_to": "2019-02-30"}, "valid_to", Code.INVALID_DATE),
        ({"valid_from": "2019-05-02", "valid_to": "2019-05-02"}, "valid_to", Code.INVALID_PERIOD),
        ({"valid_from": "2019-05-02", "valid_to": "2018-05-02"}, "valid_to", Code.INVALID_PERIOD),
        ({"source": "https://"}, "source", Code.INVALID_URL),
        ({"source": "http://a b/c"}, "source", Code.INVALID_URL),
        ({"source": "http://a:x/"}, "source", Code.INVALID_URL),
        ({"source": "javascript://a.example/%0aalert(1)"}, "source", Code.INVALID_URL),
        ({"source": " "}, "source", Code.EMPTY_FIELD),
        ({"reason": ""}, "reason", Code.EMPTY_FIELD),
        ({"source": "no\x00te"}, "source", Code.NOT_TEXT),
    ],
)
def test_faults_of_time_and_source_are_named(data, field, code):
    faults = list(Edit.from_json({"prompt": "a", "target": "b", **data}).faults(3))
    assert [(fault.edit, fault.field, fault.code) for fault in faults] == [(3, field, code)]


@pytest.mark.parametrize(
    "source", ["https://a.example:80/b?c#d", "HTTP://A.EXAMPLE", "the minutes of May, page 3", "note: by phone", "a/b"]
)
def test_a_source_is_a_url_of_the_web_or_a_note(source):
    edit = Edit.from_json({"prompt": "a", "target": "b", "source": f" {source} "})
    assert edit.source == source and not list(edit.faults())


def test_a_time_of_another_type_is_refused():
    with pytest.raises(EditRejected, match="must be a string") as rejected:
        Edit.from_json({"prompt": "a", "target": "b", "valid_from": 2019})
    assert (rejected.value.field, rejected.value.code) == ("valid_from", Code.WRONG_TYPE)
