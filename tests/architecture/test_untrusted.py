"""Untrusted input is data: no code loads it as code, and no name in it leads out of its folder."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from errata.cli.serve import _model_of
from tests.architecture.test_fences import sources, tops

OURS = sources("platform/errata", "jobs", "serving")
LOADERS_OF_CODE = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Yield every call in a file with its dotted name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def given(call: ast.Call) -> dict[str | None, str]:
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_no_loader_executes_code(path: Path) -> None:
    assert not tops(path) & LOADERS_OF_CODE
    for name, call in calls(path):
        keywords = given(call)
        assert name not in ("eval", "exec", "compile", "__import__", "yaml.load", "yaml.unsafe_load", "yaml.full_load"), name
        assert name != "torch.load" or keywords.get("weights_only") == "True", "torch.load without weights_only=True"
        assert keywords.get("allow_pickle", "False") == "False"
        assert keywords.get("trust_remote_code", "False") == "False"


def test_only_the_operators_editor_is_imported_by_name() -> None:
    """`package.module:Class` is an argument of `serving.app:build`; no route takes it, because bodies forbid unknown fields."""
    named = [
        (path.name, ast.unparse(call.args[0])) for path in OURS for name, call in calls(path) if name.endswith("import_module")
    ]
    ours = ("'errata.", '"errata.', "f'{__name__}.", 'f"{__name__}.')  # lazily exported names of a package
    assert [path for path, module in named if not module.startswith(ours)] == ["build.py"]


@pytest.mark.parametrize("name", ["../models", "/etc", "..", "", "a/b"])
@pytest.mark.parametrize("record", ["artifact.json", "moments.json"])
def test_an_artifact_cannot_name_a_model_outside_the_testbed(tmp_path: Path, record: str, name: str) -> None:
    made = {"model": name}
    (tmp_path / record).write_text(json.dumps({"record": made} if record == "artifact.json" else made))
    with pytest.raises(ValueError, match="not the name of a folder"):
        _model_of(tmp_path)


def test_a_checkpoint_cannot_name_files_outside_its_folder(tmp_path: Path) -> None:
    weight_engine = pytest.importorskip("serving.engine.weight_engine")  # vLLM
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": "../secret.safetensors", "b.weight": "one.safetensors"}}))
    with pytest.raises(ValueError, match=r"not beside it: \.\./secret\.safetensors"):
        weight_engine.Checkpoint(tmp_path, nn.Module())
