"""Result files of a benchmark: rows.parquet, answers.parquet, report.json, table.md and curves.png."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from errata.benchmark.curves import draw
from errata.benchmark.results import ANSWER_COLUMNS, COLUMNS, Answer, CheckpointScores
from errata.benchmark.summary import summarise
from errata.benchmark.tables import markdown
from errata.durable import replaced, write_text


def write(
    rows: Sequence[CheckpointScores],
    directory: str | Path,
    meta: Mapping[str, Any],
    note: str = "",
    answered: Sequence[Answer] = (),
) -> None:
    """Write the result files, each replaced whole; answers.parquet only if there are answers.

    `meta` are further fields of report.json: command, seeds, hardware, settings by editor. JSON has no infinity: infinite
    values are null there, and `not_finite` lists their rows and columns.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    summaries = summarise(rows)
    records = [row.to_json() for row in rows]
    columns = {name: kind for name, kind in COLUMNS.items() if not records or any(name in record for record in records)}
    _write_table(records, columns, directory / "rows.parquet")
    if answered:
        write_answers(answered, directory / "answers.parquet")
    report = {
        **meta,
        "note": note,
        "standings": [one.to_json() for one in summaries],
        "rows": records,
        "not_finite": [[i, name] for i, record in enumerate(records) for name, v in record.items() if is_infinite(v)],
    }
    write_text(directory / "report.json", json.dumps(without_infinity(report), indent=1, allow_nan=False) + "\n")
    write_text(directory / "table.md", markdown(summaries, note))
    draw(rows, directory / "curves.png")


def read(path: str | Path) -> list[CheckpointScores]:
    """Read a rows.parquet, also an older one that lacks later columns."""
    return [CheckpointScores.from_json(record) for record in pq.read_table(path).to_pylist()]


def write_answers(answered: Sequence[Answer], path: str | Path) -> None:
    _write_table([dataclasses.asdict(answer) for answer in answered], ANSWER_COLUMNS, Path(path))


def read_answers(path: str | Path) -> list[Answer]:
    """Read an answers.parquet."""
    return [Answer(**record) for record in pq.read_table(path).to_pylist()]


def _write_table(records: list[dict[str, Any]], columns: Mapping[str, type], path: Path) -> None:
    with replaced(path) as file:
        pq.write_table(pa.Table.from_pylist(records, schema=_schema(columns)), file)


def _schema(columns: Mapping[str, type]) -> pa.Schema:
    kinds = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    return pa.schema([(name, kinds[kind]) for name, kind in columns.items()])


def is_infinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def without_infinity(value: Any) -> Any:
    """Return records with null in the place of each infinite value."""
    if isinstance(value, Mapping):
        return {key: without_infinity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_infinity(item) for item in value]
    return None if is_infinite(value) else value
