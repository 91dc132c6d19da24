"""The edits of a memory that decided a request, for the stamp of its answer: noted in front of the engine, under the request.

A request may have several prompts, and each of them has one decision, which is made once and kept; several edits may be in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

NO_ID = "-"  # in the header, of a record whose edit has no id


@dataclass(frozen=True)
class FiredEdit:
    """An edit whose record decided a prompt, and how well it fits."""

    id: str
    score: float

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "score": round(self.score, 4)}

    @property
    def in_header(self) -> str:
        return f"{quote(self.id, safe=':') or NO_ID};score={self.score:.2f}"


@dataclass
class FiredEdits:
    """The decisions of one request, in the order of its prompts.

    `takes_text` is False if another prompt would not be what the client asked for, and `takes_answer` if an answer that is
    said would not be.
    """

    takes_text: bool = True
    takes_answer: bool = True
    versions: list[int] = field(default_factory=list)  # those whose memory was read, also where nothing fired
    decisions: list[Awaitable[Sequence[FiredEdit]]] = field(default_factory=list)
    noted: list[FiredEdit] = field(default_factory=list)  # those that fired while an answer was generated

    @classmethod
    def of(cls, body: Any) -> FiredEdits:
        """Read what the body of a request allows; the engine's own parameters say the rest."""
        if not isinstance(body, Mapping):
            return cls()
        is_search = bool(body.get("use_beam_search"))  # It asks again for each token, with the answer so far as the prompt.
        return cls(not is_search, not (is_search or body.get("tools") or body.get("echo")))

    async def edits(self) -> list[FiredEdit]:
        """Wait for the decisions, and return the edits that fired. A decision that failed fails its prompt, and fired none."""
        decided = await asyncio.gather(*self.decisions, return_exceptions=True)
        return [*(edit for one in decided if not isinstance(one, BaseException) for edit in one), *self.take_noted()]

    def take_noted(self) -> list[FiredEdit]:
        """Return the edits that fired while an answer was generated, and forget them."""
        found, self.noted = self.noted, []
        return found


OF_REQUEST: ContextVar[FiredEdits | None] = ContextVar("fired_edits", default=None)
