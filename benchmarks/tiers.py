"""Two tiers, weights alone and memory alone on the same corrections over HTTP: `make bench-tiers`.

The default model, its shipped policy, and corrections of facts that it gets wrong, posted at a rate with chat clients beside.
A checker asks applied corrections all the time, before, while and after the weights learn them: a right answer is owed from the
moment of `applied` on, and each other answer is a violation, unless the service says itself that the answer is lost. Each row
has a service and a ledger of its own. `added_ms` and `added_tokens` are what the memory costs an answer, by the service's own
metrics, over parts of the row's time.
"""

from __future__ import annotations

import itertools
import random
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.report import console, show, write_report
from benchmarks.retrieval import percentile
from benchmarks.serving_load import pairs_of
from errata.client.client import Client
from errata.client.errors import ErrataError
from errata.edit import SETTLED, Question
from errata.hardware import hardware
from errata.home import home
from errata.local.models import default_policy, resolved
from errata.local.services import LocalServices, free_port
from errata.overrides import overridden
from errata.testbed import smollm2
from errata.testbed.known_facts import AT_ONCE, MAX_TOKENS, question_of
from errata.text.dialogue import Prompt
from jobs.demo_answers import AskedFacts, FactSearch
from jobs.demo_facts import edits_of, facts_in_random_order, posted
from jobs.entry import run_job
from jobs.plans import smollm2 as plan_of_model

ROWS: dict[str, dict[str, str]] = {
    "tiers": {"editor": smollm2.EDITOR, "memory": "answer"},
    "weights": {"editor": smollm2.EDITOR},
    "memory": {"editor": "answer"},
}
PERIOD_S = 1.0  # between two looks at what has become of the edits at the end
COSTS = {"lookup_s": "errata_memory_lookup_seconds_sum", "tokens": "errata_memory_prompt_tokens_total"}


@dataclass(frozen=True)
class TierSettings:
    """`edits` corrections at `rate` a second beside `clients`; `kept` facts that are right already are asked at the end.

    After the last post, the row waits at most `settle_s` until the weights have learnt what they can. `parts` is the number of
    equal times that costs are reported for.
    """

    edits: int = 40
    rate: float = 1.0
    clients: int = 2
    kept: int = 40
    consolidate: str = "size=8,age=10"
    settle_s: float = 240.0
    parts: int = 4
    rows: tuple[str, ...] = tuple(ROWS)
    seed: int = 0

    def check(self) -> None:
        """Raise `ValueError` for a number or a row that cannot be run."""
        counts = {name: getattr(self, name) for name in ("edits", "kept", "parts")}
        if wrong := [name for name, count in counts.items() if count < 1]:
            raise ValueError(f"must be a whole number of at least 1: {', '.join(wrong)}")
        if self.rate <= 0 or self.clients < 0 or self.settle_s < 0:
            raise ValueError("rate is above 0, and clients and settle_s are not negative")
        if unknown := [name for name in self.rows if name not in ROWS]:
            raise ValueError(f"there is no row {unknown[0]!r}: give some of {', '.join(ROWS)}")


@dataclass
class Play:
    """One row while it runs: what was posted, and what was asked. `owed` are the questions of applied edits, by their ids."""

    client: Client
    applied_ms: list[float] = field(default_factory=list)
    owed: dict[str, Question] = field(default_factory=dict)
    rejected: list[str] = field(default_factory=list)
    num_checked: int = 0
    violations: list[dict[str, str]] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)
    costs: list[tuple[float, dict[str, float], float]] = field(default_factory=list)
    num_chats: int = 0
    is_over: threading.Event = field(default_factory=threading.Event)

    def post(self, body: dict[str, Any], question: Question) -> None:
        begin = time.perf_counter()
        try:
            (made,) = self.client.edit([body])["edits"]
        except ErrataError as refused:
            if not refused.answer.get("edits"):
                raise
            (made,) = refused.answer["edits"]
        while made["state"] not in SETTLED:  # The service waits for a limited time.
            time.sleep(0.05)
            made = self.client.edit_status(made["id"])
        if made["state"] != "applied":
            return self.rejected.append(made["id"])
        self.applied_ms.append((time.perf_counter() - begin) * 1e3)
        self.owed[made["id"]] = question
        return None

    def check_on(self, seed: int) -> None:
        """Ask one applied edit after another."""
        draws = random.Random(seed)
        while not self.is_over.is_set():
            if not (ids := list(self.owed)):
                time.sleep(0.05)
                continue
            self.check(draws.choice(ids))

    def check(self, id: str) -> None:
        question = self.owed[id]
        (text,) = self.client.ask([question.prompt], MAX_TOKENS)["answers"]
        self.num_checked += 1
        if question.is_answered_by(text):
            return
        if self.client.edit_status(id).get("answered") is False:
            self.lost.add(id)  # The service says so itself: edits of weights may be lost, and are made again.
        else:
            self.violations.append({"id": id, "says": text})

    def chat_on(self, prompts: Iterator[Prompt]) -> None:
        while not self.is_over.is_set():
            self.client.ask([next(prompts)], MAX_TOKENS)
            self.num_chats += 1

    def note_costs(self, url: str) -> None:
        """Note the memory's costs so far, and the number of answers."""
        text = httpx.get(f"{url}/metrics", timeout=60).raise_for_status().text
        families = list(text_string_to_metric_families(text))
        samples = [sample for family in families for sample in family.samples]
        found = {name: sum(one.value for one in samples if one.name == metric) for name, metric in COSTS.items()}
        num_answers = sum(one.value for one in samples if one.name == "errata_answers_total" and one.labels["code"] == "200")
        self.costs.append((time.time(), found, num_answers))


def over_time(costs: Sequence[tuple[float, dict[str, float], float]], name: str, scale: float) -> list[float]:
    """Return what was added to an answer between two looks."""
    found = []
    for (_, before, num_before), (_, after, num_after) in itertools.pairwise(costs):
        found.append(scale * (after[name] - before[name]) / max(1.0, num_after - num_before))
    return found


def search(client: Client, settings: TierSettings) -> FactSearch:
    """Ask the unedited model facts until enough are known that it gets wrong, and right."""
    plan, found = plan_of_model(), FactSearch(settings.edits, settings.kept)
    facts = facts_in_random_order(plan)
    for i in range(0, len(facts), AT_ONCE):
        part = facts[i : i + AT_ONCE]
        asked = [question_of(fact).prompt for fact in part]
        found.add(part, dict(zip(asked, client.ask(asked, MAX_TOKENS)["answers"], strict=True)))
        if found.is_over:
            break
    console().print(f"bench-tiers: asked {found.num_asked}: {len(found.wrong)} wrong", highlight=False)
    return found


def played(client: Client, url: str, settings: TierSettings, asked: AskedFacts) -> dict[str, Any]:
    """Post, ask and check; return the row."""
    play, edits = Play(client), asked.edits
    chats = itertools.cycle([question.prompt for question in asked.kept])
    with ThreadPoolExecutor(settings.clients + 12) as pool, _ended(play):
        running = [
            pool.submit(play.check_on, settings.seed),
            *(pool.submit(play.chat_on, chats) for _ in range(settings.clients)),
        ]
        begin = time.monotonic()
        play.note_costs(url)
        posts, noted = [], 1
        for number, edit in enumerate(edits):
            time.sleep(max(0.0, begin + number / settings.rate - time.monotonic()))
            posts.append(pool.submit(play.post, posted(edit), asked.forms["question"][number]))
            if (number + 1) * (settings.parts - 1) // len(edits) >= noted:
                play.note_costs(url)
                noted += 1
        for post in posts:
            post.result()
        _settled(client, play, settings.settle_s, running)
        play.note_costs(url)
        _wait_checks(play, 3 * len(play.owed), 30.0)
        play.is_over.set()
        for one in running:
            one.result()
    return row_of(play, client, asked)


@contextmanager
def _ended(play: Play) -> Iterator[None]:
    """End the clients with the block, whatever it raises."""
    try:
        yield
    finally:
        play.is_over.set()


def _settled(client: Client, play: Play, settle_s: float, running: Sequence[Future[None]]) -> None:
    """Wait until the number of edits that the weights carry has not changed for a fifth of the time, at most `settle_s`."""
    deadline, seen, since = time.monotonic() + settle_s, -1, time.monotonic()
    while time.monotonic() < deadline and not any(one.done() for one in running):
        if (now := num_carried(client, play)) != seen:
            seen, since = now, time.monotonic()
        if now == len(play.owed) or time.monotonic() - since > settle_s / 5:
            return
        time.sleep(PERIOD_S)


def _wait_checks(play: Play, count: int, at_most_s: float) -> None:
    deadline, until = time.monotonic() + at_most_s, play.num_checked + count
    while play.num_checked < until and time.monotonic() < deadline:
        time.sleep(0.1)


def num_carried(client: Client, play: Play) -> int:
    """Count the applied edits that the weights answer."""
    return sum(one.get("carried_by") == "weights" for one in client.each_edit("applied") if one["id"] in play.owed)


def row_of(play: Play, client: Client, asked: AskedFacts) -> dict[str, Any]:
    """Ask everything at the end, and return the figures."""
    answers: dict[Prompt, str] = {}
    for begin in range(0, len(asked.every), AT_ONCE):
        part = asked.every[begin : begin + AT_ONCE]
        answers |= dict(zip(part, client.ask(part, MAX_TOKENS)["answers"], strict=True))
    scores = {name: value for name, value in asked.scores(answers).items() if value is not None}
    times = play.applied_ms or [0.0]
    return {
        "edits": len(asked.edits),
        "applied": len(play.owed),
        "applied_ms_p50": percentile(times, 0.5),
        "applied_ms_p99": percentile(times, 0.99),
        "checked": play.num_checked,
        "violations": len(play.violations),
        "said_to_be_lost": len(play.lost),
        "carried_by_weights": num_carried(client, play) / max(1, len(play.owed)),
        **scores,
        "chats": play.num_chats,
        "added_ms": over_time(play.costs, "lookup_s", 1e3),
        "added_tokens": over_time(play.costs, "tokens", 1.0),
        "wrong_answers": play.violations,
    }


def run(settings: TierSettings) -> Path:
    """Play every row, print and write `$ERRATA_HOME/bench-tiers/report.json`."""
    command = f"python -m benchmarks.tiers {' '.join(sys.argv[1:])}".strip()
    directory = home() / "bench-tiers"
    shutil.rmtree(directory, ignore_errors=True)
    model, policy, rows = resolved(smollm2.NAME), default_policy(), list[dict[str, Any]]()
    asked: AskedFacts | None = None
    for name in settings.rows:
        arguments: dict[str, Any] = {"model": model, "ledger": directory / f"ledger-{name}", **ROWS[name]}
        arguments |= {"artifact": policy} if arguments["editor"] == smollm2.EDITOR else {}
        arguments |= {"consolidate": settings.consolidate} if "memory" in arguments else {}
        with LocalServices(directory / name, http_port=free_port(), with_jobs=False) as services:
            services.start_ray()
            console().print(f"bench-tiers: {name}: starting the service", highlight=False)
            services.start_serve(**arguments)
            services.wait_serve()
            with Client(services.url) as client:
                if asked is None:
                    found = search(client, settings)
                    asked = AskedFacts.about(edits_of(plan_of_model(), found.wrong), found.right)
                rows.append({"row": name, **played(client, services.url, settings, asked)})
        done = {key: value for key, value in rows[-1].items() if not isinstance(value, list)}
        console().print(f"bench-tiers: {done}", highlight=False, soft_wrap=True)
    show(
        "Two tiers, weights alone and memory alone", [{k: v for k, v in row.items() if not isinstance(v, list)} for row in rows]
    )
    first = {key: rows[0][key] for key in rows[0] if key not in ("row", "wrong_answers")}
    about = {"command": command, "model": smollm2.NAME, "seed": settings.seed, "hardware": hardware()}
    return write_report("bench-tiers", rows, **about, **first, settings=asdict(settings))


def parsed(arguments: Sequence[str]) -> TierSettings:
    """Read settings from `field=value` or `--field value`. Raises `ValueError` that names a wrong one."""
    settings = TierSettings()
    for name, value in pairs_of(arguments):
        settings = overridden(settings, name, value)
    settings.check()
    smollm2.check()
    return settings


if __name__ == "__main__":
    run_job(parsed, run)
