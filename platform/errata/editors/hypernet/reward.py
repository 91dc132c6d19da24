"""Settings of a training episode: its reward, and its use of device memory."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Reward:
    """The reward of an episode; symbols as in the paper.

    With `backtrack_uniform` the k earlier batches are drawn from the whole episode instead of being the last ones, because old
    edits are forgotten first. `edit_weight` scales CE. With `score_prompts`, CE counts the edit prompts and their rephrasings,
    else the rephrasings alone. `departure_penalty` weighs how far a residual network departs from the identity in each update;
    other networks do not depart. `portability_weight` scales the CE of the edits' consequences, their probes `portability`, so
    that an update is rewarded for what follows from it (as in PropMEND, 2506.08920); the paper has none.
    """

    discount: float = 1.0  # gamma
    backtrack_decay: float = 0.95  # mu
    backtrack_depth: int = 10  # k, without the current batch; the paper counts it
    update_penalty: float = 1e-4  # eta
    locality_weight: float = 0.6  # c
    backtrack_uniform: bool = False
    edit_weight: float = 1.0
    score_prompts: bool = True
    departure_penalty: float = 0.01
    portability_weight: float = 0.0

    def backtracked(self, t: int, generator: random.Random) -> list[int]:
        """Return the batches that step t is scored on: its own, then up to k earlier ones."""
        earlier = list(range(t - 1, -1, -1))
        depth = min(t, self.backtrack_depth)
        return [t, *(generator.sample(earlier, depth) if self.backtrack_uniform else earlier[:depth])]

    def earliest(self, t: int) -> int:
        """Return the earliest batch that step t, or a later one, may be scored on."""
        return 0 if self.backtrack_uniform else max(0, t - self.backtrack_depth)


@dataclass(frozen=True)
class MemoryOptions:
    """Options that save device memory in training. They cost time, and change values by rounding alone; docs/device_memory.md.

    `micro_batch` is the most texts of one forward and backward pass, 0 for all of a batch. `recompute` is activation
    checkpointing, of the network and of the blocks behind the prefix cache. `on_host` keeps in the host's memory what is kept
    as long as a batch can be scored: prefix caches and the base model's log-probabilities.
    """

    micro_batch: int = 0
    recompute: bool = False
    on_host: bool = False

    def __post_init__(self) -> None:
        if self.micro_batch < 0:
            raise ValueError(f"micro_batch is a number of texts, or 0 for all of a batch, not {self.micro_batch}")


FOR_LARGE_MODELS = MemoryOptions(micro_batch=64, recompute=True)  # For the plans of real models.
