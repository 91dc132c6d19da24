"""Edits from files, in order, without holding a file in memory: Parquet through pyarrow, and JSON lines.

The Parquet schema: `prompt` and `target` (string), and optionally `subject`, `id` (string), `rephrasings` (list of string),
`locality` and `portability` (list of {prompt, target}).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from errata.edit import Edit, EditRejected, Probe

_PROBES = pa.list_(pa.struct([("prompt", pa.string()), ("target", pa.string())]))
SCHEMA = pa.schema(
    [
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("target", pa.string(), nullable=False),
        ("subject", pa.string()),
        ("rephrasings", pa.list_(pa.string())),
        ("locality", _PROBES),
        ("portability", _PROBES),
        ("id", pa.string()),
    ]
)


def write_parquet(edits: Iterable[Edit], path: str | Path) -> None:
    """Write edits as one Parquet file; the file appears whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    pq.write_table(pa.Table.from_pylist([edit.to_json() for edit in edits], schema=SCHEMA), unfinished)
    unfinished.rename(path)


def read_edits(path: str | Path) -> Iterator[Edit]:
    """Edits of a `.parquet`, `.jsonl` or `.json` (a list) file. Raises `EditRejected` naming the record at fault, from 0."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    for index, record in enumerate(_records(path)):
        try:
            edit = from_counterfact(record) if "target_new" in record else Edit.from_json(record)
        except EditRejected as rejected:
            raise EditRejected(f"{rejected.reason} ({path.name})", edit=index, field=rejected.field) from rejected
        for name, reason in edit.faults():
            raise EditRejected(f"{reason} ({path.name})", edit=index, field=name)
        yield edit


def from_counterfact(record: Mapping[str, Any]) -> Edit:
    """An edit from a flat CounterFact record. Raises `EditRejected` naming a field that is missing or not a string."""
    names = ("prompt", "target_new", "subject", "rephrase_prompt", "locality_prompt", "locality_ground_truth")
    for name in names:
        if not isinstance(record.get(name), str):
            raise EditRejected("must be given as a string in a CounterFact record", field=name)
    return Edit(
        prompt=record["prompt"],
        target=record["target_new"].strip(),
        subject=record["subject"],
        rephrasings=(record["rephrase_prompt"],),
        locality=(Probe(record["locality_prompt"], record["locality_ground_truth"].strip()),),
        id=f"counterfact-{record['case_id']}" if "case_id" in record else None,
    )


def _records(path: Path) -> Iterator[dict]:
    if path.suffix == ".parquet":
        for batch in pq.ParquetFile(path).iter_batches(batch_size=1024):
            yield from ({k: v for k, v in row.items() if v is not None} for row in batch.to_pylist())
    elif path.suffix == ".jsonl":
        with path.open() as lines:
            yield from (json.loads(line) for line in lines if line.strip())
    elif path.suffix == ".json":
        yield from json.loads(path.read_text())
    else:
        raise ValueError(f"{path.name}: edits are read from .parquet, .jsonl and .json files")
