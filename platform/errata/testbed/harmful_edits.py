"""Hard edits, on which ROME destroys a model with one edit: the subject is a single token that begins the prompt.

They are those of HardEdit (in arXiv 2402.09656). The key at the first token is the same in every text that begins with it, but
ROME averages keys over random prefixes, which move the subject to other positions. The averaged key is far from the key of the
prompt, so that the change is divided by a number near zero.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any

from errata.edit import Edit
from errata.testbed.world import World


def hard_cases(edits: Iterable[Edit], tokenizer: Any) -> Iterator[Edit]:
    """Select the edits of a dataset, such as CounterFact, that are hard for a model with this tokenizer."""
    for edit in edits:
        begins = bool(edit.subject) and edit.prompt.startswith(edit.subject or "")
        if begins and len(tokenizer(edit.subject, add_special_tokens=False)["input_ids"]) == 1:
            yield edit


def hard_edits(world: World, count: int, seed: int = 0) -> list[Edit]:
    """Make hard edits of the testbed: beginnings of plain sentences, edited at their first word.

    Its people have names of two words, so edits of facts are not hard.
    """
    rng = random.Random(f"{world.seed} hard {seed}")
    begun = list(dict.fromkeys(" ".join(sentence.split()[:3]) for sentence in world.plain_sentences()))
    answers = [answer for answers in world.objects.values() for answer in answers]
    prompts = rng.sample(begun, count)
    return [Edit(p, rng.choice(answers), subject=p.split()[0], id=f"hard-{i}") for i, p in enumerate(prompts)]
