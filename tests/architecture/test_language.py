"""The language of code, docs and messages: plain words, and docstrings that begin with a statement."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.architecture.test_fences import ROOT, sources
from tests.architecture.test_names import lines_of_text

# A first line that begins so is a clause without a statement, or hides its subject behind a condition.
CLAUSE_WORDS = frozenset(
    "After As At Because Before By For From How If In Of On So That Until What When Where Whether Which While Who Whose "
    "With Without".split()
)
# Pronouns for persons, metaphors and old-fashioned adverbs, in prose and in names of functions.
PLAIN_WORDS = re.compile(
    r"(?<![a-z])(nobody|anybody|somebody|whoever|whom|anew|told|for[ _]good|without[ _]hands|of the house|be both of"
    r"|at once(?! more)|stands(?![ _]for))(?![a-z])",
    re.IGNORECASE,
)
# Sentences that are data: of probes, of a task, of the invented world, of the license, and of a test.
DATA = re.compile(
    r"The doctor told him|nobody understood a word|stands shines waits|on behalf of whom|\"whom\"|by whom\?|stand stands lies"
    r"|Somebody Else"
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


def test_words_are_plain() -> None:
    found = [where for where, line in lines_of_text() if PLAIN_WORDS.search(DATA.sub("", line))]
    assert [where for where in found if not where.startswith("tests/data/")] == []
