"""The card of a version in MLflow: tags, params, metrics, a description in Markdown, and tables as CSV. Imports no mlflow."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from errata.edit import ORIGIN
from errata.ledger import Version

# MLflow limits a description to 5,000 characters, and the name of a metric to 250 of the allowed characters.
NUM_SHOWN, NUM_MEASURES, CELL, NAME, LENGTH = 10, 15, 60, 250, 5000
_NOT_IN_A_NAME = re.compile(r"[^\w\-. :/]")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<()#+!|~])")

EDIT_COLUMNS = ("prompt", "target", "subject", "rephrasings", "id", "poster", "approver", *ORIGIN)
REFUSAL_COLUMNS = ("prompt", "target", "reason", "code", "field", "parent", "time", "id", "poster", "scores", "says")


def tags(version: Version) -> dict[str, str]:
    """Return the tags of the LoggedModel and of the registered version: lineage and size."""
    found = {
        "version": version.number,
        "parent": "" if version.parent is None else version.parent,
        "fingerprint": version.fingerprint,
        "editor": version.editor,
        "plan": version.plan,
        "num_edits": len(version.edits),
        "num_bytes": version.num_bytes,
    }
    if warnings := _warnings(version):
        found["num_warnings"] = len(warnings)
    return {f"errata.{key}": str(value) for key, value in found.items()}


def params(version: Version) -> dict[str, str]:
    """Return the params of the LoggedModel."""
    parent = "none" if version.parent is None else str(version.parent)
    found = {"editor": version.editor, "plan": version.plan, "parent": parent, "num_edits": str(len(version.edits))}
    return {key: value for key, value in found.items() if value}


def metrics(version: Version) -> dict[str, float]:
    """Return the finite numbers of the scorecard, one level deep, and size, ranks and norms, by names that MLflow accepts."""
    tables = {**version.scorecard, "rank": version.ranks, "norm": version.norms, "num_bytes": version.num_bytes}
    nested = {f"{name}/{key}": v for name, value in tables.items() if isinstance(value, Mapping) for key, v in value.items()}
    numbers = {key: value for key, value in {**tables, **nested}.items() if isinstance(value, int | float)}
    return {_metric_name(key): float(value) for key, value in numbers.items() if math.isfinite(value)}


def _metric_name(name: str) -> str:
    """Make a name that MLflow accepts: it stores a metric in a file of this name, and refuses paths that lead elsewhere."""
    parts = [part for part in _NOT_IN_A_NAME.sub("_", name).split("/") if part not in ("", ".", "..")]
    return "/".join(parts)[:NAME].rstrip("/") or "_"


def created_ms(iso_time: str) -> int:
    """Convert an ISO time to milliseconds since 1970."""
    return int(datetime.fromisoformat(iso_time).timestamp() * 1000)


def description(version: Version) -> str:
    """Describe a version in at most 5,000 characters of Markdown: its origin, warnings, scores and first edits."""
    lines = [_origin(version), ""]
    lines += [f"- **Warning**: {_cell(warning, 200)}" for warning in _warnings(version)[:3]] + [""]
    scores = [(k, v) for k, v in version.scorecard.items() if isinstance(v, int | float) and not isinstance(v, bool)]
    if scores:
        lines += ["| score | value |", "|---|---|"] + [f"| {_cell(k)} | {v:.6g} |" for k, v in scores[:NUM_MEASURES]] + [""]
    if version.edits:
        lines += ["| prompt | target | subject |", "|---|---|---|"]
        for edit in version.edits[:NUM_SHOWN]:
            lines.append(f"| {_cell(edit.prompt)} | {_cell(edit.target)} | {_cell(edit.subject or '')} |")
        if (more := len(version.edits) - NUM_SHOWN) > 0:
            lines += ["", f"and {more} more, in the model's artifact `edits.csv`"]
    return "\n".join(lines)[:LENGTH]


def _origin(version: Version) -> str:
    if version.parent is None:
        return f"Version {version.number}: the unedited model."
    made = f"made by {_cell(version.editor)} with plan {_cell(version.plan)}" if version.editor else "made"
    size = f"{len(version.edits)} edit{'' if len(version.edits) == 1 else 's'}, {version.num_bytes / 1e3:.1f} kB"
    return f"Version {version.number}, which follows version {version.parent}: {size}, {made}, {version.created}."


def _warnings(version: Version) -> list[str]:
    found = version.scorecard.get("warnings") or ()
    return [str(one) for one in found] if isinstance(found, list | tuple) else [str(found)]


def _cell(text: Any, length: int = CELL) -> str:
    """Escape Markdown and fold into one line, because users write these texts."""
    flat = " ".join(str(text).split())
    return _MARKDOWN.sub(r"\\\1", flat if len(flat) <= length else flat[: length - 1] + "…")


def edits_csv(version: Version) -> str:
    """Return the edits of a version as CSV."""
    return _csv(EDIT_COLUMNS, (edit.to_json() for edit in version.edits))


def refusals_csv(records: Iterable[Mapping[str, Any]]) -> str:
    """Return records of `Ledger.refusals` as CSV."""
    return _csv(REFUSAL_COLUMNS, ({**(record.get("edit") or {}), **record} for record in records))


def _csv(columns: tuple[str, ...], rows: Iterable[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(columns)
    for row in rows:
        values = [row.get(column) for column in columns]
        table.writerow(json.dumps(v, ensure_ascii=False) if isinstance(v, list | tuple | dict) else v for v in values)
    return out.getvalue()
