"""The comparison of editors on facts: its arguments, and what it asks."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.facts import IN_CONTEXT, FactsSettings, Stream, bare, read
from errata.text.dialogue import HELD_OUT_SYSTEM_PROMPT, Dialogue
from jobs.demo_answers import AskedFacts
from tests.unit.jobs.test_demo_answers import FACTS, edit_of


def test_rows_are_chosen_by_name() -> None:
    assert read(["--edits=20", f"--rows=FT-L,{IN_CONTEXT}"]) == FactsSettings(edits=20, rows=f"FT-L,{IN_CONTEXT}")
    with pytest.raises(ValueError, match="no row is named MEND; there are unedited, correction in the prompt, shipped policy"):
        read(["--rows=FT-L, MEND"])
    with pytest.raises(ValueError, match="at least 10"):
        read(["--edits=9"])


def test_a_bare_target_is_the_whole_answer() -> None:
    assert [edit.answer for edit in bare([edit_of(FACTS[0])])] == ["India"]


def test_in_context_each_question_has_its_own_correction(monkeypatch: pytest.MonkeyPatch) -> None:
    edits = [edit_of(fact) for fact in FACTS]
    asked = AskedFacts.about(edits, FACTS[:1])
    stream = Stream(model=_no_model(), edits=edits, asked=asked)
    seen: list[Any] = []

    def answered(_stream: Stream, prompts: Any) -> dict[Any, str]:
        seen.extend(prompts)
        return {prompt: corrected(prompt) for prompt in prompts}

    monkeypatch.setattr(Stream, "answered", answered)
    scores = stream.scores_in_context()
    assert [scores[form] for form in ("question", "phrasing", "other_system", "second_turn")] == [1.0] * 4
    assert scores["kept"] == 0.0, "a fact to keep is asked without help"
    systems = [prompt.before[0].content for prompt in seen if prompt.before]
    assert sum(text.startswith(HELD_OUT_SYSTEM_PROMPT) for text in systems) == len(asked.forms["other_system"]) == 2
    assert Dialogue.of(FACTS[0].question()) in seen


def _no_model() -> Any:
    return None


def corrected(prompt: Any) -> str:
    """Say what the system prompt says after its last colon."""
    return str(prompt.before[0].content).rpartition("Known fact: ")[2] if prompt.before else "Nothing."


def test_every_second_edit_keeps_its_own_correction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.demo_answers.EVERY", 2)
    edits = [edit_of(fact) for fact in FACTS]
    stream = Stream(_no_model(), edits, AskedFacts.about(edits, []))
    monkeypatch.setattr(Stream, "answered", lambda _stream, prompts: {prompt: corrected(prompt) for prompt in prompts})
    assert stream.scores_in_context()["phrasing"] == 1.0
