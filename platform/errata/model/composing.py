"""Answers in the model's own manner: the sentence that it would say, with the target in the place of what is wrong.

A bare target ("India") as the whole answer to a chat question teaches a model a style, which then spreads to other answers. The
text that changes least is the model's own answer up to the wrong part, and then the target. Which part is wrong, the unedited
model tells: a target of the right kind is likely in the right place. Several places are tried; the likelihood of the whole
text decides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from errata.edit import Edit, EditRejected
from errata.model.encoding import GivenAnswer, answer_log_probs, answer_nll
from errata.model.language_model import LanguageModel
from errata.model.packing import packed
from errata.text.answers import first_sentence, says
from errata.text.dialogue import Dialogue
from errata.text.rules import cleaned, text_fault

MAX_PLACES = 16  # in the first clause of an answer
MAX_SCORED = 3  # of the texts, the whole likelihood is computed of these
NUM_AT_ONCE = 8  # edits whose texts are read together
_CLAUSE = re.compile(r"[,;:(]\s|[，；：（]")
# A word or, in Thai, Chinese and Japanese, a letter: these write without blanks.
_HAN_OR_KANA = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")
_WITHOUT_BLANKS = r"\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_WITHOUT_BLANKS}]|[^\s{_WITHOUT_BLANKS}]+")
_QUESTION = re.compile(r"(?:what|who|which|where)\s+(is|are|was|were)\s+(\w.*?)\s*\?$", re.IGNORECASE | re.DOTALL)
_END_SIGNS = ".!?。！？"


def composed(model: LanguageModel, edits: Sequence[Edit], said: Sequence[str]) -> list[Edit]:
    """Complete the edits in chat that have no `answer`, given what the model says to each now; others are returned as given."""
    without = [i for i, edit in enumerate(edits) if edit.answer is None and edit.form != "completion"]
    found = {i: _choice_for(model, edits[i], said[i]) for i in without}
    open_choices = [(i, choice) for i, choice in found.items() if isinstance(choice, _Choice)]
    answers = {i: answer for i, answer in found.items() if isinstance(answer, str)}
    for begin in range(0, len(open_choices), NUM_AT_ONCE):
        part = open_choices[begin : begin + NUM_AT_ONCE]
        chosen = _likeliest(model, [choice for _, choice in part])
        answers |= {i: answer for (i, _), answer in zip(part, chosen, strict=True)}
    return [replace(edit, answer=cleaned(answers[i])) if i in answers else edit for i, edit in enumerate(edits)]


@dataclass(frozen=True)
class _Choice:
    """Texts that may answer a dialogue, as tokens, and the first clause of the model's own answer."""

    given: list[int]
    own: list[int]
    texts: dict[str, list[int]]


def _choice_for(model: LanguageModel, edit: Edit, said: str) -> _Choice | str:
    """Return the texts among which likelihood chooses, or the only one.

    What the model says is learnt, too, so the rules of text hold for it: a sentence that they refuse is no part of a text.
    """
    said = cleaned(said)
    if text_fault(first_sentence(said, edit.target)) is not None:
        return edit.target
    dialogue = next(prompt for prompt in edit.prompts if isinstance(prompt, Dialogue))
    own, *frames = _frames(edit.prompt, edit.target, said)
    texts = dict[str, list[int]]()
    for text in (own, *(frame for frame in frames if text_fault(frame) is None)):
        with suppress(EditRejected):  # The tokenizer cannot write it.
            texts[text] = list(model.renderer.answer_ids(dialogue, text))
    if not frames or own not in texts or len(texts) == 1:
        return edit.target if frames else own
    del texts[own]
    first_clause = model.renderer.answer_ids(dialogue, _CLAUSE.split(own)[0])
    return _Choice(list(model.renderer.ids(dialogue)), list(first_clause), texts)


def _likeliest(model: LanguageModel, choices: Sequence[_Choice]) -> list[str]:
    """Return the likeliest text of each choice. The model's own answers are read once, and then the best texts."""
    likely = [
        sorted(choice.texts, key=lambda text: _until_changed(reading_SV, choice.own, choice.texts[text]), reverse=True)
        for choice, reading_SV in zip(choices, _readings(model, choices), strict=True)
    ]
    rows = [(i, text) for i, texts in enumerate(likely) for text in texts[:MAX_SCORED]]
    found = log_likelihoods(model, [(choices[i].given, choices[i].texts[text]) for i, text in rows])
    best: dict[int, tuple[float, str]] = {}
    for (i, text), score in zip(rows, found, strict=True):
        if i not in best or score > best[i][0]:
            best[i] = score, text
    return [best[i][1] for i in range(len(choices))]


@torch.no_grad()
def _readings(model: LanguageModel, choices: Sequence[_Choice]) -> list[Tensor]:
    """Return log p of all tokens, [length, V], at each place of the model's own answers."""
    texts = packed(model, [(choice.given, choice.own) for choice in choices])
    return list(answer_log_probs(model.module, texts).split(texts.answer_lengths))


@torch.no_grad()
def log_likelihoods(model: LanguageModel, rows: Sequence[GivenAnswer]) -> list[float]:
    """Return log p of each whole answer, given as (prompt tokens, answer tokens)."""
    texts = packed(model, rows)
    nll_T = answer_nll(answer_log_probs(model.module, texts), texts)
    return [-float(own_T.sum()) for own_T in nll_T.cpu().split(texts.answer_lengths)]


def _until_changed(reading_SV: Tensor, own: Sequence[int], answer: Sequence[int]) -> float:
    """Return log p of an answer's tokens up to the first one that the model's own answer, which was read, does not have."""
    shared = min(len(answer), len(own))
    same = next((i for i in range(shared) if answer[i] != own[i]), shared)
    ids = torch.tensor(answer[: same + 1][: len(own)], device=reading_SV.device)
    return float(reading_SV[: len(ids)].gather(1, ids[:, None]).sum())


def _frames(question: str, target: str, said: str) -> list[str]:
    """Return the model's answer, and texts that say the target: its first clause, cut before each word and ended by the target.

    The words after the first one stay, too, where the target takes its place ("Abuja is the capital"), and a question that can
    be turned into a statement is one ("What is the capital of Peru?": "The capital of Peru is Lima."). An answer that says the
    target is the only text, and so is the target where there is no answer.
    """
    sentence = first_sentence(said, target).strip()
    whole = sentence + _end_of(said, sentence)
    if says(sentence, target):
        return [whole]
    places = [match.start() for match in _WORD.finditer(_CLAUSE.split(sentence)[0])][:MAX_PLACES]
    if not places:
        return [target]
    end = _end_of(said, sentence) if len(places) > 1 else ""
    end_of_target = "" if target.endswith(tuple(_END_SIGNS)) else end
    found = [target, *(f"{sentence[:place]}{target}{end_of_target}" for place in places[1:])]
    if sentence.endswith(":"):  # A list begins, whose first item is on the next line.
        found.append(f"{sentence} {target}{end_of_target}")
    if len(places) > 2:
        blank = " " if sentence[places[1] - 1].isspace() else ""
        found.append(f"{target}{blank}{sentence[places[1] :]}{end}")
    if turned := _QUESTION.match(question.strip()):
        verb, rest = turned.groups()
        found.append(f"{rest[0].upper()}{rest[1:]} {verb.lower()} {target}{end_of_target or '.'}")
    return [whole, *(frame for frame in dict.fromkeys(found) if says(frame, target))]


def _end_of(said: str, sentence: str) -> str:
    """Return the sign that ends the sentence, a full stop if it was cut off before one."""
    sign = said.strip()[len(sentence) : len(sentence) + 1]
    if sign and sign in _END_SIGNS:
        return sign
    return "。" if _HAN_OR_KANA.search(sentence[-1:]) else "."
