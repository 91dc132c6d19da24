"""Preparation of a swap: the update that every vLLM worker has read and accepted, while the engine answers as before."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from errata.ledger import DELTA, Ledger
from serving.engine.readiness import Readiness, max_prepare_s

if TYPE_CHECKING:
    from serving.engine.weight_engine import UpdateFault

READING_PERIOD_S = 0.1  # Between two questions whether the engine has read a long update.


@dataclass(frozen=True)
class AcceptedUpdate:
    """An update that all workers hold, as `weight_engine.UpdateInfo` has it, and whether it changes weights."""

    update: dict[str, Any]
    changes_weights: bool


class Preparation:
    """Prepares the updates of one engine; the time that each may take is noted in `readiness`."""

    def __init__(self, engine: Any, ledger: Ledger, readiness: Readiness) -> None:
        self.engine, self.ledger, self.readiness = engine, ledger, readiness

    async def accepted(self, served: int, version: int) -> AcceptedUpdate:
        """Prepare an update from the version `served`.

        Raises `ValueError` if the workers accept none, `OSError` if one could not be read.
        """
        faults: list[UpdateFault] = []
        for update in self._updates(served, version):
            numbers = self.ledger.chain(version) if update["reset"] else [version]
            self.readiness.prepare_begins(await asyncio.to_thread(self._max_prepare_s, numbers))
            answers = await self.engine.collective_rpc("errata_prepare", args=(update,))
            while not all(answer["is_read"] for answer in answers):
                await asyncio.sleep(READING_PERIOD_S)
                answers = await self.engine.collective_rpc("errata_reading")
            faults = [answer["fault"] for answer in answers if answer["fault"] is not None]
            if not faults:
                return AcceptedUpdate(update, any(answer["changes_weights"] for answer in answers))
        is_disks = any(fault["kind"] == "io" for fault in faults)
        raise (OSError if is_disks else ValueError)("; ".join(fault["message"] for fault in faults))

    def _max_prepare_s(self, numbers: Sequence[int]) -> float:
        """Bound the seconds to prepare these versions; called in a thread, because a long chain takes seconds to read."""
        sizes = [(len(one.ranks), one.num_bytes) for one in map(self.ledger.version, numbers)]
        return max_prepare_s(sum(parts for parts, _ in sizes), sum(size for _, size in sizes))

    def _updates(self, served: int, version: int) -> Iterator[dict[str, Any]]:
        """Yield the updates to try, the cheapest first.

        The new delta alone if the version follows the served one, then all deltas from the base model, with the snapshots
        (copies that may be damaged) and without them.
        """
        entry = self.ledger.version(version)
        common = {"parent": served, "version": version, "fingerprint": entry.fingerprint}
        if version and entry.parent == served:
            yield {**common, "reset": False, "files": [str(entry.directory / DELTA)]}
        for snapshots in (True, False):
            yield {**common, "reset": True, "files": [str(file) for file in self.ledger.files_to(version, snapshots)]}
