"""The contract of every editor (editor.py), for those of tests/editors_under_test.py."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from errata.delta.accumulator import EditedModel
from errata.delta.kinds import Delta
from errata.delta.memory_delta import MemoryDelta
from errata.delta.side_branch import applied
from errata.edit import Code, Edit, EditBatch, EditRejected, batches_of
from errata.edit_memory.bank import READ_BEFORE
from errata.edit_memory.encoder import NAME
from errata.edit_memory.hooks import bank_of
from errata.editors import EDITORS, Editor, EditorState
from errata.editors.closed_form.nse import NSE
from errata.editors.hypernet.hypernet_editor import HypernetworkEditor
from errata.editors.hypernet.rledit import RLEdit
from errata.editors.memory_based.memory_editor import input_layer, output_layer
from errata.editors.memory_based.questions import QuestionMemory
from errata.editors.memory_based.trained import TrainedMemory
from errata.editors.wrappers.wrapper import EditorWrapper
from errata.model.capture import capture
from errata.model.encoding import encode
from errata.model.language_model import LanguageModel, load
from errata.model.matrices import find_matrices
from errata.testbed.world import World
from errata.text.dialogue import Dialogue, Form, Message
from tests.editors_under_test import UNDER_TEST, editor_under_test

FIRST_DELTAS: dict[str, Delta] = {}  # The edit of the first batch by each editor, for the tests that only read it.


@pytest.fixture(params=UNDER_TEST)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def editor(name: str, tiny_model: LanguageModel) -> Editor:
    return editor_under_test(name, tiny_model)


@pytest.fixture
def batches() -> list[EditBatch]:
    return list(batches_of(World(20).edits("test", 9), 3))


@pytest.fixture
def delta(name: str, editor: Editor, tiny_model: LanguageModel, batches: list[EditBatch]) -> Delta:
    if name not in FIRST_DELTAS:
        FIRST_DELTAS[name], _ = editor.edit(tiny_model, batches[0], started(editor, tiny_model))
    return FIRST_DELTAS[name]


def started(editor: Editor, model: LanguageModel) -> EditorState:
    return editor.start(model, find_matrices(model.module, editor.modules))


def edit_in_turn(
    editor: Editor, model: LanguageModel, batches: list[EditBatch]
) -> tuple[EditedModel, list[Delta], list[EditorState]]:
    """Edit the batches into the model in order; returns their deltas, and the states before, between and after them."""
    edited = EditedModel(model.module, find_matrices(model.module, editor.modules))
    deltas, states = [], [started(editor, model)]
    for batch in batches:
        delta, state = editor.edit(model, batch, states[-1])
        edited.add(delta)
        deltas.append(delta)
        states.append(state)
    return edited, deltas, states


def test_every_editor_is_under_test(tiny_model: LanguageModel) -> None:
    assert {type(editor_under_test(name, tiny_model)) for name in UNDER_TEST} == set(EDITORS.values())


def test_an_edit_does_not_change_the_model(editor: Editor, tiny_model: LanguageModel, batches: list[EditBatch]) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_model.module.state_dict().items()}
    editor.edit(tiny_model, batches[0], started(editor, tiny_model))
    for name, tensor in tiny_model.module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny_model.module.modules())


def test_the_same_inputs_give_the_same_delta_also_from_a_saved_state(
    editor: Editor, tiny_model: LanguageModel, batches: list[EditBatch], tmp_path: Path
) -> None:
    state = started(editor, tiny_model)
    for batch in batches[:2]:
        _, state = editor.edit(tiny_model, batch, state)
    state.save(tmp_path / "state.safetensors")
    again = EditorState.load(tmp_path / "state.safetensors")
    assert again.num_edits == state.num_edits == 6
    (first, after), (second, _) = editor.edit(tiny_model, batches[2], state), editor.edit(tiny_model, batches[2], again)
    assert first.digest() == second.digest()
    assert after.num_edits == 9


@pytest.mark.parametrize("num_kept", [0, 1])
def test_a_rolled_back_edit_leaves_no_trace(
    editor: Editor, tiny_model: LanguageModel, model_dir: Path, batches: list[EditBatch], num_kept: int
) -> None:
    other = load(model_dir)
    _, _, never = edit_in_turn(editor, other, batches[:num_kept])
    edited, deltas, states = edit_in_turn(editor, tiny_model, batches[:2])
    edited.set(deltas[:num_kept])
    assert (bank_of(tiny_model.module) is None) == (bank_of(other.module) is None)
    for name, tensor in tiny_model.module.state_dict().items():
        assert torch.equal(tensor, other.module.state_dict()[name]), name
    again, _ = editor.edit(tiny_model, batches[2], states[num_kept])
    expected, _ = editor.edit(other, batches[2], never[num_kept])
    assert again.digest() == expected.digest()


def test_a_delta_makes_the_answers_of_its_edits_likelier(
    editor: Editor, delta: Delta, tiny_model: LanguageModel, batches: list[EditBatch]
) -> None:
    encoded = encode(tiny_model.renderer, batches[0].prompts, batches[0].targets)
    if isinstance(delta, MemoryDelta) and delta.kind in ("text", "prefix"):
        pytest.skip("the prompt is longer with the memory; the tests of such memories have the contract")
    changed = find_matrices(tiny_model.module, editor.modules).names
    _, before_T = capture(tiny_model.module, encoded, changed)
    with applied(tiny_model.module, delta):
        _, after_T = capture(tiny_model.module, encoded, changed)
    assert after_T.mean() < before_T.mean()


def test_a_delta_names_only_the_editors_matrices(editor: Editor, delta: Delta, tiny_model: LanguageModel) -> None:
    spec = find_matrices(tiny_model.module, editor.modules)
    assert isinstance(delta, MemoryDelta) == (editor.writes == "memory")
    if isinstance(delta, MemoryDelta):
        sites = dict.fromkeys(READ_BEFORE, NAME) | {"datastore": output_layer(tiny_model)}
        sites |= dict.fromkeys(("rows", "prefix"), input_layer(tiny_model))
        assert delta.site == sites.get(delta.kind, spec.names[0])
        return
    assert set(delta.parts) == set(spec.names)
    assert {name: tuple(part.dense().shape) for name, part in delta} == {m.name: m.shape for m in spec.matrices}


def test_a_deltas_kind_and_rank_are_those_of_its_method(
    name: str, editor: Editor, delta: Delta, tiny_model: LanguageModel, batches: list[EditBatch]
) -> None:
    kinds, rows_of = UNDER_TEST[name].made_of
    num_rows = rows_of(encode(tiny_model.renderer, batches[0].prompts, batches[0].targets)) if rows_of else 0
    if isinstance(delta, MemoryDelta):
        counts = [record.num_rows - len(record.rephrasings) for record in delta.records]  # Each rephrasing has a row.
        assert kinds == () and (rows_of is None or sum(counts) == num_rows)
        return
    assert {type(part) for _, part in delta} <= set(kinds)
    if rows_of:
        num_passes = editor.num_passes if isinstance(editor, HypernetworkEditor) else 2 if isinstance(editor, NSE) else 1
        assert max(delta.ranks().values()) <= num_passes * num_rows


def test_an_empty_batch_is_refused(editor: Editor, tiny_model: LanguageModel) -> None:
    with pytest.raises(EditRejected) as refused:
        editor.edit(tiny_model, EditBatch(()), started(editor, tiny_model))
    assert refused.value.code == Code.BATCH_SIZE


def with_max_batch(editor: Editor, max_batch: int) -> Editor:
    if isinstance(editor, EditorWrapper):
        return replace(editor, host=with_max_batch(editor.host, max_batch))
    return replace(editor, max_batch=max_batch)


def test_a_batch_above_the_limit_is_refused(editor: Editor, tiny_model: LanguageModel, batches: list[EditBatch]) -> None:
    limited = with_max_batch(editor, 2)
    with pytest.raises(EditRejected) as refused:
        limited.edit(tiny_model, batches[0], started(limited, tiny_model))
    assert refused.value.code == Code.BATCH_SIZE
    limited.edit(tiny_model, EditBatch(batches[0].edits[:2]), started(limited, tiny_model))


def test_a_result_that_is_not_finite_is_refused(editor: Editor, tiny_model: LanguageModel, batches: list[EditBatch]) -> None:
    if isinstance(editor, QuestionMemory | TrainedMemory):
        pytest.skip("the editor does not run the model")
    name = find_matrices(tiny_model.module, editor.modules).names[0]
    weight = tiny_model.module.get_submodule(name).weight
    kept = weight.data.clone()
    try:
        weight.data.fill_(float("nan"))
        with pytest.raises(EditRejected) as refused:
            editor.edit(tiny_model, batches[0], started(editor, tiny_model))
        assert refused.value.code in (Code.NOT_FINITE, Code.UNSOLVABLE)
    finally:
        weight.data.copy_(kept)


def test_an_editor_made_for_other_matrices_refuses_to_start(editor: Editor, tiny_model: LanguageModel) -> None:
    with pytest.raises(ValueError, match=r"(trained|made) for"):
        editor.start(tiny_model, find_matrices(tiny_model.module, ("layers.0.self_attn.o_proj",)))


def test_an_artifact_gives_the_same_editor(
    editor: Editor, tiny_model: LanguageModel, batches: list[EditBatch], tmp_path: Path
) -> None:
    if not isinstance(editor, HypernetworkEditor):
        pytest.skip("the editor has no artifact")
    editor.save(tmp_path / "artifact", {"seed": 0})
    loaded = type(editor).load(tmp_path / "artifact")
    assert loaded == editor
    (a, _), (b, _) = (e.edit(tiny_model, batches[0], started(e, tiny_model)) for e in (editor, loaded))
    assert a.digest() == b.digest()


def test_a_folder_without_an_artifact_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no RLEdit artifact"):
        RLEdit.load(tmp_path)


def test_an_untrained_editor_says_what_to_do(tiny_model: LanguageModel) -> None:
    with pytest.raises(ValueError, match=r"jobs/train\.py"):
        RLEdit().edit(tiny_model, EditBatch((Edit("a", "b"),)), EditorState())


CHEAP = [name for name in UNDER_TEST if name not in ("NSE", "NSE-some-neurons", "RLEdit-three-passes", "MALMEN-published")]
MARKED = (  # Each message between words that the tokenizer knows as words.
    "{% for message in messages %}question {{ message['role'] }} : {{ message['content'] }} answer\n{% endfor %}"
    "{% if add_generation_prompt %}question assistant : {% endif %}"
)


@pytest.mark.parametrize("form", ["chat", "both"])
@pytest.mark.parametrize("name", CHEAP)
def test_a_batch_in_chat_and_in_both_forms_is_edited(name: str, form: Form, tiny_model: LanguageModel) -> None:
    editor = editor_under_test(name, tiny_model)  # Made before the model can chat, as for any model.
    tiny_model.tokenizer.chat_template = MARKED
    before = {key: tensor.clone() for key, tensor in tiny_model.module.state_dict().items()}
    system = Message("system", "yes")
    first, *others = (replace(edit, form=form) for edit in World(20).edits("test", 3))
    batch = EditBatch((replace(first, form="chat", before=(system,)), *others))
    rows = batch.rows
    dialogue = Dialogue.of(first.prompt, (system,))
    forms = {"chat": (Dialogue,), "both": (str, Dialogue)}[form]
    assert rows[0] == (0, dialogue, first.target)
    assert [(row.edit, type(row.prompt)) for row in rows[1:]] == [(i, kind) for i in (1, 2) for kind in forms]
    delta, state = editor.edit(tiny_model, batch, started(editor, tiny_model))
    assert state.num_edits == 3 and delta.is_finite
    assert len(delta.records) == len(rows) if isinstance(delta, MemoryDelta) else max(delta.norms().values()) > 0
    for key, tensor in tiny_model.module.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny_model.module.modules())
    assert len(encode(tiny_model.renderer, batch.prompts, batch.targets).input_ids_BS) == len(rows)
