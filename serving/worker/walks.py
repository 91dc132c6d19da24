"""Walks over many versions beside the edits: blame, on a model of its own, and the run of any walk in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from errata.delta.accumulator import EditedModel
from errata.history.blame import Blamed, blamed
from errata.history.budget import WalkBudget
from errata.history.checkout import Checkout
from errata.ledger import Ledger
from errata.model.generation import check_question, greedy_texts
from errata.model.language_model import LanguageModel
from errata.text.dialogue import Prompt

Found = TypeVar("Found")


@dataclass(frozen=True)
class BlameWalk:
    """A copy of the live model, `model` with its weights `edited`, that is taken along the chain to `version`.

    Edits go on meanwhile: the copy has matrices, sums and a tokenizer of its own, and shares everything else.
    """

    model: LanguageModel
    edited: EditedModel
    ledger: Ledger
    version: int

    def blame(self, prompt: Prompt, max_tokens: int, budget: WalkBudget) -> Blamed:
        """Find the version that brought the answer of `version`.

        Raises `EditRejected` for a prompt that is empty or that leaves no room for an answer in the model's context, and
        `WalkTooLong` and `WalkStopped` as `budget` does.
        """
        check_question(prompt, max_tokens, self.model)
        checkout = Checkout(self.edited, self.ledger, self.version, budget)

        def answer(version: int) -> str:
            checkout.to(version)
            budget.step()
            return greedy_texts(self.model, [prompt], max_tokens)[0].strip()

        return blamed(self.ledger, self.version, str(prompt), answer)


async def walked(walk: Callable[[WalkBudget], Found], budget: WalkBudget) -> Found:
    """Run a walk in a thread. If the caller is cancelled, the walk is stopped, and the cancellation waits for its end."""
    running = asyncio.ensure_future(asyncio.to_thread(walk, budget))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        budget.stop()
        await asyncio.wait([running])
        running.exception()  # It is of no use, and would be logged as never retrieved.
        raise
