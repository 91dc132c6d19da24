"""Settings of an episode's reward and of its memory use."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Reward:
    """What an episode is scored by; symbols as in the paper.

    With `backtrack_uniform` the k earlier batches are drawn from all of the episode instead of being the last ones: in a long
    sequence it is the old edits that are forgotten. `edit_weight` scales CE, `score_prompts` says whether it counts the edit
    prompts or their rephrasings alone.
    """

    discount: float = 1.0  # gamma
    backtrack_decay: float = 0.95  # mu
    backtrack_depth: int = 10  # k, without the current batch; the paper counts it
    update_penalty: float = 1e-4  # eta
    locality_weight: float = 0.6  # c
    backtrack_uniform: bool = False
    edit_weight: float = 1.0
    score_prompts: bool = True

    def backtracked(self, t: int, generator: random.Random) -> list[int]:
        """The batches that step t is scored on: itself, then up to k earlier ones."""
        earlier = list(range(t - 1, -1, -1))
        depth = min(t, self.backtrack_depth)
        return [t, *(generator.sample(earlier, depth) if self.backtrack_uniform else earlier[:depth])]

    def earliest(self, t: int) -> int:
        """The earliest batch that a step may be scored on from `t` on."""
        return 0 if self.backtrack_uniform else max(0, t - self.backtrack_depth)


@dataclass(frozen=True)
class MemoryOptions:
    """How an episode spares the device's memory. It takes time, and changes values by rounding alone; docs/memory.md.

    `micro_batch` is the most texts of one pass and its gradient, 0 for all of a batch's. With `recompute` what gradients need
    is made again when they do: the network's inner values, and those of the blocks behind the trunk. With `on_host` what
    stays as long as a batch can be scored lies in the host's memory: its trunk, and the base model's log-probabilities.
    """

    micro_batch: int = 0
    recompute: bool = False
    on_host: bool = False

    def __post_init__(self) -> None:
        if self.micro_batch < 0:
            raise ValueError(f"micro_batch is a number of texts, or 0 for all of a batch's, not {self.micro_batch}")


FOR_LARGE_MODELS = MemoryOptions(micro_batch=64, recompute=True)  # of the plans of real models, and measured by benchmarks
