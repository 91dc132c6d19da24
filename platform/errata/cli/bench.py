"""The commands `errata bench` and `errata ability`; neither needs a service."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from errata.cli.console import logged

app = typer.Typer()


@app.command()
def bench(
    model: Annotated[str, typer.Option(help="Folder, GGUF file or name of the model, such as smollm2-135m-instruct.")],
    edits: Annotated[Path, typer.Option(help="File of edits with their probes; docs/data.md has the formats.")],
    editor: Annotated[list[str], typer.Option(help="Folder of a trained one, or NAME[:PRESET][=ARTIFACT]; may be repeated.")],
    text: Annotated[Path, typer.Option(help="File of plain sentences for the perplexity, one on each line.")],
    out: Annotated[Path, typer.Option(help="Folder for rows.parquet, answers.parquet, report.json, table.md, curves.png.")],
    batch_size: Annotated[int, typer.Option(help="Edits in a batch.", min=1)] = 10,
    checkpoints: Annotated[str, typer.Option(help="Numbers of edits after which all edits so far are scored.")] = "",
    limit: Annotated[int, typer.Option(help="Number of edits to take from the file; 0 for all.", min=0)] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the order of edits; 0 keeps the file's order.")] = 0,
    re_edits: Annotated[float, typer.Option(help="Share of later edits that edit an earlier fact again.", min=0, max=1)] = 0.0,
    reversions: Annotated[float, typer.Option(help="Share of these that post the model's own answer.", min=0, max=1)] = 0.5,
    transformations: Annotated[
        str, typer.Option(help="Other ways to ask all questions, with commas: distracted, negated, …")
    ] = "",
    settings: Annotated[list[str] | None, typer.Option("--set", help="EDITOR.field=value; may be repeated.")] = None,
    device: Annotated[
        str, typer.Option(help="Device of the model: cpu, cuda, several such as cuda:0,cuda:1, or auto for all GPUs.")
    ] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Make one stream of edits with several editors, and score all edits so far at checkpoints; needs no service."""
    from errata.benchmark.arguments import asked_also, benchmarked_editors, check_dtype, model_of, stream_of
    from errata.benchmark.files import write
    from errata.benchmark.results import Answer, CheckpointScores
    from errata.benchmark.run import run_all
    from errata.benchmark.summary import summarise
    from errata.benchmark.tables import described, markdown
    from errata.datasets.re_edits import ReEdits
    from errata.hardware import hardware
    from errata.local.matrix_check import check_editors
    from errata.local.models import ready, resolved

    with logged("bench") as console:
        check_dtype(dtype)
        ready(model)
        benchmarked = benchmarked_editors(editor, settings or [], device)
        stream = stream_of(edits, text, batch_size, checkpoints, limit, seed)
        stream = asked_also(stream, transformations)
        machine = hardware()
        out.mkdir(parents=True, exist_ok=True)  # before hours of work, so that an unwritable folder is found
        model = resolved(model)  # made on first use, so after all that can be checked without it
        check_editors(model, {one.name: one.editor for one in benchmarked if one.editor is not None})
        language_model = model_of(model, dtype, device)
        stream = stream.re_edited(language_model, ReEdits(re_edits, reversions))
        by_editor = {one.name: one.settings for one in benchmarked}
        meta = {"command": shlex.join(["errata", *sys.argv[1:]]), "seeds": [seed], "hardware": machine, "settings": by_editor}
        rows, answered = list[CheckpointScores](), list[Answer]()

        def note(row: CheckpointScores) -> None:
            rows.append(row)
            console.print(described(row), soft_wrap=True)

        def save(answers: list[Answer]) -> None:  # after every editor, so that a later failure loses nothing
            answered.extend(answers)
            write(rows, out, meta, answered=answered)

        run_all(language_model, benchmarked, stream, note, save)
        console.print(markdown(summarise(rows)), soft_wrap=True)
        console.print(f"written to {out}", soft_wrap=True)


@app.command()
def ability(
    model: Annotated[str, typer.Option(help="Folder or GGUF file of a model; `errata export` writes one of a version.")],
    tasks: Annotated[str, typer.Option(help="Names of tasks, with commas: files in the task folder, or tasks of lm-eval.")],
    out: Annotated[Path, typer.Option(help="Folder for ability.json.")],
    backend: Annotated[str, typer.Option(help="Engine of the model: hf (transformers) or vllm.")] = "hf",
    task_folder: Annotated[Path | None, typer.Option(help="Folder of task files; without it, the three small tasks.")] = None,
    limit: Annotated[int, typer.Option(help="Number of records of each task; 0 for all.")] = 0,
    shots: Annotated[int | None, typer.Option(help="Examples before each question; without it, the task's own number.")] = None,
    device: Annotated[str, typer.Option(help="Device of the model with the backend hf: cpu, cuda, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Score a checkpoint's general ability with lm-eval: GLUE and MMLU, or small tasks of their kinds; needs no service."""
    from errata.evaluate.general_ability import TASKS, AbilityOptions, check_folder, check_tasks, measure, save
    from errata.local.models import ready, resolved

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    with logged("ability") as console:
        out.mkdir(parents=True, exist_ok=True)
        options = AbilityOptions(backend, task_folder or TASKS, limit or None, shots, device, dtype)
        if folder := ready(model):
            check_folder(Path(folder))
        check_tasks(names, options)
        found = measure(Path(resolved(model)), names, options)
        table = Table("task", "score", "value", "standard error", "records")
        for name, result in found["tasks"].items():
            for metric in (key for key in result if f"{key}_stderr" in result):
                value, error = result[metric], result[f"{metric}_stderr"]
                table.add_row(name, metric, f"{value:.3f}", f"{error:.3f}", str(result["num_records"]))
        console.print(table)
        console.print(f"written to {save(found, out)}", soft_wrap=True)
