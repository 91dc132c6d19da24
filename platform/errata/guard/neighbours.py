"""Neighbours of an update: the earlier edits that are nearest to it, and those of them and of the probes that it changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from errata.delta.kinds import Delta
from errata.delta.side_branch import applied
from errata.edit import EditBatch
from errata.guard.earlier_edits import Said
from errata.guard.held_edits import HeldEdit
from errata.guard.inspector import Inspector, Observed
from errata.guard.probe_answers import MAX_ANSWER_TOKENS
from errata.model.generation import greedy_texts


@dataclass(frozen=True)
class ChangedAnswer:
    """An answer that an update changes; of an earlier edit with its id and target, and whether it `is_lost`."""

    prompt: str
    before: str
    after: str
    id: str | None = None
    target: str | None = None
    is_lost: bool | None = None

    def to_json(self) -> dict[str, Any]:
        data = {"prompt": self.prompt, "before": self.before, "after": self.after}
        if self.target is None:
            return data
        return ({} if self.id is None else {"id": self.id}) | data | {"target": self.target, "lost": bool(self.is_lost)}


def nearest_edits(inspector: Inspector, batch: EditBatch, count: int) -> list[HeldEdit]:
    """Return at most `count` edits that the version holds, none that the batch replaces: those whose words are nearest."""
    others = inspector.earlier.others(batch)
    if len(others) <= count:
        return others
    words = inspector.memory.words
    words.update(inspector.earlier.held)
    left, each = set(others), -(-count // len(batch)) + len(batch)
    near = dict.fromkeys(held for edit in batch for held in words.nearest(edit.prompt, each) if held in left)
    return list(near)[:count]


@torch.no_grad()
def changed_edits(inspector: Inspector, asked: Sequence[HeldEdit], delta: Delta) -> list[ChangedAnswer]:
    """Ask earlier edits of the version and of the model with `delta`; returns those that are answered otherwise."""
    earlier = inspector.earlier
    is_known = earlier.know([held for held in asked if held.is_answered is None])
    then = earlier.ask(asked, delta.on_devices_of(inspector.model.module)) if is_known else None
    found = []
    for held, said in ({} if then is None else then).items():
        now = Said(held.written, held.says)
        if (said.wrong, said.written if said.is_answered else None) != (now.wrong, now.written if now.is_answered else None):
            is_lost = now.is_answered and not said.is_answered
            texts = (_text(inspector, now), _text(inspector, said))
            found.append(ChangedAnswer(held.edit.prompt, *texts, held.edit.id, held.edit.target, is_lost))
    return found


def _text(inspector: Inspector, said: Said) -> str:
    """Return an answer to an edit's first prompt, or a wrong one to any of them."""
    if said.wrong is not None:
        return said.wrong
    text: str = inspector.model.tokenizer.decode((said.written or ((),))[0], skip_special_tokens=True)
    return text.strip()


@torch.no_grad()
def changed_probes(inspector: Inspector, delta: Delta, observed: Observed) -> list[ChangedAnswer]:
    """Generate the answers to the probe questions at which an update changes what was observed, or its record decides."""
    questions = list(observed.fired)
    if inspector.probe_texts is not None and observed.probed is not None and inspector.probed is not None:
        same = observed.probed.same_as(inspector.probed)
        questions += [one for one, is_same in zip(inspector.probe_texts.questions, same, strict=True) if not is_same]
    if not questions:
        return []
    now = greedy_texts(inspector.model, questions, MAX_ANSWER_TOKENS)
    with applied(inspector.model.module, delta.on_devices_of(inspector.model.module)):
        later = greedy_texts(inspector.model, questions, MAX_ANSWER_TOKENS)
    rows = zip(questions, now, later, strict=True)
    return [ChangedAnswer(str(question), before.strip(), after.strip()) for question, before, after in rows]
