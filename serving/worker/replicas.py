"""The generator replicas as the edit worker sees them: broadcasts to all of them, and the comparison of their answers.

`DeploymentHandle.broadcast` reaches every replica and is not atomic: one replica may have swapped while another has not. Each
replica therefore answers with its version and fingerprint, and the worker asks again or retracts the version.
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
ANSWER_TIMEOUT_S = 60.0
NONE_UP = "none is up"


class Unloadable(SwapFailed):
    """A version whose files every replica has read and refused, so that it cannot be served at all."""


class Replicas:
    """The set of replicas: `replicas` are their answers to the last swap; `is_behind` is False once all have made it."""

    def __init__(self) -> None:
        self.replicas: list[dict[str, Any]] = []
        self.is_behind = True
        self._served = -1  # The last version that any replica has reported as served.

    async def swap(self, version: Version, epoch: int, attempts: int = SWAP_ATTEMPTS) -> None:
        """Swap the head in, and return when every replica reports it with its fingerprint; `epoch` is the head's.

        Raises `Unloadable` if all refuse it, and `SwapFailed` if some are late; those follow by themselves. A replica that
        refuses what another has served is itself at fault, and counts as late. `SWAP_TIMEOUT_S` bounds all attempts together,
        because edits wait meanwhile and a replica that hangs does not answer a second request either.
        """
        self.is_behind = True
        behind, reason = ["any replica"], NONE_UP
        deadline = time.monotonic() + SWAP_TIMEOUT_S
        for attempt in range(attempts):
            await asyncio.sleep(0.05 * (2**attempt - 1))
            if (left_s := deadline - time.monotonic()) <= 0:
                break
            try:
                behind, reason = await self._ask_once(version, epoch, left_s)
            except TimeoutError:
                behind, reason = ["every replica"], f"one of them did not answer within {SWAP_TIMEOUT_S:g} s"
            except (RayError, RayServeException) as error:
                reason = type(error).__name__
            if not behind:
                self.is_behind = False
                return
        raise SwapFailed(version.number, behind, reason)

    async def _ask_once(self, version: Version, epoch: int, timeout_s: float) -> tuple[list[str], str]:
        """Ask once; returns the late replicas and the reason. Raises `Unloadable`, `TimeoutError` and Ray's errors."""
        response = _generators().broadcast("swap", epoch)
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

    async def ask(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method on all replicas; returns the answers, or none if any replica is too slow."""
        try:
            response = _generators().broadcast(method, *arguments)
            answers = await response.results_async(timeout_s=ASK_TIMEOUT_S, return_exceptions=True)
        except (RayError, RayServeException, TimeoutError):
            return []
        return [answer for answer in answers if not isinstance(answer, BaseException)]

    async def answers(self, asked: list[dict[str, Any]]) -> dict[str, Any] | None:
        """Let one replica answer requests, the bodies of completions or chats; None if it is too slow or none is up.

        The answer has `texts` in the order of the requests, and the `version` that gave all of them, or None if it changed.
        """
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                found: dict[str, Any] = await _generators().answer.remote(asked)
        except (RayError, RayServeException, TimeoutError):
            return None
        return found


def _generators() -> DeploymentHandle[Any]:
    return serve.get_deployment_handle("Generator", serve.get_replica_context().app_name)


def _has(replica: dict[str, Any], version: Version) -> bool:
    return bool((replica["version"], replica["fingerprint"]) == (version.number, version.fingerprint))
