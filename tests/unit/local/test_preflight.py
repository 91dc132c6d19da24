"""Everything that would stop a service is found before it starts, one line each that says what to give instead."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from errata.editors.build import make_editor, matrices_of, outline
from errata.editors.closed_form.moments import Moments
from errata.editors.fine_tuning.ftl import FTL
from errata.editors.hypernet.rledit import RLEdit
from errata.ledger import Ledger
from errata.local.matrix_check import STANDARD_NAME
from errata.local.models import ready
from errata.local.preflight import StartSettings, address_problems, machine_problems, problems_of
from errata.model import gguf
from errata.model.checkpoint import headers, matrix_names, without_prefix
from errata.model.language_model import LanguageModel, checkpoint_fingerprint
from errata.model.matrices import editable_matrices
from errata.testbed import smollm2
from tests.editors_under_test import learned
from tests.tiny_models import ARCHITECTURES, make_tiny, save_tiny

DOWN = "model.layers.0.mlp.down_proj"
MODULES = {"modules": "layers.0.mlp.down_proj"}


def lines(start: StartSettings, is_here: bool = True) -> list[str]:
    return list(map(str, problems_of(start, is_here)))


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
        *(replace(start, editor=name) for name in ("state", "SCR", "IKE", "answer")),
        replace(start, editor=f"{__name__}:Own", settings={"strength": "1"}),
        replace(start, model=""),
    ):
        assert lines(right) == [], right


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"model": "/none"}, r"model: /none is no folder.*give the folder"),
        ({"dtype": "float33"}, r"dtype: 'float33' .*give one of float32, bfloat16, float16"),
        ({"dtype": "int8"}, "dtype: 'int8'"),
        ({"device": "gpu"}, "device: 'gpu' is not a device: give cpu"),
        ({"editor": "ROMEO"}, "editor: no editor is named 'ROMEO'; known are .*R-ROME"),
        ({"editor": "FT-L/ROME"}, "does not wrap another editor"),
        ({"editor": "RECT/state", "settings": {}}, "editor: RECT/state keeps its edits in a memory, .*, such as RLEdit"),
        ({"editor": f"{__name__}:OwnMemory", "settings": {}}, "OwnMemory keeps its edits in a memory .*`errata bench`"),
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
        ({"limits": {"max_stream": "1"}}, "limits: max_stream: ServiceLimits has no field .*did you mean max_streams"),
        ({"limits": {"body_timeout_s": "0"}}, "limits: body_timeout_s: 0.0 is not a number of seconds above 0; give 10"),
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
    found = lines(replace(start, **change))
    assert [one for one in found if re.match(line, one) or re.search(line, one)], found
    assert all("\n" not in one for one in found)


def test_all_problems_are_listed(start: StartSettings) -> None:
    settings = {"modules": "layers.1.mlp.down_prj", "epsilon": "x", "seed": "one"}
    wrong = replace(start, dtype="f", settings=settings, guard={"a": "1", "drift.warn": "x"}, probes="/none", keys="/none")
    fields = [line.partition(":")[0] for line in lines(wrong)]
    assert sorted(fields) == sorted(
        ["dtype", "guard", "guard", "probes", "keys", "settings.epsilon", "settings.seed", "settings.modules"]
    )


def test_elsewhere_only_what_needs_no_file_is_checked(start: StartSettings) -> None:
    there = replace(
        start, model="/none", artifact="/none", probes="/none", keys="/none", ledger="/dev/null/none", editor="ROME"
    )
    assert lines(there, is_here=False) == []
    found = lines(replace(there, settings={"seed": "one"}, preset="llama4"), is_here=False)
    assert [line.partition(":")[0] for line in found] == ["preset"]
    found = lines(replace(there, settings={"seed": "one"}, device="gpu"), is_here=False)
    assert [line.partition(":")[0] for line in found] == ["device", "settings.seed"]


def test_moments_must_be_of_the_models_matrices(start: StartSettings, tmp_path: Path) -> None:
    rome = replace(start, editor="ROME", settings={})
    (line,) = lines(replace(rome, artifact=moments(tmp_path / "a", "model.layers.9.mlp.down_proj")))
    assert line.startswith("artifact: ") and "is of model.layers.9.mlp.down_proj, which this model does not have" in line
    (line,) = lines(replace(rome, artifact=moments(tmp_path / "b", DOWN, size=32)))
    assert "of 32 x 32, and this model's is 64 x 96: give the model that it was made on" in line
    (line,) = lines(replace(rome, artifact=moments(tmp_path / "c", DOWN), settings={"modules": "layers.0.mlp.up_proj"}))
    assert "needs the key moments of model.layers.0.mlp.up_proj" in line
    cut = Path(moments(tmp_path / "d", DOWN)) / "moments.safetensors"
    cut.write_bytes(cut.read_bytes()[:-8])
    (line,) = lines(replace(rome, artifact=str(cut.parent)))
    assert "moments.safetensors has" in line and "it is cut" in line


def test_a_policy_must_be_of_the_editor_and_fit_the_model(
    tiny_model: LanguageModel, start: StartSettings, tmp_path: Path
) -> None:
    learned(RLEdit((DOWN,), rank=4))(tiny_model).save(tmp_path / "policy", {"model": "tiny"})
    right = replace(start, editor="RLEdit", artifact=str(tmp_path / "policy"), settings={})
    assert lines(right) == []
    (line,) = lines(replace(right, editor="MALMEN"))
    assert line.startswith("artifact: ") and "holds no MALMEN policy (it is of RLEdit)" in line
    (line,) = lines(replace(right, settings={"rank": "3"}))
    assert line == "settings: RLEdit was trained with its settings: leave out rank, or train another policy"
    record = tmp_path / "policy" / "artifact.json"
    record.write_text(record.read_text().replace('"num_in": 96', '"num_in": 95'))
    (line,) = lines(right)
    assert "of 64 x 95, and this model's is 64 x 96" in line
    (tmp_path / "policy" / "policy.safetensors").unlink()
    (line,) = lines(right)
    assert "policy.safetensors cannot be read" in line


def test_an_outline_is_the_editor_without_its_tensors(tmp_path: Path) -> None:
    measured = moments(tmp_path / "m", DOWN)
    for name in ("ROME", "RECT/MEMIT", "AlphaEdit"):
        whole, outlined = make_editor(name, measured), outline(name, measured)
        assert whole == outlined and whole.modules == (DOWN,)
    assert outline("FT-L", settings={"epsilon": "1"}) == make_editor("FT-L", settings={"epsilon": "1"})
    assert matrices_of(measured) == {DOWN: (96, 96)}


def test_a_ledger_over_another_base_is_named(start: StartSettings, tmp_path: Path) -> None:
    weights = checkpoint_fingerprint(start.model)
    held = {"model": start.model, "fingerprint": weights, "matrices": [DOWN]}
    Ledger.create(start.ledger, held)
    assert lines(start) == []
    others: list[tuple[dict[str, Any], str]] = [
        ({"model": "another"}, f"is over another, not {start.model}: give that model, or another ledger"),
        ({"fingerprint": "f"}, rf"is over other weights \(SHA-256 f\) than .* has now \({weights[:12]}\): give the folder"),
        (
            {"matrices": [DOWN, "model.layers.0.mlp.up_proj"]},
            rf"holds edits of {DOWN}, .*, and this editor changes {DOWN}: give",
        ),
    ]
    for number, (other, says) in enumerate(others):
        folder = str(tmp_path / f"ledger-{number}")
        Ledger.create(folder, held | other)
        (line,) = lines(replace(start, ledger=folder))
        assert line.startswith(f"ledger: the ledger in {folder} ") and re.search(says, line), line


def test_weights_that_take_long_to_read_are_left_to_the_service(start: StartSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    Ledger.create(start.ledger, {"model": start.model, "fingerprint": "f", "matrices": [DOWN]})
    assert len(lines(start)) == 1
    monkeypatch.setattr("errata.local.preflight.MAX_DIGESTED_BYTES", 1000)
    assert lines(start) == []


@pytest.mark.parametrize("name", ["gemma3-wrapped", "gpt-2", "phi"])
def test_the_ledger_of_a_model_with_names_of_its_own_is_taken(name: str, tmp_path: Path) -> None:
    folder, there = save_tiny(name, tmp_path / "m"), editable_matrices(make_tiny(name).module)
    pattern = there.names[0].rpartition(".")[2]
    own = [one for one in there.names if one.endswith(f".{pattern}")]
    start = StartSettings(str(folder), str(tmp_path / "ledger"), "FT-L", settings={"modules": pattern})
    Ledger.create(start.ledger, {"model": str(folder), "fingerprint": checkpoint_fingerprint(folder), "matrices": own})
    assert lines(start) == []
    (line,) = lines(replace(start, settings={"modules": there.names[0]}))
    assert "and this editor changes" in line


def test_a_quantised_model_is_one_line(start: StartSettings, model_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_dir, tmp_path / "fp8"))
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": "fp8"}}
    (folder / "config.json").write_text(json.dumps(config))
    (line,) = lines(replace(start, model=str(folder)))
    assert line.startswith(f"model: {folder} is a quantised checkpoint (config.json has quantization_config (fp8))")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has GPUs")
def test_missing_gpus_are_a_line(start: StartSettings) -> None:
    assert machine_problems(start) == []
    (line,) = map(str, machine_problems(replace(start, device="cuda")))
    assert line.startswith("device: there is no device cuda: torch")
    (line,) = map(str, machine_problems(replace(start, gpus=1, replicas=2)))
    assert line.startswith(
        "gpus: 2 replicas with 1 GPUs each and the editor on cpu need 2, and this machine has 0: give gpus=0"
    )


def test_an_address_that_cannot_be_used_is_a_line_with_another() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (line,) = map(str, address_problems("127.0.0.1", port, has_keys=False))
        assert re.fullmatch(
            rf"port: another process listens on port {port} of 127.0.0.1: end it, or give another, such as \d+", line
        )
        free = int(line.rpartition(" ")[2])
    assert not address_problems("127.0.0.1", port, has_keys=False) and not address_problems("127.0.0.1", free, has_keys=False)
    (line,) = map(str, address_problems("192.0.2.1", port, has_keys=True))
    assert line == "host: '192.0.2.1' is no address of this machine: give 127.0.0.1, or 0.0.0.0 for all of its addresses"
    (line,) = map(str, address_problems("0.0.0.0", port, has_keys=False))
    assert line.startswith("keys: without keys the service listens only on this machine")


@dataclass(frozen=True)
class Own(FTL):
    """An operator's editor, which must not be made by a check."""

    strength: float = 1.0

    def __post_init__(self) -> None:
        raise AssertionError("it is made")


class OwnMemory(Own):
    """An operator's editor that keeps its edits in a memory."""

    writes = "memory"


@pytest.mark.parametrize(
    ("editor", "settings", "says"),
    [
        ("nope.mod:Class", {}, r"editor: the module 'nope.mod' of nope.mod:Class cannot be imported \(ModuleNotFoundError: No"),
        (":Class", {}, r"editor: the module '' of :Class cannot be imported"),
        (f"{__name__}:Mine", {}, r"editor: the module .* has no class 'Mine' that is an Editor; it has .*Own.*: give package"),
        (f"{__name__}:Path", {}, ".*has no class 'Path' that is an Editor"),
        (f"{__name__}:Own", {"strenth": "2"}, "settings.strenth: Own has no field 'strenth'; it has modules, .*"),
    ],
)
@pytest.mark.parametrize("model", [True, False])
def test_an_operators_own_editor_is_looked_for_but_not_made(
    start: StartSettings, editor: str, settings: dict[str, str], says: str, model: bool
) -> None:
    own = replace(start, editor=editor, settings=settings, model=start.model if model else "")
    (line,) = lines(own)
    assert re.match(says, line), line
    assert lines(own, is_here=False) == []


def test_a_module_that_fails_at_its_import_is_one_line(
    start: StartSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_editor.py").write_text("raise RuntimeError('two\\nlines')")
    monkeypatch.syspath_prepend(tmp_path)
    (line,) = lines(replace(start, editor="failing_editor:Mine", settings={}))
    assert "(RuntimeError: two lines)" in line


@pytest.mark.parametrize("model", ["smollm2-135m-instruct", "FILE.gguf"])
def test_a_model_that_is_yet_to_be_made_is_not_made_and_the_rest_is_checked(
    model: str, start: StartSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(smollm2, "check", lambda: None)
    monkeypatch.setattr(gguf, "find_spec", lambda name: name)
    (tmp_path / "FILE.gguf").write_bytes(gguf.MAGIC)
    model = str(tmp_path / model) if model.endswith("gguf") else model
    assert ready(model) == "" and lines(replace(start, model=model)) == []
    fields = [line.partition(":")[0] for line in lines(replace(start, model=model, settings={"epsilon": "x"}, probes="/none"))]
    assert sorted(fields) == ["probes", "settings.epsilon"] and not (tmp_path / "home").exists()


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
