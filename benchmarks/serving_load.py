"""The service under load: streams that never stop, with and without edits among them: `make bench-serving`.

Phases alternate: in one, a batch of edits is posted every second; in the next, none. The same clients send requests throughout,
half of them with `X-Errata-At-Least`, so that an answer by an old version is detected. The ratio of tokens a second is paired
within the run; everything, clients included, shares the machine. Uses the demo's model and policy, made if they do not exist.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import shutil
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx

from benchmarks.load_figures import EditBatch, Interval, Phase, Request, load_figures
from benchmarks.report import console, show, write_report
from errata.edit import Edit
from errata.home import home
from errata.local.services import LocalServices, free_port
from jobs import arguments, plan


@dataclass(frozen=True)
class Settings:
    """A pair of phases is `phase_s` seconds with edits and as many without; every stream has `num_tokens` tokens."""

    num_pairs: int = 2
    phase_s: float = 15.0
    num_clients: int = 4
    num_tokens: int = 16
    batch_size: int = 5
    period_s: float = 1.0
    replicas: int = 1
    pause: str = "keep"
    seed: int = 0


FULL = Settings(num_pairs=10, phase_s=20.0, num_clients=8, num_tokens=8)
WARM_UP_S = 5.0
SETTLE_S = 2.0


@dataclass
class Run:
    """Records of the clients. Times are `time.time()`, the clock of the worker's swap times."""

    settings: Settings
    http: httpx.AsyncClient
    prompts: list[str]
    edits: list[Edit]
    requests: list[Request] = field(default_factory=list)
    batches: list[EditBatch] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    swaps: dict[float, Interval] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    asks_for_versions: bool = True
    is_over: bool = False

    async def play(self) -> None:
        clients = [asyncio.create_task(self._ask_on(number)) for number in range(self.settings.num_clients)]
        await asyncio.sleep(WARM_UP_S)
        for pair in range(self.settings.num_pairs):
            for edits in (False, True) if pair % 2 == 0 else (True, False):  # a drift of the machine affects both alike
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
        console.print(f"  {'with edits' if edits else 'without'}: {shown} requests", highlight=False)

    async def _edit_until(self, end: float) -> None:
        """Post a batch each period, whether or not the previous one is answered, as many as fit in the phase."""
        beats = itertools.count()
        posts: list[asyncio.Task[None]] = []
        start = time.time()
        offset = random.Random(len(self.phases)).randrange(len(self.edits))
        for beat in beats:
            if (at := start + beat * self.settings.period_s) > end - self.settings.period_s:
                break
            await asyncio.sleep(max(0.0, at - time.time()))
            first = offset + beat * self.settings.batch_size
            batch = [self.edits[(first + i) % len(self.edits)] for i in range(self.settings.batch_size)]
            posts.append(asyncio.create_task(self._post(batch)))
        await asyncio.gather(*posts)

    async def _post(self, batch: list[Edit]) -> None:
        body = [{"prompt": edit.prompt, "target": edit.target, "subject": edit.subject} for edit in batch]
        posted = time.time()
        answer = (await self.http.post("/v1/edits", json={"edits": body, "wait": True})).json()
        versions = [edit["version"] for edit in answer["edits"] if edit["state"] == "applied"]
        self.batches.append(EditBatch(posted, time.time(), max(versions, default=None)))

    async def _note_swaps(self) -> None:
        for timing in (await self.http.get("/v1/status")).json()["timings"]:
            self.swaps[timing["swap_at"]] = (timing["swap_at"], timing["swap_at"] + timing["swap_ms"] / 1e3)

    async def _roll_back(self) -> None:
        """Roll back, without requests for the version that is about to go, which would rightly be refused."""
        self.asks_for_versions = False
        await asyncio.sleep(SETTLE_S)
        posted = time.time()
        (await self.http.post("/v1/rollback", json={"version": 0})).raise_for_status()
        self.batches.append(EditBatch(posted, time.time(), 0))
        self.asks_for_versions = True

    async def _ask_on(self, number: int) -> None:
        draw = random.Random(f"{self.settings.seed}-{number}")
        while not self.is_over:
            last = next((batch.version for batch in reversed(self.batches) if batch.version is not None), 0)
            self.requests.append(
                await self._asked(draw.choice(self.prompts), last if self.asks_for_versions and draw.random() < 0.5 else None)
            )

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


def started(settings: Settings, services: LocalServices, plan: plan.Plan) -> None:
    """Start the demo's service; its model and policy are made first if they do not exist."""
    services.start_ray()
    for made, job in ((plan.model_dir, "jobs/pretrain.py"), (plan.artifact_dir, "jobs/train.py")):
        if not made.exists():
            services.run_job(sys.executable, job, "plan=demo", f"seed={plan.seed}")
    services.start_serve(
        model=plan.model_dir,
        artifact=plan.artifact_dir,
        ledger=services.directory / "ledger",
        replicas=settings.replicas,
        pause=settings.pause,
    )
    services.wait_serve()


async def loaded(settings: Settings, url: str, plan: plan.Plan) -> Run:
    edits = plan.corpus.edits("test", 100, settings.seed)
    prompts = [prompt for edit in edits for prompt in (edit.prompt, *edit.rephrasings)]
    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        run = Run(settings, http, prompts, list(edits))
        await run.play()
    return run


def run(settings: Settings, command: str) -> dict[str, Any]:
    """Measure, print and write `$ERRATA_HOME/bench-serving/report.json`."""
    from errata.hardware import hardware

    plan = arguments.from_arguments(["plan=demo", f"seed={settings.seed}"])
    about = {"command": command, "seed": settings.seed, "hardware": hardware()}
    console.print(*(f"{name}: {value}" for name, value in about.items()), sep="\n", highlight=False)
    directory = home() / "bench-serving"
    shutil.rmtree(directory, ignore_errors=True)
    with LocalServices(directory, http_port=free_port()) as services:
        started(settings, services, plan)
        found = asyncio.run(loaded(settings, services.url, plan))
    batches = sorted(found.batches, key=lambda batch: batch.returned)
    figures = load_figures(found.requests, batches, sorted(found.swaps.values()), found.phases)
    row = {**figures.to_json(), "edit_batches": sum(batch.version not in (None, 0) for batch in batches)}
    for names in (("requests", "failed", "misversioned", "edit_batches", "tokens"), tuple(row)[5:]):
        show("Serving under a stream of edits", [{name: row[name] for name in names}])
    for said, times in found.failures.items():
        console.print(f"failed {times} times: {said}", highlight=False)
    write_report("bench-serving", [row], **about, settings=asdict(settings), **row)
    return row


def main() -> None:
    defaults = FULL if os.environ.get("FULL", "0") not in ("", "0") else Settings()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in asdict(defaults).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    settings = Settings(**vars(parser.parse_args()))
    run(settings, f"python -m benchmarks.serving_load {' '.join(sys.argv[1:])}".strip())


if __name__ == "__main__":
    main()
