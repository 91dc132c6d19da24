"""The small files of a checkpoint: what would fail as the model is loaded or first asked is one line before."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from errata.model.checkpoint import check_checkpoint
from errata.text.templates import refusal
from tests.tiny_models import ARCHITECTURES, save_tiny

GENERATION = "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}"
PARTS = "{% for m in messages %}{% for part in m['content'] %}{{ part['text'].strip() }}{% endfor %}{% endfor %}"
REFUSES = "{{ raise_exception('system first') }}"


@pytest.fixture
def folder(model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_dir, tmp_path / "model"))


def config(**fields: Any) -> Callable[[Path], None]:
    return setting("config.json", **fields)


def setting(name: str, **fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = json.loads((folder / name).read_text()) | fields
        (folder / name).write_text(json.dumps({key: value for key, value in data.items() if value is not None}))

    return change


def written(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None  # type: ignore[func-returns-value]


def vocabulary_alone(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("[UNK]\nrome\n")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (config(model_type="lama"), r"config\.json has the model_type 'lama', which .* does not know: give a model"),
        (config(model_type=None), r"config\.json has no model_type"),
        (config(architectures=["LlamaForSequenceClassification"]), r"is of a LlamaForSequenceClassification, which writes no"),
        (config(architectures=["LlamaModel"]), r"is of a LlamaModel, which writes no text.*: give a causal language model"),
        (config(architectures=None, model_type="clip"), r"config\.json is of a clip, which writes no text"),
        (written("tokenizer.json", "{}"), r"is damaged \(tokenizer\.json has no field added_tokens, model\).*copy tokenizer"),
        (setting("tokenizer.json", model={"type": "BPE", "vocab": 3}), r"is damaged \(tokenizer\.json: .*copy tokenizer\.json"),
        (written("tokenizer_config.json", "{"), r"tokenizer_config\.json is not a JSON object"),
        (vocabulary_alone, r"is vocab\.txt alone, of which transformers makes none \(.*: copy tokenizer\.json"),
        (written("chat_template.jinja", "{% if %}"), r"chat_template\.jinja renders no question \(Expected an.*copy the model"),
        (written("chat_template.jinja", REFUSES), r"renders no question \(system first\)"),
        (
            setting("tokenizer_config.json", chat_template=[{"name": "default", "template": "{{ messages[9]['role'] }}"}]),
            r"tokenizer_config\.json renders no question \(.*has no element 9",
        ),
    ],
)
def test_a_small_file_that_cannot_be_used_is_one_line(folder: Path, spoil: Callable[[Path], None], says: str) -> None:
    if "tokenizer_config" in says:
        (folder / "chat_template.jinja").unlink(missing_ok=True)
    spoil(folder)
    with pytest.raises(ValueError, match=says) as refused:
        check_checkpoint(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_small_files_of_every_architecture_are_taken(name: str, tmp_path: Path) -> None:
    folder = save_tiny(name, tmp_path)
    assert check_checkpoint(folder) == Path(folder)


def test_a_type_without_a_folder_of_its_own_is_known(folder: Path) -> None:
    config(model_type="qwen3_5_text")(folder)
    assert check_checkpoint(folder) == folder


@pytest.mark.parametrize("template", [GENERATION, PARTS, "{{ bos_token + messages[0]['content'] }}"])
def test_a_template_that_transformers_renders_is_taken(template: str) -> None:
    """Tags of transformers' own, and parts instead of a text."""
    assert refusal(template, {"bos_token": "<s>"}) is None


def test_usual_files_are_judged_without_transformers(folder: Path) -> None:
    """The import alone takes seconds."""
    code = f"""
import sys
from pathlib import Path
from errata.model.checkpoint import check_checkpoint
check_checkpoint(Path({str(folder)!r}))
assert "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
