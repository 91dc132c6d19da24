"""cluster.yaml against Ray's own schema, and the packages that a node installs."""

from __future__ import annotations

import tomllib
from typing import Any

import jsonschema
import pytest
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.unit.deploy.deployment import (
    CLUSTERS,
    RAY_MANIFESTS,
    ROOT,
    manifest_ray_version,
    manifests,
    pins,
    read,
)


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_cluster_is_valid_by_rays_own_schema(name: str) -> None:
    config = prepare_config(read(name))
    validate_config(config)  # raises for a config that is not valid
    assert config["head_node_type"] in config["available_node_types"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("max_worker",), 3),
        (("setup_command",), ["true"]),
        (("auth", "ssh_usr"), "ubuntu"),
        (("available_node_types", "train", "node_confg"), {}),
        (("available_node_types", "train", "resources", "train"), 0.5),
        (("head_node_type",), "heat"),
        (("provider", "type"), "awz"),
        (("idle_timeout_minutes",), "soon"),
    ],
)
def test_a_typo_in_the_cluster_is_caught(path: tuple[str, ...], value: Any) -> None:
    config = read("cluster.yaml")
    at = config
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises((jsonschema.ValidationError, ValueError, NotImplementedError)):
        validate_config(prepare_config(config))


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_node_has_everything_for_the_installation(name: str) -> None:
    config = read(name)
    mounts = config["file_mounts"]
    assert all((ROOT / local).exists() and remote == f"~/errata/{local}" for remote, local in mounts.items())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    sources = {folder.split("/")[0] for folder in project["tool"]["setuptools"]["package-dir"].values()}
    assert sources | {project["project"]["readme"], "pyproject.toml", "requirements", "Makefile"} <= set(mounts.values())
    assert any("make setup REQUIREMENTS=gpu" in command for command in config["setup_commands"])
    assert any("deploy/node.sh" in command for command in config["setup_commands"])
    exported = (ROOT / "deploy" / "node.sh").read_text()
    for line in ("ERRATA_HOME=/mnt/errata", "RAY_AUTH_MODE=disabled", "RAY_USAGE_STATS_ENABLED=0", ".venv/bin"):
        assert line in exported


def test_training_and_serving_have_their_own_nodes() -> None:
    nodes = read("cluster.yaml")["available_node_types"]
    assert {name for name, node in nodes.items() if node["resources"].get("GPU")} == {"train", "serve"}
    assert all(set(nodes[name]["resources"]) & {"train", "serve"} == {name} for name in ("train", "serve"))
    assert sum(node.get("max_workers", 0) for node in nodes.values()) == read("cluster.yaml")["max_workers"]


def test_the_clusters_packages_agree_with_the_pins() -> None:
    gpu = pins("gpu.txt")
    assert {name: version for name, version in pins("aws.txt").items() if gpu.get(name, version) != version} == {}
    assert all(manifest_ray_version(one) == gpu["ray"] for one in manifests(*RAY_MANIFESTS))
