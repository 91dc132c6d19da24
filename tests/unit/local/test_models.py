"""The model that a user names: what is made at first use, what is said about it, and what is left as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from errata.local import models
from errata.model import gguf
from errata.testbed import smollm2


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Let the default model and its policy be made as empty folders; the list names what is made, in order."""
    found: list[str] = []

    def folder(name: str, path: Path) -> Path:
        found.append(name)
        path.mkdir(parents=True, exist_ok=True)
        return path

    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    monkeypatch.setattr(smollm2, "check", lambda: found.append("check"))
    monkeypatch.setattr(smollm2, "fetched", lambda: folder("model", smollm2.folder()))
    monkeypatch.setattr(smollm2, "has_policy", lambda: (tmp_path / "policy").exists())
    monkeypatch.setattr(smollm2, "policy", lambda: folder("policy", tmp_path / "policy"))
    monkeypatch.setattr(gguf, "converted", lambda file: folder(f"of {file}", tmp_path / "converted"))
    return found


@pytest.mark.parametrize("name", ["models/llama", "Qwen/Qwen2.5-0.5B-Instruct", "smollm2", "gguf", "a.gguf/model"])
def test_folders_and_names_of_the_hub_are_left_as_they_are(made: list[str], name: str) -> None:
    assert models.resolved(name) == name and made == []


def test_the_default_model_is_made_once_and_announced(
    made: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert models.resolved(smollm2.NAME) == str(tmp_path / "models" / smollm2.NAME)
    assert made == ["check", "model"] and capsys.readouterr().out.startswith("making the default model out of its package")
    assert models.resolved(smollm2.NAME) == str(smollm2.folder()) and capsys.readouterr().out == ""


def test_nothing_is_announced_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing() -> None:
        raise ValueError("the default model is not installed: pip install …")

    monkeypatch.setattr(smollm2, "check", missing)
    for ask in (lambda: models.resolved(smollm2.NAME), models.default_policy):
        with pytest.raises(ValueError, match="is not installed"):
            ask()
    assert capsys.readouterr().out == ""


def test_a_gguf_file_is_converted(made: list[str], tmp_path: Path) -> None:
    assert models.resolved("folder/Model.Q4.gguf") == str(tmp_path / "converted") and made == ["of folder/Model.Q4.gguf"]


def test_the_policy_is_measured_on_the_default_model_once(
    made: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert models.default_policy() == str(tmp_path / "policy") and made == ["check", "model", "policy"]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["making", "measuring"]
    assert models.default_policy() == str(tmp_path / "policy") and capsys.readouterr().out == ""
