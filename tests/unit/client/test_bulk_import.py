"""Fields of an edit that a bulk import posts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from errata.client.bulk_import import Import, Refusal, edit_chunks
from errata.client.client import Client
from errata.datasets.formats import plain
from errata.edit import Edit, Probe
from errata.text.dialogue import Message
from serving.api.schemas import EditsIn

BEFORE = (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello."))
SAID = {"aliases": ("Lugdunum", "LYS"), "answer": "It is Lyon."}
EDITS = [
    Edit("The city is", "Lyon"),
    Edit("The city is", "Lyon", "city", ("It is",), (Probe("a", "b"),), (Probe("c", "d"),), "e1", aliases=("LYS",)),
    Edit("What is it?", "Lyon", form="chat", **SAID),
    Edit("What is it?", "Lyon", form="both", rephrasings=("Which city?",), **SAID),
    Edit("What is it?", "Lyon", form="chat", before=BEFORE, **SAID),
]


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_posted_as_it_is_asked_and_without_its_probes(edit: Edit) -> None:
    (chunk,) = edit_chunks([edit])
    (body,) = chunk.edits
    assert ("prompt" in body) != ("messages" in body) and not body.keys() & {"locality", "portability", "id"}
    (posted,) = EditsIn.model_validate({"edits": [body]}).edits
    assert Edit.from_json(posted.to_json()) == replace(edit, locality=(), portability=(), id=None)


def test_what_is_said_is_a_part_of_a_chunks_key() -> None:
    keys = [chunk.key for edit in EDITS for chunk in edit_chunks([edit])]
    keys += [chunk.key for chunk in edit_chunks([replace(EDITS[4], answer="Lyon it is.")])]
    assert len(set(keys)) == len(keys)


PLAIN = {"prompt": "The city is", "target": "Lyon"}


def test_a_form_that_a_file_names_is_posted() -> None:
    """A service of a chat model asks a prompt without a form in chat."""
    named = PLAIN | {"form": "completion"}
    bodies = [chunk.edits[0] for record in (PLAIN, named) for chunk in edit_chunks([plain.edit(record, [])])]
    assert bodies == [PLAIN, named] and plain.edit(PLAIN, []) == plain.edit(named, [])


def test_an_edit_that_is_not_live_any_more_is_named() -> None:
    class Answering:
        def edit(self, edits: tuple[dict[str, Any], ...], wait: bool, key: str) -> dict[str, Any]:
            return {"edits": [{"state": "applied", "live": edit["target"] == "Lyon"} for edit in edits]}

    refused: list[Refusal] = []
    posting = Import(cast(Client, Answering()), refused.append, lambda: None)
    posting.run([Edit("The city is", "Lyon"), Edit("The river is", "Rhône")])
    assert posting.states == {"applied": 1, "not live": 1}
    assert [(one.number, one.code) for one in refused] == [(1, "not_live")] and "--run" in refused[0].reason
