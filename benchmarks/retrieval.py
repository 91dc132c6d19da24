"""Retrieval of a memory of questions: recall, false firing, and milliseconds by the number of records: `make bench-retrieval`.

Records are corrections of true facts. A question that fires is right if it finds its own record; of another fact, of a
consequence, and in a plain sentence any firing is false. Other wordings of a relation are asked of one record, posted with its
question alone or with two rephrasings; what fires at another relation of the subject is false. Larger banks have invented
subjects and the corpus' relations, or questions without a subject. Vectors of questions that were encoded before are kept, so
encoding is timed by itself. The search among records without a subject is also timed in turn with a product over the whole
table, for drawn vectors and for vectors spread around those of real questions, of which more lie near the threshold.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch.nn.functional import normalize

from benchmarks.relation_wordings import relation_sets
from benchmarks.report import show, write_report
from errata.edit import Edit, EditBatch
from errata.edit_memory.bank import Bank, Record
from errata.edit_memory.encoder import NAME, NUM_DIMENSIONS, SentenceEncoder
from errata.edit_memory.nearest import KeyTable
from errata.edit_memory.prompt_form import AskedQuestion
from errata.edit_memory.reader import best_record
from errata.editors.memory_based.answer import AnswerMemory
from errata.editors.memory_based.questions import THRESHOLDS, question_records
from errata.editors.state import EditorState
from errata.hardware import hardware
from errata.testbed.fact import WORDINGS, Fact
from errata.testbed.world_facts import CONTINENT_OF_CITY, CURRENCY_OF_CITY, WorldFacts
from errata.text.rules import fact_of
from jobs.entry import run_job

PLACE = ("capital", "currency", "calling_code", "tld", "continent", "country")
SYLLABLES = "ba ce di fo gu ha je ki lo mu na pe ri so tu va we xi yo zu".split()
SUBJECT = "Tarvo Belmin"
NUM_POSTED = 3  # Of five wordings of a relation: the question and two rephrasings.
WHOLE_THRESHOLD = 0.95  # of records without a subject; the editor calibrates it on a model's probes
CALIBRATED = 0.8  # what that is on the probes of the default model
SPREAD = 0.9  # the cosine of a row of the table with the question that it is drawn around
NUM_QUESTIONS = 1500  # that rows are drawn around; the questions that are searched for are others


@dataclass(frozen=True)
class RetrievalSettings:
    """Numbers of records; `threshold` as in the editor, and questions whose search is timed."""

    sizes: tuple[int, ...] = (500, 10_000, 100_000)
    num_facts: int = 500
    num_timed: int = 300
    threshold: float = AnswerMemory().threshold
    seed: int = 0


def records_of(edits: Sequence[Edit], settings: RetrievalSettings) -> Iterator[Record]:
    state = EditorState(0, {THRESHOLDS: torch.tensor([settings.threshold, WHOLE_THRESHOLD])})
    return (record for _, record in question_records(EditBatch(tuple(edits)), state))


def found(bank: Bank, question: str) -> str | None:
    """Return the fact whose record a question finds; None if it finds none."""
    best = best_record(bank, AskedQuestion(question, question, False))
    return None if best is None else best.record.fact


def share_found(bank: Bank, questions: Sequence[str]) -> float:
    return sum(found(bank, question) is not None for question in questions) / max(1, len(questions))


def quality(settings: RetrievalSettings, gives_subjects: bool, num_posted: int = 1) -> dict[str, Any]:
    """Measure recall and false firing on test facts, with the subjects of the edits or without them.

    Of the wordings of a fact, the first `num_posted` are posted: the question and its rephrasings.
    """
    world = WorldFacts()
    facts = world.facts("test")
    random.Random(settings.seed).shuffle(facts)
    held, others = facts[: settings.num_facts], facts[settings.num_facts :]
    edits = [
        Edit(
            fact.question(),
            fact.target,
            fact.subject if gives_subjects else None,
            rephrasings=tuple(map(fact.question, range(1, num_posted))),
        )
        for fact in held
    ]
    bank = Bank("answer", NAME).changed(records_of(edits, settings), ())
    subjects, cities = {fact.subject for fact in held}, [fact.subject for fact in held if fact.relation == "country"]
    same = [fact for fact in others if fact.subject in subjects]
    row: dict[str, Any] = {"subjects": "given" if gives_subjects else "found", "posted": num_posted, "num_records": len(bank)}
    for phrasing in range(4):
        row[f"recall_{phrasing}"] = recall(bank, held, phrasing)
    return row | {
        "false_neighbours": share_found(bank, [fact.question(phrasing) for fact in others for phrasing in (0, 3)]),
        "false_same_subject": share_found(bank, [fact.question(phrasing) for fact in same for phrasing in (0, 3)]),
        "false_continent_of_city": share_found(bank, [CONTINENT_OF_CITY.format(s=city) for city in cities]),
        "false_currency_of_city": share_found(bank, [CURRENCY_OF_CITY.format(s=city) for city in cities]),
        "false_train_questions": share_found(bank, [fact.question() for fact in world.facts("train")[:500]]),
        "false_sentences": share_found(bank, world.plain_sentences() + world.plain_sentences(held_out=True)),
    }


def recall(bank: Bank, facts: Sequence[Fact], phrasing: int) -> float:
    return sum(found(bank, fact.question(phrasing)) == fact_of(fact.question()) for fact in facts) / len(facts)


def relation_rows(settings: RetrievalSettings) -> Iterator[dict[str, Any]]:
    """Yield recall and false firing at wordings that no post has, by the number of wordings that are posted."""
    for tuned in (True, False):
        for num_posted in (1, NUM_POSTED):
            own, others = list[bool](), list[bool]()
            for relations in relation_sets(tuned):
                for name, texts in relations.items():
                    first, *more = (text.format(s=SUBJECT) for text in texts[:num_posted])
                    edit = Edit(first, "x", SUBJECT, rephrasings=tuple(more))
                    bank = Bank("answer", NAME).changed(records_of([edit], settings), ())
                    own += fires(bank, texts[NUM_POSTED:])
                    others += fires(bank, [text for other in relations if other != name for text in relations[other]])
            row: dict[str, Any] = {"wordings": "tuned" if tuned else "held out", "posted": num_posted, "num_own": len(own)}
            yield row | {"recall": mean(own), "num_others": len(others), "false_other_relation": mean(others)}


def fires(bank: Bank, texts: Sequence[str]) -> list[bool]:
    """Say of each wording if a record is found by it, about `SUBJECT`."""
    return [found(bank, text.format(s=SUBJECT)) is not None for text in texts]


def invented(count: int, seed: int) -> list[str]:
    """Return different names of two words."""
    rng, names = random.Random(seed), dict[str, None]()
    while len(names) < count:
        names[" ".join("".join(rng.choices(SYLLABLES, k=3)).capitalize() for _ in range(2))] = None
    return list(names)


def timings(num_records: int, settings: RetrievalSettings, has_subjects: bool) -> dict[str, Any]:
    """Time the start of a bank, one record more, and the search of questions that it has an answer to.

    `false_firing` is the share of plain sentences in which it finds a record.
    """
    names, wordings = invented(num_records, settings.seed), [WORDINGS[relation].questions for relation in PLACE]
    if has_subjects:
        edits = [Edit(wordings[i % len(wordings)][0].format(s=name), "x", name) for i, name in enumerate(names)]
        records = list(records_of(edits, settings))
    else:
        keys = normalize(torch.randn(num_records, NUM_DIMENSIONS, generator=torch.Generator().manual_seed(settings.seed)))
        least = torch.tensor([WHOLE_THRESHOLD])
        records = [Record(fact_of(name), name, {"key": keys[i : i + 1], "threshold": least}) for i, name in enumerate(names)]
    begin = time.perf_counter()
    bank = Bank("answer", NAME).changed(records[:-1], ())
    bank.index  # noqa: B018  # It is built when it is first asked for.
    start_s = time.perf_counter() - begin
    more = [timed(lambda: bank.changed(records[-1:], ()))[0] for _ in range(20)]
    chosen = random.Random(settings.seed).sample(range(num_records - 1), min(settings.num_timed, num_records - 1))
    asked = [wordings[i % len(wordings)][3].format(s=names[i]) if has_subjects else "a plain question" for i in chosen]
    found(bank, asked[0])
    searched = [timed(lambda question=question: found(bank, question))[0] for question in asked]
    world = WorldFacts()
    return {
        "num_records": num_records,
        "subjects": "given" if has_subjects else "none",
        "start_s": start_s,
        "one_more_ms_p50": percentile(more, 0.5),
        "retrieval_ms_p50": percentile(searched, 0.5),
        "retrieval_ms_p99": percentile(searched, 0.99),
        "false_firing": share_found(bank, world.plain_sentences() + world.plain_sentences(held_out=True)),
    }


def searches(num_records: int, settings: RetrievalSettings, are_questions: bool) -> dict[str, Any]:
    """Time the search in a table of vectors in turn with a product over the whole table, which must find the same rows."""
    generator = torch.Generator().manual_seed(settings.seed)
    key_NE = normalize(torch.randn(num_records, NUM_DIMENSIONS, generator=generator))
    world = WorldFacts()
    questions = [fact.question(phrasing) for part in ("train", "test") for fact in world.facts(part) for phrasing in (0, 3)]
    random.Random(settings.seed).shuffle(questions)
    encoder = SentenceEncoder.load()
    asked_qE = encoder.encode(questions[: settings.num_timed])
    if are_questions:
        others = questions[settings.num_timed : settings.num_timed + min(num_records, NUM_QUESTIONS)]
        around_nE = encoder.encode(others)[torch.arange(num_records) % len(others)]
        key_NE = normalize(SPREAD * around_nE + math.sqrt(1 - SPREAD**2) * key_NE)
    least = CALIBRATED if are_questions else WHOLE_THRESHOLD
    threshold_N = torch.full((num_records,), least)
    table = KeyTable.of(key_NE, threshold_N)
    in_full, reduced = list[float](), list[float]()
    for vector_E in asked_qE:
        full_ms, wanted = timed(lambda vector_E=vector_E: ((key_NE @ vector_E) >= threshold_N).nonzero()[:, 0].tolist())
        ms, found = timed(lambda vector_E=vector_E: list(table.reached(vector_E)))
        if [row for row, *_ in found] != wanted:
            raise AssertionError(f"the search finds other rows than a product with all {num_records}")
        in_full.append(full_ms)
        reduced.append(ms)
    return {
        "num_records": num_records,
        "vectors": "around questions" if are_questions else "drawn",
        "threshold": least,
        "full_ms_p50": percentile(in_full, 0.5),
        "full_ms_p99": percentile(in_full, 0.99),
        "search_ms_p50": percentile(reduced, 0.5),
        "search_ms_p99": percentile(reduced, 0.99),
        "ratio_p50": percentile(reduced, 0.5) / percentile(in_full, 0.5),
    }


def timed(call: Any) -> tuple[float, Any]:
    """Return the milliseconds of a call, and its result."""
    begin = time.perf_counter()
    result = call()
    return (time.perf_counter() - begin) * 1000, result


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def encoding_ms(num_questions: int = 50) -> float:
    """Return the milliseconds that a question takes which was not encoded before, 50th percentile."""
    encoder = SentenceEncoder.load()
    encoder.encode(["one question"])
    questions = [f"What is the name of the river number {i}?" for i in range(num_questions)]
    return percentile([timed(lambda asked=asked: encoder.encode([asked]))[0] for asked in questions], 0.5)


def run(settings: RetrievalSettings, command: str) -> Path:
    """Measure, print and write `$ERRATA_HOME/bench-retrieval/report.json`."""
    scores = [quality(settings, *kind) for kind in ((True, 1), (False, 1), (True, NUM_POSTED))]
    relations = list(relation_rows(settings))
    rows = [timings(size, settings, has_subjects) for has_subjects in (True, False) for size in settings.sizes]
    show("Questions about test facts", scores)
    show("Wordings of relations", relations)
    found = [searches(size, settings, are_questions) for are_questions in (False, True) for size in settings.sizes]
    show("Time by the number of records", rows)
    show("Search among records without a subject, beside a product with all of them", found)
    given, largest = scores[0], max((row for row in rows if row["subjects"] == "given"), key=lambda row: row["num_records"])
    figures = {
        "recall": given["recall_3"],
        "false_firing": given["false_neighbours"],
        "retrieval_ms_p99": largest["retrieval_ms_p99"],
        "encoding_ms_p50": encoding_ms(),
    }
    about = {"command": command, "seed": settings.seed, "hardware": hardware()}
    more = {"scores": scores, "relations": relations, "searches": found, "settings": asdict(settings)}
    return write_report("bench-retrieval", rows, **about, **figures, **more)


def parsed(arguments: Sequence[str]) -> RetrievalSettings:
    parser = argparse.ArgumentParser(description="Retrieval of a memory of questions.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threshold", type=float, default=RetrievalSettings().threshold)
    given = parser.parse_args(arguments)
    return RetrievalSettings(threshold=given.threshold, seed=given.seed)


def main(settings: RetrievalSettings) -> None:
    run(settings, f'make bench-retrieval ARGS="--seed={settings.seed} --threshold={settings.threshold:g}"')


if __name__ == "__main__":
    run_job(parsed, main)
