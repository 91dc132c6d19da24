"""The lifelong benchmark on a random model, with editors whose deltas are known."""

import json
import math
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from errata.benchmark.files import read, read_answers, write
from errata.benchmark.results import COLUMNS, INTERVALS, REQUIRED, Answer, CheckpointScores
from errata.benchmark.run import UNEDITED, BenchmarkedEditor, fingerprint, run, run_all, settings_of
from errata.benchmark.stream import BenchmarkStream
from errata.benchmark.summary import summarise
from errata.benchmark.tables import markdown
from errata.delta.parts import Dense, LowRank
from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, Edit, EditBatch, EditRejected, Probe, batches_of
from errata.editors import Editor, EditorState
from errata.editors.hypernet.episode import EpisodeBatch
from errata.editors.hypernet.rledit import RLEdit
from errata.evaluate.scorecard import harmonic_mean
from errata.hardware import PeakMemory
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec
from errata.model.prefix_cache import BatchCache
from errata.testbed.world import World
from errata.timing import stage_seconds, timed

MODULE = "model.layers.1.mlp.down_proj"


@dataclass(frozen=True)
class Known(Editor):
    """Adds `change` to every weight, or refuses the batches whose number of edits is in `refuses`."""

    modules: tuple[str, ...] = ("layers.1.mlp.down_proj",)
    change: float = 0.01
    refuses: tuple[int, ...] = ()
    seen: list[EditBatch] = field(default_factory=list, compare=False, repr=False)

    def start(self, model: LanguageModel, spec: ModelSpec) -> EditorState:
        return EditorState()

    def edit(
        self, model: LanguageModel, batch: EditBatch, state: EditorState, cache: BatchCache | None = None
    ) -> tuple[WeightDelta, EditorState]:
        self.seen.append(batch)
        if len(batch) in self.refuses:
            raise EditRejected("not today", code=Code.EDITOR_FAILED)
        with timed("capture"):
            weight_OI = model.module.get_submodule(MODULE).weight
        with timed("solve"):
            delta = WeightDelta({MODULE: Dense(torch.full_like(weight_OI, self.change))})
        return delta, EditorState(state.num_edits + len(batch))


@dataclass(frozen=True)
class Vandal(Known):
    """Breaks the contract: it writes into the model."""

    def edit(
        self, model: LanguageModel, batch: EditBatch, state: EditorState, cache: BatchCache | None = None
    ) -> tuple[WeightDelta, EditorState]:
        model.module.get_submodule("model.layers.0.mlp.down_proj").weight.data[0, 0] += 1
        return super().edit(model, batch, state, cache)


@pytest.fixture
def stream(world: World) -> BenchmarkStream:
    return BenchmarkStream(
        tuple(world.edits("test", 12)), tuple(world.plain_sentences(held_out=True)[:20]), 5, checkpoints=(1, 5, 99)
    )


def untrained(model: LanguageModel) -> RLEdit:
    batches = list(batches_of(World(20).edits("train", 20), 5))
    editor = RLEdit(("layers.1.mlp.down_proj",), rank=8, num_passes=2)
    return editor.untrained(model, [EpisodeBatch(model, batch).in_scope_texts for batch in batches], batches, seed=0)


def known(name: str = "Known", **fields: object) -> BenchmarkedEditor:
    return BenchmarkedEditor(name, Known(**fields))  # type: ignore[arg-type]


def test_the_course_meets_every_checkpoint_and_ends(stream: BenchmarkStream) -> None:
    assert stream.stops == (1, 5, 12)
    assert [(len(batch), done) for batch, done in stream.batches()] == [(1, 1), (4, 5), (5, 10), (2, 12)]
    assert tuple(edit for batch, _ in stream.batches() for edit in batch) == stream.edits
    for wrong in ({"batch_size": 0}, {"edits": ()}, {"checkpoints": (0,)}, {"retain_every": 0}, {"long_tokens": 0}):
        with pytest.raises(ValueError, match="at least"):
            replace(stream, **wrong)  # type: ignore[arg-type]


def test_every_kth_batch_is_sampled_and_the_long_prompts_are_spread(stream: BenchmarkStream) -> None:
    thirds = replace(stream, batch_size=2, retain_every=3, num_long=3)
    places = [stream.edits.index(edit) for edit in thirds.sampled(0, 12)]
    assert places == [0, 1, 6, 7]
    assert thirds.sampled(1, 7) == (stream.edits[1], stream.edits[6])
    assert thirds.long_prompts() == [stream.edits[i].prompt for i in (0, 4, 8)]
    assert len(replace(stream, num_long=99).long_prompts()) == 12 and replace(stream, num_long=0).long_prompts() == []


def test_a_row_has_intervals_and_every_further_score(tiny_model: LanguageModel, stream: BenchmarkStream) -> None:
    editor = BenchmarkedEditor("RLEdit", untrained(tiny_model))
    texts = {edit.prompt: f"a text about {edit.target}" for edit in stream.edits[:3]}
    *_, before, last = run(tiny_model, editor, replace(stream, references=texts, num_long=4, long_tokens=20))
    assert set(last.intervals) == set(INTERVALS)
    for name, (low, high) in last.intervals.items():
        assert low <= last[name] <= high, name
    vary = {name for name, (low, high) in last.intervals.items() if low < high}
    assert {"efficacy", "efficacy_tf", "generalisation", "likelihood_generalisation", "fluency"} <= vary
    assert set(before.intervals) == set(INTERVALS) - {"fluency", "consistency"}
    assert (
        last["token_accuracy_tf"] is not None
        and last["efficacy_tf"] is not None
        and last["token_accuracy_tf"] >= last["efficacy_tf"]
    )
    assert (
        last["likelihood_efficacy"] is not None
        and last["likelihood_efficacy"] >= 0.5
        and last["likelihood_locality"] is not None
    )
    assert last["retention_every"] is not None and last["retention_ratio"] is not None and last["retention_ratio"] <= 1.5
    assert last["ppl_ratio_mean"] and last["ppl_ratio_mean_log"] and last["ppl_ratio_max"]
    assert last["fluency"] is not None and 0 < last["fluency"] <= (math.log2(19) + 2 * math.log2(18)) / 3
    assert last["consistency"] is not None and 0 <= last["consistency"] <= 1
    assert before["fluency"] is before["consistency"] is None  # asked at the end alone


def test_every_answer_at_the_end_is_handed_over(tiny_model: LanguageModel, stream: BenchmarkStream) -> None:
    answered: list[Answer] = []
    rows = run_all(tiny_model, [known(change=0.5)], stream, after_run=answered.extend)
    for row in (rows[2], rows[-1]):
        own = [answer for answer in answered if answer.editor == row.editor]
        assert {answer.edits for answer in own} == {12}
        for kind in ("efficacy", "generalisation", "locality", "portability"):
            marks = [answer.right for answer in own if answer.kind == kind]
            assert sum(marks) / len(marks) == row[kind], kind
        assert [answer.prompt for answer in own if answer.kind == "retention"] == [edit.prompt for edit in stream.edits[:5]]
    assert any(not answer.right for answer in answered if answer.kind == "locality")
    unedited = [answer for answer in answered if answer.editor == UNEDITED and answer.kind == "locality"]
    assert all(answer.answer.startswith(answer.wanted) for answer in unedited)


def test_the_unedited_model_stands_first_and_agrees_with_itself(tiny_model: LanguageModel, stream: BenchmarkStream) -> None:
    rows = run_all(tiny_model, [known()], stream)
    assert [(row.editor, row.edits) for row in rows] == [(n, e) for n in (UNEDITED, "Known") for e in (1, 5, 12)]
    for row in rows[:3]:
        assert row["locality"] == row["locality_tf"] == row["ppl_ratio"] == row["norm_growth"] == 1.0
        assert row["delta_norm"] == row["rejected"] == 0 and row["edit_ms"] is row["solve_ms"] is row["peak_bytes"] is None


def test_a_known_change_is_measured_and_gone_afterwards(tiny_model: LanguageModel, stream: BenchmarkStream) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_model.module.state_dict().items()}
    *_, last = run(tiny_model, known(change=0.02), stream)
    base_OI = before[f"{MODULE}.weight"]
    assert last["delta_norm"] == pytest.approx(float((torch.full_like(base_OI, 4 * 0.02)).norm() / base_OI.norm()), rel=1e-5)
    assert last["norm_growth"] == pytest.approx(float((base_OI + 0.08).norm() / base_OI.norm()), rel=1e-5)
    assert (
        last["edit_ms"] is not None
        and last["rest_ms"] is not None
        and last["capture_ms"] is not None
        and last["solve_ms"] is not None
    )
    assert last["edit_ms"] == pytest.approx(last["capture_ms"] + last["solve_ms"] + last["rest_ms"]) and last["solve_ms"] > 0
    for name, tensor in tiny_model.module.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_probe_that_is_edited_later_is_a_probe_until_then(tiny_model: LanguageModel, stream: BenchmarkStream) -> None:
    first, *rest = stream.edits
    asked = replace(first, locality=(Probe(rest[-1].prompt, "dog"),))
    rows = run_all(tiny_model, [known()], replace(stream, edits=(asked, *rest)))
    assert [row.edits for row in rows] == [1, 5, 12] * 2 and rows[0]["locality"] == rows[0]["locality_tf"] == 1.0


def test_everybody_gets_the_same_batches_in_the_same_order(tiny_model: LanguageModel, stream: BenchmarkStream) -> None:
    one, other = known("a", change=0.01), known("b", change=-0.02, refuses=(2,))
    run_all(tiny_model, [one, other], stream)
    assert isinstance(one.editor, Known) and isinstance(other.editor, Known)
    batches = [batch for batch, _ in stream.batches()]
    # the last comes first, to warm up; the batch before a checkpoint twice: its repetition shows the memory
    last = batches[-1]
    assert one.editor.seen == [last, batches[0], batches[0], batches[1], batches[1], batches[2], batches[3], batches[3]]
    assert other.editor.seen == [last, batches[0], batches[0], batches[1], batches[1], batches[2], batches[3]]


def test_a_learned_editor_edits_the_random_model(tiny_model: LanguageModel, stream: BenchmarkStream) -> None:
    editor = untrained(tiny_model)
    benchmarked = BenchmarkedEditor("RLEdit", editor, train_s=3.0, settings=settings_of(editor))
    *_, last = run(tiny_model, benchmarked, stream)
    assert last["efficacy_tf"] is not None and last["efficacy_tf"] > 0.5 and last["train_s"] == 3.0 and last["rejected"] == 0
    assert (
        last["capture_ms"] and last["solve_ms"] and last["edit_ms"] and last["capture_ms"] + last["solve_ms"] < last["edit_ms"]
    )
    assert last["peak_bytes"] is not None and last["delta_norm"] > 0
    assert benchmarked.settings["num_passes"] == 2 and "policy" not in benchmarked.settings
    assert benchmarked.settings["reward"]["discount"] == 1.0
    again = run(tiny_model, benchmarked, stream)[-1]
    assert (again.efficacy, again.locality, again.delta_norm) == (last["efficacy"], last["locality"], last["delta_norm"])


@pytest.mark.parametrize(("refuses", "count"), [((4,), 4), ((1, 4, 5, 2), 12)])
def test_a_refused_batch_is_counted_and_the_stream_goes_on(
    tiny_model: LanguageModel, stream: BenchmarkStream, refuses: tuple[int, ...], count: int
) -> None:
    *_, last = run(tiny_model, known(refuses=refuses), stream)
    assert last["rejected"] == count and last.edits == 12
    if count == 12:
        assert last["edit_ms"] is None and last["delta_norm"] == 0.0 and last["locality"] == 1.0


def test_a_model_that_says_nan_scores_nothing_and_stops_nothing(
    tiny_model: LanguageModel, stream: BenchmarkStream, tmp_path: Path
) -> None:
    before = fingerprint(tiny_model)
    rows = run_all(tiny_model, [known(change=math.nan)], stream)
    last = rows[-1]
    assert last["efficacy"] == last["generalisation"] == last["locality"] == last["efficacy_tf"] == last["harmonic_mean"] == 0.0
    assert last["ppl_ratio"] == last["norm_growth"] == last["delta_norm"] == math.inf
    assert fingerprint(tiny_model) == before
    write(rows, tmp_path, {})
    report = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert report["rows"][-1]["ppl_ratio"] is None and [len(rows) - 1, "ppl_ratio"] in report["not_finite"]
    assert "∞" in (tmp_path / "table.md").read_text()


def test_an_editor_that_writes_into_the_model_is_caught(tiny_model: LanguageModel, stream: BenchmarkStream) -> None:
    with pytest.raises(AssertionError, match=r"Vandal.*layers\.0\.mlp\.down_proj"):
        run(tiny_model, BenchmarkedEditor("Vandal", Vandal()), stream)


def test_the_base_comes_back_when_a_run_breaks_off(tiny_model: LanguageModel, stream: BenchmarkStream) -> None:
    before = fingerprint(tiny_model)

    def stop(row: CheckpointScores) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, known(), stream, after_checkpoint=stop)
    assert fingerprint(tiny_model) == before


def test_an_edit_that_does_not_fit_is_named(tiny_model: LanguageModel, stream: BenchmarkStream) -> None:
    long = Edit(" ".join(["river"] * 60), "bridge", locality=(Probe("the river", "ends"),))
    with pytest.raises(EditRejected, match="60 tokens"):
        run(tiny_model, known(), replace(stream, edits=(long,)))


def test_files_can_be_read_again(tiny_model: LanguageModel, stream: BenchmarkStream, tmp_path: Path) -> None:
    rows = [row for seed in (0, 1) for row in run_all(tiny_model, [known(change=0.01 * seed)], replace(stream, seed=seed))]
    write(rows, tmp_path, {"command": "errata bench", "seeds": [0, 1], "settings": {"Known": {}}}, "a note")
    assert read(tmp_path / "rows.parquet") == rows
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["command"] == "errata bench" and len(report["rows"]) == 12 and report["rows"][0]["editor"] == UNEDITED
    assert [one["editor"] for one in report["standings"]] == [UNEDITED, "Known"] and report["standings"][0]["edits"] == 12
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    table = (tmp_path / "table.md").read_text()
    assert table.index("| unedited | 12 | 2 |") < table.index("| Known | 12 | 2 |") and table.endswith("a note\n")


def test_answers_can_be_read_again_and_older_rows_too(
    tiny_model: LanguageModel, stream: BenchmarkStream, tmp_path: Path
) -> None:
    answered: list[Answer] = []
    rows = run_all(tiny_model, [known()], stream, after_run=answered.extend)
    write(rows, tmp_path, {}, answered=answered)
    assert read_answers(tmp_path / "answers.parquet") == answered
    table = pq.read_table(tmp_path / "rows.parquet")
    assert table.column_names == list(COLUMNS) and {"harmonic_mean_low", "fluency_high"} <= set(table.column_names)
    pq.write_table(table.select(REQUIRED), tmp_path / "older.parquet")
    assert [row["efficacy"] for row in read(tmp_path / "older.parquet")] == [row["efficacy"] for row in rows]
    assert read(tmp_path / "older.parquet")[0].intervals == {}
    shown, table_md = rows[-1], (tmp_path / "table.md").read_text()
    for name in ("locality", "harmonic_mean"):
        low, high = shown.intervals[name]
        assert f"{shown[name]:.3f} [{low:.3f}–{high:.3f}]" in table_md


def test_a_standing_is_mean_smallest_and_largest_over_seeds(tiny_model: LanguageModel, stream: BenchmarkStream) -> None:
    row = run(tiny_model, BenchmarkedEditor(UNEDITED, None), stream)[-1]
    rows = [
        replace(row, editor="a", seed=seed, values={**row.values, "efficacy": value})
        for seed, value in enumerate((0.2, 0.4, 0.9))
    ]
    (one,) = summarise(rows)
    summary = one.measures["efficacy"]
    assert summary is not None and (summary.min, summary.max) == (0.2, 0.9) and summary.mean == pytest.approx(0.5)
    assert one.seeds == (0, 1, 2) and "0.500 (0.200–0.900)" in markdown([one])
    assert summarise(rows, edits=7) == []


def test_harmonic_mean() -> None:
    assert harmonic_mean(1.0, 0.5, None) == pytest.approx(2 / 3)
    assert harmonic_mean(1.0, 0.0) == 0.0 and harmonic_mean(None) is None


def test_time_is_counted_by_stage_only_while_somebody_measures() -> None:
    @timed("work")
    def work() -> int:
        return threading.active_count()

    work()
    with stage_seconds() as seconds:
        work()
        work()
        with pytest.raises(KeyError), timed("failing"):
            raise KeyError
    assert set(seconds) == {"work", "failing", "total"} and seconds["total"] >= seconds["work"] > 0
    with stage_seconds() as other:
        pass
    assert set(other) == {"total"}


def test_a_peak_of_memory_is_seen_after_it_is_gone() -> None:
    with PeakMemory() as memory:
        torch.ones(4_000_000).sum()
    assert memory.num_bytes is None or 12_000_000 < memory.num_bytes < 40_000_000


def test_low_rank_and_dense_changes_are_the_same_to_the_benchmark(tiny_model: LanguageModel, stream: BenchmarkStream) -> None:
    class AsFactors(Known):
        def edit(
            self, model: LanguageModel, batch: EditBatch, state: EditorState, cache: BatchCache | None = None
        ) -> tuple[WeightDelta, EditorState]:
            rows, columns = model.module.get_submodule(MODULE).weight.shape
            return WeightDelta({MODULE: LowRank(torch.full((rows, 1), 0.01), torch.ones(columns, 1))}), state

    factors, dense = (run(tiny_model, BenchmarkedEditor("x", e), stream)[-1] for e in (AsFactors(), Known(change=0.01)))
    assert factors["delta_norm"] == pytest.approx(dense["delta_norm"]) and factors["locality"] == dense["locality"]
