"""Kind of a chat template: it reads a message as a text or as a list of parts, decided as vLLM decides it.

vLLM sends the content of a message as `[{"type": "text", "text": ...}]` if the template has a loop over it, otherwise as a
text. It reads this off the template's syntax tree (`vllm/renderers/hf.py`, `_iter_nodes_assign_content_item`, read at 0.32.0),
and so does this file: a template that does otherwise than it looks is served as it looks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment


def refusal(template: str, tokens: Mapping[str, Any]) -> str | None:
    """Say why a template does not render a user's question, on one line; None if it does.

    `tokens` are the special tokens by name. jinja2 alone renders nearly all templates. Where it does not, transformers decides,
    which adds a few functions and tags, and whose import takes seconds.
    """
    text = "Is Rome old?"
    if _renders(template, {"role": "user", "content": text}, tokens):
        return None
    from transformers.utils.chat_template_utils import render_jinja_template

    content = [{"type": "text", "text": text}] if reads_parts(template) else text
    asked = [[{"role": "user", "content": content}]]
    try:
        render_jinja_template(asked, chat_template=template, add_generation_prompt=True, **tokens)
    except Exception as refused:  # noqa: BLE001  # A template raises what it likes.
        return " ".join(str(refused).split())[:200]
    return None


def _renders(template: str, message: Mapping[str, str], tokens: Mapping[str, str]) -> bool:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    try:
        environment.from_string(template).render(messages=[message], add_generation_prompt=True, **tokens)
    except Exception:  # noqa: BLE001  # A template raises what it likes.
        return False
    return True


@lru_cache(maxsize=32)
def reads_parts(template: str) -> bool:
    """Say if vLLM sends parts to the template. A template that cannot be parsed gets texts."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        root = _compile_jinja_template(template).environment.parse(template)
        return any(_content_loops(root))
    except Exception:  # noqa: BLE001  # What jinja2 and a template of an unknown shape raise; vLLM then sends texts, too.
        return False


def _content_loops(root: nodes.Template) -> Iterator[bool]:
    """Yield True for each loop over the content of a message, or over what a macro is given for it."""
    messages = list(_message_names(root))
    in_macros: set[int] = set()
    given: dict[int, set[str]] = {}
    for macro in root.find_all(nodes.Macro):
        names = _parameters_for_content(root, macro, messages)
        for loop in macro.find_all(nodes.For):
            in_macros.add(id(loop))
            if names:
                given[id(loop)] = names
    for loop in root.find_all(nodes.For):
        iterated = loop.iter
        named = iterated.name if isinstance(iterated, nodes.Name) else None
        if any(_is_read(iterated, message, "content") for message in messages):
            yield bool(_name(loop.target))
        elif named is not None:
            yield named in given.get(id(loop), ()) or (named == "content" and id(loop) not in in_macros)


def _message_names(root: nodes.Template) -> Iterator[str]:
    """Yield the variable of each loop over the messages, or over a variable that they were assigned to."""
    names = list(_assigned(root, "messages"))
    for loop in root.find_all(nodes.For):
        if any(_is_read(loop.iter, name) for name in names):
            yield _name(loop.target)


def _assigned(root: nodes.Template, variable: str) -> Iterator[str]:
    yield variable
    related = [variable]
    for name in related:
        for assign in root.find_all(nodes.Assign):
            if _is_read(assign.node, name):
                target = _name(assign.target)
                yield target
                if target not in related:
                    related.append(target)


def _parameters_for_content(root: nodes.Template, macro: nodes.Macro, messages: list[str]) -> set[str]:
    """Return the macro's parameters that some call gives the content of a message."""
    parameters = [parameter.name for parameter in macro.args]
    found = set()
    for call in root.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name == macro.name:
            given = [*zip(parameters, call.args, strict=False), *((word.key, word.value) for word in call.kwargs)]
            found |= {name for name, value in given if any(_is_read(value, message, "content") for message in messages)}
    return found.intersection(parameters)


def _is_read(node: Any, variable: str, key: str | None = None) -> bool:
    """Say if a node reads the variable, or its field `key`, through any filters, tests and slices."""
    if isinstance(node, nodes.Filter | nodes.Test):
        return node.node is not None and _is_read(node.node, variable, key)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        return _is_read(node.node, variable, key)
    if key is not None:
        if isinstance(node, nodes.Getitem):
            named = isinstance(node.arg, nodes.Const) and node.arg.value == key
        else:
            named = isinstance(node, nodes.Getattr) and node.attr == key
        if not named:
            return False
        node = node.node
    return isinstance(node, nodes.Name) and node.ctx == "load" and node.name == variable


def _name(target: Any) -> str:
    if not isinstance(target, nodes.Name):
        raise TypeError(f"{type(target).__name__} is no single variable")
    return target.name
