"""Trace spans of an edit: their parents, their fields, and the text that must not be in them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import StatusCode

from errata.edit import Code, EditRejected
from serving import tracing
from serving.tracing import batch_span, current_traceparent, past_span, span

ROOT = Path(__file__).parents[3]


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Make a tracer provider for one test, because OpenTelemetry sets the global one only once in a process."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_TRACER", provider.get_tracer("errata"))
    yield exporter
    provider.shutdown()


def request(name: str = "POST /v1/edits") -> Any:
    """Open the span that Serve opens around a request."""
    return tracing._TRACER.start_as_current_span(name)


def finished(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {found.name: found for found in exporter.get_finished_spans()}


def is_under(child: ReadableSpan, parent: ReadableSpan) -> bool:
    return child.parent is not None and child.parent.span_id == parent.context.span_id


def test_steps_are_children_of_the_request_and_of_each_other(exporter: InMemorySpanExporter) -> None:
    with request(), span("edit", version=3, reason=None), span("guard"):
        pass
    found = finished(exporter)
    assert is_under(found["edit"], found["POST /v1/edits"]) and is_under(found["guard"], found["edit"])
    assert dict(found["edit"].attributes or {}) == {"errata.version": 3}


def test_a_trace_continues_after_its_request_has_ended(exporter: InMemorySpanExporter) -> None:
    with request():
        kept = current_traceparent()
    assert kept is not None and trace.get_current_span().get_span_context().is_valid is False
    with span("edit", parent=str(kept)):
        assert current_traceparent() not in (None, kept)
    found = finished(exporter)
    assert is_under(found["edit"], found["POST /v1/edits"])
    assert found["edit"].context.trace_id == found["POST /v1/edits"].context.trace_id


def test_a_thread_and_a_task_are_children_of_the_step_that_started_them(exporter: InMemorySpanExporter) -> None:
    def in_thread() -> None:
        with span("in a thread"):
            pass

    async def work() -> None:
        with request(), span("edit"):
            await asyncio.gather(asyncio.to_thread(in_thread), asyncio.create_task(in_task()))

    async def in_task() -> None:
        with span("in a task"):
            await asyncio.sleep(0)

    asyncio.run(work())
    found = finished(exporter)
    assert is_under(found["in a thread"], found["edit"]) and is_under(found["in a task"], found["edit"])


def test_a_batch_has_a_span_under_each_request_and_its_calls_under_the_first(exporter: InMemorySpanExporter) -> None:
    parents = []
    for name in ("first", "second"):
        with request(name):
            parents.append(current_traceparent())
    with batch_span("swap", [parents[0], None, parents[1], parents[0]], num_edits=4), span("replica"):
        pass
    found = finished(exporter)
    swaps = [one for one in exporter.get_finished_spans() if one.name == "swap"]
    assert len(swaps) == 2
    assert {name for one in swaps for name in ("first", "second") if is_under(one, found[name])} == {"first", "second"}
    (first,) = (one for one in swaps if is_under(one, found["first"]))
    assert is_under(found["replica"], first)


def test_the_time_in_the_queue_is_a_span_in_the_past(exporter: InMemorySpanExporter) -> None:
    with request():
        kept = current_traceparent()
    past_span("queue", 1_700_000_000.25, 1_700_000_001.5, [kept, None], num_edits=1)
    found = finished(exporter)
    assert is_under(found["queue"], found["POST /v1/edits"])
    assert (found["queue"].end_time or 0) - (found["queue"].start_time or 0) == pytest.approx(1.25e9, abs=1e3)


def test_a_failed_step_is_marked_without_the_text_of_its_error(exporter: InMemorySpanExporter) -> None:
    with pytest.raises(EditRejected), request(), span("edit"):
        raise EditRejected("a private prompt", code=Code.EDITOR_FAILED)
    step = finished(exporter)["edit"]
    assert step.status.status_code is StatusCode.ERROR and step.status.description == "EditRejected"
    assert not step.events and "private" not in step.to_json()


@pytest.mark.parametrize("parent", [None, "", "garbage", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_without_a_request_there_is_no_span(exporter: InMemorySpanExporter, parent: str | None) -> None:
    with span("edit", parent=parent), span("guard"), batch_span("swap", [parent]):
        past_span("queue", 1.0, 2.0, [parent])
        assert current_traceparent() is None
    assert not exporter.get_finished_spans()


def test_a_request_that_is_not_sampled_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider(sampler=ALWAYS_OFF)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_TRACER", provider.get_tracer("errata"))
    with request():
        assert current_traceparent() is None
        with span("edit"):
            pass
    assert not exporter.get_finished_spans()


def test_without_an_exporter_nothing_is_recorded() -> None:
    with span("edit"), batch_span("swap", [None]):
        assert current_traceparent() is None
    with span("edit", parent="00-" + "1" * 32 + "-" + "2" * 16 + "-01"):
        assert not trace.get_current_span().is_recording()


SERVES_OWN = """
from ray.serve._private import tracing_utils
from ray.serve.schema import TracingConfig
from serving.tracing import current_traceparent, span
import {exporter} as exporting
config = TracingConfig(enabled=True, exporter_import_path="{exporter}:{function}", sampling_ratio=1.0)
assert tracing_utils.setup_tracing("EditWorker", "1", tracing_config=config)
with tracing_utils.TraceContextManager("replica_handle_request EditWorker submit"):
    kept = current_traceparent()
    assert tracing_utils.create_propagated_context() == {{"traceparent": kept}}
with span("edit", parent=kept):
    pass
"""


def test_serves_own_trace_is_the_parent(tmp_path: Path) -> None:
    """Serve's own set-up runs in a process of its own, because it sets the global provider."""
    (tmp_path / "exporting_here.py").write_text(
        "from opentelemetry.sdk.trace.export import SimpleSpanProcessor\n"
        "from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter\n"
        "memory = InMemorySpanExporter()\n"
        "def exporter(): return [SimpleSpanProcessor(memory)]\n"
    )
    check = "outer, step = exporting.memory.get_finished_spans()\nassert step.parent.span_id == outer.context.span_id\n"
    code = SERVES_OWN.format(exporter="exporting_here", function="exporter") + check
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)


def test_serve_loads_the_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve._private.tracing_utils import _load_span_processors

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    (processor,) = _load_span_processors("serving.tracing:otlp", "unused")
    assert isinstance(processor, SpanProcessor)
    processor.shutdown()
