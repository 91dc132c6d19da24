"""RLEdit: a hypernetwork trained over whole edit sequences; at edit time one forward, one backward and a dual solve.

Paper: RLEdit (arXiv 2502.05759), on MALMEN's network (2311.04661). Equations: net.py, trajectory.py, ../solve.py.
Deviations: docs/rledit.md. Beyond the paper: `metric_strength`, updates in the metric of the base model's keys and past edits.
Remembers: the keys of past edits, where the metric is used; otherwise only their number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from errata.capture import Captured, capture, key_moment
from errata.delta import LowRank, WeightDelta, applied, chained
from errata.edit import EditBatch, EditRejected
from errata.editors.editor import Editor, EditorState
from errata.editors.hypernet.net import Hypernetwork
from errata.editors.hypernet.trajectory import Reward
from errata.editors.solve import Metric, metric_base
from errata.encode import Encoded, encode
from errata.model import LanguageModel, MatrixSpec, ModelSpec, find_matrices


@dataclass(frozen=True)
class Policy:
    """What training makes: the network, and the fixed part of each matrix's metric, `(c C + I)⁻¹`."""

    net: Hypernetwork
    metric_bases: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class RLEdit(Editor):
    """Hyper-parameters, and the trained policy.

    `modules` are patterns of module names. `first_step` and `first_ridge` set the scale that training starts from, or None
    for the published constants. `metric_strength` is c of the metric, 0 for the plain ridge solve. With `num_passes` above
    one, an edit is repeated on the model that it left, and what is still missing is written.
    """

    modules: tuple[str, ...] = ("mlp.down_proj",)
    rank: int = 128
    num_blocks: int = 2
    centred: bool = False
    first_step: float | None = 0.5
    first_ridge: float | None = 0.1
    metric_strength: float = 1000.0
    num_passes: int = 1
    reward: Reward = field(default_factory=Reward)
    learning_rate: float = 3e-3
    max_batch: int = 1000
    policy: Policy | None = field(default=None, compare=False, repr=False)

    @classmethod
    def published(cls, **fields: Any) -> RLEdit:
        """The published settings: plain ridge from η=1e-6 and λ=1, standardised rows, rank 1024, 4 blocks, lr 1e-5."""
        published = cls(
            modules=("layers.*.mlp.gate_proj", "layers.*.mlp.up_proj"),
            rank=1024,
            num_blocks=4,
            centred=True,
            first_step=None,
            first_ridge=None,
            metric_strength=0.0,
            reward=Reward(discount=1.0, backtrack_decay=0.95, backtrack_depth=10, update_penalty=1e-4, locality_weight=0.6),
            learning_rate=1e-5,
        )
        return replace(published, **fields)

    def untrained(self, model: LanguageModel, text: Sequence[Encoded], first: Iterable[EditBatch], seed: int) -> RLEdit:
        """With a new policy: the metric from `text`, the normaliser and first scales from the batches `first`."""
        spec = find_matrices(model.module, self.modules)
        bases: dict[str, Tensor] = {}
        if self.metric_strength > 0:
            moments = key_moment(model.module, text, spec.names)
            bases = {name: metric_base(moment_II, self.metric_strength) for name, moment_II in moments.items()}
        net = Hypernetwork(spec, self.rank, self.num_blocks, self.centred, seed).to(model.device)
        captured: dict[str, Captured] = {}
        for batch in first:
            encoded = encode(model.tokenizer, batch.prompts, batch.targets, model.device)
            captured, _ = capture(model.module, encoded, spec.names)
            net.observe(captured)
        if self.first_step is not None and self.first_ridge is not None:
            net.set_scale(captured, {n: Metric.start(b) for n, b in bases.items()}, self.first_step, self.first_ridge)
        return replace(self, policy=Policy(net, bases))

    def trained_policy(self) -> Policy:
        if self.policy is None:
            raise ValueError("RLEdit has no trained policy: load one with RLEdit.load(artifact), or train one (jobs/train.py)")
        return self.policy

    def start(self, model: LanguageModel, spec: ModelSpec) -> EditorState:
        known = self.trained_policy().net.spec
        if known != spec:
            raise ValueError(f"the policy was trained for {known.matrices}, the model offers {spec.matrices}")
        return EditorState()

    def _metrics(self, state: EditorState) -> dict[str, Metric]:
        metrics = {name: Metric.start(base_II) for name, base_II in self.trained_policy().metric_bases.items()}
        return {n: metric.remember(state.tensors[n]) if n in state.tensors else metric for n, metric in metrics.items()}

    def edit(self, model: LanguageModel, batch: EditBatch, state: EditorState) -> tuple[WeightDelta, EditorState]:
        net = self.trained_policy().net
        if not 1 <= len(batch) <= self.max_batch:
            raise EditRejected(f"a batch holds 1 to {self.max_batch} edits, not {len(batch)}", field="edits")
        encoded = encode(model.tokenizer, batch.prompts, batch.targets, model.device)
        metrics = self._metrics(state)
        keys: dict[str, Tensor] = {}
        delta = WeightDelta({})
        for _ in range(self.num_passes):
            with applied(model.module, delta):
                captured, nll_T = capture(model.module, encoded, net.spec.names)
            _check_finite(batch, encoded, captured, nll_T)
            keys = keys or {name: rows.keys_TI for name, rows in captured.items()}
            with torch.no_grad():
                proposals = net.propose(captured, metrics)
            written = WeightDelta({name: LowRank(p.Z_nO.T, p.V_nI.T) for name, p in proposals.items()})
            delta = chained([delta, written])
        if not delta.is_finite:
            raise EditRejected("the update is not finite: the policy's numbers overflow")
        if self.num_passes > 1:  # the passes write at nearly the same keys: fewer factors hold them
            delta = delta.compact()
        past = {name: torch.cat([metric.past_mI.float(), keys[name]]) for name, metric in metrics.items()}
        return delta, EditorState(state.num_edits + len(batch), past)

    def save(self, directory: str | Path, record: Mapping[str, Any]) -> None:
        """The policy as an artifact; `record` is how it was made: plan, seed, training curve, model."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        policy = self.trained_policy()
        tensors = {f"net|{k}": v for k, v in policy.net.state_dict().items()}
        tensors |= {f"metric|{k}": v for k, v in policy.metric_bases.items()}
        save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, str(directory / "policy.safetensors"))
        fields = {k: v for k, v in asdict(replace(self, policy=None)).items() if k != "policy"}
        matrices = [asdict(matrix) for matrix in policy.net.spec.matrices]
        text = json.dumps({"editor": "RLEdit", "fields": fields, "matrices": matrices, "record": record}, indent=1)
        (directory / "artifact.json").write_text(text)

    @classmethod
    def load(cls, directory: str | Path, device: Any = "cpu") -> RLEdit:
        """An editor with its policy, from `save`. Raises `ValueError` if the folder holds none."""
        path = Path(directory) / "artifact.json"
        if not path.exists():
            raise ValueError(f"{directory} holds no RLEdit artifact (no artifact.json); train one with jobs/train.py")
        description = json.loads(path.read_text())
        fields = description["fields"]
        fields |= {"modules": tuple(fields["modules"]), "reward": Reward(**fields["reward"])}
        editor = cls(**fields)
        tensors = load_file(str(Path(directory) / "policy.safetensors"), device=str(device))
        spec = ModelSpec(tuple(MatrixSpec(**matrix) for matrix in description["matrices"]))
        net = Hypernetwork(spec, editor.rank, editor.num_blocks, editor.centred, seed=0).to(device)
        net.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("net|")})
        return replace(editor, policy=Policy(net, {k[7:]: v for k, v in tensors.items() if k.startswith("metric|")}))


def _check_finite(batch: EditBatch, encoded: Encoded, captured: Mapping[str, Captured], nll_T: Tensor) -> None:
    """Raise `EditRejected` naming the first edit at whose answer the model's numbers are not finite."""
    finite_T = torch.isfinite(nll_T)
    for rows in captured.values():
        finite_T &= torch.isfinite(rows.keys_TI).all(1) & torch.isfinite(rows.grads_TO).all(1)
    if not finite_T.all():
        index = int(encoded.predicts_BS.nonzero()[:, 0][~finite_T][0])
        raise EditRejected("the model's keys, gradients or loss are not finite here", edit=batch.edits[index].id or index)
