"""CounterFact as a corpus: the small Llama is trained on the dataset's true statements, and edits are its false ones.

The files are those of the flat format (`counterfact_train.json`, `counterfact_edit.json`: prompt, target_new, subject,
ground_truth, rephrase_prompt, locality_prompt, locality_ground_truth) and, for plain text, `me_ppl_1k.json` ({Corpus, Text}).
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from errata.datasets.formats.counterfact import flat
from errata.edit import Edit
from errata.testbed.corpus import check_part, check_split

# The end of a sentence before the subject: no generation prompt has one.
_SENTENCE_BEFORE = re.compile(r"""[.!?]["')\]]*\s|\n""")
NUM_PLAIN = 800  # plain sentences to train on; the following ones are held out
MAX_PLAIN_WORDS = 30


@dataclass(frozen=True)
class CounterFact:
    """The first usable `num_train` and `num_test` facts of the two files in `directory`.

    A record is left out if one of its prompts also occurs in an earlier record: a prompt has only one answer to learn, and a
    locality prompt must not be edited.
    """

    directory: str
    num_train: int = 1500
    num_test: int = 1000
    num_held_out_sentences: int = 100

    @property
    def name(self) -> str:
        """The sizes, and a digest of the records."""
        content = hashlib.sha256(json.dumps(self._records, sort_keys=True).encode()).hexdigest()[:8]
        return f"counterfact-{self.num_train}-{self.num_test}-{content}"

    @cached_property
    def _records(self) -> dict[str, list[dict[str, Any]]]:
        asked: set[str] = set()
        return {
            split: self._usable(f"counterfact_{file}.json", count, asked)
            for split, file, count in (("test", "edit", self.num_test), ("train", "train", self.num_train))
        }

    def _read(self, file: str) -> list[dict[str, Any]]:
        path = Path(self.directory) / file
        if not path.exists():
            raise ValueError(f"no file {path}: the corpus needs CounterFact's flat files; set corpus.directory to their folder")
        records: list[dict[str, Any]] = json.loads(path.read_text())
        return records

    def _usable(self, file: str, count: int, asked: set[str]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for record in self._read(file):
            prompts = {record["prompt"], record["rephrase_prompt"], record["locality_prompt"]}
            if len(found) < count and len(prompts) == 3 and not prompts & asked:
                found.append(record)
                asked |= prompts
        if len(found) < count:
            raise ValueError(f"{file} has {len(found)} usable facts, fewer than {count}; ask for fewer")
        return found

    def _part(self, part: str) -> list[dict[str, Any]]:
        """Return the records of a part; the train file consists of `train-a`, `train-b` and `validation`, its last fifth."""
        if part in self._records:
            return self._records[part]
        learned = self.num_train - self.num_train // 5
        ends = {"train-a": (0, learned // 2), "train-b": (learned // 2, learned), "validation": (learned, self.num_train)}
        begin, end = ends[part]
        return self._records["train"][begin:end]

    def sentences(self, part: str | None = None) -> list[tuple[str, str]]:
        """List (prompt, true answer) of all edit prompts, rephrasings and locality prompts, of both files or of a part."""
        check_part(part)
        return [
            pair
            for chosen in (("test", "train") if part is None else (part,))
            for record in self._part(chosen)
            for pair in (
                (record["prompt"], record["ground_truth"]),
                (record["rephrase_prompt"], record["ground_truth"]),
                (record["locality_prompt"], record["locality_ground_truth"]),
            )
        ]

    def plain_sentences(self, held_out: bool = False) -> list[str]:
        """List the beginnings of ME-PPL's texts, without those that are too short for a perplexity."""
        texts = [" ".join(record["Text"].split()[:MAX_PLAIN_WORDS]) for record in self._read("me_ppl_1k.json")]
        texts = [text for text in texts if len(text.split()) >= 5]
        return texts[NUM_PLAIN : NUM_PLAIN + self.num_held_out_sentences] if held_out else texts[:NUM_PLAIN]

    def rephrasing_kinds(self) -> dict[str, str]:
        """Return the kind of each rephrasing of both files: `paraphrase` or `continuation`."""
        records = (record for part in self._records.values() for record in part)
        return {record["rephrase_prompt"]: kind_of(record["rephrase_prompt"], record["subject"]) for record in records}

    def notes(self, held_out: bool = False) -> list[tuple[str, str]]:
        """Return none: its model learns the facts alone."""
        return []

    def words(self) -> None:
        """Return None: the vocabulary is not closed, so a tokenizer is trained on the sentences."""

    def edits(self, split: str, count: int, seed: int = 0) -> list[Edit]:
        """Draw `count` edits in an order shuffled by `seed`: from the edit file for `test`, otherwise from the train file."""
        chosen = self._split(split)
        if count > len(chosen):
            raise ValueError(f"the corpus has {len(chosen)} {split} facts to edit, fewer than {count}; ask for fewer")
        order = random.Random(f"counterfact {split} {seed}").sample(range(len(chosen)), count)
        return [flat(chosen[i]) for i in order]

    def stream(self, split: str, seed: int = 0) -> Iterator[Edit]:
        """Yield every edit of the split once."""
        yield from self.edits(split, len(self._split(split)), seed)

    def _split(self, split: str) -> list[dict[str, Any]]:
        check_split(split)
        return self._part("train-a") + self._part("train-b") if split == "train" else self._part(split)


def kind_of(rephrasing: str, subject: str) -> str:
    """Return `paraphrase` for a rephrasing behind another sentence, else `continuation`."""
    return "paraphrase" if _SENTENCE_BEFORE.search(rephrasing.partition(subject)[0]) else "continuation"
