"""Refusals as values between deployments: Serve logs every exception that crosses a handle, with its message and traceback."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from errata.edit import EditRejected
from errata.generate import SwapFailed
from errata.history.budget import WalkTooLong
from errata.ledger import LedgerConflict, LedgerDamaged, UnknownVersion
from serving.worker.journal import JournalFailed, KeyReused, UnknownEdit
from serving.worker.proposals import AlreadyDecided, OwnProposal, UnknownProposal
from serving.worker.queue_limit import QueueFull

Deployed = TypeVar("Deployed", bound=type)


class Busy(RuntimeError):
    """A request for work that runs one at a time and is under way already."""


REFUSALS: tuple[type[Exception], ...] = (EditRejected, UnknownVersion, UnknownEdit, KeyReused, LedgerConflict, LedgerDamaged)
REFUSALS += (SwapFailed, QueueFull, JournalFailed, OSError, Busy, WalkTooLong, UnknownProposal, AlreadyDecided, OwnProposal)
# What a caller meets whose question the worker does not answer: it refuses, is gone, or is too slow.
UNANSWERED: tuple[type[Exception], ...] = (RayError, RayServeException, TimeoutError, *REFUSALS)


@dataclass(frozen=True)
class RefusedCall:
    """The answer of a method that refused: its error, which the caller raises."""

    error: Exception


def refusals_as_values(deployed: Deployed) -> Deployed:
    """Let every public coroutine of a deployment's class return a `RefusedCall` where it would raise one of `REFUSALS`."""
    for name, method in inspect.getmembers(deployed, inspect.iscoroutinefunction):
        if not name.startswith("_"):
            setattr(deployed, name, _returning(method))
    return deployed


def _returning(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(method)
    async def returned(*arguments: Any, **named: Any) -> Any:
        try:
            return await method(*arguments, **named)
        except REFUSALS as error:
            return RefusedCall(error.with_traceback(None))

    return returned


async def answer_of(answer: Awaitable[Any]) -> Any:
    """Await the answer of another deployment, and raise the error of a refusal."""
    found = await answer
    if isinstance(found, RefusedCall):
        raise found.error
    return found
