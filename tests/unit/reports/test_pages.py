"""`errata report`: pages about ledgers and benchmarks that were really made, small, and what is said of bad input."""

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from errata.benchmark.files import read, write
from errata.benchmark.results import COLUMNS, REQUIRED, Answer, CheckpointScores
from errata.benchmark.run import BenchmarkedEditor, run_all
from errata.benchmark.stream import BenchmarkStream
from errata.cli.main import app
from errata.delta.parts import LowRank
from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, Edit, EditRejected, batches_of
from errata.editors.editor import Editor
from errata.editors.state import EditorState
from errata.generate import HFGenerator
from errata.guard.limits import Guard, Limit
from errata.guard.probes import Probes
from errata.history.lineage import live_edits
from errata.ledger import Ledger
from errata.lifelong import run
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.reports.benchmark_answers import Pair, pairs
from errata.reports.ledger_figures import grouped, wilson
from errata.reports.ledger_history import History
from errata.reports.write import write_report
from errata.testbed.world import World

MODULE = "model.layers.1.mlp.down_proj"
NASTY = '<script>alert("x")</script>'
VOID = {"meta", "input", "br", "link", "img"}


@dataclass(frozen=True)
class Small(Editor):
    """A change of rank 1 that harms nothing, and one that ruins everything for the prompts that say so."""

    modules: tuple[str, ...] = ("layers.1.mlp.down_proj",)

    def start(self, model: LanguageModel, spec: Any) -> EditorState:
        return EditorState()

    def edit(self, model: LanguageModel, batch: Any, state: EditorState, cache: Any = None) -> tuple[WeightDelta, EditorState]:
        weight_OI = model.module.get_submodule(MODULE).weight
        scale = 1e4 if any("poison" in prompt for prompt in batch.prompts) else 1e-3
        delta = WeightDelta({MODULE: LowRank(scale * weight_OI[:, :1].clone(), weight_OI[:1].T.clone())})
        return delta, EditorState(state.num_edits + len(batch))


class Page(HTMLParser):
    """A page as a browser reads it: texts by the tag they are in, and everything that could load something."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if "script" in self.open:
            self.scripts.append(data)
        elif "style" not in self.open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.attributes if name == tag]


def report(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


@pytest.fixture
def lived(ledger: Ledger, tiny_model: LanguageModel, world: World) -> Ledger:
    """Two versions, a refused edit, back to 1, another version from there; through the loop and the guard."""
    spec = find_matrices(tiny_model.module, [MODULE])
    generator, edits = HFGenerator(tiny_model, spec, ledger), world.edits("test", 6)
    probes = Probes(tuple(edit.prompt for edit in edits[4:]), tuple(world.plain_sentences(held_out=True)[:4]))
    guard = Guard(growth=Limit(0.5, 10.0))  # what is published is warned of

    def play(*some: Edit) -> None:
        batches = batches_of(some, 2)
        assert list(run(tiny_model, spec, Small(), batches, ledger, generator, guard, "", lambda *_: None, probes))

    play(*edits[:2], *edits[2:3], Edit("poison <i>", NASTY))
    ledger.move_head(1)
    play(replace(edits[3], target=NASTY))
    return ledger


@pytest.fixture(scope="module")
def benchmark(world: World, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from errata.model.language_model import load

    folder, rows, said = tmp_path_factory.mktemp("benchmark"), list[CheckpointScores](), list[Answer]()
    edits = (*world.edits("test", 5), Edit(f"{NASTY} is", "x"))
    benchmarked = [
        BenchmarkedEditor(name, Small(), 0.0, {"modules": ["a", "b"], "reward": {"discount": 0.9}}) for name in ("A", "B & C")
    ]
    for seed in (0, 1):
        stream = BenchmarkStream(edits, tuple(world.plain_sentences(held_out=True)[:4]), 3, checkpoints=(1, 3), seed=seed)
        rows += run_all(load(model_dir), benchmarked, stream, after_run=said.extend)
    said = [replace(a, right=True) if a.editor == "A" and a.kind == "efficacy" else a for a in said]
    meta = {"command": f"bench {NASTY}", "seeds": [0, 1], "settings": {c.name: c.settings for c in benchmarked}}
    write(rows, folder, {**meta, "hardware": {"cpu": "a cpu", "num_cores": 2}}, answered=said)
    return folder


def check_whole(page: Page, folder: Path) -> None:
    """The page loads nothing, runs no script but its own, and says in words what its figures show."""
    assert NASTY not in page.source
    loading = [value for _, a in page.attributes for name, value in a.items() if name in ("src", "href", "xlink:href", "data")]
    assert all(value is not None and value.startswith("#") for value in loading)
    assert not page.all("link") and "@import" not in page.source and "http:" not in page.source and "https:" not in page.source
    policy = next(a["content"] or "" for a in page.all("meta") if a.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256("".join(page.scripts).encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy and len(page.all("script")) == 1
    assert page.all("svg") and all(a["role"] == "img" and a["aria-label"] for a in page.all("svg"))
    assert all(a.get("scope") in ("col", "row") for a in page.all("th"))
    ids = [a["id"] for _, a in page.attributes if "id" in a]
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in loading if value} <= set(ids)
    assert len(list(folder.glob("*.png"))) == len(page.all("svg"))
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.glob("*.png"))


def test_a_ledger_has_a_page(lived: Ledger, tmp_path: Path) -> None:
    done = report(lived.directory, "--out", tmp_path / "out")
    assert done.exit_code == 0 and "index.html" in done.output
    page = Page(tmp_path / "out" / "index.html")
    check_whole(page, tmp_path / "out")
    names = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert {"efficacy", "locality", "guard", "ppl_ratio", "norm_growth", "relative_norm", "chain"} <= names
    assert f"poison <i> → {NASTY}" in page.text and "more than 10" in page.text
    labels = " ".join(a["aria-label"] or "" for a in page.all("svg"))
    assert "0 published, 3 warned, 1 refused" in labels and "Move 1: from 2 to 1" in labels
    assert "The guard warns above 1.05 and refuses above 1.5" in labels
    assert "Dashed lines are the limits that it judged by" in page.text and "was changed" not in page.text


def test_the_limits_drawn_are_those_that_were_judged_by(
    ledger: Ledger, tiny_model: LanguageModel, world: World, tmp_path: Path
) -> None:
    """Two versions and a refusal under one guard, one version under another, and one that nobody judged."""
    spec, edits = find_matrices(tiny_model.module, [MODULE]), world.edits("test", 5)
    generator = HFGenerator(tiny_model, spec, ledger)
    probes = Probes(tuple(edit.prompt for edit in edits[4:]), tuple(world.plain_sentences(held_out=True)[:4]))

    def play(guard: Guard, *some: Edit) -> None:
        list(run(tiny_model, spec, Small(), batches_of(some, 1), ledger, generator, guard, "", lambda *_: None, probes))

    strict = Guard(perplexity=Limit(1.01, 1.25))
    play(strict, edits[0], Edit("poison <i>", "x"), edits[1])
    play(Guard(perplexity=Limit(1.3, math.inf), disturbed=strict.disturbed), edits[2])
    ledger.append(3, WeightDelta({}), EditorState(4), edits[3:4], {}, ("Small", ""))
    history = History.read(ledger.directory)
    assert history.limits("perplexity") == [(1, Limit(1.01, 1.25)), (3, Limit(1.3, math.inf))]
    assert len(history.limits("disturbed")) == 1 and history.limits("a limit of tomorrow") == []
    (refusal,) = ledger.refusals()
    assert refusal["scores"]["limits"] == strict.limits and ledger.version(1).scorecard["limits"]["perplexity"] == [1.01, 1.25]
    page = Page(write_report(ledger.directory, tmp_path / "out"))
    check_whole(page, tmp_path / "out")
    labels = " ".join(a["aria-label"] or "" for a in page.all("svg"))
    assert "At the end the guard warns above 1.3 and refuses never" in labels and "The guard warns above 0.05" in labels
    assert "A line ends where a limit was changed" in page.text


def test_a_ledger_without_out_has_it_inside_and_stays_a_ledger(lived: Ledger) -> None:
    before = [version.fingerprint for version in lived.versions()]
    assert write_report(lived.directory) == lived.directory / "report" / "index.html"
    assert [version.fingerprint for version in Ledger.open(lived.directory).versions()] == before


def test_a_history_is_what_happened(lived: Ledger) -> None:
    history = History.read(lived.directory)
    assert [(p.version.number, p.edits, p.is_main) for p in history.points] == [(1, 2, True), (2, 3, False), (3, 3, True)]
    assert [(event.outcome, event.version) for event in history.events] == [
        ("warned", 1),
        ("warned", 2),
        ("refused", 2),
        ("warned", 3),
    ]
    assert [(move.before, move.version, move.after) for move in history.moves] == [(2, 1, 2)]
    assert history.failed[0].target == NASTY and history.failed[0].version == 3
    assert (history.head, history.edits_at(3), history.edits_at(0)) == (3, 3, 0)


def test_a_subtracted_version_is_no_longer_held(
    ledger: Ledger, random_delta: Callable[..., WeightDelta], tmp_path: Path
) -> None:
    """The edits that were made go on being counted, which is where a version stands on a picture."""
    taken_out = {"reverted": {"edits": ["b"], "versions": [2], "mode": "subtract"}}
    for number, (ids, card) in enumerate([("a", {}), ("bc", {}), ("", taken_out), ("d", {})]):
        edits = [Edit(f"the prompt of {id}", "x", id=id) for id in ids]
        ledger.append(number, random_delta(number), EditorState(), edits, card, ("E", "p"))
    ledger.append(1, random_delta(5), EditorState(), [Edit("e", "x")], {}, ("E", "p"), expected_head=4)
    history = History.read(ledger.directory)
    assert [(point.edits, point.held) for point in history.points] == [(1, 1), (3, 3), (3, 1), (4, 2), (2, 2)]
    assert [history.held_by(number) for number in range(6)] == [len(list(live_edits(ledger, number))) for number in range(6)]
    ledger.move_head(4)
    assert "version 4, 2 edits" in Page(write_report(ledger.directory, tmp_path / "out")).text


def test_a_version_that_was_set_aside_is_not_missed(lived: Ledger, tmp_path: Path) -> None:
    folder = lived.directory / "versions" / "00000002"
    folder.rename(folder.with_suffix(".corrupt"))
    history = History.read(lived.directory)
    assert [(p.version.number, p.edits, p.is_main) for p in history.points] == [(1, 2, True), (3, 3, True)]
    check_whole(Page(write_report(lived.directory, tmp_path / "out")), tmp_path / "out")


def test_a_ledger_of_an_earlier_format(
    ledger: Ledger, random_delta: Callable[..., WeightDelta], tmp_path: Path, world: World
) -> None:
    """Scorecards without what the guard measures, or with nothing; half a line at the end of the moves."""
    cards: list[dict[str, Any]] = [{"efficacy": 1.0, "locality": None, "num_edits": 1, "method": "teacher-forced"}, {}]
    for number, card in enumerate(cards):
        edits = world.edits("test", 2)[number : number + 1]
        ledger.append(number, random_delta(number), EditorState(number + 1), edits, card, ("FT-L", "plan"))
    ledger.move_head(0)
    with (ledger.directory / "moves.jsonl").open("a") as log:
        log.write('{"version": 0, "aft')
    page = Page(write_report(ledger.directory, tmp_path / "out"))
    check_whole(page, tmp_path / "out")
    assert "This ledger does not say which edits failed." in page.text
    assert "the guard's default limits (this ledger does not say which it had)" in page.text
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == {"efficacy", "guard", "norms", "chain"}


def test_a_ledger_of_version_0_says_so(ledger: Ledger, tmp_path: Path) -> None:
    page = Page(write_report(ledger.directory, tmp_path / "out"))
    assert "This ledger holds version 0 alone, the unedited model" in page.text and not page.all("svg")


def test_refusals_alone_are_shown(ledger: Ledger, tmp_path: Path) -> None:
    ledger.refuse(0, Edit("a", "b"), EditRejected("too long", field="prompt", code=Code.EDITOR_FAILED))
    page = Page(write_report(ledger.directory, tmp_path / "out"))
    assert "version 0 alone" in page.text and "prompt: too long" in page.text and len(page.all("svg")) == 1


def test_long_lists_are_cut_and_say_so(
    ledger: Ledger, random_delta: Callable[..., WeightDelta], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("errata.reports.ledger_page.MOST_LINES", 2)
    for number in range(4):
        failed = [{"prompt": f"p{number}", "target": "t", "answer": ""}]
        card = {"efficacy": 0.0, "failed": failed, "warnings": ["w"] if number == 0 else [], "num_edits": 1}
        ledger.append(number, random_delta(number), EditorState(number + 1), [Edit(f"p{number}", "t")], card, ("E", ""))
    page = Page(write_report(ledger.directory, tmp_path / "out"))
    assert "and 2 more older ones that are not shown" in page.text and "p3" in page.text and "p1" not in page.text
    assert "and 2 older updates that are not shown" in page.text and "warned" in page.text and "(nothing)" in page.text


def test_a_benchmark_has_a_page(benchmark: Path, tmp_path: Path) -> None:
    page = Page(write_report(benchmark, tmp_path / "out"))
    check_whole(page, tmp_path / "out")
    names = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert {"efficacy", "harmonic_mean", "ppl_ratio", "time", "norm_growth", "pairs-efficacy"} <= names
    assert "Wrong answers of B & C" in page.text and f"{NASTY} is" in page.text
    assert "reward.discount" in page.text and f"bench {NASTY}" in page.text and "a cpu, 2 cores" in page.text
    rows = re.findall(r"<tr data-series=\"(\d)\">\s*<th scope=\"row\">(.*?)</th>", page.source)
    assert rows[0] == ("0", "unedited") and {("1", "A"), ("2", "B &amp; C")} == set(rows[1:3])
    assert {a["data-series"] for a in page.all("g") if "series" in (a.get("class") or "")} == {"0", "1", "2"}


def test_a_benchmark_of_an_earlier_format(benchmark: Path, tmp_path: Path) -> None:
    """Neither answers nor intervals nor report.json."""
    pq.write_table(pq.read_table(benchmark / "rows.parquet").select(REQUIRED), tmp_path / "rows.parquet")
    page = Page(write_report(tmp_path))
    check_whole(page, tmp_path / "report")
    assert "This benchmark has no answers.parquet" in page.text and "There is no report.json" in page.text
    assert "A band spans the lowest to the highest seed" in page.text


def test_a_model_that_gives_no_numbers_has_a_page(benchmark: Path, tmp_path: Path) -> None:
    rows = read(benchmark / "rows.parquet")
    infinite = {"ppl_ratio": math.inf, "norm_growth": math.inf}
    broken = [replace(row, values={**row.values, **infinite}) if row.editor == "A" else row for row in rows]
    write(broken, tmp_path, {})
    assert "∞" in Page(write_report(tmp_path)).text


def test_pairs_count_what_both_were_asked() -> None:
    def said(editor: str, right: str) -> Iterator[Answer]:
        return (Answer(editor, 0, 4, "efficacy", f"p{i}", "w", "", mark == "1") for i, mark in enumerate(right))

    answers = [*said("A", "1100"), *said("B", "10101"), Answer("A", 0, 4, "locality", "p0", "w", "", True)]
    (pair,) = pairs(answers, "efficacy", ["A", "B"])
    assert pair == Pair("A", "B", both=1, only_first=1, only_second=1, neither=1)
    assert pairs(answers, "locality", ["A", "B"]) == []
    assert Pair("A", "B", 5, 9, 1, 0).p_value == pytest.approx(2 * (1 + 10) / 2**10)
    assert Pair("A", "B", 5, 0, 0, 2).p_value == 1.0


def test_intervals_and_groups() -> None:
    assert wilson(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)  # Wilson's formula by hand
    assert wilson(10, 10)[1] == 1.0
    groups = grouped(list(range(201)), 80)  # type: ignore[arg-type]
    assert [len(group) for group in groups] == [3] * 67


def damaged_ledger(folder: Path) -> None:
    Ledger.create(folder, {"model": "m", "fingerprint": "f", "matrices": ["w"]})
    (folder / "versions" / "00000001").mkdir()
    (folder / "versions" / "00000001" / "entry.json").write_text('{"number": 1,')


def rows_with(text: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "rows.parquet").write_bytes(text) and None


def lacking(folder: Path) -> None:
    pq.write_table(pa.table({"editor": ["A"], "seed": [0]}), folder / "rows.parquet")


def no_rows(folder: Path) -> None:
    write_rows(folder, [])


def bad_meta(folder: Path) -> None:
    write_rows(folder, [a_row()])
    (folder / "report.json").write_text('{"command": ')


def list_for_meta(folder: Path) -> None:
    write_rows(folder, [a_row()])
    (folder / "report.json").write_text("[]")


def bad_answers(folder: Path) -> None:
    write_rows(folder, [a_row()])
    (folder / "answers.parquet").write_bytes(b"PAR1 and no more")


def a_row() -> CheckpointScores:
    numbers = dict.fromkeys(COLUMNS, 1.0)
    return CheckpointScores.from_json({**numbers, "editor": "unedited", "seed": 0, "edits": 1, "peak_bytes": 1, "rejected": 0})


def write_rows(folder: Path, rows: list[CheckpointScores]) -> None:
    records = [row.to_json() for row in rows]
    pq.write_table(pa.table({name: [record[name] for record in records] for name in COLUMNS}), folder / "rows.parquet")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder.rmdir(), "there is no folder"),
        (lambda folder: None, "is neither a ledger (no versions/00000000) nor a benchmark's folder (no rows.parquet)"),
        (lambda folder: damaged_ledger(folder / "ledger"), "ledger?"),
        (damaged_ledger, "version 1 is damaged"),
        (rows_with(b"PAR1 and no more"), "rows.parquet cannot be read, it may be damaged"),
        (rows_with(b""), "rows.parquet cannot be read, it may be damaged"),
        (lacking, "rows.parquet lacks the columns edits, efficacy"),
        (no_rows, "rows.parquet has no rows"),
        (bad_meta, "report.json cannot be read, it may be damaged"),
        (list_for_meta, "report.json is not a benchmark's report"),
        (bad_answers, "answers.parquet cannot be read, it may be damaged"),
    ],
)
def test_bad_input_is_named(make: Callable[[Path], Any], says: str, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    make(folder)
    done = report(folder, "--out", out)
    assert done.exit_code == 1 and says in done.output, done.output
    assert not out.exists()


def test_what_cannot_be_written_is_named(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here is no folder")
    done = report(ledger.directory, "--out", tmp_path / "file" / "[red]out")
    assert done.exit_code == 1 and f"{tmp_path}/file/[red]out" in done.output


def test_a_benchmark_of_the_unedited_model_alone(tmp_path: Path) -> None:
    write_rows(tmp_path, [a_row()])
    (tmp_path / "report.json").write_text(json.dumps({"suite": "lifelong"}))
    page = Page(write_report(tmp_path))
    assert "Benchmark report: lifelong" in page.text and "needs the answers of two editors" in page.text
