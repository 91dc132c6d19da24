"""A rows.parquet without a run of the benchmark."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from errata.benchmark.results import COLUMNS, CheckpointScores


def a_row() -> CheckpointScores:
    numbers = dict.fromkeys(COLUMNS, 1.0)
    return CheckpointScores.from_json({**numbers, "editor": "unedited", "seed": 0, "edits": 1, "peak_bytes": 1, "rejected": 0})


def write_rows(folder: Path, rows: list[CheckpointScores]) -> None:
    records = [row.to_json() for row in rows]
    pq.write_table(pa.table({name: [record[name] for record in records] for name in COLUMNS}), folder / "rows.parquet")
