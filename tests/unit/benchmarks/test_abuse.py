"""The benchmark with an abusive key: figures, settings, and what the abuse sends."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from benchmarks.abuse import ABUSES, AbusedService, AbuseSettings, parsed, structures, versions
from benchmarks.abuse_figures import (
    AFTER,
    BEFORE,
    GONE_S,
    AbusePhase,
    ProcessBytes,
    percentile_99,
    process_bytes,
    row_of,
    worst,
)
from tests.fakes.served import running

uvicorn = pytest.importorskip("uvicorn")


def test_a_row_compares_a_phase_with_the_one_without_abuse() -> None:
    quiet = AbusePhase(BEFORE, 10.0, [0.001] * 200, completions=100, edit_s=[0.2, 0.2, 0.9])
    grown = [ProcessBytes(2**20, 0), ProcessBytes(3 * 2**20, 5 * 2**20), ProcessBytes(2 * 2**20, 2**20)]
    bad = AbusePhase("bodies", 10.0, [0.001] * 197 + [0.5] * 3, 80, 1, [0.2, 1.5], grown, {"429": 7, "408": 2})
    row = row_of(bad, quiet)
    assert row["health_ms_p99"] == 500.0 and row["completion_ratio"] == 0.8
    assert row["edit_delay_s"] == 1.3 and row["edit_s_median"] == 0.85, "the longest edit against the median without abuse"
    assert row["replica_mib"] == 3.0 and row["engine_mib"] == 5.0 and row["failures"] == 1
    assert list(row["codes"]) == ["408", "429"]
    other = row_of(AbusePhase("pages", 10.0, [0.002] * 200, 90, 0, [3.0], [ProcessBytes(2**20, 0)]), quiet)
    after = row_of(AbusePhase(AFTER, 10.0, [9.0], 0, 0, [9.0], [ProcessBytes(9 * 2**20, 0), ProcessBytes(2**19, 0)]), quiet)
    found = worst([row_of(quiet, quiet), row, other, after])
    assert found == {
        "health_ms_p99": 500.0,
        "completion_ratio": 0.8,
        "edit_delay_s": 2.8,
        "replica_mib": 3.0,
        "engine_mib": 5.0,
        "replica_mib_after": 0.5,
    }


def test_what_was_not_measured_is_no_good_figure() -> None:
    quiet = AbusePhase(BEFORE, 10.0, [0.001], completions=10, edit_s=[0.1])
    silent = row_of(AbusePhase("bodies", 10.0), quiet)
    assert silent["health_ms_p99"] == 60_000.0 and silent["completion_ratio"] == 0.0 and silent["edit_delay_s"] is None
    assert worst([silent])["edit_delay_s"] is None
    assert worst([silent])["replica_mib_after"] is None
    assert percentile_99([0.1, 0.4]) == 0.4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["width=0"], "width at least 1"),
        (["width"], "field=value"),
        (["widht=3"], "did you mean width"),
        (["phase_s=1"], "at least 2"),
    ],
)
def test_a_wrong_setting_is_named(arguments: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parsed(arguments)
    assert parsed(["width=7", "--phase-s=3"]) == AbuseSettings(width=7, phase_s=3.0)


def test_the_abuses_send_what_they_say_and_count_the_answers(tmp_path: Path) -> None:
    seen: list[tuple[str, str, int]] = []

    async def app(scope: dict, receive: object, send: object) -> None:
        headers = dict(scope["headers"])
        size = int(headers.get(b"content-length", b"0"))
        seen.append((scope["path"], headers.get(b"x-errata-at-least", b"").decode(), size))
        await send({"type": "http.response.start", "status": 429, "headers": []})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": b""})  # type: ignore[operator]

    async def played(url: str) -> list[AbusePhase]:
        async with httpx.AsyncClient(base_url=url) as http:
            keys = dict.fromkeys(("abuser", "client", "editor"), "key")
            service = AbusedService(url, keys, AbuseSettings(phase_s=1.0, width=2), http, psutil.Process())
            for abuse in ABUSES:
                await service.play(abuse.__name__, abuse)
            return service.phases

    with running(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="off")) as url:
        phases = asyncio.run(played(url))
    assert [phase.abuse for phase in phases] == [abuse.__name__ for abuse in ABUSES]
    codes = {phase.abuse: set(phase.codes) for phase in phases}
    assert codes["bodies"] == codes["walks"] == codes["pages"] == {"429"}
    assert ("/v1/completions", "999999999") in {(path, wanted) for path, wanted, _ in seen}
    assert max(size for path, _, size in seen if path == "/v1/completions") > 300_000
    assert {"/v1/blame", "/v1/diff", "/v1/edits", "/v1/versions", "/v1/events", "/health"} <= {path for path, *_ in seen}
    assert any(phase.health_s and phase.failures for phase in phases)
    for measured in ([phase.health_s for phase in phases], [phase.edit_s for phase in phases]):
        assert any(GONE_S in seconds for seconds in measured), "what is refused is not quick"
    assert versions in ABUSES and structures in ABUSES


def test_the_memory_of_a_process_is_apart_from_that_of_its_children() -> None:
    before = process_bytes(psutil.Process())
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"], stdin=-1, stdout=-1
    ) as child:
        assert child.stdout is not None and child.stdout.readline()
        grown = process_bytes(psutil.Process()).since(before)
        child.terminate()
    assert grown.children > 2**20 and before.own > 0
