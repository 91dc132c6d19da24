"""What a run is made of, for whoever wants to repeat it: versions, the code, the seed and the data. Plain text."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from errata.datasets.sources import is_hub_rows, sources_of

PACKAGES = ("torch", "transformers", "ray", "mlflow", "numpy", "pyarrow")
COMMIT = "ERRATA_COMMIT"  # names the commit where the code is no git checkout: in an image, on a node that it was copied to
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray for the entry point of a job
_CHUNK = 2**20


def provenance(seed: int, data: Mapping[str, str]) -> dict[str, Any]:
    """{"command", "python", "versions", "commit", "working_dir", "code", "seed", "data"}; `data` has a name for each of the
    run's inputs and what tells it from others."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "python": platform.python_version(),
        "versions": versions(),
        "commit": commit(),
        "working_dir": working_dir(),
        "code": code_digest(),
        "seed": seed,
        "data": dict(data),
    }


def as_tags(made: Mapping[str, Any]) -> dict[str, str]:
    """What `provenance` gives, flat, as tags of an MLflow run; MLflow's pages show `mlflow.source.git.commit`."""
    parts = {key: value for key, value in made.items() if key not in ("versions", "data") and value != ""}
    parts |= {f"version.{name}": version for name, version in made.get("versions", {}).items()}
    parts |= {f"data.{name}": digest for name, digest in made.get("data", {}).items()}
    tags = {f"errata.{name}": str(value)[:5000] for name, value in parts.items()}  # MLflow's limit
    return tags | ({"mlflow.source.git.commit": made["commit"]} if made.get("commit") else {})


def versions() -> dict[str, str]:
    """Of the packages that results may depend on, those that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit(folder: Path = Path(__file__).parent) -> str:
    """Of the git checkout that `folder` is part of, with `-dirty` if tracked files differ from it.

    Where there is none (or no git): $ERRATA_COMMIT, or nothing.
    """
    # An installed copy may lie in somebody else's checkout, untracked: that commit says nothing about it.
    tracked = _git(folder, "ls-files", "--error-unmatch", "--", ".")
    found = _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") if tracked else ""
    return found or os.environ.get(COMMIT, "")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def working_dir() -> str:
    """The package that `ray job submit --working-dir` made of the submitter's folder: its name is a hash of what is in it."""
    try:
        environment = json.loads(os.environ.get(_JOB, "{}")).get("runtime_env") or {}
    except (json.JSONDecodeError, AttributeError):
        return ""
    return str(environment.get("working_dir", ""))


def code_digest(folder: Path = Path(__file__).parent) -> str:
    """A hash of the Python sources of `folder`, by default this package's; says whether two nodes have the same code."""
    files = sorted(folder.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def data_digest(where: str) -> str:
    """SHA-256 over the files that `where` names (a path, folder, pattern or URI), their names included.

    Rows that Hugging Face streams have no files: their address is all that there is. Raises `FileNotFoundError`, and
    `ValueError` for a URI that cannot be opened.
    """
    if is_hub_rows(where):
        return where
    digest = hashlib.sha256()
    for source in sources_of(where):
        digest.update(source.name.encode() + b"\0")
        with source.filesystem.open_input_stream(source.path) as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
