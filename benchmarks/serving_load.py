"""The service under load: streams that never stop, with and without edits among them: `make bench-serving`.

Phases alternate: in one, a batch of edits is posted every second; in the next, none. The same clients send requests throughout,
half of them with `X-Errata-At-Least`, so that an answer by an old version is detected. What is compared with edits is thus the
same engine without them: tokens a second are paired within the run, and so are the gaps between tokens. Everything, clients
included, shares the machine. The run is repeated for each number of streams.

The default model is SmolLM2-135M-Instruct with the shipped policy, and edits are facts that it gets wrong; `model=world` takes
the small Llama of the invented world, with its policy. Both are made if they do not exist.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import httpx

from benchmarks.load_figures import GapFigures, Interval, Phase, PostedBatch, Request, gap_figures, load_figures
from benchmarks.report import console, show, write_report
from errata.client.client import Client
from errata.home import home
from errata.local.models import default_policy, resolved
from errata.local.services import LocalServices, free_port
from errata.overrides import overridden
from errata.testbed import smollm2
from errata.testbed.known_facts import MAX_TOKENS, question_of
from errata.testbed.world_facts import WorldFacts
from jobs.arguments import from_arguments
from jobs.demo_answers import FactSearch
from jobs.demo_facts import edits_of, facts_in_random_order, posted
from jobs.demo_run import TRAINED_EDITOR, check_editor
from jobs.entry import run_job
from jobs.plan import Plan

WORLD = "world"


@dataclass(frozen=True)
class LoadSettings:
    """A pair of phases is `phase_s` seconds with edits and as many without; every stream has `num_tokens` tokens.

    `streams` are numbers of clients, one after another. `editor` is RLEdit, with the model's policy, or a memory.
    """

    model: str = smollm2.NAME
    editor: str = TRAINED_EDITOR
    streams: tuple[int, ...] = (1, 4, 8)
    num_pairs: int = 2
    phase_s: float = 12.0
    num_tokens: int = 32
    batch_size: int = 1
    period_s: float = 1.0
    replicas: int = 1
    pause: str = "keep"
    seed: int = 0

    def check(self) -> None:
        """Raise `ValueError` for a number or an editor that cannot be run."""
        check_editor(self.editor)
        counts = {name: getattr(self, name) for name in ("num_pairs", "num_tokens", "batch_size", "replicas")}
        counts |= {f"streams {count}": count for count in self.streams}
        if wrong := [name for name, count in counts.items() if not isinstance(count, int) or count < 1]:
            raise ValueError(f"must be a whole number of at least 1: {', '.join(wrong)}")
        if self.pause not in ("keep", "wait") or not self.streams:
            raise ValueError("pause is keep or wait, and streams has at least one number")
        if self.phase_s < 2 * self.period_s or self.period_s <= 0:
            raise ValueError(f"phase_s is at least two periods of period_s={self.period_s:g}, not {self.phase_s:g}")


# The invented world's model is as large as it was when the figures in docs/serving.md were measured.
SETTINGS_OF_WORLD: dict[str, Any] = {"streams": (4,), "phase_s": 15.0, "num_tokens": 16, "batch_size": 5}
FULL_OF_WORLD: dict[str, Any] = {"streams": (8,), "num_pairs": 10, "phase_s": 20.0, "num_tokens": 8, "batch_size": 5}
FULL: dict[str, Any] = {"num_pairs": 10, "phase_s": 20.0}
WARM_UP_S = 5.0
SETTLE_S = 2.0
NUM_ASKED, AT_ONCE, NUM_EDITS = 200, 20, 30  # facts that may be asked, and those that the model gets wrong


@dataclass(frozen=True)
class Material:
    """Prompts of the clients, and bodies of edits."""

    prompts: list[str]
    edits: list[dict[str, Any]]


@dataclass
class Run:
    """Records of the clients. Times are `time.time()`, the clock of the worker's swap times."""

    settings: LoadSettings
    num_clients: int
    http: httpx.AsyncClient
    material: Material
    requests: list[Request] = field(default_factory=list)
    batches: list[PostedBatch] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    swaps: dict[float, Interval] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    asks_for_versions: bool = True
    is_over: bool = False

    async def play(self, starts_with_edits: bool = False) -> None:
        clients = [asyncio.create_task(self._ask_on(number)) for number in range(self.num_clients)]
        await asyncio.sleep(WARM_UP_S)
        for pair in range(self.settings.num_pairs):
            starts = (pair % 2 == 1) is not starts_with_edits  # a drift of the machine affects both alike
            for edits in (starts, not starts):
                await self._phase(edits)
        self.is_over = True
        await asyncio.gather(*clients)

    async def _phase(self, edits: bool) -> None:
        begin = time.time()
        end = begin + self.settings.phase_s
        if edits:
            await self._edit_until(end)
        await asyncio.sleep(max(0.0, end - time.time()))
        self.phases.append(Phase(begin, time.time(), edits))
        if edits:
            await self._note_swaps()
            await self._roll_back()
        shown = sum(begin <= request.end for request in self.requests)
        what = f"{self.num_clients} streams, {'with edits' if edits else 'without'}"
        console().print(f"bench-serving: {what}: {shown} requests", highlight=False)

    async def _edit_until(self, end: float) -> None:
        """Post a batch each period, whether or not the previous one is answered, as many as fit in the phase."""
        beats = itertools.count()
        posts: list[asyncio.Task[None]] = []
        start = time.time()
        offset = random.Random(len(self.phases)).randrange(len(self.material.edits))
        for beat in beats:
            if (at := start + beat * self.settings.period_s) > end - self.settings.period_s:
                break
            await asyncio.sleep(max(0.0, at - time.time()))
            first = offset + beat * self.settings.batch_size
            edits = self.material.edits
            batch = [edits[(first + i) % len(edits)] for i in range(self.settings.batch_size)]
            posts.append(asyncio.create_task(self._post(batch)))
        await asyncio.gather(*posts)

    async def _post(self, batch: list[dict[str, Any]]) -> None:
        posted = time.time()
        answer = (await self.http.post("/v1/edits", json={"edits": batch, "wait": True})).json()
        self.outcomes.update(edit["state"] for edit in answer["edits"])
        versions = [edit["version"] for edit in answer["edits"] if edit["state"] == "applied"]
        self.batches.append(PostedBatch(posted, time.time(), max(versions, default=None)))

    async def _note_swaps(self) -> None:
        for timing in (await self.http.get("/v1/status")).json()["timings"]:
            self.swaps[timing["swap_at"]] = (timing["swap_at"], timing["swap_at"] + timing["swap_ms"] / 1e3)

    async def _roll_back(self) -> None:
        """Roll back, without requests for the version that is about to go, which would rightly be refused."""
        self.asks_for_versions = False
        await asyncio.sleep(SETTLE_S)
        posted = time.time()
        (await self.http.post("/v1/rollback", json={"version": 0})).raise_for_status()
        self.batches.append(PostedBatch(posted, time.time(), 0))
        self.asks_for_versions = True

    async def _ask_on(self, number: int) -> None:
        draw = random.Random(f"{self.settings.seed}-{number}")
        while not self.is_over:
            last = next((batch.version for batch in reversed(self.batches) if batch.version is not None), 0)
            at_least = last if self.asks_for_versions and draw.random() < 0.5 else None
            self.requests.append(await self._asked(draw.choice(self.material.prompts), at_least))

    async def _asked(self, prompt: str, at_least: int | None) -> Request:
        body = {"model": "errata", "prompt": prompt, "max_tokens": self.settings.num_tokens, "stream": True}
        body |= {"temperature": 0, "ignore_eos": True}
        headers = {"X-Errata-At-Least": str(at_least)} if at_least is not None else {}
        start, tokens, stamps, status = time.time(), list[float](), list[dict[str, int]](), 0
        try:
            async with self.http.stream("POST", "/v1/completions", json=body, headers=headers) as answer:
                status = answer.status_code
                if answer.is_error:
                    self.failures[f"{status}: {(await answer.aread()).decode()[:200]}"] += 1
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        event = json.loads(line.removeprefix("data: "))
                        if "error" in event:
                            status = 500
                            self.failures[str(event["error"])[:200]] += 1
                        tokens.append(time.time())
                        stamps.append(event.get("errata", {}))
        except httpx.HTTPError as fault:
            status = 0
            self.failures[repr(fault)[:200]] += 1
        low = min((stamp["version_min"] for stamp in stamps if stamp), default=None)
        high = max((stamp["version_max"] for stamp in stamps if stamp), default=None)
        return Request(start, time.time(), tuple(tokens), low, high, status, at_least)


def plan_of(settings: LoadSettings) -> Plan:
    """Return the plan whose model and policy are served. Raises `ValueError` for another model."""
    if settings.model not in (smollm2.NAME, WORLD):
        raise ValueError(f"model is {smollm2.NAME} or {WORLD}, not {settings.model!r}: their edits and policies are known")
    return from_arguments([f"plan={'demo' if settings.model == WORLD else 'smollm2'}", f"seed={settings.seed}"])


def started(settings: LoadSettings, services: LocalServices, plan: Plan) -> None:
    """Start the service; model and policy are made first if they do not exist."""
    services.start_ray()
    is_trained, policy = settings.editor == TRAINED_EDITOR, {}
    if settings.model == WORLD:
        for made, job in [(plan.model_dir, "jobs/pretrain.py")] + [(plan.artifact_dir, "jobs/train.py")] * is_trained:
            if not made.exists():
                services.run_job(sys.executable, job, "plan=demo", f"seed={plan.seed}")
    model = str(plan.model_dir) if settings.model == WORLD else resolved(settings.model)
    if is_trained:
        policy = {"artifact": str(plan.artifact_dir) if settings.model == WORLD else default_policy()}
    console().print("bench-serving: starting the service", highlight=False)
    services.start_serve(
        model=model,
        editor=settings.editor,
        **policy,
        ledger=services.directory / "ledger",
        replicas=settings.replicas,
        pause=settings.pause,
    )
    services.wait_serve()


def material(settings: LoadSettings, url: str, plan: Plan) -> Material:
    """Find what is asked and edited; facts of the world are asked first, because only wrong answers are edited.

    Raises `ValueError` if the served model gets none wrong.
    """
    if not isinstance(plan.corpus, WorldFacts):
        edits = list(plan.corpus.edits("test", 100, settings.seed))
        prompts = [prompt for edit in edits for prompt in (edit.prompt, *edit.rephrasings)]
        return Material(prompts, [{"prompt": e.prompt, "target": e.target, "subject": e.subject} for e in edits])
    facts = facts_in_random_order(plan)[:NUM_ASKED]
    search = FactSearch(NUM_EDITS, 0)
    with Client(url) as client:
        for i in range(0, len(facts), AT_ONCE):
            part = facts[i : i + AT_ONCE]
            asked = [question_of(fact).prompt for fact in part]
            search.add(part, dict(zip(asked, client.ask(asked, MAX_TOKENS)["answers"], strict=True)))
            console().print(f"bench-serving: asked {search.num_asked}: {len(search.wrong)} wrong", highlight=False)
            if search.is_over:
                break
    if not search.wrong:
        raise ValueError(f"{settings.model} answers all {len(facts)} facts right: nothing is to be corrected")
    return Material([fact.question() for fact in facts], list(map(posted, edits_of(plan, search.wrong))))


async def loaded(settings: LoadSettings, url: str, found: Material) -> list[Run]:
    """Play a run for each number of streams."""
    runs = []
    async with httpx.AsyncClient(base_url=url, timeout=300) as http:
        for number, count in enumerate(settings.streams):
            runs.append(Run(settings, count, http, found))
            await runs[-1].play(starts_with_edits=number % 2 == 1)
    return runs


def figures(runs: Sequence[Run]) -> dict[str, Any]:
    """Compute the figures of runs together."""
    requests, phases = ([one for run in runs for one in getattr(run, name)] for name in ("requests", "phases"))
    batches = sorted((batch for run in runs for batch in run.batches), key=lambda batch: batch.returned)
    swaps = sorted({at: swap for run in runs for at, swap in run.swaps.items()}.values())
    row = load_figures(requests, batches, swaps, phases).to_json()
    edits = sum((run.outcomes for run in runs), Counter[str]())
    waited = sorted(batch.returned - batch.posted for batch in batches if batch.version not in (None, 0))
    row["edit_batches"] = len(waited)
    row |= {"edits_applied": edits["applied"], "edits_rejected": edits["rejected"]}
    return row | {"edit_s_p50": median(waited) if waited else None} | gap_figures(requests, swaps, phases).to_json()


SHOWN = {
    "requests": (
        "requests",
        "failed",
        "misversioned",
        "edit_batches",
        "edits_applied",
        "edits_rejected",
        "edit_s_p50",
        "tokens",
    ),
    "tokens a second, swaps": (
        "tokens_per_s_without",
        "tokens_per_s_with",
        "throughput_ratio",
        "throughput_ratio_lowest",
        "throughput_ratio_highest",
        "swap_ms_p50",
        "swap_ms_p99",
        "stall_ms_p99",
        "stall_ms_max",
    ),
    "ms between two tokens of a stream": tuple(name for name in GapFigures.__annotations__ if "gap" in name),
}


def run(settings: LoadSettings, command: str = "") -> dict[str, Any]:
    """Measure, print and write `$ERRATA_HOME/bench-serving/report.json`."""
    from errata.hardware import hardware

    plan = plan_of(settings)
    command = command or f"python -m benchmarks.serving_load {' '.join(sys.argv[1:])}".strip()
    about = {"command": command, "model": settings.model, "seed": settings.seed, "hardware": hardware()}
    console().print(*(f"{name}: {value}" for name, value in about.items()), sep="\n", highlight=False, soft_wrap=True)
    directory = home() / "bench-serving"
    shutil.rmtree(directory, ignore_errors=True)
    began = time.monotonic()
    with LocalServices(directory, http_port=free_port()) as services:
        started(settings, services, plan)
        runs = asyncio.run(loaded(settings, services.url, material(settings, services.url, plan)))
    rows = [{"streams": one.num_clients, **figures([one])} for one in runs]
    whole = figures(runs)
    for title, names in SHOWN.items():
        show(f"Serving under a stream of edits: {title}", [{name: row[name] for name in ("streams", *names)} for row in rows])
    for said, times in sum((one.failures for one in runs), Counter[str]()).items():
        console().print(f"failed {times} times: {said}", highlight=False)
    seconds = round(time.monotonic() - began, 1)
    write_report("bench-serving", rows, **about, settings=asdict(settings), seconds=seconds, **whole)
    return whole


def parsed(arguments: Sequence[str]) -> LoadSettings:
    """Read settings from `field=value` or `--field value`. Raises `ValueError` that names a wrong one."""
    pairs = dict(pairs_of(arguments))
    model, full = pairs.get("model", smollm2.NAME), os.environ.get("FULL", "0") not in ("", "0")
    defaults = (FULL_OF_WORLD if full else SETTINGS_OF_WORLD) if model == WORLD else (FULL if full else {})
    settings = LoadSettings(**defaults)
    for name, value in pairs.items():
        settings = overridden(settings, name, value)
    settings.check()
    plan_of(settings)
    if settings.model == smollm2.NAME:
        smollm2.check()
    return settings


def pairs_of(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the name and the value of each argument. Raises `ValueError` for one of another form."""
    left = list(arguments)
    while left:
        name, sign, value = left.pop(0).partition("=")
        if not sign and not (name.startswith("--") and left):
            raise ValueError(f"arguments have the form field=value, unlike {name!r}")
        yield name.removeprefix("--").replace("-", "_"), value if sign else left.pop(0)


if __name__ == "__main__":
    run_job(parsed, run)
