"""Answers in the model's own manner: the sentence that it would say, with the target in the place of what is wrong.

A bare target ("India") as the whole answer to a chat question teaches a model a style, which then spreads to other answers. The
text that changes least is the model's own answer up to the wrong part, and then the target. Which part is wrong, the unedited
model tells: a target of the right kind is likely in the right place. Several places are tried; the likelihood of the whole
text decides.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import torch

from errata.edit import Edit, EditRejected
from errata.model.language_model import LanguageModel
from errata.text.answers import first_sentence, says
from errata.text.dialogue import Dialogue

MAX_PLACES = 16  # in the first clause of an answer
MAX_SCORED = 3  # of the texts, the whole likelihood is computed of these
_CLAUSE = re.compile(r"[,;:(]\s|[，；：（]")
# A word or, in Thai, Chinese and Japanese, a letter: these write without blanks.
_HAN_OR_KANA = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")
_WITHOUT_BLANKS = r"\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_WITHOUT_BLANKS}]|[^\s{_WITHOUT_BLANKS}]+")
_QUESTION = re.compile(r"(?:what|who|which|where)\s+(is|are|was|were)\s+(\w.*?)\s*\?$", re.IGNORECASE | re.DOTALL)
_END_SIGNS = ".!?。！？"


def composed(model: LanguageModel, edits: Sequence[Edit], said: Sequence[str]) -> list[Edit]:
    """Complete the edits in chat that have no `answer`, given what the model says to each now; others are returned as given."""
    return [
        _with_answer(model, edit, own) if edit.answer is None and edit.form != "completion" else edit
        for edit, own in zip(edits, said, strict=True)
    ]


def _with_answer(model: LanguageModel, edit: Edit, said: str) -> Edit:
    dialogue = next(prompt for prompt in edit.prompts if isinstance(prompt, Dialogue))
    own, *frames = _frames(edit.prompt, edit.target, said)
    written = _written(model, dialogue, [own, *frames])
    if not frames or own not in written or len(written) == 1:
        return replace(edit, answer=edit.target if frames else own)
    del written[own]
    reading = ReadAnswer(model, dialogue, model.renderer.answer_ids(dialogue, _CLAUSE.split(own)[0]))
    likely = sorted(written, key=lambda text: reading.log_prob_until_changed(written[text]), reverse=True)[:MAX_SCORED]
    scores = reading.log_probs([written[text] for text in likely])
    return replace(edit, answer=likely[scores.index(max(scores))])


def _written(model: LanguageModel, dialogue: Dialogue, texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the tokens of each text as an answer, without those that the tokenizer cannot write."""
    found = {}
    for text in texts:
        with suppress(EditRejected):
            found[text] = model.renderer.answer_ids(dialogue, text)
    return found


class ReadAnswer:
    """The model's reading of a dialogue with its own answer, given as tokens, and of other answers to the same dialogue."""

    @torch.no_grad()
    def __init__(self, model: LanguageModel, dialogue: Dialogue, own: Sequence[int]) -> None:
        from transformers import DynamicCache

        self.model, self.given, self.own = model, list(model.renderer.ids(dialogue)), own
        self.cache = DynamicCache(config=model.module.config)
        given_1S, own_1S = (torch.tensor([list(ids)], device=model.device) for ids in (self.given, own))
        first_1V = model.module(given_1S, past_key_values=self.cache, logits_to_keep=1).logits[:, -1]
        rest_SV = model.module(own_1S, past_key_values=copy.deepcopy(self.cache)).logits[0]
        self.log_probs_SV = torch.log_softmax(torch.cat([first_1V, rest_SV]).float(), -1)

    def log_prob_until_changed(self, answer: Sequence[int]) -> float:
        """Return log p of an answer's tokens up to the first one that the model's own answer does not have."""
        shared = min(len(answer), len(self.own))
        same = next((i for i in range(shared) if answer[i] != self.own[i]), shared)
        ids = torch.tensor(answer[: same + 1], device=self.log_probs_SV.device)
        return float(self.log_probs_SV[: len(ids)].gather(1, ids[:, None]).sum())

    @torch.no_grad()
    def log_probs(self, answers: Sequence[Sequence[int]]) -> list[float]:
        """Return log p of each whole answer; the dialogue is not read again. Called once."""
        device, width, pad = self.model.device, max(map(len, answers)), self.model.renderer.pad_id
        ids_BS = torch.tensor([[*ids, *[pad] * (width - len(ids))] for ids in answers], device=device)
        mask_BS = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in answers], device=device)
        self.cache.batch_repeat_interleave(len(answers))
        whole_BS = torch.cat([mask_BS.new_ones((len(answers), len(self.given))), mask_BS], 1)
        logits_BSV = self.model.module(ids_BS, attention_mask=whole_BS, past_key_values=self.cache).logits[:, :-1]
        first_BV = self.log_probs_SV[:1].expand(len(answers), -1)
        log_probs_BSV = torch.cat([first_BV[:, None], torch.log_softmax(logits_BSV.float(), -1)], 1)
        return [float(total) for total in (log_probs_BSV.gather(-1, ids_BS[..., None])[..., 0] * mask_BS).sum(1)]


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
