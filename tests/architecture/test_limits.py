"""Limits on the sizes of files, functions and parameter lists, and on what lies at the top level of the package."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tests.architecture.test_fences import ROOT, sources

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 7
MAX_FILES_AT_TOP, MAX_FOLDERS_AT_TOP = 13, 17
SOURCES = sources("platform/errata", "jobs", "serving", "benchmarks", "docs", "tests")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def num_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the parameters without `self` and `cls`."""
    given = function.args
    names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg) if one]
    return len([name for name in names if name not in ("self", "cls")])


def is_command(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return True for a command of Typer's: its parameters are the options that a user types."""
    return any(".command(" in ast.unparse(decorator) for decorator in function.decorator_list)


class Size(NamedTuple):
    """A function by its file and name; a command has as many parameters as its user has options."""

    where: str
    num_lines: int
    num_parameters: int


@cache
def functions() -> list[Size]:
    """Return the sizes of all functions."""
    return [
        Size(
            f"{name_of(path)}: {node.name}",
            (node.end_lineno or 0) - node.lineno + 1,
            0 if is_command(node) else num_parameters(node),
        )
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def test_no_file_is_longer_than_400_lines() -> None:
    found = {name_of(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: length for name, length in found.items() if length > MAX_FILE_LINES} == {}


def test_no_function_is_longer_than_60_lines() -> None:
    assert [one for one in functions() if one.num_lines > MAX_FUNCTION_LINES] == []


def test_no_function_has_eight_parameters() -> None:
    assert [one for one in functions() if one.num_parameters > MAX_PARAMETERS] == []


def test_the_top_level_of_the_package_stays_small() -> None:
    package = ROOT / "platform" / "errata"
    files = [path.name for path in package.glob("*.py")]
    folders = [path.name for path in package.iterdir() if (path / "__init__.py").exists()]
    assert len(files) <= MAX_FILES_AT_TOP, sorted(files)
    assert len(folders) <= MAX_FOLDERS_AT_TOP, sorted(folders)
