"""Faults of a running service. Each function causes one and returns; the service must recover by itself."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import httpx

from errata.ledger import DELTA, ENTRY
from tests.chaos.service import Service, frozen, full_disk, kill

Fault = Callable[[Service, random.Random], None]


def worker(service: Service, draw: random.Random) -> None:
    kill(service.worker())


def replica(service: Service, draw: random.Random) -> None:
    kill(service.replica())


def engine(service: Service, draw: random.Random) -> None:
    kill(service.engine())


def gateway(service: Service, draw: random.Random) -> None:
    kill(service.gateway())


def mlflow(service: Service, draw: random.Random) -> None:
    """Stop MLflow for some seconds, then start it again."""
    service.kill_mlflow()
    time.sleep(draw.uniform(1, 4))
    service.stack.start_mlflow()


def node(service: Service, draw: random.Random) -> None:
    """Kill all processes of the machine, then start the service again."""
    service.kill_node()
    service.start()


def disk_full(service: Service, draw: random.Random) -> None:
    with full_disk(service.worker()):
        time.sleep(draw.uniform(1, 4))


def corrupted_entry(service: Service, draw: random.Random) -> None:
    """Damage a file of the newest version and kill the worker: the file is cut, a bit is flipped, or it is removed."""
    victim = service.worker()
    victim.suspend()
    ledger = service.ledger()
    path = ledger.version(ledger.newest).directory / draw.choice((DELTA, ENTRY))
    content = path.read_bytes()
    damage = draw.choice(("torn", "flipped", "gone"))
    if damage == "torn":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        at = draw.randrange(len(content))
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
    else:
        path.unlink()
    kill(victim)


def slow_replica(service: Service, draw: random.Random) -> None:
    with frozen(service.engine()):
        time.sleep(draw.uniform(1, 6))


def duplicate_posts(service: Service, draw: random.Random) -> None:
    """Send the same post ten times under one key, as an impatient client does."""
    body = {"edits": [{"prompt": "the dog keeps a", "target": "cat"}], "wait": False}
    key = str(draw.random())
    with httpx.Client(base_url=str(service.http.base_url), timeout=30) as client:
        ids = {tuple(client.post("/v1/edits", json=body, headers={"Idempotency-Key": key}).json()["ids"]) for _ in range(10)}
    assert len(ids) == 1


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (worker, replica, engine, gateway, mlflow, node, disk_full, corrupted_entry, slow_replica, duplicate_posts)
}
