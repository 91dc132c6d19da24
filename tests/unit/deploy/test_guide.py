"""Commands and files that docs/cluster.md names, and the container image."""

from __future__ import annotations

import re
import shlex
import tomllib
from typing import Any

import typer

from errata.cli import main
from jobs import moments, suites, tune
from jobs.arguments import from_arguments
from tests.unit.deploy.deployment import MANIFESTS, ROOT


def test_the_guides_jobs_have_valid_arguments() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text()
    (plan,) = re.findall(r'^PLAN="(.*)"$', page, re.MULTILINE)
    submitted = re.findall(r"^ray job submit .* -- python jobs/(\w+)\.py (.*?)(?:\s+#.*)?$", page, re.MULTILINE)
    assert [name for name, _ in submitted] == ["pretrain", "moments", "train", "tune", "bench"]
    readers = {"moments": moments.from_command_line, "tune": tune.from_command_line, "bench": suites.from_arguments}
    for name, line in submitted:
        read_by: Any = readers.get(name, from_arguments)
        found = read_by(shlex.split(line.replace("$PLAN", plan)))
        if name == "train":
            found.schedule.check_workers(found.num_workers)


def test_the_guides_commands_and_files_exist() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text()
    group: Any = typer.main.get_command(main.app)
    commands = set(re.findall(r"(?:^|&& |; |')errata ([a-z]+)", page, re.MULTILINE))
    assert {"edit", "ask", "versions", "rollback", "keys", "ledger"} <= commands <= set(group.list_commands(None))
    for target in re.findall(r"\]\((\w+\.md)\)", page):
        assert (ROOT / "docs" / target).exists()
    for name in re.findall(r"`((?:deploy|requirements)/[\w./-]+|[\w-]+\.yaml)`", page):
        assert (ROOT / name).exists() or (ROOT / "deploy" / "kubernetes" / name).exists(), name
    assert set(MANIFESTS) <= set(re.findall(r"[\w-]+\.yaml", page))


def test_the_image_has_everything_for_the_installation() -> None:
    lines = (ROOT / "deploy" / "Dockerfile").read_text().splitlines()
    (base,) = [line.split()[1] for line in lines if line.startswith("FROM")]
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert base.startswith("python:3.11") and required == ">=3.11"
    copied = {name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]}
    assert all((ROOT / name).exists() for name in copied)
    kept = {line[1:] for line in (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == kept
    text = "\n".join(lines)
    assert "--no-deps -r requirements/gpu.txt" in text and "ERRATA_COMMIT=$COMMIT" in text
