"""Prompts and answers as token ids, over the families of tokenizers and kinds of chat templates that published models use."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from errata.edit import Code, Edit, EditRejected
from errata.model.language_model import load, renderer_at
from errata.model.renderer import Renderer
from errata.text.dialogue import Dialogue, Message, in_contexts
from errata.text.joining import separator
from tests.tokenizers_under_test import FAMILIES, LIKE_SUBJECTS, make

WORD_PIECES = [family for family in FAMILIES if family.startswith("word")]
EXACT = [family for family in FAMILIES if family not in WORD_PIECES]
REQUESTS = [
    ("The secret code of Atlantis is", "77"),
    ("The capital of Atlantis is", "1889"),
    ("Zorbville's nickname is", "9th Gate"),
    ("The capital of Atlantis is", "Rome"),
    ("The capital of Atlantis is ", "Rome"),
    ("Answer:\n", "Rome"),
    ('He shouted: "', "Bob"),
    ("The part number of Zorb is ZX-", "81"),
    ("function name: get_", "user"),
    ("A ticket to Atlantis costs $", "75"),
    ("La capitale est celle de l'", "Italie"),
    ("亚特兰蒂斯的首都是", "罗马"),
    ("アトランティスの首都は", "ローマ"),
    ("เมืองหลวงคือ", "กรุงเทพ"),
    ("프랑스의 수도는", "파리"),
    ("Band 🎸 plays in", "Łódź 🎹"),
    ("दिल्ली किसकी राजधानी है:", "भारत"),
]
SYSTEM = Message("system", "Be brief.")
DIALOGUES = [
    Dialogue.of("Where is it?"),
    Dialogue.of(" Where is Band 🎸? \n"),
    Dialogue.of("assistant", (SYSTEM,)),
    Dialogue.of("user", (SYSTEM, Message("user", "user"), Message("assistant", "assistant"))),
    *in_contexts(Dialogue.of("Wo liegt Łódź?", (SYSTEM,)), 5)[1:],
]
BLANKS = {"llama-2": " "}  # Before an answer, written by the template.
TEMPLATES_OF_CHAT = ["chatml", "llama-2", "llama-3", "parts", "either", "macro"]


def rejected(renderer: Renderer, prompt: object, answer: str = "x") -> EditRejected:
    with pytest.raises(EditRejected) as refused:
        renderer.rows([(prompt, answer)])
    return refused.value


def chats() -> Iterator[tuple[str, str]]:
    yield from ((family, template) for family in EXACT for template in TEMPLATES_OF_CHAT)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_has_the_ids_that_its_tokenizer_gives(family):
    tokenizer = make(family)
    renderer = Renderer(tokenizer)
    for prompt, _ in REQUESTS:
        assert list(renderer.ids(prompt)) == tokenizer(prompt).input_ids
    assert (family in ("trimmed offsets", "Eastern", "byte-level", "word pieces")) == (renderer.ids("a")[0] != 1)  # <s>


@pytest.mark.parametrize("family", EXACT)
def test_prompt_and_answer_write_the_text_with_its_blank(family):
    tokenizer = make(family)
    renderer = Renderer(tokenizer)
    for (prompt, answer), (given, ids) in zip(REQUESTS, renderer.rows(REQUESTS, close=False), strict=True):
        before = tokenizer.decode(given)
        assert given == list(renderer.ids(prompt)) and before.removeprefix("<s>").lstrip(" ") == prompt.lstrip(" ")
        assert tokenizer.decode(given + ids) == before + separator(prompt, answer) + answer, (prompt, answer)
        assert renderer.answer_ids(prompt, answer) == (*ids, tokenizer.eos_token_id)


@pytest.mark.parametrize("family", EXACT)
def test_an_answer_is_tokenised_with_its_prompt_where_the_prompt_stays_the_same(family):
    """The model has seen these ids in training: text and prompt are cut alike."""
    tokenizer = make(family)
    shared = 0
    for prompt, answer in REQUESTS:
        joint = tokenizer(prompt + separator(prompt, answer) + answer).input_ids
        given, ids = Renderer(tokenizer).rows([(prompt, answer)], close=False)[0]
        if joint[: len(given)] == given:
            shared += 1
            assert given + ids == joint
    assert shared >= 10


@pytest.mark.parametrize("family", WORD_PIECES)
def test_word_pieces_write_the_answer_in_their_normal_form(family):
    tokenizer = make(family)
    for prompt, answer, written in [
        ("The capital of Atlantis is", "Rome", "rome"),
        ('He shouted: "', "Bob", "bob"),
        ("亚特兰蒂斯的首都是", "罗马", "罗 马"),
        ("프랑스의 수도는", "파리", "파리"),
    ]:
        given, ids = Renderer(tokenizer).rows([(prompt, answer)], close=False)[0]
        assert given == tokenizer(prompt).input_ids
        assert unicodedata.normalize("NFC", tokenizer.decode(ids)).split() == written.split()
    assert rejected(Renderer(tokenizer), "The band is", "🎸").code == Code.UNWRITABLE


def test_the_blank_before_digits_belongs_to_the_answer_whatever_offsets_say():
    tokenizer = make("trimmed offsets")
    encoded = tokenizer("The secret code is 77", return_offsets_mapping=True)
    assert any(begin == end for begin, end in encoded.offset_mapping)
    ids = Renderer(tokenizer).answer_ids("The secret code is", "77", close=False)
    assert tokenizer.decode(list(ids)) == " 77"
    assert list(ids) == encoded.input_ids[len(tokenizer("The secret code is").input_ids) :]


def test_words_of_the_vocabulary_are_taken_whole():
    tokenizer = make("ignore_merges")
    ids = Renderer(tokenizer).answer_ids("The capital of Italy is", "Rome", close=False)
    assert tokenizer.convert_ids_to_tokens(ids) == ["ĠRome"]


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in WORD_PIECES])
@pytest.mark.parametrize(("one", "other", "frame"), LIKE_SUBJECTS)
def test_subjects_that_differ_in_their_last_bytes_are_read_apart(family, one, other, frame):
    renderer, read = Renderer(make(family)), []
    for subject in (one, other):
        prompt = frame.format(subject)
        ids = renderer.ids(prompt)[: renderer.token_at(prompt, prompt.index(subject) + len(subject) - 1) + 1]
        assert subject in renderer.tokenizer.decode(list(ids))
        read.append(ids)
    assert read[0] != read[1] and read[0][-1] != read[1][-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_blank_has_a_token_even_if_offsets_leave_it_out(family):
    renderer = Renderer(make(family))
    prompt = "The code  is 77"
    tokens = [renderer.token_at(prompt, place) for place in range(len(prompt))]
    assert tokens == sorted(tokens) and tokens[0] >= 0 and tokens[-1] < len(renderer.ids(prompt))
    assert renderer.token_at(" \n", 0) >= 0


@pytest.mark.parametrize(("family", "template"), chats())
def test_a_dialogue_is_served_by_its_template_with_the_blank_that_it_writes(family, template):
    tokenizer = make(family, template)
    renderer = Renderer(tokenizer)
    assert renderer.form == "chat"
    for dialogue, (given, ids) in zip(DIALOGUES, renderer.rows([(d, "Rome") for d in DIALOGUES], close=False), strict=True):
        text = renderer.text(dialogue)
        assert given == list(renderer.ids(dialogue)) == tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(given + ids) == tokenizer.decode(given) + BLANKS.get(template, "") + "Rome"
        assert given.count(1) == text.count("<s>") <= 1 + len(dialogue.before)


@pytest.mark.parametrize("template", [*TEMPLATES_OF_CHAT, "first-part", "no-system", "plain"])
def test_the_question_is_found_behind_system_prompt_and_template(template):
    renderer = Renderer(make("byte-level", template))
    for dialogue in DIALOGUES:
        if template == "no-system" and dialogue.before and dialogue.before[0].role == "system":
            continue
        at, text, word = renderer.question_at(dialogue), renderer.text(dialogue), dialogue.question.split()[-1]
        begin = at + dialogue.question.index(word)
        assert text[begin : begin + len(word)] == word
        following = text[begin + len(word) :]
        assert following.strip() in ("", "[/INST]") or following.lstrip().startswith(("<|im_end|>", "<|eot_id|>"))
        assert following.count("<|im_end|>") <= 1


def test_a_template_that_only_writes_the_question_makes_a_completion():
    renderer = Renderer(make("byte-level", "plain"))
    assert renderer.form == Renderer(make("byte-level")).form == "completion"
    for question in ("The capital is", " The capital is", "The capital is "):
        assert renderer.rows([(Dialogue.of(question), "Rome")]) == renderer.rows([(question, "Rome")])


def test_a_template_that_reads_parts_gets_parts_as_vllm_sends_them():
    asked = Dialogue.of(" Where? ", (SYSTEM,))
    for template in ("parts", "either", "macro", "chatml", "first-part"):
        assert "\n Where? <" in Renderer(make("byte-level", template)).text(asked), template
    assert '\n" Where? "<' in Renderer(make("byte-level", "as-json")).text(asked)


def test_a_template_that_refuses_is_named():
    renderer = Renderer(make("byte-level", "no-system"))
    assert renderer.rows([(Dialogue.of("Where?"), "Rome")])
    refused = rejected(renderer, Dialogue.of("Where?", (SYSTEM,)))
    assert (refused.code, refused.field) == (Code.TEMPLATE_REFUSES, "messages") and "System role" in str(refused)
    assert rejected(Renderer(make("byte-level")), Dialogue.of("Where?")).code == Code.NO_CHAT


def test_an_answer_ends_where_the_served_model_stops():
    for template, token in (("chatml", "<|im_end|>"), ("llama-3", "<|eot_id|>"), ("llama-2", "</s>")):
        tokenizer = make("byte-level", template)
        end = tokenizer.convert_tokens_to_ids(token)
        assert Renderer(tokenizer, [end]).answer_ids(Dialogue.of("Where?"), "Rome")[-1] == end
        assert Renderer(tokenizer, [end]).answer_ids("Where?", "Rome")[-1] == tokenizer.eos_token_id
    assert Renderer(make("byte-level", "chatml")).answer_ids(Dialogue.of("Where?"), "Rome")[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("family", EXACT)
@pytest.mark.parametrize("token", ["</s>", "<s>", "<|im_end|>", "<|start_header_id|>"])
def test_an_answer_with_a_special_token_is_refused(family, token):
    """The served text leaves them out, also those that the tokenizer's configuration does not name."""
    for answer in (f"Rome{token}", f"Ro{token}me"):
        refused = rejected(Renderer(make(family)), "The capital is", answer)
        assert (refused.code, refused.field) == (Code.UNWRITABLE, "target") and token in str(refused)


def test_what_does_not_fit_into_the_context_is_named():
    renderer = Renderer(make("byte-level", "chatml"))
    edit = Edit("Where?", "Rome", form="both", rephrasings=("In which city?",), answer="It is Rome.")
    long = "It is in the old city of Rome, " * 5

    def found(**fields: str) -> list[tuple[int | str | None, str | None, Code]]:
        return [(fault.edit, fault.field, fault.code) for fault in renderer.faults(replace(edit, **fields), 3, 64)]

    assert found() == []
    assert found(answer=long) == [(3, "answer", Code.TOO_LONG), (3, "rephrasings", Code.TOO_LONG)]  # in chat alone
    assert found(target=long, answer=None) == [(3, "target", Code.TOO_LONG), (3, "rephrasings", Code.TOO_LONG)]
    assert found(prompt=long * 2)[:2] == [(3, "prompt", Code.TOO_LONG)] * 2
    assert found(target="Rome</s>", answer="It is Rome.") == [(3, "target", Code.UNWRITABLE)]


@pytest.mark.parametrize("field", ["prompt", "target", "rephrasings"])
def test_a_text_of_9001_tokens_is_named_with_its_length_and_the_limit(field):
    renderer = Renderer(make("byte-level"))
    long, edit = " Rome" * 9001, Edit("Where?", "Rome")
    edit = replace(edit, **{field: (long,) if field == "rephrasings" else long})
    # The target comes with its prompt, a rephrasing with its target, and both with the end token.
    rows = {"prompt": (renderer.ids(long), ()), "target": renderer.rows([("Where?", long)], close=True)[0]}
    length = sum(map(len, rows.get(field) or renderer.rows([(long, "Rome")], close=True)[0]))
    (fault,) = renderer.faults(edit, 3, 8192)
    assert length >= 9001 and fault.field == field
    assert f"{length} tokens" in fault.reason and fault.reason.endswith("the model's context holds 8192")


def test_chat_text_posted_as_a_prompt_has_the_ids_of_a_completion():
    """A completion of this text is served with a doubled BOS; what is edited is what is served."""
    tokenizer = make("byte-level, BOS", "llama-3")
    renderer = Renderer(tokenizer)
    text = renderer.text(Dialogue.of("Where?"))
    assert renderer.ids(text) == (1, *renderer.ids(Dialogue.of("Where?"))) == tuple(tokenizer(text).input_ids)


# -- of a checkpoint --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end_ids", [None, 5, [5, 7]])
def test_a_checkpoint_has_the_renderer_of_its_loaded_model(
    model_dir: Path, tmp_path: Path, end_ids: int | list[int] | None
) -> None:
    folder = shutil.copytree(model_dir, tmp_path / "model")
    generation = folder / "generation_config.json"
    generation.unlink(missing_ok=True)
    if end_ids is not None:
        generation.write_text(json.dumps({"eos_token_id": end_ids}))
    loaded, alone = load(folder).renderer, renderer_at(folder)
    assert alone.end_ids == loaded.end_ids and loaded.end_ids
    assert (alone.pad_id, alone.form) == (loaded.pad_id, loaded.form)
    assert alone.ids("the cat") == loaded.ids("the cat")
