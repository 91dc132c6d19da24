"""The end of vLLM's processes with their replica: a replica that is killed ends nothing itself, and Serve starts another.

The replica names itself in the environment, which all processes of its engine inherit, the workers too, whose parent is the
engine's core. Each of them watches the replica and not its parent.
"""

from __future__ import annotations

import os
import select
import threading

REPLICA = "ERRATA_REPLICA_PID"


def name_this_replica() -> None:
    """Let the processes that this one starts from now on end with it."""
    os.environ[REPLICA] = str(os.getpid())


def end_with_replica() -> None:
    """End this process as soon as the replica has ended; called in every process of an engine."""
    pid = int(os.environ.get(REPLICA, os.getpid()))
    if pid != os.getpid():
        threading.Thread(target=_watch, args=(pid,), name="errata-replica-watch", daemon=True).start()


def _watch(pid: int) -> None:
    """Wait for the end of a process by a descriptor of it: a number could be another process's by now."""
    try:
        replica = os.pidfd_open(pid)
    except ProcessLookupError:
        os._exit(1)
    poll = select.poll()
    poll.register(replica, select.POLLIN)
    poll.poll()
    os._exit(1)
