"""The edit worker as Serve deploys it: its constructor opens the parts, and refusals leave it as values."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path

import ray

from errata.ledger import Ledger
from errata.ledger.recovery import recover
from serving.logs import attach_to_serve
from serving.worker.edit_worker import EditWorker, WorkerOptions
from serving.worker.journal import Journal, JournalFailed
from serving.worker.links import dashboard_link
from serving.worker.live_model import LiveModel
from serving.worker.mlflow_mirror import MlflowMirrorTask
from serving.worker.refusals import refusals_as_values

logger = logging.getLogger("errata")


@refusals_as_values
class ServedEditWorker(EditWorker):
    """The edit worker as Serve makes it: Serve awaits the constructor, which opens the parts and starts them.

    Its methods return refusals and do not raise them.
    """

    async def __init__(self, options: WorkerOptions) -> None:  # type: ignore[misc]
        attach_to_serve()
        is_first = not Path(options.live_model.ledger).exists()
        if not is_first:  # On the first start the engines wait for the ledger, and none serves yet.
            os.nice(options.nice)
        kept_s = 3600 * options.idempotency_hours
        journal = await asyncio.to_thread(Journal, options.journal, keys_kept_s=kept_s, node=_node_life())
        await asyncio.to_thread(_recover, options.live_model.ledger)
        live_model = await asyncio.to_thread(LiveModel, options.live_model)
        if is_first:
            os.nice(options.nice)
        mirror = MlflowMirrorTask(live_model.ledger, options.mlflow, options.mlflow_name)
        super().__init__(live_model, journal, mirror, options)
        self.links = await asyncio.to_thread(dashboard_link)
        self.start()

    def __del__(self) -> None:
        """Serve calls this before it ends the process of a deployment that is replaced."""
        if hasattr(self, "journal"):
            with contextlib.suppress(JournalFailed):
                self.journal.hand_over()


def _node_life() -> str:
    """Return a name that is another one after the machine, its container or Ray on it was started again."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{boot.read_text().strip() if boot.exists() else ''} {ray.get_runtime_context().get_node_id()}"


def _recover(path: str) -> None:
    """Repair the ledger before it is read, where that is possible. Raises `LedgerDamaged`."""
    with contextlib.suppress(FileNotFoundError):  # On the first start the live model creates it.
        for note in recover(Ledger.open(path)).notes:
            logger.warning("the ledger in %s: %s", path, note)
