"""Editors by name, with their artifacts and presets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from errata.editors import EDITORS, Editor, make_editor, name_of
from errata.editors.build import DEFAULT_EDITOR, editor_for
from errata.editors.closed_form.alphaedit import AlphaEdit
from errata.editors.closed_form.locate_then_edit import LocateThenEdit
from errata.editors.wrappers.prune import PRUNE
from errata.editors.wrappers.rect import RECT
from errata.editors.wrappers.wrapper import EditorWrapper
from errata.model.matrices import find_matrices
from tests.unit.editors.wrapped import text_directions
from tests.unit.small_models import (
    BATCHES,
    MODULES,
    a_model,
    moments_of,
    with_moments,
)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with the moments and directions of two matrices."""
    folder = tmp_path_factory.mktemp("moments")
    replace(moments_of("llama", MODULES["llama"]), directions=text_directions("llama", MODULES["llama"])).save(folder)
    return folder


def same(one: Editor, other: Editor) -> bool:
    """Compare editors with their moments, which `==` ignores."""
    while isinstance(one, EditorWrapper) and isinstance(other, EditorWrapper):
        if replace(one, host=other.host) != other:
            return False
        one, other = one.host, other.host
    assert isinstance(one, LocateThenEdit) and isinstance(other, LocateThenEdit) and one.moments and other.moments
    tensors = [{**{f"{n}|C": t for n, t in m.by_input.items()}, **m.directions} for m in (one.moments, other.moments)]
    return (
        one == other
        and tensors[0].keys() == tensors[1].keys()
        and all(torch.equal(t, tensors[1][n]) for n, t in tensors[0].items())
    )


WRAPPERS = [
    *("RECT", "PRUNE", "O-Edit", "O-Edit+", "RECT/AlphaEdit", "RECT/ROME", "RECT/NSE", "PRUNE/AlphaEdit", "PRUNE/R-ROME"),
    *("O-Edit/MEMIT", "O-Edit+/AlphaEdit", "PRUNE/RECT", "PRUNE/RECT/AlphaEdit", "RECT/O-Edit+", "RECT/O-Edit+/MEMIT"),
]


@pytest.mark.parametrize("name", ["ROME", "R-ROME", "MEMIT", "AlphaEdit", "NSE", *WRAPPERS])
def test_a_name_makes_an_editor_of_that_name(artifact: Path, name: str) -> None:
    """The innermost editor has the moments of the folder, and edits the matrices that they are of."""
    editor = make_editor(name, artifact)
    assert name_of(editor) == name
    assert same(make_editor(name_of(editor), artifact), editor)
    for expected in name.split("/"):
        assert type(editor) is EDITORS[expected]
        editor = editor.host if isinstance(editor, EditorWrapper) else editor
    while isinstance(editor, EditorWrapper):
        assert type(editor.host) is editor.default_inner()
        editor = editor.host
    assert isinstance(editor, LocateThenEdit) and editor.moments is not None
    assert set(editor.modules) == set(editor.moments.by_input) and len(editor.modules) == 2
    assert set(editor.moments.directions) == set(editor.modules)


@pytest.mark.parametrize(("name", "short"), [("RECT/MEMIT", "RECT"), ("PRUNE/MEMIT", "PRUNE"), ("O-Edit/ROME", "O-Edit")])
def test_the_default_inner_editor_need_not_be_named(artifact: Path, name: str, short: str) -> None:
    assert same(make_editor(name, artifact), make_editor(short, artifact))
    assert name_of(make_editor(name, artifact)) == short


def test_a_preset_is_for_the_innermost_editor(artifact: Path) -> None:
    editor = make_editor("PRUNE/RECT/AlphaEdit", artifact, "gpt_j", {"base": "1.2", "host.kept": "0.2"})
    assert isinstance(editor, PRUNE) and editor.base == 1.2
    assert isinstance(editor.host, RECT) and editor.host.kept == 0.2
    inner = editor.host.host
    assert isinstance(inner, AlphaEdit) and inner.moments is not None
    assert inner == AlphaEdit.preset("gpt_j")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ROMER", "no editor is named 'ROMER'"),
        ("rome", "no editor is named 'rome'"),
        ("", "no editor is named ''"),
        ("RECT/ROMER", "no editor is named 'ROMER'"),
        ("/ROME", "no editor is named ''"),
        ("MEMIT/ROME", "MEMIT does not wrap another editor"),
        ("UltraEdit/ROME", "UltraEdit does not wrap another editor"),
        ("RECT/MEMIT/ROME", "MEMIT does not wrap another editor"),
    ],
)
def test_a_wrong_name_is_refused(artifact: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_editor(name, artifact)


@pytest.mark.parametrize("name", ["UltraEdit", "FT-L", "LocFT", "RECT/UltraEdit"])
def test_an_artifact_for_an_editor_without_artifacts_is_refused(artifact: Path, name: str) -> None:
    with pytest.raises(ValueError, match="needs no artifact"):
        make_editor(name, artifact)
    assert name_of(make_editor(name)) == name


@pytest.mark.parametrize("name", ["LocFT", "RECT/LocFT"])
def test_an_editor_without_presets_says_so(name: str) -> None:
    with pytest.raises(ValueError, match="LocFT has no preset 'llama3_8b'; it has none"):
        make_editor(name, preset="llama3_8b")


@pytest.mark.parametrize("name", ["MEMIT", "ROME", "RECT", "PRUNE/AlphaEdit", "O-Edit+"])
@pytest.mark.parametrize("preset", ["llama4", "start", "", "with_moments"])
def test_an_unknown_preset_is_refused(name: str, preset: str) -> None:
    """Names of the class's attributes are no presets."""
    with pytest.raises(ValueError, match=r"has no preset .*gpt2_xl, gpt_j, llama3_8b, .*testbed"):
        make_editor(name, preset=preset)


def test_a_folder_without_moments_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no key moments"):
        make_editor("RECT/AlphaEdit", tmp_path)


@pytest.mark.parametrize("kind", ["O-Edit", "O-Edit+"])
@pytest.mark.parametrize("inner", ["UltraEdit", "FT-L"])
def test_oedit_refuses_an_editor_without_a_search_for_targets(kind: str, inner: str) -> None:
    """O-Edit adds to that search, and O-Edit+ projects factors; the refusal comes at building or at the start."""
    model = a_model("llama")
    with pytest.raises(ValueError, match=inner.replace("-", "-?")):
        editor = make_editor(f"{kind}/{inner}", settings={"host.modules": MODULES["llama"][0]})
        editor.start(model, find_matrices(model.module, editor.modules))


LOCATE_THEN_EDIT = [name for name, kind in EDITORS.items() if issubclass(kind, LocateThenEdit)]
BLOCKS = {"llama3_8b": "layers.{}.mlp.down_proj", "gpt_j": "h.{}.mlp.fc_out", "gpt2_xl": "h.{}.mlp.c_proj"}
MULTI_LAYERS = {"llama3_8b": range(4, 9), "gpt_j": range(3, 9), "gpt2_xl": range(13, 18)}
ROME_LAYER = {"llama3_8b": 5, "gpt_j": 5, "gpt2_xl": 17}
# num_steps, learning_rate, decay, clamp, kl_weight
MULTI_LAYER_SEARCH = {
    "llama3_8b": (25, 0.1, 0.5, 0.75, 0.0625),
    "gpt_j": (25, 0.5, 0.5, 0.75, 0.0625),
    "gpt2_xl": (20, 0.5, 0.5, 0.75, 0.0625),
}
ROME_SEARCH = {
    "llama3_8b": (25, 0.5, 1e-3, 4.0, 0.0625),
    "gpt_j": (20, 0.5, 0.5, 4.0, 0.0625),
    "gpt2_xl": (20, 0.5, 0.5, 4.0, 0.0625),
}
OWN: dict[str, dict[str, dict[str, Any]]] = {
    "ROME": {"llama3_8b": {"use_moments": False}, "gpt_j": {"use_moments": True}, "gpt2_xl": {"use_moments": True}},
    "MEMIT": {
        "llama3_8b": {"moment_weight": 15_000.0},
        "gpt_j": {"moment_weight": 15_000.0},
        "gpt2_xl": {"moment_weight": 20_000.0},
    },
    "AlphaEdit": {preset: {"ridge": 10.0, "threshold": 2e-2, "relative": False} for preset in BLOCKS},
    "NSE": {
        "llama3_8b": {"moment_weight": 15_000.0, "alpha": 2.5, "upper": 50.0, "neurons": 1.0, "max_iterations": 3},
        "gpt_j": {"moment_weight": 15_000.0, "alpha": 15.0, "upper": 100.0, "neurons": 0.8, "max_iterations": 3},
        "gpt2_xl": {"moment_weight": 10_000.0, "alpha": 35.0, "upper": 150.0, "neurons": 1.0, "max_iterations": 3},
    },
}
OWN["R-ROME"] = OWN["ROME"]


def test_every_locate_then_edit_editor_has_published_settings() -> None:
    assert set(LOCATE_THEN_EDIT) == set(OWN)


@pytest.mark.parametrize("preset", BLOCKS)
@pytest.mark.parametrize("name", LOCATE_THEN_EDIT)
def test_presets_are_the_published_settings(name: str, preset: str) -> None:
    editor = make_editor(name, preset=preset)
    one = name in ("ROME", "R-ROME")
    layers = [ROME_LAYER[preset]] if one else MULTI_LAYERS[preset]
    assert isinstance(editor, LocateThenEdit) and type(editor) is EDITORS[name]
    assert editor.modules == tuple(BLOCKS[preset].format(layer) for layer in layers)
    search = editor.search
    found = (search.num_steps, search.learning_rate, search.decay, search.clamp, search.kl_weight)
    assert found == (ROME_SEARCH if one else MULTI_LAYER_SEARCH)[preset]
    assert search.loss_floor == 0.05
    assert {field: getattr(editor, field) for field in OWN[name][preset]} == OWN[name][preset]
    assert editor.context_words == ("The", "Therefore", "Because", "I", "You")
    assert len(editor.context_lengths) * 5 == (20 if one else 5)
    assert editor.bare_share == (None if one else 0.5)


@pytest.mark.parametrize("name", LOCATE_THEN_EDIT)
@pytest.mark.parametrize("preset", ["llama3_8b", "gpt_j", "gpt2_xl", "testbed"])
def test_a_preset_takes_other_fields(name: str, preset: str) -> None:
    """Given fields replace those of the preset."""
    kind: Any = EDITORS[name]
    editor = kind.preset(preset, modules=("a",), seed=3, max_batch=7)
    assert editor == replace(make_editor(name, preset=preset), modules=("a",), seed=3, max_batch=7)


@pytest.mark.parametrize("name", LOCATE_THEN_EDIT)
def test_the_testbeds_preset_starts_on_its_model(name: str) -> None:
    """The model is a Llama with down-projections; the only context is the bare prompt, and the moments have an inverse."""
    model, one = a_model("llama"), EDITORS[name].single_matrix  # type: ignore[attr-defined]
    settings = {"modules": ",".join(MODULES["llama"][1 if one else 0 :])}
    if name == "AlphaEdit":
        settings["threshold"] = "0.1"  # An untrained model uses nearly all directions.
    editor = with_moments(make_editor(name, preset="testbed", settings=settings), model)
    state = editor.start(model, find_matrices(model.module, editor.modules))
    assert editor.contexts(state).texts == ("",)
    delta, _ = editor.edit(model, BATCHES[0], state)
    assert delta.is_finite and all(norm > 0 for norm in delta.norms().values())


def test_without_a_name_the_editor_is_that_of_the_policy_or_of_the_preset_or_the_default(tmp_path: Path) -> None:
    (tmp_path / "artifact.json").write_text('{"editor": "MALMEN"}')
    assert editor_for("", tmp_path) == "MALMEN"
    assert editor_for("", tmp_path / "moments") == editor_for("", preset="llama3_8b") == "RLEdit"
    assert editor_for("") == DEFAULT_EDITOR and DEFAULT_EDITOR in EDITORS
    assert editor_for("FT-L", tmp_path) == "FT-L"
