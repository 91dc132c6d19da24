"""Answers of a model to facts of the world: an edit is made only of what it gets wrong.

Answers are generated once, greedily and in chat, and kept in a file beside the model.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from errata.durable import append_line
from errata.edit import Question
from errata.model.generation import greedy_texts
from errata.model.language_model import LanguageModel
from errata.testbed.fact import Fact
from errata.text.dialogue import Dialogue

FILE = "facts.jsonl"
MAX_TOKENS = 32  # of an answer: a sentence, as the guard asks in chat
AT_ONCE = 50


def question_of(fact: Fact, phrasing: int = 0) -> Question:
    """Return a fact as a question in chat, which any answer that contains its target answers."""
    return Question(Dialogue.of(fact.question(phrasing)), fact.sentence, (fact.target, *fact.aliases))


@dataclass
class KnownFacts:
    """The model's answers by the facts' keys, in a file that grows as more is asked."""

    model: LanguageModel
    path: Path
    answers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def beside(cls, model: LanguageModel) -> KnownFacts:
        """Read the file beside the model, if there is one."""
        path = Path(model.path) / FILE
        return cls(model, path, dict(_whole_lines(path)))

    def ask(self, facts: Sequence[Fact]) -> None:
        """Generate the answers that are not known yet."""
        new = [fact for fact in facts if fact.key not in self.answers]
        for begin in range(0, len(new), AT_ONCE):
            part = new[begin : begin + AT_ONCE]
            texts = greedy_texts(self.model, [Dialogue.of(fact.question()) for fact in part], MAX_TOKENS, AT_ONCE)
            for fact, text in zip(part, texts, strict=True):
                self.answers[fact.key] = text.strip()
                append_line(self.path, json.dumps([fact.key, text.strip()]).encode(), synced=False)

    def is_right(self, fact: Fact) -> bool:
        """Say if the model's answer to a fact that was asked is right."""
        return question_of(fact).is_answered_by(self.answers[fact.key])

    def in_random_order(self, facts: Sequence[Fact], seed: int) -> Iterator[Fact]:
        """Yield the facts, each asked by then."""
        order = random.Random(f"asked {seed}").sample(list(facts), len(facts))
        for begin in range(0, len(order), AT_ONCE):
            self.ask(order[begin : begin + AT_ONCE])
            yield from order[begin : begin + AT_ONCE]

    def wrong(self, facts: Sequence[Fact], count: int, seed: int = 0) -> list[Fact]:
        """Return the first `count` facts in random order that the model gets wrong, fewer if there are not so many."""
        found: list[Fact] = []
        for fact in self.in_random_order(facts, seed):
            if not self.is_right(fact):
                found.append(fact)
            if len(found) == count:
                break
        return found


def _whole_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the keys and answers of a file; a line that was torn by the end of its process is asked again."""
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        with contextlib.suppress(ValueError):
            key, answer = json.loads(line)
            yield key, answer
