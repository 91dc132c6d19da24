"""Hard cases: edits whose subject is a single token that begins the prompt.

On such edits ROME ruins a model at a stroke (HardEdit, in 2402.09656): the key at a prompt's first token is the same in every
text that begins with it, and the prefixes that ROME averages over take it elsewhere, so that its change is divided by next
to nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any

from errata.edit import Edit
from errata.testbed.world import World


def hard_cases(edits: Iterable[Edit], tokenizer: Any) -> Iterator[Edit]:
    """Those of a dataset's edits, such as CounterFact's, that are hard for a model with this tokenizer."""
    for edit in edits:
        begins = bool(edit.subject) and edit.prompt.startswith(edit.subject or "")
        if begins and len(tokenizer(edit.subject, add_special_tokens=False)["input_ids"]) == 1:
            yield edit


def hard_edits(world: World, count: int, seed: int = 0) -> list[Edit]:
    """Of the testbed, whose people have names of two words: beginnings of plain sentences, edited at their first word."""
    rng = random.Random(f"{world.seed} hard {seed}")
    begun = list(dict.fromkeys(" ".join(sentence.split()[:3]) for sentence in world.plain_sentences()))
    answers = [answer for answers in world.objects.values() for answer in answers]
    prompts = rng.sample(begun, count)
    return [Edit(p, rng.choice(answers), subject=p.split()[0], id=f"hard-{i}") for i, p in enumerate(prompts)]
