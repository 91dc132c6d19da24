"""The served engine is asked some of the edits of each new version, and its answers are compared with their targets.

The guard measures every edit on the edit worker's model. That the engine answers alike is checked here, beside the requests, on
a sample: a difference is counted and logged, and changes nothing.
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
from serving.worker.replicas import Replicas

logger = logging.getLogger("errata")

NUM_ASKED = 4  # of each version
MAX_TOKENS = 64  # of an answer beyond the target
MAX_TARGET_BYTES = 1_024  # Edits with a longer target are not asked.


class ServedCheck:
    """Asks one replica the first edits of a version, and counts the answers that are their targets and those that are not."""

    def __init__(self, replicas: Replicas, metrics: WorkerMetrics) -> None:
        self.replicas, self.metrics = replicas, metrics
        self._running: set[asyncio.Task[None]] = set()

    def begin(self, version: int, edits: Sequence[Edit]) -> None:
        """Start the check of a version in the background."""
        task = asyncio.create_task(self.check(version, edits))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

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
