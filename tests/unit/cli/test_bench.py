"""The command `errata bench` on a random model: its files, and its messages about bad input."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from errata.benchmark.files import read, read_answers
from errata.cli.main import app
from errata.datasets.reader import write_parquet
from errata.edit import batches_of
from errata.editors.hypernet.episode_batch import EpisodeBatch
from errata.editors.hypernet.rledit import RLEdit
from errata.model.language_model import load
from errata.testbed import smollm2
from errata.testbed.world import World

pytestmark = pytest.mark.usefixtures("output_is_not_redirected")
MODULES = ("layers.1.mlp.down_proj",)


@pytest.fixture(scope="module")
def files(model_dir: Path, world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Make the options of a valid run."""
    folder = tmp_path_factory.mktemp("bench")
    write_parquet(world.edits("test", 8), folder / "edits.parquet")
    (folder / "plain.txt").write_text("\n".join(world.plain_sentences(held_out=True)[:5]) + "\n\n")
    model = load(model_dir)
    batches = list(batches_of(world.edits("train", 10), 5))
    editor = RLEdit(MODULES, rank=8).initialised(
        model, [EpisodeBatch(model, b).in_scope_texts for b in batches], batches, seed=0
    )
    for name in ("one", "two"):
        editor.save(folder / name, {"train_s": 12.5})
    return {
        "--model": str(model_dir),
        "--edits": str(folder / "edits.parquet"),
        "--editor": str(folder / "one"),
        "--text": str(folder / "plain.txt"),
        "--out": str(folder / "out"),
    }


def bench(options: dict[str, str], *more: str) -> Any:
    return CliRunner().invoke(app, ["bench", *(part for option in options.items() for part in option), *more])


def test_a_trained_editor_is_scored(files: dict[str, str]) -> None:
    done = bench(files, "--batch-size", "4", "--checkpoints", "1,4", "--seed", "3")
    assert done.exit_code == 0, done.output
    rows = read(Path(files["--out"]) / "rows.parquet")
    assert [(row.editor, row.edits, row.seed) for row in rows] == [(n, e, 3) for n in ("unedited", "RLEdit") for e in (1, 4, 8)]
    assert rows[-1]["train_s"] == 12.5 and rows[-1]["rejected"] == 0
    answered = read_answers(Path(files["--out"]) / "answers.parquet")
    assert {(answer.editor, answer.edits) for answer in answered} == {("unedited", 8), ("RLEdit", 8)}
    report = json.loads((Path(files["--out"]) / "report.json").read_text())
    assert report["settings"]["RLEdit"]["modules"] == list(MODULES) and report["hardware"]["num_cores"]
    assert "| RLEdit | 8 |" in done.output


@pytest.mark.parametrize("name", ["a.gguf", smollm2.NAME])
def test_a_gguf_file_and_the_default_model_are_resolved(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("errata.local.models.ready", lambda model: "")
    monkeypatch.setattr("errata.local.models.resolved", lambda model: files["--model"] if model == name else model)
    done = bench(files | {"--model": name, "--out": str(tmp_path)}, "--limit", "2")
    assert done.exit_code == 0, done.output


def test_a_gguf_file_that_is_missing_is_one_line(files: dict[str, str]) -> None:
    for command in (["bench"], ["ability", "--tasks", "small_sst2"]):
        options = (
            files | {"--model": "/none/a.gguf"}
            if command == ["bench"]
            else {"--model": "/none/a.gguf", "--out": files["--out"]}
        )
        done = CliRunner().invoke(app, [*command, *(part for option in options.items() for part in option)])
        assert done.exit_code == 1 and "/none/a.gguf cannot be read" in done.output, done.output


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["bench", "--set", "RLEdit.rank=3"], "was trained with its settings"),
        (["bench", "--dtype", "float99"], "'float99' is not a dtype"),
        (["bench", "--checkpoints", "1,ten"], "not '1,ten'"),
        (["bench", "--device", "gpu"], "'gpu' is not a device"),
        (["ability", "--tasks", "small_sst2", "--backend", "jax"], "the backend is hf or vllm, not 'jax'"),
    ],
)
def test_what_needs_no_model_is_checked_before_one_is_made(
    files: dict[str, str], command: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: str) -> str:
        raise AssertionError("a model is made")

    monkeypatch.setattr("errata.local.models.resolved", fail)
    monkeypatch.setattr(smollm2, "check", lambda: None)
    given = files if command[0] == "bench" else {"--out": files["--out"]}
    options = [part for option in (given | {"--model": smollm2.NAME}).items() for part in option]
    done = CliRunner().invoke(app, [*command, *options])
    assert done.exit_code == 1 and says in done.output.replace("\n", " "), done.output


def test_two_editors_of_a_class_are_named_by_their_folders(files: dict[str, str]) -> None:
    second = Path(files["--editor"]).with_name("two")
    done = bench(files, "--editor", str(second), "--limit", "4")
    assert done.exit_code == 0 and "one, seed 0, 4 edits" in done.output and "two, seed 0, 4 edits" in done.output


def test_settings_of_an_untrained_editor_are_set_by_name(files: dict[str, str]) -> None:
    settings = ("modules=layers.1.mlp.down_proj", "num_epochs=2")
    more = [part for setting in settings for part in ("--set", f"FT-L.{setting}")]
    done = bench(files, "--editor", "FT-L", *more, "--limit", "3")
    assert done.exit_code == 0, done.output
    report = json.loads((Path(files["--out"]) / "report.json").read_text())
    assert report["settings"]["FT-L"]["num_epochs"] == 2 and report["settings"]["FT-L"]["modules"] == list(MODULES)


@pytest.mark.parametrize(
    ("options", "more", "says"),
    [
        ({"--editor": "ROMEO"}, [], "'ROMEO' is neither a folder nor an editor; editors are RLEdit"),
        ({"--editor": "RLEdit"}, [], "RLEdit is trained: name the folder"),
        ({"--editor": "tests"}, [], "no artifact.json"),
        ({"--edits": "none.parquet"}, [], "no file none.parquet"),
        ({"--edits": "README.md"}, [], "is no file of edits: neither Parquet, JSON lines"),
        ({"--text": "none.txt"}, [], "none.txt"),
        ({"--model": "/no/model"}, [], "/no/model"),
        ({}, ["--device", "cuda"], "finds no GPUs"),
        ({}, ["--checkpoints", "1,ten"], "not '1,ten'"),
        ({}, ["--dtype", "float99"], "'float99' is not a dtype"),
        ({}, ["--set", "RLEdit.rank=3"], "was trained with its settings"),
        ({}, ["--set", "FTL.rank=3"], "no editor here is named 'FTL'"),
        ({}, ["--set", "rank"], "EDITOR.field=value"),
        ({"--editor": "LocFT"}, ["--set", "LocFT.epochs=3"], "LocFT has no field 'epochs'; it has modules, num_epochs"),
        ({"--editor": "LocFT"}, ["--set", "LocFT.num_epochs=few"], "'few' is not of type int"),
        ({"--editor": "MEMIT"}, ["--set", "MEMIT.position=promt"], "position: 'promt' is not one of subject, either, prompt"),
        ({"--editor": "LocFT"}, ["--set", "LocFT.modules=layers.9.x"], "no linear module of the model is named layers.9.x"),
        ({"--out": "README.md"}, [], "README.md"),
    ],
)
def test_bad_input_is_named(files: dict[str, str], options: dict[str, str], more: list[str], says: str) -> None:
    done = bench({**files, **options}, *more)
    assert done.exit_code == 1 and says in done.output.replace("\n", " "), done.output


def test_an_unusable_editor_is_named_before_others_run(files: dict[str, str]) -> None:
    done = bench(files, "--editor", "LocFT", "--set", "LocFT.modules=layers.9.x")
    assert done.exit_code == 1 and "named layers.9.x" in done.output and "edits:" not in done.output


def test_the_same_editor_twice_is_refused(files: dict[str, str]) -> None:
    done = bench(files, "--editor", files["--editor"])
    assert done.exit_code == 1 and "given twice" in done.output


@pytest.mark.parametrize("option", [("--batch-size", "0"), ("--limit", "-3")])
def test_a_number_out_of_range_is_named(files: dict[str, str], option: tuple[str, str]) -> None:
    done = bench(files, *option)
    assert done.exit_code == 2 and option[0] in done.output


def test_a_sentence_file_of_another_encoding_is_named(files: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("one caf\xe9 two".encode("latin-1"))
    done = bench({**files, "--text": str(tmp_path / "latin.txt")})
    assert done.exit_code == 1 and "latin.txt is not UTF-8 text" in done.output.replace("\n", "")


PLACE = "AlphaEdit.modules=layers.0.mlp.down_proj"


def test_results_before_a_failing_editor_are_kept(files: dict[str, str], tmp_path: Path) -> None:
    """AlphaEdit has no moments, which is found when it starts."""
    out = tmp_path / "kept"
    done = bench(
        {**files, "--editor": "LocFT", "--out": str(out)}, "--editor", "AlphaEdit:testbed", "--limit", "2", "--set", PLACE
    )
    assert done.exit_code == 1 and "moments" in done.output
    assert {row.editor for row in read(out / "rows.parquet")} == {"unedited", "LocFT"}
