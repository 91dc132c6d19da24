"""The console's files: their headers, who may read them, and what the scripts never do."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from errata.access_keys import Keys
from serving.api.access import OPEN, Access, role_for
from serving.console import routes as console
from tests.architecture.test_fences import ROOT
from tests.unit.serving.api.application import LIMITS, application, call

STATIC = ROOT / "serving" / "console" / "static"
SCRIPTS = sorted(STATIC.glob("*.js"))
MAX_LINES = 400
# What would let a text become markup or code, or keep a key beyond the tab.
FORBIDDEN = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|DOMParser|srcdoc|localStorage|\.cookie"


@pytest.fixture
def app() -> FastAPI:
    made = FastAPI()
    console.install(made)
    made.add_middleware(Access, keys=None, limits=LIMITS)
    return made


def test_the_page_has_a_strict_policy(app: FastAPI) -> None:
    page = call(app, "GET", "/console/")
    policy = dict(part.split(" ", 1) for part in page.headers["Content-Security-Policy"].split("; "))
    assert page.status_code == 200 and page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
    assert page.headers["X-Content-Type-Options"] == "nosniff" and page.headers["Referrer-Policy"] == "no-referrer"
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\son\w+=|https?:", page.text)


def test_the_address_without_a_slash_leads_to_the_page(app: FastAPI) -> None:
    found = call(app, "GET", "/console")
    assert (found.status_code, found.headers["Location"]) == (307, "console/")


def test_every_file_of_the_page_is_served(app: FastAPI) -> None:
    named = re.findall(r'(?:href|src)="([\w.]+)"', (STATIC / "index.html").read_text())
    named += [name for path in SCRIPTS for name in re.findall(r'(?:from|import\()\s*"\./([\w.]+)"', path.read_text())]
    assert {"theme.css", "console.css", "app.js"} < set(named)
    for name in set(named):
        found = call(app, "GET", f"/console/{name}")
        assert found.status_code == 200 and found.headers["Content-Type"].partition(";")[0] in (
            "text/javascript",
            "text/css",
            "image/svg+xml",
        )
    for name in ("routes.py", "..%2froutes.py", "nothing.js"):
        assert call(app, "GET", f"/console/{name}").status_code in (403, 404)


def test_a_browser_that_has_a_file_gets_304(app: FastAPI) -> None:
    tag = call(app, "GET", "/console/app.js").headers["ETag"]
    again = call(app, "GET", "/console/app.js", headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")


def test_the_files_need_no_key_and_data_does(bearers: dict[str, str], tmp_path: Path) -> None:
    app = application(tmp_path, Keys.load(bearers["file"]))
    assert call(app, "GET", "/console/").status_code == 200
    assert call(app, "GET", "/v1/key").status_code == 401
    assert role_for("GET", "/console/app.js") == OPEN
    assert {role_for(*one) for one in (("GET", "/console/a/b"), ("POST", "/console/"), ("GET", "/consoles"))} == {"admin"}


@pytest.mark.parametrize("role", ["read", "propose", "edit", "admin"])
def test_a_key_can_ask_who_it_is(bearers: dict[str, str], tmp_path: Path, role: str) -> None:
    app = application(tmp_path, Keys.load(bearers["file"]))
    assert call(app, "GET", "/v1/key", bearers[role]).json() == {"name": role, "role": role, "expires": None}


def test_without_keys_the_caller_is_admin_without_a_name(tmp_path: Path) -> None:
    found: httpx.Response = call(application(tmp_path, None), "GET", "/v1/key")
    assert found.json() == {"name": None, "role": "admin", "expires": None}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_make_no_markup_and_ask_no_other_host(path: Path) -> None:
    text = path.read_text().replace("http://www.w3.org/2000/svg", "")
    assert re.findall(FORBIDDEN, text) == [] and "://" not in text
    assert len(text.splitlines()) <= MAX_LINES and text.startswith("/** ")


def test_the_files_are_installed_with_the_package() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert data["serving.console"] == ["static/*"] and "theme.css" in data["errata.reports"]


def test_the_scripts_ask_only_for_documented_routes() -> None:
    """Check every path in the scripts against the table of routes in docs/serving.md."""
    docs = (ROOT / "docs" / "serving.md").read_text()
    asked = {
        found for path in SCRIPTS for found in re.findall(r'["`](v1/[a-z]+|metrics|ready|openapi\.json)', path.read_text())
    }
    assert {"v1/edits", "v1/key", "v1/versions"} < asked
    assert sorted(path for path in asked if f"/{path}" not in docs) == [], json.dumps(sorted(asked))
