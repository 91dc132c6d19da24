"""Everything that would stop a service is found before it starts, one line each that says what to give instead."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from errata.editors.build import make_editor, matrices_of, outline
from errata.editors.closed_form.moments import Moments
from errata.editors.hypernet.rledit import RLEdit
from errata.ledger import Ledger
from errata.local.preflight import STANDARD_NAME, StartSettings, machine_problems, port_problems, problems_of
from errata.model.checkpoint import headers, matrix_names, without_prefix
from errata.model.language_model import LanguageModel
from errata.model.matrices import editable_matrices
from tests.editors_under_test import learned
from tests.tiny_models import ARCHITECTURES, make_tiny, save_tiny

DOWN = "model.layers.0.mlp.down_proj"
MODULES = {"modules": "layers.0.mlp.down_proj"}


def moments(folder: Path, *names: str, size: int = 96) -> str:
    Moments({name: torch.eye(size) for name in names}, {"model": "tiny"}).save(folder)
    return str(folder)


@pytest.fixture
def start(model_dir: Path, tmp_path: Path) -> StartSettings:
    return StartSettings(str(model_dir), str(tmp_path / "ledger"), "FT-L", settings=MODULES)


def test_nothing_is_wrong_with_what_starts(start: StartSettings, tmp_path: Path) -> None:
    measured = moments(tmp_path / "moments", DOWN)
    for right in (
        start,
        replace(start, editor="ROME", artifact=measured),
        replace(start, editor="ROME", artifact=measured, settings={}),
        replace(start, editor="R-ROME", settings={**MODULES, "use_moments": "False"}),
        replace(start, editor="RECT/AlphaEdit", artifact=measured, settings={"kept": "0.5"}),
        replace(start, editor="FT-L", settings={"modules": "mlp.down_proj,layers.*.mlp.up_proj", "epsilon": "inf"}),
        replace(start, editor="FT-L", settings={"modules": "model.layers.1.self_attn.o_proj"}),
        replace(start, guard={"perplexity.refuse": "2", "perplexity.warn": "1.9", "num_questions": "3"}),
        replace(start, editor="own.package:Editor", settings={"anything": "1"}),
        replace(start, model=""),
    ):
        assert problems_of(right) == [], right


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"model": "/none"}, r"model: /none is no folder.*give the folder"),
        ({"dtype": "float33"}, r"dtype: 'float33' .*give one of float32, bfloat16, float16"),
        ({"dtype": "int8"}, "dtype: 'int8'"),
        ({"device": "gpu"}, "device: 'gpu' is not a device: give cpu"),
        ({"editor": "ROMEO"}, "editor: no editor is named 'ROMEO'; known are .*R-ROME"),
        ({"editor": "FT-L/ROME"}, "does not wrap another editor"),
        ({"preset": "llama4"}, "preset: .*no preset 'llama4'; there are"),
        ({"artifact": "/none"}, "artifact: FTL needs no artifact: leave out /none"),
        ({"editor": "ROME", "artifact": "/none"}, "artifact: /none is no artifact: .*jobs/moments.py"),
        ({"editor": "RLEdit", "settings": {}, "artifact": "/none"}, "artifact: /none holds no RLEdit policy .*jobs/train.py"),
        (
            {"editor": "ROME"},
            "artifact: ROME needs the key moments of model.layers.0.mlp.down_proj: give the folder that `python ",
        ),
        ({"probes": "/none"}, "probes: the probes /none cannot be read"),
        ({"keys": "/none"}, "keys: the file of keys /none cannot be read"),
        ({"ledger": "/dev/null/none"}, "ledger: /dev/null/none cannot be written.*give another folder"),
        ({"guard": {"perplexity.refuse": "high"}}, "guard: perplexity.refuse: 'high' is not of type float"),
        ({"guard": {"perplexty.refuse": "1"}}, "guard: .*did you mean perplexity"),
        ({"guard": {"drift.warn": "0.9"}}, "guard: the warning level 0.9 .* must not exceed"),
        ({"settings": {"epsilon": "x"}}, r"settings.epsilon: 'x' is not of type float; give 0.0005, for example"),
        ({"settings": {"epsilom": "1"}}, "settings.epsilom: FTL has no field 'epsilom'.*did you mean epsilon"),
        (
            {"settings": {"modules": ""}},
            r"settings.modules: '' has an empty part; give .* such as modules=layers.0.mlp.down_proj",
        ),
        ({"settings": {"modules": "layers.1.mlp.down_prj"}}, r"settings.modules: .*: give modules=layers.1.mlp.down_proj$"),
        ({"settings": {"modules": "layers.9.mlp.down_proj"}}, r"settings.modules: .*: give modules=layers.\d.mlp.down_proj$"),
        (
            {"settings": {"modules": "model.layer.1.mlp.down_proj"}},
            r"settings.modules: .*: give modules=layers.1.mlp.down_proj$",
        ),
        (
            {"settings": {"modules": "wte"}},
            "settings.modules: no linear module of the model is named wte; what can be edited: ",
        ),
        ({"settings": {"modules": "lm_head"}}, "settings.modules: no linear module of the model is named lm_head"),
        (
            {"editor": "R-ROME", "settings": {"modules": "mlp.down_proj", "use_moments": "False"}},
            "settings.modules: RROME writes into one matrix, .*give one, modules=layers.0.mlp.down_proj",
        ),
        (
            {"editor": "R-ROME", "settings": {"modules": "layers.1.mlp.down_proj", "use_moments": "False"}},
            "settings.modules: layers.1.mlp.down_proj is in the model's last block.*modules=layers.0.mlp.down_proj",
        ),
        (
            {"editor": "R-ROME", "settings": {**MODULES, "context_lengths": "ten"}},
            "settings.context_lengths: 'ten' .*of type int",
        ),
        (
            {"editor": "R-ROME", "settings": {**MODULES, "context_lengths": ""}},
            "settings.context_lengths: '' has an empty part",
        ),
    ],
)
def test_what_is_wrong_is_a_line_with_its_field_and_a_value(start: StartSettings, change: dict[str, Any], line: str) -> None:
    found = problems_of(replace(start, **change))
    assert [one for one in found if re.match(line, one) or re.search(line, one)], found
    assert all("\n" not in one for one in found)


def test_all_problems_are_listed(start: StartSettings) -> None:
    settings = {"modules": "layers.1.mlp.down_prj", "epsilon": "x", "seed": "one"}
    wrong = replace(start, dtype="f", settings=settings, guard={"a": "1", "drift.warn": "x"}, probes="/none", keys="/none")
    fields = [line.partition(":")[0] for line in problems_of(wrong)]
    assert sorted(fields) == sorted(
        ["dtype", "guard", "guard", "probes", "keys", "settings.epsilon", "settings.seed", "settings.modules"]
    )


def test_elsewhere_only_what_needs_no_file_is_checked(start: StartSettings) -> None:
    there = replace(
        start, model="/none", artifact="/none", probes="/none", keys="/none", ledger="/dev/null/none", editor="ROME"
    )
    assert problems_of(there, is_here=False) == []
    found = problems_of(replace(there, settings={"seed": "one"}, preset="llama4"), is_here=False)
    assert [line.partition(":")[0] for line in found] == ["preset"]
    found = problems_of(replace(there, settings={"seed": "one"}, device="gpu"), is_here=False)
    assert [line.partition(":")[0] for line in found] == ["device", "settings.seed"]


def test_moments_must_be_of_the_models_matrices(start: StartSettings, tmp_path: Path) -> None:
    rome = replace(start, editor="ROME", settings={})
    (line,) = problems_of(replace(rome, artifact=moments(tmp_path / "a", "model.layers.9.mlp.down_proj")))
    assert line.startswith("artifact: ") and "is of model.layers.9.mlp.down_proj, which this model does not have" in line
    (line,) = problems_of(replace(rome, artifact=moments(tmp_path / "b", DOWN, size=32)))
    assert "of 32 x 32, and this model's is 64 x 96: give the model that it was made on" in line
    (line,) = problems_of(replace(rome, artifact=moments(tmp_path / "c", DOWN), settings={"modules": "layers.0.mlp.up_proj"}))
    assert "needs the key moments of model.layers.0.mlp.up_proj" in line
    cut = Path(moments(tmp_path / "d", DOWN)) / "moments.safetensors"
    cut.write_bytes(cut.read_bytes()[:-8])
    (line,) = problems_of(replace(rome, artifact=str(cut.parent)))
    assert "moments.safetensors has" in line and "it is cut" in line


def test_a_policy_must_be_of_the_editor_and_fit_the_model(
    tiny_model: LanguageModel, start: StartSettings, tmp_path: Path
) -> None:
    learned(RLEdit((DOWN,), rank=4))(tiny_model).save(tmp_path / "policy", {"model": "tiny"})
    right = replace(start, editor="RLEdit", artifact=str(tmp_path / "policy"), settings={})
    assert problems_of(right) == []
    (line,) = problems_of(replace(right, editor="MALMEN"))
    assert line.startswith("artifact: ") and "holds no MALMEN policy (it is of RLEdit)" in line
    (line,) = problems_of(replace(right, settings={"rank": "3"}))
    assert line == "settings: RLEdit was trained with its settings: leave out rank, or train another policy"
    record = tmp_path / "policy" / "artifact.json"
    record.write_text(record.read_text().replace('"num_in": 96', '"num_in": 95'))
    (line,) = problems_of(right)
    assert "of 64 x 95, and this model's is 64 x 96" in line
    (tmp_path / "policy" / "policy.safetensors").unlink()
    (line,) = problems_of(right)
    assert "policy.safetensors cannot be read" in line


def test_an_outline_is_the_editor_without_its_tensors(tmp_path: Path) -> None:
    measured = moments(tmp_path / "m", DOWN)
    for name in ("ROME", "RECT/MEMIT", "AlphaEdit"):
        whole, outlined = make_editor(name, measured), outline(name, measured)
        assert whole == outlined and whole.modules == (DOWN,)
    assert outline("FT-L", settings={"epsilon": "1"}) == make_editor("FT-L", settings={"epsilon": "1"})
    assert matrices_of(measured) == {DOWN: (96, 96)}


def test_a_ledger_over_another_model_is_named(start: StartSettings, tmp_path: Path) -> None:
    Ledger.create(start.ledger, {"model": "another", "fingerprint": "f", "matrices": ["m"]})
    (line,) = problems_of(start)
    assert line == f"ledger: the ledger in {start.ledger} is over another, not {start.model}: give that model, or a new folder"


def test_a_quantised_model_is_one_line(start: StartSettings, model_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_dir, tmp_path / "fp8"))
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": "fp8"}}
    (folder / "config.json").write_text(json.dumps(config))
    (line,) = problems_of(replace(start, model=str(folder)))
    assert line.startswith(f"model: {folder} is a quantised checkpoint (config.json has quantization_config (fp8))")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has GPUs")
def test_missing_gpus_are_a_line(start: StartSettings) -> None:
    assert machine_problems(start) == []
    (line,) = machine_problems(replace(start, device="cuda"))
    assert line.startswith("device: there is no device cuda: torch")
    (line,) = machine_problems(replace(start, gpus=1, replicas=2))
    assert line.startswith(
        "gpus: 2 replicas with 1 GPUs each and the editor on cpu need 2, and this machine has 0: give gpus=0"
    )


def test_a_port_that_is_taken_is_a_line_with_a_free_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (line,) = port_problems("127.0.0.1", {"port": port})
        assert re.fullmatch(
            rf"port: another process listens on port {port} of 127.0.0.1: end it, or give another, such as \d+", line
        )
        free = int(line.rpartition(" ")[2])
    assert list(port_problems("127.0.0.1", {"port": port, "ray": free})) == []


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_headers_name_every_editable_matrix(name: str, tmp_path: Path) -> None:
    """Patterns are found without making the model; names need no renaming if all are standard ones."""
    found, there = matrix_names(headers(save_tiny(name, tmp_path))), editable_matrices(make_tiny(name).module).names
    assert set(map(without_prefix, there)) <= set(map(without_prefix, found))
    is_standard = all(map(STANDARD_NAME.fullmatch, found))
    assert is_standard == (name not in ("gemma3-wrapped", "gpt-j", "gpt-2", "phi"))
    assert not is_standard or set(there) == set(found)


def test_a_wrong_name_of_a_matrix_is_found_without_transformers(start: StartSettings) -> None:
    """The import alone takes seconds."""
    code = f"""
import sys
from errata.local.preflight import StartSettings, problems_of
print(*problems_of(StartSettings({start.model!r}, editor="R-ROME", settings={{"modules": "wte", "use_moments": "False"}})))
assert "transformers" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    kinds = (f"model.layers.*.{matrix}" for matrix in ARCHITECTURES["llama3"].matrices)
    said = "settings.modules: no linear module of the model is named wte; what can be edited: "
    assert done.stdout.startswith(said) and set(done.stdout.removeprefix(said).strip().split(", ")) == set(kinds)
