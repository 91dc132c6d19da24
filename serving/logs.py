"""Structured log lines: one line for each event, with a name and fields, for people and for machines.

With Serve's JSON encoding (`JSON`) a field is a key of the line's object, beside Serve's own `deployment`, `replica` and
`request_id`; in plain text it is in the message. Only the fields listed here exist: ids, names, counts and seconds. A prompt
may be private and a key is secret, so neither has a field. The traceback of an unexpected exception is written without the
exception's message, which may hold a text.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

# The argument `logging_config` of `serve.deployment`: one JSON object a line, in the session's logs/serve/.
JSON: Mapping[str, Any] = {"encoding": "JSON"}

FIELDS = frozenset(
    {
        "edit_ids",
        "form",  # completion or chat
        "num_edits",
        "version",
        "parent",
        "mode",  # Of a revert.
        "by",  # The name of a key, never the key.
        "reason",  # One of metrics.REASONS.
        "code",  # Of a refused edit: a value of `errata.edit.Code`.
        "queued_s",
        "edit_s",
        "guard_s",
        "append_s",
        "swap_ms",
        "num_bytes",
        "replicas",
        "behind",
        "attempts",
        "error",  # A fault of the service's own parts; a refused edit has a `reason`.
        "pid",
    }
)


def attach_to_serve() -> None:
    """Write the lines of the package's logger `errata` where Serve writes its own; further calls change nothing.

    Serve writes only what its logger `ray.serve` gets, and may replace that logger's handlers, so the lines pass through the
    logger itself.
    """
    serve, own = logging.getLogger("ray.serve"), logging.getLogger("errata")
    serve.addFilter(without_messages)  # Added once: a function that is there already is not added again.
    _keep_open(serve.handlers)
    if not any(isinstance(handler, _ThroughServe) for handler in own.handlers):
        own.addHandler(_ThroughServe(serve))
        own.setLevel(serve.getEffectiveLevel())
        own.propagate = False


def _keep_open(handlers: Iterable[logging.Handler]) -> None:
    """Let handlers only flush when they are closed.

    vLLM configures its loggers by `logging.config.dictConfig`, which closes every handler of the process. A buffer of Serve's
    whose file is closed keeps all later lines in memory and writes none, and Serve's controller, when it starts again, stops a
    replica that cannot name its log file.
    """
    for handler in handlers:
        handler.close = handler.flush  # type: ignore[method-assign]
        target = getattr(handler, "target", None)
        _keep_open([target] if isinstance(target, logging.Handler) else [])


def without_messages(record: logging.LogRecord) -> bool:
    """Replace the traceback of a log line by one without the messages of the exceptions; a filter of `logging`."""
    if record.exc_info and record.exc_info[1] is not None:
        record.exc_text = "".join(_frames(record.exc_info[1])).rstrip()
    return True


def _frames(error: BaseException) -> Iterator[str]:
    """Yield the lines of a traceback, causes first; of each exception its kind alone."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        yield from _frames(before)
    yield "Traceback (most recent call last):\n"
    yield from traceback.format_tb(error.__traceback__)
    yield f"{type(error).__name__}\n"


class _ThroughServe(logging.Handler):
    def __init__(self, serve: logging.Logger) -> None:
        super().__init__()
        self.serve = serve

    def emit(self, record: logging.LogRecord) -> None:
        self.serve.handle(record)


def event(logger: logging.Logger, name: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log that `name` happened, such as `edit.applied`. Fields that are None are left out.

    Raises `ValueError` for a field that is not in `FIELDS`, so that no text from a client gets into a log by accident.
    """
    if unknown := sorted(set(fields) - FIELDS):
        raise ValueError(f"not fields of a log line: {', '.join(unknown)}; serving/logs.py lists them")
    known = {key: _plain(value) for key, value in fields.items() if value is not None}
    if not logger.isEnabledFor(level):
        return
    words = " ".join(f"{key}={_word(value)}" for key, value in known.items())
    logger.log(level, "%s", f"{name} {words}".rstrip(), extra={"event": name, **known}, stacklevel=2)


def _plain(value: Any) -> Any:
    """Convert a value to what JSON can hold; a line that cannot be encoded would be lost."""
    if isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in value]
    return f"{type(value).__name__}: {value}" if isinstance(value, BaseException) else str(value)


def _word(value: Any) -> str:
    """Format a value as one word of a line; text with spaces or line breaks is quoted."""
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if text.isprintable() and " " not in text else repr(text)
