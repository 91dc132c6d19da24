"""Ray Train workers of the training jobs: starting them, checkpoints, and the sum of gradients."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray
import ray.train
import torch
from ray._private import ray_constants
from ray.train.torch import TorchConfig, TorchTrainer

from errata.local.services import LOOPBACK
from jobs.plan import MARK, Plan

# Without these, report() waits for the controller's poll of 2 s, and Ray shows printed lines twice.
ENVIRONMENT = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "RAY_TRAIN_ENABLE_PRINT_PATCH": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0"}
MAX_LOSSES = 3  # of workers or nodes, in one submit
# Seconds that a group of workers waits for resources before it is requested again, and the number of requests in one submit.
START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
FIXED_STARTS = (300, 6)  # a node that replaces a lost one may have to be set up first
ELASTIC_STARTS = (10, 16)  # Ray counts a lost node's CPUs for up to 20 s, in which three requests fail


class TrainingGivenUp(RuntimeError):
    """Training failure: workers were lost, or failed, too often."""


def start_ray() -> None:
    """Connect to the cluster of $RAY_ADDRESS, or start one for this process that listens only on the loopback address."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ |= ENVIRONMENT
    if "RAY_ADDRESS" not in os.environ:
        os.environ |= LOOPBACK
        ray_constants.ENABLE_RAY_CLUSTER = False  # Ray read the variable when it was imported
    if not ray.is_initialized():
        there = {"address": os.environ["RAY_ADDRESS"]} if "RAY_ADDRESS" in os.environ else {"include_dashboard": False}
        ray.init(**there, log_to_driver=True)


def run_on_workers(
    work: Callable[[dict[str, Any]], None],
    plan: Plan,
    name: str,
    config: Mapping[str, Any] | None = None,
    callbacks: Sequence[Any] = (),
    share: float = 1.0,
) -> ray.train.Result:
    """Call `work({"plan": plan, "share": share, **config})` on each of the plan's workers.

    A run of the same name continues from its last checkpoint. The loss of a worker or a node is repaired `MAX_LOSSES` times, on
    other nodes or, if the plan has `min_workers`, with fewer workers. `share` is the run's part of the cluster's CPUs. Raises
    `TrainingGivenUp`.
    """
    start_ray()
    start_s, max_starts = ELASTIC_STARTS if plan.min_workers else FIXED_STARTS
    os.environ.setdefault(START_TIMEOUT, str(start_s))
    per_worker = worker_resources(plan, share * float(ray.cluster_resources().get("CPU", 1)))
    if plan.min_workers:
        wanted = f"resources for {plan.min_workers} to {plan.num_workers} workers"
        released = "Ray releases those of a killed run within 3 minutes"
        print(f"{name.partition('-')[0]}: waiting for {wanted}; {released}", flush=True)
    failures = ray.train.FailureConfig(max_failures=MAX_LOSSES, controller_failure_limit=max_starts - 1)  # type: ignore[call-arg]
    elastic: Any = (plan.min_workers, plan.num_workers)  # missing in its type annotations
    trainer = TorchTrainer(
        work,
        train_loop_config={"plan": plan, "share": share, **(config or {})},
        torch_config=TorchConfig(backend="nccl" if plan.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=elastic if plan.min_workers else plan.num_workers,
            use_gpu=plan.use_gpu,
            resources_per_worker=per_worker,
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # its types are still those of Train V1
            name=name,
            storage_path=plan.storage_for("train"),
            failure_config=failures,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            worker_runtime_env={"env_vars": {"TOKENIZERS_PARALLELISM": "false"}},
            callbacks=list(callbacks),
        ),
    )
    try:
        return trainer.fit()
    except ray.train.TrainingFailedError as failed:
        again = "once the cause is removed, the same command continues from the last checkpoint"
        reason = f"{name} was given up: {cause_of(failed)}; {again} in {plan.storage_for('train')}/{name}"
        raise TrainingGivenUp(f"{reason}\n{failed}") from failed


def cause_of(failed: ray.train.TrainingFailedError) -> str:
    """Type and first line of what ended a training run, without the tracebacks that Ray's message consists of."""
    failures = getattr(failed, "worker_failures", {})
    rank, cause = min(failures.items()) if failures else (None, getattr(failed, "controller_failure", failed))
    cause = getattr(cause, "_base_exc", cause)  # Ray Train's wrapper prints the traceback
    first = str(cause).strip().partition("\n")[0]
    return f"{'controller' if rank is None else f'worker {rank}'}: {type(cause).__name__}: {first}"


def worker_resources(plan: Plan, cpus: float) -> dict[str, float]:
    """Resources that a worker requests, of the `cpus` that the run may take.

    They are below one CPU where workers share the cluster with a service or a driver.
    """
    per_worker = (
        {"GPU": float(plan.gpus_per_worker), "CPU": 1.0} if plan.use_gpu else {"CPU": min(1.0, 0.8 * cpus / plan.num_workers)}
    )
    return per_worker | ({plan.placement: MARK} if plan.placement else {})


def own_device(plan: Plan) -> str:
    """Device of this worker's model: the GPUs that Ray assigned, or the CPU."""
    if plan.use_gpu and plan.gpus_per_worker > 1:
        return ",".join(str(device) for device in ray.train.torch.get_devices())
    return "cuda" if plan.use_gpu else "cpu"


def forget_run(plan: Plan, name: str) -> None:
    """Remove the checkpoints of a run, so that the next run of this name starts from nothing."""
    filesystem, folder = pyarrow.fs.FileSystem.from_uri(plan.storage_for("train"))
    if filesystem.get_file_info(f"{folder}/{name}").type == pyarrow.fs.FileType.Directory:
        filesystem.delete_dir(f"{folder}/{name}")


def time_left(started: float, done: int, total: int) -> str:
    """Estimate the remaining time from `done` of `total` steps since `started` on the monotonic clock."""
    return f"about {(time.monotonic() - started) / done * (total - done):.0f} s left"


def set_threads(share: float = 1.0, num_workers: int = 1) -> None:
    """Give torch a share of the machine's cores for each worker on it, whatever number of CPUs Ray declares.

    Ray's default is one thread a worker; more threads than cores are many times slower than one.
    """
    torch.set_num_threads(max(1, int(share * len(os.sched_getaffinity(0)) / num_workers)))


def sum_over_workers(tensors: Sequence[torch.Tensor]) -> None:
    """Sum tensors over all workers, in place and in one message."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    torch.distributed.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def latest_checkpoint() -> dict[str, Any] | None:
    """Load the last committed checkpoint of this run; None if there is none."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as directory:
        return torch.load(Path(directory) / "state.pt", weights_only=True, map_location="cpu")


@contextmanager
def checkpoint_files(state: dict[str, Any] | None) -> Iterator[ray.train.Checkpoint | None]:
    """Yield a checkpoint of `state` for `ray.train.report`, or None without a state."""
    if state is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as directory:
        torch.save(state, Path(directory) / "state.pt")
        yield ray.train.Checkpoint.from_directory(directory)
