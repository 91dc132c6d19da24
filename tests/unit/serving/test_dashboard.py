"""The dashboard, the alarms and the scrape configuration use only metrics and labels that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from serving.metrics import ReplicaMetrics, WorkerMetrics, merged
from tests.unit.serving.test_metrics import series

DEPLOY = Path(__file__).parents[3] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "errata.json"


def alarms() -> dict[str, str]:
    (group,) = yaml.safe_load((DEPLOY / "alarms.yml").read_text())["groups"]
    return {rule["alert"]: rule["expr"] for rule in group["rules"]}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def named_in(expression: str) -> set[str]:
    """Find the metric names of an expression: words that are no label, function, label value or unit of time."""
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", re.sub(r"\{[^}]*\}", "", expression))
    return set(re.findall(r"\b(?:errata|vllm:|ray)[\w:]*", re.sub(r"\[[^\]]*\]", "", bare)))


def answering() -> ReplicaMetrics:
    replica = ReplicaMetrics()
    replica.generated(1, 1)
    replica.completed(1, 1, 200)
    replica.refused("overloaded")
    return replica


def exposed() -> set[str]:
    worker = WorkerMetrics()
    worker.versions(1, 1, {"a": 1})
    return {name for name, _ in series(worker.exposition()) | series(answering().exposition())}


def test_the_dashboard_and_the_alarms_use_only_metrics_that_exist() -> None:
    known = exposed()
    for expression in (*expressions(), *alarms().values()):
        names = named_in(expression)
        assert names, expression
        assert all(name in known or name.startswith(("vllm:", "ray_")) for name in names), expression


def test_every_metric_of_ours_is_on_the_dashboard() -> None:
    shown = set().union(*map(named_in, expressions()))
    # A graph cannot show the labels of errata_completions_total.
    unneeded = re.compile(r"_(created|sum|count)$|^errata_completions_total$")
    assert {name for name in exposed() if not unneeded.search(name)} <= shown


def test_the_dashboard_takes_no_rate_of_series_that_start_with_a_version() -> None:
    """A new series has no zero to rise from, so most of a rate would be lost with a version every few seconds."""
    whole = merged({"a": answering().exposition()})
    short_lived = {name for name, labels in series(whole) if "version" in dict(labels)}
    assert "errata_tokens_total" in short_lived
    for expression in (*expressions(), *alarms().values()):
        assert not (re.search(r"rate\(|increase\(", expression) and named_in(expression) & short_lived), expression


def test_every_label_that_the_dashboard_uses_exists() -> None:
    labels: set[str] = {"replica"}  # The label that `merged` adds.
    for own in (WorkerMetrics(), ReplicaMetrics()):
        if isinstance(own, ReplicaMetrics):
            own.completed(1, 1, 200)
        labels |= {label for _, pairs in series(own.exposition()) for label, _ in pairs}
    grouped: Iterable[str] = re.findall(r"\bby \(([^)]*)\)", " ".join(expressions()))
    assert {label.strip() for group in grouped for label in group.split(",")} <= labels


def test_panels_have_their_own_places_on_the_page() -> None:
    whole = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in whole["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in whole["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_prometheus_reads_the_documented_alarms() -> None:
    assert yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["rule_files"] == ["alarms.yml"]
    (group,) = yaml.safe_load((DEPLOY / "alarms.yml").read_text())["groups"]
    assert all(
        set(rule) <= {"alert", "expr", "for", "annotations"} and rule["annotations"]["summary"] for rule in group["rules"]
    )
    assert alarms()["ErrataSilent"] == "absent(errata_versions_behind)"
    described = (DEPLOY.parent / "docs" / "observability.md").read_text().splitlines()
    for expression in alarms().values():
        assert any(line.partition("#")[0].strip() == expression for line in described), expression


def test_prometheus_scrapes_with_a_key_from_a_file() -> None:
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    assert job["metrics_path"] == "/metrics" and job["static_configs"][0]["targets"]
    assert job["authorization"]["type"] == "Bearer" and "credentials" not in job["authorization"]
    assert Path(job["authorization"]["credentials_file"]).name
