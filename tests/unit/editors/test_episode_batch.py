"""The texts of an episode's batch: which dialogues are in another context, and which answers belong to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from errata.edit import Edit, EditBatch, Probe
from errata.editors.hypernet.episode_batch import EpisodeBatch
from errata.text.dialogue import Dialogue, Form, Prompt


class Texts(EpisodeBatch):
    """A batch whose texts are left as (prompt, answer)."""

    def _encode(self, pairs: Sequence[tuple[Prompt, str]]) -> Any:
        return list(pairs)


def edit_of(number: int, form: Form = "chat") -> Edit:
    answer = None if form == "completion" else f"It is {number}."
    return Edit(
        f"Q{number}?", str(number), rephrasings=(f"R{number}?",), locality=(Probe("L?", "That."),), form=form, answer=answer
    )


def batch_of(form: Form, num: int = 4, **options: Any) -> Texts:
    model: Any = None
    return Texts(model, EditBatch(tuple(edit_of(number, form) for number in range(num))), **options)


def question(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else prompt.messages[-1].content


def test_consequences_are_asked_in_the_form_of_the_edit_and_answered_with_their_whole_answer() -> None:
    follows = (Probe("C?", "Asia", answer="It is in Asia."), Probe("D?", "Lek"))
    edits = [replace(edit_of(0, form), portability=follows) for form in ("chat", "completion")]
    found: Any = Texts(None, EditBatch(tuple(edits))).portability_texts
    in_chat = [(Dialogue.of("C?"), "It is in Asia."), (Dialogue.of("D?"), "Lek")]
    assert found == [*in_chat, ("C?", "Asia"), ("D?", "Lek")]
    assert batch_of("chat").portability_texts is None and batch_of("chat").portability_parts == []


def test_every_second_dialogue_is_put_into_another_context() -> None:
    texts: Any = batch_of("chat").in_scope_texts
    assert [question(prompt) for prompt, _ in texts] == [f"{kind}{number}?" for number in range(4) for kind in "QR"]
    plain, others = [prompt for prompt, _ in texts[::2]], [prompt for prompt, _ in texts[1::2]]
    assert plain == [Dialogue.of(f"Q{number}?") for number in range(4)]
    around = [prompt.messages[:-1] for prompt in others]
    assert len(set(around)) == 4 and around[-1] == (), "a system prompt, an earlier turn, both, and none"
    assert [answer for _, answer in texts] == [f"It is {number}." for number in range(4) for _ in "QR"]


@pytest.mark.parametrize("form", ["completion", "both"])
def test_completions_stay_as_they_are(form: Form) -> None:
    texts: Any = batch_of(form).in_scope_texts
    completed = [(prompt, answer) for prompt, answer in texts if isinstance(prompt, str)]
    assert completed == [(f"{kind}{number}?", str(number)) for number in range(4) for kind in "QR"]
    assert len(texts) == len(completed) * (2 if form == "both" else 1)


def test_what_the_editor_sees_and_the_probes_stand_alone() -> None:
    batch: Any = batch_of("chat")
    assert batch.edit_texts == [(Dialogue.of(f"Q{number}?"), f"It is {number}.") for number in range(4)]
    assert batch.locality_texts == [(Dialogue.of("L?"), "That.")] * 4


def test_only_rephrasings_are_scored_without_the_prompts() -> None:
    texts: Any = batch_of("chat", score_prompts=False).in_scope_texts
    assert [question(prompt) for prompt, _ in texts] == [f"R{number}?" for number in range(4)]
    assert [prompt == Dialogue.of(question(prompt)) for prompt, _ in texts] == [True, False, True, False]
