"""The report of the comparison on the default model: tables, bounds that are seen or missed, report.json, and a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.facts_picture import draw
from benchmarks.facts_rows import ORACLE
from benchmarks.report import show, write_report
from benchmarks.retrieval import RetrievalSettings, timings
from errata.benchmark.files import is_infinite, without_infinity
from errata.editors import EDITORS
from errata.home import home
from errata.local.terminal import console

SCORES = (
    *("question", "phrasing", "other_system", "second_turn", "distracted", "negated", "two_hop", "re_edited", "reverted"),
    *("immediate", "retention", "half_life", "kept", "same_subject", "agreement", "ppl_ratio", "refused"),
)
COSTS = (
    *("edit_s", "added_first_ms", "added_ms", "unrelated_first_ms", "unrelated_ms", "added_tokens", "bytes", "peak_bytes"),
    "trials",
)
OF_THE_ORACLE = 0.95  # of its share of right answers, that a retrieval should reach
MAX_CHANGED = 0.02  # of unrelated answers, by a memory


@dataclass(frozen=True)
class Bound:
    """A bound that a row should reach, and the figure that it has."""

    what: str
    value: float
    least: float

    @property
    def is_seen(self) -> bool:
        return self.value >= self.least

    def to_json(self) -> dict[str, Any]:
        return {"bound": self.what, "value": self.value, "least": self.least, "seen": self.is_seen}

    def __str__(self) -> str:
        return f"{'seen' if self.is_seen else 'MISSED'}: {self.what}: {self.value:.3f}, at least {self.least:.3f}"


def bounds_of(rows: Sequence[Mapping[str, Any]]) -> Iterator[Bound]:
    """Yield the bounds of the rows that are there, for each seed."""
    oracles = {row["seed"]: row for row in rows if row["editor"] == ORACLE}
    for row in rows:
        kind, seed = EDITORS.get(row["editor"]), row["seed"]
        if row["editor"] == "SCR" and seed in oracles:
            least = OF_THE_ORACLE * oracles[seed]["question"]
            yield Bound(f"SCR answers {OF_THE_ORACLE:g} of what the oracle does, seed {seed}", row["question"], least)
        if kind is not None and kind.writes == "memory" and row.get("agreement") is not None:
            what = f"{row['editor']} leaves unrelated answers as they are, token by token, seed {seed}"
            yield Bound(what, row["agreement"], 1 - MAX_CHANGED)


def scale_of(sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Measure the retrieval of a memory of questions at these numbers of records, as `make bench-retrieval` does."""
    found = [timings(size, RetrievalSettings(), has_subjects=True) for size in sizes]
    names = ("retrieval_ms_p99", "false_firing", "start_s")
    return [{"records": row["num_records"], **{name: row[name] for name in names}} for row in found]


def report(name: str, rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any], scale: Sequence[Mapping[str, Any]]) -> Path:
    """Write report.json and the picture of the rows so far; returns the path of the report.

    JSON has no infinity: the half-life of edits of which none is lost is null, and `not_finite` lists it.
    """
    infinite = [[i, name] for i, row in enumerate(rows) for name, value in row.items() if is_infinite(value)]
    more = {"bounds": [bound.to_json() for bound in bounds_of(rows)], "scale": list(scale), "not_finite": infinite}
    path = write_report(name, without_infinity(rows), **about, **without_infinity(more))
    draw(rows, path.with_name("scores.png"))
    return path


def show_all(name: str, rows: Sequence[Mapping[str, Any]], scale: Sequence[Mapping[str, Any]]) -> None:
    """Print the tables and the bounds."""
    edits = rows[0]["edits"]
    show(f"{edits} corrections of the default model in chat", _columns(rows, SCORES), "shares of answers, generated freely")
    note = "added_… and unrelated_…: a lone request against the unedited model, corrected and other questions, medians"
    show("costs", _columns(rows, COSTS), note)
    if scale:
        show("retrieval by the number of records", scale)
    console().print(*bounds_of(rows), f"picture: {home() / name / 'scores.png'}", sep="\n", highlight=False, soft_wrap=True)


def _columns(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Take some columns of the rows, without those that no row has a value in; the seed only where there are several."""
    there = [name for name in names if any(row.get(name) is not None for row in rows)]
    has_seeds = len({row["seed"] for row in rows}) > 1
    return [
        {"editor": row["editor"], **({"seed": row["seed"]} if has_seeds else {}), **{name: row.get(name) for name in there}}
        for row in rows
    ]
