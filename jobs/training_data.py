"""Edits and texts that a policy is trained on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from errata.datasets.reader import read_edits
from errata.datasets.skip_report import SkipReport
from errata.home import home
from errata.model.encoding import Encoded, encode, encode_text
from errata.model.language_model import LanguageModel
from errata.testbed.corpus import FOLDS
from jobs.plan import Plan

NUM_TEXTS = 8192  # question-answer pairs and sentences on which the keys' second moment is measured


def splits(plan: Plan) -> tuple[str, ...]:
    """Name the streams of edits that training reads."""
    return FOLDS if plan.cross_fit else ("train",)


def edits_file(plan: Plan, split: str = "train") -> str:
    """Path of a stream of edits, or the URI that the plan names."""
    return plan.edits or str(home() / "streams" / f"{plan.corpus.name}-{split}.parquet")


def texts(plan: Plan, model: LanguageModel) -> list[Encoded]:
    """Encode at most `NUM_TEXTS` texts that the model has learned, for the second moment of its keys."""
    return encoded_lines(plan, model, lines(plan, NUM_TEXTS))


def lines(plan: Plan, limit: int) -> list[list[str]]:
    """Draw at most `limit` texts that the model has learned, or of the plan's part of them.

    A text is a question with its answer, or a sentence split after its first word.
    """
    if plan.text:
        found = [line.split(maxsplit=1) for line in Path(plan.text).read_text().splitlines() if len(line.split()) > 1]
    else:
        found = [list(pair) for pair in plan.corpus.sentences(plan.metric_part or None)]
        found += [sentence.split(" ", 1) for sentence in plan.corpus.plain_sentences()]
    return random.Random(plan.seed).sample(found, limit) if len(found) > limit else found


def encoded_lines(plan: Plan, model: LanguageModel, chosen: Sequence[list[str]]) -> list[Encoded]:
    """Encode texts in batches of 64. Lines of a text file are truncated to the model's context."""
    chunks = [chosen[i : i + 64] for i in range(0, len(chosen), 64)]
    if plan.text:
        joined = ([" ".join(line) for line in chunk] for chunk in chunks)
        return [encode_text(model.tokenizer, chunk, model.max_tokens, model.device) for chunk in joined]
    return [encode(model.renderer, [a for a, _ in chunk], [b for _, b in chunk], model.device) for chunk in chunks]


def check_data(plan: Plan) -> None:
    """Raise `ValueError` if a plan without a corpus lacks a file, or its edits are of another dataset."""
    wanted = "edits" if plan.dataset == "any" else f"edits of {plan.dataset}"
    if not plan.edits:
        raise ValueError(f"plan {plan.name} trains on {wanted}: name a file, edits=PATH (docs/data.md)")
    if plan.editor.metric_strength and not plan.text:
        raise ValueError(f"plan {plan.name} measures its key preconditioner on text: name a file of sentences, text=PATH")
    skip_report = SkipReport()
    next(read_edits(plan.edits, skip_report=skip_report), None)
    found = [name for name in skip_report.formats.values() if not name.startswith((plan.dataset, "plain"))]
    if found and plan.dataset != "any":
        raise ValueError(
            f"plan {plan.name} has the layers for {plan.dataset}, and {plan.edits} is of the format {found[0]}: "
            "choose another plan (`python jobs/train.py plans`), or dataset=any"
        )
