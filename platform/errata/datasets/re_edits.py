"""Corrections of corrections: a share of a stream's edits becomes edits of facts that stand earlier in it.

A lifelong service meets them: a fact changes again, or was corrected wrongly and the truth is posted again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from errata.edit import Edit
from errata.text.rules import same_text


@dataclass(frozen=True)
class ReEdits:
    """Shares of re-edits among the edits after the first batch, and of reversions among these, which post the truth again.

    The truth is what the unedited model answers.
    """

    share: float = 0.0
    reversions: float = 0.5

    def __post_init__(self) -> None:
        for name in ("share", "reversions"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} of re-edits is between 0 and 1, not {getattr(self, name)}")


def with_re_edits(
    edits: Sequence[Edit], batch_size: int, shares: ReEdits, truth_of: Callable[[Edit], str | None], seed: int
) -> list[Edit]:
    """Return as many edits, some of which are replaced by edits of facts that are at least `batch_size` edits earlier.

    The other target of a fact is that of another edit with the same words around its subject, or else of any edit. `truth_of`
    gives the unedited model's answer, or None if it cannot be a target. With a share of 0 the edits are those given.
    """
    rng, found, targets = random.Random(f"re-edits {seed}"), list(edits), _targets(edits)
    last: dict[frozenset[object], int] = {}
    for i in range(len(found)) if shares.share else ():
        earlier = [at for at in last.values() if at <= i - batch_size]
        if earlier and rng.random() < shares.share:
            now, is_reversion = found[rng.choice(earlier)], rng.random() < shares.reversions
            others = targets[_template(now)]
            others = others if len(set(others)) > 1 else [edit.target for edit in edits]
            target = truth_of(now) if is_reversion else rng.choice(others)
            again = None if target is None else _to(now, target)
            if again is not None and same_text(again.target) != same_text(now.target):
                found[i] = again
        last[found[i].keys] = i
    return found


def in_rounds(edits: Sequence[Edit], num_rounds: int, truth_of: Callable[[Edit], str | None], seed: int) -> list[Edit]:
    """Return the edits, then `num_rounds` rounds of other targets for the same facts, then the truth about all of them.

    Each round has all facts in their order. A target is neither the one before it nor the truth, and otherwise as in
    `with_re_edits`; facts without a truth that can be a target are left out. Raises `ValueError` if no fact has one, or if a
    fact has no other target.
    """
    rng, targets = random.Random(f"rounds {seed}"), _targets(edits)
    truths = [(edit, _to(edit, text)) for edit in edits if (text := truth_of(edit)) is not None]
    known = [(edit, truth) for edit, truth in truths if truth is not None]
    if not known:
        raise ValueError("the model gives no answer to any of these edits that could be a target; take other edits")
    rounds = [[edit for edit, _ in known]]
    for _ in range(num_rounds):
        rounds.append([_other(now, truth, targets, rng) for now, (_, truth) in zip(rounds[-1], known, strict=True)])
    return [edit for edits in (*rounds, [truth for _, truth in known]) for edit in edits]


def _other(now: Edit, truth: Edit, targets: Mapping[str, Sequence[str]], rng: random.Random) -> Edit:
    used = {same_text(now.target), same_text(truth.target)}
    every = [target for texts in targets.values() for target in texts]
    for texts in (targets[_template(now)], every):
        if chosen := [target for target in texts if same_text(target) not in used]:
            return replace(truth, target=rng.choice(chosen))
    raise ValueError(f"no edit has another target for {now.prompt!r}; take more edits")


def _targets(edits: Sequence[Edit]) -> dict[str, list[str]]:
    """List the targets by the words around the subject."""
    found: dict[str, list[str]] = {}
    for edit in edits:
        found.setdefault(_template(edit), []).append(edit.target)
    return found


def _to(edit: Edit, target: str) -> Edit | None:
    """Return the edit with another target, without what belongs to the old one; None if it is no edit."""
    again = replace(edit, id=None, target=target, aliases=(), answer=None, portability=())
    return again if next(again.faults(), None) is None else None


def _template(edit: Edit) -> str:
    """Return the words of the prompt around the subject, or the whole prompt."""
    return edit.prompt.replace(edit.subject, "\0") if edit.subject else edit.prompt
