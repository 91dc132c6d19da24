"""The README and the docs agree with the tree: folders, files, links, Makefile targets, commands and error codes."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import typer
from typer.core import TyperGroup

from errata.cli import app
from errata.edit import Code
from serving.api.codes import RequestCode
from tests.architecture.test_fences import ROOT
from tests.architecture.test_layers import LAYERS

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
MAX_README_BYTES = 9216


def page_name(path: Path) -> str:
    return path.name


def tracked() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def folders() -> set[str]:
    """Return the folders that the README must list: the top level, and the packages of `errata` and `serving`."""
    inside = {name.split("/")[0] for name in tracked() if "/" in name and not name.startswith(".")}
    for top in ("platform/errata", "serving"):
        inside |= {f"{top}/{name[len(top) + 1 :].split('/')[0]}" for name in tracked() if name.startswith(f"{top}/")}
    return {name for name in inside if (ROOT / name).is_dir()}


def tree_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tree", ROOT / "docs" / "tree.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- the README and the list of files


def test_the_readme_names_every_folder() -> None:
    drawn = re.search(r"## Where things are\n.*?```\n(.*?)```", README.read_text(), re.DOTALL)
    assert drawn is not None
    listed: set[str] = set()
    above = ""
    for line in drawn.group(1).splitlines():
        name = line.split()[0].rstrip("/")
        above = above if line.startswith(" ") else name
        listed.add(f"{above}/{name}" if line.startswith(" ") else name)
    listed |= {name.split("/")[0] for name in listed}
    assert folders() - listed == set(), "the README does not name these folders"
    assert {name for name in listed if not (ROOT / name).is_dir()} == set(), "the README names folders that do not exist"


def test_the_readme_is_short() -> None:
    assert len(README.read_bytes()) <= MAX_README_BYTES


def test_the_readme_links_every_page() -> None:
    linked = set(re.findall(r"\(docs/([\w-]+\.md)", README.read_text()))
    assert {path.name for path in PAGES if path != README} - linked == set()


def test_the_list_of_files_is_current() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert tree_module().with_listing(page) == page, "the list of files in docs/architecture.md is old; run `make tree`"


def test_every_module_has_a_docstring() -> None:
    tree = tree_module()
    assert [path.relative_to(ROOT).as_posix() for path in tree.modules() if not tree.first_line(path)] == []


def test_no_package_lists_its_files() -> None:
    """Check that a package's docstring says what belongs into it: docs/architecture.md lists its files, always completely."""
    tree = tree_module()
    packages = {path: ast.get_docstring(ast.parse(path.read_text())) for path in tree.packages()}
    assert [path.relative_to(ROOT).as_posix() for path, text in packages.items() if not text] == []
    listed = []
    for package, text in packages.items():
        files = {path.stem for path in package.parent.glob("*.py") if path != package}
        own = {f"{name}.py" for name in files} | {name for name in files if "_" in name}
        listed += [
            f"{package.relative_to(ROOT)}: {name}" for name in sorted(own) if re.search(rf"\b{re.escape(name)}\b", text or "")
        ]
        listed += [f"{package.relative_to(ROOT)}: reading order"] if "reading order" in (text or "") else []
    assert listed == []


def test_the_diagrams_name_files_that_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"\b(?:errata|serving|jobs)/[\w/]+\.py", page.partition(tree_module().BEGIN)[0]))
    assert {name for name in named if not any((ROOT / top / name).exists() for top in ("", "platform"))} == set()


# --- links and commands


def anchor(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_relative_link_resolves(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, fragment = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists():
            broken.append(target)
        elif fragment and path.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            broken += [] if fragment in map(anchor, headings) else [target]
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_path_in_the_text_exists(page: Path) -> None:
    """Check paths of the repository in backquotes, with or without `platform/`."""
    text = page.read_text()
    named = set(re.findall(r"`((?:platform|errata|serving|jobs|benchmarks|tests|deploy|docs|requirements)/[\w/.-]+)`", text))
    assert {name for name in named if not any((ROOT / top / name).exists() for top in ("", "platform"))} == set()


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_make_command_is_a_target(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    written = re.findall(r"(?:^|[;&] )make ([a-z][a-z\d-]*[a-z\d])(?![\w*-])", "\n".join(code_of(page)), re.MULTILINE)
    assert set(written) - targets == set()


def code_of(page: Path) -> list[str]:
    """Return a page's code, in blocks and in backquotes; lines that end in a backslash are joined."""
    text = page.read_text().replace("\\\n", " ")
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    return [*blocks, *re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))]


def wrong_in(call: str) -> list[str]:
    """Return the command or the options of a call of `errata` that do not exist."""
    words = call.replace("…", "").split()
    options = {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)} - {"--help"}
    command, name = typer.main.get_command(app), ""
    while isinstance(command, TyperGroup):
        if not words:
            return []  # a group that is named as a whole
        name, found = f"{name} {words[0]}", command.get_command(typer.Context(command), words[0])
        if found is None:
            return [name]
        command, words = found, words[1:]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    return [f"{name} {option}" for option in sorted(options - known)]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_errata_command_and_option_exists(page: Path) -> None:
    lines = [line for code in code_of(page) for line in code.splitlines()]
    calls = [call for line in lines for call in re.findall(r"(?:^|[;&'] ?|bin/)errata ([a-z]+(?: [^;&|#']*)?)", line)]
    assert [wrong for call in calls for wrong in wrong_in(call)] == []


def test_the_listed_codes_are_the_enumerations() -> None:
    page = (ROOT / "docs" / "serving.md").read_text()
    section = re.search(r"^## Codes of errors\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    assert section is not None, "docs/serving.md has no section `Codes of errors`"
    rows = re.findall(r"^\| (`[^|]*) \|", section.group(1), re.MULTILINE)
    listed = {code for row in rows for code in re.findall(r"`([\w.]+)`", row)}
    assert listed == {code.value for code in (*Code, *RequestCode)}


def test_the_table_of_layers_is_the_one_that_is_tested() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", page, re.MULTILINE)
    listed = {int(level): set(re.findall(r"`(\w+)`", units)) for level, units in rows}
    package = ROOT / "platform" / "errata"
    present = {path.stem for folder in (ROOT, package) for path in folder.iterdir() if not path.name.startswith("_")}
    assert listed == {level: set(units.split()) & present for level, units in enumerate(LAYERS)}
