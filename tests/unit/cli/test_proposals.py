"""The commands `errata edit --propose` and `errata proposals`."""

from __future__ import annotations

import json

from tests.fakes.served import Service
from tests.unit.cli.invoke import PROMPT, errata, words


def proposed(target: str) -> str:
    done = errata("edit", PROMPT, target, "--propose")
    assert done.exit_code == 0
    return done.output.split("proposed as ")[1].split(";")[0]


def test_a_proposal_waits_and_is_approved_or_refused(service: Service) -> None:
    one, other = proposed("Lyon"), proposed("[red]Nice[/red]")
    assert service.backend.head == 0 and not service.backend.posts
    shown = words(errata("proposals", "list"))
    assert one in shown and "[red]Nice[/red]" in shown
    done = errata("proposals", "approve", one)
    assert done.exit_code == 0 and f"proposal {one} is approved; `errata watch {one}` follows the edit" in done.output
    assert errata("proposals", "refuse", other, "--reason", "no source").exit_code == 0
    assert service.backend.chain[-1].edits[0].target == "Lyon"
    found = json.loads(errata("proposals", "list", "--state", "all", "--json").output)["proposals"]
    assert [(entry["id"], entry["state"], entry["reason"]) for entry in found] == [
        (other, "refused", "no source"),
        (one, "approved", None),
    ]
    again = errata("proposals", "approve", other)
    assert again.exit_code == 1 and f"proposal {other} is refused already" in again.output


def test_wrong_options_and_unknown_ids_are_refused(service: Service) -> None:
    assert errata("proposals", "list", "--state", "lost").exit_code == 2
    assert errata("edit", PROMPT, "Lyon", "--propose", "--dry-run").exit_code == 2
    done = errata("proposals", "refuse", "none")
    assert done.exit_code == 1 and "there is no proposal 'none' (HTTP 404)" in done.output


def test_pages_are_named(service: Service) -> None:
    ids = [proposed(target) for target in ("Lyon", "Nice")]
    first = errata("proposals", "list", "--limit", "1")
    cursor = first.output.split("--before ")[1].strip()
    assert ids[1] in first.output and ids[0] in errata("proposals", "list", "--before", cursor).output
