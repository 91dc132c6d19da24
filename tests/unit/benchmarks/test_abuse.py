"""The benchmark with an abusive key: figures, settings, and what the abuse sends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import psutil
import pytest

from benchmarks.abuse import ABUSES, AbusedService, AbuseSettings, parsed, structures, versions
from benchmarks.abuse_figures import AbusePhase, percentile_99, row_of, worst
from tests.fakes.served import running

uvicorn = pytest.importorskip("uvicorn")


def test_a_row_compares_a_phase_with_the_one_without_abuse() -> None:
    quiet = AbusePhase("", 10.0, [0.001] * 200, completions=100, edit_s=[0.2])
    bad = AbusePhase("bodies", 10.0, [0.001] * 197 + [0.5] * 3, 80, 1, [0.2, 1.5], 3 * 2**20, {"429": 7, "408": 2})
    row = row_of(bad, quiet)
    assert row["health_ms_p99"] == 500.0 and row["completion_ratio"] == 0.8 and row["edit_delay_s"] == 1.5
    assert row["replica_mib"] == 3.0 and list(row["codes"]) == ["408", "429"] and row["failures"] == 1
    other = row_of(AbusePhase("pages", 10.0, [0.002] * 200, 90, 0, [3.0], 2**20), quiet)
    found = worst([row_of(quiet, quiet), row, other])
    assert found == {"health_ms_p99": 500.0, "completion_ratio": 0.8, "edit_delay_s": 3.0, "replica_mib": 3.0}


def test_what_was_not_measured_is_no_good_figure() -> None:
    quiet = AbusePhase("", 10.0, [0.001], completions=10, edit_s=[0.1])
    silent = row_of(AbusePhase("bodies", 10.0), quiet)
    assert silent["health_ms_p99"] == 60_000.0 and silent["completion_ratio"] == 0.0 and silent["edit_delay_s"] is None
    assert worst([silent])["edit_delay_s"] is None
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
            service = AbusedService(url, keys, AbuseSettings(phase_s=0.3, width=2), http, psutil.Process())
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
    assert all(phase.health_s and phase.failures for phase in phases)
    assert versions in ABUSES and structures in ABUSES
