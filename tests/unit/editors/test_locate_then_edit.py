"""MEMIT and AlphaEdit against their published equations, solved in primal form and in fp64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from errata.edit import Edit, EditBatch, EditRejected
from errata.editors.closed_form.alphaedit import AlphaEdit
from errata.editors.closed_form.contexts import Contexts
from errata.editors.closed_form.locate_then_edit import LocateThenEdit, block_of
from errata.editors.closed_form.memit import MEMIT
from errata.editors.closed_form.targets import find_targets
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


@pytest.fixture
def llama() -> LanguageModel:
    return a_model("llama")


def published(
    model: LanguageModel,
    editor: LocateThenEdit,
    batches: Sequence[EditBatch],
    contexts: Sequence[str],
    solve: Callable[[str, Tensor, Tensor], Tensor],
    remembers: bool,
) -> list[dict[str, Tensor]]:
    """Edit with the published equations, layer by layer into the weights; returns the changes [O, I] of each batch.

    `solve(name, K_In, past_II)` gives X_In.
    """
    spec = find_matrices(model.module, editor.modules)
    site = block_of(spec.names[-1])
    past = {m.name: torch.zeros(m.num_in, m.num_in, dtype=torch.float64) for m in spec.matrices}
    changes = []
    for batch in batches:
        wanted_nD = find_targets(model, batch, site, Contexts(tuple(contexts)), editor.search).wanted_nD.double()
        change: dict[str, Tensor] = {}
        for index, matrix in enumerate(spec.matrices):
            K_In = keys(model, batch, contexts, matrix.name).T
            now_nD = at_subject(model, batch.prompts, subjects_of(batch), site, True)
            R_On = ((wanted_nD - now_nD) / (len(spec.matrices) - index)).T
            change[matrix.name] = R_On @ solve(matrix.name, K_In, past[matrix.name]).T
            write(model, matrix.name, change[matrix.name])
        if remembers:
            for name in past:
                K_In = keys(model, batch, contexts, name).T
                past[name] += K_In @ K_In.T
        changes.append(change)
    return changes


def check_same(
    model: LanguageModel,
    editor: LocateThenEdit,
    solve: Callable[[str, Tensor, Tensor], Tensor],
    remembers: bool,
    bound: float = EXACT,
) -> None:
    deltas, _, contexts = played(editor, model, BATCHES)
    assert len(contexts) == 3 and contexts[0] == "" and all(context.endswith(". ") for context in contexts[1:])
    check_close(deltas, published(model, editor, BATCHES, contexts, solve, remembers), bound)


@pytest.mark.parametrize("memory", [0.0, 1.0])
def test_memit_is_the_published_solve(model: LanguageModel, memory: float) -> None:
    check_memit(model, memory)


def check_memit(model: LanguageModel, memory: float, bound: float = EXACT) -> None:
    editor = with_moments(
        MEMIT(
            modules_of(model),
            search=SEARCH,
            context_words=WORDS,
            context_lengths=(4,),
            moment_weight=20.0,
            floor=1e-2,
            memory=memory,
        ),
        model,
    )
    assert editor.moments is not None
    moments = editor.moments.by_input

    def solve(name: str, K_In: Tensor, past_II: Tensor) -> Tensor:
        A_II = 20.0 * moments[name].double() + past_II + K_In @ K_In.T + 1e-2 * torch.eye(len(K_In), dtype=torch.float64)
        return torch.linalg.solve(A_II, K_In)

    check_same(model, editor, solve, bool(memory), bound)


def test_alphaedit_is_the_published_solve(model: LanguageModel) -> None:
    editor = with_moments(
        AlphaEdit(
            modules_of(model), search=SEARCH, context_words=WORDS, context_lengths=(4,), ridge=2.0, threshold=0.1, relative=True
        ),
        model,
    )
    assert editor.moments is not None
    moments = editor.moments.by_input

    def solve(name: str, K_In: Tensor, past_II: Tensor) -> Tensor:
        values_I, vectors_II = torch.linalg.eigh(moments[name].double())
        free_IR = vectors_II[:, values_I < 0.1 * values_I[-1]]
        P_II = free_IR @ free_IR.T
        A_II = P_II @ (K_In @ K_In.T + past_II) + 2.0 * torch.eye(len(K_In), dtype=torch.float64)
        return torch.linalg.solve(A_II, P_II @ K_In)

    check_same(model, editor, solve, True)


def test_targets_of_a_batch_are_those_of_its_edits_alone(llama: LanguageModel) -> None:
    batch, site, contexts = BATCHES[0], "model.layers.1", Contexts(("", "the river shines. "))
    together = find_targets(llama, batch, site, contexts, SEARCH)
    assert float(together.change_nD.norm(dim=1).min()) > 0
    for index, edit in enumerate(batch):
        alone = find_targets(llama, EditBatch((edit,)), site, contexts, SEARCH)
        torch.testing.assert_close(alone.wanted_nD[0], together.wanted_nD[index], rtol=1e-3, atol=1e-4)


def test_an_edit_without_a_subject_is_refused(llama: LanguageModel) -> None:
    editor = with_moments(MEMIT(MODULES["llama"], search=SEARCH, context_words=WORDS, context_lengths=(4,), floor=1.0), llama)
    state = editor.start(llama, find_matrices(llama.module, editor.modules))
    with pytest.raises(EditRejected, match="name it") as refused:
        editor.edit(llama, EditBatch((BATCHES[0].edits[0], Edit("the sun is", "cold"))), state)
    assert refused.value.field == "subject"


def test_memit_without_moments_cannot_start(llama: LanguageModel) -> None:
    editor = MEMIT(("layers.1.mlp.down_proj",))
    with pytest.raises(ValueError, match=r"MEMIT needs the key moments of model\.layers\.1"):
        editor.start(llama, find_matrices(llama.module, editor.modules))


def test_the_last_block_cannot_be_edited_at_the_subject(llama: LanguageModel) -> None:
    editor = with_moments(
        MEMIT(("layers.2.mlp.down_proj",), search=SEARCH, context_words=WORDS, context_lengths=(4,), floor=1.0), llama
    )
    with pytest.raises(ValueError, match=r"model\.layers\.2 is the model's last block"):
        editor.start(llama, find_matrices(llama.module, editor.modules))
