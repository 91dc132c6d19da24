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


class Unloadable(SwapFailed):
    """A replica has read the version's files and will not have them: it cannot be served at all."""


class Fleet:
    """`replicas` is what each answered to the last swap; `is_behind` is True until all of them have made it."""

    def __init__(self) -> None:
        self.replicas: list[dict[str, Any]] = []
        self.is_behind = False

    async def swap(self, version: Version) -> None:
        """Returns when every replica reports the version and its fingerprint.

        Raises `Unloadable` if one refuses it, `SwapFailed` if some do not get there in time: they follow by themselves.
        """
        self.is_behind = True
        behind, reason = ["any replica"], "none is up"
        for attempt in range(SWAP_ATTEMPTS):
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
            if refusing := [replica for replica in late if replica.get("refused")]:
                raise Unloadable(version.number, _named(refusing), _reasons(refusing))
        raise SwapFailed(version.number, behind, reason)

    async def ask(self, method: str) -> list[Any]:
        """Every replica's answer to a method without arguments. Raises Ray's errors, `TimeoutError`."""
        return list(await _generators().broadcast(method).results_async(timeout_s=SWAP_TIMEOUT_S))


def _generators() -> DeploymentHandle[Any]:
    return serve.get_deployment_handle("Generator", serve.get_replica_context().app_name)


def _named(replicas: Sequence[dict[str, Any]]) -> list[str]:
    return [replica["replica"] for replica in replicas]


def _reasons(replicas: Sequence[dict[str, Any]]) -> str:
    return "; ".join(replica.get("error", f"it has version {replica['version']}") for replica in replicas)
