"""Fences: the frameworks that each package may import, and the form of the tree."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FRAMEWORKS = {"ray", "vllm", "mlflow", "fastapi", "pydantic"}
BANNED_NAMES = {"utils", "helpers", "common", "base", "misc", "types", "manager"}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def imports_of(path: Path) -> frozenset[str]:
    """Return the dotted names that a file imports, at any level."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports_of(path)}


@pytest.mark.parametrize("path", sources("platform/errata"), ids=lambda p: p.name)
def test_the_core_imports_no_framework(path: Path) -> None:
    allowed = {"mlflow"} if path.parent.name == "registry" else set()
    assert tops(path) & FRAMEWORKS <= allowed
    assert not tops(path) & {"jobs", "serving"}


@pytest.mark.parametrize("path", sources("jobs"), ids=lambda p: p.name)
def test_jobs_import_no_serving_code(path: Path) -> None:
    names = imports_of(path)
    assert not tops(path) & {"serving", "vllm", "fastapi", "pydantic", "mlflow"}
    assert not any(name.startswith("ray.serve") for name in names)


@pytest.mark.parametrize("path", sources("serving"), ids=lambda p: p.name)
def test_serving_imports_no_training_code(path: Path) -> None:
    assert not tops(path) & {"jobs", "mlflow"}
    assert not any(name.startswith(("ray.train", "ray.tune", "ray.data")) for name in imports_of(path))


def test_code_after_the_editor_imports_no_editor() -> None:
    root = ROOT / "platform" / "errata"
    # What any editor is, or any two: none of them is named there.
    allowed = {"editor", "state", "repeated", "normal_equations", "tiers"}
    blind = ["ledger", "registry", "history", "evaluate", "guard", "delta", "model", "datasets"]
    files = [*sources(*(f"platform/errata/{name}" for name in blind)), root / "generate.py", root / "candidate.py"]
    for path in [*files, root / "lifelong.py"]:
        names = imports_of(path)
        assert not any(n.startswith("errata.editors.") and n.split(".")[2] not in allowed for n in names), path


def test_the_source_root_is_not_a_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists(), "it would shadow the standard library's platform module"


def test_file_names_are_specific() -> None:
    for path in sources("platform/errata", "jobs", "serving", "benchmarks"):
        assert path.stem not in BANNED_NAMES | set(sys.stdlib_module_names), path


def test_every_package_is_installed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = [ROOT / "platform" / "errata", ROOT / "jobs", ROOT / "serving", ROOT / "benchmarks"]
    found = {
        ".".join(path.parent.relative_to(folder.parent).parts) for folder in folders for path in folder.rglob("__init__.py")
    }
    assert found == listed


def test_the_core_works_without_ray_vllm_and_mlflow() -> None:
    code = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"ray", "vllm", "mlflow"}:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
import errata.lifelong
from errata.editors import EDITORS
assert EDITORS and not {"ray", "vllm", "mlflow"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_no_file_names_a_private_path_or_a_registry() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    for name in files:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".txt", ".yaml", ""} and path.is_file() and "tests/" not in name:
            text = path.read_text(errors="replace")
            assert "/root/" not in text and "pypi.org" not in text and "files.pythonhosted" not in text, name


WRITES = {"write_text", "write_bytes", "write_table", "savefig"}
WHOLE = ("replaced(", "new_folder(", "TemporaryDirectory(")
# Functions that fill a folder which their caller makes by `new_folder`, and functions that write no file of ours.
PARTS_OF_A_WHOLE = {
    "entry.write_tensors": "the folder of a new version",
    "entry.write_edits": "the folder of a new version",
    "entry.write_entry": "the folder of a new version",
    "trained_editor.write": "the folder of a new artifact",
    "moments.save": "the folder of new moments",
    "durable.write_text": "a device or a pipe",
    "figures.picture": "memory",
    "hardware.__enter__": "a file of /proc",
}


def unprotected_writes(node: ast.AST, where: str) -> Iterator[str]:
    """Yield the functions that write a file outside of a block that replaces it whole."""
    if isinstance(node, ast.With) and any(call in ast.unparse(item) for item in node.items for call in WHOLE):
        return
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        where = f"{where.partition('.')[0]}.{node.name}"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in WRITES:
        yield where
    for child in ast.iter_child_nodes(node):
        yield from unprotected_writes(child, where)


def test_results_are_written_whole() -> None:
    """A result that a killed job leaves half-written would be read as a result."""
    files = sources("platform/errata", "jobs", "serving", "benchmarks")
    found = {where for path in files for where in unprotected_writes(ast.parse(path.read_text()), path.stem)}
    assert found == set(PARTS_OF_A_WHOLE)
