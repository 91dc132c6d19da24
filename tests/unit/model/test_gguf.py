"""GGUF files: what is refused, and that a file is converted once."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from errata.model import gguf


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Make a file that begins as a GGUF file does."""
    path = tmp_path / "Some-Model.Q4.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(64))
    return path


@pytest.fixture
def packages_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "find_spec", lambda name: name)


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch, packages_are_there: None) -> list[Path]:
    """Record the files that are converted, each to a folder with one file."""
    found: list[Path] = []

    def convert(file: Path, folder: Path) -> None:
        found.append(file)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(gguf, "_convert", convert)
    return found


def refusal(file: Path) -> str:
    with pytest.raises(ValueError) as refused:
        gguf.converted(file, file.parent / "made")
    assert not (file.parent / "made").exists()
    return str(refused.value)


@pytest.mark.usefixtures("packages_are_there")
def test_a_file_that_is_missing_or_of_another_format_is_named(tmp_path: Path) -> None:
    assert "none.gguf cannot be read: No such file" in refusal(tmp_path / "none.gguf")
    (tmp_path / "folder.gguf").mkdir()
    assert "folder.gguf cannot be read: Is a directory" in refusal(tmp_path / "folder.gguf")
    for content in (b"", b"GGU", b"PK\x03\x04", b"gguf and more"):
        (tmp_path / "other.gguf").write_bytes(content)
        assert "other.gguf is no GGUF file, or is damaged: copy it again" in refusal(tmp_path / "other.gguf")


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ((), "needs the packages gguf and accelerate: pip install gguf accelerate"),
        (("gguf",), "needs the packages accelerate: pip install accelerate"),
        (("accelerate",), "needs the packages gguf: pip install gguf"),
    ],
)
def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, file: Path, there: tuple[str, ...], said: str) -> None:
    monkeypatch.setattr(gguf, "find_spec", lambda name: name if name in there else None)
    assert refusal(file) == f"Some-Model.Q4.gguf {said}"


def test_a_file_is_converted_once(conversions: list[Path], file: Path, tmp_path: Path) -> None:
    folder = gguf.converted(file, tmp_path / "models" / "made")
    assert (folder, conversions) == (tmp_path / "models" / "made", [file])
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert gguf.converted(str(file), folder) == folder and conversions == [file]


def test_without_a_folder_it_is_named_after_the_file_and_its_content(
    monkeypatch: pytest.MonkeyPatch, conversions: list[Path], file: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))
    first = gguf.converted(file)
    assert first.parent == tmp_path / "home" / "models" and first.name.startswith("some-model.q4-")
    file.write_bytes(file.read_bytes() + b"more")
    assert gguf.converted(file) != first and len(conversions) == 2


def test_a_conversion_that_fails_leaves_no_folder(monkeypatch: pytest.MonkeyPatch, conversions: list[Path], file: Path) -> None:
    def fail(file: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise ValueError("transformers cannot read it")

    with monkeypatch.context() as context:
        context.setattr(gguf, "_convert", fail)
        assert refusal(file) == "transformers cannot read it"
    assert gguf.converted(file, file.parent / "made").exists() and conversions == [file]


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, gguf.NEEDED)), reason="the packages that read GGUF files are not installed"
)
def test_a_file_that_breaks_off_is_refused_in_one_line(file: Path) -> None:
    for content in (b"GGUF", file.read_bytes(), b"GGUF\x03\x00\x00\x00" + b"\xff" * 64):
        file.write_bytes(content)
        said = refusal(file)
        assert said.startswith("transformers cannot read Some-Model.Q4.gguf (") and "\n" not in said


@pytest.mark.parametrize(("model", "expected"), [("a/b.gguf", True), (Path("b.gguf"), True), ("gguf", False), ("a/b", False)])
def test_a_gguf_file_is_known_by_its_name(model: Any, expected: bool) -> None:
    assert gguf.is_gguf(model) is expected
