"""Layers: each unit imports only from lower ones, and imports form no circle."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# A unit imports only from lines below its own; units on one line never import each other.
LAYERS = (
    "text durable locks home overrides hardware timing",
    "edit",
    "datasets model client access_keys",
    "evaluate edit_memory provenance",
    "delta",
    "guard",
    "editors",
    "candidate ledger benchmark testbed",
    "generate history registry",
    "lifelong reports local",
    "cli jobs serving",
    "benchmarks",
)
LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units.split()}

# The same rule inside a package, by file or folder.
INSIDE = {
    "errata.editors": (
        "normalise solve state presets",
        "past_keys accumulated",
        "normal_equations",
        "editor",
        "repeated trained_editor",
        "hypernet closed_form fine_tuning memory_based tiers",
        "wrappers",
        "table",
        "build",
    ),
    "serving": ("metrics tracing logs", "worker", "api", "console", "engine", "app", "start"),
    "errata.ledger": (
        "entry base_model journal_copy",
        "index head editor_states",
        "snapshots",
        "folders",
        "chain quarantine export",
        "ledger",
        "recovery remote scrub",
    ),
}


def python_files() -> list[Path]:
    folders = ("platform/errata", "jobs", "serving", "benchmarks")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "platform" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in python_files()}


@cache
def imported(module: str) -> frozenset[str]:
    """Return the modules of this repository that a module imports, also in functions and under TYPE_CHECKING."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            while name and name not in MODULES:
                name = name.rpartition(".")[0]
            found |= {name} - {"", module}
    return frozenset(found)


def unit_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "errata" and len(parts) > 1 else parts[0]


@pytest.mark.parametrize("module", [name for name in MODULES if name != "errata"])
def test_imports_go_down(module: str) -> None:
    own = unit_of(module)
    for other in imported(module):
        unit = unit_of(other)
        assert other == "errata" or unit == own or LEVEL[unit] < LEVEL[own], f"{module} imports {other}"


@pytest.mark.parametrize("package", INSIDE)
def test_imports_inside_a_package_go_down(package: str) -> None:
    level = {part: number for number, parts in enumerate(INSIDE[package]) for part in parts.split()}
    start = len(package) + 1
    for module in MODULES:
        if not module.startswith(package + "."):
            continue
        own = module[start:].split(".")[0]
        for other in imported(module):
            if other.startswith(package + ".") and (part := other[start:].split(".")[0]) != own:
                assert level[part] < level[own], f"{module} imports {other}"


def test_no_family_of_editors_imports_another() -> None:
    allowed = {("wrappers", "closed_form")}
    families = {"hypernet", "closed_form", "wrappers", "fine_tuning", "memory_based"}
    for module in MODULES:
        if module.startswith("errata.editors.") and (own := module.split(".")[2]) in families:
            for other in imported(module):
                parts = other.split(".")
                if parts[:2] == ["errata", "editors"] and parts[2] in families - {own}:
                    assert (own, parts[2]) in allowed, f"{module} imports {other}"


def test_imports_form_no_circle() -> None:
    graph = {module: imported(module) for module in MODULES}
    state: dict[str, int] = {}

    def visit(module: str, trail: tuple[str, ...]) -> None:
        state[module] = 1
        for other in sorted(graph[module]):
            assert state.get(other) != 1, " -> ".join((*trail, module, other))
            if other not in state:
                visit(other, (*trail, module))
        state[module] = 2

    for module in graph:
        if module not in state:
            visit(module, ())
