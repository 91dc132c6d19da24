"""Base of the locate-then-edit editors: keys and outputs at the edit position, contexts, key moments, and past keys.

An editor of this family defines `inverse_covariances`, which protect a matrix, and `write`, which changes it.
Remembers: the contexts and, with a weight of past keys, the keys of past edits that no later one replaces, measured on the
model after each edit.
B rows (an edit in a context), I in-features, O out-features.
"""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self, get_args

import torch
from torch import Tensor

from errata.delta.side_branch import applied
from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, EditBatch, EditRejected
from errata.editors.closed_form.contexts import Contexts, EditPrompts, Position, sample_contexts, tokenise_at_subject
from errata.editors.closed_form.moments import Moments
from errata.editors.closed_form.targets import OrthogonalityPenalty, Search
from errata.editors.editor import Editor, check_batch, check_modules
from errata.editors.past_keys import next_state, preconditioners_for
from errata.editors.solve import KeyPreconditioner
from errata.editors.state import EditorState
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec, find_matrices
from errata.model.prefix_cache import BatchCache
from errata.timing import timed


@dataclass(frozen=True)
class LocateThenEdit(Editor):
    """Base class with the family's settings; `modules` are down-projections.

    `moments` are the keys' second moments, from `from_artifact` or `with_moments`. Each prompt is put into contexts: the model
    samples one for each of `context_lengths` (in tokens) after each of `context_words`, and the bare prompt is another, of
    weight `bare_share` (None: equal weights). `position` is the edit position, as in `Contexts`.
    """

    modules: tuple[str, ...] = ("mlp.down_proj",)
    _: KW_ONLY
    search: Search = field(default_factory=Search)
    context_words: tuple[str, ...] = ("The", "Therefore", "Because", "I", "You")
    context_lengths: tuple[int, ...] = (10,)
    bare_share: float | None = 0.5
    position: Position = "subject"
    seed: int = 0
    max_batch: int = 1000
    moments: Moments | None = field(default=None, compare=False, repr=False)

    single_matrix: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.position not in get_args(Position):
            raise ValueError(f"position is one of {', '.join(get_args(Position))}, not {self.position!r}")

    @abstractmethod
    def inverse_covariances(self, moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return P of each matrix before the first edit, [I, I] in fp64; changing the output for key k costs `kᵀ P⁻¹ k`."""

    @abstractmethod
    def write(
        self,
        model: LanguageModel,
        batch: EditBatch,
        state: EditorState,
        preconditioners: Mapping[str, KeyPreconditioner],
        penalties: Sequence[OrthogonalityPenalty] = (),
    ) -> WeightDelta:
        """Return the change of every matrix; `penalties` are added to the loss of the search for targets."""

    @property
    def past_weight(self) -> float:
        """The weight of past keys in P; 0 if none are remembered."""
        return 0.0

    @property
    def needs_moments(self) -> bool:
        return True

    def with_moments(self, moments: Moments) -> Self:
        return replace(self, moments=moments)

    @classmethod
    def from_artifact(cls, artifact: str | Path | None = None, preset: str | None = None, device: Any = "cpu") -> Self:
        """Build an editor with the moments of a folder; without a preset, it edits the matrices that these are of."""
        editor = cls() if preset is None else cls.preset(preset)
        if artifact is None:
            return editor
        moments = Moments.load(artifact, device)
        return replace(editor, moments=moments, modules=tuple(moments.by_input) if preset is None else editor.modules)

    def start(self, model: LanguageModel, spec: ModelSpec) -> EditorState:
        name = type(self).__name__
        check_modules(self.modules, model, spec)
        if self.single_matrix and len(spec.matrices) != 1:
            raise ValueError(f"{name} writes into one matrix, but its modules are {', '.join(spec.names)}")
        known = self.moments.by_input if self.moments is not None else {}
        if missing := [matrix for matrix in spec.names if self.needs_moments and matrix not in known]:
            raise ValueError(f"{name} needs the key moments of {', '.join(missing)}: give it the folder of jobs/moments.py")
        if self.position != "prompt":
            check_is_read(model, block_of(spec.names[-1]))
        texts = sample_contexts(model, self.context_words, self.context_lengths, self.seed)
        text_bytes = torch.tensor(list(json.dumps(texts).encode()), dtype=torch.uint8)
        return EditorState(0, {"contexts": text_bytes}, {"preconditioners": self._first_preconditioners(spec)})

    def edit(
        self, model: LanguageModel, batch: EditBatch, state: EditorState, cache: BatchCache | None = None
    ) -> tuple[WeightDelta, EditorState]:
        return self.edit_through(model, batch, state, lambda delta: delta, cache)

    def edit_through(
        self,
        model: LanguageModel,
        batch: EditBatch,
        state: EditorState,
        transform: Callable[[WeightDelta], WeightDelta],
        cache: BatchCache | None = None,
        penalties: Sequence[OrthogonalityPenalty] = (),
    ) -> tuple[WeightDelta, EditorState]:
        check_batch(batch, self.max_batch)
        preconditioners = self.preconditioners(model, batch, state)
        delta = transform(self.write(model, batch, state, preconditioners, penalties).on_devices_of(model.module))
        return self.remember(model, batch, state, preconditioners, delta)

    def preconditioners(self, model: LanguageModel, batch: EditBatch, state: EditorState) -> dict[str, KeyPreconditioner]:
        """Return the key preconditioners by matrix, with every past key of the state that the batch does not replace."""
        spec = find_matrices(model.module, self.modules)
        return preconditioners_for(batch, state, lambda: self.base_preconditioners(spec), self.past_weight)

    def base_preconditioners(self, spec: ModelSpec) -> dict[str, Tensor]:
        """Return P of each matrix before the first edit, none for an editor without moments."""
        if not self.needs_moments:
            return {}
        assert self.moments is not None
        return self.inverse_covariances({name: self.moments.by_input[name] for name in spec.names})

    def remember(
        self,
        model: LanguageModel,
        batch: EditBatch,
        state: EditorState,
        preconditioners: Mapping[str, KeyPreconditioner],
        delta: WeightDelta,
    ) -> tuple[WeightDelta, EditorState]:
        """Return `delta` and the state after it; keys are measured with the delta applied.

        Raises `EditRejected` if the delta is not finite.
        """
        if not delta.is_finite:
            raise EditRejected("the update is not finite", code=Code.NOT_FINITE)
        keys: dict[str, Tensor] = {}
        if self.past_weight:
            in_context = tokenise_at_subject(model, batch, self.contexts(state))
            with applied(model.module, delta), timed("capture"):
                keys = {n: in_context.mean(rows_BI) for n, rows_BI in inputs_at(model, in_context, tuple(delta.parts)).items()}
        return delta, next_state(state, batch.edits, preconditioners, keys, self.past_weight)

    def contexts(self, state: EditorState) -> Contexts:
        return Contexts(contexts_of(state), self.bare_share, self.position)

    def _first_preconditioners(self, spec: ModelSpec) -> dict[str, KeyPreconditioner]:
        return {name: KeyPreconditioner.start(base_II) for name, base_II in self.base_preconditioners(spec).items()}


def contexts_of(state: EditorState) -> tuple[str, ...]:
    return tuple(json.loads(bytes(state.tensors["contexts"].tolist())))


def block_of(name: str) -> str:
    """Return the block that contains a module: `model.layers.3` for `model.layers.3.mlp.down_proj`."""
    found = re.match(r"(.*?\.\d+)\.", name)
    if not found:
        raise ValueError(f"{name} is in no numbered block, whose output could be a target")
    return found[1]


def check_is_read(model: LanguageModel, block: str) -> None:
    """Raise `ValueError` for the last block: no later attention carries a change at the subject to the answer."""
    stem, _, index = block.rpartition(".")
    if int(index) == len(list(model.module.get_submodule(stem).children())) - 1:
        raise ValueError(
            f"{block} is the model's last block, where no later attention reads a change at the subject: edit earlier ones"
        )


@torch.no_grad()
def inputs_at(model: LanguageModel, in_context: EditPrompts, names: Sequence[str]) -> dict[str, Tensor]:
    """Return each module's input at the edit positions, [B, I] in fp32 at least."""
    found: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        return lambda _module, args: found.update({name: in_context.at_edit_position(args[0])})

    handles = [model.module.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    _forward(model, in_context, handles)
    return found


@torch.no_grad()
def output_at(model: LanguageModel, in_context: EditPrompts, name: str) -> Tensor:
    """Return a module's output at the edit positions, [B, O] in fp32 at least."""
    found: list[Tensor] = []

    def watch(_module: Any, _args: Any, output: Any) -> None:
        found.append(in_context.at_edit_position(output[0] if isinstance(output, tuple) else output))

    _forward(model, in_context, [model.module.get_submodule(name).register_forward_hook(watch)])
    return found[0]


def _forward(model: LanguageModel, in_context: EditPrompts, handles: Sequence[Any]) -> None:
    encoded = in_context.encoded
    try:
        model.module.base_model(input_ids=encoded.input_ids_BS, attention_mask=encoded.attention_mask_BS, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
