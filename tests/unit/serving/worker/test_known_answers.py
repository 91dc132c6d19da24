"""Edits of a memory whose answers are known without the model (`answer`): from the post to a version, and what is not run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from errata.edit import Code, Edit, EditRejected
from errata.edit_memory.encoder import SentenceEncoder
from errata.edit_memory.hooks import bank_of
from errata.editors.memory_based.questions import MAX_EXPECTED
from errata.guard.limits import VersionRefused
from errata.guard.probes import Probes
from errata.history.budget import WalkBudget
from errata.model.generation import greedy_texts
from serving.worker.dry_run import tried
from serving.worker.edit_worker import EditWorker, WorkerOptions
from serving.worker.journal import Journal
from serving.worker.live_model import LiveModel, LiveModelOptions
from tests.e2e.toy import WORLD
from tests.fakes.edit_worker import InMemoryReplicas

SETTINGS = {"modules": "layers.1.mlp.down_proj"}
FACTS = [
    replace(edit, rephrasings=(), locality=(), portability=(), id=f"id-{i}") for i, edit in enumerate(WORLD.edits("test", 36))
]
OTHER = FACTS[-1].target


def options(checkpoint: Path, folder: Path, **more: object) -> LiveModelOptions:
    return LiveModelOptions(str(checkpoint), str(folder / "ledger"), "answer", settings=SETTINGS, **more)  # type: ignore[arg-type]


@pytest.fixture
def live_model(checkpoint: Path, tmp_path: Path) -> LiveModel:
    return LiveModel(options(checkpoint, tmp_path))


def post(live_model: LiveModel, *edits: Edit) -> int:
    return live_model.append(live_model.make(edits)).number


@contextmanager
def never_run(live_model: LiveModel) -> Iterator[None]:
    """Let the model fail if it is run."""

    def run(_module: object, _args: object) -> None:
        raise AssertionError("the model was run")

    handle = live_model.model.module.base_model.register_forward_pre_hook(run)
    try:
        yield
    finally:
        handle.remove()


def said(live_model: LiveModel, *edits: Edit) -> list[str]:
    return [texts[0] for texts in live_model.answers(edits)]


def test_a_batch_is_made_and_measured_without_the_model(live_model: LiveModel) -> None:
    batch = FACTS[:3]
    with never_run(live_model):
        assert live_model.remembered(batch) == [None] * 3
        made = live_model.make(batch, [None] * 3)
        assert made.scorecard["answers"] == [[None, edit.target] for edit in batch]
        assert made.scorecard["efficacy"] == 1.0 and "norm_growth" in made.scorecard and "ppl_ratio" not in made.scorecard
        live_model.append(made)
        assert live_model.remembered(batch) == [[edit.target] for edit in batch]
        assert live_model.held_counts == {"open": 0, "lost": 0, "repairable": 0}
        assert live_model.answered("id-1") == {"answered": True}
    assert said(live_model, *batch) == [edit.target for edit in batch]


def test_what_a_later_day_ends_stays_in_the_memory_until_that_is_reverted(live_model: LiveModel) -> None:
    first = replace(FACTS[0], valid_from="2010-01-01")
    later = replace(FACTS[0], id="later", target=OTHER, valid_from="2020-01-01")

    def times() -> list[tuple[str, str, str, bool]]:
        records = () if live_model.bank is None else live_model.bank
        return sorted((record.edit, record.valid_from, record.valid_to, record.is_past) for record in records)

    post(live_model, first)
    post(live_model, later)
    assert times() == [("id-0", "2010-01-01", "2020-01-01", True), ("later", "2020-01-01", "", False)]
    assert said(live_model, later) == [OTHER] and live_model.held_counts["open"] == 0
    live_model.append(live_model.revert(["later"], [], "subtract"))
    assert times() == [("id-0", "2010-01-01", "", False)] and said(live_model, first) == [first.target]
    live_model.move_to(2)
    live_model.append(live_model.revert(["id-0"], [], "subtract"))
    assert times() == [("later", "2020-01-01", "", False)] and said(live_model, later) == [OTHER]


def test_other_answers_keep_their_bits(live_model: LiveModel) -> None:
    prompts = [edit.prompts[0] for edit in FACTS[20:26]]
    before = greedy_texts(live_model.model, prompts)
    post(live_model, *FACTS[:3])
    assert greedy_texts(live_model.model, prompts) == before


def test_a_version_keeps_what_is_known_of_the_others(live_model: LiveModel) -> None:
    post(live_model, *FACTS[:3])
    with never_run(live_model):
        post(live_model, FACTS[10])
        assert live_model.held_counts["open"] == 0 and live_model.answered("id-0") == {"answered": True}
        card = live_model.ledger.version(2).scorecard
    assert card["retention"] == 1.0 and card["lost_retention"] == 0.0


def test_a_restart_asks_the_memory_and_not_the_model(live_model: LiveModel) -> None:
    post(live_model, *FACTS[:3])
    again = LiveModel(live_model.options)
    assert again.held_counts["open"] == 3
    with never_run(again):
        assert again.look(16) and not again.look(16)
    assert again.held_counts == {"open": 0, "lost": 0, "repairable": 0} and again.answered("id-2") == {"answered": True}


def test_an_earlier_edit_that_a_new_record_would_take_is_made_again(checkpoint: Path, tmp_path: Path) -> None:
    """It has no record of its own, because the memory answered so already, by the record that is then replaced."""
    loose = LiveModel(replace(options(checkpoint, tmp_path), settings={**SETTINGS, "threshold": "0.01"}))
    first = FACTS[0]
    held = Edit(f"{first.prompt} {first.prompt}", first.target, first.subject, id="held")
    post(loose, first)
    with never_run(loose):
        assert loose.remembered([held]) == [[first.target]]
        loose.hold([held], [held.target])
        assert loose.look(16) and loose.answered("held") == {"answered": True}
        made = loose.make([replace(first, target=OTHER, id="corrected")])
    assert [[edit["id"] for edit in again] for again in made.scorecard["again"]] == [["held"]]
    loose.append(made)
    assert said(loose, first, held) == [OTHER, first.target] and loose.answered("held") == {"answered": True}


def test_records_that_decide_at_probes_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    first = FACTS[0]
    near = f"{first.prompt} {first.prompt}"
    others = [edit for edit in FACTS if edit.subject != first.subject]
    Probes((near, *(edit.prompt for edit in others[:3])), ()).save(tmp_path / "probes.jsonl")
    loose = {"settings": {**SETTINGS, "threshold": "0.01"}, "probes": str(tmp_path / "probes.jsonl")}
    strict = replace(options(checkpoint, tmp_path), **loose, guard={"fires.warn": "0", "fires.refuse": "0.01"})  # type: ignore[arg-type]
    live_model = LiveModel(strict)
    with never_run(live_model), pytest.raises(VersionRefused) as refused:
        live_model.make([first])
    assert refused.value.code is Code.GUARD_FIRES and refused.value.scores["fires"] == 1 / 16
    named = live_model.make([replace(first, rephrasings=(near,))])
    assert named.scorecard["fires"] == 0.0, "a wording that the edit names is no other question"
    far = next(edit for edit in others if edit.subject not in {one.subject for one in others[:3]})
    assert live_model.make([far]).scorecard["fires"] == 0.0
    found = tried(LiveModel(replace(strict, guard={"fires.warn": "0", "fires.refuse": "1"})), [first], WalkBudget())
    assert [one["prompt"] for one in found["neighbours"]["probes"]] == [near]
    assert found["neighbours"]["probes"][0]["after"] == first.target and found["guard"][0]["warnings"]


def test_records_that_take_probes_one_by_one_are_limited_together(checkpoint: Path, tmp_path: Path) -> None:
    """Each decides at one probe of four, counted as of 16; the third passes the limit on all, and one elsewhere does not."""
    chosen = list({edit.subject: edit for edit in FACTS}.values())
    near = [f"{edit.prompt} {edit.prompt}" for edit in chosen[:4]]
    Probes(tuple(near), ()).save(tmp_path / "probes.jsonl")
    loose = {"settings": {**SETTINGS, "threshold": "0.01"}, "probes": str(tmp_path / "probes.jsonl")}
    limits = {"fires.warn": "1", "fires.refuse": "1", "drift.warn": "0.1", "drift.refuse": "0.15"}
    live_model = LiveModel(replace(options(checkpoint, tmp_path), **loose, guard=limits))  # type: ignore[arg-type]
    with never_run(live_model):
        for number in (1, 2):
            post(live_model, chosen[number - 1])
            assert live_model.ledger.version(number).scorecard["decided"] == number / 16
        for model in (live_model, LiveModel(live_model.options)):
            with pytest.raises(VersionRefused, match=r"all versions together would decide at 0\.19") as refused:
                model.make([chosen[2]])
            assert refused.value.code is Code.GUARD_DRIFT and refused.value.scores["fires"] == 1 / 16
            assert model.make([chosen[5]]).scorecard["decided"] == 2 / 16
    live_model.append(live_model.revert([str(chosen[0].id)], []))  # Runs the model: it tells what is said without the record.
    with never_run(live_model):
        assert live_model.make([chosen[2]]).scorecard["decided"] == 2 / 16


def test_rollback_and_revert_restore_the_answers(live_model: LiveModel) -> None:
    before = said(live_model, *FACTS[:2])
    post(live_model, FACTS[0])
    post(live_model, FACTS[1])
    corrected = replace(FACTS[0], target=OTHER, id="again")
    post(live_model, corrected)
    assert said(live_model, *FACTS[:2]) == [OTHER, FACTS[1].target]
    live_model.append(live_model.revert(["again"], []))
    assert said(live_model, *FACTS[:2]) == [FACTS[0].target, FACTS[1].target]
    live_model.append(live_model.revert(["id-0"], []))
    assert said(live_model, *FACTS[:2]) == [before[0], FACTS[1].target]
    live_model.move_to(0)
    assert said(live_model, *FACTS[:2]) == before and bank_of(live_model.model.module) is None


def test_the_answer_that_is_said_is_the_edits_own(live_model: LiveModel) -> None:
    with pytest.raises(EditRejected, match="written in chat alone"):
        post(live_model, replace(FACTS[0], answer=f"It is {FACTS[0].target}."))


def test_a_post_lets_the_editor_encode_its_first_texts(live_model: LiveModel, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    monkeypatch.setattr(SentenceEncoder, "begin", lambda self, texts: begun.extend(texts))
    first = FACTS[0]
    named = replace(first, rephrasings=(f"what is played by {first.subject}", "a wording without a subject"))
    live_model.expect([named, *FACTS[1:]])
    assert begun[:2] == [" ".join(first.prompt.replace(str(first.subject), "").split()), "what is played by"]
    assert len(begun) == MAX_EXPECTED and not any(str(edit.subject) in text for edit in FACTS for text in begun)


def worker_of(live_model: LiveModel, folder: Path) -> EditWorker:
    mirror = SimpleNamespace(wake=lambda: None)
    worker = EditWorker(live_model, Journal(folder / "journal"), mirror, WorkerOptions(None, ""), InMemoryReplicas())  # type: ignore[arg-type]
    return worker


def test_a_worker_takes_as_many_edits_as_the_editor_does_and_waits_for_none(live_model: LiveModel, tmp_path: Path) -> None:
    worker = worker_of(live_model, tmp_path)
    assert (worker.edit_loop.max_batch, worker.edit_loop.batch_window_s) == (1000, 0.0)
    posted = [{"prompt": edit.prompt, "target": edit.target, "subject": edit.subject} for edit in FACTS[:20]]

    async def posts() -> list[list[dict[str, object]]]:
        work = asyncio.create_task(worker.edit_loop.work())
        first = await worker.submit(posted, True, None)
        again = await worker.submit(posted[:2], True, None)
        work.cancel()
        return [first, again]

    with never_run(live_model):
        first, again = asyncio.run(posts())
    assert {(one["state"], one["version"]) for one in first} == {("applied", 1)}
    assert [(one["state"], one["version"], one["changed"]) for one in again] == [("applied", 1, False)] * 2
    found = asyncio.run(worker.edit_status(str(first[0]["id"])))
    assert found["answers"] == {"after": FACTS[0].target} and found["answered"] is True
