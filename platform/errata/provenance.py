"""Provenance of a run: versions, code, seed and data, so that it can be repeated."""

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
COMMIT = "ERRATA_COMMIT"  # Names the commit where the code is not a git checkout, as in an image.
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Set by Ray for the entry point of a job.
_CHUNK = 2**20


def provenance(seed: int, data: Mapping[str, str]) -> dict[str, Any]:
    """Describe this run: {"command", "python", "versions", "commit", "working_dir", "code", "seed", "data"}.

    `data` maps the name of each input to what identifies it, such as a digest.
    """
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
    """Flatten the result of `provenance` into tags of an MLflow run. MLflow's pages show `mlflow.source.git.commit`."""
    parts = {key: value for key, value in made.items() if key not in ("versions", "data") and value != ""}
    parts |= {f"version.{name}": version for name, version in made.get("versions", {}).items()}
    parts |= {f"data.{name}": digest for name, digest in made.get("data", {}).items()}
    tags = {f"errata.{name}": str(value)[:5000] for name, value in parts.items()}  # MLflow's limit.
    return tags | ({"mlflow.source.git.commit": made["commit"]} if made.get("commit") else {})


def versions() -> dict[str, str]:
    """Return the versions of the installed packages that results may depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit(folder: Path = Path(__file__).parent) -> str:
    """Return the commit of the git checkout that holds `folder`, with `-dirty` if tracked files differ from it.

    Without a checkout or without git: $ERRATA_COMMIT, or the empty string.
    """
    # An installed copy may lie untracked in another checkout, whose commit says nothing about it.
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
    """Return the URI of the package made by `ray job submit --working-dir`; its name is a hash of its content."""
    try:
        environment = json.loads(os.environ.get(_JOB, "{}")).get("runtime_env") or {}
    except (json.JSONDecodeError, AttributeError):
        return ""
    return str(environment.get("working_dir", ""))


def code_digest(folder: Path = Path(__file__).parent) -> str:
    """Hash the Python sources of `folder`, by default this package's. Equal hashes on two nodes mean equal code."""
    files = sorted(folder.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def data_digest(where: str) -> str:
    """Return the SHA-256 over the files that `where` names (a path, folder, pattern or URI), their names included.

    Rows that Hugging Face streams have no files, so their address is returned. Raises `FileNotFoundError`, and `ValueError`
    for a URI that cannot be opened.
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
