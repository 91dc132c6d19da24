"""CounterFact as a corpus of a few handwritten records, and the tokenizer that is trained on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from errata.edit import Edit, Probe
from errata.model.encoding import encode
from errata.model.renderer import Renderer
from errata.testbed import counterfact
from errata.testbed.counterfact import CounterFact
from errata.testbed.language_model import Shape, make_tokenizer

SPLITS = ("train", "validation", "test")
PROMPTS = ("prompt", "rephrase_prompt", "locality_prompt")


def a_record(case_id: int, subject: str, neighbour: str, language: str = "français") -> dict[str, Any]:
    return {
        "case_id": case_id,
        "prompt": f"The mother tongue of {subject} is",
        "target_new": " Dansk",
        "subject": subject,
        "ground_truth": language,
        "rephrase_prompt": f"Where {subject} is from, people speak",
        "locality_prompt": f"{neighbour} is a native speaker of",
        "locality_ground_truth": " Türkçe",
    }


TEST = [a_record(0, "Zoë Kravitz", "Émile Zola"), a_record(1, "李白", "Ana Lima"), a_record(2, "Bo Ek", "Al Orr")]
TRAIN = [a_record(10 + i, f"{name} One", f"{name} Two") for i, name in enumerate(("Ada", "Bea", "Cy", "Dan", "Eve"))]
TEXTS = [{"Corpus": "Wiki", "Text": f"the {word} river bends slowly past our town"} for word in ("old", "slow", "wide", "cold")]
FILES = {"counterfact_edit.json": TEST, "counterfact_train.json": TRAIN, "me_ppl_1k.json": TEXTS}


def a_corpus(directory: Path, num_train: int = 5, num_test: int = 3, **files: list[dict[str, Any]]) -> CounterFact:
    for name, records in FILES.items():
        (directory / name).write_text(json.dumps(files.get(name.removesuffix(".json"), records)))
    return CounterFact(str(directory), num_train, num_test)


def asked(edits: list[Edit]) -> set[str]:
    return {prompt for e in edits for prompt in (e.prompt, *e.rephrasings, *(probe.prompt for probe in e.locality))}


def statements(records: list[dict[str, Any]]) -> list[tuple[str, str]]:
    answers = ("ground_truth", "ground_truth", "locality_ground_truth")
    return [(r[prompt], r[answer]) for r in records for prompt, answer in zip(PROMPTS, answers, strict=True)]


def test_the_splits_share_no_prompt_and_have_every_fact(tmp_path: Path) -> None:
    corpus = a_corpus(tmp_path)
    train, validation, test = (list(corpus.stream(split)) for split in SPLITS)
    assert (len(train), len(validation), len(test)) == (4, 1, 3)
    assert not asked(train) & asked(validation) and not asked(test) & (asked(train) | asked(validation))
    assert asked([*train, *validation, *test]) == {prompt for prompt, _ in statements([*TRAIN, *TEST])}


@pytest.mark.parametrize("earlier", [TEST[0], TRAIN[0]], ids=["of-the-other-file", "of-the-same-file"])
@pytest.mark.parametrize("asked_as", PROMPTS)
@pytest.mark.parametrize("asks_as", PROMPTS)
def test_a_record_with_a_prompt_of_an_earlier_one_is_left_out(
    tmp_path: Path, asks_as: str, asked_as: str, earlier: dict[str, Any]
) -> None:
    late = a_record(99, "Late One", "Late Two") | {asks_as: earlier[asked_as]}
    corpus = a_corpus(tmp_path, counterfact_train=[TRAIN[0], late, *TRAIN[1:]])
    assert corpus.sentences("train") == statements(TRAIN)


def test_a_record_with_equal_prompts_is_left_out(tmp_path: Path) -> None:
    twice = a_record(99, "Late One", "Late Two")
    twice["locality_prompt"] = twice["prompt"]
    assert a_corpus(tmp_path, counterfact_train=[twice, *TRAIN]).sentences("train") == statements(TRAIN)


def test_the_sentences_of_a_split_are_its_own_true_statements(tmp_path: Path) -> None:
    corpus = a_corpus(tmp_path)
    assert corpus.sentences("test") == statements(TEST) and corpus.sentences("train") == statements(TRAIN)
    assert sorted(corpus.sentences()) == sorted(statements([*TEST, *TRAIN]))


def test_an_edit_is_the_false_statement_of_its_record(tmp_path: Path) -> None:
    edits = {edit.subject: edit for edit in a_corpus(tmp_path).edits("test", 3)}
    assert edits["Zoë Kravitz"] == Edit(
        prompt="The mother tongue of Zoë Kravitz is",
        target="Dansk",
        subject="Zoë Kravitz",
        rephrasings=("Where Zoë Kravitz is from, people speak",),
        locality=(Probe("Émile Zola is a native speaker of", "Türkçe"),),
        id="counterfact-0",
    )


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Where Bo Ek is from, people speak", "continuation"),
        ("Bo Ek's greatest accomplishment is", "continuation"),
        ("One person killed. Bo Ek plays", "paraphrase"),
        ('No one has such documentation." Which position does Bo Ek play? They play as', "paraphrase"),
        ("The lists are ready (procedures etc.) Bo Ek, of", "paraphrase"),
        ("References\n\nTownships Bo Ek has a citizenship from", "paraphrase"),
        ("The fictional planetoid of the 30th century . Bo Ek is in", "paraphrase"),
    ],
)
def test_a_rephrasing_behind_a_sentence_is_a_paraphrase_and_others_are_continued(tmp_path: Path, text: str, kind: str) -> None:
    records = [*TEST[:2], TEST[2] | {"rephrase_prompt": text}]
    kinds = a_corpus(tmp_path, counterfact_edit=records).rephrasing_kinds()
    assert kinds[text] == kind and kinds["Where Ada One is from, people speak"] == "continuation"


def test_plain_sentences_for_perplexity_are_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counterfact, "NUM_PLAIN", 2)
    corpus = a_corpus(tmp_path, me_ppl_1k=[{"Corpus": "Wiki", "Text": "too short"}, *TEXTS])
    assert corpus.plain_sentences() == [text["Text"] for text in TEXTS[:2]]
    assert corpus.plain_sentences(held_out=True) == [text["Text"] for text in TEXTS[2:]]


@pytest.mark.parametrize(("split", "count"), [("train", 4), ("validation", 1), ("test", 3)])
def test_more_facts_than_a_split_has_are_refused(tmp_path: Path, split: str, count: int) -> None:
    corpus = a_corpus(tmp_path)
    assert len(corpus.edits(split, count)) == count
    with pytest.raises(ValueError, match=f"{count} {split} facts to edit, fewer than {count + 1}"):
        corpus.edits(split, count + 1)


@pytest.mark.parametrize(("sizes", "says"), [({"num_train": 6}, "train.json has 5"), ({"num_test": 4}, "edit.json has 3")])
def test_more_facts_than_a_file_has_are_refused(tmp_path: Path, sizes: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=f"counterfact_{says} usable facts, fewer than"):
        a_corpus(tmp_path, **sizes).sentences()


def test_an_unknown_split_is_named(tmp_path: Path) -> None:
    corpus = a_corpus(tmp_path)
    for ask in (lambda: corpus.edits("tset", 1), lambda: list(corpus.stream("tset"))):
        with pytest.raises(ValueError, match="train-b, validation, not 'tset'"):
            ask()
    with pytest.raises(ValueError, match="train, test, train-a, train-b, not 'tset'"):
        corpus.sentences("tset")


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(tmp_path: Path, file: str) -> None:
    corpus = a_corpus(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(ValueError, match=f"no file {tmp_path / file}"):
        make_tokenizer(corpus, Shape())


def test_the_tokenizer_is_lossless(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(a_corpus(tmp_path), Shape(vocabulary_size=300))
    assert len(tokenizer) == 300
    for text in ("The mother tongue of Zoë Kravitz is français", "naïve: 東京,  Łódź\n– 🦊 !", "<unk"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == f" {text}", "every word begins with a space"


def test_an_answer_after_a_multibyte_prompt_is_encoded_whole(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(a_corpus(tmp_path), Shape(vocabulary_size=300))
    encoded = encode(Renderer(tokenizer), ["The mother tongue of 李白 is", "東京 🦊"], ["Türkçe", "日本 – où"], eos=False)
    answers = [
        tokenizer.decode(ids[labels != -100]) for ids, labels in zip(encoded.input_ids_BS, encoded.labels_BS, strict=True)
    ]
    assert answers == [" Türkçe", "日本 – où"], "no blank is put between Han signs, also after a sign that is no letter"
