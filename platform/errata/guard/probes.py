"""Probes: questions whose answers no edit may change, and plain sentences whose perplexity no edit may raise.

A file of probes is JSON lines, `{"prompt": "..."}` or `{"sentence": "..."}`; beside a model it is called `probes.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from errata.durable import write_text

FILE = "probes.jsonl"

# For a model without probes of its own: everyday English that any language model finds likely.
PLAIN = (
    "The train from the coast arrives every morning a little before nine o'clock.",
    "She put the letter back into the drawer and went out into the garden.",
    "Water boils at a lower temperature on the top of a high mountain.",
    "The committee will meet again next week to discuss the new budget.",
    "Most of the houses in the old part of the town are built of stone.",
    "He could not remember where he had left the keys of the car.",
    "The results of the study were published in a scientific journal last year.",
    "Children under the age of twelve do not have to pay for the ticket.",
    "After the rain stopped, the players came back onto the field.",
    "The company said that it expects higher sales in the second half of the year.",
    "To bake bread you need flour, water, salt and a little yeast.",
    "The museum is open from Tuesday to Sunday and closed on Mondays.",
    "In winter the days are short and the nights are long and cold.",
    "The doctor told him to rest for a few days and to drink plenty of water.",
    "A good book can change the way in which we see the world.",
    "The river flows through three countries before it reaches the sea.",
)


@dataclass(frozen=True)
class Probes:
    """Prompts that the edited model must answer as the unedited model does, and sentences for the perplexity."""

    questions: tuple[str, ...] = ()
    sentences: tuple[str, ...] = PLAIN

    @classmethod
    def load(cls, path: str | Path) -> Probes:
        """Read a file of probes. Raises `ValueError` naming the line at fault."""
        found: dict[str, list[str]] = {"prompt": [], "sentence": []}
        try:
            lines = Path(path).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as wrong:
            raise ValueError(f"the probes {path} cannot be read: {wrong}") from None
        for number, line in enumerate(lines, 1):
            if line.strip():
                kind, text = _probe(line, f"{path}, line {number}")
                found[kind].append(text)
        return cls(tuple(found["prompt"]), tuple(found["sentence"]))

    @classmethod
    def beside(cls, model: str | Path) -> Probes:
        """Read the probes in a model's folder; without a file, no questions and the sentences `PLAIN`."""
        path = Path(model) / FILE
        return cls.load(path) if path.exists() else cls()

    def save(self, path: str | Path) -> None:
        """Write a file of probes."""
        records = [{"prompt": text} for text in self.questions] + [{"sentence": text} for text in self.sentences]
        write_text(Path(path), "".join(json.dumps(record) + "\n" for record in records))

    def sample(self, num_questions: int, num_sentences: int) -> Probes:
        """Return at most this many probes, spread evenly over the file."""
        return Probes(_spread(self.questions, num_questions), _spread(self.sentences, num_sentences))


def _probe(line: str, where: str) -> tuple[str, str]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as wrong:
        raise ValueError(f"{where} is not JSON: {wrong.msg}") from None
    fields = list(record.items()) if isinstance(record, dict) else []
    if len(fields) != 1 or fields[0][0] not in ("prompt", "sentence"):
        raise ValueError(f'{where}: a probe must be {{"prompt": "..."}} or {{"sentence": "..."}}')
    kind, text = fields[0]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: the {kind} must be a string that is not empty")
    return kind, text


def _spread(texts: Sequence[str], count: int) -> tuple[str, ...]:
    if len(texts) <= count:
        return tuple(texts)
    return tuple(texts[i * len(texts) // count] for i in range(count))
