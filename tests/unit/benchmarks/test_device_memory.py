"""The count of memory at a tiny size: against tensors with values, the effect of each memory option, and the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.accounting import Accounting, fakes
from benchmarks.device_memory import main, run, serving_rows
from benchmarks.memory_check import Check
from benchmarks.sized_training import PARTS, Texts, count_episode, model_of, scored_once
from errata.editors.hypernet.reward import MemoryOptions
from jobs.arguments import from_arguments
from jobs.plan import Plan

TINY = Check(4, 64, 128, 256, batches=2, batch_size=4, texts=Texts(2, 3, 12, 2))


def plan_of(model_dir: Path) -> Plan:
    return from_arguments(
        ["plan=tiny", f"model={model_dir}", "schedule.batches=2", "savings.micro_batch=4", "savings.recompute=True"]
    )


@pytest.mark.parametrize("numbers", [False, True], ids=["without numbers", "with numbers"])
def test_bytes_are_counted_while_they_are_referenced(numbers: bool) -> None:
    device = "cpu" if numbers else "meta"
    with fakes() if not numbers else torch.enable_grad(), Accounting(device, named_by={7: "wide"}) as accounting:
        one = torch.zeros(100, 100, device=device)
        view, two = one[:10].T, one @ one
        assert accounting.now_bytes == accounting.peak_bytes == 80_000
        del one
        assert accounting.now_bytes == 80_000, "a view holds all of it"
        del view
        assert (accounting.now_bytes, accounting.peak_bytes) == (40_000, 80_000)
        held = {"two": [two]}
        accounting.owners = lambda: held
        wide = torch.zeros(3, 7, device=device)
        assert accounting.parts() == {"two": 40_000, "wide": 84}
        del wide, two
        held.clear()
        assert accounting.now_bytes == 0


@pytest.mark.parametrize(
    "savings",
    [MemoryOptions(micro_batch=4, recompute=True), pytest.param(MemoryOptions(), marks=pytest.mark.long)],
    ids=["with options", "without"],
)
def test_the_count_equals_that_of_a_run_with_values(model_dir: Path, savings: MemoryOptions) -> None:
    plan = TINY.plan(plan_of(model_dir), savings)
    without, having = (count_episode(plan, TINY.texts, TINY.make, device) for device in ("meta", "cpu"))
    # Some values are always in host memory: with the CPU as the device, they count, too.
    assert without.start_bytes == pytest.approx(having.start_bytes, abs=100)
    assert without.peak_bytes == pytest.approx(having.peak_bytes, rel=0.05)


@pytest.mark.long
def test_scoring_a_batch_again_needs_no_more(model_dir: Path) -> None:
    plan = TINY.plan(plan_of(model_dir), MemoryOptions())
    once, again = (count_episode(each, TINY.texts, TINY.make) for each in (scored_once(plan), plan))
    assert once.peak_bytes == pytest.approx(again.peak_bytes, rel=0.01)


@pytest.mark.long
def test_each_memory_option_saves_its_part(model_dir: Path) -> None:
    def counted(savings: MemoryOptions) -> dict[str, int]:
        found = count_episode(TINY.plan(plan_of(model_dir), savings), TINY.texts, TINY.make)
        return {part: found.parts.get(part, 0) for part in PARTS} | {"peak": found.peak_bytes}

    whole = counted(MemoryOptions())
    split, again, away = (
        counted(MemoryOptions(micro_batch=4)),
        counted(MemoryOptions(recompute=True)),
        counted(MemoryOptions(on_host=True)),
    )
    assert whole["prefix caches"] and whole["base log-probs"] and whole["network's graph"]
    assert split["model's graph"] < 0.8 * whole["model's graph"]
    assert again["network's graph"] < 0.5 * whole["network's graph"]
    assert away["prefix caches"] == away["base log-probs"] == 0
    assert max(split["peak"], again["peak"], away["peak"]) < whole["peak"]


def test_memory_of_an_editor_in_service_is_counted_by_part(model_dir: Path) -> None:
    plan = plan_of(model_dir)
    rows = {(row["where"], row["what"]): row["gib"] * 2**30 for row in serving_rows(plan, Texts(answers=2), batch_sizes=(4,))}
    assert rows["edit worker", "its metric, in fp64"] == 8 * 96**2  # one matrix of 64 x 96
    assert rows["edit worker", "their fp32 sums"] == rows["edit worker", "base of the edited matrices"] == 4 * 64 * 96
    assert rows["edit worker", "keys of 1,000 past edits, in fp32"] == 4 * 2000 * 96
    assert rows["edit worker", "the same whitened, in fp64"] == 8 * 49 * 96, "half the in-features, then they are folded"
    assert rows["edit worker", "a batch of 4 edits, at most"] > 0
    assert rows["replica, in host memory", "base of the edited matrices and their partners"] == 4 * 64 * 96


@pytest.mark.long
def test_the_report_has_every_memory_option_and_the_check(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    path = run(plan_of(model_dir), TINY.texts, TINY, "a command")
    report = json.loads(path.read_text())
    assert path == tmp_path / "bench-memory" / "report.json" and report["command"] == "a command"
    ways = [(row["micro_batch"], row["recompute"], row["on_host"]) for row in report["rows"]]
    assert ways == [(0, False, False), (4, False, False), (0, True, False), (0, False, True), (4, True, False), (4, True, True)]
    for row in report["rows"]:
        assert row["peak_gib"] == pytest.approx(79.0 - row["left_gib"]) and row["peak_gib"] > row["model"] > 0
    assert [row["counted_bytes"] > 0 and row["resident_bytes"] > 0 for row in report["check"]] == [True] * 2
    assert {row["where"] for row in report["serving"]} == {"edit worker", "replica, in host memory"}


def test_a_missing_model_is_named() -> None:
    plan = from_arguments(["plan=tiny", "model=somewhere/else"])
    with pytest.raises(ValueError, match=r"needs somewhere/else/config.json: name the model's folder, model=PATH"):
        model_of(plan, "cpu")
    with pytest.raises(ValueError, match="no plan is named"):
        main(["plan=none"])
    with pytest.raises(ValueError, match="has no field 'lines'"):
        main(["texts.lines=3"])
