from __future__ import annotations

import math

import pytest
import torch

from errata.edit import Edit, Probe
from errata.evaluate import Questions, normalise_answer, perplexity, predictions, prompts_of, score, teacher_forced

EDITS = [
    Edit("capital?", "Paris", rephrasings=("chief town?", "seat?"), locality=(Probe("river?", "Seine"),)),
    Edit("food?", "bread", portability=(Probe("grain?", "wheat"),)),
]
BASE = {"river?": "Loire"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" The Eiffel Tower.", "eiffel tower"),
        ("Paris\nQuestion: what", "paris"),
        ("Paris. It lies on", "paris"),
        ("\n 3.5 metres", "35 metres"),
        ("an  apple, a pear!", "apple pear"),
        ("", ""),
        ("Theatre", "theatre"),
    ],
)
def test_normalise_answer(text, expected):
    assert normalise_answer(text) == expected


def test_score_counts_each_kind():
    answers = {
        "capital?": "paris.",
        "chief town?": "Paris",
        "seat?": "Lyon",
        "river?": "Loire",
        "food?": "meat",
        "grain?": "Wheat",
    }
    card = score(EDITS, answers, BASE, first=EDITS[:1])
    assert (card.efficacy, card.generalisation, card.portability, card.retention) == (0.5, 0.5, 1.0, 1.0)
    assert (card.locality, card.locality_gold) == (1.0, 0.0)
    assert (card.num_edits, card.method, card.to_json()["efficacy"]) == (2, "free", 0.5)


def test_without_questions_there_is_no_share():
    card = score([Edit("a", "b")], {"a": "b"}, {})
    assert card.efficacy == 1.0
    assert (card.generalisation, card.locality, card.locality_gold, card.portability, card.retention) == (None,) * 5


def test_a_later_edit_of_the_same_prompt_replaces_the_earlier():
    edits = [Edit("a", "old"), Edit("a", "new"), Edit("b", "kept")]
    questions = Questions.of(edits, first=edits[:1] + edits[2:])
    assert questions.efficacy == (("a", "new"), ("b", "kept"))
    assert questions.retention == (("b", "kept"),)
    assert questions.num_edits == 3


def test_prompts_are_asked_once_and_missing_answers_are_named():
    assert prompts_of([*EDITS, EDITS[0]]) == ["capital?", "food?", "chief town?", "seat?", "river?", "grain?"]
    with pytest.raises(ValueError, match=r"7 prompts: \['capital\?'"):
        score(EDITS, {}, {})


def test_teacher_forced_asks_for_every_token(tiny_model, world):
    edits = world.edits("test", 8)
    asked = [(edit.prompt, edit.target) for edit in edits]
    guessed = predictions(tiny_model, asked, batch_size=3)
    assert guessed == predictions(tiny_model, asked)
    obeying = [Edit(e.prompt, tiny_model.tokenizer.decode(guessed[e.prompt, e.target])) for e in edits]
    answers = predictions(tiny_model, [(e.prompt, e.target) for e in obeying])
    kept = [e for e in obeying if len(answers[e.prompt, e.target]) == 1]
    assert kept
    card = teacher_forced(tiny_model, kept)
    assert (card.efficacy, card.locality, card.method) == (1.0, None, "teacher-forced")
    assert teacher_forced(tiny_model, [Edit(e.prompt, f"{e.target} {e.target} xqz") for e in kept]).efficacy == 0.0


def test_teacher_forced_locality_is_agreement_with_the_base(tiny_model, world):
    edits = world.edits("test", 4)
    base = predictions(tiny_model, Questions.of(edits).locality)
    assert teacher_forced(tiny_model, edits, base=base).locality == 1.0
    other = {question: tuple(token + 1 for token in tokens) for question, tokens in base.items()}
    assert teacher_forced(tiny_model, edits, base=other).locality == 0.0


def test_perplexity_is_the_median_over_sentences(tiny_model, world):
    sentences = world.plain_sentences(held_out=True)[:5]
    alone = sorted(perplexity(tiny_model, [sentence]) for sentence in sentences)
    assert perplexity(tiny_model, sentences, batch_size=2) == pytest.approx(alone[2], rel=1e-5)
    ids = torch.tensor([tiny_model.tokenizer(sentences[0]).input_ids])
    loss = tiny_model.module(ids, labels=ids).loss
    assert perplexity(tiny_model, sentences[:1]) == pytest.approx(math.exp(loss), rel=1e-5)
    with pytest.raises(ValueError, match="sentence"):
        perplexity(tiny_model, [])
