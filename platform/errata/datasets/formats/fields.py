"""Accessors for fields of a foreign record. Each returns a checked value or raises an `EditRejected` that names the field.

A nested field is named by its path, such as `requested_rewrite.target_new.str`. A null counts as not given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from errata.edit import Code, EditRejected

Record = Mapping[str, Any]


def value(record: Record, path: str) -> Any:
    """Return the value at `path`, or None. Raises `EditRejected` if a part of the path is not an object."""
    found: Any = record
    passed: list[str] = []
    for name in path.split("."):
        if found is None:
            return None
        if not isinstance(found, Mapping):
            raise EditRejected(f"must be an object, not {_kind(found)}", field=".".join(passed) or path, code=Code.WRONG_TYPE)
        found = found.get(name)
        passed.append(name)
    return found


def string(record: Record, path: str) -> str:
    """Return a string, which may be empty."""
    found = value(record, path)
    if not isinstance(found, str):
        raise EditRejected(
            f"must be given as a string{_instead(found)}",
            field=path,
            code=Code.MISSING_FIELD if found is None else Code.WRONG_TYPE,
        )
    return found


def text(record: Record, path: str) -> str:
    """Return a string that is more than white space."""
    found = string(record, path)
    if not found.strip():
        raise EditRejected("is empty; give the text", field=path, code=Code.EMPTY_FIELD)
    return found


def optional_text(record: Record, path: str) -> str | None:
    """Return a text or None. An empty string counts as not given, because several datasets write it so."""
    return None if value(record, path) in (None, "") else text(record, path)


def texts(record: Record, path: str) -> tuple[str, ...]:
    """Return a list of strings that are not empty. A missing field gives an empty list."""
    found = value(record, path)
    if found is None:
        return ()
    if not isinstance(found, list):
        raise EditRejected(
            f"must be a list of strings{_instead(found)}",
            field=path,
            code=Code.MISSING_FIELD if found is None else Code.WRONG_TYPE,
        )
    for index, one in enumerate(found):
        if not isinstance(one, str):
            raise EditRejected(f"must be a string, not {_kind(one)}", field=f"{path}[{index}]", code=Code.WRONG_TYPE)
        if not one.strip():
            raise EditRejected("is empty; leave it out", field=f"{path}[{index}]", code=Code.EMPTY_FIELD)
    return tuple(found)


def objects(record: Record, path: str) -> list[Record]:
    """Return a list of objects. A missing field gives an empty list."""
    found = value(record, path)
    if found is None:
        return []
    if not isinstance(found, list):
        raise EditRejected(
            f"must be a list of objects{_instead(found)}",
            field=path,
            code=Code.MISSING_FIELD if found is None else Code.WRONG_TYPE,
        )
    for index, one in enumerate(found):
        if not isinstance(one, Mapping):
            raise EditRejected(f"must be an object, not {_kind(one)}", field=f"{path}[{index}]", code=Code.WRONG_TYPE)
    return found


def first(record: Record, path: str) -> str:
    """Return the first string of a list that must have one."""
    found = texts(record, path)
    if not found:
        raise EditRejected("must be a list of at least one string", field=path, code=Code.EMPTY_FIELD)
    return found[0]


def identity(record: Record, path: str, prefix: str) -> str | None:
    """`PREFIX-ID` if the record has an id that is a number or a string."""
    found = value(record, path)
    return f"{prefix}-{found}" if isinstance(found, (int, str)) else None


def _instead(found: Any) -> str:
    return "" if found is None else f", not {_kind(found)}"


def _kind(found: Any) -> str:
    if found is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", int: "a number", float: "a number"}
    return names.get(type(found), type(found).__name__)
