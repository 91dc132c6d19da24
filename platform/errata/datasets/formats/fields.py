"""Accessors for fields of a foreign record. Each returns a checked value or raises an `EditRejected` that names the field.

A nested field is named by its path, such as `requested_rewrite.target_new.str`. What an edit needs (prompt, target, subject) is
refused if it is at fault. What only trains and scores (rephrasings, probes) costs itself alone: the accessors with `left_out`
append the reason to it and go on. A field that is given but empty (null, "", []) is left out in the same way; one that is not
given at all is not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from errata.datasets.written_numbers import WrittenNumber
from errata.edit import Code, EditRejected
from errata.text.rules import cleaned

Record = Mapping[str, Any]
LeftOut = list[EditRejected]  # optional fields that were left out of one record, each with the reason


def value(record: Record, path: str) -> Any:
    """Return the value at `path`, or None. Raises `EditRejected` if a part of the path is not an object."""
    if "." not in path:
        return record.get(path)
    found: Any = record
    passed: list[str] = []
    for name in path.split("."):
        if found is None:
            return None
        if not isinstance(found, Mapping):
            raise EditRejected(f"must be an object, not {kind_of(found)}", field=".".join(passed), code=Code.WRONG_TYPE)
        found = found.get(name)
        passed.append(name)
    return found


def string(record: Record, path: str) -> str:
    """Return a string, which may be empty."""
    found = value(record, path)
    if not isinstance(found, str):
        raise _no_string(found, path)
    return found


def text(record: Record, path: str) -> str:
    """Return a string that is more than white space."""
    found = string(record, path)
    if not found.strip():
        raise EditRejected("is empty; give the text", field=path, code=Code.EMPTY_FIELD)
    return found


def written(record: Record, path: str) -> str:
    """Return a target or a subject, cleaned: a text, or a number as it was written. It is not empty."""
    return written_value(value(record, path), path)


def new_target(record: Record, path: str) -> str:
    """Return a target that is given as {str: TEXT}, as in ROME's files, or as the text itself."""
    found = value(record, path)
    return written_value(found, path) if isinstance(found, str | int | float) else written(record, f"{path}.str")


def written_value(found: Any, field: str) -> str:
    """Return a text, or a number as it was written, cleaned. Raises `EditRejected` if the number's text is not known."""
    if isinstance(found, str):
        if not (kept := found.strip() if found.isascii() else cleaned(found)):
            raise EditRejected("is empty; give the text", field=field, code=Code.EMPTY_FIELD)
        return kept
    if isinstance(found, WrittenNumber):
        return found.text
    if isinstance(found, int) and not isinstance(found, bool):
        return str(found)
    raise _no_string(found, field)


def answer_value(found: Any, field: str) -> str:
    """Return the answer of a probe: a text or number, or the first one of a list, or of a list of lists of aliases."""
    while isinstance(found, list):
        if not found:
            raise EditRejected("has no answer", field=field, code=Code.EMPTY_FIELD)
        found = found[0]
    return written_value(found, field)


def answer_aliases(found: Any, left_out: LeftOut, field: str) -> tuple[str, ...]:
    """Return the other texts of the group of aliases that `answer_value` takes the first of; none if groups are not given.

    A list that is in no other one may be of several answers, so its texts are no aliases.
    """
    depth = 0
    while isinstance(found, list) and found and isinstance(found[0], list):
        found, depth = found[0], depth + 1
    return texts_of(found[1:], field, left_out) if depth and isinstance(found, list) else ()


def texts_of(found: Any, field: str, left_out: LeftOut) -> tuple[str, ...]:
    """Return texts and numbers of a list that may be absent, cleaned; an element of another type is left out."""
    kept: list[str] = []
    if found is not None and not isinstance(found, list):
        left_out.append(EditRejected(f"must be a list of strings, not {kind_of(found)}", field=field, code=Code.WRONG_TYPE))
    for index, one in enumerate(found if isinstance(found, list) else []):
        try:
            kept.append(written_value(one, f"{field}[{index}]"))
        except EditRejected as rejected:
            left_out.append(rejected)
    return tuple(dict.fromkeys(kept))


def either(record: Record, *names: str) -> str:
    """Return the first of the fields that is given, or the first of all, so that its absence is what an error names."""
    return next((name for name in names if name in record), names[0])


def optional_text(record: Record, path: str, left_out: LeftOut) -> str | None:
    """Return a text, or None if it is not given. An empty one, or one that is no string, is left out."""
    found = value(record, path)
    if found is None and path not in record:
        return None
    if found is None or found == "":
        left_out.append(_empty(path))
        return None
    try:
        return text(record, path)
    except EditRejected as rejected:
        left_out.append(rejected)
        return None


def optional_written(record: Record, path: str, left_out: LeftOut) -> str | None:
    """Return a text or number, cleaned, or None if it is not given or empty. Any other type is refused."""
    found = value(record, path)
    if found is None and path not in record:
        return None
    if found is None or found == "" or (isinstance(found, str) and not cleaned(found)):
        left_out.append(_empty(path))
        return None
    return written_value(found, path)


def texts(record: Record, path: str, left_out: LeftOut) -> tuple[str, ...]:
    """Return the strings of a list, or a single string, that are not empty; faulty elements are left out.

    Raises `EditRejected` if the field is neither, because then all of it was meant in another way.
    """
    found = value(record, path)
    if found is None and path not in record:
        return ()
    if isinstance(found, str) and found.strip():
        return (found,)
    if not found and not isinstance(found, bool | int | float):
        left_out.append(_empty(path))
        return ()
    if not isinstance(found, list):
        raise EditRejected(f"must be a list of strings, not {kind_of(found)}", field=path, code=Code.WRONG_TYPE)
    kept = []
    for index, one in enumerate(found):
        if isinstance(one, str) and one.strip():
            kept.append(one)
        elif one is None or isinstance(one, str):
            left_out.append(_empty(f"{path}[{index}]"))
        else:
            left_out.append(_no_string(one, f"{path}[{index}]"))
    return tuple(kept)


def objects(record: Record, path: str) -> list[Record]:
    """Return a list of objects. A missing or empty field gives an empty list."""
    found = value(record, path)
    if not found and not isinstance(found, bool | int | float):
        return []
    if not isinstance(found, list):
        raise EditRejected(f"must be a list of objects, not {kind_of(found)}", field=path, code=Code.WRONG_TYPE)
    for index, one in enumerate(found):
        if not isinstance(one, Mapping):
            raise EditRejected(f"must be an object, not {kind_of(one)}", field=f"{path}[{index}]", code=Code.WRONG_TYPE)
    return found


def first(record: Record, path: str) -> str:
    """Return the first text of a list that must have one, or the text itself, cleaned."""
    found = value(record, path)
    if not isinstance(found, list):
        if isinstance(found, str):
            return written_value(found, path)
        raise EditRejected(
            f"must be a list of at least one string{_instead(found)}",
            field=path,
            code=Code.MISSING_FIELD if found is None else Code.WRONG_TYPE,
        )
    if not found:
        raise EditRejected("must be a list of at least one string", field=path, code=Code.EMPTY_FIELD)
    return written_value(found[0], f"{path}[0]")


def identity(record: Record, path: str, prefix: str) -> str | None:
    """`PREFIX-ID` if the record has an id that is a number or a string."""
    found = value(record, path)
    return f"{prefix}-{found}" if isinstance(found, int | str) and found != "" else None


def kind_of(found: Any) -> str:
    """Name the JSON type of a value."""
    if found is None:
        return "null"
    if isinstance(found, float):
        return "a number"
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", int: "a number"}
    return names.get(type(found), type(found).__name__)


def _empty(field: str) -> EditRejected:
    return EditRejected("is empty", field=field, code=Code.EMPTY_FIELD)


def _no_string(found: Any, field: str) -> EditRejected:
    advice = "; put it in quotes" if isinstance(found, bool | int | float) else ""
    code = Code.MISSING_FIELD if found is None else Code.WRONG_TYPE
    return EditRejected(f"must be given as a string{_instead(found)}{advice}", field=field, code=code)


def _instead(found: Any) -> str:
    return "" if found is None else f", not {kind_of(found)}"
