"""One word for one thing: class names are unique, and retired words do not come back."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import defaultdict

from tests.architecture.test_fences import ROOT, sources

# `EditOut` and `AnswersOut` are one type on both sides of HTTP; `Generator` is a protocol and the deployment that has it.
SHARED_NAMES = {"EditOut", "AnswersOut", "Generator"}

RETIRED = ("docket", "contender", "contestant", "standings", "workshop", "outbox", "audience", "trunk")
# The words are also found inside identifiers: next to an underscore, and where a capital letter begins a word.
RETIRED_WORD = re.compile(
    rf"(?<![a-zA-Z])({'|'.join(RETIRED)})s?(?![a-z])|({'|'.join(word.title() for word in RETIRED)})s?(?![a-z])"
)
STANDINGS_KEY = re.compile(r"""["'`]standings["'`]""")  # a key of report.json, which files on disk have
TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".html", ".css", ".js", ".sh", ".json", ""}


def test_public_class_names_are_unique() -> None:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for path in sources("platform/errata", "jobs", "serving", "benchmarks"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(path.relative_to(ROOT).as_posix())
    repeated = {name: paths for name, paths in found.items() if len(paths) > 1 and name not in SHARED_NAMES}
    assert repeated == {}


def test_no_retired_word_is_used() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    found = []
    for name in files:
        path = ROOT / name
        if path.suffix not in TEXT or not path.is_file() or path.name == "test_names.py":
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if RETIRED_WORD.search(STANDINGS_KEY.sub("", line)):
                found.append(f"{name}:{number}: {line.strip()}")
    assert found == []
