"""BLUE against its rule, solved in primal form and in fp64: two blocks, a target each, nothing divided."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from errata.editors import make_editor, name_of
from errata.editors.closed_form.alphaedit import AlphaEdit
from errata.editors.closed_form.contexts import Contexts
from errata.editors.closed_form.locate_then_edit import block_of
from errata.editors.closed_form.memit import MEMIT
from errata.editors.closed_form.nse import NSE
from errata.editors.closed_form.targets import find_targets
from errata.editors.wrappers.blue import BLUE, boundary
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from tests.unit.small_models import (
    BATCHES,
    EXACT,
    MODULES,
    SEARCH,
    WORDS,
    a_model,
    at_subject,
    check_close,
    keys,
    modules_of,
    played,
    subjects_of,
    with_moments,
    write,
)


@pytest.fixture(params=MODULES)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return a_model(request.param)


def a_memit(model: LanguageModel, modules: tuple[str, ...]) -> MEMIT:
    made = MEMIT(modules, search=SEARCH, context_words=WORDS, context_lengths=(4,), moment_weight=20.0, floor=1e-2, memory=1.0)
    return with_moments(made, model)


def test_each_block_gets_its_own_target_whole(model: LanguageModel) -> None:
    editor = BLUE(a_memit(model, modules_of(model)))
    deltas, _, contexts = played(editor, model, BATCHES[:2])
    assert isinstance(editor.host, MEMIT) and editor.host.moments is not None
    moments = editor.host.moments.by_input
    past: dict[str, Tensor] = {name: torch.zeros_like(C_II).double() for name, C_II in moments.items()}
    changes = []
    for batch in BATCHES[:2]:
        change: dict[str, Tensor] = {}
        for name in find_matrices(model.module, editor.modules).names:
            site = block_of(name)
            wanted_nD = find_targets(model, batch, site, Contexts(contexts), editor.host.search).wanted_nD.double()
            K_In = keys(model, batch, contexts, name).T
            R_On = (wanted_nD - at_subject(model, batch.prompts, subjects_of(batch), site, True)).T
            A_II = 20.0 * moments[name].double() + past[name] + K_In @ K_In.T + 1e-2 * torch.eye(len(K_In)).double()
            change[name] = R_On @ torch.linalg.solve(A_II, K_In).T
            write(model, name, change[name])
        for name in past:
            K_In = keys(model, batch, contexts, name).T
            past[name] += K_In @ K_In.T
        changes.append(change)
    check_close(deltas, changes, EXACT)


def test_with_one_matrix_it_is_the_wrapped_editor() -> None:
    model = a_model("llama", torch.float32)
    editor = a_memit(model, MODULES["llama"][:1])
    alone, _, _ = played(editor, model, BATCHES[:2])
    wrapped, _, _ = played(BLUE(editor), model, BATCHES[:2])
    assert [delta.digest() for delta in wrapped] == [delta.digest() for delta in alone]


def test_of_a_preset_the_first_and_the_last_block_stay() -> None:
    blue = make_editor("BLUE", preset="llama3_8b")
    assert isinstance(blue, BLUE) and type(blue.host) is AlphaEdit and name_of(blue) == "BLUE"
    assert blue.modules == ("layers.4.mlp.down_proj", "layers.8.mlp.down_proj")
    assert name_of(make_editor("BLUE/MEMIT", preset="gpt2_xl")) == "BLUE/MEMIT"
    assert boundary(["h.10.mlp.c_proj", "h.9.mlp.c_proj", "h.2.mlp.c_proj"]) == ("h.2.mlp.c_proj", "h.10.mlp.c_proj")


def test_a_middle_block_and_another_kind_of_editor_are_refused() -> None:
    model = a_model("llama", torch.float32)
    editor = BLUE(replace(a_memit(model, MODULES["llama"]), modules=("layers.*.mlp.down_proj",)))
    with pytest.raises(
        ValueError, match=r"first and the last critical matrix, but its modules are .*layers\.1.*name these two"
    ):
        editor.start(model, find_matrices(model.module, editor.modules))
    with pytest.raises(ValueError, match="MEMIT or AlphaEdit, not NSE"):
        BLUE(NSE())  # type: ignore[arg-type]
