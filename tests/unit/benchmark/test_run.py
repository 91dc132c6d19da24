"""The lifelong benchmark on a random model, with editors whose deltas are known."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from errata.benchmark.files import write
from errata.benchmark.results import BY_NAME, INTERVALS, Answer, CheckpointScores
from errata.benchmark.run import UNEDITED, BenchmarkedEditor, fingerprint, run, run_all, settings_of
from errata.benchmark.stream import BenchmarkStream
from errata.datasets.re_edits import ReEdits
from errata.delta.parts import LowRank
from errata.delta.weight_delta import WeightDelta
from errata.edit import Edit, EditBatch, EditRejected, Probe, batches_of
from errata.editors import EditorState
from errata.editors.hypernet.episode_batch import EpisodeBatch
from errata.editors.hypernet.rledit import RLEdit
from errata.model.generation import own_answer
from errata.model.language_model import LanguageModel
from errata.model.prefix_cache import BatchCache
from errata.testbed.world import World
from tests.unit.benchmark.known_editors import MODULE, Known, Late, Vandal, known, number


def untrained(model: LanguageModel) -> RLEdit:
    batches = list(batches_of(World(20).edits("train", 20), 5))
    editor = RLEdit(("layers.1.mlp.down_proj",), rank=8, num_passes=2)
    return editor.initialised(model, [EpisodeBatch(model, batch).in_scope_texts for batch in batches], batches, seed=0)


def test_the_last_checkpoint_has_every_measure_and_interval(tiny_model: LanguageModel, stream: BenchmarkStream) -> None:
    editor = BenchmarkedEditor("RLEdit", untrained(tiny_model))
    texts = {edit.prompt: f"a text about {edit.target}" for edit in stream.edits[:3]}
    *_, before, last = run(tiny_model, editor, replace(stream, references=texts, num_long=4, long_tokens=20))
    asked = {name for name in INTERVALS if not BY_NAME[name].is_optional}  # The stream's edits are completions.
    assert set(last.intervals) == asked
    for name, (low, high) in last.intervals.items():
        assert low <= number(last, name) <= high, name
    vary = {name for name, (low, high) in last.intervals.items() if low < high}
    assert {"efficacy", "efficacy_tf", "generalisation", "likelihood_generalisation", "fluency"} <= vary
    assert set(before.intervals) == asked - {"fluency", "consistency"}
    assert number(last, "token_accuracy_tf") >= number(last, "efficacy_tf")
    assert number(last, "likelihood_efficacy") >= 0.5 and last["likelihood_locality"] is not None
    assert last["retention_every"] is not None and number(last, "retention_ratio") <= 1.5
    assert last["ppl_ratio_mean"] and last["ppl_ratio_mean_log"] and last["ppl_ratio_max"]
    assert 0 < number(last, "fluency") <= (math.log2(19) + 2 * math.log2(18)) / 3
    assert 0 <= number(last, "consistency") <= 1
    assert before["fluency"] is before["consistency"] is None  # measured at the end only


def test_facts_that_are_edited_again_have_columns_of_their_own(
    tiny_model: LanguageModel, stream: BenchmarkStream, tmp_path: Path
) -> None:
    again = stream.re_edited(tiny_model, ReEdits(0.9, 0.5))
    rows = run_all(tiny_model, [known(change=0.0)], replace(again, max_answer_tokens=32))
    first, *_, last = rows[:3]
    assert first["re_edited"] is first["reverted"] is None  # Nothing is edited twice yet.
    assert (last["re_edited"], last["reverted"]) == (0.0, 1.0)  # The unedited model gives its own answers.
    assert last.intervals["reverted"] == (1.0, 1.0)
    write(rows, tmp_path, {})
    table = (tmp_path / "table.md").read_text()
    assert "| re-edited | reverted |" in table
    plain = run_all(tiny_model, [], stream)
    assert "reverted" not in plain[-1].to_json() and "reverted" in last.to_json()


def test_questions_in_other_ways_have_columns_and_the_others_stay_as_they_are(
    tiny_model: LanguageModel, stream: BenchmarkStream, tmp_path: Path
) -> None:
    tiny_model.module.config.max_position_embeddings = 128
    plain = run_all(tiny_model, [known(change=0.5)], stream)
    rows = run_all(tiny_model, [known(change=0.5)], replace(stream, transformations=("distracted", "negated", "fact_check")))
    asked = {"distracted", "distracted_generalisation", "distracted_locality", "negated", "fact_check"}
    for before, row in zip(plain, rows, strict=True):
        timed = {name for name in before.to_json() if name.endswith(("_ms", "_s", "_bytes"))}
        assert {n: v for n, v in row.to_json().items() if n in before.to_json().keys() - timed} == {
            n: v for n, v in before.to_json().items() if n not in timed
        }
        found = row.to_json().keys() - before.to_json().keys()
        assert found == {name for one in asked for name in (one, f"{one}_low", f"{one}_high")}
    assert rows[0]["distracted_locality"] == 1.0 and number(rows[-1], "distracted_locality") < 1.0
    write(rows, tmp_path, {})
    assert "| distracted | negated | fact check |" in (tmp_path / "table.md").read_text()


def test_kinds_of_rephrasings_have_columns_of_their_own(tiny_model: LanguageModel, stream: BenchmarkStream) -> None:
    """The first edits have rephrasings that are right, as their targets are what the model says; the others are all wrong."""
    own = [replace(edit, rephrasings=edit.rephrasings[:1], target="nothing of that kind") for edit in stream.edits]
    right = {index: said for index in (0, 1) if (said := own_answer(tiny_model, own[index].rephrasings[0], 8))}
    assert right
    own = [replace(edit, target=right[index]) if index in right else edit for index, edit in enumerate(own)]
    kinds = {edit.rephrasings[0]: "paraphrase" if index in right else "continuation" for index, edit in enumerate(own[:4])}
    asked = replace(stream, edits=tuple(own), rephrasing_kinds=kinds, max_answer_tokens=8)
    last = run_all(tiny_model, [], asked)[-1]
    assert (last["generalisation_paraphrase"], last["generalisation_continuation"]) == (1.0, 0.0)
    assert 0.0 < number(last, "generalisation") < 1.0
    assert "generalisation_paraphrase" not in run_all(tiny_model, [], stream)[-1].to_json()


def test_a_form_that_the_model_cannot_be_asked_in_is_refused(tiny_model: LanguageModel, stream: BenchmarkStream) -> None:
    tiny_model.tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"has no chat template: leave in_chat out"):
        run_all(tiny_model, [], replace(stream, transformations=("in_chat", "negated")))
    with pytest.raises(ValueError, match=r"the model's context has \d+: leave out distracted"):
        run_all(tiny_model, [], replace(stream, transformations=("distracted",)))
    with pytest.raises(ValueError, match="no transformation is named louder"):
        replace(stream, transformations=("louder",))


def test_the_first_success_and_the_half_life_are_columns(tiny_model: LanguageModel, stream: BenchmarkStream) -> None:
    """Edits to what the unedited model says are right immediately, and lost when the third batch breaks the model."""
    tiny_model.module.config.max_position_embeddings = 128
    first, *_ = run(tiny_model, known(), stream)
    assert first["immediate"] == 0.0 and first["half_life"] is None  # Nothing is right, so nothing can be lost.
    own = [replace(edit, target=said) for edit in stream.edits if (said := own_answer(tiny_model, edit.prompt))]
    kept = replace(stream, edits=tuple(own), retain_every=1, max_answer_tokens=32)
    *_, last = run(tiny_model, known(change=0.0), kept)
    assert (last["immediate"], last["half_life"], last["retention_ratio"]) == (1.0, math.inf, 1.0)
    *_, lost = run(tiny_model, BenchmarkedEditor("Late", Late(change=0.5)), kept)
    assert 0 < number(lost, "immediate") < 1 and 0 <= number(lost, "half_life") < math.inf


def test_after_run_gets_every_answer_at_the_end(tiny_model: LanguageModel, stream: BenchmarkStream) -> None:
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


def test_the_unedited_model_is_first_and_agrees_with_itself(tiny_model: LanguageModel, stream: BenchmarkStream) -> None:
    rows = run_all(tiny_model, [known()], stream)
    assert [(row.editor, row.edits) for row in rows] == [(n, e) for n in (UNEDITED, "Known") for e in (1, 5, 12)]
    for row in rows[:3]:
        assert row["locality"] == row["locality_tf"] == row["ppl_ratio"] == row["norm_growth"] == 1.0
        assert row["delta_norm"] == row["rejected"] == 0 and row["edit_ms"] is row["solve_ms"] is row["peak_bytes"] is None


def test_a_known_change_is_measured_and_undone(tiny_model: LanguageModel, stream: BenchmarkStream) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_model.module.state_dict().items()}
    *_, last = run(tiny_model, known(change=0.02), stream)
    base_OI = before[f"{MODULE}.weight"]
    assert last["delta_norm"] == pytest.approx(float((torch.full_like(base_OI, 4 * 0.02)).norm() / base_OI.norm()), rel=1e-5)
    assert last["norm_growth"] == pytest.approx(float((base_OI + 0.08).norm() / base_OI.norm()), rel=1e-5)
    capture, solve, rest = (number(last, name) for name in ("capture_ms", "solve_ms", "rest_ms"))
    assert last["edit_ms"] == pytest.approx(capture + solve + rest) and solve > 0
    assert number(last, "saved_bytes") > 4 * base_OI.numel() and last["added_tokens"] == 0.0 and last["added_ms"] is not None
    for name, tensor in tiny_model.module.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_probe_that_is_edited_later_counts_until_then(tiny_model: LanguageModel, stream: BenchmarkStream) -> None:
    first, *rest = stream.edits
    asked = replace(first, locality=(Probe(rest[-1].prompt, "dog"),))
    tiny_model.module.config.max_position_embeddings = 128
    rows = run_all(tiny_model, [known()], replace(stream, edits=(asked, *rest), transformations=("distracted",)))
    assert [row.edits for row in rows] == [1, 5, 12] * 2 and rows[0]["locality"] == rows[0]["locality_tf"] == 1.0
    assert rows[0]["distracted_locality"] == 1.0


def test_all_editors_get_the_same_batches_in_the_same_order(tiny_model: LanguageModel, stream: BenchmarkStream) -> None:
    one, other = known("a", change=0.01), known("b", change=-0.02, refuses=(2,))
    run_all(tiny_model, [one, other], stream)
    assert isinstance(one.editor, Known) and isinstance(other.editor, Known)
    batches = [batch for batch, _ in stream.batches()]
    # The last batch comes first, as warm-up. The batch before a checkpoint comes twice: the second time measures memory.
    last = batches[-1]
    assert one.editor.seen == [last, batches[0], batches[0], batches[1], batches[1], batches[2], batches[3], batches[3]]
    assert other.editor.seen == [last, batches[0], batches[0], batches[1], batches[1], batches[2], batches[3]]


def test_a_hypernetwork_edits_the_random_model(tiny_model: LanguageModel, stream: BenchmarkStream) -> None:
    editor = untrained(tiny_model)
    benchmarked = BenchmarkedEditor("RLEdit", editor, train_s=3.0, settings=settings_of(editor))
    *_, last = run(tiny_model, benchmarked, stream)
    assert number(last, "efficacy_tf") > 0.5 and last["train_s"] == 3.0 and last["rejected"] == 0
    assert (
        last["capture_ms"] and last["solve_ms"] and last["edit_ms"] and last["capture_ms"] + last["solve_ms"] < last["edit_ms"]
    )
    assert last["peak_bytes"] is not None and number(last, "delta_norm") > 0
    assert benchmarked.settings["num_passes"] == 2 and "policy" not in benchmarked.settings
    assert benchmarked.settings["reward"]["discount"] == 1.0
    again = run(tiny_model, benchmarked, stream)[-1]
    for name in ("efficacy", "locality", "delta_norm"):
        assert again[name] == last[name], name


@pytest.mark.parametrize(("refuses", "count"), [((4,), 4), ((1, 4, 5, 2), 12)])
def test_a_refused_batch_is_counted_and_the_stream_goes_on(
    tiny_model: LanguageModel, stream: BenchmarkStream, refuses: tuple[int, ...], count: int
) -> None:
    *_, last = run(tiny_model, known(refuses=refuses), stream)
    assert last["rejected"] == count and last.edits == 12
    if count == 12:
        assert last["edit_ms"] is None and last["delta_norm"] == 0.0 and last["locality"] == 1.0


def test_a_model_with_nan_logits_scores_0_and_the_run_goes_on(
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


def test_an_editor_that_writes_into_the_model_is_detected(tiny_model: LanguageModel, stream: BenchmarkStream) -> None:
    with pytest.raises(AssertionError, match=r"Vandal.*layers\.0\.mlp\.down_proj"):
        run(tiny_model, BenchmarkedEditor("Vandal", Vandal()), stream)


def test_the_base_weights_are_restored_when_a_run_is_interrupted(tiny_model: LanguageModel, stream: BenchmarkStream) -> None:
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


def test_low_rank_and_dense_deltas_score_the_same(tiny_model: LanguageModel, stream: BenchmarkStream) -> None:
    class AsFactors(Known):
        def edit(
            self, model: LanguageModel, batch: EditBatch, state: EditorState, cache: BatchCache | None = None
        ) -> tuple[WeightDelta, EditorState]:
            rows, columns = model.module.get_submodule(MODULE).weight.shape
            return WeightDelta({MODULE: LowRank(torch.full((rows, 1), 0.01), torch.ones(columns, 1))}), state

    factors, dense = (run(tiny_model, BenchmarkedEditor("x", e), stream)[-1] for e in (AsFactors(), Known(change=0.01)))
    assert factors["delta_norm"] == pytest.approx(dense["delta_norm"]) and factors["locality"] == dense["locality"]
