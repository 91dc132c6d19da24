"""Arguments of the jobs: wrong ones are named, in process; one job shows that the process ends with that line and code 1."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from errata.model.language_model import LanguageModel
from jobs import moments
from jobs.arguments import from_arguments

ROOT = Path(__file__).parents[3]


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


def test_a_job_with_a_wrong_argument_ends_with_one_line_and_code_1(tmp_path: Path) -> None:
    command = [sys.executable, "jobs/train.py", "plan=tiny", "sead=1"]
    environment = {"ERRATA_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
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
