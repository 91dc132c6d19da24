"""The check of edits before they are made: every fault of every edit, also those that only the tokenizer shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
            found = list(_unfit(edit, index, renderer, max_tokens))
        faults += found
    if faults:
        raise EditRejected.of(faults)


def _unfit(edit: Edit, index: int, renderer: Renderer, max_tokens: int) -> Iterator[Fault]:
    """Find the faults that show when an edit is rendered."""
    texts = [("prompt", edit.prompt), *(("rephrasings", rephrasing) for rephrasing in edit.rephrasings)]
    for field_name, prompt in ((name, prompt) for name, text in texts for prompt in edit.ask(text)):
        try:
            num_prompt = len(renderer.ids(prompt))
            num_all = num_prompt + len(renderer.answer_ids(prompt, edit.wording(prompt), close=False))
        except EditRejected as rejected:
            yield Fault(index, rejected.field, rejected.code, rejected.reason)
            return
        if field_name == "rephrasings":
            if num_all + 1 > max_tokens:
                reason = f"{str(prompt)[:40]!r} with the target is longer than the model's context of {max_tokens}"
                yield Fault(index, field_name, Code.TOO_LONG, reason)
        elif num_prompt >= max_tokens:
            reason = f"has {num_prompt} tokens; the model's context holds {max_tokens}"
            yield Fault(index, "prompt", Code.TOO_LONG, reason)
        elif num_all + 1 > max_tokens:  # one more for the token that ends the answer
            reason = f"makes {num_all + 1} tokens with its prompt; the model's context holds {max_tokens}"
            yield Fault(index, "target", Code.TOO_LONG, reason)
