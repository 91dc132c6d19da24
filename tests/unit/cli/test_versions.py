"""The commands `errata versions`, `diff`, `rollback`, `revert`, `blame` and `export`."""

from __future__ import annotations

import json
from pathlib import Path

from errata.ledger import Ledger
from tests.fakes.served import Service
from tests.unit.cli.invoke import PROMPT, errata, words


def test_versions_are_listed_and_shown(service: Service) -> None:
    errata("edit", PROMPT, "Lyon")
    errata("rollback", "0")
    shown = errata("versions").output
    rows = [line for line in shown.splitlines() if "4,096" in line]
    assert len(rows) == 2 and "●" in rows[0] and "●" not in rows[1]
    one = words(errata("versions", "1"))
    assert "version 1, on version 0" in one and "Lyon" in one and "efficacy 0.5" in one
    assert [v["version"] for v in json.loads(errata("versions", "--limit", "1", "--json").output)["versions"]] == [1]
    done = errata("versions", "7")
    assert done.exit_code == 1 and "there is no version 7" in done.output


def test_rollback_names_the_live_version(service: Service) -> None:
    errata("edit", PROMPT, "Lyon")
    done = errata("rollback", "0")
    assert done.exit_code == 0 and "version 0 is live; the swap took 12 ms" in done.output and service.backend.head == 0
    done = errata("rollback", "5")
    assert done.exit_code == 1 and "there is no version 5" in done.output


def test_rollback_and_revert_name_late_replicas(service: Service) -> None:
    errata("edit", PROMPT, "Lyon")
    service.backend.late = {"swap_error": "version 2 is not served by b: TimeoutError"}
    for done in (errata("revert", service.queued[0]["id"]), errata("rollback", "0")):
        assert done.exit_code == 0 and "not served everywhere yet: version 2 is not served by b: TimeoutError" in done.output


def test_diff_shows_edits_norms_and_scores(service: Service) -> None:
    errata("edit", PROMPT, "Lyon")
    done = errata("diff", "0", "1")
    assert done.exit_code == 0
    for part in ("only in 1 (1)", "Lyon", "layers.3.down_proj 1.25", "efficacy 0.5"):
        assert part in words(done)
    assert json.loads(errata("diff", "0", "1", "--json").output)["common"] == 0
    assert errata("diff", "0", "9").exit_code == 1


def test_revert_shows_its_effect(service: Service) -> None:
    errata("edit", PROMPT, "Lyon")
    edit_id = service.queued[0]["id"]
    done = errata("revert", edit_id, "--mode", "subtract")
    assert done.exit_code == 0 and "version 2 is live, without 1 edits (subtract)" in done.output
    assert "p first second third" in words(done) and "retention 0.75" in words(done)
    assert json.loads(errata("revert", "--version", "1", "--json").output)["reverted"] == [edit_id]
    assert "reverted" in errata("edits").output
    done = errata("revert", "abc")
    assert done.exit_code == 1 and "HTTP 404" in done.output
    assert errata("revert").exit_code == 2 and errata("revert", "a", "--mode", "x").exit_code == 2


def test_a_dry_run_of_a_revert_shows_its_effect(service: Service) -> None:
    errata("edit", PROMPT, "Lyon")
    edit_id = service.queued[0]["id"]
    done = errata("revert", edit_id, "--dry-run")
    assert done.exit_code == 0 and "it would take out 1 edits (replay) of version 1; nothing was changed" in done.output
    assert "third" in words(done) and "edit, lost: q a -> b" in done.output and "1 of 1 edits and 0 probes" in done.output
    assert service.backend.head == 1 and len(service.backend.chain) == 2
    found = json.loads(errata("revert", "--version", "1", "--dry-run", "--json").output)
    assert found["dry_run"] and found["publish"] and found["head"] == 1
    done = errata("revert", edit_id, "--mode", "subtract", "--dry-run")
    assert done.exit_code == 1 and "the guard would refuse it: a matrix changes too much" in done.output
    assert errata("revert", edit_id, "--dry-run", "--expected-head", "0").exit_code == 1


def test_blame_names_the_version(service: Service) -> None:
    errata("edit", PROMPT, "Lyon")
    done = errata("blame", PROMPT)
    assert done.exit_code == 0 and "version 1 changed it (3 versions tried)" in done.output and "Lyon" in done.output
    assert "before: cat" in done.output and "since: dog" in words(done)
    assert "no version changed it" in errata("blame", "unchanged").output
    assert json.loads(errata("blame", PROMPT, "--json").output)["after"] == "dog"
    done = errata("blame", "")
    assert done.exit_code == 1 and "HTTP 422" in done.output


def test_an_unknown_version_is_not_exported(tmp_path: Path) -> None:
    Ledger.create(tmp_path / "ledger", {"model": "m", "fingerprint": "f", "matrices": ["a"]})
    for ledger, says in ((tmp_path / "ledger", "there is no version 3"), (tmp_path / "none", "none")):
        done = errata("export", "3", str(tmp_path / "out"), "--ledger", str(ledger))
        assert done.exit_code == 1 and says in done.output.replace("\n", "") and not (tmp_path / "out").exists()


def test_a_move_that_expects_another_head_is_refused(service: Service) -> None:
    errata("edit", PROMPT, "Lyon")
    for command in (("rollback", "0"), ("revert", service.queued[0]["id"])):
        done = errata(*command, "--expected-head", "7")
        assert done.exit_code == 1 and "the live version is 1, and not 7" in words(done) and service.backend.head == 1
    assert errata("rollback", "0", "--expected-head", "1").exit_code == 0
