"""What the locate-then-edit editors share: targets at the subject's last token, spread over the layers up to them.

Papers: MEMIT (2210.07229), AlphaEdit (2410.02355). For the matrices W_1 ... W_p in order, on the model as changed so far,
with k̄ the mean key of an edit over its contexts, Z the targets at the last of their blocks and H what stands there now in the
bare prompts:

    R = (Z - H) / (p - a),   ΔW_a = Rᵀ (K P Kᵀ + I)⁻¹ K P,   P = (A + Σ past k kᵀ)⁻¹

P is where they differ: A = λ C for MEMIT, and λ on the null space of C (nothing else is reached) for AlphaEdit. It is the
published primal solve in its dual form, n by n.
Remembers: the contexts and, with `memory`, the keys of past edits, measured after each on the edited model.
"""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from errata.clock import stage
from errata.delta import LowRank, WeightDelta, applied
from errata.edit import EditBatch, EditRejected
from errata.editors.closed_form.moments import Moments
from errata.editors.closed_form.subjects import Asked, ask, sample_contexts
from errata.editors.closed_form.targets import Search, find_targets
from errata.editors.editor import Editor, EditorState, check_batch, check_modules
from errata.editors.past import after, metrics_of
from errata.editors.solve import Metric, Rows
from errata.model import LanguageModel, ModelSpec, find_matrices


@dataclass(frozen=True)
class Located(Editor):
    """`modules` are down-projections. `moments` are the keys' second moments, from `load` or `with_moments`.

    Of the contexts that a prompt is put into, one is sampled by the model after each of `context_words`, `context_tokens` long;
    the bare prompt is another.
    """

    modules: tuple[str, ...] = ("mlp.down_proj",)
    search: Search = field(default_factory=Search)
    context_words: tuple[str, ...] = ("The", "Therefore", "Because", "I", "You")
    context_tokens: int = 10
    seed: int = 0
    max_batch: int = 1000
    moments: Moments | None = field(default=None, compare=False, repr=False)

    @classmethod
    def load(cls, directory: str | Path, device: Any = "cpu") -> Self:
        """With the moments of a folder, editing the matrices that it has moments of."""
        moments = Moments.load(directory, device)
        return cls(modules=tuple(moments.by_input), moments=moments)

    @classmethod
    def llama3_8b(cls, **fields: Any) -> Self:
        modules = tuple(f"layers.{layer}.mlp.down_proj" for layer in range(4, 9))
        return cls(**{"modules": modules, "search": Search(), **fields})

    @classmethod
    def gpt_j(cls, **fields: Any) -> Self:
        modules = tuple(f"h.{layer}.mlp.fc_out" for layer in range(3, 9))
        return cls(**{"modules": modules, "search": Search(learning_rate=0.5), **fields})

    @classmethod
    def gpt2_xl(cls, **fields: Any) -> Self:
        modules = tuple(f"h.{layer}.mlp.c_proj" for layer in range(13, 18))
        return cls(**{"modules": modules, "search": Search(num_steps=20, learning_rate=0.5), **fields})

    @abstractmethod
    def bases(self, moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """P of each matrix before the first edit, in fp64."""

    @property
    @abstractmethod
    def remembers(self) -> float:
        """The weight of a past key in P; 0 if none is kept."""

    def start(self, model: LanguageModel, spec: ModelSpec) -> EditorState:
        check_modules(self.modules, model, spec)
        if missing := [name for name in spec.names if self.moments is None or name not in self.moments.by_input]:
            name = type(self).__name__
            raise ValueError(f"{name} needs the key moments of {', '.join(missing)}: {name}.load(folder) of jobs/moments.py")
        check_is_read(model, block_of(spec.names[-1]))
        contexts = sample_contexts(model, self.context_words, self.context_tokens, self.seed)
        written = torch.tensor(list(json.dumps(contexts).encode()), dtype=torch.uint8)
        return EditorState(0, {"contexts": written}, {"metrics": self._metrics(spec)})

    def edit(self, model: LanguageModel, batch: EditBatch, state: EditorState) -> tuple[WeightDelta, EditorState]:
        check_batch(batch, self.max_batch)
        spec = find_matrices(model.module, self.modules)
        contexts = contexts_of(state)
        metrics = metrics_of(state, lambda: {name: m.base_II for name, m in self._metrics(spec).items()}, self.remembers)
        asked, bare = ask(model, batch, contexts), ask(model, batch)
        site = block_of(spec.names[-1])
        wanted_nD = find_targets(model, batch, site, contexts, self.search).wanted_nD
        delta = WeightDelta({})
        for index, name in enumerate(spec.names):
            with applied(model.module, delta), stage("capture"):
                keys_nI = asked.mean(inputs_at(model, asked, [name])[name])
                now_nD = output_at(model, bare, site)
            with stage("solve"), torch.no_grad():
                rows = Rows.of(keys_nI, metrics[name])
                Z_nO = rows.solve((wanted_nD - now_nD) / (len(spec.names) - index), torch.zeros((), device=model.device))
            delta = WeightDelta({**delta.parts, name: LowRank(Z_nO.T, rows.V_nI.T)})
        if not delta.is_finite:
            raise EditRejected("the update is not finite")
        keys: dict[str, Tensor] = {}
        if self.remembers:
            with applied(model.module, delta):
                keys = {n: asked.mean(rows_BI) for n, rows_BI in inputs_at(model, asked, spec.names).items()}
        return delta, after(state, len(batch), metrics, keys, self.remembers)

    def with_moments(self, moments: Moments) -> Self:
        return replace(self, moments=moments)

    def _metrics(self, spec: ModelSpec) -> dict[str, Metric]:
        assert self.moments is not None
        bases = self.bases({name: self.moments.by_input[name] for name in spec.names})
        return {name: Metric.start(base_II) for name, base_II in bases.items()}


def contexts_of(state: EditorState) -> list[str]:
    found: list[str] = json.loads(bytes(state.tensors["contexts"].tolist()))
    return found


def block_of(name: str) -> str:
    """The block that a module stands in: `model.layers.3` of `model.layers.3.mlp.down_proj`."""
    found = re.match(r"(.*?\.\d+)\.", name)
    if not found:
        raise ValueError(f"{name} stands in no numbered block, whose output could be a target")
    return found[1]


def check_is_read(model: LanguageModel, block: str) -> None:
    """Raise `ValueError` for the last block: no attention after it carries what it writes from the subject to the answer."""
    stem, _, index = block.rpartition(".")
    if int(index) == len(list(model.module.get_submodule(stem).children())) - 1:
        raise ValueError(
            f"{block} is the model's last block: what is written at the subject there is read by none; edit earlier ones"
        )


@torch.no_grad()
def inputs_at(model: LanguageModel, asked: Asked, names: Sequence[str]) -> dict[str, Tensor]:
    """What goes into each module at the subject's last token of every row, [B, I] in fp32 at least."""
    found: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        return lambda _module, args: found.update({name: _at_subject(args[0], asked)})

    handles = [model.module.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    _forward(model, asked, handles)
    return found


@torch.no_grad()
def output_at(model: LanguageModel, asked: Asked, name: str) -> Tensor:
    """What comes out of a module there, [B, O] in fp32 at least."""
    found: list[Tensor] = []

    def watch(_module: Any, _args: Any, output: Any) -> None:
        found.append(_at_subject(output[0] if isinstance(output, tuple) else output, asked))

    _forward(model, asked, [model.module.get_submodule(name).register_forward_hook(watch)])
    return found[0]


def _at_subject(rows_BSF: Tensor, asked: Asked) -> Tensor:
    rows_BF = rows_BSF[torch.arange(len(asked.subject_B), device=rows_BSF.device), asked.subject_B]
    return rows_BF.to(torch.promote_types(rows_BF.dtype, torch.float32))


def _forward(model: LanguageModel, asked: Asked, handles: Sequence[Any]) -> None:
    encoded = asked.encoded
    try:
        model.module.base_model(input_ids=encoded.input_ids_BS, attention_mask=encoded.attention_mask_BS, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
