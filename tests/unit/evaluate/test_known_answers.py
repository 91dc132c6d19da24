"""Every measure on a toy model, against values computed by hand."""

from __future__ import annotations

import math
from statistics import harmonic_mean

import pytest

from errata.edit import Question
from errata.evaluate.fluency import consistencies, entropy_bits, fluencies
from errata.evaluate.likelihood import likelihood, pairs_of
from errata.evaluate.perplexity import Perplexities, perplexities, perplexity
from errata.evaluate.questions import Questions
from errata.evaluate.scorecard import predictions, score, teacher_forced
from errata.evaluate.teacher_forcing import teacher_force
from errata.model.generation import greedy, greedy_texts
from errata.model.language_model import LanguageModel
from tests.unit.evaluate.toy_model import EDITED, EDITS, IMMEDIATE, MAX_TOKENS, UNEDITED, toy


@pytest.fixture(scope="module")
def edited() -> LanguageModel:
    return toy(EDITED)


@pytest.fixture(scope="module")
def unedited() -> LanguageModel:
    return toy(UNEDITED)


def generated(model: LanguageModel) -> dict[str, str]:
    prompts = Questions.of(EDITS).prompts
    return dict(zip(prompts, greedy_texts(model, prompts, MAX_TOKENS), strict=True))


def test_the_toy_generates_what_its_table_says(edited: LanguageModel, unedited: LanguageModel) -> None:
    said, before = generated(edited), generated(unedited)
    assert [said[edit.prompt] for edit in EDITS] == ["paris", "blue nile delta", "mary shelley", "pure tin"]
    assert [before[edit.prompt] for edit in EDITS] == ["rome", "seine", "mary shelley", "tin"]
    assert [said[p] for p in ("hill", "pet", "drink")] == ["rome", "dog", "tea"]
    assert [before[p] for p in ("hill", "pet", "drink")] == ["rome", "dog", "milk"]


FREE = {  #                              right of all
    "efficacy": 1 / 4,  #                paris
    "generalisation": 1 / 3,  #          crown
    "locality": 2 / 3,  #                rome and dog as before, tea for milk
    "locality_gold": 2 / 3,  #           rome and tea are true, dog is not
    "portability": 2 / 4,  #             tricolor, emma
    "portability/two_hop": 1 / 2,  #     tricolor, not egypt
    "portability/alias": 0.0,  #         runs on
    "portability/reverse": 1.0,  #       emma
    "retention": 1 / 2,  #               of the first two: paris
    "retention_every": 1 / 3,  #         of the first three: paris
    "retention_ratio": 1 / 2,  #         one now, two right after they had been made
    "token_accuracy": None,
}
FORCED = {
    "efficacy": 2 / 4,  #                also blue nile, which need not end
    "generalisation": 2 / 3,  #          crown, stream
    "locality": 2 / 3,
    "locality_gold": 2 / 3,
    "portability": 3 / 4,  #             also the alias
    "portability/two_hop": 1 / 2,
    "portability/alias": 1.0,
    "portability/reverse": 1.0,
    "retention": 1.0,
    "retention_every": 2 / 3,
    "retention_ratio": None,
    "token_accuracy": (1 + 1 + 2 / 3 + 1 / 2) / 4,
    "token_accuracy_generalisation": (0 + 1 + 1) / 3,
    "token_accuracy_locality": (1 + 0 + 1) / 3,
}


@pytest.mark.parametrize("name", FREE)
def test_shares_by_free_generation_are_those_by_hand(edited: LanguageModel, unedited: LanguageModel, name: str) -> None:
    card = score(Questions.of(EDITS, EDITS[:2], EDITS[:3]), generated(edited), generated(unedited), IMMEDIATE)
    assert card.to_json()[name] == pytest.approx(FREE[name])


@pytest.mark.parametrize("name", FORCED)
def test_teacher_forced_shares_are_those_by_hand(edited: LanguageModel, unedited: LanguageModel, name: str) -> None:
    base = predictions(unedited, Questions.of(EDITS).locality)
    card = teacher_forced(edited, Questions.of(EDITS, EDITS[:2], EDITS[:3]), base)
    assert card.to_json()[name] == pytest.approx(FORCED[name])


LIKELIHOOD = {  #                        P(new)                 P(old), by the unedited model's answer
    "efficacy": 3 / 4,
    "efficacy_magnitude": (
        (1 / 2 - 1 / 4)  #               paris 1/2              rome 1/4
        + (1 / 2 - 1 / 4)  #             blue nile √(1/2·1/2)   seine 1/4
        + ((1 / 16) ** (1 / 3) - (1 / 2) ** (1 / 2))  # jane austen junior ∛(1/4·1/2·1/2); mary shelley √(1/2·1): lost
        + ((1 / 8) ** (1 / 2) - 1 / 4)  # pure gold √(1/2·1/4)   tin 1/4: won, though gold is never generated
    )
    / 4,
    "generalisation": 2 / 3,
    "generalisation_magnitude": ((1 / 4 - 1 / 2) + (1 / 2 - 1 / 4) + (1 / 2 - 1 / 4)) / 3,  # throne, crown, stream
    #                                    P(true)                P(new)
    "locality": 2 / 3,
    "locality_magnitude": (
        (1 / 2 - 1 / 4)  #               rome 1/2               paris 1/4
        + (1 / 8 - (3 / 8 / 4) ** (1 / 3))  # cat 1/8           jane austen junior ∛(3/8·1/2·1/2): lost
        + (1 / 2 - 0)  #                 tea 1/2                pure gold 0
    )
    / 3,
}


@pytest.mark.parametrize("name", LIKELIHOOD)
def test_likelihoods_are_those_by_hand(edited: LanguageModel, unedited: LanguageModel, name: str) -> None:
    found = likelihood(edited, pairs_of(EDITS, generated(unedited))).to_json()
    assert found[f"likelihood_{name}"] == pytest.approx(LIKELIHOOD[name], rel=1e-5)


def test_answers_that_differ_only_in_their_last_token_share_a_row_without_a_difference(edited: LanguageModel) -> None:
    pairs = [("seat", "paris"), ("seat", "lyon"), ("river", "blue nile"), ("river", "blue danube"), ("river", "seine")]
    asked = [Question(*pair) for pair in pairs]
    together = teacher_force(edited, asked)
    assert {question: math.exp(sum(made.log_probs)) for question, made in together.items()} == pytest.approx(
        dict(zip(asked, (1 / 2, 1 / 4, 1 / 4, 1 / 8, 1 / 4), strict=True)), rel=1e-5
    )
    assert [made.right for made in together.values()] == [True, False, True, False, False]
    for question in asked:
        (alone,) = teacher_force(edited, [question]).values()
        assert alone.argmax_tokens == together[question].argmax_tokens
        assert alone.target_tokens == together[question].target_tokens


def test_perplexities_are_those_by_hand(edited: LanguageModel) -> None:
    sentences = ["hill rome", "crown paris", "metal gold", "pet cat"]  # 1/p of the second word: 2, 2, 4, 8
    found = perplexities(edited, sentences)
    assert found.by_sentence == pytest.approx((2, 2, 4, 8), rel=1e-5)
    assert (found.mean, found.median, found.mean_log, found.max) == pytest.approx((4, 3, 128 ** (1 / 4), 8), rel=1e-5)
    assert perplexity(edited, sentences) == found.median
    # Two words follow the first: (1/2 · 1/2) ** (-1/2).
    assert perplexity(edited, ["river blue nile"]) == pytest.approx(2, rel=1e-5)


@pytest.mark.parametrize(
    ("text", "bigrams", "trigrams"),
    [
        ("a b c d", math.log2(3), 1.0),  # ab bc cd | abc bcd
        ("a b a b a", 1.0, math.log2(3) - 2 / 3),  # ab ba ab ba | aba bab aba: -(2/3 log2 2/3 + 1/3 log2 1/3)
        ("a a a a", 0.0, 0.0),
        ("a b", 0.0, 0.0),  # one bigram, no trigram
        ("", 0.0, 0.0),
    ],
)
def test_fluency_is_the_weighted_entropy_of_ngrams(text: str, bigrams: float, trigrams: float) -> None:
    assert (entropy_bits(text.split(), 2), entropy_bits(text.split(), 3)) == pytest.approx((bigrams, trigrams))
    assert fluencies({"p": text, "q": ""}) == pytest.approx({"p": (2 / 3 * bigrams + 4 / 3 * trigrams) / 2, "q": 0.0})


def test_consistency_is_the_cosine_of_tfidf_vectors() -> None:
    rare = math.log(3 / 2) + 1  # in one of two texts; a word in both weighs ln(3/3) + 1 = 1
    assert consistencies({"p": "red fox"}, {"p": "red hen"}) == pytest.approx({"p": 1 / (1 + rare**2)})
    assert consistencies({"p": "red fox"}, {"p": "fox red"}) == pytest.approx({"p": 1.0})
    assert consistencies({"p": "red fox", "other": "cow"}, {"p": "blue hen"}) == {"p": 0.0}
    assert consistencies({"p": "red fox", "q": ""}, {"p": "fox red", "q": "cow"}) == pytest.approx({"p": 1.0, "q": 0.0})
    assert consistencies({"p": ""}, {"p": ""}) == {"p": 0.0}
    assert consistencies({"p": "red"}, {"q": "red"}) == {}


def test_a_longer_text_does_not_end_where_the_answer_does(edited: LanguageModel) -> None:
    said = [edited.tokenizer.decode(ids) for ids in greedy(edited, ["metal"], 4) + greedy(edited, ["metal"], 4, min_tokens=4)]
    assert said == ["pure tin", "pure tin tin tin"]


def test_intervals_resample_edits(edited: LanguageModel, unedited: LanguageModel) -> None:
    """One of 4 edits is right: of 4 drawn, none is right in 32 % of the resamples, 3 or more in 5 %, all 4 in 0.4 %."""
    flat = score(Questions.of(EDITS), generated(edited), generated(unedited)).to_json()
    assert (flat["efficacy_low"], flat["efficacy_high"]) == (0.0, 0.75)
    forced = teacher_forced(edited, Questions.of(EDITS)).to_json()  # 2 of 4: none, and all, in 6 %
    assert (forced["efficacy_low"], forced["efficacy_high"]) == (0.0, 1.0)
    compared = likelihood(edited, pairs_of(EDITS, generated(unedited))).to_json()  # 3 of 4
    assert (compared["likelihood_efficacy_low"], compared["likelihood_efficacy_high"]) == (0.25, 1.0)
    for name in LIKELIHOOD:
        low, high = compared[f"likelihood_{name}_low"], compared[f"likelihood_{name}_high"]
        assert low < LIKELIHOOD[name] < high, name


def test_every_share_has_an_interval(edited: LanguageModel, unedited: LanguageModel) -> None:
    questions = Questions.of(EDITS, EDITS[:2], EDITS[:3])
    free = score(questions, generated(edited), generated(unedited), IMMEDIATE)
    forced = teacher_forced(edited, questions, predictions(unedited, questions.locality))
    for card, known in ((free, FREE), (forced, FORCED)):
        flat = card.to_json()
        names = {name for name, value in known.items() if value is not None} | {"harmonic_mean", "portability/alias"}
        for name in names:
            assert 0 <= flat[f"{name}_low"] <= flat[name] <= flat[f"{name}_high"], name
        assert card.harmonic_mean == harmonic_mean([known[name] for name in ("efficacy", "generalisation", "locality")])


def test_perplexity_is_compared_on_the_same_sentences(edited: LanguageModel) -> None:
    before = perplexities(edited, ["hill rome", "crown paris", "metal gold", "pet cat"])  # 2, 2, 4, 8
    now = Perplexities((*(2 * ppl for ppl in before.by_sentence[:3]), math.inf))
    assert before.ratios_to(before) == dict.fromkeys(now.ratios_to(before), 1.0)
    assert now.ratios_to(before) == pytest.approx(
        {"ppl_ratio": 2.0, "ppl_ratio_mean": math.inf, "ppl_ratio_mean_log": math.inf, "ppl_ratio_max": math.inf}
    )
    found = now.intervals_to(before)  # the broken sentence is in none of four draws in 32 %, in two or more in 26 %
    assert set(found) == {"ppl_ratio", "ppl_ratio_mean", "ppl_ratio_mean_log"}
    assert all(interval == pytest.approx((2.0, math.inf)) for interval in found.values())
