"""Small random models of two architectures, and plain code to look into them, for tests of the locate-then-edit editors.

Written after the published descriptions, not after the package: one prompt at a time, everything in fp64. I in-features, O
out-features, n edits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from errata.delta.accumulator import EditedModel
from errata.delta.weight_delta import WeightDelta
from errata.edit import Edit, EditBatch, batches_of
from errata.editors import Editor, EditorState
from errata.editors.closed_form.locate_then_edit import contexts_of
from errata.editors.closed_form.moments import Moments
from errata.editors.closed_form.targets import Search
from errata.editors.wrappers.wrapper import inner_state
from errata.model.encoding import encode
from errata.model.key_moments import key_moment
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.testbed.language_model import Shape, make_model, make_tokenizer
from errata.testbed.world import World
from tests.tiny_models import ARCHITECTURES, make_tiny

SEARCH = Search(num_steps=6, learning_rate=0.5)
WORDS = ("the", "a")
BATCHES = list(batches_of(World(20).edits("test", 9), 3))
# The architectures of the papers in 32 dimensions; the other architectures are in tests/tiny_models.py.
MODULES = {"llama": ("layers.0.mlp.down_proj", "layers.1.mlp.down_proj"), "gpt2": ("h.0.mlp.c_proj", "h.1.mlp.c_proj")}
SHAPE = Shape(hidden=32, layers=3, intermediate=48, heads=2, max_tokens=48)

EXACT = 1e-6  # relative error with a model in fp64, where only a delta's factors are rounded to fp32


def a_model(kind: str, dtype: torch.dtype = torch.float64) -> LanguageModel:
    """Build a random model of three layers, in fp64 by default, so that tests compare equations and not rounding."""
    if kind in ARCHITECTURES:
        tiny = make_tiny(kind)
        return replace(tiny, module=tiny.module.to(dtype))
    tokenizer = make_tokenizer(World(20), SHAPE)
    torch.manual_seed(0)
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=len(tokenizer), n_positions=48, n_embd=32, n_layer=3, n_head=2, bos_token_id=1, eos_token_id=1
        )
        module: Any = GPT2LMHeadModel(config)
    else:
        module = make_model(SHAPE, len(tokenizer), seed=0)
    return LanguageModel(module.to(dtype).eval().requires_grad_(False), tokenizer, kind)


def modules_of(model: LanguageModel) -> tuple[str, ...]:
    """Name the matrices of the first two blocks that the editors write to."""
    if model.path in ARCHITECTURES:
        return tuple(ARCHITECTURES[model.path].name(ARCHITECTURES[model.path].written, block) for block in (0, 1))
    return MODULES["gpt2" if "GPT2" in type(model.module).__name__ else "llama"]


@cache
def moments_of(kind: str, modules: tuple[str, ...], dtype: torch.dtype = torch.float64) -> Moments:
    """Measure the key moments of an unedited model on its own sentences with their answers."""
    model = a_model(kind, dtype)
    names = find_matrices(model.module, modules).names
    pairs = World(20).sentences()
    chunks = [pairs[i : i + 64] for i in range(0, len(pairs), 64)]
    text = [encode(model.renderer, [p for p, _ in chunk], [a for _, a in chunk]) for chunk in chunks]
    return Moments(key_moment(model.module, text, names))


def with_moments(editor: Any, model: LanguageModel) -> Any:
    return editor.with_moments(moments_of(model.path, editor.modules, model.module.dtype))


def at_subject(model: LanguageModel, prompts: Sequence[str], subjects: Sequence[str], name: str, output: bool) -> Tensor:
    """Capture a module's input or output at the subject's last token, one prompt at a time."""
    found: list[Tensor] = []
    module = model.module.get_submodule(name)
    for prompt, subject in zip(prompts, subjects, strict=True):
        ids = model.tokenizer(prompt)["input_ids"]
        position = len(model.tokenizer(prompt[: prompt.index(subject) + len(subject)])["input_ids"]) - 1

        def watch(_m: object, args: tuple[Tensor, ...], out: object, at: int = position) -> None:
            value = (out[0] if isinstance(out, tuple) else out) if output else args[0]
            found.append(value[0, at])

        handle = module.register_forward_hook(watch)
        model.module(torch.tensor([ids]))
        handle.remove()
    return torch.stack(found)


def subjects_of(batch: EditBatch) -> list[str]:
    return [edit.subject or "" for edit in batch]


def keys(model: LanguageModel, batch: EditBatch, contexts: Sequence[str], name: str) -> Tensor:
    """Average the keys: half the bare prompt's, half the mean over the contexts."""
    bare, *others = in_contexts(model, batch, contexts, name, False)
    return 0.5 * bare + 0.5 * torch.stack(others).mean(0)


def in_contexts(model: LanguageModel, batch: EditBatch, contexts: Sequence[str], name: str, output: bool) -> list[Tensor]:
    """Capture a module's input [n, I] or output [n, O] at every edit's subject, in each context."""
    subjects = subjects_of(batch)
    return [at_subject(model, [context + prompt for prompt in batch.prompts], subjects, name, output) for context in contexts]


def weight_of(model: LanguageModel, name: str) -> Tensor:
    """Copy a weight, [O, I], in fp64."""
    (matrix,) = find_matrices(model.module, [name]).matrices
    return matrix.oriented(model.module.get_submodule(name).weight).double().clone()


def write(model: LanguageModel, name: str, change_OI: Tensor) -> None:
    """Add a change to the weights permanently."""
    (matrix,) = find_matrices(model.module, [name]).matrices
    weight = model.module.get_submodule(name).weight
    weight += matrix.oriented(change_OI).to(weight)


def rome_fact(
    model: LanguageModel,
    edit: Edit,
    contexts: Sequence[str],
    name: str,
    wanted_O: Tensor,
    moment_II: Tensor | None,
    flavour: str = "ROME",
) -> Tensor:
    """Compute ROME's change of the matrix `name`, [O, I], for one fact, without writing it.

    u = C⁻¹ k̄ / |C⁻¹ k̄|, or k̄ / |k̄| without a moment, and ΔW = (v* - W k) uᵀ / (uᵀ k). u uses the mean of the keys over the
    contexts, v* the bare prompt's key. R-ROME uses one key everywhere: the mean (and the mean of W k), or the bare prompt's.
    """
    fact = EditBatch((edit,))
    keys_CI = torch.cat(in_contexts(model, fact, contexts, name, False))
    outputs_CO = torch.cat(in_contexts(model, fact, contexts, name, True))
    mean_I, bare_I = keys_CI.mean(0), keys_CI[0]
    direction_I = bare_I if flavour == "R-ROME, prompt keys" else mean_I
    answered_I, now_O = (mean_I, outputs_CO.mean(0)) if flavour == "R-ROME" else (bare_I, outputs_CO[0])
    u_I = direction_I if moment_II is None else torch.linalg.solve(moment_II, direction_I)
    u_I = u_I / u_I.norm()
    return torch.outer(wanted_O - now_O, u_I) / (u_I @ answered_I)


def played(
    editor: Editor, model: LanguageModel, batches: Sequence[EditBatch]
) -> tuple[list[WeightDelta], list[EditorState], tuple[str, ...]]:
    """Edit the batches in turn, each on the result of the earlier ones; the model is restored.

    Returns the deltas, the states before, between and after them, and the contexts, () if the editor has none.
    """
    spec = find_matrices(model.module, editor.modules)
    edited, states, deltas = EditedModel(model.module, spec), [editor.start(model, spec)], []
    for batch in batches:
        delta, state = editor.edit(model, batch, states[-1])
        edited.add(delta)
        deltas.append(delta)
        states.append(state)
    edited.set([])
    own = next((state for state in (states[0], inner_state(states[0])) if "contexts" in state.tensors), None)
    return deltas, states, contexts_of(own) if own else ()


def relative(found: Tensor, wanted: Tensor) -> float:
    """Relative error of `found`, in units of the norm of `wanted`."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def check_close(deltas: Sequence[WeightDelta], changes: Sequence[dict[str, Tensor]], bound: float) -> None:
    """Check every delta against its batch's change, matrix by matrix, up to a relative error of `bound`."""
    for delta, change in zip(deltas, changes, strict=True):
        assert set(delta.parts) == set(change)
        for name, part in delta:
            assert relative(part.dense(), change[name]) < bound, (name, relative(part.dense(), change[name]))
