"""The whole loop on one page: edit -> measure -> guard -> append -> swap, batch after batch, for as long as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from errata.delta import WeightDelta
from errata.docket import Docket
from errata.edit import EditBatch, EditRejected, check_edits
from errata.editors.editor import Editor, EditorState
from errata.generate import Generator, HFGenerator
from errata.guard import Guard, VersionRefused
from errata.inspection import Inspector
from errata.ledger import Ledger, Version
from errata.lineage import live_edits
from errata.model import LanguageModel, ModelSpec
from errata.probes import Probes


def stop(batch: EditBatch, why: EditRejected) -> None:
    """What `run` does with a refused edit unless told otherwise."""
    raise why


@dataclass(frozen=True)
class Attempt:
    """An update that the guard lets through, the editor's state after it, and what was measured: a version's scorecard."""

    delta: WeightDelta
    state: EditorState
    scorecard: dict[str, Any]


def attempt(editor: Editor, batch: EditBatch, state: EditorState, inspector: Inspector) -> Attempt:
    """Nothing is changed, whatever happens. Raises `EditRejected`, from the editor or with the guard's reasons."""
    check_edits(batch.edits, inspector.model.tokenizer, inspector.model.max_tokens)
    began = time.perf_counter()
    try:
        delta, after = editor.edit(inspector.model, batch, state)
        edited = time.perf_counter()
        found = inspector.measure(batch, delta)
    except (ArithmeticError, torch.linalg.LinAlgError, torch.OutOfMemoryError) as fault:
        raise EditRejected(f"{type(fault).__name__.lstrip('_')} in the editor: {fault}") from fault
    verdict, measured = inspector.guard.check(found), {**found.to_json(), "limits": inspector.guard.limits}
    if not verdict.publish:
        raise VersionRefused(verdict.reasons, measured)
    seconds = {"edit_s": round(edited - began, 4), "guard_s": round(time.perf_counter() - edited, 4)}
    card = {**measured, "warnings": list(verdict.warnings), "num_edits": len(batch), "method": "free", **seconds}
    return Attempt(delta, after, card)


def run(
    model: LanguageModel,
    spec: ModelSpec,
    editor: Editor,
    batches: Iterable[EditBatch],
    ledger: Ledger,
    generator: Generator,
    guard: Guard,
    plan: str = "",
    on_rejected: Callable[[EditBatch, EditRejected], None] = stop,
    probes: Probes | None = None,
) -> Iterator[Version]:
    """Yields each version once `generator` serves it. Goes on from the ledger's head, with the editor's state there.

    `model` is the editor's copy: either the `HFGenerator`'s own, or one that holds the base weights; it is kept at the
    head. A batch that is refused without an edit being named is halved until it is known whom to blame: the others are
    published, in smaller batches, and what is refused goes to the ledger's list of refusals and to `on_rejected`. Raises
    `LedgerConflict` if somebody else appends, `SwapFailed` if a version is in the ledger but not served.
    """
    shared = isinstance(generator, HFGenerator) and generator.language_model is model
    if shared:
        generator.swap(0)  # the inspector looks at the base model first
    try:
        inspector = Inspector(model, spec, guard, probes or Probes((), ()))
    finally:
        generator.swap(ledger.head)
    copy = generator if shared else HFGenerator(model, spec, ledger)
    at, state = -1, EditorState()
    for fresh in batches:
        docket = Docket(fresh.edits)
        while (group := docket.next_group()) is not None:
            batch, head = docket.batch(group), ledger.head
            if head != at:
                copy.swap(head)
                inspector.stand_at(live_edits(ledger, head))
                at, state = head, ledger.state(head) or editor.start(model, spec)
            try:
                made = attempt(editor, batch, state, inspector)
            except EditRejected as refusal:
                settled = docket.refused(group, refusal.with_traceback(None))
            else:
                version = ledger.append(head, made.delta, made.state, batch.edits, made.scorecard, type(editor).__name__, plan)
                copy.swap(version.number)
                inspector.published(batch)
                at, state = version.number, made.state
                generator.swap(version.number)
                yield version
                settled = docket.made(group)
            for i, why in settled:
                ledger.refuse(at, fresh.edits[i], why)
                on_rejected(EditBatch((fresh.edits[i],)), why)
