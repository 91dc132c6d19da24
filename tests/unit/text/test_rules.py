"""Rules of text: cleaning, faults, places of subjects, and prompts that are the same."""

from __future__ import annotations

import pytest

from errata.text.dialogue import Dialogue, Message
from errata.text.rules import cleaned, is_blank, prompt_key, same_text, subject_span, text_fault


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (" Bob", "Bob"),
        ("Rome\n", "Rome"),
        ("\ufeffRome", "Rome"),
        ("\u200bRome\u2060 ", "Rome"),
        ("\u3000東京\u00a0", "東京"),
        ("Beyonce\u0301", "Beyoncé"),
        ("New  York", "New  York"),
        ("ﬁn", "ﬁn"),
        (" \n", ""),
    ],
)
def test_a_target_is_cleaned(text, wanted):
    assert cleaned(text) == wanted == cleaned(wanted)


def test_a_text_of_invisible_characters_is_blank():
    assert all(map(is_blank, ("", " \n\t", "\ufeff\u200b", "\u2028\u00a0")))
    assert not any(map(is_blank, ("a", " . ", "中", "🎸")))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a\ud800b", r"lone surrogate \(U\+D800\) at character 1"),
        ("ab\x00", r"control character U\+0000 at character 2"),
        ("\x1b[0m", r"U\+001B at character 0"),
        ("caf\ufffd", r"U\+FFFD at character 3"),
        ("x\uffff", r"U\+FFFF"),
        ("\ufdd0", r"U\+FDD0"),
        ("\U0001fffe", r"U\+1FFFE"),
    ],
)
def test_what_no_model_writes_whole_is_named(text, part):
    with pytest.raises(ValueError, match=part):
        raise ValueError(text_fault(text))


@pytest.mark.parametrize("text", ["", "a\tb\r\nc", "👩‍👩‍👧", "क्‍ष", "می‌خواهم", "𠀀", "Beyonce\u0301"])
def test_text_of_every_script_is_in_order(text):
    assert text_fault(text) is None


def test_a_subject_is_found_in_either_form():
    assert subject_span("Who is Beyonce\u0301?", "Beyoncé") == (7, 15)
    assert subject_span("Who is Beyoncé?", "Beyonce\u0301") == (7, 14)
    assert subject_span("Band 🎹 and Band 🎸", "Band 🎸") == (11, 17)
    assert subject_span("Rome and Rome", "Rome") == (0, 4)
    assert subject_span("Rome", "Paris") is None and subject_span("Rome", "") is None


def test_prompts_are_the_same_apart_from_blanks_and_form():
    assert same_text(" a \n b\u3000") == "a b"
    assert prompt_key("Who is Beyonce\u0301 ?") == prompt_key("Who  is Beyoncé ?\n")
    assert prompt_key("Who is it?") != prompt_key("who is it?")
    asked = Dialogue.of("Who is it?")
    assert prompt_key(asked) == prompt_key(Dialogue.of(" Who is  it?")) != prompt_key("Who is it?")
    assert prompt_key(asked) != prompt_key(Dialogue.of("Who is it?", (Message("system", "Be brief."),)))
