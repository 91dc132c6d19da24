"""A report page as a browser parses it, an editor that makes versions for it, and the command."""

import base64
import hashlib
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from errata.cli.main import app
from errata.delta.parts import LowRank
from errata.delta.weight_delta import WeightDelta
from errata.editors.editor import Editor
from errata.editors.state import EditorState
from errata.model.language_model import LanguageModel

MODULE = "model.layers.1.mlp.down_proj"
NASTY = '<script>alert("x")</script>'
VOID = {"meta", "input", "br", "link", "img"}


@dataclass(frozen=True)
class Small(Editor):
    """Makes a harmless change of rank 1, and a destructive one for prompts with the word poison."""

    modules: tuple[str, ...] = ("layers.1.mlp.down_proj",)

    def start(self, model: LanguageModel, spec: Any) -> EditorState:
        return EditorState()

    def edit(self, model: LanguageModel, batch: Any, state: EditorState, cache: Any = None) -> tuple[WeightDelta, EditorState]:
        weight_OI = model.module.get_submodule(MODULE).weight
        scale = 1e4 if any("poison" in prompt for prompt in batch.prompts) else 1e-3
        delta = WeightDelta({MODULE: LowRank(scale * weight_OI[:, :1].clone(), weight_OI[:1].T.clone())})
        return delta, EditorState(state.num_edits + len(batch))


class Page(HTMLParser):
    """A page as a browser parses it: its text, its attributes and its scripts; asserts that tags are closed."""

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


def check_self_contained(page: Page, folder: Path) -> None:
    """Check that the page loads nothing, runs only its own script, and describes its figures in words."""
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
