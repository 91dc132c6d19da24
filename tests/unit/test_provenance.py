"""Provenance of a run: the commit, the package of a job, the data and the code."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from errata.provenance import as_tags, code_digest, commit, data_digest, provenance, working_dir


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a git checkout with one commit of `code/one.py`."""
    monkeypatch.delenv("ERRATA_COMMIT", raising=False)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "one.py").write_text("a = 1\n")
    for arguments in (["init", "-q"], ["add", "."], ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    return tmp_path


def head(checkout: Path) -> str:
    done = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_a_commit_is_marked_dirty_if_files_differ_from_it(checkout: Path) -> None:
    assert commit(checkout / "code") == head(checkout)
    subprocess.run(["git", "-C", str(checkout), "tag", "v1"], check=True)
    assert commit(checkout / "code") == head(checkout)
    (checkout / "code" / "one.py").write_text("a = 2\n")
    assert commit(checkout / "code") == f"{head(checkout)}-dirty"


def test_an_untracked_copy_does_not_have_the_commit_of_the_checkout(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = checkout / "site-packages"
    copy.mkdir()
    (copy / "one.py").write_text("a = 1\n")
    assert commit(copy) == ""
    monkeypatch.setenv("ERRATA_COMMIT", "c0ffee")
    assert commit(copy) == "c0ffee"
    assert commit(checkout / "code") == head(checkout)


def test_without_git_there_is_no_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(checkout))
    assert commit(checkout / "code") == ""


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ('{"runtime_env": {"working_dir": "gcs://_ray_pkg_1f.zip"}}', "gcs://_ray_pkg_1f.zip"),
        ('{"runtime_env": null}', ""),
        ("{", ""),
        ("[]", ""),
    ],
)
def test_the_package_of_a_submitted_job_is_read_from_its_environment(
    config: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", config)
    assert working_dir() == found


def test_data_are_identified_by_their_content(tmp_path: Path) -> None:
    one, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    one.write_text('{"prompt": "p"}\n')
    other.write_text('{"prompt": "q"}\n')
    first = data_digest(str(one))
    assert first == data_digest(f"file://{one}") != data_digest(str(other))
    assert data_digest(str(tmp_path / "*.jsonl")) not in (first, data_digest(str(other)))
    one.write_text('{"prompt": "r"}\n')
    assert data_digest(str(one)) != first
    assert data_digest("hf:owner/name") == "hf:owner/name"
    with pytest.raises(FileNotFoundError, match="no file"):
        data_digest(str(tmp_path / "none.jsonl"))


def test_code_is_identified_by_its_sources(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("a = 1\n")
    first = code_digest(tmp_path)
    (tmp_path / "notes.txt").write_text("no code")
    assert code_digest(tmp_path) == first
    (tmp_path / "one.py").write_text("a = 2\n")
    assert code_digest(tmp_path) != first != code_digest()


def test_provenance_is_json_and_tags() -> None:
    made = provenance(3, {"edits": "ab12"})
    assert json.loads(json.dumps(made)) == made
    assert made["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    tags = as_tags(made)
    assert (tags["errata.seed"], tags["errata.data.edits"], tags["errata.code"]) == ("3", "ab12", code_digest())
    assert tags["errata.version.ray"] and all(isinstance(value, str) and value for value in tags.values())
    assert "mlflow.source.git.commit" not in as_tags({**made, "commit": ""})
    assert as_tags({**made, "commit": "c0ffee"})["mlflow.source.git.commit"] == "c0ffee"


def test_an_older_record_has_no_tags() -> None:
    assert as_tags({}) == {}
