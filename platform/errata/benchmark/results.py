"""What the lifelong benchmark writes down: a row for each contender at each checkpoint, and every answer at the last one."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from errata.evaluate.answers import first_sentence, same_answer
from errata.evaluate.bootstrap import Interval
from errata.evaluate.questions import Questions

KINDS = ("efficacy", "generalisation", "locality", "portability", "retention")
_SHARES = ("efficacy", "generalisation", "locality", "retention", "portability", "harmonic_mean")
INTERVALS = (  # the columns that may have one, in `NAME_low` and `NAME_high`
    *_SHARES,
    *(f"{name}_tf" for name in _SHARES),
    *("locality_gold", "retention_every", "retention_ratio", "ppl_ratio", "ppl_ratio_mean", "ppl_ratio_mean_log"),
    *("token_accuracy_tf", "token_accuracy_generalisation_tf", "token_accuracy_locality_tf"),
    *("likelihood_efficacy", "likelihood_generalisation", "likelihood_locality", "fluency", "consistency"),
)
_BOUNDS = tuple(f"{name}_{side}" for name in INTERVALS for side in ("low", "high"))


@dataclass(frozen=True)
class CheckpointScores:
    """One contender after `edits` edits of one course. Shares are of all questions on the edits so far, 0 to 1.

    By free generation, and teacher-forced under the same name with `_tf`: `locality` is agreement with the unedited model,
    `locality_gold` the true answers. `harmonic_mean` is of efficacy, generalisation and locality. `ppl_ratio`: perplexity now
    by that of the base, infinite for a model that gives no numbers. `norm_growth`: |W| by |W0|, and `delta_norm`: |W - W0| by
    |W0|, of the matrix where it is largest. `edit_ms`: `Editor.edit` per edit, mean over the stream so far, and of it
    `capture_ms`, `solve_ms` and `rest_ms`; `precompute_s`: `Editor.start`. `rejected` edits were refused, the stream went on.
    `peak_bytes`: memory of one more call with the last batch, not timed. None is what was not asked or is not known.

    `intervals` bound scores by their names, 95 %, over resampled edits (of `ppl_ratio`: sentences; of `fluency` and
    `consistency`: texts); what is written down has them in columns `NAME_low` and `NAME_high`. `retention_every`: share right
    now of a sample of all batches, `retention_ratio`: by what it was right after each of them. `token_accuracy_tf`: mean share
    of an answer's tokens that are right, as papers count; of rephrasings and of neighbours' true answers beside it.
    `likelihood_`: shares of comparisons won, new against old answer. `fluency` in bits and `consistency` are of longer texts,
    at the end alone. `ppl_ratio` is of medians, the others of what their names say.
    """

    editor: str
    seed: int
    edits: int
    efficacy: float | None
    generalisation: float | None
    locality: float | None
    locality_gold: float | None
    retention: float | None
    portability: float | None
    harmonic_mean: float | None
    ppl_ratio: float
    edit_ms: float | None
    train_s: float | None
    efficacy_tf: float | None
    generalisation_tf: float | None
    locality_tf: float | None
    retention_tf: float | None
    portability_tf: float | None
    harmonic_mean_tf: float | None
    norm_growth: float
    delta_norm: float
    precompute_s: float
    capture_ms: float | None
    solve_ms: float | None
    rest_ms: float | None
    peak_bytes: int | None
    rejected: int
    ppl_ratio_mean: float | None = None
    ppl_ratio_mean_log: float | None = None
    ppl_ratio_max: float | None = None
    retention_every: float | None = None
    retention_ratio: float | None = None
    token_accuracy_tf: float | None = None
    token_accuracy_generalisation_tf: float | None = None
    token_accuracy_locality_tf: float | None = None
    likelihood_efficacy: float | None = None
    likelihood_generalisation: float | None = None
    likelihood_locality: float | None = None
    fluency: float | None = None
    consistency: float | None = None
    intervals: Mapping[str, Interval] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Flat, a value for each of `columns(Row)`: None for the ends of an interval that there is not."""
        flat = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "intervals"}
        for name in INTERVALS:
            flat[f"{name}_low"], flat[f"{name}_high"] = self.intervals.get(name, (None, None))
        return flat

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> CheckpointScores:
        """What `to_json` made; columns that an older record lacks have their defaults, and their intervals are not there."""
        own = {name: value for name, value in record.items() if name not in _BOUNDS}
        there = [name for name in INTERVALS if record.get(f"{name}_low") is not None]
        return cls(**own, intervals={name: (record[f"{name}_low"], record[f"{name}_high"]) for name in there})


@dataclass(frozen=True)
class Answer:
    """What was said to one question. `wanted` is its true answer, but for `locality` what the unedited model says."""

    editor: str
    seed: int
    edits: int
    kind: str
    prompt: str
    wanted: str
    answer: str
    right: bool


def columns(record: type) -> dict[str, type]:
    """Name and type of each column of a table of `Row` or of `Answer`; `X | None` is an X."""
    hints = typing.get_type_hints(record)
    found = {f.name: (typing.get_args(hints[f.name]) or (hints[f.name],))[0] for f in fields(record) if f.name != "intervals"}
    return found | (dict.fromkeys(_BOUNDS, float) if record is CheckpointScores else {})


def answers_of(row: CheckpointScores, questions: Questions, said: Mapping[str, str], base: Mapping[str, str]) -> list[Answer]:
    """One for each question of each of `KINDS`; retention is of the first batch and of the sampled ones."""
    asked = {**questions.kinds, "retention": dict.fromkeys((*questions.retention, *questions.retention_every))}
    found = []
    for kind in KINDS:
        for prompt, target in asked[kind]:
            wanted = first_sentence(base[prompt], target).strip() if kind == "locality" else target
            right = same_answer(said[prompt], wanted, target)
            found.append(Answer(row.editor, row.seed, row.edits, kind, prompt, wanted, said[prompt].strip(), right))
    return found


COLUMNS = {
    "efficacy": "efficacy",
    "generalisation": "generalisation",
    "locality": "locality",
    "locality_gold": "locality (gold)",
    "retention": "retention",
    "portability": "portability",
    "harmonic_mean": "harmonic mean",
    "ppl_ratio": "perplexity / base",
    "efficacy_tf": "efficacy (tf)",
    "generalisation_tf": "generalisation (tf)",
    "locality_tf": "locality (tf)",
    "token_accuracy_tf": "tokens (tf)",
    "likelihood_efficacy": "likelihood",
    "retention_ratio": "retained",
    "fluency": "fluency",
    "norm_growth": "norm / base",
    "edit_ms": "ms per edit",
    "precompute_s": "precompute s",
    "train_s": "train s",
    "peak_bytes": "peak MiB",
    "rejected": "refused",
}
