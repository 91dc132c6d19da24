"""Descriptions of a cluster, without starting one.

cluster.yaml is checked against Ray's schema, the manifests against KubeRay's types, and the service's configuration against
Serve's schema and our arguments.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml
from pydantic import BaseModel
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

from errata.access_keys import Keys
from errata.cli import main
from jobs import moments, suites, tune
from jobs.arguments import from_arguments
from serving.app import Arguments, _resources, build
from tests.unit.deploy.kuberay_schema import SCHEMAS

ROOT = Path(__file__).parents[3]
CLUSTERS = ("cluster.yaml", "deploy/cluster-local.yaml")
MANIFESTS = sorted(path.name for path in (ROOT / "deploy" / "kubernetes").glob("*.yaml"))
RAY_MANIFESTS = tuple(name for name in MANIFESTS if name.startswith("ray"))


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return found


def manifests(*names: str) -> list[dict[str, Any]]:
    return [one for name in names for one in yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / name).read_text())]


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


# --- Ray's launcher


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_cluster_is_valid_by_rays_own_schema(name: str) -> None:
    config = prepare_config(read(name))
    validate_config(config)


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
def test_a_node_gets_what_the_installation_needs(name: str) -> None:
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


def test_training_and_serving_have_nodes_of_their_own() -> None:
    nodes = read("cluster.yaml")["available_node_types"]
    assert {name for name, node in nodes.items() if node["resources"].get("GPU")} == {"train", "serve"}
    assert all(set(nodes[name]["resources"]) & {"train", "serve"} == {name} for name in ("train", "serve"))
    assert sum(node.get("max_workers", 0) for node in nodes.values()) == read("cluster.yaml")["max_workers"]


def test_what_the_cluster_adds_to_the_pins_does_not_contradict_them() -> None:
    gpu = pins("gpu.txt")
    assert {name: version for name, version in pins("aws.txt").items() if gpu.get(name, version) != version} == {}
    assert all(manifest_ray_version(one) == gpu["ray"] for one in manifests(*RAY_MANIFESTS))


def manifest_ray_version(manifest: dict[str, Any]) -> str:
    return str(cluster_of(manifest)["rayVersion"])


# --- The service


def serve_configs() -> dict[str, dict[str, Any]]:
    (service,) = manifests("rayservice.yaml")
    return {"deploy/serve.yaml": read("deploy/serve.yaml"), "rayservice.yaml": yaml.safe_load(service["spec"]["serveConfigV2"])}


def assert_known(config: dict[str, Any], schema: type[BaseModel]) -> None:
    """Check for unknown fields, which Serve silently accepts."""
    assert set(config) <= set(schema.model_fields), set(config) - set(schema.model_fields)


@pytest.mark.parametrize("name", ["deploy/serve.yaml", "rayservice.yaml"])
def test_the_services_configuration_is_serves_and_ours(name: str) -> None:
    config = serve_configs()[name]
    (application,) = ServeDeploySchema.model_validate(config).applications
    assert_known(config, ServeDeploySchema)
    assert_known(config["http_options"], HTTPOptionsSchema)
    assert_known(config["applications"][0], ServeApplicationSchema)
    assert application.import_path == "serving.app:build" and application.route_prefix == "/"
    arguments = Arguments.model_validate(application.args)
    assert build(dict(application.args)) is not None
    assert config["http_options"]["host"] == "0.0.0.0" and arguments.keys, "others can reach it, so it needs keys"
    assert arguments.device == "cuda" and arguments.placement == "serve" and arguments.ledger.startswith("/mnt/errata/")


@pytest.mark.parametrize("name", ["deploy/serve.yaml", "rayservice.yaml"])
def test_an_argument_that_is_misspelt_is_named(name: str) -> None:
    args = serve_configs()[name]["applications"][0]["args"]
    with pytest.raises(ValueError, match="replica: Extra inputs"):
        build({**args, "replica": 2})
    with pytest.raises(ValueError, match="placement"):
        build({**args, "placement": ""})
    for device, says in (
        ("gpu", "'gpu' is not a device"),
        ("cuda:0,cuda:0", "names a device twice"),
        ("cuda:1", "numbered from 0 among"),
    ):
        with pytest.raises(ValueError, match=says):
            build({**args, "device": device})


def test_engines_on_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    for given, threads in (({}, "8"), ({"replicas": 3}, "2"), ({"replicas": 9}, "1"), ({"replicas": 3, "threads": 5}, "5")):
        generator = build({"model": "m", "ledger": "l", **given})._bound_deployment
        assert generator.ray_actor_options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == threads


@pytest.mark.parametrize(
    ("given", "replicas", "workers", "memory"),
    [
        ({}, 0, 0, 0.9),
        ({"gpus": 1, "device": "cuda"}, 1, 1, 0.9),
        ({"gpus": 2, "device": "cuda:0,cuda:1"}, 2, 2, 0.9),
        ({"gpus": 0.6, "device": "cuda"}, 0.6, 0.4, 0.54),
        ({"gpus": "0.6", "device": "cuda", "gpu_memory": 0.3}, 0.6, 0.4, 0.3),
        ({"gpus": 0.5}, 0.5, 0, 0.45),
    ],
)
def test_gpus_are_reserved_for_replicas_and_the_edit_worker(
    given: dict, replicas: float, workers: float, memory: float
) -> None:
    app = build({"model": "m", "ledger": "l", **given})
    worker, options = app._bound_deployment.init_args
    assert app._bound_deployment.ray_actor_options["num_gpus"] == replicas
    assert worker._bound_deployment.ray_actor_options["num_gpus"] == workers
    assert options.gpu_memory == pytest.approx(memory) and options.tensor_parallel == max(1, int(replicas))
    with pytest.raises(ValueError, match="neither a part of one GPU"):
        build({"model": "m", "ledger": "l", "gpus": 1.5})


def test_both_deployments_are_placed_and_by_default_neither() -> None:
    needed = {"model": "m", "ledger": "l"}
    assert _resources(Arguments(**needed), 0, 1)["resources"] == {}
    app = build({**needed, "placement": "serve"})
    generator = app._bound_deployment
    (worker, _) = generator.init_args
    for bound in (generator, worker._bound_deployment):
        assert bound.ray_actor_options["resources"] == {"serve": 0.001}, bound.name


# --- Kubernetes


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = manifest["spec"]
    found: dict[str, Any] = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    return found


def pods_of(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """List a manifest's pod templates, a head first."""
    if manifest["apiVersion"].startswith("ray.io/"):
        cluster = cluster_of(manifest)
        yield cluster["headGroupSpec"]["template"]
        yield from (group["template"] for group in cluster["workerGroupSpecs"])
    elif manifest["kind"] == "Deployment":
        yield manifest["spec"]["template"]


@pytest.mark.parametrize("name", RAY_MANIFESTS)
def test_a_manifest_has_kuberays_structure(name: str) -> None:
    for manifest in manifests(name):
        jsonschema.validate(manifest, SCHEMAS[manifest["kind"]])


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_the_structure_is_a_schema(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """List the paths of keys that belong to the structure, except those of maps with arbitrary keys."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if isinstance(key, str):
            yield (*path, key)
        if key not in ("labels", "annotations", "rayStartParams", "requests", "limits"):
            yield from paths_of(inner, (*path, key))


@pytest.mark.parametrize("name", RAY_MANIFESTS)
def test_a_typo_anywhere_in_a_manifest_is_caught(name: str) -> None:
    (manifest,) = manifests(name)
    paths, structure = list(paths_of(manifest)), jsonschema.Draft202012Validator(SCHEMAS[manifest["kind"]])
    assert len(paths) > 60
    for path in paths:
        broken = copy.deepcopy(manifest)
        at = broken
        for key in path[:-1]:
            at = at[key]
        at[f"{path[-1]}x"] = at.pop(path[-1])
        assert not structure.is_valid(broken), path


def test_everything_is_in_one_namespace_and_named_once() -> None:
    found = manifests(*MANIFESTS)
    (namespace,) = [one["metadata"]["name"] for one in found if one["kind"] == "Namespace"]
    assert all(one["metadata"]["namespace"] == namespace for one in found if one["kind"] != "Namespace")
    names = [(one["kind"], one["metadata"]["name"]) for one in found]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", MANIFESTS)
def test_what_a_pod_refers_to_is_there(name: str) -> None:
    there = {(one["kind"], one["metadata"]["name"]) for one in manifests(*MANIFESTS)}
    for template in (template for manifest in manifests(name) for template in pods_of(manifest)):
        volumes = {volume["name"]: volume for volume in template["spec"].get("volumes", ())}
        for container in template["spec"]["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
            for source in container.get("envFrom", ()):
                assert ("Secret", source["secretRef"]["name"]) in there
        for volume in volumes.values():
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in there
            if secret := volume.get("secret"):
                assert ("Secret", secret["secretName"]) in there


@pytest.mark.parametrize("name", RAY_MANIFESTS)
def test_a_pod_of_ray_has_the_environment_and_the_shared_folder(name: str) -> None:
    for template in (template for manifest in manifests(name) for template in pods_of(manifest)):
        (container,) = template["spec"]["containers"]
        environment = {entry["name"]: entry["value"] for entry in container["env"]}
        assert environment == {"ERRATA_HOME": "/mnt/errata", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        assert {"name": "home", "mountPath": environment["ERRATA_HOME"]} in container["volumeMounts"]
        assert template["metadata"]["annotations"]["prometheus.io/scrape"] == "true"
        assert container["resources"]["requests"] == container["resources"]["limits"], "Ray counts the one, the node the other"


@pytest.mark.parametrize("name", RAY_MANIFESTS)
def test_a_group_declares_the_resource_that_it_is_named_after(name: str) -> None:
    """KubeRay takes a string that contains quoted JSON."""
    (manifest,) = manifests(name)
    for group in cluster_of(manifest)["workerGroupSpecs"]:
        assert json.loads(json.loads(group["rayStartParams"]["resources"])) == {group["groupName"]: 1}
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_the_jobs_are_those_that_there_are() -> None:
    entrypoints = {name: shlex.split(manifests(f"rayjob-{name}.yaml")[0]["spec"]["entrypoint"]) for name in ("train", "tune")}
    for name, (python, script, *_) in entrypoints.items():
        assert python == "python" and script == f"/opt/errata/jobs/{name}.py" and (ROOT / "jobs" / f"{name}.py").exists()
    trained, swept = from_arguments(entrypoints["train"][2:]), tune.from_command_line(entrypoints["tune"][2:])
    for name, plan in (("train", trained), ("tune", swept.plan)):
        (group,) = cluster_of(manifests(f"rayjob-{name}.yaml")[0])["workerGroupSpecs"]
        assert plan.placement == group["groupName"] == "train" and plan.mlflow == "http://errata-mlflow:5000"
        assert bool(plan.use_gpu) == ("nvidia.com/gpu" in group["template"]["spec"]["containers"][0]["resources"]["limits"])
    assert trained.num_workers <= group_of("rayjob-train.yaml")["maxReplicas"]


def group_of(name: str) -> dict[str, Any]:
    (group,) = cluster_of(manifests(name)[0])["workerGroupSpecs"]
    return dict(group)


def test_the_service_has_gpus_for_its_replicas_and_the_edit_worker() -> None:
    arguments = Arguments.model_validate(serve_configs()["rayservice.yaml"]["applications"][0]["args"])
    group = group_of("rayservice.yaml")
    (container,) = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    assert arguments.replicas * arguments.gpus + 1 <= group["minReplicas"] * limits["nvidia.com/gpu"]
    assert (arguments.replicas + 1) * arguments.num_cpus <= group["minReplicas"] * int(limits["cpu"])
    (head,) = cluster_of(manifests("rayservice.yaml")[0])["headGroupSpec"]["template"]["spec"]["containers"]
    assert {"name": "serve", "containerPort": 8000} in head["ports"], "KubeRay takes the service's port from the head"
    (keys,) = [mount for mount in container["volumeMounts"] if mount["name"] == "keys"]
    assert arguments.keys == f"{keys['mountPath']}/keys.json" and keys["readOnly"]
    (volume,) = [volume for volume in group["template"]["spec"]["volumes"] if volume["name"] == "keys"]
    assert volume["secret"]["defaultMode"] & 0o022 == 0, "a file of keys that others may write to is refused"


def test_there_is_never_a_second_edit_worker() -> None:
    (service,) = manifests("rayservice.yaml")
    assert service["spec"]["upgradeStrategy"] == {"type": "None"}


def test_the_secret_holds_a_file_of_keys_that_lets_nobody_in(tmp_path: Path) -> None:
    (secret,) = [one for one in manifests("secrets.yaml") if one["metadata"]["name"] == "errata-keys"]
    (tmp_path / "keys.json").write_text(secret["stringData"]["keys.json"])
    (tmp_path / "keys.json").chmod(0o440)
    assert Keys.load(tmp_path / "keys.json").entries == ()


def test_services_and_policies_select_pods_that_there_are() -> None:
    found = manifests(*MANIFESTS)
    labels = [template["metadata"].get("labels", {}) for one in found for template in pods_of(one)]
    for one in found:
        selector = one["spec"]["selector"] if one["kind"] == "Service" else {}
        if one["kind"] == "NetworkPolicy":
            selector = one["spec"]["podSelector"].get("matchLabels", {})
        assert not selector or any(selector.items() <= own.items() for own in labels), one["metadata"]["name"]
    (mlflow,) = [one for one in found if one["kind"] == "Deployment"]
    assert mlflow["spec"]["selector"]["matchLabels"].items() <= mlflow["spec"]["template"]["metadata"]["labels"].items()


# --- The guide


def test_the_jobs_that_the_walk_through_submits_are_understood() -> None:
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


def test_the_walk_throughs_commands_and_files_are_there() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text()
    group: Any = typer.main.get_command(main.app)
    commands = set(re.findall(r"(?:^|&& |; |')errata ([a-z]+)", page, re.MULTILINE))
    assert {"edit", "ask", "versions", "rollback", "keys", "ledger"} <= commands <= set(group.list_commands(None))
    for target in re.findall(r"\]\((\w+\.md)\)", page):
        assert (ROOT / "docs" / target).exists()
    for name in re.findall(r"`((?:deploy|requirements)/[\w./-]+|[\w-]+\.yaml)`", page):
        assert (ROOT / name).exists() or (ROOT / "deploy" / "kubernetes" / name).exists(), name
    assert set(MANIFESTS) <= set(re.findall(r"[\w-]+\.yaml", page))


# --- The image


def test_the_image_holds_what_the_installation_needs() -> None:
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
