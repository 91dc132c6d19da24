"""A process that queues, makes and settles edits in a folder without end, and says on its output what is durable by then."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from errata.delta.parts import LowRank
from errata.delta.weight_delta import WeightDelta
from errata.edit import Edit
from errata.editors.state import EditorState
from errata.ledger import Ledger
from serving.worker.journal import Journal

MATRIX = "model.layers.0.mlp.down_proj"
BASE = {"model": "m", "fingerprint": "base", "matrices": [MATRIX]}


def say(*words: object) -> None:
    print(*words, flush=True)


def main(folder: Path) -> None:
    ledger, journal = Ledger.create(folder / "ledger", BASE, snapshot_every=4), Journal(folder / "ledger.journal")
    for number in range(1, 1_000_000):
        (id,) = journal.submit([{"prompt": f"prompt {number}", "target": "t"}])
        say("accepted", id)
        (entry,) = journal.take(1)
        delta = WeightDelta({MATRIX: LowRank(torch.full((64, 1), float(number)), torch.ones(96, 1))})
        edit = Edit(entry.edit["prompt"], "t", id=entry.id)
        version = ledger.append(ledger.head, delta, EditorState(number), (edit,), {}, ("E", "p"))
        say("made", version.number)
        journal.finish([id], version.number)
        say("applied", id)
        if number % 5 == 0:
            ledger.move_head(version.number - 2)
            say("moved", version.number - 2)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
