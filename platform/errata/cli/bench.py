"""`errata bench` and `errata ability`, commands of cli.py; neither needs a service."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer()
console = Console()


@app.command()
def bench(
    model: Annotated[str, typer.Option(help="Hugging Face folder or name of the model.")],
    edits: Annotated[Path, typer.Option(help="File of edits with their probes; docs/data.md has the formats.")],
    editor: Annotated[list[str], typer.Option(help="Folder of a trained one, or NAME[:PRESET][=ARTIFACT]; may be repeated.")],
    text: Annotated[Path, typer.Option(help="File of plain sentences, a line each, for the perplexity.")],
    out: Annotated[Path, typer.Option(help="Folder for rows.parquet, answers.parquet, report.json, table.md, curves.png.")],
    batch_size: Annotated[int, typer.Option(help="Edits a batch.", min=1)] = 10,
    checkpoints: Annotated[str, typer.Option(help="Numbers of edits after which all so far are scored.")] = "",
    limit: Annotated[int, typer.Option(help="Take that many edits of the file; 0 for all.", min=0)] = 0,
    seed: Annotated[int, typer.Option(help="Shuffles the edits; 0 leaves them in their order.")] = 0,
    settings: Annotated[list[str] | None, typer.Option("--set", help="EDITOR.field=value; may be repeated.")] = None,
    device: Annotated[
        str, typer.Option(help="Where the model is: cpu, cuda, several such as cuda:0,cuda:1, or auto, all GPUs")
    ] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Play one stream of edits with several editors and score all edits so far at checkpoints; needs no service."""
    from errata.benchmark.arguments import benchmarked_editors, model_of, stream_of
    from errata.benchmark.files import write
    from errata.benchmark.results import Answer, CheckpointScores
    from errata.benchmark.run import run_all
    from errata.benchmark.summary import summarise
    from errata.benchmark.tables import described, markdown
    from errata.hardware import hardware

    try:
        benchmarked = benchmarked_editors(editor, settings or [], device)
        stream = stream_of(edits, text, batch_size, checkpoints, limit, seed)
        machine = hardware()
        out.mkdir(parents=True, exist_ok=True)  # what cannot be written to is seen before hours of work
        language_model = model_of(model, dtype, device)
        by_editor = {one.name: one.settings for one in benchmarked}
        meta = {"command": shlex.join(["errata", *sys.argv[1:]]), "seeds": [seed], "hardware": machine, "settings": by_editor}
        rows, answered = list[CheckpointScores](), list[Answer]()

        def note(row: CheckpointScores) -> None:
            rows.append(row)
            console.print(described(row), soft_wrap=True)

        def save(said: list[Answer]) -> None:  # after every editor, so that nothing is lost with a later one
            answered.extend(said)
            write(rows, out, meta, answered=answered)

        run_all(language_model, benchmarked, stream, note, save)
    except (ValueError, OSError) as wrong:
        console.print(str(wrong), style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    console.print(markdown(summarise(rows)), soft_wrap=True)
    console.print(f"written to {out}")


@app.command()
def ability(
    model: Annotated[Path, typer.Option(help="Folder of a checkpoint; `errata export` writes one of a version.")],
    tasks: Annotated[str, typer.Option(help="Names with commas between them: of files in the task folder, or lm-eval's own.")],
    out: Annotated[Path, typer.Option(help="Folder for ability.json.")],
    backend: Annotated[str, typer.Option(help="What runs the model: hf (transformers) or vllm.")] = "hf",
    task_folder: Annotated[Path | None, typer.Option(help="Folder of task files; without it, the three small ones.")] = None,
    limit: Annotated[int, typer.Option(help="Take that many records of each task; 0 for all.")] = 0,
    shots: Annotated[int | None, typer.Option(help="Examples before each question; without it, as the task says.")] = None,
    device: Annotated[str, typer.Option(help="Where the model is with the backend hf: cpu, cuda, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Score a checkpoint's general ability with lm-eval: GLUE and MMLU, or small tasks of their kinds; needs no service."""
    from errata.evaluate.general_ability import TASKS, AbilityOptions, measure, save

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        options = AbilityOptions(backend, task_folder or TASKS, limit or None, shots, device, dtype)
        found = measure(model, names, options)
    except (ValueError, OSError) as wrong:
        console.print(str(wrong), style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    table = Table("task", "score", "value", "standard error", "records")
    for name, result in found["tasks"].items():
        for metric in (key for key in result if f"{key}_stderr" in result):
            value, error = result[metric], result[f"{metric}_stderr"]
            table.add_row(name, metric, f"{value:.3f}", f"{error:.3f}", str(result["num_records"]))
    console.print(table)
    console.print(f"written to {save(found, out)}")
