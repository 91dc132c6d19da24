"""Texts put into prompts: at the end of the system text in chat, and in a line before a completion."""

from __future__ import annotations

import pytest

from errata.edit_memory.prompt_form import PromptForm
from errata.model.language_model import LanguageModel
from errata.model.renderer import Renderer
from errata.text.dialogue import Dialogue, Message
from tests.unit.edit_memory.letters import Letters

# With a default system text, without one, without system texts at all, and with the system text inside the user's turn.
TEMPLATES = {
    "default": (
        "{% if messages[0]['role'] != 'system' %}yes system : the river\n{% endif %}"
        "{% for m in messages %}yes {{ m['role'] }} : {{ m['content'] }}\n{% endfor %}yes assistant : "
    ),
    "plain": "{% for m in messages %}yes {{ m['role'] }} : {{ m['content'] }}\n{% endfor %}yes assistant : ",
    "none": (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "yes {{ m['role'] }} : {{ m['content'] }}\n{% endfor %}yes assistant : "
    ),
    "inside": (
        "{% for m in messages %}{% if m['role'] == 'system' %}yes user : [ {{ m['content'] }} ] {% elif m['role'] == 'user' %}"
        "{% if loop.previtem is not defined or loop.previtem['role'] != 'system' %}yes user : {% endif %}{{ m['content'] }}\n"
        "{% else %}yes assistant : {{ m['content'] }}\n{% endif %}{% endfor %}yes assistant : "
    ),
}
SYSTEM = Message("system", "the cat")
TURN = (Message("user", "the dog"), Message("assistant", "the boat"))


@pytest.mark.parametrize(
    ("template", "before", "expected"),
    [
        ("default", (), "yes system : the river\nKnown fact\nyes user : Who?\nyes assistant : "),
        ("default", (SYSTEM,), "yes system : the cat\nKnown fact\nyes user : Who?\nyes assistant : "),
        ("plain", (), "yes system : Known fact\nyes user : Who?\nyes assistant : "),
        ("plain", (SYSTEM,), "yes system : the cat\nKnown fact\nyes user : Who?\nyes assistant : "),
        (
            "plain",
            TURN,
            "yes system : Known fact\nyes user : the dog\nyes assistant : the boat\nyes user : Who?\nyes assistant : ",
        ),
        ("none", (), "yes user : Known fact\nWho?\nyes assistant : "),
        ("none", TURN, "yes user : the dog\nyes assistant : the boat\nyes user : Known fact\nWho?\nyes assistant : "),
        ("inside", (), "yes user : [ Known fact ] Who?\nyes assistant : "),
        ("inside", (SYSTEM,), "yes user : [ the cat\nKnown fact ] Who?\nyes assistant : "),
    ],
)
def test_a_text_is_put_where_the_template_has_system_texts(template: str, before: tuple[Message, ...], expected: str) -> None:
    renderer = Renderer(Letters(TEMPLATES[template]))
    form, ids = PromptForm(renderer), renderer.ids(Dialogue.of("Who?", before))
    assert renderer.tokenizer.decode(form.with_text(ids, "Known fact")) == expected
    if not (template == "inside" and before):
        assert form.asked(ids).question == "Who?"


def test_a_completion_has_the_text_in_a_line_before_it(tiny_model: LanguageModel) -> None:
    form, tokenizer = PromptForm(tiny_model.renderer), tiny_model.tokenizer
    ids = tiny_model.renderer.ids("the old river")
    assert form.asked(ids).question == "the old river"
    assert form.with_text(ids, "the cat") == tokenizer("the cat\nthe old river")["input_ids"]
