"""RLEdit: a hypernetwork trained by reinforcement learning over whole edit sequences.

Paper: RLEdit (arXiv 2502.05759), on MALMEN's network (2311.04661). Equations: net.py, episode.py, ../solve.py.
Deviations: docs/rledit.md. Beyond the paper: `metric_strength` and `memory`, a key preconditioner from the base model's keys
and those of past edits.
Remembers: the keys of past edits, if the preconditioner is used; otherwise only their number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from errata.editors.hypernet.hypernet_editor import HypernetworkEditor


@dataclass(frozen=True, kw_only=True)
class RLEdit(HypernetworkEditor):
    """RLEdit; unlike the published method, it uses a key preconditioner by default."""

    metric_strength: float = 1000.0

    trains_on_sequences: ClassVar[bool] = True
