"""No code decides by the text of an error: a code, a type or a field says what is wrong, and the message is for people."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from functools import cache

import pytest

from tests.architecture.test_fences import ROOT, sources

SOURCES = sources("platform/errata", "serving", "jobs", "benchmarks")
TEXTS = {"message", "reason"}  # The attributes, and keys of JSON, that hold a text for people.
PARSERS = {"startswith", "endswith", "removeprefix", "removesuffix", "find", "rfind", "index", "rindex", "count"}
CUTTERS = {"split", "rsplit", "partition", "rpartition"}  # Blanks and the first line are cut for display.
SEARCHES = {"search", "match", "fullmatch", "findall", "finditer"}  # of `re`
# The functions that may read the text of an error, by "file: function", each with the reason why there is no other way. None:
# what `errata.local.services` searches is the log of a process that has ended, not an error, and its find is only shown.
ALLOWED: dict[str, str] = {}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def exceptions() -> frozenset[str]:
    """Return the names of the exception classes: the built-in ones, and those in our files that inherit from any of them."""
    found = {name for name, one in vars(builtins).items() if isinstance(one, type) and issubclass(one, BaseException)}
    classes = [node for path in SOURCES for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
    while new := {one.name for one in classes if found & {name_of(base) for base in one.bases}} - found:
        found |= new
    return frozenset(found)


def name_of(node: ast.expr | None) -> str:
    """Return the last name of a dotted one, empty for anything else."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


class Texts:
    """The names of a function that hold the text of an error: errors (caught, or parameters), and texts made of them."""

    def __init__(self, function: Function) -> None:
        self.errors = {node.name for node in ast.walk(function) if isinstance(node, ast.ExceptHandler) and node.name}
        given = function.args
        for one in (*given.posonlyargs, *given.args, *given.kwonlyargs):
            annotated = {name_of(part) for part in ast.walk(one.annotation or ast.Constant(None)) if isinstance(part, ast.expr)}
            if any(name in exceptions() or name.endswith(("Error", "Exception")) for name in annotated):
                self.errors.add(one.arg)
        self.names: set[str] = set()
        assigned = [pair for node in ast.walk(function) for pair in assignments(node)]
        while new := {name for name, value in assigned if name not in self.names and self.has(value)}:
            self.names |= new

    def has(self, node: ast.expr | None) -> bool:
        """Say if an expression is the text of an error or is made of it."""
        match node:
            case ast.Name(id=name):
                return name in self.names
            case ast.Attribute(value=value, attr=name):
                return name in TEXTS or (name == "args" and name_of(value) in self.errors)
            case ast.Subscript(value=value, slice=place):
                return self.has(value) or (isinstance(place, ast.Constant) and place.value in TEXTS)
            case ast.Call(func=called, args=given):
                return self._is_made_by(called, given)
            case ast.JoinedStr(values=parts):
                return any(self.has(part) for part in parts)
            case ast.FormattedValue(value=value):
                return name_of(value) in self.errors or self.has(value)
            case ast.BinOp(left=left, right=right):
                return self.has(left) or self.has(right)
            case ast.BoolOp(values=values):
                return any(map(self.has, values))
            case ast.IfExp(body=one, orelse=other):
                return self.has(one) or self.has(other)
            case ast.NamedExpr(value=value):
                return self.has(value)
        return False

    def _is_made_by(self, called: ast.expr, given: list[ast.expr]) -> bool:
        if name_of(called) in ("str", "repr") and isinstance(called, ast.Name):
            return any(name_of(one) in self.errors or self.has(one) for one in given)
        if not isinstance(called, ast.Attribute):
            return False
        is_read = called.attr == "get" and bool(given) and isinstance(given[0], ast.Constant) and given[0].value in TEXTS
        return is_read or self.has(called.value) or (called.attr == "join" and any(map(self.has, given)))

    def parses(self, node: ast.AST) -> bool:
        """Say if a node decides by the text of an error, or takes it apart."""
        match node:
            case ast.Compare(left=left, ops=[*ops], comparators=[*others]):
                decides = any(isinstance(op, ast.In | ast.NotIn | ast.Eq | ast.NotEq) for op in ops)
                return decides and any(map(self.has, (left, *others)))
            case ast.Match(subject=subject):
                return self.has(subject)
            case ast.Call(func=ast.Attribute(value=value, attr=name), args=given):
                if name in SEARCHES:
                    return any(map(self.has, given))
                return self.has(value) and (name in PARSERS or (name in CUTTERS and not is_for_display(given)))
        return False


def assignments(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Iterate over the names that a statement assigns, with the values; a tuple is taken apart."""
    match node:
        case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
            yield from ((name_of(name), value) for name, value in zip(names, values, strict=False))
        case ast.Assign(targets=targets, value=value):
            yield from ((name_of(target), value) for target in targets if isinstance(target, ast.Name))
        case (
            ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            | ast.NamedExpr(target=ast.Name(id=name), value=value)
        ):
            yield name, value


def is_for_display(given: list[ast.expr]) -> bool:
    """Say if a text is cut at blanks or at the end of its first line."""
    return not given or (isinstance(given[0], ast.Constant) and given[0].value == "\n")


def parsing(source: str) -> Iterator[tuple[str, int]]:
    """Iterate over the functions that read the text of an error, with the lines."""
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, Function):
            texts = Texts(function)
            yield from ((function.name, node.lineno) for node in ast.walk(function) if texts.parses(node))


def test_no_function_reads_the_text_of_an_error() -> None:
    found: dict[str, int] = {}
    for path in SOURCES:
        for name, line in parsing(path.read_text()):
            found[f"{path.relative_to(ROOT).as_posix()}: {name}"] = line
    assert {place: line for place, line in found.items() if place not in ALLOWED} == {}, "give the error a code or a type"
    assert set(ALLOWED) <= set(found), "what is not parsed any more is not allowed either"


@pytest.mark.parametrize(
    "line",
    [
        "if 'full' in str(fault): pass",
        "if fault.reason == 'full': pass",
        "if 'full' not in fault.message.lower(): pass",
        "return fault.reason.removeprefix('x: ')",
        "return str(fault).startswith('x')",
        "return str(fault).split(': ')[1]",
        "return f'{fault}'.rpartition(': ')[2]",
        "return re.search('full', fault.args[0])",
        "text = ' '.join(str(fault).split())\n        return 'full' in text",
        "return 'full' in answered.get('reason', '')",
        "return answered['error']['message'] != 'full'",
        "match fault.reason:\n            case 'full': pass",
    ],
)
def test_the_fence_finds_each_way_to_read_a_text(line: str) -> None:
    source = f"def tried(answered):\n    try:\n        work()\n    except OSError as fault:\n        {line}\n"
    assert [name for name, _ in parsing(source)] == ["tried"]


@pytest.mark.parametrize(
    "line",
    [
        "raise ValueError(f'the file: {fault}') from None",
        "return ' '.join(str(fault).split())[:200]",
        "return str(fault).strip().partition('\\n')[0]",
        "return fault.code == 'full' and fault.errno in (1, 2)",
        "found = {'reason': str(fault)}\n        return 'reason' in found",
        "return answered.get('reason') or 'none'",
    ],
)
def test_the_fence_lets_a_text_be_shown(line: str) -> None:
    source = f"def tried(answered):\n    try:\n        work()\n    except OSError as fault:\n        {line}\n"
    assert not list(parsing(source))


def test_the_fence_knows_parameters_that_are_errors() -> None:
    assert list(parsing("def said(wrong: LedgerConflict | None) -> bool:\n    return 'moved' in str(wrong)")) == [("said", 2)]
    assert list(parsing("def said(wrong: httpx.RequestError):\n    return str(wrong) == 'no'")) == [("said", 2)]
    assert not list(parsing("def said(wrong: int) -> bool:\n    return '1' in str(wrong)"))
