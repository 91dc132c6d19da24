"""A sample of earlier edits, on which retention is measured."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator

from errata.edit import Edit
from errata.text.dialogue import Prompt


class Sample:
    """A uniform sample of at most `size` of the edits added so far, with the latest edit of each prompt.

    It takes the smallest hashes of the prompts, so that the sample does not depend on how the edits were batched.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self.held: dict[tuple[Prompt, ...], Edit] = {}

    def add(self, edits: Iterable[Edit]) -> None:
        """Add edits to the population."""
        self.held |= {edit.prompts: edit for edit in edits}
        if len(self.held) > self.size:
            self.held = {prompts: self.held[prompts] for prompts in heapq.nsmallest(self.size, self.held, self._rank)}

    def _rank(self, prompts: tuple[Prompt, ...]) -> bytes:
        return hashlib.sha256(f"{self.seed} {prompts[0]}".encode()).digest()

    def __iter__(self) -> Iterator[Edit]:
        return iter(self.held.values())
