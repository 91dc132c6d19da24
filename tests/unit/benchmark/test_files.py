"""Result files that are written and read back."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from errata.benchmark.files import read, read_answers, write
from errata.benchmark.results import BY_NAME, COLUMNS, IN_TABLES, REQUIRED, Answer, CheckpointScores
from errata.benchmark.run import UNEDITED, run_all
from errata.benchmark.stream import BenchmarkStream
from errata.evaluate.transformations import CONTEXTS
from errata.model.language_model import LanguageModel
from tests.fakes.full_disk import no_file_over
from tests.unit.benchmark.known_editors import known

# Other programs read these columns, so their names, types and order never change.
SHARES = "efficacy generalisation locality retention portability harmonic_mean".split()
VALUES = """editor seed edits efficacy generalisation locality locality_gold retention portability harmonic_mean ppl_ratio
    edit_ms train_s efficacy_tf generalisation_tf locality_tf retention_tf portability_tf harmonic_mean_tf norm_growth
    delta_norm precompute_s capture_ms solve_ms rest_ms peak_bytes rejected ppl_ratio_mean ppl_ratio_mean_log ppl_ratio_max
    retention_every retention_ratio token_accuracy_tf token_accuracy_generalisation_tf token_accuracy_locality_tf
    likelihood_efficacy likelihood_generalisation likelihood_locality fluency consistency""".split()
BOUNDED = [*SHARES, *(f"{name}_tf" for name in SHARES)]
BOUNDED += """locality_gold retention_every retention_ratio ppl_ratio ppl_ratio_mean ppl_ratio_mean_log token_accuracy_tf
    token_accuracy_generalisation_tf token_accuracy_locality_tf likelihood_efficacy likelihood_generalisation
    likelihood_locality fluency consistency""".split()
# Only files of streams with edits in chat, or with facts that are edited again, have these.
OF_CHAT, OF_RE_EDITS = (
    [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    for names in (("other_system", "second_turn"), ("re_edited", "reverted"))
)
# Older files lack these; files of other streams also lack what is asked in other ways, or of rephrasings of some kinds.
LIFETIME = ["immediate", "immediate_low", "immediate_high", "half_life"]
IN_OTHER_WAYS = [
    f"{name}{end}"
    for name in (
        *("in_chat", "distracted", "negated", "fact_check"),
        *(f"{name}_{kind}" for name in CONTEXTS for kind in ("generalisation", "locality")),
        *("generalisation_paraphrase", "generalisation_continuation"),
    )
    for end in ("", "_low", "_high")
]
ANSWER_COSTS = ["added_tokens", "added_first_ms", "added_ms", "saved_bytes"]  # The unedited model's rows lack them.
IN_REPORT = """efficacy generalisation locality locality_gold retention portability harmonic_mean ppl_ratio efficacy_tf
    generalisation_tf locality_tf token_accuracy_tf likelihood_efficacy retention_ratio fluency norm_growth edit_ms precompute_s
    train_s peak_bytes rejected""".split()


def test_the_columns_of_the_files_stay_as_they_are() -> None:
    known = [*VALUES, *(f"{name}_{side}" for name in BOUNDED for side in ("low", "high"))]
    assert [name for name in COLUMNS if name in known] == known and list(REQUIRED) == VALUES[:27]
    assert [measure.name for measure in IN_TABLES if measure.name in IN_REPORT] == IN_REPORT
    assert set(COLUMNS) - set(known) == {*OF_CHAT, *OF_RE_EDITS, *LIFETIME, *IN_OTHER_WAYS, *ANSWER_COSTS}
    assert {name for name in known if COLUMNS[name] is int} == {"seed", "edits", "peak_bytes", "rejected"}


def test_scores_have_every_measure_and_no_other() -> None:
    with pytest.raises(ValueError, match="hardness"):
        CheckpointScores("A", 0, 1, {**dict.fromkeys(BY_NAME), "hardness": 1.0})


def test_written_rows_are_read_back(tiny_model: LanguageModel, stream: BenchmarkStream, tmp_path: Path) -> None:
    rows = [row for seed in (0, 1) for row in run_all(tiny_model, [known(change=0.01 * seed)], replace(stream, seed=seed))]
    write(rows, tmp_path, {"command": "errata bench", "seeds": [0, 1], "settings": {"Known": {}}}, "a note")
    assert read(tmp_path / "rows.parquet") == rows
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["command"] == "errata bench" and len(report["rows"]) == 12 and report["rows"][0]["editor"] == UNEDITED
    assert [one["editor"] for one in report["standings"]] == [UNEDITED, "Known"] and report["standings"][0]["edits"] == 12
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    table = (tmp_path / "table.md").read_text()
    assert table.index("| unedited | 12 | 2 |") < table.index("| Known | 12 | 2 |") and table.endswith("a note\n")


def test_files_that_cannot_be_written_leave_the_old_ones(
    tiny_model: LanguageModel, stream: BenchmarkStream, tmp_path: Path
) -> None:
    rows = run_all(tiny_model, [known()], stream)
    write(rows, tmp_path, {}, "the old note")
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for limit in sorted({len(content) - 1 for content in old.values()}):
        with no_file_over(limit), pytest.raises(OSError):
            write(rows, tmp_path, {}, "the old note")
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_answers_and_rows_of_the_first_format_are_read_back(
    tiny_model: LanguageModel, stream: BenchmarkStream, tmp_path: Path
) -> None:
    answered: list[Answer] = []
    rows = run_all(tiny_model, [known()], stream, after_run=answered.extend)
    write(rows, tmp_path, {}, answered=answered)
    assert read_answers(tmp_path / "answers.parquet") == answered
    table = pq.read_table(tmp_path / "rows.parquet")
    assert table.column_names == [name for name in COLUMNS if name not in (*OF_CHAT, *OF_RE_EDITS, *IN_OTHER_WAYS)] and {
        "harmonic_mean_low",
        "fluency_high",
    } <= set(table.column_names)
    pq.write_table(table.select(REQUIRED), tmp_path / "older.parquet")
    assert [row["efficacy"] for row in read(tmp_path / "older.parquet")] == [row["efficacy"] for row in rows]
    assert read(tmp_path / "older.parquet")[0].intervals == {}
    shown, table_md = rows[-1], (tmp_path / "table.md").read_text()
    for name in ("locality", "harmonic_mean"):
        low, high = shown.intervals[name]
        assert f"{shown[name]:.3f} [{low:.3f}–{high:.3f}]" in table_md


def test_files_of_edits_in_chat_have_the_scores_of_other_contexts(
    tiny_model: LanguageModel, stream: BenchmarkStream, tmp_path: Path
) -> None:
    plain = run_all(tiny_model, [known()], stream)
    values = {**plain[-1].values, "other_system": 0.5, "second_turn": 0.25}
    rows = [*plain[:-1], replace(plain[-1], values=values, intervals={**plain[-1].intervals, "other_system": (0.0, 1.0)})]
    for name, written in (("plain", plain), ("chat", rows)):
        write(written, tmp_path / name, {})
    assert read(tmp_path / "chat" / "rows.parquet") == rows
    assert set(OF_CHAT) <= set(pq.read_table(tmp_path / "chat" / "rows.parquet").column_names)
    assert "| generalisation | other system prompt | second turn | locality |" in (tmp_path / "chat" / "table.md").read_text()
    assert "second" not in (tmp_path / "plain" / "table.md").read_text() + (tmp_path / "plain" / "report.json").read_text()
