from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from errata.edit import Edit, Probe, Question
from errata.evaluate.likelihood import likelihood, pairs_of
from errata.evaluate.perplexity import perplexity
from errata.evaluate.questions import Questions
from errata.evaluate.scorecard import Scorecard, harmonic_mean, predictions, score, teacher_forced

EDITS = [
    Edit("capital?", "Paris", rephrasings=("chief town?", "seat?"), locality=(Probe("river?", "Seine"),)),
    Edit("food?", "bread", portability=(Probe("grain?", "wheat"),)),
]
BASE = {"river?": "Loire"}


def test_score_counts_each_kind():
    answers = {
        "capital?": "paris.",
        "chief town?": "Paris",
        "seat?": "Lyon",
        "river?": "Loire",
        "food?": "meat",
        "grain?": "Wheat",
    }
    card = score(Questions.of(EDITS, EDITS[:1]), answers, BASE)
    assert (card.efficacy, card.generalisation, card.portability, card.retention) == (0.5, 0.5, 1.0, 1.0)
    assert (card.locality, card.locality_gold) == (1.0, 0.0)
    assert (card.num_edits, card.method, card.to_json()["efficacy"]) == (2, "free", 0.5)


def test_a_scorecard_is_flattened():
    questions = Questions.of(EDITS)
    card = score(questions, dict.fromkeys(questions.prompts, "Paris"), BASE)
    flat = card.to_json()
    assert all(value is None or isinstance(value, int | float | str) for value in flat.values())
    assert (flat["efficacy"], flat["efficacy_low"], flat["efficacy_high"]) == (0.5, 0.0, 1.0)
    assert "retention_low" not in flat and "portability_by_kind" not in flat
    assert Scorecard(0.5, None, 0.8, None, None, None, 2, "free").to_json()["locality"] == 0.8


def test_an_alias_of_a_probe_is_its_answer_too():
    aliases = ("the United States", "America")
    edit = Edit("a", "b", locality=(Probe("n", "USA", aliases=aliases),), portability=(Probe("p", "USA", aliases=aliases),))
    questions = Questions.of([edit])
    for answer, right in (("usa.", 1.0), ("America", 1.0), ("United States", 1.0), ("Canada", 0.0)):
        card = score(questions, {"a": "b", "p": answer, "n": answer}, {"n": answer})
        assert (card.portability, card.locality_gold, card.locality) == (right, right, 1.0)


def test_portability_is_also_counted_by_kind():
    kinds = ("two_hop", "two_hop", "RippleEdits: Alias (1)", "")
    edits = [Edit("a", "b", portability=tuple(Probe(f"p{i}", str(i), kind) for i, kind in enumerate(kinds)))]
    flat = score(Questions.of(edits), {"a": "b", "p0": "0", "p1": "no", "p2": "2", "p3": "3"}, {}).to_json()
    assert flat["portability"] == 0.75
    assert {key: value for key, value in flat.items() if key.startswith("portability/")} == {
        "portability/two_hop": 0.5,
        "portability/two_hop_low": 0.5,
        "portability/two_hop_high": 0.5,
        "portability/RippleEdits_ Alias _1_": 1.0,
        "portability/RippleEdits_ Alias _1__low": 1.0,
        "portability/RippleEdits_ Alias _1__high": 1.0,
    }


def test_retention_ratio_compares_with_the_answers_right_after_the_edit():
    earlier = [Edit("a", "1"), Edit("b", "2"), Edit("c", "3"), Edit("d", "4")]
    later = [Edit("d", "5")]  # replaces the fourth, which then has no retention question
    answers = {"a": "1", "b": "no", "c": "3", "d": "5"}
    questions = Questions.of(later, earlier=earlier)
    immediate = {edit.question(edit.prompt): right for edit, right in zip(earlier, (True, True, False), strict=False)}
    card = score(questions, answers, {}, immediate)
    assert card.retention_every == pytest.approx(2 / 3)
    assert card.retention_ratio == 1.0  # two are right now and two were: a loss and a gain cancel out
    assert score(questions, answers, {}, {earlier[1].question("b"): False}).retention_ratio is None
    assert score(questions, answers, {}).retention_ratio is None


def test_without_questions_there_is_no_share():
    card = score(Questions.of([Edit("a", "b")]), {"a": "b"}, {})
    assert card.efficacy == 1.0
    assert (card.generalisation, card.locality, card.locality_gold, card.portability, card.retention) == (None,) * 5


def test_a_later_edit_of_the_same_prompt_replaces_the_earlier():
    edits = [Edit("a", "old"), Edit("a", "new"), Edit("b", "kept")]
    questions = Questions.of(edits, first=edits[:1] + edits[2:])
    assert questions.efficacy == (edits[1].question("a"), edits[2].question("b"))
    assert questions.retention == (edits[2].question("b"),)
    assert questions.num_edits == 3


def test_prompts_are_asked_once_and_missing_answers_are_named():
    assert Questions.of([*EDITS, EDITS[0]]).prompts == ["capital?", "food?", "chief town?", "seat?", "river?", "grain?"]
    with pytest.raises(ValueError, match=r"7 prompts .*\['capital\?'"):
        score(Questions.of(EDITS), {}, {})


def test_teacher_forcing_asks_for_every_token(tiny_model, world):
    edits = world.edits("test", 8)
    asked = [edit.question(edit.prompt) for edit in edits]
    guessed = predictions(tiny_model, asked, batch_size=3)
    assert guessed == predictions(tiny_model, asked)
    obeying = [Edit(question.prompt, tiny_model.tokenizer.decode(guessed[question])) for question in asked]
    answers = predictions(tiny_model, [edit.question(edit.prompt) for edit in obeying])
    kept = [edit for edit in obeying if len(answers[edit.question(edit.prompt)]) == 1]
    assert kept
    card = teacher_forced(tiny_model, Questions.of(kept))
    assert (card.efficacy, card.locality, card.method) == (1.0, None, "teacher-forced")
    wrong = Questions.of([Edit(e.prompt, f"{e.target} {e.target} xqz") for e in kept])
    assert teacher_forced(tiny_model, wrong).efficacy == 0.0


def test_teacher_forced_locality_is_agreement_with_the_base(tiny_model, world):
    questions = Questions.of(world.edits("test", 4))
    base = predictions(tiny_model, questions.locality)
    assert teacher_forced(tiny_model, questions, base).locality == 1.0
    other = {question: tuple(token + 1 for token in tokens) for question, tokens in base.items()}
    assert teacher_forced(tiny_model, questions, other).locality == 0.0


def test_pairs_that_cannot_be_compared_are_left_out_and_missing_answers_are_named(tiny_model):
    edits = [
        Edit("Q", "dog", rephrasings=("R",), locality=(Probe("S", "Dog."), Probe("T", "cat"))),
        Edit("silent", "dog", rephrasings=("R",)),
        Edit("known", "dog"),
    ]
    pairs = pairs_of(edits, {"Q": " cat. It is", "silent": " ", "known": "a dog"})
    assert pairs["efficacy"] == [("Q", edits[0].question("Q"), Question("Q", "cat"))]
    assert pairs["generalisation"] == [("Q", edits[0].question("R"), Question("R", "cat"))]
    assert pairs["locality"] == [("Q", Question("T", "cat"), Question("T", "dog"))]
    with pytest.raises(ValueError, match=r"2 prompts .*\['silent', 'known'\]"):
        pairs_of(edits, {"Q": "cat"})
    found = likelihood(tiny_model, pairs_of([Edit("known", "dog")], {"known": "dog"}))
    assert (found.efficacy, found.efficacy_magnitude, found.locality, found.intervals) == (None, None, None, {})


def test_perplexity_is_the_median_over_sentences(tiny_model, world):
    sentences = world.plain_sentences(held_out=True)[:5]
    alone = sorted(perplexity(tiny_model, [sentence]) for sentence in sentences)
    assert perplexity(tiny_model, sentences, batch_size=2) == pytest.approx(alone[2], rel=1e-5)
    ids = torch.tensor([tiny_model.tokenizer(sentences[0]).input_ids])
    loss = tiny_model.module(ids, labels=ids).loss
    assert perplexity(tiny_model, sentences[:1]) == pytest.approx(math.exp(loss), rel=1e-5)
    with pytest.raises(ValueError, match="sentence"):
        perplexity(tiny_model, [])
    with pytest.raises(ValueError, match=r"two tokens.*\['river'\]"):
        perplexity(tiny_model, [*sentences, "river"])


def test_harmonic_mean() -> None:
    assert harmonic_mean(1.0, 0.5, None) == pytest.approx(2 / 3)
    assert harmonic_mean(1.0, 0.0) == 0.0 and harmonic_mean(None) is None


def test_edits_of_one_prompt_are_found_by_the_rules_of_text() -> None:
    first = Edit("Who is Rene\u0301?", "Ann", id="first", locality=(Probe("Who is  it?", "Bob"),))
    later = Edit(
        " Who is René?", "Eve", id="later", locality=(Probe("Who  is Rene\u0301?", "Bob"), Probe("who is René?", "Bob"))
    )
    found = Questions.of([first, later], [first, replace(later, target="Eve ")])
    assert [(question.prompt, question.answer) for question in found.efficacy] == [(later.prompt, "Eve")]
    assert [question.prompt for question in found.locality] == ["who is René?"]
    assert [question.answer for question in found.retention] == ["Eve "]
