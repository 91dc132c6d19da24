"""Settings by name: fields of frozen dataclasses, with dots for nested ones, and `field=value` from a command line."""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_type_hints

Record = TypeVar("Record")


def overridden(record: Record, name: str, value: str) -> Record:
    """Return `record` with the field `name`, such as `reward.discount`, parsed from the text `value`.

    The type is that of the present value or, if it is None, the annotated one. Raises `ValueError` for an unknown field, with
    the names that exist, and for a value of another type.
    """
    return _with(record, name.split("."), lambda owner, field: _parsed(value, owner, field, name), name)


def with_fields(record: Record, fields: Mapping[str, Any]) -> Record:
    """Return `record` with fields such as `reward.discount` set. Raises `ValueError` for an unknown field."""
    for name, value in fields.items():
        record = _with(record, name.split("."), lambda _owner, _field, value=value: value, name)  # type: ignore[misc]
    return record


def _with(record: Any, path: list[str], change: Callable[[Any, str], Any], full: str) -> Any:
    names = [f.name for f in dataclasses.fields(record) if f.compare]
    if path[0] not in names:
        raise ValueError(f"{full}: {type(record).__name__} has no field {path[0]!r}; it has {', '.join(names)}")
    now = getattr(record, path[0])
    if len(path) > 1:
        if not dataclasses.is_dataclass(now):
            raise ValueError(f"{full}: {path[0]} has no fields of its own")
        return dataclasses.replace(record, **{path[0]: _with(now, path[1:], change, full)})
    return dataclasses.replace(record, **{path[0]: change(record, path[0])})


def _parsed(value: str, owner: Any, field: str, full: str) -> Any:
    annotated = get_type_hints(type(owner))[field]
    kinds = get_args(annotated) if isinstance(annotated, UnionType) else (annotated,)
    if NoneType in kinds and value == "None":
        return None
    now = getattr(owner, field)
    wanted = type(now) if now is not None else next(kind for kind in kinds if kind is not NoneType)
    if wanted is str:
        return value
    try:
        return _number(value) if wanted is float else _literal(value, wanted)
    except ValueError as wrong:
        raise ValueError(
            f"{full}: {value!r} is not of type {wanted.__name__}{' or None' if NoneType in kinds else ''}"
        ) from wrong


def _number(value: str) -> float:
    """Parse a number, also `inf`. Raises `ValueError` for any other text, and for NaN."""
    found = float(value)
    if math.isnan(found):
        raise ValueError(value)
    return found


def _literal(value: str, wanted: type) -> Any:
    """Parse a Python literal; a tuple may also be texts with commas. Raises `ValueError` for another type."""
    try:
        parsed = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        parsed = tuple(value.split(",")) if wanted is tuple else value
    if wanted is tuple:
        parsed = tuple(parsed) if isinstance(parsed, list | tuple) else (parsed,)
    if type(parsed) is not wanted:
        raise ValueError(value)
    return parsed
