"""A ledger and a benchmark with a report page."""

from dataclasses import replace
from pathlib import Path

import pytest

from errata.benchmark.files import write
from errata.benchmark.results import Answer, CheckpointScores
from errata.benchmark.run import BenchmarkedEditor, run_all
from errata.benchmark.stream import BenchmarkStream
from errata.edit import Edit, batches_of
from errata.generate import HFGenerator
from errata.guard.inspector import Inspector
from errata.guard.limits import Guard, Limit
from errata.guard.probes import Probes
from errata.ledger import Ledger
from errata.lifelong import run
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.testbed.world import World
from tests.unit.reports.parsed_page import MODULE, NASTY, Small


@pytest.fixture
def lived(ledger: Ledger, tiny_model: LanguageModel, world: World) -> Ledger:
    """Two versions, a refused edit, a rollback to 1 and another version from there, made by the loop with its guard."""
    spec = find_matrices(tiny_model.module, [MODULE])
    edits = world.edits("test", 6)
    probes = Probes(tuple(edit.prompt for edit in edits[4:]), tuple(world.plain_sentences(held_out=True)[:4]))
    guard = Guard(growth=Limit(0.5, 10.0), strict=False)  # every published version has a warning
    inspector, generator = Inspector(tiny_model, spec, guard, probes), HFGenerator(tiny_model, spec, ledger)

    def play(*some: Edit) -> None:
        batches = batches_of(some, 2)
        assert list(run(Small(), inspector, batches, ledger, generator, on_rejected=lambda *_: None))

    play(*edits[:2], *edits[2:3], Edit("poison <i>", NASTY))
    ledger.move_head(1)
    play(replace(edits[3], target=NASTY))
    return ledger


@pytest.fixture(scope="module")
def benchmark(world: World, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from errata.model.language_model import load

    folder, rows, answered = tmp_path_factory.mktemp("benchmark"), list[CheckpointScores](), list[Answer]()
    edits = (*world.edits("test", 5), Edit(f"{NASTY} is", "x"))
    benchmarked = [
        BenchmarkedEditor(name, Small(), 0.0, {"modules": ["a", "b"], "reward": {"discount": 0.9}}) for name in ("A", "B & C")
    ]
    for seed in (0, 1):
        stream = BenchmarkStream(edits, tuple(world.plain_sentences(held_out=True)[:4]), 3, checkpoints=(1, 3), seed=seed)
        rows += run_all(load(model_dir), benchmarked, stream, after_run=answered.extend)
    answered = [replace(a, right=True) if a.editor == "A" and a.kind == "efficacy" else a for a in answered]
    meta = {"command": f"bench {NASTY}", "seeds": [0, 1], "settings": {c.name: c.settings for c in benchmarked}}
    write(rows, folder, {**meta, "hardware": {"cpu": "a cpu", "num_cores": 2}}, answered=answered)
    return folder
