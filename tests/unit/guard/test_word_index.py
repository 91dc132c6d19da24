"""The words of held edits: which prompts have given words, and which share most with a text."""

from __future__ import annotations

from errata.edit import Edit
from errata.edit_memory.subjects import plain_words
from errata.guard.held_edits import HeldEdits
from errata.guard.word_index import WordIndex

PROMPTS = ("In which country is New York?", "Who is the mayor of York?", "Where was Ada Byron born?", "In which year was it?")


def held(*prompts: str) -> HeldEdits:
    found = HeldEdits(0)
    found.add([Edit(prompt, "x") for prompt in prompts])
    return found


def test_edits_are_found_by_all_of_the_words_of_a_subject() -> None:
    words = WordIndex()
    words.update(held(*PROMPTS))
    for subject, found in (("York", {0, 1}), ("New York", {0}), ("ada byron", {2}), ("Bo Li", set())):
        assert {one.edit.prompt for one in words.with_all(plain_words(subject))} == {PROMPTS[i] for i in found}
    assert words.with_all(()) == []


def test_the_nearest_edits_share_the_rarest_words() -> None:
    words = WordIndex()
    words.update(held(*PROMPTS))
    near = [one.edit.prompt for one in words.nearest("Who was the first mayor of York?", 3)]
    assert near[0] == PROMPTS[1] and len(near) == 3 and words.nearest("?", 3) == []


def test_an_update_follows_the_edits_that_are_held() -> None:
    words, edits = WordIndex(), held(*PROMPTS)
    words.update(edits)
    edits.add([Edit(PROMPTS[1], "y", id="later"), Edit("Who founded York?", "z")])
    words.update(edits)
    found = {one.edit.prompt: one.edit.target for one in words.with_all(("york",))}
    assert found == {PROMPTS[0]: "x", PROMPTS[1]: "y", "Who founded York?": "z"}
    words.update(())
    assert not words.words and not words.having
