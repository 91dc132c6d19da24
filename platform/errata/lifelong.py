"""The whole loop on one page: edit -> measure -> guard -> append -> swap, for each batch that comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from errata.candidate import CandidateVersion, make_candidate
from errata.edit import EditBatch, EditRejected
from errata.editors.editor import Editor
from errata.editors.state import EditorState
from errata.generate import Generator, HFGenerator
from errata.guard.bisection import BatchBisection
from errata.guard.inspector import Inspector
from errata.history.lineage import live_edits
from errata.ledger import Ledger, Version


def raise_refusal(batch: EditBatch, refusal: EditRejected) -> None:
    """Stop at the first refused edit."""
    raise refusal


def run(
    editor: Editor,
    inspector: Inspector,
    batches: Iterable[EditBatch],
    ledger: Ledger,
    generator: Generator,
    plan: str = "",
    on_rejected: Callable[[EditBatch, EditRejected], None] = raise_refusal,
) -> Iterator[Version]:
    """Edit the inspector's model batch by batch from the ledger's head on; yield each version once `generator` serves it.

    The model is that of `generator`, an `HFGenerator`, or another one with the base weights. A refused batch is bisected: the
    edits at fault go to the ledger's refusals and to `on_rejected`, the others into smaller versions. Raises `LedgerConflict`
    if another writer appends, and `SwapFailed` if a version is in the ledger and not served.
    """
    working_copy = _WorkingCopy(editor, inspector, ledger, generator)
    origin = type(editor).__name__, plan
    for batch in batches:
        bisection = BatchBisection(batch.edits)
        while (group := bisection.next_group()) is not None:
            head, state = working_copy.at_head()
            try:
                candidate = make_candidate(editor, bisection.batch(group), state, inspector, head)
            except EditRejected as refusal:
                settled = bisection.refused(group, refusal.with_traceback(None))
            else:
                version = ledger.append(head, candidate.delta, candidate.state, candidate.edits, candidate.scorecard, origin)
                working_copy.commit(candidate, version)
                generator.swap(version.number)
                yield version
                settled = bisection.made(group)
            for index, cause in settled:
                ledger.refuse(working_copy.version, batch.edits[index], cause)
                on_rejected(EditBatch((batch.edits[index],)), cause)


class _WorkingCopy:
    """The model to edit and the editor's state after `version`, which is the ledger's head."""

    def __init__(self, editor: Editor, inspector: Inspector, ledger: Ledger, generator: Generator) -> None:
        self.editor, self.inspector, self.ledger = editor, inspector, ledger
        generator.swap(ledger.head)
        is_served = isinstance(generator, HFGenerator) and generator.language_model is inspector.model
        self.model = generator if is_served else HFGenerator(inspector.model, inspector.spec, ledger)
        self.version, self.state = -1, EditorState()

    def at_head(self) -> tuple[int, EditorState]:
        """Move to the ledger's head if a rollback has moved it, and return its number and the editor's state there."""
        if (head := self.ledger.head) != self.version:
            self.model.swap(head)
            self.inspector.at_version(live_edits(self.ledger, head))
            state = self.ledger.state(head) or self.editor.start(self.inspector.model, self.inspector.spec)
            self.version, self.state = head, state
        return self.version, self.state

    def commit(self, candidate: CandidateVersion, version: Version) -> None:
        """Move to the version that was appended for the candidate."""
        self.model.swap(version.number)
        self.inspector.committed(EditBatch(candidate.edits), candidate.observed)
        self.version, self.state = version.number, candidate.state
