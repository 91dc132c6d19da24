"""The service's configuration against Serve's schema and our arguments; nothing is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from ray.serve.schema import HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

from errata.testbed import smollm2
from serving.app import Arguments, _resources, build
from tests.unit.deploy.deployment import (
    serve_configs,
)


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build for a model that does not exist here."""
    monkeypatch.setattr("serving.app.problems_of", lambda *_, **__: [])


def assert_known(config: dict[str, Any], schema: type[BaseModel]) -> None:
    """Check for unknown fields, which Serve silently accepts."""
    assert set(config) <= set(schema.model_fields), set(config) - set(schema.model_fields)


@pytest.mark.parametrize("name", ["deploy/serve.yaml", "rayservice.yaml"])
def test_the_services_configuration_is_valid(name: str) -> None:
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
def test_a_misspelt_argument_is_named(name: str) -> None:
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


@pytest.mark.usefixtures("anywhere")
def test_engines_on_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    expected: tuple[tuple[dict[str, Any], tuple[int, int]], ...] = (
        ({}, (7, 8)),
        ({"editor_threads": 3}, (5, 8)),
        ({"gpus": 1, "device": "cuda"}, (8, 8)),
        ({"replicas": 3}, (2, 2)),
        ({"replicas": 9}, (1, 1)),
        ({"replicas": 3, "threads": 5}, (5, 5)),
    )
    for given, (while_editing, otherwise) in expected:
        generator = build({"model": "m", "ledger": "l", **given})._bound_deployment
        assert generator.ray_actor_options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == str(otherwise)
        worker, options = generator.init_args
        assert options.threads == (while_editing, otherwise)
        assert worker._bound_deployment.init_args[0].shares_cores == (while_editing != otherwise)


@pytest.mark.usefixtures("anywhere")
def test_a_step_on_the_cpu_is_short() -> None:
    for given, tokens in (
        ({}, "256"),
        ({"max_num_batched_tokens": 2048}, "2048"),
        ({"gpus": 1, "device": "cuda"}, None),
        ({"gpus": 1, "device": "cuda", "max_num_batched_tokens": 512}, "512"),
    ):
        _, options = build({"model": "m", "ledger": "l", **given})._bound_deployment.init_args
        said = options.vllm_arguments()
        name = "--max-num-batched-tokens"
        assert (said[said.index(name) + 1] if name in said else None) == tokens


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize(
    ("given", "kind", "is_eager", "runner"),
    [
        ({}, "answer", True, "0"),
        ({"artifact": "/policy"}, None, True, None),
        ({"editor": "UltraEdit", "gpus": 1}, None, False, None),
        ({"editor": "PRUNE/MEMIT", "gpus": 1}, None, False, None),
        ({"editor": "answer"}, "answer", True, "0"),
        ({"editor": "SCR", "gpus": 1}, "text", False, "0"),
        ({"editor": "state", "gpus": 1}, "state", True, "0"),
        ({"editor": "RTD", "gpus": 1}, "datastore", True, "0"),
        ({"editor": "SWEA", "gpus": 1}, "rows", True, "0"),
        ({"editor": "tests.e2e.toy:Toy"}, None, True, None),
        ({"editor": "errata.editors.memory_based.answer:AnswerMemory"}, "answer", True, "0"),
        ({"editor": "not.here:Editor", "placement": "serve"}, None, True, None),
    ],
)
def test_the_engine_is_started_for_the_memory_that_the_editor_writes(
    given: dict[str, Any], kind: str | None, is_eager: bool, runner: str | None
) -> None:
    generator = build({"model": "m", "ledger": "l", "device": "cuda" if "gpus" in given else "cpu", **given})._bound_deployment
    _, options = generator.init_args
    assert (options.memory, options.enforce_eager) == (kind, is_eager)
    assert generator.ray_actor_options["runtime_env"]["env_vars"].get("VLLM_USE_V2_MODEL_RUNNER") == runner


@pytest.mark.usefixtures("anywhere")
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


@pytest.mark.usefixtures("anywhere")
def test_limits_are_arguments_and_reach_both_deployments() -> None:
    app = build(
        {"model": "m", "ledger": "l", "replicas": 3, "max_queue": "7", "body_timeout_s": 2, "max_ongoing_requests": 500}
    )
    worker, options = app._bound_deployment.init_args
    (own,) = worker._bound_deployment.init_args
    assert (own.limits.max_queue, options.limits.body_timeout_s) == (7, 2.0) and own.limits == options.limits
    assert app._bound_deployment.max_ongoing_requests == 500
    assert worker._bound_deployment.max_ongoing_requests == 3 * 500, "each replica may send so many"
    with pytest.raises(ValueError, match=r"max_queue: 0 is below 1.*replica: Extra inputs"):
        build({"model": "m", "ledger": "l", "max_queue": 0, "replica": 2})


def test_both_deployments_are_placed_and_by_default_neither() -> None:
    needed = {"model": "m", "ledger": "l"}
    assert _resources(Arguments(**needed), 0, 1)["resources"] == {}
    app = build({**needed, "placement": "serve"})
    generator = app._bound_deployment
    (worker, _) = generator.init_args
    for bound in (generator, worker._bound_deployment):
        assert bound.ray_actor_options["resources"] == {"serve": 0.001}, bound.name


def test_a_service_that_could_not_start_is_refused_with_every_reason(model_dir: Path, tmp_path: Path) -> None:
    """The lines are those of `errata serve`; with `placement` the service runs where this machine's files may not be."""
    args = {"model": str(model_dir), "ledger": str(tmp_path / "l"), "editor": "FT-L"}
    assert build({**args, "settings": "modules=layers.1.mlp.down_proj"}) is not None
    wrong = {**args, "model": "/none", "settings": "modules=layers.1.mlp.down_prj;epsilon=x", "dtype": "float33"}
    with pytest.raises(ValueError, match=r"model: /none is no folder.*epsilon: 'x'") as refused:
        build(wrong)
    assert "dtype: 'float33'" in str(refused.value)
    with pytest.raises(ValueError, match=r"settings\.modules: .*give modules=layers\.1\.mlp\.down_proj"):
        build({**args, "settings": "modules=layers.1.mlp.down_prj"})
    with pytest.raises(ValueError, match=r"epsilon: 'x'") as refused:
        build({**wrong, "placement": "serve"})
    assert "/none" not in str(refused.value)


def test_what_needs_no_model_is_checked_before_one_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: str) -> str:
        raise AssertionError("a model is made")

    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("serving.app.resolved", fail)
    monkeypatch.setattr("errata.testbed.smollm2.check", lambda: None)
    args = {"model": smollm2.NAME, "ledger": str(tmp_path / "l"), "editor": "FT-L", "settings": "epsilom=1", "keys": "/none"}
    with pytest.raises(ValueError, match=r"keys: the file of keys /none.*settings\.epsilom: FTL has no field"):
        build(args)
    monkeypatch.setattr("serving.app.resolved", lambda model: "/made")
    with pytest.raises(ValueError, match="model: /made is no folder"):
        build({**args, "settings": "epsilon=1", "keys": None})
