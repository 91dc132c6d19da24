"""Dry run: what a post of edits or a revert would do, found on the live model, which stays as it is, without any other trace.

The edits are tried as the edit loop makes a batch: together, and in halves where the guard refuses them without naming one. No
version is appended, so each group is tried on the live version.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from errata.candidate import CandidateVersion
from errata.edit import Code, Edit, EditBatch, EditRejected
from errata.guard.bisection import BatchBisection, Group
from errata.guard.inspector import Observed
from errata.guard.limits import VersionRefused
from errata.guard.neighbours import changed_edits, changed_probes, nearest_edits
from errata.history.budget import WalkBudget
from errata.ledger import HeadMoved
from serving.worker.head_answers import HeadAnswers, HeadSaid
from serving.worker.live_model import LiveModel
from serving.worker.refusals import Busy
from serving.worker.walks import walked

if TYPE_CHECKING:
    from serving.worker.edit_loop import EditLoop

MAX_EDITS = 16  # The live model is asked each of them, for as long as a batch waits.
NOT_SHOWN = ("answers", "again", "limits", "warnings", "failed")  # of a scorecard; the first ones are shown with each edit


class DryRuns:
    """Dry runs of a worker, one at a time and in the place of a batch: the next batch waits for the end, at most `max_s`."""

    def __init__(self, edit_loop: EditLoop, max_s: float) -> None:
        self.edit_loop, self.max_s = edit_loop, max_s

    async def of(
        self, edits: Sequence[Edit], slot: asyncio.Lock, contradicts: Mapping[int, list[str]] | None = None
    ) -> dict[str, Any]:
        """Try edits; `slot` is the one that walks over the versions have, too. A call that is cancelled stops the attempts.

        `contradicts` has the ids of the edits that some of them, by position, contradict.

        Raises `Busy`, `EditRejected` for more edits than a version takes, and `WalkTooLong` after the time of a walk.
        """
        _check_free(slot)
        if len(edits) > (most := min(MAX_EDITS, self.edit_loop.max_batch)):
            raise EditRejected(f"has {len(edits):,}, and a dry run at most {most:,}", code=Code.BATCH_SIZE, field="edits")
        found = await self._run(partial(tried, self.edit_loop.live_model, edits), slot)
        for i, ids in (contradicts or {}).items():
            found["edits"][i]["contradicts"] = ids
        return found

    async def of_revert(self, chosen: Chosen, expected_head: int | None, slot: asyncio.Lock) -> dict[str, Any]:
        """Try a revert. Raises `Busy`, `HeadMoved` if the head is not `expected_head`, `RevertRefused` and `WalkTooLong`."""
        _check_free(slot)
        return await self._run(partial(tried_revert, self.edit_loop.live_model, chosen, expected_head), slot)

    async def _run(self, attempt: Callable[[WalkBudget], dict[str, Any]], slot: asyncio.Lock) -> dict[str, Any]:
        async with slot, self.edit_loop.writing:
            with self.edit_loop.core_sharing.editing():
                return await walked(attempt, WalkBudget(max_s=self.max_s))


def _check_free(slot: asyncio.Lock) -> None:
    if slot.locked():
        raise Busy("the service is trying other edits or walking over versions; ask again when that is done")


def tried(live_model: LiveModel, edits: Sequence[Edit], budget: WalkBudget) -> dict[str, Any]:
    """Try edits on the live model; docs/serving.md describes the result. Raises `WalkTooLong` and `WalkStopped`."""
    attempts = _Attempts(live_model, edits)
    while (group := attempts.bisection.next_group()) is not None:
        budget.step()
        attempts.take(group)
    budget.step()
    attempts.ask_unedited()
    return attempts.to_json()


class Chosen(NamedTuple):
    """The edits of a revert, by their ids and as whole versions, and how they are taken out."""

    edits: Sequence[str]
    versions: Sequence[int]
    mode: str


def tried_revert(live_model: LiveModel, chosen: Chosen, expected_head: int | None, budget: WalkBudget) -> dict[str, Any]:
    """Try a revert on the live model; docs/serving.md describes the result.

    Raises `HeadMoved`, `RevertRefused`, `WalkTooLong` and `WalkStopped`.
    """
    head, inspector = live_model.version, live_model.inspector
    if expected_head is not None and expected_head != head:
        raise HeadMoved(expected_head, head)
    budget.step()
    try:
        made = live_model.revert(chosen.edits, chosen.versions, chosen.mode)
    except VersionRefused as refusal:
        return {"dry_run": True, "head": head, "publish": False, **_refusal(refusal)}
    budget.step()
    assert made.change is not None
    reverted = made.scorecard["reverted"]
    gone = [held.edit for id in reverted["edits"] if (held := inspector.earlier.held.by_id.get(id)) is not None]
    asked = nearest_edits(inspector, EditBatch(tuple(gone)), inspector.guard.num_retained)
    edits = changed_edits(inspector, asked, made.change)
    _, observed = inspector.measure(EditBatch(()), made.change, sample=[])
    probes = changed_probes(inspector, made.change, observed)
    return {
        "dry_run": True,
        "head": head,
        "publish": True,
        "mode": reverted["mode"],
        "reverted": reverted["edits"],
        "scorecard": made.scorecard,
        "neighbours": {
            "edits": [one.to_json() for one in edits],
            "probes": [one.to_json() for one in probes],
            "num_edits_asked": len(asked),
            "num_edits": len(inspector.earlier.held) - len(gone),
            "num_probes": _num_probes(live_model),
        },
    }


def _refusal(refusal: VersionRefused) -> dict[str, Any]:
    """Return the limits that a version passes, its figures, and the limits that hold."""
    breaches = [
        {"limit": one.limit, "value": _or_none(one.value), "bound": _or_none(one.bound), "message": one.sentence}
        for one in refusal.breaches
    ]
    scores = {name: value for name, value in refusal.scores.items() if name not in NOT_SHOWN}
    return {"breaches": breaches, "scores": scores, "limits": refusal.scores.get("limits", {})}


def _num_probes(live_model: LiveModel) -> int:
    probes = live_model.inspector.probe_texts
    return 0 if probes is None else len(probes.questions)


class _Attempts:
    """Attempts at the groups of a batch, and what each edit would become; E edits, by their positions."""

    def __init__(self, live_model: LiveModel, edits: Sequence[Edit]) -> None:
        self.live_model, self.edits = live_model, edits
        self.bisection, self.answers = BatchBisection(edits), HeadAnswers(live_model, edits, must=True)
        self.shown: dict[int, dict[str, Any]] = {}
        self.guard: list[dict[str, Any]] = []
        self.changed_edits: dict[tuple[str, str], dict[str, Any]] = {}
        self.changed_probes: dict[str, dict[str, Any]] = {}
        self.num_asked = 0

    def take(self, group: Group) -> None:
        """Try one group as a version of its own, and settle the edits whose fate is then known."""
        try:
            said = self.answers.to(group)
            right = tuple(i for i, one in zip(group, said, strict=True) if one.is_target)
            if right and len(right) < len(group):
                return self.bisection.postpone(group, right)
            if right:
                self._unchanged(group, said)
            else:
                before, in_chat = [one.text for one in said], [one.last for one in said]
                self._made(group, self.live_model.make(self.bisection.batch(group).edits, before, in_chat))
        except EditRejected as refusal:
            self._refused(group, refusal.with_traceback(None))
        else:
            for i, why in self.bisection.made(group):
                self.shown[i] = {"state": "superseded", "code": why.code.value, "reason": why.reason, "field": why.field}

    def _unchanged(self, group: Group, said: Sequence[HeadSaid]) -> None:
        for i, one in zip(group, said, strict=True):
            self.shown[i] = {"state": "applied", "changed": False, "before": one.text, "after": one.text}

    def _made(self, group: Group, candidate: CandidateVersion) -> None:
        card = candidate.scorecard
        for i, edit, (before, after) in zip(group, candidate.edits, card["answers"], strict=True):
            self.shown[i] = {"state": "applied", "changed": True, "before": before, "after": after, "edit": edit.to_json()}
        scores = {name: value for name, value in card.items() if name not in NOT_SHOWN}
        about = {"publish": True, "breaches": [], "warnings": card["warnings"], "scores": scores, "limits": card["limits"]}
        self.guard.append({"edits": list(group), **about})
        inspector = self.live_model.inspector
        asked = nearest_edits(inspector, self.bisection.batch(group), inspector.guard.num_retained)
        self.num_asked = max(self.num_asked, len(asked))
        for one in changed_edits(inspector, asked, candidate.delta):
            self.changed_edits[one.id or "", one.prompt] = one.to_json()
        for one in changed_probes(inspector, candidate.delta, candidate.observed or Observed({}, None)):
            self.changed_probes[one.prompt] = one.to_json()

    def ask_unedited(self) -> None:
        """Ask the model without any edit, version 0, what it says to each edit."""
        if self.live_model.version == 0:
            texts = [self.shown[i].get("before") for i in range(len(self.edits))]
        else:
            found = self.live_model.unedited(self.edits)
            texts = [HeadSaid.of(edit, own).text for edit, own in zip(self.edits, found, strict=True)]
        for i, text in enumerate(texts):
            self.shown[i]["unedited"] = text

    def _refused(self, group: Group, refusal: EditRejected) -> None:
        if isinstance(refusal, VersionRefused):
            self.guard.append({"edits": list(group), "publish": False, "warnings": [], **_refusal(refusal)})
        for i, why in self.bisection.refused(group, refusal):
            self.shown[i] = {"state": "rejected", "code": why.code.value, "reason": why.reason, "field": why.field}
            before, after = self.answers.known(i), why.says
            self.shown[i] |= {name: text for name, text in (("before", before), ("after", after)) if text is not None}

    def to_json(self) -> dict[str, Any]:
        rows = [{"edit": edit.to_json(), **self.shown[i]} for i, edit in enumerate(self.edits)]
        held = self.live_model.inspector.earlier.held
        return {
            "dry_run": True,
            "head": self.live_model.version,
            "edits": [{name: value for name, value in row.items() if value is not None} for row in rows],
            "guard": self.guard,
            "neighbours": {
                "edits": list(self.changed_edits.values()),
                "probes": list(self.changed_probes.values()),
                "num_edits_asked": self.num_asked,
                "num_edits": len(held),
                "num_probes": _num_probes(self.live_model),
            },
        }


def _or_none(value: float) -> float | None:
    """Return a number that JSON has, or None."""
    return value if math.isfinite(value) else None
