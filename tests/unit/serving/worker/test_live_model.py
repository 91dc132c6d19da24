"""The live model: the editor from name, preset, artifact and settings, and the version that it is at."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from errata.delta.parts import LowRank
from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, Edit, EditRejected
from errata.editors import EDITORS, make_editor, name_of
from errata.editors.closed_form.alphaedit import AlphaEdit
from errata.editors.closed_form.locate_then_edit import LocateThenEdit
from errata.editors.hypernet.rledit import RLEdit
from errata.editors.trained_editor import TrainedEditor
from errata.editors.wrappers.rect import RECT
from errata.editors.wrappers.wrapper import EditorWrapper
from errata.guard.limits import Guard, Limit
from errata.guard.probes import Probes
from errata.ledger import LedgerDamaged, UnknownVersion, Version
from errata.local.preflight import guard_from
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.text.answers import same_answer
from serving.app import Arguments
from serving.worker.live_model import LiveModel, LiveModelOptions, load_editor
from tests.e2e.toy import WORLD, Toy
from tests.editors_under_test import editor_under_test, measured

MODULES = ("layers.0.mlp.down_proj",)


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Path:
    from errata.model.language_model import load

    folder = tmp_path_factory.mktemp("moments")
    measured(load(model_dir), MODULES).save(folder)
    return folder


@pytest.mark.parametrize("name", EDITORS)
def test_every_editor_can_be_served_by_its_name(name: str, moments: Path, tiny_model: LanguageModel, tmp_path: Path) -> None:
    """Each editor gets the artifact of its kind, and starts on the model."""
    kind, artifact, settings = EDITORS[name], None, {}
    if kind.is_trained:
        trained = editor_under_test(name, tiny_model)
        assert isinstance(trained, TrainedEditor)
        trained.save(tmp_path, {})
        artifact = str(tmp_path)
    elif issubclass(kind, LocateThenEdit | EditorWrapper):
        host, prefix = (kind.default_inner(), "host.") if issubclass(kind, EditorWrapper) else (kind, "")
        artifact, settings = str(moments), {f"{prefix}context_words": "('the',)"}
        if "floor" in host.__dataclass_fields__:
            settings |= {f"{prefix}floor": "1e-2"}
    else:
        settings = {"modules": "layers.0.mlp.down_proj"}
    editor = load_editor(LiveModelOptions("model", "ledger", name, artifact, settings=settings))
    assert type(editor) is kind and name_of(editor) == name
    state = editor.start(tiny_model, find_matrices(tiny_model.module, editor.modules))
    assert state.num_edits == 0


def test_an_editor_is_loaded_from_the_path_of_its_class() -> None:
    assert load_editor(LiveModelOptions("model", "ledger", "tests.e2e.toy:Toy")) == Toy()


def test_an_inner_editor_is_named_after_a_slash(moments: Path) -> None:
    editor = make_editor("RECT/AlphaEdit", moments, "testbed", {"kept": "0.3", "host.ridge": "7"})
    assert editor == RECT(AlphaEdit.preset("testbed", ridge=7.0), kept=0.3) and name_of(editor) == "RECT/AlphaEdit"
    assert name_of(make_editor("RECT")) == "RECT"


def test_settings_of_a_service_are_taken_as_text() -> None:
    arguments = Arguments(model="m", ledger="l", settings="search.learning_rate=0.5; ridge=5", guard="num_retained=3")  # type: ignore[arg-type]
    assert arguments.settings == {"search.learning_rate": "0.5", "ridge": "5"}
    assert arguments.guard == {"num_retained": "3"}
    with pytest.raises(ValueError, match="no sign = in: ridge"):
        Arguments(model="m", ledger="l", settings="ridge")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "more", "says"),
    [
        ("ROMEO", {}, "no editor is named 'ROMEO'"),
        ("LocFT/MEMIT", {}, "LocFT"),
        ("LocFT", {"artifact": "somewhere"}, "LocFT needs no artifact"),
        ("LocFT", {"preset": "gpt_j"}, "LocFT has no preset 'gpt_j'; it has none: set its fields"),
        ("MEMIT", {"preset": "gpt5"}, "MEMIT has no preset 'gpt5'; there are gpt2_xl, gpt_j, llama3_8b"),
        ("MEMIT", {"artifact": "nowhere"}, "holds no key moments"),
        ("RLEdit", {}, "RLEdit is trained"),
        ("MEMIT", {"settings": {"colour": "red"}}, "has no field 'colour'"),
        ("RECT", {"settings": {"kept": "2.0"}}, "kept is a share"),
    ],
)
def test_an_editor_that_cannot_be_made_is_named(name: str, more: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_editor(name, **more)  # type: ignore[arg-type]


def test_a_trained_editor_keeps_its_settings(tiny_model: LanguageModel, tmp_path: Path) -> None:
    trained = editor_under_test("RLEdit", tiny_model)
    assert isinstance(trained, RLEdit)
    trained.save(tmp_path, {})
    with pytest.raises(ValueError, match="trained with its settings"):
        make_editor("RLEdit", tmp_path, settings={"memory": "2"})


def test_a_live_model_has_the_guard_of_its_settings(model_dir: Path, tmp_path: Path) -> None:
    Probes(("question",), ("one two three",)).save(tmp_path / "probes.jsonl")
    options = LiveModelOptions(
        str(model_dir),
        str(tmp_path / "ledger"),
        "LocFT",
        settings={"modules": "layers.0.mlp.down_proj"},
        guard={"perplexity.refuse": "1.2", "num_sentences": "1"},
        probes=str(tmp_path / "probes.jsonl"),
    )
    inspector = LiveModel(options).inspector
    assert inspector.guard == Guard(perplexity=Limit(1.05, 1.2), num_sentences=1)
    assert inspector.probe_texts is not None and inspector.probe_texts.questions == ("question",)
    assert LiveModel(replace(options, probes=None)).inspector.probe_texts.questions == ()  # type: ignore[union-attr]


@pytest.fixture
def live_model(checkpoint: Path, tmp_path: Path) -> LiveModel:
    """Make a live model at version 3, with one edit a version."""
    options = LiveModelOptions(str(checkpoint), str(tmp_path / "ledger"), "tests.e2e.toy:Toy", guard={"strict": "false"})
    live_model = LiveModel(options)  # The toy's edits change the first token, and do not end the answer.
    for number in (1, 2, 3):
        post(live_model, number)
    return live_model


def edit(number: int) -> Edit:
    return replace(WORLD.edits("test", 30)[5 * number], id=f"id-{number}")


def post(live_model: LiveModel, number: int) -> Version:
    return live_model.append(live_model.make([edit(number)]))


def standing(live_model: LiveModel) -> tuple[int, bytes, int, list[str | None]]:
    """Return the version, the bits of the edited matrix, and the memories of the editor and the guard."""
    weight_OI = live_model.model.module.get_submodule(live_model.spec.names[0]).weight
    asked = [held.edit.id for held in live_model.inspector.earlier.held]
    return live_model.version, weight_OI.detach().numpy().tobytes(), live_model.state.num_edits, asked


def tear(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:40])


@pytest.mark.parametrize("name", ["delta.safetensors", "state.safetensors"])
def test_a_version_that_cannot_be_read_does_not_become_the_head(live_model: LiveModel, name: str) -> None:
    live_model.move_to(1)
    before = standing(live_model)
    number = 2 if name.startswith("delta") else 3
    tear(live_model.ledger.folders.path(number) / name)
    with pytest.raises(LedgerDamaged, match=f"version {number} is damaged: {name}"):
        live_model.move_to(3)
    with pytest.raises(UnknownVersion):
        live_model.move_to(9)
    assert live_model.ledger.head == 1 and standing(live_model) == before
    assert (post(live_model, 4).parent, live_model.ledger.head) == (1, 4)


def test_a_memory_is_calibrated_once(live_model: LiveModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A way back to version 0 waits for no probes; the first state of an editor of weights, which is large, is not kept."""
    asked = list[int]()
    start = type(live_model.editor).start

    def counted(*given: object) -> object:
        asked.append(1)
        return start(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(type(live_model.editor), "start", counted)
    for writes, count in (("weights", 2), ("memory", 3)):
        monkeypatch.setattr(type(live_model.editor), "writes", writes)
        for version in (0, 1, 0):
            live_model.move_to(version)
        assert len(asked) == count and live_model.state.num_edits == 0


def test_a_version_of_other_matrices_does_not_become_the_head(live_model: LiveModel) -> None:
    before = standing(live_model)
    live_model.ledger.append(
        3, WeightDelta({"nowhere": LowRank(torch.ones(2, 1), torch.ones(2, 1))}), live_model.state, (), {}, ("E", "p")
    )
    live_model.ledger.move_head(3)
    with pytest.raises(ValueError, match="nowhere is not an editable matrix"):
        live_model.move_to(4)
    assert live_model.ledger.head == 3 and standing(live_model) == before


def test_a_retracted_version_leaves_the_model_as_before(live_model: LiveModel) -> None:
    before = standing(live_model)
    made = live_model.append(live_model.make([edit(4)]))
    assert standing(live_model) != before
    live_model.retract(made.number, made.parent or 0)
    assert standing(live_model) == before and (live_model.ledger.head, live_model.ledger.find_edit("id-4")) == (3, None)
    assert (post(live_model, 4).number, live_model.ledger.find_edit("id-4")) == (5, 5)


@pytest.mark.parametrize("mode", ["", "subtract", "replay"])
def test_an_append_reads_nothing_from_disk(live_model: LiveModel, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = live_model.revert(["id-2"], [], mode) if mode else live_model.make([edit(4)])
    append = live_model.ledger.append

    def torn(*given: object, **named: object) -> Version:
        version = append(*given, **named)  # type: ignore[arg-type]
        for file in live_model.ledger.folders.root.glob("*/*"):
            if file.parent.name != "00000000":
                shutil.move(file, file.with_name(f"{file.name}.kept"))
        return version

    monkeypatch.setattr(live_model.ledger, "append", torn)
    version = live_model.append(made)
    assert (version.number, live_model.ledger.head) == (4, 4)
    for file in live_model.ledger.folders.root.glob("*/*.kept"):
        shutil.move(file, file.with_suffix(""))
    assert standing(LiveModel(live_model.options)) == standing(live_model)


def test_an_edit_that_is_not_answered_is_refused_unless_the_guard_is_not_strict(live_model: LiveModel) -> None:
    before = live_model.answers([edit(4)])
    made = live_model.make([edit(4)], [before[0][0]])
    ((was, says),) = made.scorecard["answers"]
    assert was == before[0][0] and says == made.scorecard["failed"][0]["answer"] and not same_answer(says, edit(4).target)
    strict = LiveModel(replace(live_model.options, guard={}))
    standing_before = standing(strict)
    with pytest.raises(EditRejected) as refusal:
        strict.make([edit(4)])
    assert (refusal.value.code, refusal.value.field) == (Code.INEFFECTIVE, "target")
    assert "instead of the target" in refusal.value.reason
    assert standing(strict) == standing_before and strict.answers([edit(4)]) == before


def test_both_sides_of_a_limit_can_be_set_in_any_order() -> None:
    up = {"perplexity.warn": "2", "perplexity.refuse": "3"}
    down = {"perplexity.warn": "1.0", "perplexity.refuse": "1.01"}
    for settings, limit in ((up, Limit(2.0, 3.0)), (down, Limit(1.0, 1.01))):
        assert guard_from(settings) == guard_from(dict(reversed(settings.items()))) == Guard(perplexity=limit)


@pytest.mark.parametrize(
    ("guard", "probes", "says"),
    [
        ({"perplexity": "2"}, None, "perplexity: '2' is not of type Limit"),
        ({"perplexity.refuse": "high"}, None, "'high' is not of type float"),
        ({"perplexity.refuse": "1"}, None, "must not exceed its refusal level"),
        ({"colour": "red"}, None, "Guard has no field 'colour'; it has perplexity, broken"),
        ({}, "nowhere.jsonl", "nowhere.jsonl cannot be read"),
    ],
)
def test_an_impossible_guard_is_named(
    model_dir: Path, tmp_path: Path, guard: dict[str, str], probes: str | None, says: str
) -> None:
    settings = {"modules": "layers.0.mlp.down_proj"}
    with pytest.raises(ValueError, match=says):
        LiveModel(LiveModelOptions(str(model_dir), str(tmp_path / "ledger"), "LocFT", None, None, settings, guard, probes))
