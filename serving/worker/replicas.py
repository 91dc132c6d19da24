"""The generator replicas, as the edit worker sees them: it asks all of them at once and compares what they answer.

`DeploymentHandle.broadcast` reaches every replica and is not atomic: one may have swapped while another has not. So each
answers with the version and fingerprint it has then, and the worker asks again, or takes the version back.
"""

from __future__ import annotations

import asyncio
import time
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
NONE_UP = "none is up"


class Unloadable(SwapFailed):
    """Every replica has read the version's files and will not have them: it cannot be served at all."""


class Replicas:
    """`replicas` is what each answered to the last swap; `is_behind` is True until all of them are known to have made it."""

    def __init__(self) -> None:
        self.replicas: list[dict[str, Any]] = []
        self.is_behind = True
        self._served = -1  # the last version that some replica was seen to serve

    async def swap(self, version: Version, attempts: int = SWAP_ATTEMPTS) -> None:
        """Returns when every replica reports the version and its fingerprint.

        Raises `Unloadable` if they refuse it, `SwapFailed` if some do not get there in time: they follow by themselves. One
        that refuses what another has served is at fault itself, and is late. `SWAP_TIMEOUT_S` is for all attempts together:
        edits wait meanwhile, and whoever hangs is not helped by being asked again.
        """
        self.is_behind = True
        behind, reason = ["any replica"], NONE_UP
        deadline = time.monotonic() + SWAP_TIMEOUT_S
        for attempt in range(attempts):
            await asyncio.sleep(0.05 * (2**attempt - 1))
            if (left_s := deadline - time.monotonic()) <= 0:
                break
            try:
                behind, reason = await self._asked_once(version, left_s)
            except TimeoutError:
                behind, reason = ["every replica"], f"one of them did not answer within {SWAP_TIMEOUT_S:g} s"
            except (RayError, RayServeException) as error:
                reason = type(error).__name__
            if not behind:
                self.is_behind = False
                return
        raise SwapFailed(version.number, behind, reason)

    async def _asked_once(self, version: Version, timeout_s: float) -> tuple[list[str], str]:
        """Who does not serve it then, and why. Raises `Unloadable`, `TimeoutError` and Ray's errors."""
        response = _generators().broadcast("swap", version.number)
        answers = await response.results_async(timeout_s=timeout_s, return_exceptions=True)
        gone = [type(answer).__name__ for answer in answers if isinstance(answer, BaseException)]
        self.replicas = [answer for answer in answers if not isinstance(answer, BaseException)]
        late = [replica for replica in self.replicas if not _has(replica, version)]
        if not answers:
            return ["any replica"], NONE_UP
        if len(late) < len(self.replicas):
            self._served = version.number
        behind = [*(replica["replica"] for replica in late), *(["one that has ended"] if gone else [])]
        reason = "; ".join([*(replica.get("error", f"it has version {replica['version']}") for replica in late), *gone])
        is_refused = not gone and len(late) == len(answers) and all(replica.get("refused") for replica in late)
        if is_refused and self._served != version.number:
            raise Unloadable(version.number, behind, reason)
        return behind, reason

    async def ask(self, method: str) -> list[Any]:
        """What the replicas that answer say to a method without arguments; nothing if one of them does not in time."""
        try:
            answers = await _generators().broadcast(method).results_async(timeout_s=ASK_TIMEOUT_S, return_exceptions=True)
        except (RayError, RayServeException, TimeoutError):
            return []
        return [answer for answer in answers if not isinstance(answer, BaseException)]


def _generators() -> DeploymentHandle[Any]:
    return serve.get_deployment_handle("Generator", serve.get_replica_context().app_name)


def _has(replica: dict[str, Any], version: Version) -> bool:
    return bool((replica["version"], replica["fingerprint"]) == (version.number, version.fingerprint))
