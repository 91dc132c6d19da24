"""Answers at the end of a benchmark: failed questions, and pairwise comparison of editors by question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from errata.benchmark.results import ANSWER_COLUMNS, KINDS, Answer

FILE = "answers.parquet"


@dataclass(frozen=True)
class Pair:
    """Counts of the questions that two editors were both asked, over all seeds, by which of them answers rightly."""

    first: str
    second: str
    both: int
    only_first: int
    only_second: int
    neither: int

    @property
    def p_value(self) -> float:
        """McNemar's exact test (1947): the probability of a split at least as uneven if both editors were equally good."""
        from scipy.stats import binomtest

        differ = self.only_first + self.only_second
        return float(binomtest(self.only_first, differ).pvalue) if differ else 1.0


def kept_answers(directory: Path) -> list[Answer]:
    """Read answers.parquet; no answers if it is missing. Raises `ValueError` if it is damaged or lacks a column."""
    path = directory / FILE
    if not path.exists():
        return []
    return [Answer(**record) for record in read_table(path, ANSWER_COLUMNS).to_pylist()]


def read_table(path: Path, columns: Mapping[str, type], required: Sequence[str] = ()) -> pa.Table:
    """Read those of `columns` that the Parquet file `path` has; by default all of them are required.

    Raises `ValueError` if the file is damaged or lacks a required column.
    """
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as wrong:
        raise ValueError(f"{path} cannot be read, it may be damaged: {wrong}") from None
    if missing := [name for name in required or columns if name not in table.column_names]:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}")
    return table.select([name for name in columns if name in table.column_names])


def failures(answers: Sequence[Answer], editor: str) -> list[Answer]:
    """List the answers of `editor` that are wrong, edited prompts first."""
    wrong = [answer for answer in answers if answer.editor == editor and not answer.right]
    return sorted(wrong, key=lambda answer: (KINDS.index(answer.kind) if answer.kind in KINDS else len(KINDS), answer.seed))


def counts(answers: Sequence[Answer]) -> dict[tuple[str, str], tuple[int, int]]:
    """Count (wrong, asked) by editor and kind."""
    asked = Counter((answer.editor, answer.kind) for answer in answers)
    wrong = Counter((answer.editor, answer.kind) for answer in answers if not answer.right)
    return {key: (wrong[key], number) for key, number in asked.items()}


def pairs(answers: Sequence[Answer], kind: str, editors: Sequence[str]) -> list[Pair]:
    """Compare every two of `editors`, in their order, on one kind of question.

    Pairs without a common question are left out.
    """
    own = [answer for answer in answers if answer.kind == kind]
    place = {key: i for i, key in enumerate(dict.fromkeys((a.seed, a.prompt, a.wanted) for a in own))}
    right_EQ = np.full((len(editors), len(place)), -1, dtype=np.int8)  # E editors, Q questions; -1: not asked
    row = {editor: i for i, editor in enumerate(editors)}
    for answer in own:
        if answer.editor in row:
            right_EQ[row[answer.editor], place[answer.seed, answer.prompt, answer.wanted]] = answer.right
    found = [_pair(one, other, right_EQ[row[one]], right_EQ[row[other]]) for one, other in combinations(editors, 2)]
    return [pair for pair in found if pair.both + pair.only_first + pair.only_second + pair.neither]


def _pair(first: str, second: str, one_Q: np.ndarray, other_Q: np.ndarray) -> Pair:
    known_Q = (one_Q >= 0) & (other_Q >= 0)
    one_Q, other_Q = one_Q[known_Q] == 1, other_Q[known_Q] == 1
    split = (one_Q & other_Q, one_Q & ~other_Q, ~one_Q & other_Q, ~one_Q & ~other_Q)
    return Pair(first, second, *(int(part.sum()) for part in split))
