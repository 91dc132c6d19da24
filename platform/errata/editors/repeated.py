"""An edit made again on the model that it has changed, which makes it stronger: each pass removes a part of what is missing."""

from __future__ import annotations

from collections.abc import Sequence

from errata.delta.kinds import Delta, added_up
from errata.delta.side_branch import applied
from errata.edit import EditBatch
from errata.editors.editor import Editor
from errata.editors.state import EditorState
from errata.model.language_model import LanguageModel
from errata.model.prefix_cache import BatchCache


def edit_again(
    editor: Editor,
    model: LanguageModel,
    batch: EditBatch,
    made: tuple[Delta, EditorState],
    cache: BatchCache | None = None,
) -> tuple[Delta, EditorState]:
    """Make a batch once more on top of what `made` has changed; return the whole change and the state after it.

    The model's weights stay as they are: the change so far is a side branch. Raises `EditRejected`.
    """
    delta, state = made
    with applied(model.module, delta):
        more, after = editor.edit(model, batch, state, cache)
    return added_up([delta, more]), after


def edit_repeatedly(
    editor: Editor, model: LanguageModel, batch: EditBatch, state: EditorState, again: Sequence[EditBatch]
) -> tuple[Delta, EditorState]:
    """Make a batch, and then the batches `again` on top of it; a batch without edits, of a repair, adds nothing itself.

    Raises `EditRejected`.
    """
    first, *others = [one for one in (batch, *again) if len(one)]
    made = editor.edit(model, first, state)
    for more in others:
        made = edit_again(editor, model, more, made)
    return made
