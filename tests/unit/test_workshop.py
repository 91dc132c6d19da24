"""Which editor a service is given: by name, preset, artifact and settings, or by the path of a class."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from errata.editors import EDITORS, make_editor, name_of
from errata.editors.closed_form.alphaedit import AlphaEdit
from errata.editors.closed_form.composed import Composed
from errata.editors.closed_form.located import Located
from errata.editors.closed_form.rect import RECT
from errata.editors.hypernet.learned import Learned
from errata.editors.hypernet.rledit import RLEdit
from errata.guard import Guard, Limit
from errata.model import LanguageModel, find_matrices
from errata.probes import Probes
from serving.app import Arguments
from serving.workshop import Workshop, WorkshopOptions, load_editor, made_guard
from tests.e2e.toy import Toy
from tests.editors_under_test import UNDER_TEST, measured

MODULES = ("layers.0.mlp.down_proj",)


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Path:
    from errata.model import load

    folder = tmp_path_factory.mktemp("moments")
    measured(load(model_dir), MODULES).save(folder)
    return folder


@pytest.mark.parametrize("name", EDITORS)
def test_every_editor_can_be_served_by_its_name(name: str, moments: Path, tiny_model: LanguageModel, tmp_path: Path) -> None:
    """With the artifact that its kind needs, and it starts on the model."""
    kind, artifact, settings = EDITORS[name], None, {}
    if issubclass(kind, Learned):
        trained = UNDER_TEST[name](tiny_model)
        assert isinstance(trained, Learned)
        trained.save(tmp_path, {})
        artifact = str(tmp_path)
    elif issubclass(kind, Located | Composed):
        host = "host." if issubclass(kind, Composed) else ""
        artifact, settings = str(moments), {f"{host}context_words": "('the',)"}
        if "floor" in kind.__dataclass_fields__ or host:
            settings |= {f"{host}floor": "1e-2"}
    else:
        settings = {"modules": "layers.0.mlp.down_proj"}
    editor = load_editor(WorkshopOptions("model", "ledger", name, artifact, settings=settings))
    assert type(editor) is kind and name_of(editor) == name
    state = editor.start(tiny_model, find_matrices(tiny_model.module, editor.modules))
    assert state.num_edits == 0


def test_a_class_by_its_path() -> None:
    assert load_editor(WorkshopOptions("model", "ledger", "tests.e2e.toy:Toy")) == Toy()


def test_a_host_is_named_after_a_stroke(moments: Path) -> None:
    editor = make_editor("RECT/AlphaEdit", moments, "testbed", {"kept": "0.3", "host.ridge": "7"})
    assert editor == RECT(AlphaEdit.testbed(ridge=7.0), kept=0.3) and name_of(editor) == "RECT/AlphaEdit"
    assert name_of(make_editor("RECT")) == "RECT"


def test_settings_of_a_service_as_text() -> None:
    arguments = Arguments(model="m", ledger="l", settings="search.learning_rate=0.5; ridge=5", guard="num_retained=3")  # type: ignore[arg-type]
    assert arguments.settings == {"search.learning_rate": "0.5", "ridge": "5"}
    assert arguments.guard == {"num_retained": "3"}
    with pytest.raises(ValueError, match="not so: ridge"):
        Arguments(model="m", ledger="l", settings="ridge")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "more", "says"),
    [
        ("ROMEO", {}, "no editor is named 'ROMEO'; there are RLEdit"),
        ("LocFT/MEMIT", {}, "LocFT is not made of another editor"),
        ("LocFT", {"artifact": "somewhere"}, "needs no artifact and has no presets; it is given the artifact somewhere"),
        ("LocFT", {"preset": "gpt_j"}, "it is given the preset 'gpt_j'"),
        ("MEMIT", {"preset": "gpt5"}, "MEMIT has no preset 'gpt5'; there are llama3_8b"),
        ("MEMIT", {"artifact": "nowhere"}, "holds no key moments"),
        ("RLEdit", {}, "RLEdit is trained: give it the folder"),
        ("MEMIT", {"settings": {"colour": "red"}}, "has no field 'colour'"),
        ("RECT", {"settings": {"kept": "2.0"}}, "kept is a share"),
    ],
)
def test_what_cannot_be_made_is_named(name: str, more: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_editor(name, **more)  # type: ignore[arg-type]


def test_a_trained_editor_keeps_its_settings(tiny_model: LanguageModel, tmp_path: Path) -> None:
    trained = UNDER_TEST["RLEdit"](tiny_model)
    assert isinstance(trained, RLEdit)
    trained.save(tmp_path, {})
    with pytest.raises(ValueError, match="trained with its settings"):
        make_editor("RLEdit", tmp_path, settings={"memory": "2"})


def test_a_workshop_has_the_guard_that_it_is_told(model_dir: Path, tmp_path: Path) -> None:
    Probes(("question",), ("one two three",)).save(tmp_path / "probes.jsonl")
    options = WorkshopOptions(
        str(model_dir),
        str(tmp_path / "ledger"),
        "LocFT",
        settings={"modules": "layers.0.mlp.down_proj"},
        guard={"perplexity.refuse": "1.2", "num_sentences": "1"},
        probes=str(tmp_path / "probes.jsonl"),
    )
    inspector = Workshop(options).inspector
    assert inspector.guard == Guard(perplexity=Limit(1.05, 1.2), num_sentences=1)
    assert inspector.texts is not None and inspector.texts.questions == ("question",)
    assert Workshop(replace(options, probes=None)).inspector.texts.questions == ()  # type: ignore[union-attr]


def test_both_sides_of_a_limit_can_be_moved_in_any_order() -> None:
    up = {"perplexity.warn": "2", "perplexity.refuse": "3"}
    down = {"perplexity.warn": "1.0", "perplexity.refuse": "1.01"}
    for settings, limit in ((up, Limit(2.0, 3.0)), (down, Limit(1.0, 1.01))):
        assert made_guard(settings) == made_guard(dict(reversed(settings.items()))) == Guard(perplexity=limit)


@pytest.mark.parametrize(
    ("guard", "probes", "says"),
    [
        ({"perplexity": "2"}, None, "perplexity: '2' is no Limit"),
        ({"perplexity.refuse": "high"}, None, "'high' is no float"),
        ({"perplexity.refuse": "1"}, None, "warns no later than it refuses"),
        ({"colour": "red"}, None, "Guard has no field 'colour'; it has perplexity, broken"),
        ({}, "nowhere.jsonl", "nowhere.jsonl cannot be read"),
    ],
)
def test_a_guard_that_cannot_be_is_named(
    model_dir: Path, tmp_path: Path, guard: dict[str, str], probes: str | None, says: str
) -> None:
    settings = {"modules": "layers.0.mlp.down_proj"}
    with pytest.raises(ValueError, match=says):
        Workshop(WorkshopOptions(str(model_dir), str(tmp_path / "ledger"), "LocFT", None, None, settings, guard, probes))
