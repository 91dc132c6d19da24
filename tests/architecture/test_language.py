"""The language of docstrings: each begins with a noun phrase, a statement or an imperative."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.architecture.test_fences import ROOT, sources

# A first line that begins so is a clause without a statement, or hides its subject behind a condition.
CLAUSE_WORDS = frozenset(
    "After As At Because Before By For From How If In Of On So That Until What When Where Whether Which While Who Whose "
    "With Without".split()
)
SOURCES = sources("platform/errata", "jobs", "serving", "benchmarks", "docs", "tests")


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of every docstring of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        has_text = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if has_text and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), text


def test_docstrings_begin_with_a_statement() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0]}"
        for path in SOURCES
        for line, text in docstrings(path)
        if text.split()[0].strip(",:;") in CLAUSE_WORDS
    ]
    assert found == []
