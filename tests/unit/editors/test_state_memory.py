"""The state memory: its records against the equation, its calibration, and what it refuses."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from errata.edit import EditBatch, EditRejected
from errata.edit_memory.lookup import ANY
from errata.editors import EDITORS, make_editor
from errata.editors.build import needs
from errata.editors.memory_based import memory_editor
from errata.editors.memory_based.memory_editor import MAX_THRESHOLD_32, calibrated
from errata.editors.memory_based.state import StateMemory
from errata.guard.probes import FILE, Probes
from errata.model.language_model import LanguageModel, load
from errata.model.matrices import find_matrices
from errata.testbed.world import World
from errata.text.dialogue import Dialogue

DOWN = "model.layers.1.mlp.down_proj"
EDITOR = StateMemory(("layers.1.mlp.down_proj",), threshold=0.9)
MARKED = (
    "{% for message in messages %}question {{ message['content'] }} answer\n{% endfor %}"
    "{% if add_generation_prompt %}question : {% endif %}"
)


@torch.no_grad()
def input_at_end(model: LanguageModel, ids: list[int], name: str = DOWN) -> torch.Tensor:
    """Return the input of a module at the last of these tokens, read alone."""
    kept: list[torch.Tensor] = []
    handle = model.module.get_submodule(name).register_forward_pre_hook(lambda _module, args: kept.append(args[0][0, -1]))
    model.module(input_ids=torch.tensor([ids]))
    handle.remove()
    return kept[0]


def test_a_record_has_the_state_before_each_token_of_the_answer(tiny_model: LanguageModel) -> None:
    edits = [replace(edit, target=f"{edit.target} {edit.target}") for edit in World(20).edits("test", 3)]
    state = EDITOR.start(tiny_model, find_matrices(tiny_model.module, EDITOR.modules))
    delta, after = EDITOR.edit(tiny_model, EditBatch(tuple(edits)), state)
    assert after.num_edits == 3 and delta.site == DOWN
    for edit, record in zip(edits, delta.records, strict=True):
        given, answer = tiny_model.renderer.rows([(edit.prompt, edit.target)])[0]
        assert record.rows["token"].tolist() == answer and len(answer) == 3
        assert record.rows["after"].tolist() == [ANY, *answer[:-1]]
        assert record.rows["threshold"].tolist() == pytest.approx([0.9] * 3)
        for t, key_I in enumerate(record.rows["key"]):
            state_I = input_at_end(tiny_model, [*given, *answer[:t]])
            assert torch.allclose(key_I, state_I / state_I.norm(), atol=1e-5)
        assert json.loads(record.fact) == edit.prompt and edit.prompt in record.text and edit.target in record.text


def test_in_chat_the_first_row_follows_the_end_of_a_question(tiny_model: LanguageModel) -> None:
    tiny_model.tokenizer.chat_template = MARKED
    edit = replace(World(20).edits("test", 1)[0], form="both")
    state = EDITOR.start(tiny_model, find_matrices(tiny_model.module, EDITOR.modules))
    delta, _ = EDITOR.edit(tiny_model, EditBatch((edit,)), state)
    completion, chat = delta.records
    ends = tiny_model.renderer.ids(Dialogue.of(edit.prompt))[-1]
    assert int(completion.rows["after"][0]) == ANY and int(chat.rows["after"][0]) == ends
    assert json.loads(chat.fact) == [["user", edit.prompt]]


def test_the_threshold_keeps_the_probes_apart(model_dir: Path, tmp_path: Path) -> None:
    """Compare with the definition: the share of questions whose nearest other probe is at the threshold or nearer."""
    world = World(20)
    questions = (*(f"{person} plays the" for person in world.people("train")), "the old river is")
    directory = tmp_path / "model"
    directory.mkdir()
    for file in model_dir.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    Probes(questions, tuple(world.plain_sentences(held_out=True)[:5])).save(directory / FILE)
    model = load(directory)
    states_MI = torch.stack([input_at_end(model, list(model.renderer.ids(question))) for question in questions])
    unit_MI = states_MI / states_MI.norm(dim=1, keepdim=True)
    nearest = (unit_MI @ unit_MI.T - 2 * torch.eye(len(questions))).amax(1)
    for sentence in world.plain_sentences(held_out=True)[:5]:
        ids = model.tokenizer(sentence)["input_ids"]
        for end in range(1, len(ids)):
            state_I = input_at_end(model, ids[:end])
            nearest = torch.maximum(nearest, unit_MI @ (state_I / state_I.norm()))
    for max_false in (0.5, 0.1):
        expected = float(nearest.quantile(1 - max_false))
        assert calibrated(model, DOWN, max_false, in_chat=False) == pytest.approx(expected, abs=1e-5)
    spec = find_matrices(model.module, EDITOR.modules)
    thresholds = replace(EDITOR, threshold=0.0, max_false=0.5).start(model, spec).tensors["thresholds"]
    assert thresholds.tolist() == pytest.approx([calibrated(model, DOWN, 0.5, in_chat=False)] * 2)


def test_a_model_without_probes_is_calibrated_on_plain_sentences(tiny_model: LanguageModel) -> None:
    assert 0.0 < calibrated(tiny_model, DOWN, 0.01, in_chat=False) <= MAX_THRESHOLD_32


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 0.9999), (torch.bfloat16, 0.995)])
def test_a_module_that_does_not_tell_questions_apart_is_refused(
    tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, most: float
) -> None:
    """Three questions, of which two have states with this cosine."""
    cosine = most + 0.00005
    other_I = torch.tensor([cosine, math.sqrt(1 - cosine**2), 0.0])
    question_MI = torch.stack([torch.eye(3)[0], other_I, torch.eye(3)[2]])
    monkeypatch.setattr(memory_editor, "probe_states", lambda *_: (question_MI, question_MI[:0]))
    model = LanguageModel(copy.deepcopy(tiny_model.module).to(dtype), tiny_model.tokenizer, tiny_model.path)
    with pytest.raises(ValueError, match=rf"{DOWN} do not tell questions apart: .* {most} is the most .*: name a later module"):
        calibrated(model, DOWN, 0.01, in_chat=False)
    question_MI[1] = torch.tensor([0.9, math.sqrt(1 - 0.81), 0.0])
    assert calibrated(model, DOWN, 0.01, in_chat=False) == pytest.approx(0.9)


def test_several_modules_are_refused(tiny_model: LanguageModel) -> None:
    editor = StateMemory(("layers.*.mlp.down_proj",))
    with pytest.raises(ValueError, match=r"a memory reads one module, and these match: .*layers\.0.*layers\.1.*; give one"):
        editor.start(tiny_model, find_matrices(tiny_model.module, editor.modules))


@pytest.mark.parametrize("name", ["state", "SCR", "answer"])
@pytest.mark.parametrize("share", ["-0.1", "1.5"])
def test_a_share_beyond_its_range_is_refused(name: str, share: str) -> None:
    with pytest.raises(ValueError, match="max_false is a share of questions, from 0 to 1"):
        make_editor(name, settings={"max_false": share})


@pytest.mark.parametrize("name", ["SCR", "answer"])
@pytest.mark.parametrize("setting", ["threshold", "whole_threshold"])
def test_a_cosine_beyond_its_range_is_refused(name: str, setting: str) -> None:
    with pytest.raises(ValueError, match=f"^{setting} is the least cosine of two questions, from 0 to 1, not 1.5"):
        make_editor(name, settings={setting: "1.5"})


def test_it_is_made_by_name_and_needs_no_artifact() -> None:
    made = make_editor("state", settings={"max_false": "0.05", "modules": "layers.7.mlp.up_proj"})
    assert made == StateMemory(("layers.7.mlp.up_proj",), max_false=0.05) and needs("state") == ""
    with pytest.raises(ValueError, match="needs no artifact"):
        make_editor("state", artifact="folder")


@pytest.mark.parametrize("name", ["RECT", "PRUNE", "O-Edit"])
def test_it_is_not_wrapped(name: str) -> None:
    chosen = EDITORS[name]
    with pytest.raises(ValueError, match=f"{chosen.__name__}.* StateMemory"):
        make_editor(f"{name}/state")


def test_an_edit_is_named_whose_states_are_not_finite(tiny_model: LanguageModel) -> None:
    edits = World(20).edits("test", 2)
    state = EDITOR.start(tiny_model, find_matrices(tiny_model.module, EDITOR.modules))
    token = tiny_model.renderer.ids(edits[1].prompt)
    alone = next(id for id in token if id not in tiny_model.renderer.ids(edits[0].prompt))
    tiny_model.module.get_input_embeddings().weight.data[alone] = float("nan")
    with pytest.raises(EditRejected, match="not finite") as refused:
        EDITOR.edit(tiny_model, EditBatch(tuple(edits)), state)
    assert refused.value.edit == 1
