"""Spans of an edit under the trace of the request that posted it, also when it waited in the journal in between.

Ray Serve makes a trace of each request when it is given an exporter, and carries it from the proxy to the replica and from
there to the edit worker. What is here adds the edit's own steps. Nothing is done, and nothing is sent, when no exporter
is set or the request was not sampled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.trace import Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

HERE = "here"  # instead of a parent: the span that is open where the call is made
_TRACER = trace.get_tracer("errata")
_W3C = TraceContextTextMapPropagator()


def current_traceparent() -> str | None:
    """The open span in W3C's form, to be kept and given to `span` later; None when there is none or it is not sampled."""
    if not trace.get_current_span().get_span_context().trace_flags.sampled:
        return None
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return carrier.get("traceparent")


@contextmanager
def span(name: str, parent: str | None = HERE, **attributes: Any) -> Iterator[None]:
    """A step, under the open span, or under a `traceparent` that was kept; nothing if that is None.

    Attributes that are None are left out. An exception marks the step as failed by its kind alone: its text may hold a
    prompt.
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
    """A step that several edits go through together: a span under each of their requests, once for each request.

    What is called inside, such as a replica's swap, hangs under the first.
    """
    with ExitStack() as stack:
        for parent in reversed(_distinct(parents)):
            stack.enter_context(span(name, parent, **attributes))
        yield


def past_span(name: str, begin: float, end: float, parents: Iterable[str | None], **attributes: Any) -> None:
    """As `batch_span`, for a step that is over: from `begin` to `end`, seconds since 1970. So is the time in the queue."""
    for parent in _distinct(parents):
        if (context := _context(parent)) is not None:
            step = _TRACER.start_span(name, context, attributes=_given(attributes), start_time=int(begin * 1e9))
            step.end(int(end * 1e9))


def otlp() -> list[Any]:
    """For `RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH=serving.tracing:otlp`: spans go to `OTEL_EXPORTER_OTLP_ENDPOINT` by HTTP."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return [BatchSpanProcessor(OTLPSpanExporter())]


def _context(parent: str | None) -> Context | None:
    """Where a step belongs; None if that is no span: what was read from a journal may be anything."""
    if parent is None:
        return None
    context = get_current() if parent == HERE else _W3C.extract({"traceparent": parent}, Context())
    return context if trace.get_current_span(context).get_span_context().is_valid else None


def _distinct(parents: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(parent for parent in parents if parent is not None))


def _given(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {f"errata.{name}": value for name, value in attributes.items() if value is not None}
