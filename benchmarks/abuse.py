"""A service with one abusive key: what other clients notice of it. `make bench-abuse`.

A key of the role `read` does one thing after another that may take a service without limits from all others: bodies that never
come, versions that are never made, requests for much work, walks over the versions, large pages, event streams that are not
read. Beside it other clients complete, one edits, and one checks the health. The model is small and random, since no answer is
looked at. Everything, clients included, shares the machine.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.abuse_figures import AFTER, BEFORE, GONE_S, AbusePhase, ProcessBytes, process_bytes, row_of, worst
from benchmarks.report import console, show, write_report
from errata.access_keys import add_key
from errata.home import home
from errata.local.services import LocalServices, ServiceFailed, free_port
from errata.overrides import overridden
from errata.testbed.language_model import Shape, make_model, make_tokenizer, save
from errata.testbed.world import World
from jobs.entry import run_job

SHAPE = Shape(hidden=128, layers=2, intermediate=256, heads=2, max_tokens=128)
MATRIX = "layers.1.mlp.down_proj"
ROLES = {"abuser": "read", "client": "read", "editor": "edit", "admin": "admin"}
HEALTH_PERIOD_S, EDIT_PERIOD_S, ABUSER_PAUSE_S = 0.05, 1.0, 0.01
COMPLETION = {"model": "errata", "prompt": "the", "max_tokens": 16, "temperature": 0, "ignore_eos": True}
REPHRASING = "w" * 10_000  # One token of this tokenizer, so that the model reads it in no time.


@dataclass(frozen=True)
class AbuseSettings:
    """Each abuse goes on for `phase_s` seconds with `width` requests under way, beside `clients` that complete."""

    phase_s: float = 10.0
    clients: int = 4
    width: int = 200
    large_edits: int = 4
    seed: int = 0

    def check(self) -> None:
        """Raise `ValueError` for a number that cannot be run."""
        if self.phase_s < 2 or min(self.clients, self.width) < 1 or self.large_edits < 0:
            raise ValueError("phase_s is at least 2, clients and width at least 1, large_edits at least 0")


@dataclass
class AbusedService:
    """The running service and its callers, each with its key."""

    url: str
    keys: dict[str, str]
    settings: AbuseSettings
    http: httpx.AsyncClient
    replica: psutil.Process
    began: ProcessBytes = field(default_factory=ProcessBytes)
    num_edits: int = 0
    phases: list[AbusePhase] = field(default_factory=list)

    def headers(self, caller: str, **more: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.keys[caller]}", "Content-Type": "application/json", **more}

    async def play(self, name: str, abuse: Callable[[AbusedService, AbusePhase], Coroutine[Any, Any, None]] | None) -> None:
        """Play a phase: the others' requests throughout, and the abuse if there is one."""
        phase = AbusePhase(name, self.settings.phase_s)
        console().print(f"bench-abuse: {name}", highlight=False)
        ordinary = [self._complete(phase) for _ in range(self.settings.clients)] + [self._check(phase), self._edit(phase)]
        tasks = [asyncio.create_task(each) for each in ordinary]
        if abuse is not None:
            tasks.append(asyncio.create_task(abuse(self, phase)))
        end = time.monotonic() + self.settings.phase_s
        while time.monotonic() < end:
            await asyncio.sleep(0.2)
            phase.memory.append(process_bytes(self.replica).since(self.began))
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result
        self.phases.append(phase)

    async def _complete(self, phase: AbusePhase) -> None:
        while True:
            answer = await self._sent("POST", "/v1/completions", "client", COMPLETION)
            phase.completions += answer == 200
            phase.failures += answer != 200

    async def _check(self, phase: AbusePhase) -> None:
        while True:
            began = time.monotonic()
            status = 200
            try:
                status = await self._sent("GET", "/health", None)
            finally:  # A check that is under way at the end counts as far as it went.
                phase.health_s.append(time.monotonic() - began if status == 200 else GONE_S)
            await asyncio.sleep(HEALTH_PERIOD_S)

    async def _edit(self, phase: AbusePhase) -> None:
        while True:
            self.num_edits += 1
            began = time.monotonic()
            edit = {"prompt": f"the word {self.num_edits} is", "target": "the"}
            status = 200
            try:
                status = await self._sent("POST", "/v1/edits", "editor", {"edits": [edit], "wait": True})
            finally:
                phase.edit_s.append(time.monotonic() - began if status == 200 else GONE_S)
            await asyncio.sleep(EDIT_PERIOD_S)

    async def _sent(self, method: str, path: str, caller: str | None, body: Any = None, **headers: str) -> int:
        """Send a request and return the status, 0 if the connection broke."""
        sent = {} if caller is None else self.headers(caller, **headers)
        try:
            content = None if body is None else json.dumps(body)
            return (await self.http.request(method, path, headers=sent, content=content)).status_code
        except httpx.HTTPError:
            return 0

    async def abused(self, phase: AbusePhase, method: str, path: str, body: Any = None, **headers: str) -> None:
        """Send the same request of the abusive key again and again, `width` at a time."""

        async def again() -> None:
            while True:
                code = str(await self._sent(method, path, "abuser", body, **headers))
                phase.codes[code] = phase.codes.get(code, 0) + 1
                await asyncio.sleep(ABUSER_PAUSE_S)

        await asyncio.gather(*(again() for _ in range(self.settings.width)))

    @asynccontextmanager
    async def connection(self, lines: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Open a connection of the abusive key, and send the head of a request on it."""
        host, _, port = self.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        try:
            names = "".join(f"{name}: {value}\r\n" for name, value in self.headers("abuser").items())
            writer.write(f"{lines} HTTP/1.1\r\nHost: x\r\n{names}".encode())
            yield reader, writer
        finally:
            writer.close()

    async def held(self, phase: AbusePhase, lines: str, rest: bytes, reads_answer: bool) -> None:
        """Hold `width` connections on which a request is sent, whose answer is read as far as its status, or not at all."""

        async def hold() -> None:
            while True:
                with suppress(OSError):
                    async with self.connection(lines) as (reader, writer):
                        writer.write(rest)
                        await writer.drain()
                        if not reads_answer:
                            await asyncio.sleep(self.settings.phase_s)
                        status = (await reader.readline()).split()
                        code = status[1].decode() if len(status) > 1 else "0"
                        phase.codes[code] = phase.codes.get(code, 0) + 1
                await asyncio.sleep(ABUSER_PAUSE_S)

        await asyncio.gather(*(hold() for _ in range(self.settings.width)))


async def bodies(service: AbusedService, phase: AbusePhase) -> None:
    """Post bodies that never come."""
    await service.held(phase, "POST /v1/completions", b"Content-Length: 1000\r\n\r\n", reads_answer=True)


async def versions(service: AbusedService, phase: AbusePhase) -> None:
    """Wait for a version that no edit is queued for."""
    await service.abused(phase, "POST", "/v1/completions", COMPLETION, **{"X-Errata-At-Least": "999999999"})


async def sequences(service: AbusedService, phase: AbusePhase) -> None:
    """Ask for a thousand answers, and for as many as one request may have."""
    many, most = ({**COMPLETION, "n": count, "max_tokens": 100} for count in (1000, 64))
    await asyncio.gather(*(service.abused(phase, "POST", "/v1/completions", body) for body in (many, most)))


async def structures(service: AbusedService, phase: AbusePhase) -> None:
    """Constrain answers by a grammar of 400 kB."""
    choice = {"choice": [f"choice {number:06d}" for number in range(25_000)]}
    await service.abused(phase, "POST", "/v1/completions", {**COMPLETION, "structured_outputs": choice})


async def walks(service: AbusedService, phase: AbusePhase) -> None:
    """Trace an answer, and compare the newest version with the unedited model."""
    blame = service.abused(phase, "POST", "/v1/blame", {"prompt": "the"})
    await asyncio.gather(blame, service.abused(phase, "GET", "/v1/diff?from=0&to=1"))


async def pages(service: AbusedService, phase: AbusePhase) -> None:
    """Read the largest pages of edits and versions."""
    reads = (service.abused(phase, "GET", path) for path in ("/v1/edits?limit=1000", "/v1/versions?limit=10000"))
    await asyncio.gather(*reads)


async def listeners(service: AbusedService, phase: AbusePhase) -> None:
    """Open event streams and read nothing of them."""
    await service.held(phase, "GET /v1/events", b"\r\n", reads_answer=False)


ABUSES = (bodies, versions, sequences, structures, walks, pages, listeners)


async def abused(settings: AbuseSettings, url: str, keys: dict[str, str]) -> AbusedService:
    """Play a phase without abuse and one with each."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        headers = {"Authorization": f"Bearer {keys['admin']}"}
        status = (await http.get("/v1/status", headers=headers)).json()
        service = AbusedService(url, keys, settings, http, psutil.Process(status["answered_by"]["pid"]))
        await _prepare(service)
        service.began = process_bytes(service.replica)
        await service.play(BEFORE, None)
        for abuse in ABUSES:
            await service.play(abuse.__name__, abuse)
        await service.play(AFTER, None)
        return service


async def _prepare(service: AbusedService) -> None:
    """Post the large edits, of about half a MiB each, and warm the engine up. Raises `ServiceFailed` if one is refused."""
    for number in range(service.settings.large_edits):
        edit = {"prompt": f"large {number}", "target": "the", "rephrasings": [REPHRASING] * 50}
        if (status := await service._sent("POST", "/v1/edits", "editor", {"edits": [edit]})) != 202:
            raise ServiceFailed(f"a large edit was answered with {status}, and the pages would be small")
    for _ in range(8):
        await service._sent("POST", "/v1/completions", "client", COMPLETION)


def started(settings: AbuseSettings, services: LocalServices) -> dict[str, str]:
    """Start the service over a new model and a new file of keys; returns the keys by their callers."""
    model, file = services.directory / "model", services.directory / "keys.json"
    corpus = World(20)
    tokenizer = make_tokenizer(corpus, SHAPE)
    save(make_model(SHAPE, len(tokenizer), settings.seed), tokenizer, model)
    keys = {caller: add_key(file, caller, role) for caller, role in ROLES.items()}
    services.start_ray()
    fixed = {"model": model, "ledger": services.directory / "ledger", "keys": file, "editor": "FT-L"}
    services.start_serve(**fixed, settings=f"modules={MATRIX}", guard="strict=false")
    services.wait_serve()
    return keys


def run(settings: AbuseSettings) -> dict[str, Any]:
    """Measure, print and write `$ERRATA_HOME/bench-abuse/report.json`."""
    from errata.hardware import hardware

    directory = home() / "bench-abuse"
    shutil.rmtree(directory, ignore_errors=True)
    began = time.monotonic()
    with LocalServices(Path(directory), http_port=free_port(), with_jobs=False) as services:
        keys = started(settings, services)
        service = asyncio.run(abused(settings, services.url, keys))
    rows = [row_of(phase, service.phases[0]) for phase in service.phases]
    show("A service with one abusive key", [{**row, "codes": json.dumps(row["codes"])} for row in rows])
    about = {"command": f"python -m benchmarks.abuse {' '.join(sys.argv[1:])}".strip(), "seed": settings.seed}
    seconds, figures = round(time.monotonic() - began, 1), worst(rows)
    write_report("bench-abuse", rows, **about, hardware=hardware(), settings=asdict(settings), seconds=seconds, **figures)
    return figures


def parsed(arguments: Sequence[str]) -> AbuseSettings:
    """Read settings from `field=value`. Raises `ValueError` that names a wrong one."""
    settings = AbuseSettings()
    for argument in arguments:
        name, sign, value = argument.removeprefix("--").partition("=")
        if not sign:
            raise ValueError(f"arguments have the form field=value, unlike {argument!r}")
        settings = overridden(settings, name.replace("-", "_"), value)
    settings.check()
    return settings


if __name__ == "__main__":
    run_job(parsed, run)
