"""Processes of an engine end with their replica, also those that another process of the engine started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil

from serving.engine.replica_watch import REPLICA

# Each starts the next one, as a replica its engine's core, and the core its workers; only the replica names itself.
WORKER = (
    "import os, time; from serving.engine.replica_watch import end_with_replica as end; end(); "
    "os.write(1, f'{os.getpid()}\\n'.encode()); "  # At one stroke: two processes write into the same pipe.
)
WORKER += "time.sleep(60)"
CORE = f"""
import os, subprocess, sys, time
from serving.engine.replica_watch import end_with_replica
end_with_replica()
os.write(1, f"{{os.getpid()}}\\n".encode())
workers = [subprocess.Popen([sys.executable, "-c", {WORKER!r}]) for _ in range(2)]
time.sleep(60)
"""
NAMED = f"""
import subprocess, sys, time
from serving.engine.replica_watch import name_this_replica
name_this_replica()
core = subprocess.Popen([sys.executable, "-c", {CORE!r}])
time.sleep(60)
"""


def ended(processes: list[psutil.Process]) -> bool:
    return not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes)


def test_the_core_and_all_workers_end_when_the_replica_is_killed() -> None:
    replica = subprocess.Popen([sys.executable, "-c", NAMED], stdout=subprocess.PIPE, text=True)
    assert replica.stdout is not None
    engine = [psutil.Process(int(replica.stdout.readline())) for _ in range(3)]
    assert len({one.pid for one in engine}) == 3 and {one.ppid() for one in engine} == {replica.pid, engine[0].pid}
    replica.send_signal(signal.SIGKILL)
    replica.wait()
    deadline = time.monotonic() + 20
    while not ended(engine):
        assert time.monotonic() < deadline, [one.pid for one in engine]
        time.sleep(0.05)
    replica.stdout.close()


def test_a_process_that_starts_after_the_replica_has_ended_ends_immediately() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", WORKER], env={**os.environ, REPLICA: str(gone.pid)}, check=False, capture_output=True
    )
    assert done.returncode == 1 and time.monotonic() - started < 30


def test_a_process_without_a_replica_goes_on() -> None:
    code = WORKER.replace("time.sleep(60)", "time.sleep(0.2); print('on')")
    environment = {name: value for name, value in os.environ.items() if name != REPLICA}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.endswith("on\n")
