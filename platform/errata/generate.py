"""Generators: the interface of every server of the model, and one in this process, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from errata.delta.accumulator import EditedModel
from errata.ledger import Ledger
from errata.model.generation import greedy, greedy_texts
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec
from errata.text.dialogue import Prompt


class SwapFailed(RuntimeError):
    """A version that `replicas` do not serve, for `reason`."""

    def __init__(self, version: int, replicas: Sequence[str], reason: str = "") -> None:
        super().__init__(version, tuple(replicas), reason)
        self.version, self.replicas, self.reason = version, tuple(replicas), reason

    def __str__(self) -> str:
        why = f": {self.reason}" if self.reason else ""
        return f"version {self.version} is not served by {', '.join(self.replicas) or 'any replica'}{why}"


@dataclass(frozen=True)
class Completion:
    """The text after a prompt. Its tokens were sampled under versions from `version_min` to `version_max`."""

    prompt: str
    text: str
    version_min: int
    version_max: int


class Generator(Protocol):
    """A server of the model at some version of the ledger."""

    def swap(self, version: int) -> None:
        """Serve `version` on every replica, or raise `SwapFailed`. A version that is served already costs nothing."""

    def generate(self, prompts: Sequence[str], max_tokens: int = 8, at_least: int | None = None) -> list[Completion]:
        """Complete each prompt greedily, by version `at_least` or one that follows it."""


class HFGenerator:
    """A transformers model in this process, at any version of a ledger; it starts at the ledger's head.

    `language_model` must hold the base weights at construction, and is edited in place.
    """

    def __init__(self, language_model: LanguageModel, spec: ModelSpec, ledger: Ledger, batch_size: int = 64) -> None:
        self.language_model, self.ledger, self.batch_size = language_model, ledger, batch_size
        self.version = 0
        self._edited = EditedModel(language_model.module, spec)
        self.swap(ledger.head)

    def swap(self, version: int) -> None:
        """Set the weights to `version`.

        Raises `UnknownVersion`, and `ValueError` if a delta does not fit the model; the current version then stays.
        """
        if version == self.version:
            return
        if self.ledger.version(version).parent == self.version:
            self._edited.add(self.ledger.delta(version))
        else:
            self._edited.set(self.ledger.segments(version))
        self.version = version

    def generate(self, prompts: Sequence[str], max_tokens: int = 8, at_least: int | None = None) -> list[Completion]:
        """Complete each prompt. Raises `SwapFailed` if the ledger's head does not follow `at_least`."""
        if at_least is not None and not self._follows(at_least):
            self.swap(self.ledger.head)
            if not self._follows(at_least):
                raise SwapFailed(at_least, ("this process",), f"the head is version {self.version}")
        texts = greedy_texts(self.language_model, prompts, max_tokens, self.batch_size)
        return [Completion(p, text, self.version, self.version) for p, text in zip(prompts, texts, strict=True)]

    def _follows(self, version: int) -> bool:
        return version in (0, *self.ledger.chain(self.version))

    def token_ids(self, prompts: Sequence[Prompt], max_tokens: int = 8) -> list[list[int]]:
        """Generate the greedy tokens after each prompt, as `greedy` does."""
        return greedy(self.language_model, prompts, max_tokens, self.batch_size)
