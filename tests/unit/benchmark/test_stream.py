"""The stream of edits: batches, checkpoints, samples."""

from dataclasses import replace

import pytest

from errata.benchmark.stream import BenchmarkStream, as_shown
from errata.datasets.re_edits import ReEdits
from errata.model.generation import own_answer
from errata.model.language_model import LanguageModel


def test_batches_end_at_every_checkpoint(stream: BenchmarkStream) -> None:
    assert stream.stops == (1, 5, 12)
    assert [(len(batch), done) for batch, done in stream.batches()] == [(1, 1), (4, 5), (5, 10), (2, 12)]
    shown = [edit for batch, _ in stream.batches() for edit in batch]
    assert shown == [as_shown(edit) for edit in stream.edits] and not any(edit.rephrasings for edit in shown)
    assert any(edit.rephrasings for edit in stream.edits), "which an editor may not see, since they score it"
    for wrong in ({"batch_size": 0}, {"edits": ()}, {"checkpoints": (0,)}, {"retain_every": 0}, {"long_tokens": 0}):
        with pytest.raises(ValueError, match="at least"):
            replace(stream, **wrong)  # type: ignore[arg-type]


def test_every_kth_batch_is_sampled_and_long_prompts_are_spaced_evenly(stream: BenchmarkStream) -> None:
    thirds = replace(stream, batch_size=2, retain_every=3, num_long=3)
    places = [stream.edits.index(edit) for edit in thirds.sampled(0, 12)]
    assert places == [0, 1, 6, 7]
    assert thirds.sampled(1, 7) == (stream.edits[1], stream.edits[6])
    assert thirds.long_prompts() == [stream.edits[i].prompt for i in (0, 4, 8)]
    assert len(replace(stream, num_long=99).long_prompts()) == 12 and replace(stream, num_long=0).long_prompts() == []


def test_a_stream_has_a_share_of_re_edits(tiny_model: LanguageModel, stream: BenchmarkStream) -> None:
    assert stream.re_edited(tiny_model, ReEdits(0.0)) is stream
    again = stream.re_edited(tiny_model, ReEdits(0.9, 0.5))
    assert len(again.edits) == 12 and again.edits[:5] == stream.edits[:5]
    prompts = [edit.prompt for edit in again.edits]
    assert len(set(prompts)) < 12
    truths = {edit.prompt: own_answer(tiny_model, edit.prompt) for edit in stream.edits}
    changed = [edit for edit in again.edits if edit not in stream.edits]
    assert {edit.target == truths[edit.prompt] for edit in changed} == {True, False}
    assert stream.re_edited(tiny_model, ReEdits(0.9, 0.5)) == again


def test_rounds_are_checkpoints_and_end_with_the_truth(tiny_model: LanguageModel, stream: BenchmarkStream) -> None:
    rounds = stream.in_rounds(tiny_model, 2)
    size = len(rounds.edits) // 4
    assert 0 < size <= 12 and rounds.stops == tuple(size * i for i in (1, 2, 3, 4))
    assert [edit.target for edit in rounds.edits[-size:]] == [own_answer(tiny_model, e.prompt) for e in rounds.edits[:size]]
