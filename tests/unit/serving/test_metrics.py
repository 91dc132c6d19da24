"""Metrics of the worker and of a replica, and the merging of several expositions into one."""

from __future__ import annotations

import asyncio
import math
import re
from dataclasses import fields
from itertools import pairwise
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from errata.edit import Code, Edit, EditRejected
from errata.guard.bisection import BatchBisection
from errata.guard.limits import Guard, Limit, Measurements, VersionRefused
from serving.api import version_stamp
from serving.api.version_stamp import OutOfRotation, RolledBack, VersionStamp
from serving.metrics import COUNTED, NUM_VERSIONS, REASONS, WORKER, ReplicaMetrics, WorkerMetrics, merged, num_tokens, reason_of

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]
REFUSED = "errata_edits_refused_total"


def series(text: str) -> Series:
    """Map name and labels of each series to its value; a repeated series fails."""
    found: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


def value(text: str, name: str, **labels: str) -> float | None:
    return series(text).get((name, tuple(sorted(labels.items()))))


# -- reasons of refusals ------------------------------------------------------------------------------------------------

PASSED = {
    "perplexity": Measurements(ppl_ratio=9.0),
    "broken": Measurements(broken_sentences=0.9),
    "change": Measurements(relative_norm={"a": 99.0}),
    "growth": Measurements(norm_growth={"a": 999.0}),
    "forgotten": Measurements(lost_retention=0.9),
    "disturbed": Measurements(lost_locality=0.9),
    "drift": Measurements(locality=0.1),
    "fires": Measurements(fires=0.9),
    "unanswered": Measurements(efficacy=0.1),
}


def refusal(found: Measurements) -> VersionRefused:
    verdict = Guard(unanswered=Limit(0.0, 0.5)).check(found)
    assert not verdict.publish
    return VersionRefused(verdict.breaches, found.to_json())


def test_every_limit_of_the_guard_has_its_own_reason() -> None:
    limits = {field.name for field in fields(Guard) if isinstance(getattr(Guard(), field.name), Limit)}
    assert set(PASSED) == limits
    assert {name: reason_of(refusal(found).code) for name, found in PASSED.items()} == {name: name for name in limits}


def test_the_most_severe_of_several_limits_counts() -> None:
    assert reason_of(refusal(Measurements(ppl_ratio=9.0, lost_locality=0.9, locality=0.1)).code) == "perplexity"


def test_not_finite_and_refused_by_the_editor_are_two_reasons() -> None:
    assert reason_of(refusal(Measurements(is_finite=False)).code) == "not_finite"
    assert reason_of(Code.NOT_FINITE) == "not_finite"
    assert {reason_of(code) for code in (Code.EDITOR_FAILED, Code.INEFFECTIVE, Code.UNSOLVABLE)} == {"editor"}


def test_an_edit_that_contradicts_a_later_one_is_a_contradiction() -> None:
    bisection = BatchBisection([Edit("p", "a"), Edit("p", "b")])
    group = bisection.next_group()
    assert group is not None
    ((_, why),) = bisection.made(group)
    assert reason_of(why.code) == "contradiction"


# -- the worker's -------------------------------------------------------------------------------------------------------


def test_the_worker_counts_what_happened() -> None:
    metrics = WorkerMetrics()
    metrics.settled("queued", 5)
    metrics.waiting(2, 1.5)
    metrics.published(3, edit_s=0.02, guard_s=0.3, append_s=0.004)
    metrics.refused(EditRejected("no", code=Code.EDITOR_FAILED))
    metrics.refused(refusal(PASSED["drift"]))
    metrics.swapped(0.06)
    metrics.swap_failed()
    metrics.reverted(2)
    metrics.rolled_back()
    metrics.mirrored(4)
    text = metrics.exposition()
    states = {state: value(text, "errata_edits_total", state=state) for state in COUNTED}
    assert states == {"queued": 5, "applied": 3, "rejected": 2, "superseded": 0, "reverted": 2}
    refused = {name: value(text, "errata_edits_refused_total", code=name, reason=reason_of(name)) for name in Code}
    assert refused == {name: float(name in (Code.EDITOR_FAILED, Code.GUARD_DRIFT)) for name in Code}
    assert (value(text, "errata_edit_queue_depth"), value(text, "errata_edit_queue_age_seconds")) == (2, 1.5)
    assert value(text, "errata_batch_edits_sum") == 3 and value(text, "errata_batch_edits_count") == 1
    assert value(text, "errata_batch_edits_bucket", le="2.0") == 0 and value(text, "errata_batch_edits_bucket", le="4.0") == 1
    sums = {part: value(text, f"errata_{part}_seconds_sum") for part in ("edit", "guard", "append", "swap")}
    assert sums == {"edit": 0.02, "guard": 0.3, "append": 0.004, "swap": 0.06}
    once = ("errata_swap_failures_total", "errata_reverts_total", "errata_rollbacks_total")
    assert [value(text, name) for name in once] == [1, 1, 1]
    assert value(text, "errata_mlflow_behind") == 4


def test_each_refusal_is_counted_under_its_code_alone() -> None:
    for code in Code:
        metrics = WorkerMetrics()
        metrics.refused(EditRejected("no", code=code))
        counts = {dict(labels)["code"]: n for (name, labels), n in series(metrics.exposition()).items() if name == REFUSED}
        assert counts == {str(one): float(one is code) for one in Code}, "a bounded set, which starts at zero"


def test_each_code_has_a_reason_and_each_reason_a_code() -> None:
    assert set(map(reason_of, Code)) == set(REASONS)


def test_an_unknown_state_is_refused() -> None:
    with pytest.raises(ValueError, match="not 'lost'"):
        WorkerMetrics().settled("lost")


def test_a_replica_that_has_ended_is_no_longer_listed() -> None:
    metrics = WorkerMetrics()
    metrics.versions(live=5, newest=7, replicas={"a": 5, "b": 3})
    text = metrics.exposition()
    assert (value(text, "errata_live_version"), value(text, "errata_newest_version")) == (5, 7)
    assert [value(text, "errata_versions_behind", replica=name) for name in "ab"] == [0, 2]
    metrics.versions(live=2, newest=7, replicas={"a": 5})
    text = metrics.exposition()
    assert [value(text, "errata_versions_behind", replica=name) for name in "ab"] == [3, None]


def test_two_workers_in_one_process_do_not_share_their_figures() -> None:
    first, second = WorkerMetrics(), WorkerMetrics()
    first.rolled_back()
    assert value(second.exposition(), "errata_rollbacks_total") == 0


# -- a replica's --------------------------------------------------------------------------------------------------------


def test_a_replica_counts_tokens_and_answers_by_version() -> None:
    metrics = ReplicaMetrics()
    metrics.serves(4)
    metrics.admitted(0.07)
    metrics.generated(3, 10)
    metrics.generated(4, 2)
    metrics.completed(3, 4, 200)
    metrics.completed(4, 4, 200)
    metrics.completed(4, 4, 500)
    text = metrics.exposition()
    assert [value(text, "errata_tokens_total", version=version) for version in "34"] == [10, 2]
    assert [value(text, "errata_completions_total", version="4", code=code) for code in ("200", "500")] == [2, 1]
    assert value(text, "errata_spanning_completions_total") == 1
    assert value(text, "errata_replica_version") == 4
    assert (
        value(text, "errata_stall_seconds_bucket", le="0.05") == 0 and value(text, "errata_stall_seconds_bucket", le="0.1") == 1
    )


class Replica:
    """A replica as the middleware sees it; `refusal` is raised, or the request waits for ever."""

    version, running_epoch = 4, 0

    def __init__(self, refusal: Exception | None) -> None:
        self.metrics, self.refusal = ReplicaMetrics(), refusal

    async def admit(self, at_least: int) -> str:
        if self.refusal is None:
            await asyncio.sleep(60)
        raise self.refusal or AssertionError


@pytest.mark.parametrize(
    ("refusal", "wanted", "code"),
    [
        (OutOfRotation(4, 7), "0", 503),
        (RolledBack(6, 4), "6", 409),
        (None, "0", 503),
        (None, "9", 409),
        (None, "x", 400),
    ],
)
def test_refused_requests_are_counted(
    refusal: Exception | None, wanted: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version_stamp, "AT_LEAST_TIMEOUT_S", 0.01)
    replica, sent = Replica(refusal), list[dict[str, Any]]()
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [(b"x-errata-at-least", wanted.encode())]}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    before = series(replica.metrics.exposition())
    asyncio.run(VersionStamp(None, replica)(scope, receive, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == code and ((b"retry-after", b"1") in sent[0]["headers"]) == (code == 503)
    after = series(replica.metrics.exposition())
    key = ("errata_answers_total", (("code", str(code)),))
    assert (before[key], after[key]) == (0, 1), "a rate needs the zero"
    assert not any(name == "errata_completions_total" for name, _ in after), "no version answered"


def test_a_replica_reports_whether_it_is_in_rotation() -> None:
    metrics = ReplicaMetrics()
    for in_rotation in (True, False):
        metrics.serves(4, in_rotation)
        assert value(metrics.exposition(), "errata_in_rotation") == in_rotation


def test_only_the_last_used_versions_keep_their_series() -> None:
    metrics = ReplicaMetrics()
    for version in range(100):
        metrics.generated(version, 1)
        metrics.completed(version, version, 200)
        metrics.completed(version, version, 500)
        metrics.generated(7, 1)  # The service was rolled back to it.
    text = metrics.exposition()
    kept = {dict(labels)["version"] for (name, labels) in series(text) if name == "errata_tokens_total"}
    assert kept == {str(version) for version in (*range(100 - NUM_VERSIONS + 1, 100), 7)}
    answers = [dict(labels) for (name, labels) in series(text) if name == "errata_completions_total"]
    assert {labels["version"] for labels in answers} <= kept and len(answers) == 2 * NUM_VERSIONS


@pytest.mark.parametrize(
    ("answer", "is_event", "num"),
    [
        ({"choices": [{"text": "a b"}], "usage": {"completion_tokens": 5}}, False, 5),
        ({"error": {"message": "no"}}, False, 0),
        ({"choices": [{"text": " a"}]}, True, 1),
        ({"choices": [{"delta": {"content": "a"}}, {"delta": {"content": "b"}}]}, True, 2),
        ({"choices": [{"delta": {"role": "assistant", "content": ""}}]}, True, 0),
        ({"choices": [], "usage": {"completion_tokens": 5}}, True, 0),
    ],
)
def test_tokens_are_counted_by_usage_or_one_for_each_event(answer: dict[str, Any], is_event: bool, num: int) -> None:
    assert num_tokens(answer, is_event) == num


# -- several expositions as one -----------------------------------------------------------------------------------------


def like_vllm(tokens: int) -> str:
    """Make an exposition like vLLM's: names with a colon, a histogram named `_total`, HELP with escapes, no number."""
    own = CollectorRegistry()
    Counter("vllm:generation_tokens", "Number of generation tokens", ["model_name"], registry=own).labels('a "b"').inc(tokens)
    Histogram("vllm:iteration_tokens_total", "Tokens per step\nback\\slash", buckets=(1, 8), registry=own).observe(tokens)
    Gauge("vllm:kv_cache_usage_perc", "Usage", registry=own).set(math.nan)
    return generate_latest(own).decode()


def test_expositions_are_merged_into_one_that_is_valid() -> None:
    worker = WorkerMetrics()
    worker.versions(3, 3, {"a": 3, "b": 2})
    replicas = {name: ReplicaMetrics() for name in "ab"}
    replicas["a"].generated(3, 10)
    replicas["b"].generated(2, 4)
    texts = {name: one.exposition() + like_vllm(5 + i) for i, (name, one) in enumerate(replicas.items())}
    whole = merged({WORKER: worker.exposition(), **texts})
    assert value(whole, "errata_tokens_total", version="3", replica="a") == 10
    assert value(whole, "errata_tokens_total", version="2", replica="b") == 4
    assert value(whole, "errata_versions_behind", replica="b") == 1, "the worker's own label stays"
    assert value(whole, "errata_live_version") == 3, "and it gets no other"
    assert value(whole, "vllm:generation_tokens_total", model_name='a "b"', replica="b") == 6
    assert math.isnan(value(whole, "vllm:kv_cache_usage_perc", replica="a") or 0)
    buckets = [value(whole, "vllm:iteration_tokens_total_bucket", le=le, replica="a") for le in ("1.0", "8.0", "+Inf")]
    assert buckets == [0, 1, 1]


def test_each_family_is_there_once_and_no_sample_is_lost() -> None:
    texts = {"a": like_vllm(5), "b": like_vllm(6)}
    whole = merged(texts)
    for kind in ("HELP", "TYPE"):
        found = re.findall(rf"^# {kind} (\S+)", whole, re.MULTILINE)
        assert len(found) == len(set(found)) and found == re.findall(rf"^# {kind} (\S+)", texts["a"], re.MULTILINE)
    assert len(series(whole)) == len(series(texts["a"])) + len(series(texts["b"]))
    assert r"# HELP vllm:iteration_tokens_total Tokens per step\nback\\slash" in whole
    assert "# TYPE vllm:generation_tokens_created gauge" in whole


def test_samples_of_a_family_are_contiguous_and_buckets_are_in_order() -> None:
    whole = merged({"a": like_vllm(5), "b": like_vllm(6)})
    names = [line.split("{")[0] for line in whole.splitlines() if not line.startswith("#")]
    families = [name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum") for name in names]
    assert sum(one != other for one, other in pairwise(families)) == len(set(families)) - 1
    bounds = re.findall(r'iteration_tokens_total_bucket\{le="([^"]+)",replica="(.)"\}', whole)
    assert bounds == [(le, replica) for replica in "ab" for le in ("1.0", "8.0", "+Inf")]


def test_merging_twice_changes_nothing() -> None:
    whole = merged({"a": like_vllm(5), "b": like_vllm(6)})
    assert merged({WORKER: whole}) == whole


def test_an_exposition_that_cannot_be_merged_is_named() -> None:
    with pytest.raises(ValueError, match="the metrics of b are no Prometheus exposition"):
        merged({"a": like_vllm(5), "b": "<html>503</html>"})
    with pytest.raises(ValueError, match="x is a counter at b, elsewhere a gauge"):
        merged({"a": "# TYPE x gauge\nx 1\n", "b": "# TYPE x_total counter\nx_total 1\n"})


def test_readings_of_the_memory_are_counted() -> None:
    metrics = ReplicaMetrics()
    text = metrics.exposition()
    assert [value(text, "errata_memory_lookups_total", result=result) for result in ("hit", "miss")] == [0, 0]
    metrics.memory_read(True, 0.02, 30)
    metrics.memory_read(False, 0.01, 0)
    metrics.serves(3, num_records=7)
    text = metrics.exposition()
    assert [value(text, "errata_memory_lookups_total", result=result) for result in ("hit", "miss")] == [1, 1]
    assert value(text, "errata_memory_lookup_seconds_sum") == pytest.approx(0.03)
    assert (value(text, "errata_memory_prompt_tokens_total"), value(text, "errata_memory_records")) == (30, 7)
