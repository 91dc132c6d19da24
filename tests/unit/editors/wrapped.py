"""Editors that the tests of the wrappers wrap, and output directions of a model on plain text."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from errata.editors import Editor
from errata.editors.closed_form.alphaedit import AlphaEdit
from errata.editors.closed_form.memit import MEMIT
from errata.editors.closed_form.nse import NSE
from errata.editors.closed_form.rome import ROME
from errata.editors.closed_form.targets import Search
from errata.editors.closed_form.ultraedit import UltraEdit
from errata.editors.fine_tuning.ftl import FTL
from errata.model.encoding import Encoded, encode
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.testbed.world import World
from tests.unit.small_models import (
    SEARCH,
    WORDS,
    a_model,
    modules_of,
    with_moments,
)

FLOOR = 1e-5

LARGE = Search(num_steps=4, learning_rate=0.5, clamp=2.0)  # Changes that are larger than the model's matrices.

INNER: dict[str, Callable[[tuple[str, ...], Search], Editor]] = {
    "ROME": lambda modules, search: ROME(modules[1:], search=search, context_words=WORDS, context_lengths=(2, 4), floor=FLOOR),
    "MEMIT": lambda modules, search: MEMIT(
        modules, search=search, context_words=WORDS, context_lengths=(4,), moment_weight=20.0, floor=0.05
    ),
    "AlphaEdit": lambda modules, search: AlphaEdit(
        modules, search=search, context_words=WORDS, context_lengths=(4,), ridge=1e-2, threshold=0.1, relative=True
    ),
    "NSE": lambda modules, search: NSE(
        modules,
        search=search,
        context_words=WORDS,
        context_lengths=(4,),
        moment_weight=20.0,
        floor=1e-3,
        alpha=0.01,
        upper=1e3,
        max_iterations=2,
    ),
    "UltraEdit": lambda modules, search: UltraEdit(modules, step=1e-4),
    "FT-L": lambda modules, search: FTL(modules, num_epochs=2),
}


def an_inner(name: str, model: LanguageModel, search: Search = SEARCH) -> Editor:
    return with_moments(INNER[name](modules_of(model), search), model)


@cache
def text_directions(kind: str, modules: tuple[str, ...]) -> dict[str, Tensor]:
    """Return left singular vectors of the weights' gradient of -log p of answers, the largest value first."""
    model = a_model(kind)
    matrices = find_matrices(model.module, modules).matrices
    weights = [model.module.get_submodule(matrix.name).weight.requires_grad_(True) for matrix in matrices]
    encoded = some_text(model)
    logits = model.module(input_ids=encoded.input_ids_BS, attention_mask=encoded.attention_mask_BS).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), encoded.labels_BS[:, 1:].flatten(), reduction="sum")
    gradients = torch.autograd.grad(loss, weights)
    return {m.name: torch.linalg.svd(m.oriented(g))[0].float() for m, g in zip(matrices, gradients, strict=True)}


def some_text(model: LanguageModel) -> Encoded:
    pairs = World(20).sentences()[::7]
    return encode(model.renderer, [prompt for prompt, _ in pairs], [answer for _, answer in pairs])
