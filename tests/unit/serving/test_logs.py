"""Log lines of the service: their names and fields, and the text that must not be in them."""

from __future__ import annotations

import ast
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.logs import FIELDS, JSON, attach_to_serve, event

ROOT = Path(__file__).parents[3]


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[tuple[logging.Logger, Path]]:
    """Make a logger with the filters and the formatter that Serve gives a replica under our configuration."""
    from ray._common.formatters import JSONFormatter
    from ray.serve._private.common import ServeComponentType
    from ray.serve._private.logging_utils import ServeComponentFilter, ServeLogAttributeRemovalFilter

    handler = logging.FileHandler(tmp_path / "log")
    handler.setFormatter(JSONFormatter())
    handler.addFilter(ServeComponentFilter("EditWorker", "r1", ServeComponentType.REPLICA))
    handler.addFilter(ServeLogAttributeRemovalFilter())
    logger = logging.Logger("ray.serve")
    logger.addHandler(handler)
    yield logger, tmp_path / "log"
    handler.close()


def test_fields_are_keys_of_serves_json_line(lines: tuple[logging.Logger, Path]) -> None:
    logger, path = lines
    event(logger, "edit.applied", edit_ids=["a", "b"], version=7, edit_s=0.25, by=None)
    line = json.loads(path.read_text())
    assert {"event": "edit.applied", "edit_ids": ["a", "b"], "version": 7, "edit_s": 0.25}.items() <= line.items()
    assert (line["deployment"], line["replica"], line["levelname"]) == ("EditWorker", "r1", "INFO")
    assert line["message"] == "edit.applied edit_ids=a,b version=7 edit_s=0.25"
    assert "by" not in line and line["filename"] == Path(__file__).name


def test_any_value_gives_one_line_of_json(lines: tuple[logging.Logger, Path]) -> None:
    logger, path = lines
    replicas = {1: ("x", {"y"}), "z": Path("/p")}
    event(logger, "swap.failed", logging.ERROR, error=ValueError("two\nlines % %s"), replicas=replicas)
    (text,) = path.read_text().splitlines()
    line = json.loads(text)
    assert line["error"] == "ValueError: two\nlines % %s" and line["replicas"] == {"1": ["x", ["y"]], "z": "/p"}
    assert "\n" not in line["message"]


@pytest.mark.parametrize("field", ["prompt", "target", "key", "edit", "message", "replica"])
def test_private_text_has_no_field(lines: tuple[logging.Logger, Path], field: str) -> None:
    logger, path = lines
    with pytest.raises(ValueError, match=f"not fields of a log line: {field}"):
        event(logger, "edit.applied", logging.DEBUG, **{field: "x"})
    assert not path.read_text()


def test_no_field_has_a_name_of_loggings_or_serves_own() -> None:
    from ray._common.logging_constants import LOGRECORD_STANDARD_ATTRS, LogKey

    serves = {"deployment", "replica", "component_name", "component_id", "route", "request_id", "application"}
    assert not FIELDS & (LOGRECORD_STANDARD_ATTRS | {key.value for key in LogKey} | serves | {"event"})


def test_the_packages_lines_pass_through_serves_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    own, serve, seen = logging.getLogger("errata"), logging.getLogger("ray.serve"), list[logging.LogRecord]()
    for name, value in (("handlers", []), ("level", logging.NOTSET), ("propagate", True)):
        monkeypatch.setattr(own, name, value)
    monkeypatch.setattr(own, "_cache", {})
    monkeypatch.setattr(serve, "level", logging.INFO)
    monkeypatch.setattr(serve, "handle", seen.append)
    attach_to_serve()
    attach_to_serve()
    event(own, "edit.applied", version=7)
    event(own, "edit.applied", logging.DEBUG, version=8)
    assert [record.getMessage() for record in seen] == ["edit.applied version=7"]
    assert seen[0].filename == Path(__file__).name


def test_serves_log_stays_open_when_vllm_configures_its_own(tmp_path: Path) -> None:
    """The log is written after `dictConfig`; in a process of its own, because that closes pytest's handlers, too."""
    script = """
import logging, logging.config, logging.handlers, sys
from serving.logs import attach_to_serve
serve, file = logging.getLogger("ray.serve"), logging.FileHandler(sys.argv[1])
serve.setLevel(logging.INFO)
buffer = logging.handlers.MemoryHandler(capacity=1, target=file)  # As Serve has it.
serve.addHandler(buffer)
attach_to_serve()
serve.info("before")
for _ in range(2):
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})
    serve.info("after")
assert buffer.target is file and not buffer.buffer
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "log")], cwd=ROOT, check=True)
    assert (tmp_path / "log").read_text().split() == ["before", "after", "after"]


def calls_of_event() -> list[ast.Call]:
    return [
        call
        for path in sorted((ROOT / "serving").rglob("*.py"))
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "event"
    ]


def test_every_log_line_of_the_service_has_known_fields() -> None:
    """Most lines report a fault, where a wrong field would raise a second one."""
    assert {field.arg for call in calls_of_event() for field in call.keywords} <= FIELDS


def test_every_event_of_the_service_is_documented() -> None:
    emitted = {ast.literal_eval(call.args[1]) for call in calls_of_event()}
    documentation = (ROOT / "docs/observability.md").read_text()
    [listed] = re.findall(r"^`event` is one of (.*?) `serving/logs.py`", documentation, re.MULTILINE | re.DOTALL)
    assert emitted == set(re.findall(r"`(\w+\.\w+)`", listed))


def test_serve_takes_our_configuration() -> None:
    from ray.serve.schema import LoggingConfig

    assert LoggingConfig(**JSON).encoding == "JSON"
