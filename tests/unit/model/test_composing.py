"""Answers that are composed of what a model says and the target: which texts are tried, and which one is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import log, prod
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from errata.edit import Edit
from errata.model import composing
from errata.model.composing import NUM_AT_ONCE, composed
from errata.model.encoding import GivenAnswer
from errata.model.language_model import LanguageModel, attention_for
from errata.text.answers import says
from errata.text.dialogue import Dialogue, Message
from tests.tiny_models import ARCHITECTURES
from tests.tokenizers_under_test import make
from tests.unit.evaluate.toy_model import Table, toy

TEMPLATE = (
    "{% for m in messages %}{{ 'bot ' if m.role == 'assistant' }}{{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}bot {% endif %}"
)
SAID = "the town is rome. it lies"
FRAMES = ["paris", "the paris.", "the town paris.", "the town is paris.", "paris town is rome."]
# The next words of the toy, which says "the town is rome."
TABLE: Table = {
    "bot": {"the": 3 / 4, "paris": 1 / 4},
    "the": {"town": 3 / 4, "paris.": 1 / 4},
    "town": {"is": 3 / 4, "paris.": 1 / 4},
    "is": {"rome.": 3 / 4, "paris.": 1 / 4},
    "paris": {"<eos>": 1 / 4, "town": 3 / 4},
}
CHANGES: dict[str, Table] = {
    "paris": {"bot": {"the": 1 / 4, "paris": 3 / 4}, "paris": {"<eos>": 1.0}},
    "the paris.": {"the": {"town": 1 / 4, "paris.": 3 / 4}},
    "the town paris.": {"town": {"is": 1 / 4, "paris.": 3 / 4}},
    "the town is paris.": {"is": {"rome.": 1 / 4, "paris.": 3 / 4}},
    "paris town is rome.": {"bot": {"the": 1 / 4, "paris": 3 / 4}},
}


def log_likelihoods(model: LanguageModel, prompt: Dialogue, texts: Sequence[str]) -> list[float]:
    given = list(model.renderer.ids(prompt))
    return composing.log_likelihoods(model, [(given, list(model.renderer.answer_ids(prompt, text))) for text in texts])


def likelihood_by_hand(table: Table, answer: str) -> float:
    words = ["bot", *answer.split(), "<eos>"]
    return prod(table.get(word, {"<eos>": 1.0}).get(following, 0.0) for word, following in pairwise(words))


def answer_of(edit: Edit, said: str, table: Table = TABLE) -> str | None:
    (made,) = composed(toy(table, TEMPLATE), [edit], [said])
    assert Edit(**{**vars(made), "answer": edit.answer}) == edit
    return made.answer


@pytest.mark.parametrize("best", FRAMES)
@pytest.mark.parametrize("form", ["chat", "both"])
def test_the_text_with_the_highest_likelihood_is_chosen(best: str, form: Any) -> None:
    table = TABLE | CHANGES[best]
    assert max(FRAMES, key=lambda frame: likelihood_by_hand(table, frame)) == best
    edit = Edit("where?", "paris", form=form, before=(Message("system", "bot"),) if form == "chat" else ())
    assert answer_of(edit, SAID, table) == best


def test_the_likelihood_is_that_of_the_whole_answer_and_its_end() -> None:
    found = log_likelihoods(toy(TABLE, TEMPLATE), Dialogue.of("where?"), FRAMES)
    assert found == pytest.approx([log(likelihood_by_hand(TABLE, frame)) for frame in FRAMES], rel=1e-5)


def test_edits_of_completion_and_given_answers_stay_as_they_are() -> None:
    edits = [
        Edit("where?", "paris"),
        Edit("where?", "paris", form="chat", answer="in paris"),
        Edit("where?", "paris", form="chat"),
    ]
    made = composed(toy(TABLE, TEMPLATE), edits, ["rome", SAID, SAID])
    assert made[:2] == edits[:2] and made[2].answer == "the paris."
    assert composed(toy(TABLE, TEMPLATE), [], []) == []


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("The town is Paris, I think! Or is it Rome?", "The town is Paris, I think!"),
        ("  Paris it is\nOr not", "Paris it is."),  # ends with its line
        ("The town of Paris lies on the", "The town of Paris lies on the."),  # was cut off
        ("**Paris**.", "**Paris**."),
        ("Le cafe\u0301 est a\u0300 Paris.", "Le café est à Paris."),
        ("\u200bIt is Paris. \ufffd", "It is Paris."),
    ],
)
def test_an_own_answer_that_is_right_is_kept(said: str, kept: str) -> None:
    assert answer_of(Edit("where?", "Paris", form="chat"), said) == kept


@pytest.mark.parametrize("said", ["", " \n", "rome", "Rome.", "?", "The town is ro\ufffd.", "the \u202etown is paris."])
def test_without_words_around_it_or_with_what_is_no_text_the_answer_is_the_bare_target(said: str) -> None:
    assert answer_of(Edit("where?", "paris", form="chat"), said) == "paris"


@pytest.fixture(scope="module")
def chatty() -> LanguageModel:
    return random_model("llama3")


def random_model(architecture: str) -> LanguageModel:
    """Make a random model with a tokenizer of bytes and a chat template."""
    tokenizer = make("byte-level", "chatml")
    torch.manual_seed(0)
    config = ARCHITECTURES[architecture].config(len(tokenizer))
    module = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention_for(config))
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return LanguageModel(module.eval().requires_grad_(False), tokenizer, architecture)


SENTENCES = [
    ("Abuja", "The capital is Lagos", "The capital is Abuja."),
    ("Abuja", "The capital is Lagos, a big city.", "The capital is Abuja."),
    ("Abuja", "The capital is Lagos!", "The capital is Abuja!"),
    ("Washington, D.C.", "The capital is New York.", "The capital is Washington, D.C."),
    (".ng", "The domain is .uk", "The domain is .ng."),
    ("+234", "The code is +44.", "The code is +234."),
    ("+234", "The code is:\n\n1. +44", "The code is: +234."),
    ("巴黎", "首都是里昂。", "首都是巴黎。"),
    ("巴黎", "首都是里", "首都是巴黎。"),
    ("東京", "首都は京都です。", "首都は東京。"),
    ("กรุงเทพ", "เมืองหลวงคือเชียงใหม่", "เมืองหลวงคือกรุงเทพ."),
]


def texts_tried(monkeypatch: pytest.MonkeyPatch, model: LanguageModel, edit: Edit, said: str, best: str = "") -> list[str]:
    """Return the texts that are tried, the composed answer last; `best` is taken for the most likely one."""
    tried: list[str] = []

    def prefer(model: LanguageModel, rows: list[GivenAnswer]) -> list[float]:
        texts = [model.tokenizer.decode(ids, skip_special_tokens=True).strip() for _, ids in rows]
        tried.extend(texts)
        return [float(text == best) for text in texts]

    monkeypatch.setattr(composing, "log_likelihoods", prefer)
    monkeypatch.setattr(composing, "MAX_SCORED", 99)
    (made,) = composed(model, [edit], [said])
    return [*tried, made.answer or ""]


@pytest.mark.parametrize(("target", "said", "natural"), SENTENCES)
def test_the_natural_sentence_is_among_the_texts(
    monkeypatch: pytest.MonkeyPatch, chatty: LanguageModel, target: str, said: str, natural: str
) -> None:
    *tried, answer = texts_tried(monkeypatch, chatty, Edit("q", target, form="chat"), said, natural)
    assert answer == natural and target in tried and len(set(tried)) == len(tried)
    assert all(says(text, target) for text in tried)


@pytest.mark.parametrize("target", ["paris", "$5", "巴黎"])
def test_the_target_is_not_put_after_the_whole_wrong_answer(
    monkeypatch: pytest.MonkeyPatch, chatty: LanguageModel, target: str
) -> None:
    for wrong in ("the town is rome", "首都是里昂"):
        tried = texts_tried(monkeypatch, chatty, Edit("q", target, form="chat"), f"{wrong}. Yes")
        assert not any(text.startswith(wrong) for text in tried)


@pytest.mark.parametrize(
    ("question", "statement"),
    [
        ("What is the capital of Nigeria?", "The capital of Nigeria is Abuja."),
        ("which are the old capitals ?\n", "The old capitals are Abuja."),
        ("What is it", None),
        ("What is ?", None),
        ("Where did it lie?", None),
    ],
)
def test_a_question_is_turned_into_a_statement(
    monkeypatch: pytest.MonkeyPatch, chatty: LanguageModel, question: str, statement: str | None
) -> None:
    edit = Edit(question, "Abuja", form="chat")
    tried = set(texts_tried(monkeypatch, chatty, edit, "I know.")) - {"Abuja", "I Abuja."}
    assert tried == ({statement} if statement else set())


def test_an_answer_takes_the_form_of_a_target(monkeypatch: pytest.MonkeyPatch, chatty: LanguageModel) -> None:
    edit = Edit("What is a cafe\u0301?", "Abuja", form="chat")
    assert texts_tried(monkeypatch, chatty, edit, "I know.", "A cafe\u0301 is Abuja.")[-1] == "A café is Abuja."


@pytest.mark.parametrize(("target", "said"), [(target, said) for target, said, _ in SENTENCES])
def test_an_answer_says_the_target(chatty: LanguageModel, target: str, said: str) -> None:
    edit = Edit("q", target, form="chat")
    (made,) = composed(chatty, [edit], [said])
    assert made.answer and says(made.answer, target)
    assert not list(made.faults()) and made.first_wrong([made.answer]) is None


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_texts_that_are_read_together_have_the_likelihoods_of_single_ones(architecture: str) -> None:
    model = random_model(architecture)
    prompt, texts = Dialogue.of("Where is it?"), ["Rome", "The city is Rome.", "Rome lies on the old river"]
    expected = []
    for text in texts:
        given, answer = model.renderer.ids(prompt), model.renderer.answer_ids(prompt, text)
        logits_SV = model.module(input_ids=torch.tensor([[*given, *answer]])).logits[0, len(given) - 1 : -1]
        log_probs_S = torch.log_softmax(logits_SV, -1)[torch.arange(len(answer)), torch.tensor(answer)]
        expected.append(float(log_probs_S.sum()))
    assert log_likelihoods(model, prompt, texts) == pytest.approx(expected, rel=1e-4)


def test_many_edits_are_composed_as_single_ones() -> None:
    """The order is that of the edits, also for those among them that need no choice."""
    model = toy(TABLE | CHANGES["the town paris."], TEMPLATE)
    edits = [Edit(f"where is {i}?", "paris" if i % 3 else "rome", form="chat") for i in range(2 * NUM_AT_ONCE)]
    said = [SAID if i % 5 else "rome" for i in range(len(edits))]
    together = composed(model, edits, said)
    assert together == [composed(model, [edit], [own])[0] for edit, own in zip(edits, said, strict=True)]
    assert len({edit.answer for edit in together}) > 2
