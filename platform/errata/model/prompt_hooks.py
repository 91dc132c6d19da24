"""Hooks that change the requests to a model: every pass over prompts asks for the one that a model has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple


class Changed(NamedTuple):
    """A prompt as it is read, and the tokens that are said after it, none if the answer is the model's own."""

    prompt: list[int]
    said: Sequence[int] = ()


class PromptHook(ABC):
    """A forward pre-hook of a model, which knows what its prompts become before they are read.

    Called before a pass, it does nothing: that pass has the changed prompts already.
    """

    @abstractmethod
    def __call__(self, model: Any, args: tuple[Any, ...]) -> None: ...

    @abstractmethod
    def changed(self, rows: Sequence[list[int]], room: Sequence[int]) -> list[Changed]:
        """Return what each prompt becomes; `room` is the number of tokens that follow each."""


def prompt_hook_of(model: Any) -> PromptHook | None:
    """Return the hook that changes a model's prompts; None if none does."""
    return next((hook for hook in model._forward_pre_hooks.values() if isinstance(hook, PromptHook)), None)
