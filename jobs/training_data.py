"""Edits and texts that a policy is trained on."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from errata.datasets.reader import read_edits
from errata.datasets.skip_report import SkipReport
from errata.edit import Edit
from errata.editors.hypernet.hypernet_editor import HypernetworkEditor
from errata.home import home
from errata.model.encoding import Encoded, encode, encode_text
from errata.model.language_model import LanguageModel, load
from errata.testbed.corpus import FOLDS, texts_of
from errata.testbed.known_facts import KnownFacts
from errata.testbed.world_facts import WorldFacts
from errata.text.dialogue import Prompt
from jobs.plan import Plan

NUM_CORRECTIONS = 200  # edits of a split, of facts that the model gets wrong; to find these, it is asked


def splits(plan: Plan) -> tuple[str, ...]:
    """Name the streams of edits that training reads."""
    return FOLDS if plan.cross_fit else ("train",)


def edits_file(plan: Plan, split: str = "train") -> str:
    """Path of a stream of edits, or the URI that the plan names. Facts of the world are such as one model gets wrong."""
    of_model = f"-{plan.model_dir.name}-{plan.seed}" if isinstance(plan.corpus, WorldFacts) else ""
    return plan.edits or str(home() / "streams" / f"{plan.corpus.name}{of_model}-{split}.parquet")


def edits_of(plan: Plan, split: str) -> Iterable[Edit]:
    """Return the edits of a split of the plan's corpus: of facts of the world, such as the model gets wrong."""
    corpus = plan.corpus
    if not isinstance(corpus, WorldFacts):
        return corpus.stream(split)
    known = KnownFacts.beside(load(plan.model_dir, getattr(torch, plan.dtype)))
    wrong = known.wrong(corpus.facts(split), NUM_CORRECTIONS, plan.seed)
    return corpus.edits(split, len(wrong), plan.seed, of=wrong)


def texts(plan: Plan, model: LanguageModel) -> list[Encoded]:
    """Encode at most the plan's `num_texts` texts that the model has learned, for the second moment of its keys."""
    return encoded_lines(plan, model, lines(plan, plan.num_texts))


def lines(plan: Plan, limit: int) -> list[tuple[Prompt, str]]:
    """Draw at most `limit` texts that the model has learned, or of the plan's part of them.

    A text is a question with its answer, or a sentence split after its first word.
    """
    if not plan.text:
        return texts_of(plan.corpus, plan.metric_part or None, limit, plan.seed)
    split = [line.split(maxsplit=1) for line in Path(plan.text).read_text().splitlines()]
    found: list[tuple[Prompt, str]] = [(words[0], words[1]) for words in split if len(words) > 1]
    return random.Random(plan.seed).sample(found, limit) if len(found) > limit else found


def encoded_lines(plan: Plan, model: LanguageModel, chosen: Sequence[tuple[Prompt, str]]) -> list[Encoded]:
    """Encode texts in batches of 64. Lines of a text file are truncated to the model's context."""
    chunks = [chosen[i : i + 64] for i in range(0, len(chosen), 64)]
    if plan.text:
        joined = ([f"{first} {rest}" for first, rest in chunk] for chunk in chunks)
        return [encode_text(model.tokenizer, chunk, model.max_tokens, model.device) for chunk in joined]
    return [encode(model.renderer, [a for a, _ in chunk], [b for _, b in chunk], model.device) for chunk in chunks]


def check_data(plan: Plan) -> None:
    """Raise `ValueError` if a plan without a corpus lacks a file, or its edits are of another dataset."""
    wanted = "edits" if plan.dataset == "any" else f"edits of {plan.dataset}"
    if not plan.edits:
        raise ValueError(f"plan {plan.name} trains on {wanted}: name a file, edits=PATH (docs/data.md)")
    measures = isinstance(plan.editor, HypernetworkEditor) and plan.editor.metric_strength
    if measures and not plan.text:
        raise ValueError(f"plan {plan.name} measures its key preconditioner on text: name a file of sentences, text=PATH")
    skip_report = SkipReport()
    next(read_edits(plan.edits, skip_report=skip_report), None)
    found = [name for name in skip_report.formats.values() if not name.startswith((plan.dataset, "plain"))]
    if found and plan.dataset != "any":
        raise ValueError(
            f"plan {plan.name} has the layers for {plan.dataset}, and {plan.edits} is of the format {found[0]}: "
            "choose another plan (`python jobs/train.py plans`), or dataset=any"
        )
