"""The whole loop on one page: edit -> measure -> guard -> append -> swap, batch after batch, for as long as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from errata.candidate import make_candidate
from errata.edit import EditBatch, EditRejected
from errata.editors.editor import Editor
from errata.editors.state import EditorState
from errata.generate import Generator, HFGenerator
from errata.guard.bisection import BatchBisection
from errata.guard.inspector import Inspector
from errata.guard.limits import Guard
from errata.guard.probes import Probes
from errata.history.lineage import live_edits
from errata.ledger import Ledger, Version
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec


def stop(batch: EditBatch, why: EditRejected) -> None:
    """What `run` does with a refused edit unless told otherwise."""
    raise why


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
        docket = BatchBisection(fresh.edits)
        while (group := docket.next_group()) is not None:
            batch, head = docket.batch(group), ledger.head
            if head != at:
                copy.swap(head)
                inspector.at_version(live_edits(ledger, head))
                at, state = head, ledger.state(head) or editor.start(model, spec)
            try:
                made = make_candidate(editor, batch, state, inspector, head)
            except EditRejected as refusal:
                settled = docket.refused(group, refusal.with_traceback(None))
            else:
                version = ledger.append(head, made.delta, made.state, batch.edits, made.scorecard, (type(editor).__name__, plan))
                copy.swap(version.number)
                inspector.committed(batch, made.observed)
                at, state = version.number, made.state
                generator.swap(version.number)
                yield version
                settled = docket.made(group)
            for i, why in settled:
                ledger.refuse(at, fresh.edits[i], why)
                on_rejected(EditBatch((fresh.edits[i],)), why)
