"""One line for each thing that happens to an edit: a name and fields, the same for people and for machines.

With Serve's JSON encoding (`JSON`) a field is a key of the line's object, beside Serve's own `deployment`, `replica` and
`request_id`; in plain text it stands in the message. Only the fields listed here exist: ids, names, counts and seconds. A
prompt may be private and a key is secret, so neither has a field.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

# For `serve.deployment(logging_config=...)`: one JSON object a line, in the session's logs/serve/.
JSON: Mapping[str, Any] = {"encoding": "JSON"}

FIELDS = frozenset(
    {
        "edit_ids",
        "num_edits",
        "version",
        "parent",
        "mode",  # of a revert
        "by",  # the name of a key, never the key
        "reason",  # one of metrics.REASONS
        "queued_s",
        "edit_s",
        "guard_s",
        "append_s",
        "swap_ms",
        "num_bytes",
        "replicas",
        "behind",
        "attempts",
        "error",  # of the service's own parts; an edit's refusal has a `reason`
        "pid",
    }
)


def event(logger: logging.Logger, name: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log that `name` happened, such as `edit.applied`. None is left out.

    Raises `ValueError` for a field that is not in `FIELDS`, so that no text of a client's gets into a log by accident.
    """
    if unknown := sorted(set(fields) - FIELDS):
        raise ValueError(f"not fields of a log line: {', '.join(unknown)}; serving/logs.py lists them")
    known = {key: _plain(value) for key, value in fields.items() if value is not None}
    if not logger.isEnabledFor(level):
        return
    words = " ".join(f"{key}={_word(value)}" for key, value in known.items())
    logger.log(level, "%s", f"{name} {words}".rstrip(), extra={"event": name, **known}, stacklevel=2)


def _plain(value: Any) -> Any:
    """What JSON can hold: a line that cannot be written is a line lost."""
    if isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in value]
    return f"{type(value).__name__}: {value}" if isinstance(value, BaseException) else str(value)


def _word(value: Any) -> str:
    """One line, whatever is in it."""
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if text.isprintable() and " " not in text else repr(text)
