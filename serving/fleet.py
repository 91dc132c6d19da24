"""The generator replicas, as the edit worker sees them: it asks all of them at once and compares what they answer.

`DeploymentHandle.broadcast` reaches every replica and is not atomic: one may have swapped while another has not. So each
answers with the version and fingerprint it has then, and the worker asks again, or takes the version back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from errata.generate import SwapFailed
from errata.ledger import Version

SWAP_ATTEMPTS = 5
SWAP_TIMEOUT_S = 10.0
ASK_TIMEOUT_S = 3.0


class Unloadable(SwapFailed):
    """Every replica that answers has read the version's files and will not have them: it cannot be served at all."""


class Fleet:
    """`replicas` is what each answered to the last swap; `is_behind` is True until all of them are known to have made it."""

    def __init__(self) -> None:
        self.replicas: list[dict[str, Any]] = []
        self.is_behind = True

    async def swap(self, version: Version, attempts: int = SWAP_ATTEMPTS) -> None:
        """Returns when every replica reports the version and its fingerprint.

        Raises `Unloadable` if they refuse it, `SwapFailed` if some do not get there in time: they follow by themselves. One
        that refuses what others serve is at fault itself, and is late.
        """
        self.is_behind = True
        behind, reason = ["any replica"], "none is up"
        for attempt in range(attempts):
            await asyncio.sleep(0.05 * (2**attempt - 1))
            try:
                response = _generators().broadcast("swap", version.number)
                self.replicas = await response.results_async(timeout_s=SWAP_TIMEOUT_S)
            except (RayError, RayServeException, TimeoutError) as error:
                reason = type(error).__name__
                continue
            late = [r for r in self.replicas if (r["version"], r["fingerprint"]) != (version.number, version.fingerprint)]
            if self.replicas and not late:
                self.is_behind = False
                return
            behind, reason = _named(late) or behind, _reasons(late) or reason
            if late and len(late) == len(self.replicas) and all(replica.get("refused") for replica in late):
                raise Unloadable(version.number, behind, reason)
        raise SwapFailed(version.number, behind, reason)

    async def ask(self, method: str) -> list[Any]:
        """What the replicas that answer say to a method without arguments; nothing if one of them does not in time."""
        try:
            answers = await _generators().broadcast(method).results_async(timeout_s=ASK_TIMEOUT_S, return_exceptions=True)
        except (RayError, RayServeException, TimeoutError):
            return []
        return [answer for answer in answers if not isinstance(answer, BaseException)]


def _generators() -> DeploymentHandle[Any]:
    return serve.get_deployment_handle("Generator", serve.get_replica_context().app_name)


def _named(replicas: Sequence[dict[str, Any]]) -> list[str]:
    return [replica["replica"] for replica in replicas]


def _reasons(replicas: Sequence[dict[str, Any]]) -> str:
    return "; ".join(replica.get("error", f"it has version {replica['version']}") for replica in replicas)
