"""Limits of a post, which keep the edit worker responsive."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from errata.client import bulk_import
from errata.client.bulk_import import edit_chunks
from errata.edit import Edit
from serving.api.schemas import (
    MAX_ALIASES,
    MAX_CHARACTERS,
    MAX_EDITS,
    MAX_MESSAGES,
    MAX_REPHRASINGS,
    MAX_REPHRASINGS_POSTED,
    BlameIn,
    EditsIn,
)


def post(num_edits: int = 1, **fields: Any) -> dict[str, Any]:
    return {"edits": [{"prompt": "p", "target": "t", **fields}] * num_edits}


@pytest.mark.parametrize(
    "body",
    [
        post(MAX_EDITS),
        post(prompt="a" * MAX_CHARACTERS, subject="a" * MAX_CHARACTERS, target="ü" * MAX_CHARACTERS),
        post(rephrasings=["a" * MAX_CHARACTERS] * MAX_REPHRASINGS),
        post(MAX_REPHRASINGS_POSTED // MAX_REPHRASINGS, rephrasings=["a"] * MAX_REPHRASINGS),
        post(aliases=["a" * MAX_CHARACTERS] * MAX_ALIASES, answer="a" * MAX_CHARACTERS),
    ],
)
def test_posts_at_the_limits_are_accepted(body: dict[str, Any]) -> None:
    assert [edit.to_json() for edit in EditsIn.model_validate(body).edits] == body["edits"]


@pytest.mark.parametrize(
    ("body", "place", "says"),
    [
        (post(MAX_EDITS + 1), ("edits",), "at most 1000 items"),
        (post(prompt="a" * (MAX_CHARACTERS + 1)), ("edits", 0, "prompt"), "at most 16384 characters"),
        (post(target="a" * (MAX_CHARACTERS + 1)), ("edits", 0, "target"), "at most 16384 characters"),
        (post(subject="a" * (MAX_CHARACTERS + 1)), ("edits", 0, "subject"), "at most 16384 characters"),
        (post(rephrasings=["a", "a" * (MAX_CHARACTERS + 1)]), ("edits", 0, "rephrasings", 1), "at most 16384 characters"),
        (post(rephrasings=["a"] * (MAX_REPHRASINGS + 1)), ("edits", 0, "rephrasings"), "at most 64 items"),
        (post(aliases=["a", "a" * (MAX_CHARACTERS + 1)]), ("edits", 0, "aliases", 1), "at most 16384 characters"),
        (post(aliases=["a"] * (MAX_ALIASES + 1)), ("edits", 0, "aliases"), "at most 64 items"),
        (post(answer="a" * (MAX_CHARACTERS + 1)), ("edits", 0, "answer"), "at most 16384 characters"),
        (post(65, rephrasings=["a"] * MAX_REPHRASINGS), (), "the edits have 4,160 rephrasings, and a post at most 4,096"),
    ],
)
def test_posts_beyond_the_limits_name_the_field(body: dict[str, Any], place: tuple[str | int, ...], says: str) -> None:
    with pytest.raises(ValidationError) as refused:
        EditsIn.model_validate(body)
    (fault,) = refused.value.errors()
    assert fault["loc"] == place and says in fault["msg"]


MESSAGES = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": "p"},
        {"question": "q", "form": "both"},
        {"messages": MESSAGES},
        {"question": "q", "aliases": ["u", "v"], "answer": "It is t."},
    ],
)
def test_an_edit_is_passed_on_as_it_was_asked(asked: dict[str, Any]) -> None:
    (edit,) = EditsIn.model_validate({"edits": [{**asked, "target": "t"}]}).edits
    assert edit.to_json() == {**asked, "target": "t"}
    assert Edit.from_json(edit.to_json()).target == "t"


@pytest.mark.parametrize(
    ("asked", "kind", "field"),
    [
        ({}, "missing", "prompt"),
        ({"prompt": "p", "question": "q"}, "value_error", "question"),
        ({"prompt": "p", "messages": MESSAGES}, "value_error", "messages"),
    ],
)
def test_an_edit_is_asked_in_one_way(asked: dict[str, Any], kind: str, field: str) -> None:
    for model, body in ((EditsIn, {"edits": [{**asked, "target": "t"}]}), (BlameIn, asked)):
        with pytest.raises(ValidationError) as refused:
            model.model_validate(body)
        (fault,) = refused.value.errors()
        assert (fault["type"], fault["ctx"]["field"]) == (kind, field)
        assert "give one of prompt, question and messages" in fault["msg"]


@pytest.mark.parametrize("role", ["tool", "User", None])
def test_messages_have_known_roles(role: str | None) -> None:
    with pytest.raises(ValidationError):
        BlameIn.model_validate({"messages": [{"role": role, "content": "q"}]})


def test_the_limits_are_in_the_openapi_document() -> None:
    schema = EditsIn.model_json_schema()
    edit = schema["$defs"]["EditIn"]["properties"]
    assert schema["properties"]["edits"]["maxItems"] == MAX_EDITS
    assert f"{MAX_REPHRASINGS_POSTED:,}" in schema["description"]
    assert edit["target"]["maxLength"] == edit["rephrasings"]["items"]["maxLength"] == MAX_CHARACTERS
    for name in ("prompt", "question", "subject"):
        assert edit[name]["anyOf"][0]["maxLength"] == MAX_CHARACTERS
    assert edit["messages"]["anyOf"][0]["maxItems"] == MAX_MESSAGES
    assert schema["$defs"]["MessageIn"]["properties"]["content"]["maxLength"] == MAX_CHARACTERS
    assert edit["rephrasings"]["maxItems"] == MAX_REPHRASINGS
    assert edit["aliases"]["maxItems"] == MAX_ALIASES == 64
    assert edit["answer"]["anyOf"][0]["maxLength"] == edit["aliases"]["items"]["maxLength"] == MAX_CHARACTERS


def test_a_chunk_of_an_import_is_within_the_limits() -> None:
    assert bulk_import.NUM_EDITS <= MAX_EDITS and bulk_import.NUM_EDITS * MAX_REPHRASINGS <= MAX_REPHRASINGS_POSTED
    edits = [Edit(f"p{i}", "t", rephrasings=("a",) * MAX_REPHRASINGS) for i in range(100)]
    for chunk in edit_chunks(edits):
        assert len(EditsIn.model_validate({"edits": chunk.edits}).edits) == len(chunk.edits)
