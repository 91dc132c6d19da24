"""Answers in the model's own manner: the sentence that it would say, with the target in the place of what is wrong.

A bare target ("India") as the whole answer to a chat question teaches a model a style, which then spreads to other answers. The
text that changes least is the model's own answer up to the wrong part, and then the target. Which part is wrong, the unedited
model tells: a target of the right kind is likely in the right place. Several places are tried; the likelihood of the whole
text decides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import torch

from errata.edit import Edit
from errata.model.language_model import LanguageModel
from errata.text.answers import first_sentence, says
from errata.text.dialogue import Dialogue

MAX_PLACES = 16  # in the first clause of an answer
_CLAUSE = re.compile(r"[,;:(]\s|[，；：（]")
# A word or, in Thai, Chinese and Japanese, a letter: these write without blanks.
_HAN_OR_KANA = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")
_WITHOUT_BLANKS = r"\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_WITHOUT_BLANKS}]|[^\s{_WITHOUT_BLANKS}]+")
_END_SIGNS = ".!?。！？"


def composed(model: LanguageModel, edits: Sequence[Edit], said: Sequence[str]) -> list[Edit]:
    """Complete the edits in chat that have no `answer`, given what the model says to each now; others are returned as given."""
    return [_with_answer(model, edit, own) if _is_open(edit) else edit for edit, own in zip(edits, said, strict=True)]


def _with_answer(model: LanguageModel, edit: Edit, said: str) -> Edit:
    dialogue = next(prompt for prompt in edit.prompts if isinstance(prompt, Dialogue))
    frames = _frames(edit.target, said)
    scores = log_likelihoods(model, dialogue, frames) if len(frames) > 1 else [0.0]
    return replace(edit, answer=max(zip(scores, frames, strict=True))[1])


def _is_open(edit: Edit) -> bool:
    return edit.answer is None and edit.form != "completion"


def _frames(target: str, said: str) -> list[str]:
    """List texts that say the target: the model's first clause, cut before each of its words and ended by the target.

    The words after the first one stay, too, where the target takes its place ("Abuja is the capital").
    """
    sentence = first_sentence(said, target).strip()
    if says(sentence, target):
        return [sentence + _end_of(said, sentence)]
    places = [match.start() for match in _WORD.finditer(_CLAUSE.split(sentence)[0])][:MAX_PLACES]
    end = _end_of(said, sentence) if len(places) > 1 else ""
    end_of_target = "" if target.endswith(tuple(_END_SIGNS)) else end
    found = [target, *(f"{sentence[:place]}{target}{end_of_target}" for place in places[1:])]
    if sentence.endswith(":"):  # A list begins, whose first item is on the next line.
        found.append(f"{sentence} {target}{end_of_target}")
    if len(places) > 2:
        blank = " " if sentence[places[1] - 1].isspace() else ""
        found.append(f"{target}{blank}{sentence[places[1] :]}{end}")
    return [frame for frame in dict.fromkeys(found) if says(frame, target)]


def _end_of(said: str, sentence: str) -> str:
    """Return the sign that ends the sentence, a full stop if it was cut off before one."""
    sign = said.strip()[len(sentence) : len(sentence) + 1]
    if sign and sign in _END_SIGNS:
        return sign
    return "。" if _HAN_OR_KANA.search(sentence[-1:]) else "."


@torch.no_grad()
def log_likelihoods(model: LanguageModel, prompt: Dialogue, texts: Sequence[str]) -> list[float]:
    """Return log p of each whole answer to one prompt, its end token included; the prompt is read once for all."""
    from transformers import DynamicCache

    rows = model.renderer.rows([(prompt, text) for text in texts])
    given, pad = rows[0][0], model.renderer.pad_id
    width = max(len(answer) for _, answer in rows)
    ids_BS = torch.tensor([answer + [pad] * (width - len(answer)) for _, answer in rows], device=model.device)
    is_answer_BS = torch.tensor([[1] * len(answer) + [0] * (width - len(answer)) for _, answer in rows], device=model.device)
    cache = DynamicCache(config=model.module.config)
    first = model.module(input_ids=torch.tensor([given], device=model.device), past_key_values=cache, logits_to_keep=1)
    cache.batch_repeat_interleave(len(rows))
    mask_BS = torch.cat([torch.ones((len(rows), len(given)), dtype=torch.long, device=model.device), is_answer_BS], 1)
    rest = model.module(input_ids=ids_BS, attention_mask=mask_BS, past_key_values=cache)
    logits_BSV = torch.cat([first.logits[:, -1:].expand(len(rows), -1, -1), rest.logits[:, :-1]], 1).float()
    log_probs_BS = torch.log_softmax(logits_BSV, -1).gather(-1, ids_BS[..., None])[..., 0]
    return [float(total) for total in (log_probs_BS * is_answer_BS).sum(1)]
