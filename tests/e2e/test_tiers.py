"""Two tiers in a running service: a correction is answered from memory, then by the weights, and is taken out of both."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.chaos.service import Service, kill
from tests.e2e.serving.application import eventually
from tests.e2e.toy import FACTS

pytestmark = [pytest.mark.e2e, pytest.mark.long]  # test_tiers_swap.py swaps both tiers in one engine by default.
PROMPTS = [prompt for prompt, _ in FACTS[::40][:4]]
TARGETS = ("zither", "viola", "goose", "parrot")


@dataclass
class TieredService(Service):
    """A service whose weights learn two edits together, or one that has waited for two seconds."""

    @property
    def settings(self) -> dict[str, Any]:
        tiers = {"editor": "tests.e2e.toy:Ending", "memory": "answer", "consolidate": "size=2,age=2", "max_batch": 1}
        return super().settings | tiers | {"guard": "change.refuse=1e9;growth.refuse=1e9"}

    def edit(self, number: int, target: str) -> dict[str, Any]:
        body = {"edits": [{"prompt": PROMPTS[number], "target": target}], "wait": True}
        answer = self.http.post("/v1/edits", json=body)
        assert answer.status_code == 200, answer.text
        (made,) = answer.json()["edits"]
        return dict(made)

    def ask(self, number: int) -> tuple[str, bool]:
        """Return the answer to a prompt, and whether a record of the memory gave it."""
        body = {"model": "errata", "prompt": PROMPTS[number], "max_tokens": 4, "temperature": 0}
        answer = self.http.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["text"].strip(), "X-Errata-Edit" in answer.headers

    def of(self, id: str) -> dict[str, Any]:
        return dict(self.http.get(f"/v1/edits/{id}").raise_for_status().json())


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TieredService]:
    service = TieredService(tmp_path_factory.mktemp("tiers"), with_mlflow=False, with_jobs=False)
    try:
        service.start()
        service.until_whole()
        yield service
    finally:
        service.kill_node()
        service.http.close()


def test_a_correction_moves_from_the_memory_into_the_weights_and_back(service: TieredService) -> None:
    unedited = [service.ask(number) for number in range(3)]
    first = service.edit(0, TARGETS[0])
    assert service.ask(0) == (TARGETS[0], True), "it is answered as soon as it is applied"
    second = service.edit(1, TARGETS[1])
    seen = []

    def is_learnt() -> bool:
        seen.append(service.ask(0)[0])
        return all(service.of(edit["id"]).get("carried_by") == "weights" for edit in (first, second))

    eventually(is_learnt)
    assert set(seen) == {TARGETS[0]}, "it is answered at every moment in between"
    eventually(lambda: service.ask(0) == (TARGETS[0], False))
    assert service.ask(1) == (TARGETS[1], False) and service.ask(2) == unedited[2]
    head = service.status()["head"]
    version = service.http.get(f"/v1/versions/{head}").json()
    assert set(version["scorecard"]["consolidated"]["edits"]) == {first["id"], second["id"]} and version["ranks"]
    metrics = service.http.get("/metrics").text
    assert 'errata_edits_carried{by="weights"} 2.0' in metrics and "errata_memory_records" in metrics
    again = service.edit(0, TARGETS[2])
    assert service.ask(0) == (TARGETS[2], True), "the memory wins over what the weights know"
    eventually(lambda: service.of(again["id"]).get("carried_by") == "weights")
    eventually(lambda: service.ask(0) == (TARGETS[2], False))
    service.http.post("/v1/rollback", json={"version": 1}).raise_for_status()
    eventually(lambda: service.ask(0) == (TARGETS[0], True))
    assert service.ask(1) == unedited[1] and service.of(first["id"])["carried_by"] == "memory"
    service.http.post("/v1/rollback", json={"version": head}).raise_for_status()
    eventually(lambda: service.ask(0) == (TARGETS[0], False) and service.ask(1) == (TARGETS[1], False))
    revert = service.http.post("/v1/revert", json={"edits": [second["id"]]})
    assert revert.status_code == 200 and revert.json()["mode"] == "replay", revert.text
    # This editor writes the first edit alone in other weights than both together, so the other prompt is not as it was.
    eventually(lambda: service.ask(1)[0] != TARGETS[1] and service.ask(0) == (TARGETS[0], False))
    assert service.of(first["id"])["carried_by"] == "weights"
    assert service.of(second["id"])["state"] == "reverted"


def test_a_worker_that_is_killed_between_the_tiers_loses_nothing(service: TieredService) -> None:
    made = service.edit(3, TARGETS[3])
    kill(service.worker())
    deadline = time.monotonic() + 120
    while service.http.get("/ready").status_code != 200 and time.monotonic() < deadline:
        assert service.ask(3)[0] == TARGETS[3]
        time.sleep(0.2)
    service.until_whole()
    eventually(lambda: service.of(made["id"]).get("carried_by") == "weights")
    eventually(lambda: service.ask(3) == (TARGETS[3], False))
    replica = service.replica_processes()[0]
    kill(replica)
    service.until_whole()
    assert service.ask(3) == (TARGETS[3], False), "a replica that starts late answers by both"
