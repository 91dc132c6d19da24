"""One word for one thing: class names are unique, and retired words do not come back."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator

from tests.architecture.test_fences import ROOT, sources

# Those with `Out` are one type on both sides of HTTP; `Generator` is a protocol and the deployment that has it.
SHARED_NAMES = {"EditOut", "AnswersOut", "TriedEditOut", "DryRunOut", "ProposalOut", "Generator"}

RETIRED = ("docket", "contender", "contestant", "standings", "workshop", "outbox", "audience", "trunk")
# The words are also found inside identifiers: next to an underscore, and where a capital letter begins a word.
RETIRED_WORD = re.compile(
    rf"(?<![a-zA-Z])({'|'.join(RETIRED)})s?(?![a-z])|({'|'.join(word.title() for word in RETIRED)})s?(?![a-z])"
)
# Names of classes and constants that were replaced by the field's words. The word `host` for a wrapped editor stays: it is a
# setting that users type (`host.kept=0.3`), a field in reports and records, and the prefix of saved states.
RETIRED_NAMES = set(
    """Asked Attempt Audience Avoided Bench Composed Contender Contestant Course Docket Feed Fleet Forced Heads Holders Intake
    Learned Located Made Maker Outbox Parcel Place Played Reverted Room Rotation Running Savings Stack Stamp Standing TOLD Trunk
    Walk Watch Workshop""".split()
)
STANDINGS_KEY = re.compile(r"""["'`]standings["'`]""")  # a key of report.json, which files on disk have
LISTS_OF_WORDS = {"tests/architecture/test_names.py", "tests/architecture/test_language.py"}
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
    assert [where for where, line in lines_of_text() if RETIRED_WORD.search(STANDINGS_KEY.sub("", line))] == []


def lines_of_text() -> Iterator[tuple[str, str]]:
    """Yield each line of code and docs with its place, but for the lists of words here and in test_language.py."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in files:
        path = ROOT / name
        if path.suffix in TEXT and path.is_file() and name not in LISTS_OF_WORDS:
            for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
                yield f"{name}:{number}: {line.strip()}", line


def test_no_retired_name_is_defined() -> None:
    found = []
    for path in sources("platform/errata", "jobs", "serving", "benchmarks", "tests"):
        for node in ast.parse(path.read_text()).body:
            names = [getattr(node, "name", "")]
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            found += [f"{path.relative_to(ROOT)}:{node.lineno}: {name}" for name in names if name in RETIRED_NAMES]
    assert found == []
