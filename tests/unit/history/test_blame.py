"""Blame: the version that introduced an answer."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from errata.edit import Edit, EditRejected
from errata.edit_memory.hooks import bank_of
from errata.history.blame import blame, blamed, likeliest_first
from errata.history.budget import WalkBudget
from errata.model.generation import greedy, greedy_texts
from errata.model.language_model import LanguageModel
from serving.worker import walks
from serving.worker.live_model import LiveModel, LiveModelOptions
from tests.e2e.toy import WORLD

EDITS = [
    Edit(edit.prompt, edit.target, edit.subject, id=f"e{i}") for i, edit in enumerate(WORLD.edits("test", 36)) if i % 3 == 0
]

OTHERS = [Edit(edit.prompt, edit.target, edit.subject) for edit in WORLD.edits("test", 36)[1:8:3]]

TOY = "tests.e2e.toy:Toy", dict[str, str]()
STATE = "state", {"modules": "layers.1.mlp.down_proj"}


@pytest.fixture(params=[TOY, STATE], ids=["weights", "memory"])
def live_model(request: pytest.FixtureRequest, checkpoint: Path, tmp_path: Path) -> LiveModel:
    """Make a live model with six versions of two edits."""
    editor, settings = request.param
    options = LiveModelOptions(str(checkpoint), str(tmp_path / "ledger"), editor, settings=settings, guard={"strict": "false"})
    live_model = LiveModel(options)
    for i in range(0, 12, 2):
        live_model.append(live_model.make(EDITS[i : i + 2]))
    return live_model


@pytest.mark.parametrize("seed", range(40))
def test_a_place_where_the_live_answer_begins_is_found(seed: int) -> None:
    chance = random.Random(seed)
    length = chance.randint(1, 200)
    chain = sorted(chance.sample(range(1000), length))
    answers = {number: chance.choice("xyz") for number in chain}
    asked: set[int] = set()

    def answer(number: int) -> str:
        asked.add(number)
        return answers[number]

    before, after = blame(chain, answer)
    live = answers[chain[-1]]
    if answers[chain[0]] == live:
        assert before == after == chain[0]
    else:
        assert answers[before] != live == answers[after] and chain.index(after) == chain.index(before) + 1
        assert len(asked) <= 2 + math.ceil(math.log2(length))


def test_an_answer_that_changed_once_is_found_wherever_it_did() -> None:
    for changed in range(1, 33):
        assert blame(range(33), lambda n, at=changed: str(n >= at)) == (changed - 1, changed)


@pytest.mark.parametrize("at", [0, 7, 11])
def test_the_version_of_an_edit_is_blamed_for_its_answer(live_model: LiveModel, at: int) -> None:
    weight = live_model.model.module.get_submodule("model.layers.1.mlp.down_proj").weight
    before = weight.clone()
    found = live_model.blame(EDITS[at].prompt, 1)
    assert (found.version, found.after, found.edits[0]) == (at // 2 + 1, EDITS[at].target, EDITS[at])
    assert found.before != found.after and found.num_asked <= 2 + 3 and len(found.edits) == 2
    assert torch.equal(weight, before) and live_model.version == 6
    assert found.to_json()["edits"][0] == EDITS[at].to_json() and "version" in found.to_json()


def test_what_the_unedited_model_says_is_due_to_no_version(live_model: LiveModel) -> None:
    unedited = LiveModel(replace(live_model.options, ledger=f"{live_model.options.ledger}-other"))
    found = unedited.blame("question", 3)
    assert (found.version, found.edits, found.num_asked) == (None, (), 1) and found.before == found.after
    same = [
        prompt for prompt in ("question", "yes", "no") if live_model.blame(prompt, 1).after == unedited.blame(prompt, 1).after
    ]
    assert same and all(live_model.blame(prompt, 1).version is None for prompt in same)


def test_a_revert_is_blamed_with_what_it_took_out(live_model: LiveModel) -> None:
    live_model.append(live_model.revert([], [3], "subtract"))
    found = blamed(live_model.ledger, 7, EDITS[5].prompt, lambda version: "new" if version == 7 else "old")
    assert (found.version, found.before, found.after) == (7, "old", "new")
    assert found.edits == (EDITS[5], EDITS[4])


def content(model: LanguageModel) -> tuple[list[float], list[str]]:
    """Return the edited weights, and the texts of the memory."""
    weight, bank = model.module.get_submodule("model.layers.1.mlp.down_proj").weight, bank_of(model.module)
    return weight.flatten().tolist(), [] if bank is None else [record.text for record in bank]


def test_the_live_model_stays_at_the_head_while_a_blame_runs(live_model: LiveModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit may be made at any step of the walk, which is about the version at which it began."""
    walk, real, made, asked = live_model.walk(), walks.greedy_texts, [], []
    began, head = content(walk.model), content(live_model.model)
    assert bank_of(walk.model.module) is bank_of(live_model.model.module), "records are shared"

    def beside_an_edit(model: LanguageModel, *args: object) -> list[str]:
        assert model.module is not live_model.model.module and model.tokenizer is not live_model.model.tokenizer
        asked.append(content(model))
        before = content(live_model.model)
        if len(made) < 2:
            made.append(live_model.append(live_model.make(OTHERS[len(made) : len(made) + 1])).number)
            assert before != content(live_model.model) and asked[-1] == content(model)
        return real(model, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(walks, "greedy_texts", beside_an_edit)
    found = walk.blame(EDITS[7].prompt, 1, WalkBudget())
    assert (found.version, found.after, made, live_model.version) == (4, EDITS[7].target, [7, 8], 8)
    assert began == head == asked[0] and all(one != head for one in asked[1:])


def test_the_live_model_is_unchanged_if_an_answer_fails(live_model: LiveModel, monkeypatch: pytest.MonkeyPatch) -> None:
    before, real, calls = content(live_model.model), walks.greedy_texts, []

    def failing(model: LanguageModel, *args: object) -> list[str]:
        calls.append(content(model))
        if len(calls) == 3:
            raise torch.OutOfMemoryError("no room")
        return real(model, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(walks, "greedy_texts", failing)
    with pytest.raises(torch.OutOfMemoryError):
        live_model.blame(EDITS[0].prompt, 1)
    assert calls[-1] != before == content(live_model.model)
    assert live_model.append(live_model.make(EDITS[:1])).number == 7


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "field", "says"),
    [
        (" ", 8, "prompt", "is empty"),
        ("\u202enoitseuq", 8, "prompt", "has the control U\\+202E at character 0"),
        ("question", 0, "max_tokens", "at least one token, not 0"),
        ("river " * 126, 8, "prompt", "does not fit the model's context of 128"),
    ],
)
def test_an_invalid_question_is_refused(live_model: LiveModel, prompt: str, max_tokens: int, field: str, says: str) -> None:
    with pytest.raises(EditRejected, match=says) as caught:
        live_model.blame(prompt, max_tokens)
    assert caught.value.field == field


def test_the_likeliest_edit_comes_first() -> None:
    wording = Edit("Bo Ba was born in", "Kurk", "Bo Ba", rephrasings=("the city of Bo Ba is",), id="wording")
    about = Edit("Bo Ba keeps a", "dog", "Bo Ba", id="about")
    words = Edit("the city of Di Du is", "Stet", "Di Du", id="words")
    other = Edit("Zu keeps a", "hen", None, id="other")
    ranked = likeliest_first("the city of Bo Ba is", [other, words, about, wording])
    assert [edit.id for edit in ranked] == ["wording", "about", "words", "other"]
    nfd = Edit("Where was Rene\u0301 born?", "Rome", "René", id="nfd")
    assert likeliest_first(" Where  was René born?", [replace(nfd, prompt="René", id="name"), nfd])[0] is nfd, "form and blanks"
    assert likeliest_first("Who is Rene\u0301?", [other, nfd])[0] is nfd, "a subject in any form"
    assert likeliest_first("nothing of it", [about, words]) == (words, about), "`of` is shared"
    assert likeliest_first("x", [about, other]) == (about, other), "ties keep their order"


def test_an_answer_is_cut_where_the_context_ends(tiny_model: LanguageModel) -> None:
    longest = " ".join(["river"] * (tiny_model.max_tokens - 2))
    rooms = {"question": 5, longest: 2, "river": 5}
    texts = greedy_texts(tiny_model, ["question", longest, "question", "river"], 5, fit_context=True)
    alone = {p: tiny_model.tokenizer.decode(greedy(tiny_model, [p], n)[0], skip_special_tokens=True) for p, n in rooms.items()}
    assert texts == [alone[prompt] for prompt in ("question", longest, "question", "river")]
    assert texts[0] != texts[3] and texts[1]
