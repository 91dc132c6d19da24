"""The whole loop on one page: edit -> score -> guard -> append -> swap, batch after batch, for as long as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from errata.delta import WeightDelta, applied
from errata.edit import EditBatch, EditRejected
from errata.editors.editor import Editor, EditorState
from errata.evaluate import Scorecard, teacher_forced
from errata.generate import Generator, HFGenerator
from errata.guard import Guard, matrix_norms
from errata.ledger import Ledger, Version
from errata.model import LanguageModel, ModelSpec


def stop(batch: EditBatch, why: EditRejected) -> None:
    """What `run` does with a rejected batch unless told otherwise."""
    raise why


def attempt(
    model: LanguageModel,
    editor: Editor,
    batch: EditBatch,
    state: EditorState,
    guard: Guard,
    base_norms: Mapping[str, float],
) -> tuple[WeightDelta, EditorState, Scorecard]:
    """An update that the guard lets through, the state after it, and its teacher-forced scores; nothing is changed.

    Raises `EditRejected`, from the editor or with the guard's reasons.
    """
    delta, state = editor.edit(model, batch, state)
    with applied(model.module, delta):
        scorecard = teacher_forced(model, batch.edits)
    verdict = guard.check(delta, base_norms, scorecard)
    if not verdict.publish:
        raise EditRejected(f"the guard refuses it: {'; '.join(verdict.reasons)}")
    return delta, state, scorecard


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
) -> Iterator[Version]:
    """Yields each version once `generator` serves it. Goes on from the ledger's head, with the editor's state there.

    `model` is the editor's copy: either the `HFGenerator`'s own, or one that holds the base weights; it is kept at the
    head. A batch that the editor or the guard refuses goes to `on_rejected` and leaves no trace. Raises `LedgerConflict`
    if somebody else appends, `SwapFailed` if a version is in the ledger but not served.
    """
    shared = isinstance(generator, HFGenerator) and generator.language_model is model
    if shared:
        generator.swap(0)  # the norms below are the base model's
    base_norms = matrix_norms(model, spec)
    copy = generator if shared else HFGenerator(model, spec, ledger)
    for batch in batches:
        head = ledger.head
        copy.swap(head)
        state = ledger.state(head) or editor.start(model, spec)
        try:
            delta, state, scorecard = attempt(model, editor, batch, state, guard, base_norms)
        except EditRejected as rejected:
            on_rejected(batch, rejected)
            continue
        version = ledger.append(head, delta, state, batch.edits, scorecard.to_json(), type(editor).__name__, plan)
        copy.swap(version.number)
        generator.swap(version.number)
        yield version
