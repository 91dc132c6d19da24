"""The GPU benchmark at a tiny size in bf16: every editor, its report, and that it needs only torch and transformers."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_edits
from benchmarks.device_rates import Rates, Work, counted
from benchmarks.gpu_8b import GpuSettings, checked, command_of, main, parsed
from benchmarks.gpu_edits import PARTS, STARTS, GpuEditBenchmark, ready_policy
from benchmarks.gpu_swaps import SAVINGS, check_checkpoint, measure_swaps
from benchmarks.random_llama import PROBES, REPHRASINGS, SIZES, made_edits, make_language_model
from benchmarks.sized_training import Texts
from errata.delta.parts import LowRank
from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, EditBatch, EditRejected
from errata.editors import EDITORS, EditorState
from errata.model.encoding import encode
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from jobs.arguments import from_arguments

ROOT = Path(__file__).parents[3]
TINY = SIZES["tiny"]
RATES = Rates(1, {"bf16": 2.0, "fp32": 1.0, "fp64": 0.5}, copy_gb_s=10.0, host_to_device_gb_s=None)

WITHOUT_FRAMEWORKS = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"ray", "vllm", "mlflow", "jobs", "serving", "pyarrow", "fastapi"}:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
from benchmarks.gpu_8b import main
sys.argv = ["gpu_8b", *sys.argv[1:]]
main()
"""


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return make_language_model(TINY, torch.device("cpu"), seed=0)


def run_tiny(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_FRAMEWORKS, "--size=tiny", *arguments]
    environment = {**os.environ, "ERRATA_HOME": str(home), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.long
def test_every_editor_is_measured_without_any_framework(tmp_path: Path) -> None:
    done = run_tiny(tmp_path, "--batches=2,3", "--repeats=1", "--seed=1")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "bench-gpu" / "report.json").read_text())
    assert report["command"] == "make bench-gpu ARGS='--size=tiny --batches=2,3 --repeats=1 --seed=1'"
    assert report["hardware"]["gpu"] is None and "say nothing about a GPU" in report["note"]
    assert report["rates"]["tflops"].keys() == {"bf16", "fp32", "fp64"} and report["rates"]["copy_gb_s"] > 0
    assert [(row["editor"], row["batch"]) for row in report["rows"]] == [(name, n) for name in STARTS for n in (2, 3)]
    for row in report["rows"]:
        assert row["error"] is None, row
        assert row["ms_per_edit"] == pytest.approx(sum(row[f"{part}_ms"] for part in PARTS))
        assert row["edits_per_s"] == pytest.approx(1e3 / row["ms_per_edit"]) and row["ms_min"] <= row["ms_max"]
        assert (row["network_ms"] > 0) == row["editor"].startswith("RLEdit")
        assert (row["targets_ms"] > 0) == (row["editor"] in {"AlphaEdit", "MEMIT"})
        assert min(row["solve_ms"], row["merge_ms"], row["floor_ms"], row["peak_gib"], row["start_s"]) > 0
        assert row["times_floor"] == pytest.approx((row["ms_per_edit"] - row["merge_ms"]) / row["floor_ms"])
    assert [trained["savings"] for trained in report["training"]] == ["as planned for 8B", "none"]
    assert all(trained["error"] is None and trained["seconds"] > 0 for trained in report["training"])
    assert len(report["swaps"]) == 3 and all(swap["seconds"] > 0 for swap in report["swaps"])
    assert len(report["checks"]) == 7 and all(check["holds"] is None for check in report["checks"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--size=8b"], "needs a CUDA GPU.*--size tiny"),
        (["--size=70b"], "no size is named '70b'; there are 8b, tiny"),
        (["--size=tiny", "--editors=RLEdit,ROMA"], "no editor here is named ROMA; there are RLEdit"),
        (["--size=tiny", "--batches=20,0"], "numbers from 1"),
        (["--size=tiny", "--batches=many"], "many"),
        (["--size=tiny", "--repeats=0"], "numbers from 1"),
        (["--size=tiny", "--checkpoint=tests"], "holds no .*safetensors"),
    ],
)
def test_impossible_settings_are_refused_by_the_command(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        parsed(arguments)
    assert ended.value.code == 2
    assert re.search(says, capsys.readouterr().err.replace("\n", " "))


def test_the_command_in_the_report_gives_the_same_settings() -> None:
    settings = parsed(["--size=tiny", "--batches=4", "--editors=MEMIT,RLEdit", "--tf32"])
    assert settings == GpuSettings("tiny", (4,), editors=("MEMIT", "RLEdit"), tf32=True)
    arguments = command_of(settings).partition("'")[2].rstrip("'").split()
    assert parsed(arguments) == settings


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (torch.OutOfMemoryError("no room"), "out of memory"),
        (EditRejected("is too much", edit=3, code=Code.EDITOR_FAILED), "edit 3: is too much"),
        (RuntimeError("CUDA error: none\nand how to find out"), "CUDA error: none"),
    ],
)
def test_work_that_does_not_fit_is_a_row(
    model: LanguageModel, fault: Exception, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = GpuEditBenchmark(model, TINY, RATES, repeats=1, seed=0)

    def fail(*_: Any) -> Any:
        raise fault

    monkeypatch.setitem(STARTS, "RLEdit", fail)
    assert [row["error"] for row in bench.rows("RLEdit", (2, 3))] == [says, says]

    def start_failing(model: LanguageModel, *_: Any) -> Any:
        editor = STARTS["UltraEdit"](model, TINY, 0)[0]
        monkeypatch.setattr(type(editor), "edit", fail)
        return editor, EditorState()

    monkeypatch.setitem(STARTS, "RLEdit", start_failing)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    (row,) = bench.rows("RLEdit", (2,))
    assert row["error"] == says and row["ms_per_edit"] is None and row.keys() >= gpu_edits.BLANK.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())


def test_the_large_model_is_that_of_the_papers() -> None:
    size = SIZES["8b"]
    module = make_language_model(size, torch.device("meta"), seed=0).module
    assert sum(parameter.numel() for parameter in module.parameters()) == 8_030_261_248
    assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
    for editor, patterns in (("RLEdit", size.learned), ("UltraEdit", size.ultra), ("AlphaEdit", size.spread)):
        assert find_matrices(module, patterns) == find_matrices(module, EDITORS[editor].preset("llama3_8b").modules)
    assert find_matrices(module, size.tuned).matrices[0].shape == (4096, 14336)


def test_the_model_is_restored(model: LanguageModel) -> None:
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    bench = GpuEditBenchmark(model, TINY, RATES, repeats=2, seed=0)
    (row,) = bench.rows("RLEdit-metric", (3,))
    assert row["error"] is None and bench.last_delta is not None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())


def test_products_are_counted_forward_and_where_a_gradient_goes(model: LanguageModel) -> None:
    editor = ready_policy(model, TINY, 0, 0.0)
    batch = EditBatch(tuple(made_edits(3, 0)))
    encoded = encode(model.renderer, batch.prompts, [edit.target for edit in batch])
    with counted(model.module) as work:
        editor.edit(model, batch, EditorState())
    block = {name: m for name, m in model.module.model.layers[0].named_modules() if isinstance(m, torch.nn.Linear)}
    weights = sum(m.weight.numel() for m in block.values())
    past_gate_up = block["mlp.down_proj"].weight.numel()
    num_tokens, num_answers = encoded.input_ids_BS.numel(), len(encoded.targets_T)
    head = TINY.hidden * TINY.vocabulary
    forward = 2 * (num_tokens * TINY.layers * weights + num_answers * head)
    backward = 2 * (num_tokens * ((TINY.layers - 4) * weights + past_gate_up) + num_answers * head)
    assert work.dtype == "bf16" and work.flops == forward + backward
    assert work.num_bytes == 2 * ((2 * TINY.layers - 4) * weights + past_gate_up + 2 * head)


def test_the_floor_is_the_longer_of_products_and_bytes() -> None:
    assert RATES.floor_s(Work("bf16", flops=4e12, network_flops=1e12, num_bytes=1e9)) == pytest.approx(3.0)
    assert RATES.floor_s(Work("bf16", flops=4e12, num_bytes=1e11)) == pytest.approx(10.0)


def test_claims_are_checked_at_full_size_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    row = {"editor": "RLEdit", "batch": 100, "edits_per_s": 100.0, "solve_share": 0.02}
    rows = [row, {**row, "batch": 20, "edits_per_s": 1.0}, {**row, "editor": "LocFT", "edits_per_s": 1.0}]
    found = checked(rows, [{"peak_gib": 70.0}], GpuSettings())
    assert [check["holds"] for check in found] == [True, True, False, True]
    assert found[0]["found"] == pytest.approx(75.16, abs=0.01)
    nothing = {**row, "edits_per_s": None, "solve_share": None}
    assert [check["holds"] for check in checked([nothing], [{"peak_gib": None}], GpuSettings())] == [False] * 4
    assert {check["holds"] for check in checked(rows, [{"peak_gib": 70.0}], GpuSettings("tiny"))} == {None}


def test_training_is_measured_with_the_options_of_large_models() -> None:
    assert (
        SAVINGS["as planned for 8B"]
        == from_arguments(["plan=llama3_8b"]).savings
        == from_arguments(["plan=malmen_gpt_j"]).savings
    )
    (edit,) = made_edits(1, 0, REPHRASINGS, PROBES)
    assert (len(edit.rephrasings), len(edit.locality)) == (Texts().rephrasings, Texts().probes)


def a_delta() -> WeightDelta:
    name = f"model.{TINY.learned[0]}"
    return WeightDelta({name: LowRank(torch.ones(TINY.intermediate, 2), torch.ones(TINY.hidden, 2))})


def test_weights_are_loaded_from_disk_too(model: LanguageModel, tmp_path: Path) -> None:
    model.module.save_pretrained(tmp_path)
    check_checkpoint(model, str(tmp_path))
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    swaps = measure_swaps(model, a_delta(), 1, str(tmp_path))
    kinds = [swap["swap"].partition(",")[0] for swap in swaps]
    assert kinds == ["delta", "delta from host memory", "all weights", "all weights"]
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.module.parameters())
    assert swaps[-1]["num_bytes"] == size_bytes and swaps[0]["num_bytes"] == a_delta().num_bytes
    assert all(math.isfinite(swap["seconds"]) and swap["seconds"] > 0 for swap in swaps)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())


def damaged(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no tensors")


def of_another(folder: Path) -> None:
    make_language_model(replace(TINY, layers=2), torch.device("cpu"), 0).module.save_pretrained(folder)


@pytest.mark.parametrize(("make", "says"), [(damaged, "cannot be read"), (of_another, "no checkpoint of this architecture")])
def test_another_checkpoint_is_refused_before_anything_is_measured(
    make: Callable[[Path], None], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gpu_8b", "--size=tiny", f"--checkpoint={tmp_path}"])
    with pytest.raises(SystemExit, match=says):
        main()
