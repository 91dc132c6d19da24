"""Settings by name: fields of frozen dataclasses, with dots for nested ones, and `field=value` from a command line."""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

Record = TypeVar("Record")


class WrongSetting(ValueError):
    """A field that does not exist, or a value that it cannot have: `name` is the field, `reason` says what is wrong."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def overridden(record: Record, name: str, value: str) -> Record:
    """Return `record` with the field `name`, such as `reward.discount`, parsed from the text `value`.

    The type is that of the present value or, if it is None, the annotated one. Raises `WrongSetting` for an unknown field, with
    the names that exist, and for a value of another type.
    """
    return _with(record, name.split("."), lambda owner, field: _parsed(value, owner, field, name), name)


def with_fields(record: Record, fields: Mapping[str, Any]) -> Record:
    """Return `record` with fields such as `reward.discount` set. Raises `WrongSetting` for an unknown field."""
    for name, value in fields.items():
        record = _with(record, name.split("."), lambda _owner, _field, value=value: value, name)  # type: ignore[misc]
    return record


def _with(record: Any, path: list[str], change: Callable[[Any, str], Any], full: str) -> Any:
    names = [f.name for f in dataclasses.fields(record) if f.compare]
    if path[0] not in names:
        meant = _meant(record, path[0], full.removesuffix(".".join(path)))
        raise WrongSetting(full, f"{type(record).__name__} has no field {path[0]!r}; it has {', '.join(names)}{meant}")
    now = getattr(record, path[0])
    if len(path) > 1:
        if not dataclasses.is_dataclass(now):
            raise WrongSetting(full, f"{path[0]} has no fields of its own")
        return dataclasses.replace(record, **{path[0]: _with(now, path[1:], change, full)})
    return dataclasses.replace(record, **{path[0]: change(record, path[0])})


def _meant(record: Any, field: str, prefix: str) -> str:
    """Suggest the fields that are spelt like the unknown one, also those inside other fields."""
    known = {path.rpartition(".")[2]: prefix + path for path in reversed(list(_paths(record)))}
    close = [known[name] for name in get_close_matches(field, known, n=2, cutoff=0.7)]
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _paths(record: Any) -> Iterator[str]:
    """Yield the names of all fields, with dots for nested ones, the outer ones first."""
    fields = [f.name for f in dataclasses.fields(record) if f.compare]
    yield from fields
    for name in fields:
        if dataclasses.is_dataclass(inner := getattr(record, name)):
            yield from (f"{name}.{path}" for path in _paths(inner))


def _parsed(value: str, owner: Any, field: str, full: str) -> Any:
    annotated = get_type_hints(type(owner))[field]
    kinds = get_args(annotated) if isinstance(annotated, UnionType) else (annotated,)
    if NoneType in kinds and value == "None":
        return None
    now = getattr(owner, field)
    if dataclasses.is_dataclass(now):
        inner = next(_paths(now), "")
        raise WrongSetting(full, f"{value!r} is not of type {type(now).__name__}; set its fields, such as {full}.{inner}")
    kind = next(kind for kind in kinds if kind is not NoneType)
    if get_origin(kind) is Literal and value not in get_args(kind):
        raise WrongSetting(full, f"{value!r} is not one of {', '.join(map(str, get_args(kind)))}")
    wanted = type(now) if now is not None else get_origin(kind) or kind
    if wanted is str:
        return value
    if wanted is tuple:
        return _tuple(value, next(iter(get_args(kind)), str), now, full)
    try:
        return _number(value) if wanted is float else _literal(value, wanted)
    except ValueError as wrong:
        kind_name = f"{wanted.__name__}{' or None' if NoneType in kinds else ''}"
        raise WrongSetting(full, f"{value!r} is not of type {kind_name}; give {_such_as(now, wanted)}") from wrong


def _such_as(now: Any, wanted: type) -> str:
    """Name a value that works: the present one, if there is one."""
    if wanted is bool:
        return "True or False"
    return f"{ ({float: 0.5, int: 8}.get(wanted) if now is None else now)!r}, for example"


def _number(value: str) -> float:
    """Parse a number, also `inf`. Raises `ValueError` for any other text, and for NaN."""
    found = float(value)
    if math.isnan(found):
        raise ValueError(value)
    return found


def _read(value: str) -> Any:
    """Parse a Python literal; other text stays as it is."""
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def _literal(value: str, wanted: type) -> Any:
    """Parse a Python literal, also `true` and `false`. Raises `ValueError` for another type."""
    parsed = _read(value.capitalize() if wanted is bool else value)
    if type(parsed) is not wanted:
        raise ValueError(value)
    return parsed


def _tuple(value: str, element: Any, now: Any, full: str) -> tuple[Any, ...]:
    """Parse elements with commas, or a Python tuple or list. Raises `WrongSetting` for none, and for one of another type."""
    try:
        parsed = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        texts = tuple(part.strip() for part in value.split(","))
        parsed = None if not value.strip() else texts if element is str else tuple(map(_read, texts))
    if element is str and isinstance(parsed, int | float | bool):
        parsed = value
    parts = tuple(parsed) if isinstance(parsed, list | tuple) else () if parsed is None else (parsed,)
    if element is float:
        parts = tuple(float(part) if type(part) is int else part for part in parts)
    how = f"give values separated by commas, such as {full}={','.join(map(str, now or ())) or 'one,two'}"
    if parsed is None or "" in parts:
        raise WrongSetting(full, f"{value!r} has an empty part; {how}")
    if wrong := [part for part in parts if type(part) is not element]:
        name = getattr(element, "__name__", str(element))
        raise WrongSetting(full, f"{wrong[0]!r} in {value!r} is not of type {name}; {how}")
    return parts
