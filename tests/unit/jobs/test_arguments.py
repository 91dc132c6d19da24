"""Arguments of the jobs: wrong ones are named, in process; one job shows that the process ends with that line and code 1."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from errata.model import gguf
from errata.model.language_model import LanguageModel
from errata.testbed import smollm2
from jobs import moments
from jobs.arguments import check_model, from_arguments, with_checkpoint
from tests.unit.jobs.commands import Commands


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["plan=huge"], "no plan is named 'huge'"),
        (["plan=demoo"], "did you mean demo"),
        (["plan=tiny", "sead=1"], "has no field 'sead'"),
        (["plan=tiny", "seed=one"], "'one' is not of type int"),
        (["plan"], "have the form field=value; these do not: plan"),
    ],
)
def test_a_wrong_argument_is_named(arguments: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        from_arguments(arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["editor.modules=layers.1.mlp.down_prj"],
            r"editor\.modules: .* named layers\.1\.mlp\.down_prj.*layers\.1\.mlp\.down_proj",
        ),
        (["editor.modules=layers.5.mlp.down_proj"], r"editor\.modules: "),
        (["model=/none"], r"^model: /none is no folder on this machine"),
        (["model=some/model", "dtype=float33"], r"^dtype: 'float33'.*; model: some/model is no folder"),
        (["model=TINY", "editor.modules=layers.1.mlp.down_prj"], r"^editor\.modules: .*give modules=layers\.1\.mlp\.down_proj"),
        (["model=/none/a.gguf"], r"^model: /none/a\.gguf cannot be read: No such file"),
        (["model=TINY"], None),
        ([], None),
    ],
)
def test_the_model_of_a_plan_is_checked_before_ray_starts(
    arguments: list[str], says: str | None, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    plan = from_arguments(["plan=tiny", *(argument.replace("TINY", str(model_dir)) for argument in arguments)])
    if says is None:
        return check_model(plan, plan.editor.modules)
    with pytest.raises(ValueError, match=says):
        check_model(plan, plan.editor.modules)


def test_a_gguf_file_is_converted_and_its_matrices_are_checked(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(gguf.MAGIC)
    monkeypatch.setattr(gguf, "find_spec", lambda name: name)
    monkeypatch.setattr(gguf, "converted", lambda model: model_dir)
    plan = from_arguments(["plan=tiny", f"model={file}"])
    check_model(plan, plan.editor.modules)
    assert with_checkpoint(plan, ["layers.1.mlp.down_proj"]).model_dir == model_dir
    with pytest.raises(ValueError, match=r"give modules=layers\.1\.mlp\.down_proj"):
        with_checkpoint(plan, ["layers.1.mlp.down_prj"])
    assert with_checkpoint(from_arguments(["plan=smollm2"]), ()).model == smollm2.NAME


def test_matrices_of_the_default_model_are_checked_once_it_is_made(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = from_arguments(["plan=smollm2"])
    for made, says in (("", None), (str(model_dir), r"editor\.modules: .*layers\.17\.mlp\.down_proj")):
        monkeypatch.setattr("jobs.arguments.ready", lambda model, made=made: made)
        with pytest.raises(ValueError, match=says) if says else nullcontext():
            check_model(plan, plan.editor.modules)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["jobs/train.py", "plan=tiny"], "train.py: model: "),
        (["jobs/bench.py", "suite=tiny"], "bench.py: model: "),
        (["jobs/moments.py", "plan=tiny"], "moments.py: model: "),
    ],
)
def test_a_job_refuses_a_damaged_gguf_file_in_one_line(command: Commands, given: list[str], says: str, tmp_path: Path) -> None:
    file = tmp_path / "some.gguf"
    file.write_bytes(b"PK\x03\x04")
    done = command.run([*given, f"model={file}"], os.environ | {"ERRATA_HOME": str(tmp_path / "home")})
    assert done.returncode == 1 and done.stderr.startswith(says), done.stderr
    assert done.stderr.count("\n") == 1 and f"{file} is no GGUF file, or is damaged: copy it again" in done.stderr


def test_a_model_of_other_machines_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    check_model(from_arguments(["plan=tiny", "model=/mnt/there", "placement=train"]), ["mlp.down_proj"])
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check_model(from_arguments(["plan=tiny", "model=/mnt/there"]), ["mlp.down_proj"])


def test_a_job_with_a_wrong_argument_ends_with_one_line_and_code_1(command: Commands, tmp_path: Path) -> None:
    environment = {"ERRATA_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = command.run(["jobs/train.py", "plan=tiny", "sead=1"], environment)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("train.py: sead: Plan has no field 'sead'; it has name, ") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir()), "a log was begun"


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("texts=many", "number of lines"),
        ("modules=layers.9.mlp.down_proj", "no linear module"),
        ("textz=1", "no field"),
        ("preset=AlphaEdit:testbed", "give one of them"),
    ],
)
def test_a_wrong_argument_of_the_moments_is_named(
    argument: str, says: str, tiny_model: LanguageModel, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    matrices = [] if argument.startswith("modules") else ["modules=layers.1.mlp.down_proj"]
    with pytest.raises(ValueError, match=says):
        moments.run(moments.from_command_line(["plan=tiny", f"model={model_dir}", *matrices, argument]))
