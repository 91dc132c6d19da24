"""Check by its config.json that transformers knows a checkpoint's model, and that the model writes text.

To import the part of transformers that answers takes seconds. So it is asked only about a type without a folder of its own in
transformers, and about a class whose name does not say that it writes text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

WRITERS = ("ForCausalLM", "LMHeadModel")  # how the names of most classes end that write text


def check_model_type(path: Path, config: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a type of model that transformers does not know, and for a class that writes no text.

    `config` is the content of the file `path`.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise ValueError(f"{path} has no model_type, so nothing can load the model: copy the file of the model's release again")
    if not _has_folder(kind) and not _is_known(kind):
        raise ValueError(
            f"{path} has the model_type {kind!r}, which this release of transformers does not know: give a model of a type "
            "that it knows (docs/models.md), or correct the misspelt type"
        )
    names = config.get("architectures") or []
    is_composite = "text_config" in config and any(str(name).endswith("ForConditionalGeneration") for name in names)
    if not any(str(name).endswith(WRITERS) for name in names) and not _writes(kind, names, is_composite):
        raise ValueError(
            f"{path} is of a {', '.join(map(str, names)) or kind}, which writes no text that could be corrected: give a causal "
            "language model, whose architectures end in ForCausalLM (docs/models.md)"
        )


def _has_folder(kind: str) -> bool:
    found = find_spec("transformers")
    folders = found.submodule_search_locations if found is not None else None
    name = kind.replace("-", "_")
    return name.isidentifier() and any((Path(folder) / "models" / name / "__init__.py").exists() for folder in folders or ())


def _is_known(kind: str) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return kind in CONFIG_MAPPING_NAMES


def _writes(kind: str, names: Sequence[Any], is_composite: bool) -> bool:
    """Say if one of the classes writes text; of a model with other parts, or if no class is named, if its type does."""
    from transformers.models.auto import modeling_auto

    writers = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return any(name in writers.values() for name in names) or ((is_composite or not names) and kind in writers)
