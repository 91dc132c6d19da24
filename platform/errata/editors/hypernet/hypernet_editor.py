"""Base of the hypernetwork editors: their hyper-parameters, the trained policy, its artifact, and the edit.

At edit time: one forward and one backward pass for the rows of keys and gradients, the network, and a solve with as many
unknowns as there are rows. With `num_passes` above one, this is repeated on the edited model, for what is still missing.
Remembers: the keys of past edits that no later one replaces, if `metric_strength` and `memory` are not zero; otherwise only
their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from errata.delta.parts import LowRank
from errata.delta.side_branch import applied
from errata.delta.weight_delta import WeightDelta, chained
from errata.edit import Code, Edit, EditBatch, EditRejected
from errata.editors.editor import check_batch, check_finite
from errata.editors.hypernet.net import NETWORKS, Hypernetwork, Network, Rule
from errata.editors.hypernet.reward import Reward
from errata.editors.normal_equations import NormalEquations
from errata.editors.past_keys import edits_by_answer, next_state, preconditioners_for
from errata.editors.solve import KeyGram, KeyPreconditioner, base_preconditioner
from errata.editors.state import EditorState
from errata.editors.trained_editor import TrainedEditor
from errata.model.capture import Captured, capture, joined
from errata.model.encoding import Encoded, encode_rows, split
from errata.model.key_moments import key_moment
from errata.model.language_model import LanguageModel
from errata.model.matrices import MatrixSpec, ModelSpec, find_matrices, input_sources
from errata.model.packing import Packed
from errata.model.prefix_cache import BatchCache
from errata.timing import timed


@dataclass(frozen=True)
class Policy:
    """The result of training: the network, and the base preconditioner `(c C + I)⁻¹` of each input."""

    net: Hypernetwork
    base_preconditioners: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class HypernetworkEditor(TrainedEditor[Policy]):
    """Base class: hyper-parameters and the trained policy.

    `modules` are patterns of module names. `first_step` and `first_ridge` set the scale that training starts from; None takes
    the published constants. `metric_strength` is c of the key preconditioner, 0 for the plain ridge solve, and `memory` is the
    weight of past keys in it. With `num_passes` above one, an edit is repeated on the edited model. `network` is what is
    trained beside step and ridge: `full`, the published blocks; `residual`, a departure of the gradients from the identity and
    a step for each row; or `identity`, nothing.
    """

    modules: tuple[str, ...] = ("mlp.down_proj",)
    _: KW_ONLY
    rank: int = 128
    num_blocks: int = 2
    centred: bool = False
    first_step: float | None = 0.5
    first_ridge: float | None = 0.1
    metric_strength: float = 0.0
    memory: float = 1.0
    num_passes: int = 1
    network: Network = "full"
    reward: Reward = field(default_factory=Reward)
    learning_rate: float = 3e-3
    max_batch: int = 1000
    policy: Policy | None = field(default=None, compare=False, repr=False)

    rule: ClassVar[Rule] = "solve"
    trains_on_sequences: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise ValueError(f"network is one of {', '.join(NETWORKS)}, not {self.network!r}")

    def initialised(
        self, model: LanguageModel, text: Sequence[Encoded], first: Iterable[EditBatch], seed: int, micro_batch: int = 0
    ) -> Self:
        """Return the editor with a new policy.

        The base preconditioners come from `text`, the normaliser from the batches `first`, and the first scales from the last
        of these. At most `micro_batch` texts are in one forward pass, or with 0 all of a batch.
        """
        spec, bases = find_matrices(model.module, self.modules), self.measure_preconditioners(model, text)
        net = self._new_network(spec, seed).to(model.device)
        captured: dict[str, Captured] = {}
        for batch in first:
            parts = split(encode_rows(model.renderer, batch.rows, model.device), micro_batch)
            captured = joined([capture(model.module, p, spec.names, all_tokens=self.rule == "outer")[0] for p in parts])
            net.observe(captured)
        if self.first_step is not None and self.first_ridge is not None:
            net.set_scale(
                captured, {n: KeyPreconditioner.start(b) for n, b in bases.items()}, self.first_step, self.first_ridge
            )
        return replace(self, policy=Policy(net, bases))

    def _new_network(self, spec: ModelSpec, seed: int) -> Hypernetwork:
        return Hypernetwork(spec, self.rank, self.num_blocks, self.centred, seed, self.rule, self.network)

    def measure_preconditioners(self, model: LanguageModel, text: Sequence[Encoded]) -> dict[str, Tensor]:
        """Measure the base preconditioner of each input on the keys of `text`; none with a `metric_strength` of 0."""
        if not self.metric_strength:
            return {}
        inputs = dict.fromkeys(input_sources(find_matrices(model.module, self.modules).names).values())
        moments = key_moment(model.module, text, tuple(inputs))
        return {name: base_preconditioner(moment_II, self.metric_strength) for name, moment_II in moments.items()}

    def with_preconditioners(self, bases: Mapping[str, Tensor]) -> Self:
        """Return the same policy with other base preconditioners, from `measure_preconditioners`."""
        return replace(self, policy=Policy(self.trained_policy().net, bases))

    def start(self, model: LanguageModel, spec: ModelSpec) -> EditorState:
        known = self.trained_policy().net.spec
        if known != spec:
            raise ValueError(f"the policy was trained for {known.matrices}, but the model has {spec.matrices}")
        return EditorState()

    def edit(
        self, model: LanguageModel, batch: EditBatch, state: EditorState, cache: BatchCache | None = None
    ) -> tuple[WeightDelta, EditorState]:
        net = self.trained_policy().net
        check_batch(batch, self.max_batch)
        cache = cache or BatchCache.of(model, net.spec.names, batch)
        encoded = cache.tokens
        if self.rule == "outer" and isinstance(encoded, Packed):  # Its rows are tokens before answers, too, which texts share.
            encoded = encode_rows(model.renderer, batch.rows, model.device)
        preconditioners = preconditioners_for(batch, state, lambda: self.trained_policy().base_preconditioners, self.memory)
        keys: dict[str, Tensor] = {}
        shared: dict[str, KeyGram] = {}
        grams: dict[str, KeyGram] = {}
        delta = WeightDelta({})
        for _ in range(self.num_passes):
            with cache.prefix.reusing(encoded), applied(model.module, delta):
                captured, nll_T = capture(model.module, encoded, net.spec.names, all_tokens=self.rule == "outer")
            check_finite(batch, encoded, captured, nll_T)
            keys = keys or {name: captured[name].keys_TI for name in preconditioners}
            with torch.no_grad(), timed("solve"):
                proposals = net.propose(captured, preconditioners, shared)
            grams = grams or {name: shared[name] for name in preconditioners}
            update = WeightDelta({name: LowRank(p.Z_nO.T, p.V_nI.T) for name, p in proposals.items()})
            delta = chained([delta, update])
        if not delta.is_finite:
            raise EditRejected("the update is not finite: the policy's numbers overflow", code=Code.NOT_FINITE)
        if any(rank > len(p.V_nI) for rank, p in zip(delta.ranks().values(), proposals.values(), strict=True)):
            # Several passes write at nearly the same keys, so that fewer factors represent their sum.
            delta = delta.compact()
        edits = edits_by_answer(batch, encoded.answer_lengths)
        after = next_state(state, edits, preconditioners, keys, self.memory, grams, len(batch))
        return delta.on_devices_of(model.module), after

    def normal_equations(self, model: LanguageModel) -> NormalEquations | None:
        """Return the equations of each matrix, given what the network asked for.

        None for sums of outer products, and for several passes at matrices with different inputs, whose later passes are at
        keys that the state does not hold.
        """
        net, sources = self.trained_policy().net, input_sources(find_matrices(model.module, self.modules).names)
        if self.rule == "outer" or (self.num_passes > 1 and len(set(sources.values())) > 1):
            return None

        def edits_of_rows(batch: EditBatch) -> list[Edit]:
            return edits_by_answer(batch, encode_rows(model.renderer, batch.rows, model.device).answer_lengths)

        bases = self.trained_policy().base_preconditioners
        recovered = frozenset[str]() if bases and self.memory else frozenset(sources)
        ridges = {name: net.log_ridge(name).detach() for name in sources}
        return NormalEquations(
            ridges, sources, self.memory if bases else 0.0, lambda: bases, edits_of_rows, recovered, "changes"
        )

    def save(self, directory: str | Path, record: Mapping[str, Any]) -> None:
        policy = self.trained_policy()
        tensors = {f"net|{k}": v for k, v in policy.net.state_dict().items()}
        tensors |= {f"metric|{k}": v for k, v in policy.base_preconditioners.items()}
        matrices = [asdict(matrix) for matrix in policy.net.spec.matrices]
        self.write(directory, tensors, {"matrices": matrices, "record": record})

    @classmethod
    def load(cls, directory: str | Path, device: Any = "cpu") -> Self:
        tensors, about = cls.read(directory, device)
        editor = cls(**about["fields"] | {"reward": Reward(**about["fields"]["reward"])})
        net = editor._new_network(ModelSpec(tuple(MatrixSpec(**matrix) for matrix in about["matrices"])), seed=0).to(device)
        net.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("net|")})
        return replace(editor, policy=Policy(net, {k[7:]: v for k, v in tensors.items() if k.startswith("metric|")}))
