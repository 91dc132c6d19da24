"""The Serve application: `serve run serving.app:build model=… ledger=… editor=…`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from ray import serve
from ray.serve import Application, Deployment

from errata.edit_memory.bank import EMBEDDED, PER_TOKEN, Kind
from errata.editors import EDITORS
from errata.editors.build import editor_for, memory_named, own_editor
from errata.local.consolidation_policy import DEFAULT
from errata.local.models import resolved
from errata.local.preflight import StartSettings, problems_of
from errata.local.service_limits import NAMES, ServiceLimits, limits_from
from errata.model.devices import num_gpus
from errata.overrides import WrongSetting
from serving.engine.generator import Generator, ServingOptions
from serving.logs import JSON
from serving.worker.edit_worker import WorkerOptions
from serving.worker.live_model import LiveModelOptions
from serving.worker.served_worker import ServedEditWorker

GPU_MEMORY = 0.9  # vLLM's own default
STEP_TOKENS_ON_CPU = 256  # With vLLM's own 2,048, a burst of questions stops every stream for more than a second.
PLACEMENT_AMOUNT = 0.001  # Of a custom resource that selects nodes and is never used up.


class Arguments(BaseModel):
    """The arguments of `build`.

    `gpus` is the number per replica; with 0 the engine runs on the CPU, eagerly. A part of one GPU, such as 0.5, leaves the
    rest to the edit worker, and gives vLLM the same part of its memory (`gpu_memory`).

    `editor`, `artifact`, `preset` and `settings` are arguments of `make_editor`. Without `editor`, it is that of the artifact,
    or the default, which keeps edits in a memory of answers. `guard` sets fields of the `Guard`. `settings` and `guard` may be
    texts, too: `field=value;field=value`. `probes` is a file of sentences and questions whose answers no edit may change.
    `keys` is a file of access keys, required for a service that other machines can reach. `placement` is a custom resource,
    such as `serve`, of the nodes on which the service may run. `images` may be sent with a request to a model that reads them,
    as `data:` addresses. The fields of `ServiceLimits` are arguments, too.

    A version holds at most `max_batch` edits, and an edit waits at most `batch_window_s` for others; without them, the editor
    decides. `memory` is one that answers by an edit until the editor's weights have learnt it, by the policy `consolidate`.

    `threads` are those of each engine; without it, an engine on the CPU has its share of the cores, and leaves the editor
    `editor_threads` of them while edits are made. `max_num_batched_tokens` is vLLM's: the tokens that a step computes at most.
    """

    model_config = ConfigDict(extra="forbid")
    model: str
    ledger: str
    editor: str = ""
    memory: str | None = None
    consolidate: str | None = None
    artifact: str | None = None
    preset: str | None = None
    settings: dict[str, str] = Field(default_factory=dict)
    guard: dict[str, str] = Field(default_factory=dict)
    probes: str | None = None
    mlflow: str | None = None
    mlflow_name: str = "errata"
    journal: str | None = None
    keys: str | None = None
    images: int = Field(0, ge=0)
    served_name: str = "errata"
    replicas: int = Field(1, ge=1)
    dtype: str = "float32"
    device: str = "cpu"
    gpus: float = Field(0, ge=0)
    placement: str | None = Field(None, min_length=1)
    gpu_memory: float | None = Field(None, gt=0, le=1)
    max_model_len: int | None = Field(None, ge=1)
    max_num_batched_tokens: int | None = Field(None, ge=1)
    pause: Literal["keep", "wait"] = "keep"
    max_batch: int | None = Field(None, ge=1)
    batch_window_s: float | None = Field(None, ge=0)
    nice: int = Field(10, ge=0, le=19)
    idempotency_hours: float = Field(24.0, gt=0, le=24 * 366)
    scrub_hours: float = Field(24.0, ge=0)
    num_cpus: float = Field(0.2, ge=0)
    threads: int | None = Field(None, ge=1)
    editor_threads: int = Field(1, ge=1)  # More threads would wait for each other, and for the engine's, on shared cores.

    @field_validator("gpus")
    @classmethod
    def _whole_or_a_part(cls, given: float) -> float:
        if given > 1 and given % 1:
            raise ValueError(f"{given} is neither a part of one GPU (up to 1) nor a whole number of GPUs")
        return given

    @field_validator("settings", "guard", mode="before")
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        pairs = [pair.partition("=") for pair in given.split(";") if pair.strip()]
        if wrong := [name for name, sign, _ in pairs if not sign]:
            raise ValueError(f"settings are written field=value;field=value; no sign = in: {', '.join(wrong)}")
        return {name.strip(): value.strip() for name, _, value in pairs}


def build(args: dict[str, Any]) -> Application:
    """Build the application.

    Raises `ValueError` with every argument that is unknown, missing, of the wrong type, or that would stop the service later.
    """
    arguments, limits = _read(args)
    if problems := problems_of(_start_settings(arguments), is_here=arguments.placement is None):
        raise _refused(problems)
    if arguments.placement is None and (model := _checkpoint(arguments.model)) != arguments.model:
        arguments = arguments.model_copy(update={"model": model})  # Made on first use, after the checks without it.
        if problems := problems_of(_start_settings(arguments)):
            raise _refused(problems)
    worker_gpus: float = num_gpus(arguments.device)
    if worker_gpus == 1 and 0 < arguments.gpus < 1:
        worker_gpus = round(1 - arguments.gpus, 4)
    # The worker takes what all replicas send it, because each of them has its own limits.
    resources = _resources(arguments, worker_gpus, arguments.editor_threads)
    worker = _deployed("EditWorker", ServedEditWorker, 1, resources, arguments.replicas * limits.max_ongoing_requests)
    resources = _resources(arguments, arguments.gpus, max(_engine_threads(arguments)))
    served = serve.ingress()(Generator)
    generator = _deployed("Generator", served, arguments.replicas, resources, limits.max_ongoing_requests)
    return generator.bind(worker.bind(_worker_options(arguments, limits)), _serving_options(arguments, limits))


def _read(args: dict[str, Any]) -> tuple[Arguments, ServiceLimits]:
    """Read the arguments and, among them, the limits. Raises `ValueError` with all that cannot be read."""
    wrong, limits, arguments = list[str](), ServiceLimits(), None
    try:
        limits = limits_from({name: value for name, value in args.items() if name in NAMES})
    except WrongSetting as fault:
        wrong.append(str(fault))
    try:
        arguments = Arguments.model_validate({name: value for name, value in args.items() if name not in NAMES})
    except ValidationError as faults:
        wrong += [f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in faults.errors()]
    if wrong or arguments is None:
        raise _refused(wrong)
    editor = editor_for(arguments.editor, arguments.artifact, arguments.preset, arguments.memory)
    return arguments.model_copy(update={"editor": editor}), limits


def _checkpoint(model: str) -> str:
    """Return the folder of the model. Raises `ValueError` for a GGUF file or a default model that cannot be made into one."""
    try:
        return resolved(model)
    except ValueError as wrong:
        raise _refused([f"model: {wrong}"]) from None


def _refused(problems: Iterable[object]) -> ValueError:
    return ValueError(f"serving.app:build cannot start with these arguments: {'; '.join(map(str, problems))}")


def _start_settings(arguments: Arguments) -> StartSettings:
    names = {one.name for one in fields(StartSettings)}
    return StartSettings(**{name: value for name, value in arguments.model_dump().items() if name in names})


def _deployed(name: str, kind: type, num_replicas: int, resources: dict[str, Any], max_ongoing: int) -> Deployment:
    """Make a Serve deployment; health checks, swaps and open event streams count against `max_ongoing`, too."""
    return serve.deployment(
        name=name,
        num_replicas=num_replicas,
        ray_actor_options=resources,
        max_ongoing_requests=max_ongoing,
        max_queued_requests=4 * max_ongoing,  # Far above a burst, because Serve answers 503 beyond it.
        health_check_period_s=2,
        logging_config=dict(JSON),
    )(kind)


def _engine_threads(arguments: Arguments) -> tuple[int, int]:
    """Return the threads of each engine while edits are made and at other times: as configured, or its share of the cores.

    Threads of an engine wait for each other actively, so engines with more threads than cores slow each other and the editor
    down. An editor on the CPU of this machine has cores of its own while it edits.
    """
    if arguments.threads is not None:
        return arguments.threads, arguments.threads
    is_shared = arguments.device == "cpu" and not arguments.gpus
    num_cores = len(os.sched_getaffinity(0))
    left = num_cores - (arguments.editor_threads if is_shared else 0)
    return max(1, left // arguments.replicas), max(1, num_cores // arguments.replicas)


def _resources(arguments: Arguments, num_gpus: float, num_threads: int) -> dict[str, Any]:
    environment = {"OMP_NUM_THREADS": str(num_threads), "RAY_USAGE_STATS_ENABLED": "0"}
    if Path(arguments.model).is_dir():
        environment["HF_HUB_OFFLINE"] = "1"
    if not arguments.gpus:  # One engine process instead of two, and a KV cache of 1 GiB.
        environment |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    if _memory_of(arguments) is not None:  # A memory is read by hooks of the V1 runner, which the CPU has anyway.
        environment["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    environment |= {name: os.environ[name] for name in ("VLLM_CPU_KVCACHE_SPACE", "VLLM_LOGGING_LEVEL") if name in os.environ}
    placed = {arguments.placement: PLACEMENT_AMOUNT} if arguments.placement else {}
    return {"num_cpus": arguments.num_cpus, "num_gpus": num_gpus, "resources": placed, "runtime_env": {"env_vars": environment}}


def _serving_options(arguments: Arguments, limits: ServiceLimits) -> ServingOptions:
    return ServingOptions(
        model=arguments.model,
        ledger=arguments.ledger,
        served_name=arguments.served_name,
        dtype=arguments.dtype,
        max_model_len=arguments.max_model_len,
        tensor_parallel=max(1, int(arguments.gpus)),
        gpu_memory=arguments.gpu_memory or GPU_MEMORY * min(1, arguments.gpus or 1),
        enforce_eager=not arguments.gpus or _memory_of(arguments) in PER_TOKEN | EMBEDDED,  # Compiled graphs call no hooks.
        pause=arguments.pause,
        keys=arguments.keys,
        threads=_engine_threads(arguments),
        max_num_batched_tokens=arguments.max_num_batched_tokens or (None if arguments.gpus else STEP_TOKENS_ON_CPU),
        images=arguments.images,
        memory=_memory_of(arguments),
        limits=limits,
    )


def _memory_of(arguments: Arguments) -> Kind | None:
    """Return the kind of memory that the editor writes; None for one that changes weights, such as a wrapper with its host.

    An operator's own editor on other nodes cannot be imported here, and counts as one that changes weights.
    """
    if arguments.memory:
        return memory_named(arguments.memory).kind
    if ":" in arguments.editor and arguments.placement is None:
        return own_editor(arguments.editor).kind
    found = EDITORS.get(arguments.editor)
    return None if found is None else found.kind


def _worker_options(arguments: Arguments, limits: ServiceLimits) -> WorkerOptions:
    live_model = LiveModelOptions(
        model=arguments.model,
        ledger=arguments.ledger,
        editor=arguments.editor,
        artifact=arguments.artifact,
        preset=arguments.preset,
        settings=arguments.settings,
        guard=arguments.guard,
        probes=arguments.probes,
        dtype=arguments.dtype,
        device=arguments.device,
        max_tokens=arguments.max_model_len,
        memory=arguments.memory,
    )
    return WorkerOptions(
        live_model=live_model,
        journal=arguments.journal or f"{arguments.ledger.rstrip('/')}.journal",
        max_batch=arguments.max_batch,
        batch_window_s=arguments.batch_window_s,
        limits=limits,
        nice=arguments.nice,
        shares_cores=len(set(_engine_threads(arguments))) > 1,
        idempotency_hours=arguments.idempotency_hours,
        scrub_hours=arguments.scrub_hours,
        mlflow=arguments.mlflow,
        mlflow_name=arguments.mlflow_name,
        consolidate=arguments.consolidate or DEFAULT,
    )
