"""Plans: numbers of workers and GPUs, and which fields change the artifact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from errata.editors.hypernet.reward import MemoryOptions
from jobs.arguments import from_arguments
from jobs.plans import recipe, serac, tiny
from jobs.training_data import check_data


def test_missing_gpus_are_refused_on_one_machine_and_not_on_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    plan = replace(tiny(), use_gpu=True, num_workers=3, gpus_per_worker=40)
    with pytest.raises(ValueError, match=r"needs 120 GPUs, and torch finds .* on this machine: submit it to a cluster"):
        plan.check_gpus()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    plan.check_gpus()


@pytest.mark.parametrize("wrong", [["use_gpu=True", "gpus_per_worker=0"], ["gpus_per_worker=2"]])
def test_gpus_per_worker_need_use_gpu(wrong: list[str]) -> None:
    with pytest.raises(ValueError, match="gpus_per_worker is at least 1, and above it with use_gpu=True"):
        from_arguments(["plan=tiny", *wrong])


def test_memory_options_do_not_change_the_artifact() -> None:
    plan = from_arguments(["plan=tiny"])
    spared = from_arguments(["plan=tiny", "savings.micro_batch=8", "savings.recompute=True"])
    assert spared.savings == MemoryOptions(micro_batch=8, recompute=True) and spared.digest() == plan.digest()
    assert from_arguments(["plan=llama3_8b"]).savings.recompute
    with pytest.raises(ValueError, match="micro_batch is a number of texts"):
        from_arguments(["plan=tiny", "savings.micro_batch=-1"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["num_workers=0"], "num_workers is at least 1, not 0"),
        (["min_workers=3"], "min_workers is at most num_workers=2"),
        (["min_workers=-1"], "or 0, not -1"),
    ],
)
def test_impossible_numbers_of_workers_are_refused(arguments: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        from_arguments(["plan=tiny", *arguments])


def test_min_workers_do_not_change_the_artifact(home: Path) -> None:
    """A second submit may name another number."""
    plan = from_arguments(["plan=tiny", "min_workers=3", "num_workers=4"])
    assert replace(plan, min_workers=1).artifact_dir == plan.artifact_dir == replace(plan, min_workers=0).artifact_dir


def test_plans_of_memories_have_an_artifact_each_and_no_hypernetwork(home: Path, tmp_path: Path) -> None:
    assert recipe().artifact_dir != replace(recipe(), seed=1).artifact_dir
    assert recipe().digest() != serac().digest()
    assert tiny().hypernetwork == tiny().editor
    with pytest.raises(ValueError, match="plan serac trains SERAC, and a hypernetwork editor is needed here"):
        _ = serac().hypernetwork
    edits = tmp_path / "edits.jsonl"
    edits.write_text('{"prompt": "The capital of Australia is", "target": "Canberra"}\n')
    check_data(replace(serac(), dataset="any", edits=str(edits)))  # It needs no sentences: it measures no preconditioner.
