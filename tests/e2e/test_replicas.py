"""Two replicas: answers and edits while one replica joins, is killed, hangs, or cannot read a version."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from errata.ledger import DELTA
from tests.chaos import faults
from tests.chaos.service import frozen, kill
from tests.e2e.scalable import ScalableService
from tests.e2e.serving.application import eventually
from tests.e2e.toy import FACTS

pytestmark = pytest.mark.e2e

PROMPTS = [FACTS[number][0] for number in range(40, 46)]
SNAPSHOT = 20  # Versions between two snapshots.
NUM_STREAMS = 4
WHILE_AN_ENGINE_STARTS_S = 0.1  # Most of a minute, in which more requests would show nothing more.


@dataclass
class Reader:
    """A client that completes prompts without end, at least by the newest version that it has seen.

    It rests for `pause_s` after each. A refused request is repeated.
    """

    service: ScalableService
    pause_s: float
    seen: int = 0
    answers: list[tuple[str, int, int, str]] = field(default_factory=list)  # Prompt, lowest and highest version, text.
    backwards: list[tuple[int, int]] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0  # From a request until its answer.
    _stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        with httpx.Client(base_url=self.service.http.base_url, timeout=30) as http:
            number = 0
            while not self._stopping.wait(self.pause_s):
                number += 1
                self._ask(http, PROMPTS[number % len(PROMPTS)])

    def stop(self) -> None:
        self._stopping.set()

    def _ask(self, http: httpx.Client, prompt: str) -> None:
        begin, body = time.monotonic(), {"model": "errata", "prompt": prompt, "max_tokens": 1, "temperature": 0}
        while not self._stopping.is_set():
            try:
                answer = http.post("/v1/completions", json=body, headers={"X-Errata-At-Least": str(self.seen)})
            except httpx.HTTPError as fault:
                self.refused[type(fault).__name__] += 1
                continue
            if answer.is_success:
                return self._note(prompt, answer.json(), time.monotonic() - begin)
            self.refused[f"{answer.status_code} {answer.text[:200]}"] += 1
            time.sleep(0.1)

    def _note(self, prompt: str, answer: dict[str, Any], took_s: float) -> None:
        low, high = answer["errata"]["version_min"], answer["errata"]["version_max"]
        if low < self.seen:
            self.backwards.append((self.seen, low))
        self.seen, self.longest_s = max(self.seen, high), max(self.longest_s, took_s)
        self.answers.append((prompt, low, high, answer["choices"][0]["text"]))


def torn(path: Path) -> Callable[[], object]:
    """Cut a file in half; returns the function that restores it."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return lambda: path.write_bytes(content)


@contextmanager
def reading(service: ScalableService, pause_s: float = 0.02) -> Iterator[list[Reader]]:
    readers = [Reader(service, pause_s) for _ in range(2)]
    threads = [threading.Thread(target=reader.run, daemon=True) for reader in readers]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: all(reader.answers for reader in readers), 30)
        yield readers
    finally:
        for reader in readers:
            reader.stop()
        for thread in threads:
            thread.join(timeout=40)
    print("\n", {"answers": [len(r.answers) for r in readers], "longest_s": [round(r.longest_s, 2) for r in readers]})
    print([dict(r.refused) for r in readers])


def contradictions(readers: Sequence[Reader]) -> dict[tuple[str, int], set[str]]:
    """Find the prompts to which one version gave different answers, on any replica."""
    said: dict[tuple[str, int], set[str]] = defaultdict(set)
    for reader in readers:
        for prompt, low, high, text in reader.answers:
            if low == high:
                said[prompt, low].add(text)
    return {place: texts for place, texts in said.items() if len(texts) > 1}


def answered(service: ScalableService, name: str = "errata_completions_total") -> dict[str, dict[int, float]]:
    """Count the answers by replica and version."""
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, dict[int, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(service.http.get("/metrics").text):
        for sample in family.samples:
            if sample.name == name and sample.labels["code"] == "200":
                found[sample.labels["replica"]][int(sample.labels["version"])] = sample.value
    return found


def test_a_replica_that_joins_catches_up_from_the_snapshot(service: ScalableService) -> None:
    service.need(1)
    service.rollback(0)
    for number in range(SNAPSHOT + 1):
        head = service.edited(number, "dog")
    ((first, pid),) = service.pids().items()
    ledger = service.ledger()
    eventually(lambda: len(ledger.files_to(head)) < len(ledger.chain(head)), 30)  # It is written in a lull.
    files, own = ledger.files_to(head), [ledger.version(number).directory / DELTA for number in ledger.chain(head)]
    hidden = next(path for path in own if path not in files)  # A snapshot holds it, so the new replica need not read it.
    hidden.rename(hidden.with_name("hidden"))
    try:
        with reading(service, WHILE_AN_ENGINE_STARTS_S) as readers:
            service.scale(2)
            service.until_whole()
    finally:
        hidden.with_name("hidden").rename(hidden)
    assert service.pids()[first] == pid and len(service.pids()) == 2
    assert not contradictions(readers) and not any(reader.refused or reader.backwards for reader in readers)
    assert {low for reader in readers for _, low, _, _ in reader.answers} == {head}


def test_edits_reach_both_and_an_answer_depends_on_its_version_alone(service: ScalableService) -> None:
    service.need(2)
    with reading(service) as readers:
        answers = [service.edit(number, ("cat", "goose")[number % 2]).raise_for_status() for number in range(40, 52)]
        made = [answer.json()["version"] for answer in answers]
        eventually(lambda: all(reader.seen == made[-1] for reader in readers), 10)
    assert made == list(range(made[0], made[0] + 12))
    assert not contradictions(readers) and not any(reader.refused or reader.backwards for reader in readers)
    assert any(len({text for asked, *_, text in readers[0].answers if asked == prompt}) > 1 for prompt in PROMPTS)
    given = answered(service)
    assert len(given) == 2 and all(versions.keys() & set(made) for versions in given.values())
    seen: dict[str, tuple[int, str, int]] = {}

    def both_answer() -> bool:
        one = service.status()["answered_by"]
        seen[one["replica"]] = one["version"], one["fingerprint"], service.http.get("/v1/versions").json()["head"]
        return len(seen) == 2

    eventually(both_answer, 60)  # Serve chooses the replica.
    head = service.ledger().version(made[-1])
    assert list(seen.values()) == [(head.number, head.fingerprint, head.number)] * 2


def test_a_rollback_reaches_both(service: ScalableService) -> None:
    service.need(2)
    service.rollback(0)
    for target in ("parrot", "hamster"):
        version = service.edit(60, target).raise_for_status().json()["version"]
        for _ in range(20):
            answer = service.complete(FACTS[60][0], version).json()
            assert (answer["choices"][0]["text"].strip(), answer["errata"]["version_min"]) == (target, version)
        service.rollback(0)
    assert [service.complete(FACTS[60][0], version).status_code for _ in range(10)] == [409] * 10


def test_a_killed_controller_leaves_the_replicas_and_their_logs_alone(service: ScalableService) -> None:
    service.need(2)
    faults.controller(service, random.Random(0))  # It fails if the new controller stops a replica.
    service.until_whole(60)
    assert service.stack.ray_dir is not None
    folder = service.stack.ray_dir / "session_latest" / "logs" / "serve"
    for name in service.pids():
        (log,) = folder.glob(f"*Generator_{name}.log")
        assert len(log.read_text().splitlines()) >= 3, "vLLM closes the logs of a replica that does not keep them"


def stream(service: ScalableService) -> None:
    """Stream a long answer; it may be cut off."""
    body = {"model": "errata", "prompt": "the", "max_tokens": 120, "stream": True, "ignore_eos": True}
    try:
        with service.http.stream("POST", "/v1/completions", json=body) as answer:
            for _ in answer.iter_lines():
                pass
    except httpx.HTTPError:
        pass


@pytest.mark.parametrize("victim", ["engine", pytest.param("replica", marks=pytest.mark.long)])
def test_a_killed_replica_costs_no_edit_and_comes_back_at_the_head(service: ScalableService, victim: str) -> None:
    service.need(2)
    before = service.pids()
    pid = max(before.values())
    with reading(service, WHILE_AN_ENGINE_STARTS_S) as readers, ThreadPoolExecutor(NUM_STREAMS) as pool:
        first = service.edited(61, "dog")
        streams = [pool.submit(stream, service) for _ in range(NUM_STREAMS)]
        kill(psutil.Process(pid) if victim == "replica" else service.engine_of(pid))
        made = [service.edited(62 + number, "cat") for number in range(8)]
        service.until_whole()
        last = service.edited(70, "goose")
        eventually(lambda: all(reader.seen == last for reader in readers), 10)
        assert all(one.exception() is None for one in streams)
    assert made == list(range(first + 1, first + 9))
    (fresh,) = service.pids().keys() - before.keys()
    assert min(answered(service)[fresh]) >= made[-1]
    for _ in range(10):
        answer = service.complete(FACTS[70][0], last).json()
        assert (answer["choices"][0]["text"].strip(), answer["errata"]["version_min"]) == ("goose", last)
    assert not contradictions(readers) and not any(reader.backwards for reader in readers)


def test_a_replica_that_hangs_and_cannot_read_the_version_is_out_of_rotation(service: ScalableService) -> None:
    service.need(2)
    pids = service.pids()
    bad = max(pids)
    with reading(service) as readers:
        before = service.edited(71, "dog")
        with frozen(service.engine_of(pids[bad])):
            began = time.monotonic()
            late = service.edit(72, "cat")
            took_s = time.monotonic() - began
            whole = torn(service.ledger().version(before + 1).directory / DELTA)  # The other replica has read it.
        try:
            eventually(lambda: not service.replicas_by_name()[bad]["in_rotation"], 20)
            found = service.replicas_by_name()
            eventually(lambda: service.complete("the", 0).status_code == 503, 20)  # Serve chooses the replica.
        finally:
            whole()
        service.until_whole()
        eventually(lambda: all(reader.seen == before + 1 for reader in readers), 10)
    print(f"the edit was answered after {took_s:.1f} s")
    assert late.status_code == 503 and "did not answer within 10 s" in late.json()["error"]["message"] and took_s < 29
    assert {name: replica["version"] for name, replica in found.items()} == {bad: before, min(pids): before + 1}
    assert service.pids() == pids
    assert not contradictions(readers) and not any(reader.backwards for reader in readers)
    # A reader that has seen the version at the other replica may wait here for it, in vain while the engine is stopped.
    assert all(why.startswith("503") or '"not_served_yet"' in why for reader in readers for why in reader.refused)


def test_a_version_that_no_replica_can_read_is_retracted_and_made_again(service: ScalableService) -> None:
    service.need(2)
    with reading(service) as readers:
        before = service.edited(73, "dog")
        with ExitStack() as stack:
            for pid in service.pids().values():
                stack.enter_context(frozen(service.engine_of(pid)))
            late = service.edit(74, "cat", "key")
            torn(service.ledger().version(before + 1).directory / DELTA)
        assert late.status_code == 503
        eventually(lambda: service.edit(74, "cat", "key").json().get("version") == before + 2, 60)
        service.until_whole()
    ledger = service.ledger()
    assert before + 1 in ledger.retracted() and ledger.version(ledger.head).parent == before
    assert not contradictions(readers) and not any(reader.backwards for reader in readers)
    # An answer that runs during the swaps goes from `before` to the version after; only its two ends are versions it saw.
    assert not any(before + 1 in (low, high) for reader in readers for _, low, high, _ in reader.answers)
