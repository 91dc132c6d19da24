"""CounterFact as a corpus: a small Llama learns the dataset's own true statements, and edits are its own false ones.

The files are the flat ones (`counterfact_train.json`, `counterfact_edit.json`: prompt, target_new, subject, ground_truth,
rephrase_prompt, locality_prompt, locality_ground_truth) and, for plain text, `me_ppl_1k.json` ({Corpus, Text}).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from errata.datasets.formats.counterfact import flat
from errata.edit import Edit
from errata.testbed.corpus import check_part, check_split

NUM_PLAIN = 800  # plain sentences to train on; those after them are held out
MAX_PLAIN_WORDS = 30


@dataclass(frozen=True)
class CounterFact:
    """The first usable `num_train` and `num_test` facts of the two files in `directory`.

    A record is left out if a prompt of it is also asked by an earlier record (two answers cannot both be learned, and a
    locality prompt must not be edited).
    """

    directory: str
    num_train: int = 1500
    num_test: int = 1000
    num_held_out_sentences: int = 100

    @property
    def name(self) -> str:
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
            raise ValueError(f"no file {path}: the corpus needs CounterFact's flat files; name their folder (corpus.directory)")
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
            raise ValueError(f"{file} has {len(found)} usable facts, fewer than {count}")
        return found

    def _part(self, part: str) -> list[dict[str, Any]]:
        """The train file is `train-a`, `train-b` and, its last fifth, `validation`."""
        if part in self._records:
            return self._records[part]
        learned = self.num_train - self.num_train // 5
        ends = {"train-a": (0, learned // 2), "train-b": (learned // 2, learned), "validation": (learned, self.num_train)}
        begin, end = ends[part]
        return self._records["train"][begin:end]

    def sentences(self, part: str | None = None) -> list[tuple[str, str]]:
        """(prompt, true answer) of every edit prompt, rephrasing and locality prompt, of both files or of a part."""
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
        """The heads of ME-PPL's texts; those that are too short to have a perplexity are left out."""
        texts = [" ".join(record["Text"].split()[:MAX_PLAIN_WORDS]) for record in self._read("me_ppl_1k.json")]
        texts = [text for text in texts if len(text.split()) >= 5]
        return texts[NUM_PLAIN : NUM_PLAIN + self.num_held_out_sentences] if held_out else texts[:NUM_PLAIN]

    def words(self) -> None:
        """The vocabulary is not closed: a tokenizer is trained on the sentences."""

    def edits(self, split: str, count: int, seed: int = 0) -> list[Edit]:
        """`count` edits in an order that `seed` shuffles: of the edit file (`test`), or of the train file, whose last fifth is
        kept from training for `validation`."""
        chosen = self._split(split)
        if count > len(chosen):
            raise ValueError(f"the corpus has {len(chosen)} {split} facts to edit, fewer than {count}")
        order = random.Random(f"counterfact {split} {seed}").sample(range(len(chosen)), count)
        return [flat(chosen[i]) for i in order]

    def stream(self, split: str, seed: int = 0) -> Iterator[Edit]:
        """Every edit of the split once."""
        yield from self.edits(split, len(self._split(split)), seed)

    def _split(self, split: str) -> list[dict[str, Any]]:
        check_split(split)
        return self._part("train-a") + self._part("train-b") if split == "train" else self._part(split)
