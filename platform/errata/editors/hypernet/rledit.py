"""RLEdit: a hypernetwork trained by reinforcement over whole edit sequences.

Paper: RLEdit (arXiv 2502.05759), on MALMEN's network (2311.04661). Equations: net.py, trajectory.py, ../solve.py.
Deviations: docs/rledit.md. Beyond the paper: `metric_strength` and `memory`, updates in the metric of the base model's keys and
of past edits.
Remembers: the keys of past edits, where the metric is used; otherwise only their number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from errata.editors.hypernet.hypernet_editor import HypernetworkEditor


@dataclass(frozen=True)
class RLEdit(HypernetworkEditor):
    metric_strength: float = 1000.0

    trains_on_sequences: ClassVar[bool] = True
