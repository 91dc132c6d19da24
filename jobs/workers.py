"""What the training jobs share: starting Ray Train workers, checkpoints, and gradients in common."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray
import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer

from jobs.plans import MARK, Plan

# report() is paced by the controller's poll of 2 s otherwise; prints would come out twice.
ENVIRONMENT = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "RAY_TRAIN_ENABLE_PRINT_PATCH": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0"}


def start_ray() -> None:
    """The cluster of $RAY_ADDRESS, or one of this process."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ |= ENVIRONMENT
    if not ray.is_initialized():
        ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=True)


def run_on_workers(
    work: Callable[[dict[str, Any]], None],
    plan: Plan,
    name: str,
    config: Mapping[str, Any] | None = None,
    callbacks: Sequence[Any] = (),
    share: float = 1.0,
) -> ray.train.Result:
    """`work({"plan": plan, "share": share, **config})` on the plan's workers. A run of the same name continues; a lost worker
    is replaced twice. `share` is the part of the cluster's CPUs that the run takes.
    """
    start_ray()
    per_worker = worker_resources(plan, share * float(ray.cluster_resources().get("CPU", 1)))
    trainer = TorchTrainer(
        work,
        train_loop_config={"plan": plan, "share": share, **(config or {})},
        torch_config=TorchConfig(backend="nccl" if plan.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=plan.num_workers, use_gpu=plan.use_gpu, resources_per_worker=per_worker
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # its types are still those of Train V1
            name=name,
            storage_path=plan.storage_for("train"),
            failure_config=ray.train.FailureConfig(max_failures=2, controller_failure_limit=2),  # type: ignore[call-arg]
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            worker_runtime_env={"env_vars": {"TOKENIZERS_PARALLELISM": "false"}},
            callbacks=list(callbacks),
        ),
    )
    return trainer.fit()


def worker_resources(plan: Plan, cpus: float) -> dict[str, float]:
    """What a worker asks of Ray, of the `cpus` that the run may take: below one CPU where workers must share the cluster with
    a service or with a driver."""
    per_worker = {"GPU": 1.0, "CPU": 1.0} if plan.use_gpu else {"CPU": min(1.0, 0.8 * cpus / plan.num_workers)}
    return per_worker | ({plan.placement: MARK} if plan.placement else {})


def forget_run(plan: Plan, name: str) -> None:
    """Remove the checkpoints of a run, so that one of this name begins anew."""
    filesystem, folder = pyarrow.fs.FileSystem.from_uri(plan.storage_for("train"))
    if filesystem.get_file_info(f"{folder}/{name}").type == pyarrow.fs.FileType.Directory:
        filesystem.delete_dir(f"{folder}/{name}")


def set_threads(share: float = 1.0, num_workers: int = 1) -> None:
    """A share of the machine's cores, counted and not as Ray declares them, for each of the workers on it.

    Ray's own default is one thread a worker; more threads than cores are many times slower than one.
    """
    torch.set_num_threads(max(1, int(share * len(os.sched_getaffinity(0)) / num_workers)))


def sum_gradients(net: torch.nn.Module) -> None:
    """Over the workers, in one message."""
    parameters = [p for p in net.parameters() if p.grad is not None]
    flat = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
    torch.distributed.all_reduce(flat)
    for parameter, grad in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = grad.view_as(parameter)


def latest_checkpoint() -> dict[str, Any] | None:
    """What the last committed checkpoint of this run holds, if it has one."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as directory:
        return torch.load(Path(directory) / "state.pt", weights_only=True, map_location="cpu")


@contextmanager
def checkpoint_files(state: dict[str, Any] | None) -> Iterator[ray.train.Checkpoint | None]:
    """A checkpoint of `state` for `ray.train.report`; None on the workers that have none."""
    if state is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as directory:
        torch.save(state, Path(directory) / "state.pt")
        yield ray.train.Checkpoint.from_directory(directory)
