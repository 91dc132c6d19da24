"""The table of presets against the papers, on the real architectures at full depth, without their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from errata.edit import batches_of
from errata.editors import EDITORS, make_editor
from errata.editors.closed_form.memit import MEMIT
from errata.editors.closed_form.rome import ROME
from errata.editors.fine_tuning.ftl import FTL
from errata.editors.hypernet.net import Hypernetwork
from errata.editors.hypernet.rledit import RLEdit
from errata.editors.presets import MODELS, PRESETS, in_short, presets_of
from errata.model.matrices import find_matrices
from errata.testbed.world import World
from tests.unit.published_models import (
    CONFIGS,
    PUBLISHED_LAYERS,
    ROWS,
    architecture,
    check_matrices,
    model_of,
    narrow,
)

ROOT = Path(__file__).parents[3]


def test_the_table_has_these_rows_and_no_others() -> None:
    found = {name: set(presets_of(kind)) - {"testbed"} for name, kind in EDITORS.items()}
    assert {name: names for name, names in found.items() if names} == {
        editor: set(names) for editor, names in PUBLISHED_LAYERS.items()
    }
    assert {row.model for row in PRESETS} == {*MODELS, "testbed"} and set(MODELS) == set(CONFIGS)
    names = [(row.editor, name) for row in PRESETS for name in row.names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("editor", "name"), ROWS)
def test_a_row_fits_its_model_at_full_depth(editor: str, name: str) -> None:
    model = model_of(name)
    chosen: Any = EDITORS[editor]
    check_matrices(find_matrices(architecture(model), chosen.preset(name).modules), model, PUBLISHED_LAYERS[editor][name])


@pytest.mark.parametrize("name", PUBLISHED_LAYERS["RLEdit"])
def test_rledits_presets_have_its_published_constants(name: str) -> None:
    editor = RLEdit.preset(name)
    assert (editor.rank, editor.num_blocks, editor.learning_rate) == (1024, 4, 1e-5)
    assert (editor.centred, editor.first_step, editor.first_ridge, editor.metric_strength) == (True, None, None, 0.0)
    reward = editor.reward
    assert (reward.locality_weight, reward.update_penalty) == (0.6, 1e-4)
    assert (reward.backtrack_decay, reward.backtrack_depth) == (0.95, 9)
    assert (reward.discount, reward.edit_weight, reward.score_prompts, reward.backtrack_uniform) == (1.0, 1.0, False, False)


@pytest.mark.parametrize(("editor", "rate", "weight"), [("MALMEN", 1e-5, 1.0), ("MEND", 1e-6, 0.1)])
def test_malmens_and_mends_presets_have_their_published_constants(editor: str, rate: float, weight: float) -> None:
    chosen: Any = EDITORS[editor]
    for name in PUBLISHED_LAYERS[editor]:
        made = chosen.preset(name)
        assert (made.rank, made.num_blocks, made.learning_rate, made.centred) == (1920, 2, rate, True)
        assert (made.first_step, made.first_ridge, made.metric_strength) == (None, None, 0.0)
        reward = made.reward
        assert (reward.edit_weight, reward.locality_weight) == (weight, 1.0)
        assert (reward.update_penalty, reward.score_prompts) == (0.0, False)


def test_ultraedits_presets_have_its_published_constants() -> None:
    for name in PUBLISHED_LAYERS["UltraEdit"]:
        editor: Any = make_editor("UltraEdit", preset=name)
        assert (editor.step, editor.ridge) == (1e-6, 1.0)


@pytest.mark.parametrize(
    ("name", "epsilon"),
    [("gpt2_xl", 5e-4), ("gpt_j", 5e-5), *((model, float("inf")) for model in ("llama3_8b", "mistral_7b", "qwen2_5_7b"))],
)
def test_ftls_presets_have_the_published_constants(name: str, epsilon: float) -> None:
    editor = FTL.preset(name)
    assert (editor.num_epochs, editor.learning_rate, editor.loss_floor, editor.epsilon) == (25, 5e-4, 1e-2, epsilon)


@pytest.mark.parametrize("model", ["mistral_7b", "qwen2_5_7b"])
@pytest.mark.parametrize("editor", ["ROME", "R-ROME", "MEMIT", "AlphaEdit"])
def test_the_toolkits_presets_have_easyedits_constants(editor: str, model: str) -> None:
    """The search is the same for every method. The constants of the methods' own papers are tested in test_build.py."""
    if model not in PUBLISHED_LAYERS[editor]:
        return
    made: Any = make_editor(editor, preset=model)
    search = made.search
    assert (search.num_steps, search.learning_rate, search.decay) == (25, 0.5, 1e-3)
    assert (search.clamp, search.kl_weight) == (4.0, 0.0625)
    if isinstance(made, ROME):
        assert not made.use_moments
    elif isinstance(made, MEMIT):
        assert made.moment_weight == 15_000.0
    else:
        assert (made.ridge, made.threshold, made.relative) == (1.0, 2e-2, False)


@pytest.mark.parametrize(("name", "millions"), [("llama3_8b", 154), ("llama3_8b_zsre", 153), ("mistral_7b", 151)])
def test_rledits_networks_are_as_large_as_the_papers(name: str, millions: int) -> None:
    """There are 4 blocks of 2 x 18,432 x 1,024 weights, with a bias, and a scale and a shift for every matrix."""
    editor = RLEdit.preset(name)
    with torch.device("meta"):
        spec = find_matrices(architecture(model_of(name)), editor.modules)
        net = Hypernetwork(spec, editor.rank, editor.num_blocks, editor.centred, seed=0)
    assert len(net.nets) == 1, "gate and up are of one shape"
    assert round(sum(parameter.numel() for parameter in net.parameters()) / 1e6) == millions


@pytest.mark.parametrize(
    ("editor", "preset", "says"),
    [
        ("UltraEdit", "llama4", "UltraEdit has no preset 'llama4'; there are llama3_8b, llama3_8b_zsre"),
        ("FT-L", "phi4", "FTL has no preset 'phi4'; there are gpt2_xl, gpt_j"),
        ("NSE", "mistral_7b", "NSE has no preset 'mistral_7b'; there are gpt2_xl"),
        ("LocFT", "gpt_j", "it has none: set its fields"),
    ],
)
def test_the_error_for_an_unknown_preset_lists_the_presets(editor: str, preset: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_editor(editor, preset=preset)


def test_a_subclass_has_the_presets_of_its_base() -> None:
    class Mine(MEMIT):
        pass

    published = MEMIT.preset("gpt_j")
    assert Mine.preset("gpt_j") == Mine(modules=published.modules, search=published.search)


@pytest.mark.parametrize(
    ("modules", "short"),
    [
        (("layers.3.mlp.down_proj",), "down_proj 3"),
        (("h.1.mlp.c_fc", "h.1.mlp.c_proj", "h.2.mlp.c_fc", "h.2.mlp.c_proj"), "c_fc + c_proj 1-2"),
        (("layers.9.a", "layers.1.a", "layers.2.a", "layers.2.b"), "a 1-2, 9, b 2"),
        (("mlp.down_proj",), "down_proj every block"),
    ],
)
def test_names_of_matrices_are_abbreviated(modules: tuple[str, ...], short: str) -> None:
    assert in_short(modules) == short


def test_the_document_has_every_row() -> None:
    lines = (ROOT / "docs" / "plans.md").read_text().splitlines()
    for row in PRESETS:
        editor = next(name for name, kind in EDITORS.items() if kind.__name__ == row.editor)
        wanted = [f"| `{editor}`", *(f"`{name}`" for name in row.names), in_short(row.modules), row.source]
        assert any(all(part in line for part in wanted) for line in lines if line.startswith("|")), wanted


@pytest.mark.parametrize("name", ["llama3_8b", "llama3_8b_fever"])
def test_ultraedit_edits_the_matrices_of_its_preset(name: str) -> None:
    model, editor = narrow("llama3_8b"), make_editor("UltraEdit", preset=name, settings={"max_batch": "4"})
    batch = next(iter(batches_of(World(20).edits("test", 4), 4)))
    delta, _ = editor.edit(model, batch, editor.start(model, find_matrices(model.module, editor.modules)))
    layers = {(n.rpartition(".")[2], int(n.split(".")[2])) for n, norm in delta.norms().items() if norm > 0}
    assert layers == {(matrix, layer) for matrix, numbers in PUBLISHED_LAYERS["UltraEdit"][name].items() for layer in numbers}
