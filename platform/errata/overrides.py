"""`field=value` from a command line onto a frozen dataclass, dots for nested ones."""

from __future__ import annotations

import ast
import dataclasses
from typing import Any, TypeVar

Record = TypeVar("Record")


def overridden(record: Record, name: str, value: str) -> Record:
    """`record` with the field `name`, such as `reward.discount`, read from `value` as the type that it has now.

    Raises `ValueError` naming a field that is not there, and what there is, or a value of another type.
    """
    return _with(record, name.split("."), value, name)


def _with(record: Any, path: list[str], value: str, full: str) -> Any:
    names = [f.name for f in dataclasses.fields(record) if f.compare]
    if path[0] not in names:
        raise ValueError(f"{full}: {type(record).__name__} has no field {path[0]!r}; it has {', '.join(names)}")
    now = getattr(record, path[0])
    if len(path) > 1:
        if not dataclasses.is_dataclass(now):
            raise ValueError(f"{full}: {path[0]} has no fields of its own")
        return dataclasses.replace(record, **{path[0]: _with(now, path[1:], value, full)})
    return dataclasses.replace(record, **{path[0]: _parsed(value, now, full)})


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
