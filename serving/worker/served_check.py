"""The served engine is asked some of the edits of each new version, and its answers are compared with their targets.

The guard measures every edit on the edit worker's model. That the engine answers alike is checked here, beside the requests and
in a lull after the edits, on a sample: a difference is counted and logged, and changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from errata.edit import Edit
from errata.text.dialogue import Prompt
from serving.logs import event
from serving.metrics import WorkerMetrics
from serving.worker.lull import Lull
from serving.worker.replicas import Replicas

logger = logging.getLogger("errata")

NUM_ASKED = 4  # of each version
MAX_TOKENS = 64  # of an answer beyond the target
MAX_TARGET_BYTES = 1_024  # Edits with a longer target are not asked.


class ServedCheck:
    """Asks one replica the first edits of a version, and counts the answers that are their targets and those that are not."""

    def __init__(self, replicas: Replicas, metrics: WorkerMetrics, lull: Lull | None = None) -> None:
        self.replicas, self.metrics, self.lull = replicas, metrics, lull or Lull()
        self.running: asyncio.Task[None] | None = None
        self._next: tuple[int, Sequence[Edit]] | None = None

    def begin(self, version: int, edits: Sequence[Edit]) -> None:
        """Have a version checked in the next lull, unless a later one is made before."""
        self._next = version, edits
        if self.running is None or self.running.done():
            self.running = asyncio.create_task(self._check_on())

    async def _check_on(self) -> None:
        while self._next is not None:
            await self.lull.wait()
            (version, edits), self._next = self._next, None
            await self.check(version, edits)

    async def check(self, version: int, edits: Sequence[Edit]) -> None:
        """Compare the answers of one replica; nothing is counted if it serves another version by then or does not answer."""
        short = [edit for edit in edits if len(edit.target.encode()) <= MAX_TARGET_BYTES]
        asked = [(edit, prompt) for edit in short for prompt in edit.prompts][:NUM_ASKED]
        bodies = [request_of(prompt, edit.wording(prompt)) for edit, prompt in asked]
        answer = await self.replicas.answers(bodies) if bodies else None
        if answer is None or answer["version"] != version:
            return
        for (edit, prompt), text in zip(asked, answer["texts"], strict=True):
            agrees = edit.question(prompt).is_answered_by(text)
            self.metrics.served_answer(agrees)
            if not agrees:
                form = "completion" if isinstance(prompt, str) else "chat"
                ids = [edit.id] if edit.id is not None else []
                event(logger, "answer.differs", logging.ERROR, version=version, edit_ids=ids, form=form)


def request_of(prompt: Prompt, target: str) -> dict[str, Any]:
    """Return a prompt as the body of a request of OpenAI's API, with room for the target: a token has at least one byte."""
    asked: dict[str, Any] = {"prompt": prompt} if isinstance(prompt, str) else {"messages": prompt.to_json()}
    return asked | {"max_tokens": MAX_TOKENS + len(target.encode()), "temperature": 0}
