"""The whole loop on one page: edit -> measure -> guard -> append -> swap, batch after batch, for as long as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from errata.delta import WeightDelta
from errata.edit import EditBatch, EditRejected
from errata.editors.editor import Editor, EditorState
from errata.generate import Generator, HFGenerator
from errata.guard import Guard, VersionRefused, after_refusal, superseded
from errata.inspection import Inspector
from errata.ledger import Ledger, Version
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
    for position, other in superseded(batch.edits).items():
        raise EditRejected(
            f"another edit of the same batch answers this prompt by {batch.edits[other].target!r}; the later one counts",
            edit=position,
            field="target",
        )
    began = time.perf_counter()
    delta, after = editor.edit(inspector.model, batch, state)
    edited = time.perf_counter()
    found = inspector.measure(batch, delta)
    verdict = inspector.guard.check(found)
    if not verdict.publish:
        raise VersionRefused(verdict.reasons, found.to_json())
    seconds = {"edit_s": round(edited - began, 4), "guard_s": round(time.perf_counter() - edited, 4)}
    card = {**found.to_json(), "warnings": list(verdict.warnings), "num_edits": len(batch), "method": "free", **seconds}
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
    inspector = Inspector(model, spec, guard, probes or Probes((), ()))
    copy = generator if shared else HFGenerator(model, spec, ledger)
    stands_at = 0
    waiting = list[EditBatch]()
    for fresh in batches:
        waiting.append(fresh)
        while waiting:
            batch = waiting.pop()
            head = ledger.head
            copy.swap(head)
            if head != stands_at:
                inspector.stand_at(ledger.edits(head))
            state = ledger.state(head) or editor.start(model, spec)
            try:
                made = attempt(editor, batch, state, inspector)
            except EditRejected as refusal:
                stands_at = head
                split = after_refusal(batch.edits, refusal)
                waiting += [EditBatch(tuple(batch.edits[i] for i in group)) for group in reversed(split.again)]
                for i in split.refused:
                    ledger.refuse(head, batch.edits[i], refusal)
                    on_rejected(EditBatch((batch.edits[i],)), refusal)
                continue
            version = ledger.append(head, made.delta, made.state, batch.edits, made.scorecard, type(editor).__name__, plan)
            copy.swap(version.number)
            inspector.published(batch)
            stands_at = version.number
            generator.swap(version.number)
            yield version
