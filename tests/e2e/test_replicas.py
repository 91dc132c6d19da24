"""Two replicas at once: what clients see while edits go on and one replica joins, dies, hangs or cannot read a version.

Not beside the tests of one application, whose engine would run all the while.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from errata.ledger import DELTA
from errata.local.services import BIN, LocalServices
from tests.chaos.poster import FACTS
from tests.chaos.service import EDITOR, Service, frozen, kill
from tests.e2e.serving.application import eventually

pytestmark = pytest.mark.e2e

PROMPTS = [FACTS[number][0] for number in range(40, 46)]
SNAPSHOT = 20  # versions


class Scaled(Service):
    """Deployed by a file, so that the number of replicas can be changed while it runs."""

    def start(self) -> None:
        self.stack = LocalServices(self.directory / "stack", http_port=self.http_port)
        self.stack.start_ray()
        self.scale(self.replicas)

    def scale(self, replicas: int) -> None:
        self.replicas = replicas
        settings: dict[str, Any] = {"model": str(self.model), "ledger": str(self.ledger_path), "editor": EDITOR, "max_batch": 4}
        settings["threads"] = 1  # of two engines on two cores
        application: dict[str, Any] = {
            "name": "errata",
            "route_prefix": "/",
            "import_path": "serving.app:build",
            "args": settings,
        }
        application["deployments"] = [{"name": "Generator", "num_replicas": replicas}]
        http = {"host": "127.0.0.1", "port": self.http_port}
        path = self.directory / "serve.yaml"
        path.write_text(yaml.safe_dump({"http_options": http, "applications": [application]}))
        command = [str(BIN / "serve"), "deploy", "--address", self.stack.jobs_url, str(path)]
        subprocess.run(command, env=self.stack.environment, check=True, capture_output=True, timeout=60)

    def be_two(self) -> None:
        """Whichever tests came before."""
        if self.replicas == 1:
            self.scale(2)
        self.until_whole()

    def edit(self, number: int, target: str, key: str | None = None) -> httpx.Response:
        body = {"edits": [{"prompt": FACTS[number][0], "target": target}], "wait": True}
        return self.http.post("/v1/edits", json=body, headers={} if key is None else {"Idempotency-Key": key})

    def edited(self, number: int, target: str) -> int:
        """The version, however often it takes to ask for it."""
        deadline, key = time.monotonic() + 60, os.urandom(8).hex()
        while (answer := self.edit(number, target, key)).status_code != 200:
            assert answer.status_code in (500, 503) and time.monotonic() < deadline, answer.text
            time.sleep(0.5)
        return int(answer.json()["version"])

    def asked(self, prompt: str, at_least: int) -> httpx.Response:
        body = {"model": "errata", "prompt": prompt, "max_tokens": 1, "temperature": 0}
        return self.http.post("/v1/completions", json=body, headers={"X-Errata-At-Least": str(at_least)})

    def back_to(self, version: int) -> None:
        self.http.post("/v1/rollback", json={"version": version}).raise_for_status()

    def replicas_by_name(self) -> dict[str, dict[str, Any]]:
        return {replica["replica"]: replica for replica in self.status()["replicas"]}

    def pids(self) -> dict[str, int]:
        return {name: replica["pid"] for name, replica in self.replicas_by_name().items()}


@dataclass
class Reader:
    """Asks without end, at least by the version that it has seen; what is refused it asks again."""

    service: Service
    seen: int = 0
    answers: list[tuple[str, int, int, str]] = field(default_factory=list)  # prompt, lowest and highest version, text
    backwards: list[tuple[int, int]] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0  # from a question until it was answered
    _stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        with httpx.Client(base_url=self.service.http.base_url, timeout=30) as http:
            number = 0
            while not self._stopping.wait(0.02):
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
    """Half of the file is gone; returns how to make it whole."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return lambda: path.write_bytes(content)


@contextmanager
def reading(service: Service, num_readers: int = 2) -> Iterator[list[Reader]]:
    readers = [Reader(service) for _ in range(num_readers)]
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
    """Prompts that were answered differently by one version, on whichever replica and however often it was asked."""
    said: dict[tuple[str, int], set[str]] = defaultdict(set)
    for reader in readers:
        for prompt, low, high, text in reader.answers:
            if low == high:
                said[prompt, low].add(text)
    return {place: texts for place, texts in said.items() if len(texts) > 1}


def answered(service: Service, name: str = "errata_completions_total") -> dict[str, dict[int, float]]:
    """How many answers each replica gave by which version."""
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, dict[int, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(service.http.get("/metrics").text):
        for sample in family.samples:
            if sample.name == name and sample.labels["code"] == "200":
                found[sample.labels["replica"]][int(sample.labels["version"])] = sample.value
    return found


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scaled]:
    service = Scaled(tmp_path_factory.mktemp("replicas"), with_mlflow=False)
    try:
        service.start()
        service.until_whole()
        yield service
    finally:
        service.kill_node()
        service.http.close()


def test_a_replica_that_joins_catches_up_from_the_snapshot(service: Scaled) -> None:
    for number in range(SNAPSHOT + 1):
        service.edited(number, "dog")
    ((first, pid),) = service.pids().items()
    hidden = service.ledger().version(3).directory / DELTA  # what the snapshot has, the new one need not read
    hidden.rename(hidden.with_name("hidden"))
    try:
        with reading(service) as readers:
            service.scale(2)
            service.until_whole()
    finally:
        hidden.with_name("hidden").rename(hidden)
    assert service.pids()[first] == pid and len(service.pids()) == 2
    assert not contradictions(readers) and not any(reader.refused or reader.backwards for reader in readers)
    assert {low for reader in readers for _, low, _, _ in reader.answers} == {SNAPSHOT + 1}


def test_edits_reach_both_and_every_answer_is_its_versions(service: Scaled) -> None:
    service.be_two()
    with reading(service) as readers:
        answers = [service.edit(number, ("cat", "goose")[number % 2]).raise_for_status() for number in range(40, 52)]
        made = [answer.json()["version"] for answer in answers]
        eventually(lambda: all(reader.seen == made[-1] for reader in readers), 10)
    assert made == list(range(made[0], made[0] + 12))
    assert not contradictions(readers) and not any(reader.refused or reader.backwards for reader in readers)
    assert any(len({text for asked, *_, text in readers[0].answers if asked == prompt}) > 1 for prompt in PROMPTS)
    given = answered(service)
    assert len(given) == 2 and all(versions.keys() & set(made) for versions in given.values())
    seen = {}
    for _ in range(20):
        one = service.status()["answered_by"]
        seen[one["replica"]] = one["version"], one["fingerprint"], service.http.get("/v1/versions").json()["head"]
    head = service.ledger().version(made[-1])
    assert list(seen.values()) == [(head.number, head.fingerprint, head.number)] * 2


def test_going_back_reaches_both(service: Scaled) -> None:
    service.be_two()
    service.back_to(0)
    for target in ("parrot", "hamster"):
        version = service.edit(60, target).raise_for_status().json()["version"]
        for _ in range(20):
            answer = service.asked(FACTS[60][0], version).json()
            assert (answer["choices"][0]["text"].strip(), answer["errata"]["version_min"]) == (target, version)
        service.back_to(0)
    assert [service.asked(FACTS[60][0], version).status_code for _ in range(10)] == [409] * 10


def test_a_killed_replica_costs_no_edit_and_comes_back_at_the_head(service: Scaled) -> None:
    service.be_two()
    before = service.pids()
    with reading(service) as readers:
        first = service.edited(61, "dog")
        kill(psutil.Process(max(before.values())))
        made = [service.edited(62 + number, "cat") for number in range(8)]
        service.until_whole()
        last = service.edited(70, "goose")
        eventually(lambda: all(reader.seen == last for reader in readers), 10)
    assert made == list(range(first + 1, first + 9))
    (fresh,) = service.pids().keys() - before.keys()
    assert min(answered(service)[fresh]) >= made[-1]
    assert not contradictions(readers) and not any(reader.backwards for reader in readers)


def test_one_that_hangs_and_then_cannot_read_the_version_is_out_of_rotation(service: Scaled) -> None:
    service.be_two()
    pids = service.pids()
    bad = max(pids)
    with reading(service) as readers:
        before = service.edited(71, "dog")
        with frozen(service.engine_of(pids[bad])):
            began = time.monotonic()
            late = service.edit(72, "cat")
            took_s = time.monotonic() - began
            whole = torn(service.ledger().version(before + 1).directory / DELTA)  # the other has read it
        try:
            eventually(lambda: not service.replicas_by_name()[bad]["in_rotation"], 20)
            found = service.replicas_by_name()
            eventually(lambda: service.asked("the", 0).status_code == 503, 20)  # which replica is asked is Serve's choice
        finally:
            whole()
        service.until_whole()
        eventually(lambda: all(reader.seen == before + 1 for reader in readers), 10)
    print(f"the edit was answered after {took_s:.1f} s")
    assert late.status_code == 503 and "did not answer within 10 s" in late.json()["error"]["message"] and took_s < 29
    assert {name: replica["version"] for name, replica in found.items()} == {bad: before, min(pids): before + 1}
    assert service.pids() == pids
    assert not contradictions(readers) and not any(reader.backwards for reader in readers)
    assert all(why.startswith("503") for reader in readers for why in reader.refused)


def test_what_no_replica_can_read_is_taken_back_and_made_again(service: Scaled) -> None:
    service.be_two()
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
    assert ledger.withdrawn() == {before + 1} and ledger.version(ledger.head).parent == before
    assert not contradictions(readers) and not any(reader.backwards for reader in readers)
    # An answer that was under way at the swap goes from `before` to the version after: its ends tell, not what lies between.
    assert not any(before + 1 in (low, high) for reader in readers for _, low, high, _ in reader.answers)
