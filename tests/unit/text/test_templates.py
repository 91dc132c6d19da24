"""Templates that read a message as parts, as vLLM decides it, for loops over contents of several kinds."""

from __future__ import annotations

import pytest

from errata.text.templates import reads_parts
from tests.tokenizers_under_test import TEMPLATES

LOOP = "{% for part in CONTENT %}{{ part.text }}{% endfor %}"
WRITTEN = {
    "another list": "{% for message in messages %}{% for call in message.tools %}{{ call }}{% endfor %}{% endfor %}",
    "assigned": "{% set rest = messages[1:] %}{% for m in rest %}" + LOOP.replace("CONTENT", "m['content']") + "{% endfor %}",
    "filtered": "{% for m in messages %}" + LOOP.replace("CONTENT", "m.content | list") + "{% endfor %}",
    "a variable": "{% for m in messages %}{% set content = m.content %}" + LOOP.replace("CONTENT", "content") + "{% endfor %}",
    "a macro": "{% macro say(x) %}" + LOOP.replace("CONTENT", "x") + "{% endmacro %}"
    "{% for m in messages %}{{ say(m.content) }}{% endfor %}",
    "a macro for something else": "{% macro say(x) %}" + LOOP.replace("CONTENT", "x") + "{% endmacro %}"
    "{% for m in messages %}{{ say(m.role) }}{{ m.content }}{% endfor %}",
    "no messages": "{{ bos_token }}",
    "cannot be parsed": "{% for message in messages %}",
    "empty": "",
}
PARTS = {"parts", "either", "macro", "assigned", "filtered", "a variable", "a macro"}


@pytest.mark.parametrize("name", [*TEMPLATES, *WRITTEN])
def test_a_template_with_a_loop_over_contents_reads_parts(name: str) -> None:
    assert reads_parts((TEMPLATES | WRITTEN)[name]) == (name in PARTS)


@pytest.mark.parametrize("name", [*TEMPLATES, *WRITTEN])
def test_vllm_decides_the_same(name: str) -> None:
    hf = pytest.importorskip("vllm.renderers.hf")
    template = (TEMPLATES | WRITTEN)[name]
    assert reads_parts(template) == (hf._detect_content_format(template, default="string") == "openai")
