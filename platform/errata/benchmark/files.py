"""Result files of a benchmark."""

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
from errata.benchmark.results import Answer, CheckpointScores, columns
from errata.benchmark.summary import summarise
from errata.benchmark.tables import markdown


def write(
    rows: Sequence[CheckpointScores],
    directory: str | Path,
    meta: Mapping[str, Any],
    note: str = "",
    answered: Sequence[Answer] = (),
) -> None:
    """The files; answers.parquet only with answers. `meta` is what report.json says beside the rows: command, seeds, hardware,
    settings by editor.

    JSON has no infinity: there it is null, and `not_finite` lists the rows and columns that it stands in.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    found = summarise(rows)
    records = [row.to_json() for row in rows]
    pq.write_table(pa.Table.from_pylist(records, schema=_schema(CheckpointScores)), directory / "rows.parquet")
    if answered:
        write_answers(answered, directory / "answers.parquet")
    report = {
        **meta,
        "note": note,
        "standings": [dataclasses.asdict(one) for one in found],
        "rows": records,
        "not_finite": [[i, name] for i, record in enumerate(records) for name, v in record.items() if _is_infinite(v)],
    }
    (directory / "report.json").write_text(json.dumps(_without_infinity(report), indent=1, allow_nan=False) + "\n")
    (directory / "table.md").write_text(markdown(found, note))
    draw(rows, directory / "curves.png")


def read(path: str | Path) -> list[CheckpointScores]:
    """The rows of a rows.parquet, also of an older one that lacks the newer columns."""
    return [CheckpointScores.from_json(record) for record in pq.read_table(path).to_pylist()]


def write_answers(answered: Sequence[Answer], path: str | Path) -> None:
    records = [dataclasses.asdict(answer) for answer in answered]
    pq.write_table(pa.Table.from_pylist(records, schema=_schema(Answer)), path)


def read_answers(path: str | Path) -> list[Answer]:
    """The answers of an answers.parquet."""
    return [Answer(**record) for record in pq.read_table(path).to_pylist()]


def _schema(record: type) -> pa.Schema:
    kinds = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    return pa.schema([(name, kinds[kind]) for name, kind in columns(record).items()])


def _is_infinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _without_infinity(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_infinity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinity(item) for item in value]
    return None if _is_infinite(value) else value
