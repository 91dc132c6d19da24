"""Writes the list of files in docs/architecture.md from the modules' docstrings: `make tree`.

Each line of the list is the first line of a module's docstring, so the page cannot say something else than the code does.
`tests/architecture/test_docs.py` fails when the list is not current.
"""

from __future__ import annotations

import ast
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
FOLDERS = ("platform/errata", "jobs", "serving", "benchmarks")
BEGIN, END = "<!-- files: written by `make tree` -->", "<!-- end of files -->"


def first_line(path: Path) -> str:
    """Return the first line of a module's docstring; empty if it has none."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]


def modules() -> list[Path]:
    """Return every module of the four packages, without `__init__.py` files."""
    found = (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))
    return [path for path in found if path.name != "__init__.py"]


def packages() -> list[Path]:
    """Return the `__init__.py` of every folder that has one."""
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("__init__.py"))


def listing() -> str:
    """Return the list as Markdown: a heading for each folder, its package's sentence, and a line for each file."""
    lines: list[str] = []
    ordered = sorted(modules(), key=lambda path: (FOLDERS.index(_top(path)), path.parent.as_posix(), path.name))
    for folder, files in groupby(ordered, key=lambda path: path.parent):
        lines += [f"### {folder.relative_to(ROOT).as_posix()}", ""]
        if sentence := first_line(folder / "__init__.py"):
            lines += [sentence, ""]
        lines += [f"* [`{path.name}`](../{path.relative_to(ROOT).as_posix()}): {first_line(path)}" for path in files]
        lines.append("")
    return "\n".join(lines)


def _top(path: Path) -> str:
    return next(folder for folder in FOLDERS if path.is_relative_to(ROOT / folder))


def with_listing(page: str) -> str:
    """Return the page with the current list between its markers."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{listing()}\n{END}{tail}"


if __name__ == "__main__":
    PAGE.write_text(with_listing(PAGE.read_text()))
    print(f"wrote the list of {len(modules())} files into {PAGE.relative_to(ROOT)}")
