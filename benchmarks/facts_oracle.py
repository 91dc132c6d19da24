"""The ceiling of retrieval: the right correction is in the prompt of every question about it, written as SCR writes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from errata.edit import Edit, Row
from errata.edit_memory.prompt_form import PromptForm
from errata.editors.memory_based.questions import statement
from errata.editors.memory_based.scr import BEFORE_FACT
from errata.model.language_model import LanguageModel
from errata.model.prompt_hooks import Changed, PromptHook
from errata.text.dialogue import Prompt


class OracleHook(PromptHook):
    """A hook that knows which correction each prompt is about; other prompts stay as they are."""

    def __init__(self, model: LanguageModel, owners: Mapping[Prompt, Edit]) -> None:
        self.form = PromptForm(model.renderer)
        self.texts = {tuple(model.renderer.ids(prompt)): _text(edit) for prompt, edit in owners.items()}

    def __call__(self, model: Any, args: tuple[Any, ...]) -> None: ...

    def changed(self, rows: Sequence[list[int]], room: Sequence[int]) -> list[Changed]:
        texts = [self.texts.get(tuple(ids)) for ids in rows]
        return [Changed(ids if text is None else self.form.with_text(ids, text)) for ids, text in zip(rows, texts, strict=True)]


def _text(edit: Edit) -> str:
    prompt = edit.prompts[-1]
    return BEFORE_FACT + statement(Row(0, prompt, edit.wording(prompt)))


@contextmanager
def with_corrections(model: LanguageModel, owners: Mapping[Prompt, Edit]) -> Iterator[None]:
    """Make a model read the right correction before each prompt that one is about."""
    handle = model.module.register_forward_pre_hook(OracleHook(model, owners))
    try:
        yield
    finally:
        handle.remove()
