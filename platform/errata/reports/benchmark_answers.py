"""What editors answered at the end of a benchmark: which questions failed, and who is right where another is wrong."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from errata.benchmark.results import KINDS, Answer, columns

FILE = "answers.parquet"


@dataclass(frozen=True)
class Pair:
    """Of the questions that both editors were asked, in all seeds, how many each of them answers rightly."""

    first: str
    second: str
    both: int
    only_first: int
    only_second: int
    neither: int

    @property
    def p_value(self) -> float:
        """McNemar's exact test (1947): how likely so uneven a split would be if both were equally good."""
        from scipy.stats import binomtest

        differ = self.only_first + self.only_second
        return float(binomtest(self.only_first, differ).pvalue) if differ else 1.0


def kept_answers(directory: Path) -> list[Answer]:
    """Those of answers.parquet, or none if there is no such file. Raises `ValueError` if it is damaged or lacks a column."""
    path = directory / FILE
    if not path.exists():
        return []
    return [Answer(**record) for record in read_table(path, Answer).to_pylist()]


def read_table(path: Path, kind: type) -> pa.Table:
    """The columns of `path` that a table of `kind` has; those of fields that have a default, and intervals, may be absent.

    Raises `ValueError` if it is no Parquet file, or lacks one.
    """
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as wrong:
        raise ValueError(f"{path} cannot be read, it may be damaged: {wrong}") from None
    optional = {field.name for field in dataclasses.fields(kind) if field.default is not dataclasses.MISSING}
    needed = [field.name for field in dataclasses.fields(kind) if field.name in columns(kind) and field.name not in optional]
    if missing := [name for name in needed if name not in table.column_names]:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}")
    return table.select([name for name in columns(kind) if name in table.column_names])


def failures(answers: Sequence[Answer], editor: str) -> list[Answer]:
    """What `editor` does not answer as wanted, the edits themselves first."""
    wrong = [answer for answer in answers if answer.editor == editor and not answer.right]
    return sorted(wrong, key=lambda answer: (KINDS.index(answer.kind) if answer.kind in KINDS else len(KINDS), answer.seed))


def counts(answers: Sequence[Answer]) -> dict[tuple[str, str], tuple[int, int]]:
    """(wrong, asked) by editor and kind."""
    asked = Counter((answer.editor, answer.kind) for answer in answers)
    wrong = Counter((answer.editor, answer.kind) for answer in answers if not answer.right)
    return {key: (wrong[key], number) for key, number in asked.items()}


def pairs(answers: Sequence[Answer], kind: str, editors: Sequence[str]) -> list[Pair]:
    """Every two of `editors`, in their order, on the questions of one kind; two without a common question are left out."""
    own = [answer for answer in answers if answer.kind == kind]
    place = {key: i for i, key in enumerate(dict.fromkeys((a.seed, a.prompt, a.wanted) for a in own))}
    right_EQ = np.full((len(editors), len(place)), -1, dtype=np.int8)  # editors, questions; -1: not asked
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
