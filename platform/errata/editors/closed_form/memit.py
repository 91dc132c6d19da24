"""MEMIT: a batch of facts, each spread over several layers, with a ridge given by the second moment of the model's keys.

Paper: MEMIT (arXiv 2210.07229). Equations: multi_layer.py with A = λ C. With `memory` 1, past keys protect earlier batches
(the sequential variant of AlphaEdit's authors); with 0, as published, no key is remembered.
Deviations: the targets of a batch are found together; contexts are seeded; `eos` ends the answer.
EMMET (arXiv 2403.14236) in its published code is MEMIT with λ the product of its two weights.
Remembers: the contexts and, unless `memory` is 0, the keys of past edits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from errata.editors.closed_form.moments import inverse
from errata.editors.closed_form.multi_layer import MultiLayerEditor


@dataclass(frozen=True, kw_only=True)
class MEMIT(MultiLayerEditor):
    """MEMIT; `moment_weight` is λ, `memory` the weight of past keys.

    `floor` is added to the diagonal of λ C, because moments of too little text have no inverse. With `num_passes` above one the
    same targets are written again for what is still missing, as RLEdit repeats its step; published is one.
    """

    moment_weight: float = 15_000.0
    floor: float = 0.0
    memory: float = 0.0
    num_passes: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_passes < 1:
            raise ValueError(f"num_passes is at least 1, not {self.num_passes}")

    @property
    def passes(self) -> int:
        return self.num_passes

    @property
    def past_weight(self) -> float:
        return self.memory

    def inverse_covariances(self, moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: inverse(C_II, self.moment_weight, self.floor) for name, C_II in moments.items()}
