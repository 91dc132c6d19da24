"""Trained memories: a network that makes their records, its training over any number of workers, and its artifact.

A training step averages the gradients of several batches, divided among the workers. A batch depends on seed, step and its
number alone, so that any number of workers trains the same network.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from errata.edit import Edit
from errata.editors.editor import check_modules
from errata.editors.trained_editor import TrainedEditor
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec

NUM_SAMPLED = 4096  # tokens, on which the scale of the embeddings is measured


@dataclass(frozen=True)
class TrainedMemory(TrainedEditor[Any], ABC):
    """Base class: hyper-parameters and the trained network. The memory holds all that reading it needs, without the network."""

    modules: tuple[str, ...] = ("layers.3.mlp.down_proj",)
    _: KW_ONLY
    learning_rate: float = 1e-3
    max_batch: int = 1000
    policy: Any = field(default=None, compare=False, repr=False)

    writes: ClassVar[Literal["weights", "memory"]] = "memory"

    @abstractmethod
    def network(self, hidden: int, seed: int, spread: float = 1.0) -> nn.Module:
        """Build an initialised network for a model of so many dimensions, whose embeddings have this standard deviation."""

    @abstractmethod
    def losses(self, model: LanguageModel, batch: Sequence[Edit], generator: torch.Generator) -> dict[str, Tensor]:
        """Return the losses of a batch by name; training descends on their sum."""

    def initialised(self, model: LanguageModel, seed: int) -> Self:
        """Return the editor with a new network."""
        embedding = model.module.get_input_embeddings()
        with torch.no_grad():
            sample_ND = embedding(torch.arange(min(NUM_SAMPLED, embedding.num_embeddings), device=model.device)).float()
        return replace(self, policy=self.network(hidden_size(model), seed, float(sample_ND.std())).to(model.device))

    def check_policy(self, model: LanguageModel, spec: ModelSpec) -> None:
        """Raise `ValueError` if the network was not trained, or was trained for a model of another size."""
        check_modules(self.modules, model, spec)
        if (hidden := self.trained_policy().hidden) != hidden_size(model):
            raise ValueError(f"the policy was trained for {hidden} dimensions, but the model has {hidden_size(model)}")

    def save(self, directory: str | Path, record: Mapping[str, Any]) -> None:
        policy = self.trained_policy()
        self.write(directory, policy.state_dict(), {"matrices": [], "hidden": policy.hidden, "record": record})

    @classmethod
    def load(cls, directory: str | Path, device: Any = "cpu") -> Self:
        tensors, about = cls.read(directory, device)
        editor = cls(**about["fields"])
        policy = editor.network(about["hidden"], seed=0)
        policy.load_state_dict(tensors)
        return replace(editor, policy=policy.to(device))


def hidden_size(model: LanguageModel) -> int:
    """Return the number of dimensions of the input embeddings."""
    return int(model.module.get_input_embeddings().weight.shape[1])


class MemoryTrainer:
    """The optimiser of a network and the progress of its training. The network of `editor` is trained in place."""

    def __init__(
        self, editor: TrainedMemory, model: LanguageModel, edits: Sequence[Edit], length: tuple[int, int, int], seed: int
    ) -> None:
        """Take the number of steps, of batches for each, and of edits in a batch as `length`."""
        self.num_steps, self.num_batches, self.batch_size = length
        if len(edits) < self.batch_size:
            raise ValueError(f"a batch needs {self.batch_size} different edits, but the stream has {len(edits)}")
        self.editor, self.model, self.edits, self.seed = editor, model, edits, seed
        self.net = editor.trained_policy()
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=editor.learning_rate)
        self.train_step = 0

    def step(
        self, rank: int = 0, num_workers: int = 1, sum_up: Callable[[Sequence[Tensor]], None] = lambda tensors: None
    ) -> dict[str, float]:
        """Compute this worker's batches and take one optimiser step. `sum_up` adds tensors over the workers, in place.

        Returns the mean losses of all workers' batches; raises on every worker if one is not finite.
        """
        self.optimizer.zero_grad()
        losses = [self._backward(number) for number in range(rank, self.num_batches, num_workers)]
        grads = [parameter.grad for parameter in self.net.parameters() if parameter.grad is not None]
        totals = torch.tensor([sum(each[name] for each in losses) for name in losses[0]]).to(grads[0])
        sum_up([*grads, totals])
        for tensor in (*grads, totals):
            tensor /= self.num_batches
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        share = 0.55 + 0.45 * math.cos(math.pi * self.train_step / max(1, self.num_steps))
        self.optimizer.param_groups[0]["lr"] = self.editor.learning_rate * share
        self.optimizer.step()
        self.train_step += 1
        means = dict(zip(losses[0], totals.tolist(), strict=True))
        if not all(math.isfinite(value) for value in means.values()):
            raise FloatingPointError(f"train_step {self.train_step}: losses {means} are not finite; lower learning_rate")
        return means

    def _backward(self, number: int) -> dict[str, float]:
        seed = (self.seed * 1_000_003 + self.train_step) * self.num_batches + number
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.edits), generator=generator)[: self.batch_size]
        with torch.enable_grad():
            losses = self.editor.losses(self.model, [self.edits[int(i)] for i in order], generator)
            torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        return {name: float(loss.detach()) for name, loss in losses.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "train_step": self.train_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.train_step = state["train_step"]
