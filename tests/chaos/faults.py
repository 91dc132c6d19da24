"""Faults of a running service. Each function causes one and returns; the service must recover by itself."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import ExitStack

import httpx
import psutil

from errata.ledger import DELTA, ENTRY
from errata.ledger.head import MOVES
from tests.chaos.service import Service, frozen, full_disk, kill

Fault = Callable[[Service, random.Random], None]

LATE_S = 12.0  # After the edit worker has given a broadcast up, which it does after 10 s.
APPEND_S = 20.0
CLOCK_S = 3600.0
CONTROLLER_S = 5.0  # A new controller asks each replica at its start.


def worker(service: Service, draw: random.Random) -> None:
    kill(service.worker())


def replica(service: Service, draw: random.Random) -> None:
    kill(draw.choice(service.replica_processes()))


def engine(service: Service, draw: random.Random) -> None:
    kill(service.engine_of(draw.choice(service.replica_processes()).pid))


def gateway(service: Service, draw: random.Random) -> None:
    kill(service.gateway())


def controller(service: Service, draw: random.Random) -> None:
    """Kill Serve's controller, which starts replicas again and says where they are; those that run must go on."""
    before = {process.pid for process in service.replica_processes()}
    service.restart_controller()
    time.sleep(CONTROLLER_S)
    after = {process.pid for process in service.replica_processes()}
    assert after == before, f"Serve's new controller replaced the replicas {before - after}"


def mlflow(service: Service, draw: random.Random) -> None:
    """Stop MLflow for some seconds, then start it again."""
    service.kill_mlflow()
    time.sleep(draw.uniform(1, 4))
    service.stack.start_mlflow()


def node(service: Service, draw: random.Random) -> None:
    """Kill all processes of the machine, then start the service again."""
    service.kill_node()
    service.start()


def power_cut(service: Service, draw: random.Random) -> None:
    """Kill all processes, and start again from what the device held at a moment before."""
    assert service.disk is not None
    with frozen(service.worker()):
        copy = service.disk.copy()
        service.kill_node()
    service.disk.return_to(copy)
    service.start()


def disk_full(service: Service, draw: random.Random) -> None:
    with full_disk(service.worker(), 0):
        time.sleep(draw.uniform(1, 4))


def full_journal(service: Service, draw: random.Random) -> None:
    """Let the journal's log not grow, in which every transaction is written first."""
    _full(service, draw, service.journal_path.stat().st_size if draw.random() < 0.5 else 32 * 1024)


def full_index(service: Service, draw: random.Random) -> None:
    """Let the index not grow; versions and most logs are smaller."""
    _full(service, draw, service.ledger().index.path.stat().st_size)


def full_moves(service: Service, draw: random.Random) -> None:
    """Let the log of the head's moves not grow, so that a rollback fails between its two files."""
    log = service.ledger_path / MOVES
    _full(service, draw, log.stat().st_size if log.exists() else 0)


def full_version(service: Service, draw: random.Random) -> None:
    """Let a version's files be written in part."""
    ledger = service.ledger()
    delta = ledger.version(ledger.newest).directory / DELTA
    _full(service, draw, draw.randrange(delta.stat().st_size) if delta.exists() else 500)


def _full(service: Service, draw: random.Random, num_bytes: int) -> None:
    with full_disk(service.worker(), num_bytes):
        time.sleep(draw.uniform(1, 4))


def corrupted_entry(service: Service, draw: random.Random) -> None:
    """Damage a file of the newest version and kill the worker: the file is cut, a bit is flipped, or it is removed."""
    victim = service.worker()
    victim.suspend()
    ledger = service.ledger()
    if ledger.newest == 0:  # There is no version yet.
        return kill(victim)
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
    with frozen(service.engine_of(draw.choice(service.replica_processes()).pid)):
        time.sleep(draw.uniform(1, 6))


def late_broadcast(service: Service, draw: random.Random) -> None:
    """Stop a replica's process, so that what the worker sends it is carried out after the worker has given it up."""
    with frozen(draw.choice(service.replica_processes())):
        time.sleep(LATE_S)


def unsettled_append(service: Service, draw: random.Random) -> None:
    """Kill the worker between the append of a version and the settling of its edits, which an engine that stops holds up."""
    victim, ledger = service.worker(), service.ledger()
    with ExitStack() as stopped:
        for one in draw.sample(engines := _engines(service), draw.randint(1, len(engines))):
            stopped.enter_context(frozen(one))
        before, deadline = ledger.newest, time.monotonic() + APPEND_S
        while ledger.newest == before and time.monotonic() < deadline:
            time.sleep(0.02)
        kill(victim)


def _engines(service: Service) -> list[psutil.Process]:
    return [service.engine_of(process.pid) for process in service.replica_processes()]


def clock(service: Service, draw: random.Random) -> None:
    """Move the clock an hour ahead or back, and return it after some seconds."""
    service.move_clock(draw.choice((CLOCK_S, -CLOCK_S)))
    time.sleep(draw.uniform(2, 5))
    service.move_clock(0)


def duplicate_posts(service: Service, draw: random.Random) -> None:
    """Send the same post ten times under one key, as an impatient client does."""
    body = {"edits": [{"prompt": "the dog keeps a", "target": "cat"}], "wait": False}
    key = str(draw.random())
    with httpx.Client(base_url=str(service.http.base_url), headers=service.headers, timeout=30) as client:
        ids = {tuple(client.post("/v1/edits", json=body, headers={"Idempotency-Key": key}).json()["ids"]) for _ in range(10)}
    assert len(ids) == 1


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        worker,
        replica,
        engine,
        gateway,
        controller,
        mlflow,
        node,
        power_cut,
        disk_full,
        full_journal,
        full_index,
        full_moves,
        full_version,
        corrupted_entry,
        slow_replica,
        late_broadcast,
        unsettled_append,
        clock,
        duplicate_posts,
    )
}
