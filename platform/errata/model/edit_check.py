"""The check of edits before they are made: every fault of every edit, also those that only the tokenizer shows."""

from __future__ import annotations

from collections.abc import Sequence

from errata.edit import Code, Edit, EditRejected, Fault
from errata.model.renderer import Renderer


def check_edits(edits: Sequence[Edit], renderer: Renderer | None = None, max_tokens: int | None = None) -> None:
    """Raise `EditRejected` with every fault of every edit.

    With the model's `Renderer`, every prompt must be a request that the model takes, with an answer that its tokens can write;
    both must fit into `max_tokens` tokens, the model's context.
    """
    if not edits:
        raise EditRejected("an empty batch; give at least one edit", code=Code.EMPTY_BATCH, field="edits")
    faults: list[Fault] = []
    for index, edit in enumerate(edits):
        found = list(edit.faults(index))
        if not found and renderer is not None and max_tokens is not None:  # What is at fault already may not be rendered.
            found = list(renderer.faults(edit, index, max_tokens))
        faults += found
    if faults:
        raise EditRejected.of(faults)
