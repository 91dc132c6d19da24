"""Results of the lifelong benchmark: the table of measures, the scores at a checkpoint, and the answers at the end.

A new measure is one row at the end of `MEASURES` and the function in checkpoint.py that computes it. Columns of rows.parquet,
tables, curves and report pages follow the table.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from errata.evaluate.bootstrap import Interval
from errata.evaluate.questions import Questions
from errata.evaluate.transformations import CONTEXTS
from errata.text.answers import first_sentence, same_answer
from errata.text.dialogue import Prompt

KINDS = ("efficacy", "generalisation", "locality", "portability", "retention")

Protocol = Literal[
    "free", "perplexity", "teacher-forced", "likelihood", "long texts", "weights", "cost", "transformed", "lifetime", "by kind"
]
Format = Literal["share", "ratio", "bits", "ms", "s", "bytes", "count", "edits", "tokens"]
Best = Literal["highest", "lowest", "nearest 1", "none"]
_PROTOCOLS = typing.get_args(Protocol)


@dataclass(frozen=True)
class Measure:
    """One measure of an edited model: a column of rows.parquet, and perhaps of the tables.

    `protocol` says how it is measured. `has_interval`: there are columns `NAME_low` and `NAME_high` beside it. `place` counts
    the columns of a table from the left; without it the measure is in the files only. `is_drawn`: report pages draw its curve.
    `best` is the value that tables print in bold. `is_optional`: files and tables of a stream that does not ask for it lack it.
    """

    name: str
    title: str
    protocol: Protocol
    has_interval: bool = False
    format: Format = "share"
    place: int | None = None
    is_drawn: bool = False
    best: Best = "highest"
    is_optional: bool = False

    @property
    def type(self) -> type:
        """The type of the column in rows.parquet."""
        return int if self.format in ("bytes", "count") else float


# The columns that every rows.parquet has, in its order.
_FIRST_FORMAT = (
    Measure("efficacy", "efficacy", "free", True, place=1, is_drawn=True),
    Measure("generalisation", "generalisation", "free", True, place=2, is_drawn=True),
    Measure("locality", "locality", "free", True, place=3, is_drawn=True),
    Measure("locality_gold", "locality (gold)", "free", True, place=4, is_drawn=True),
    Measure("retention", "retention", "free", True, place=5, is_drawn=True),
    Measure("portability", "portability", "free", True, place=6, is_drawn=True),
    Measure("harmonic_mean", "harmonic mean", "free", True, place=7, is_drawn=True),
    Measure("ppl_ratio", "perplexity / base", "perplexity", True, "ratio", place=8, is_drawn=True, best="nearest 1"),
    Measure("edit_ms", "ms per edit", "cost", False, "ms", place=17, best="lowest"),
    Measure("train_s", "train s", "cost", False, "s", place=19, best="lowest"),
    Measure("efficacy_tf", "efficacy (tf)", "teacher-forced", True, place=9),
    Measure("generalisation_tf", "generalisation (tf)", "teacher-forced", True, place=10),
    Measure("locality_tf", "locality (tf)", "teacher-forced", True, place=11),
    Measure("retention_tf", "retention (tf)", "teacher-forced", True),
    Measure("portability_tf", "portability (tf)", "teacher-forced", True),
    Measure("harmonic_mean_tf", "harmonic mean (tf)", "teacher-forced", True),
    Measure("norm_growth", "norm / base", "weights", False, "ratio", place=16, best="lowest"),
    Measure("delta_norm", "norm of change / base", "weights", False, "ratio", best="lowest"),
    Measure("precompute_s", "precompute s", "cost", False, "s", place=18, best="lowest"),
    Measure("capture_ms", "capture ms", "cost", False, "ms", best="lowest"),
    Measure("solve_ms", "solve ms", "cost", False, "ms", best="lowest"),
    Measure("rest_ms", "other ms", "cost", False, "ms", best="lowest"),
    Measure("peak_bytes", "peak MiB", "cost", False, "bytes", place=20, best="lowest"),
    Measure("rejected", "refused", "cost", False, "count", place=21, best="lowest"),
)


def _transformed() -> Iterator[Measure]:
    """Yield the measures of transformed questions; `other_system` and `second_turn` have rows already, as edits in chat do."""
    titles = {"in_chat": "in chat", "distracted": "distracted", "negated": "negated", "fact_check": "fact check"}
    for name, title in titles.items():
        yield Measure(name, title, "transformed", True, place=2, is_optional=True)
    for name in CONTEXTS:
        for kind in ("generalisation", "locality"):
            title = titles.get(name, name.replace("_", " "))
            yield Measure(f"{name}_{kind}", f"{title}, {kind}", "transformed", True, is_optional=True)


# The columns that older files lack.
_LATER = (
    Measure("ppl_ratio_mean", "mean perplexity / base", "perplexity", True, "ratio", best="nearest 1"),
    Measure("ppl_ratio_mean_log", "mean log perplexity / base", "perplexity", True, "ratio", best="nearest 1"),
    Measure("ppl_ratio_max", "largest perplexity / base", "perplexity", False, "ratio", best="nearest 1"),
    Measure("retention_every", "retention (sampled)", "free", True),
    Measure("retention_ratio", "retained", "free", True, "ratio", place=14),
    Measure("token_accuracy_tf", "tokens (tf)", "teacher-forced", True, place=12),
    Measure("token_accuracy_generalisation_tf", "tokens, generalisation (tf)", "teacher-forced", True),
    Measure("token_accuracy_locality_tf", "tokens, locality (tf)", "teacher-forced", True),
    Measure("likelihood_efficacy", "likelihood", "likelihood", True, place=13),
    Measure("likelihood_generalisation", "likelihood, generalisation", "likelihood", True),
    Measure("likelihood_locality", "likelihood, locality", "likelihood", True),
    Measure("fluency", "fluency", "long texts", True, "bits", place=15, best="none"),
    Measure("consistency", "consistency", "long texts", True),
    Measure("other_system", "other system prompt", "free", True, place=2, is_optional=True),  # of edits in chat
    Measure("second_turn", "second turn", "free", True, place=2, is_optional=True),
    Measure("re_edited", "re-edited", "free", True, place=5, is_optional=True),  # of facts that are edited again
    Measure("reverted", "reverted", "free", True, place=5, is_optional=True),
    Measure("immediate", "immediate", "lifetime", True, place=14),
    Measure("half_life", "half-life", "lifetime", False, "edits", place=14),
    *_transformed(),
    Measure("generalisation_paraphrase", "generalisation, paraphrases", "by kind", True, place=2, is_optional=True),
    Measure("generalisation_continuation", "generalisation, continuations", "by kind", True, place=2, is_optional=True),
    Measure("added_tokens", "added tokens", "cost", False, "tokens", place=22, best="lowest", is_optional=True),
    Measure("added_first_ms", "added ms to the first token", "cost", False, "ms", best="lowest", is_optional=True),
    Measure("added_ms", "added ms", "cost", False, "ms", place=22, best="lowest", is_optional=True),
    Measure("saved_bytes", "saved MiB", "cost", False, "bytes", place=22, best="lowest", is_optional=True),
)
MEASURES = (*_FIRST_FORMAT, *_LATER)
BY_NAME = {measure.name: measure for measure in MEASURES}
IN_TABLES = tuple(sorted((m for m in MEASURES if m.place is not None), key=lambda m: m.place or 0))

_KEYS: dict[str, type] = {"editor": str, "seed": int, "edits": int}
_HEADLINE = ("efficacy", "generalisation", "locality", "retention", "portability", "harmonic_mean")


def _interval_order(measure: Measure) -> tuple[bool, int, int]:
    """Sort intervals as rows.parquet has them: those of the headline scores first, then by protocol."""
    name = measure.name.removesuffix("_tf")
    return name not in _HEADLINE, _PROTOCOLS.index(measure.protocol), _HEADLINE.index(name) if name in _HEADLINE else 0


INTERVALS = tuple(measure.name for measure in sorted((m for m in MEASURES if m.has_interval), key=_interval_order))
_BOUNDS = tuple(f"{name}_{side}" for name in INTERVALS for side in ("low", "high"))
COLUMNS: dict[str, type] = {**_KEYS, **{m.name: m.type for m in MEASURES}, **dict.fromkeys(_BOUNDS, float)}
REQUIRED = (*_KEYS, *(measure.name for measure in _FIRST_FORMAT))


@dataclass(frozen=True)
class CheckpointScores:
    """The scores of one editor after `edits` edits of one stream, on the questions of all edits so far.

    `values` has every measure of `MEASURES`; None is what was not asked or is not known. docs/evaluation.md defines the scores.
    Times are means over the stream so far: `edit_ms` is `Editor.edit` per edit, divided into `capture_ms`, `solve_ms` and
    `rest_ms`; `precompute_s` is `Editor.start`. `peak_bytes` is the memory of one more call with the last batch, not timed.
    `saved_bytes` are those of all changes so far as a ledger keeps them. An answer reads `added_tokens` more than on the
    unedited model and, at the end of the stream, takes `added_ms` more, `added_first_ms` of them to its first token.
    `norm_growth` is |W| / |W0| and `delta_norm` |W - W0| / |W0|, of the matrix where it is largest. `rejected` edits were
    refused by the editor, and the stream went on without them. Infinite values come from a model without finite logits.

    `intervals` bound scores by name at 95 %, over resampled edits (perplexities: sentences; long texts: texts).
    """

    editor: str
    seed: int
    edits: int
    values: Mapping[str, float | None]
    intervals: Mapping[str, Interval] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.values.keys() != BY_NAME.keys():
            raise ValueError(f"values need exactly the measures of MEASURES: {sorted(self.values.keys() ^ BY_NAME.keys())}")

    def __getitem__(self, name: str) -> float | None:
        return self.values[name]

    def to_json(self) -> dict[str, Any]:
        """Flatten to one value for each of `COLUMNS`, without those of optional measures that are None.

        The bounds of a missing interval are None.
        """
        flat: dict[str, Any] = {name: getattr(self, name) for name in _KEYS}
        given = [name for name, measure in BY_NAME.items() if not measure.is_optional or self.values[name] is not None]
        flat |= {name: self.values[name] for name in given}
        for name in (name for name in INTERVALS if name in given):
            flat[f"{name}_low"], flat[f"{name}_high"] = self.intervals.get(name, (None, None))
        return flat

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> CheckpointScores:
        """Read the result of `to_json`; measures that an older record lacks are None."""
        found = [name for name in INTERVALS if record.get(f"{name}_low") is not None]
        return cls(
            record["editor"],
            record["seed"],
            record["edits"],
            values={name: record.get(name) for name in BY_NAME},
            intervals={name: (record[f"{name}_low"], record[f"{name}_high"]) for name in found},
        )


@dataclass(frozen=True)
class Answer:
    """The answer to one question. `wanted` is its true answer; for `locality`, what the unedited model generates."""

    editor: str
    seed: int
    edits: int
    kind: str
    prompt: str
    wanted: str
    answer: str
    right: bool


ANSWER_COLUMNS: dict[str, type] = typing.get_type_hints(Answer)


def answers_of(
    scores: CheckpointScores, questions: Questions, generated: Mapping[Prompt, str], unedited: Mapping[Prompt, str]
) -> list[Answer]:
    """List the answer to each question of each of `KINDS`; retention asks for the first batch and the sampled ones.

    `generated` and `unedited` are texts by prompt.
    """
    asked = {**questions.kinds, "retention": dict.fromkeys((*questions.retention, *questions.retention_every))}
    found = []
    for kind in KINDS:
        for question in asked[kind]:
            prompt, wanted, text = question.prompt, question.answer, generated[question.prompt]
            if kind == "locality":
                wanted = first_sentence(unedited[prompt], question.answer).strip()
                right = same_answer(text, wanted, question.answer)
            else:
                right = question.is_answered_by(text)
            found.append(Answer(scores.editor, scores.seed, scores.edits, kind, str(prompt), wanted, text.strip(), right))
    return found
