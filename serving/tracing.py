"""Trace spans of an edit under the trace of its post, even after it has waited in the journal.

With an exporter Ray Serve traces each request from the proxy to the replica and to the edit worker. This module adds the
edit's own steps. Without an exporter, or for a request that is not sampled, nothing is recorded or sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.trace import Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

HERE = "here"  # In place of a parent: the span that is open at the call.
_TRACER = trace.get_tracer("errata")
_W3C = TraceContextTextMapPropagator()


def current_traceparent() -> str | None:
    """Return the open span in W3C's form, to be stored and passed to `span` later; None without a sampled span."""
    if not trace.get_current_span().get_span_context().trace_flags.sampled:
        return None
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return carrier.get("traceparent")


@contextmanager
def span(name: str, parent: str | None = HERE, **attributes: Any) -> Iterator[None]:
    """Record a step under the open span, or under a stored `traceparent`; record nothing if that is None.

    Attributes that are None are left out. An exception marks the step as failed by its type alone, because its text may hold
    a prompt.
    """
    context = _context(parent)
    if context is None:
        yield
        return
    open_span = _TRACER.start_as_current_span(
        name, context, attributes=_given(attributes), record_exception=False, set_status_on_exception=False
    )
    with open_span as step, ExitStack() as stack:
        stack.push(lambda kind, *_: kind and step.set_status(Status(StatusCode.ERROR, kind.__name__)))
        yield


@contextmanager
def batch_span(name: str, parents: Iterable[str | None], **attributes: Any) -> Iterator[None]:
    """Record a step of several edits as one span under each of their requests.

    Calls inside the block, such as a replica's swap, are recorded under the first request.
    """
    with ExitStack() as stack:
        for parent in reversed(_distinct(parents)):
            stack.enter_context(span(name, parent, **attributes))
        yield


def past_span(name: str, begin: float, end: float, parents: Iterable[str | None], **attributes: Any) -> None:
    """Record a step that is over, such as the wait in the queue, as `batch_span` does; times are seconds since 1970."""
    for parent in _distinct(parents):
        if (context := _context(parent)) is not None:
            step = _TRACER.start_span(name, context, attributes=_given(attributes), start_time=int(begin * 1e9))
            step.end(int(end * 1e9))


def otlp() -> list[Any]:
    """Export spans to `OTEL_EXPORTER_OTLP_ENDPOINT` by HTTP (`RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH=serving.tracing:otlp`)."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return [BatchSpanProcessor(OTLPSpanExporter())]


def _context(parent: str | None) -> Context | None:
    """Return the context of a parent, or None if it is no span; a value from a journal may be anything."""
    if parent is None:
        return None
    context = get_current() if parent == HERE else _W3C.extract({"traceparent": parent}, Context())
    return context if trace.get_current_span(context).get_span_context().is_valid else None


def _distinct(parents: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(parent for parent in parents if parent is not None))


def _given(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {f"errata.{name}": value for name, value in attributes.items() if value is not None}
