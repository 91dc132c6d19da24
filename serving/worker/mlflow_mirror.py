"""The task that mirrors new versions to MLflow beside the edit loop, which never waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from errata.ledger import Ledger
from serving.logs import event
from serving.worker.links import mlflow_links
from serving.worker.lull import Lull

logger = logging.getLogger("errata")

PERIOD_S = 5.0
START_S = 10.0  # The mirror starts after the engines, which start together with the worker.
CONFLICT_PERIOD_S = 60.0  # After a conflict, which only a person can settle.
CHUNK = 50  # Versions in one call, so that the alias of the live version does not wait for a backlog.


class MlflowMirrorTask:
    """Mirrors the ledger to MLflow. `state` is the last result with its error; without an address nothing is sent.

    It waits for a `lull` between edits, at most to the end of its period.
    """

    def __init__(self, ledger: Ledger, uri: str | None, name: str) -> None:
        self.ledger, self.uri, self.name = ledger, uri, name
        self.state: dict[str, Any] = {}
        self.lull = Lull()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self.uri is not None:
            self._task = asyncio.create_task(self._mirror(self.uri))
            self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Log an unexpected fault, and start again later."""
        if not task.cancelled():
            self.state = {**self.state, "error": repr(task.exception())}
            logger.error("the mirror to MLflow has failed", exc_info=task.exception())
            asyncio.get_running_loop().call_later(CONFLICT_PERIOD_S, self.start)

    @property
    def behind(self) -> int:
        """The number of versions that MLflow lacks; 0 without an address."""
        if self.uri is None:
            return 0
        return self.state.get("left", 0) + max(0, self.ledger.newest - self.state.get("newest", 0))

    @property
    def links(self) -> dict[str, str]:
        """Addresses of MLflow's pages, where MLflow is a web server."""
        return mlflow_links(self.uri, self.name, self.state)

    def wake(self) -> None:
        self._changed.set()

    async def _mirror(self, uri: str) -> None:
        """Copy new versions for ever; waits for `wake` and a lull, and at most some seconds to catch up after an outage."""
        await asyncio.sleep(START_S)
        # Imported here because importing MLflow takes seconds.
        from errata.registry import Registry, RegistryConflict, RegistryUnavailable

        registry: Registry | None = None
        while True:
            pause_s = PERIOD_S
            try:
                if registry is None:
                    registry = await asyncio.to_thread(Registry, uri, self.name)
                newest = self.ledger.newest
                found = await asyncio.to_thread(registry.mirror, self.ledger, limit=CHUNK)
                self.state = {
                    "version": found.live,
                    "serving": found.serving,
                    "mlflow_version": found.mlflow_version,
                    "newest": newest,
                    "left": found.left,
                    "error": None,
                }
                if found.left:
                    continue
            except (RegistryUnavailable, ValueError) as fault:
                pause_s = CONFLICT_PERIOD_S if isinstance(fault, RegistryConflict | ValueError) else PERIOD_S
                self.state = {**self.state, "error": str(fault)}
                # MLflow's message may quote what was sent, which has texts of edits; the status has it.
                event(logger, "mirror.failed", logging.WARNING, error=type(fault).__name__)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._changed.wait()
                    await self.lull.wait()
            self._changed.clear()
