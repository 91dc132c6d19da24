"""Fields of a frozen dataclass by name, dots for nested ones; `field=value` from a command line."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Record = TypeVar("Record")


def overridden(record: Record, name: str, value: str) -> Record:
    """`record` with the field `name`, such as `reward.discount`, read from `value` as the type that it has now.

    Raises `ValueError` naming a field that is not there, and what there is, or a value of another type.
    """
    return _with(record, name.split("."), lambda now: _parsed(value, now, name), name)


def with_fields(record: Record, fields: Mapping[str, Any]) -> Record:
    """`record` with fields such as `reward.discount` set. Raises `ValueError` naming a field that is not there."""
    for name, value in fields.items():
        record = _with(record, name.split("."), lambda _now, value=value: value, name)  # type: ignore[misc]
    return record


def _with(record: Any, path: list[str], change: Callable[[Any], Any], full: str) -> Any:
    names = [f.name for f in dataclasses.fields(record) if f.compare]
    if path[0] not in names:
        raise ValueError(f"{full}: {type(record).__name__} has no field {path[0]!r}; it has {', '.join(names)}")
    now = getattr(record, path[0])
    if len(path) > 1:
        if not dataclasses.is_dataclass(now):
            raise ValueError(f"{full}: {path[0]} has no fields of its own")
        return dataclasses.replace(record, **{path[0]: _with(now, path[1:], change, full)})
    return dataclasses.replace(record, **{path[0]: change(now)})


def _parsed(value: str, now: Any, full: str) -> Any:
    if isinstance(now, str):
        return value
    try:
        parsed = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        parsed = tuple(value.split(",")) if isinstance(now, tuple) else value
    if isinstance(now, float) and isinstance(parsed, int) and not isinstance(parsed, bool):
        parsed = float(parsed)
    if isinstance(now, tuple):
        parsed = tuple(parsed) if isinstance(parsed, list | tuple) else (parsed,)
    if now is not None and type(parsed) is not type(now):
        raise ValueError(f"{full}: {value!r} is no {type(now).__name__}")
    return parsed
