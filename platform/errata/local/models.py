"""The model that a user names: a folder, a name in Hugging Face's cache, a GGUF file, or the default model."""

from __future__ import annotations

from pathlib import Path

from errata.local.terminal import console
from errata.model.gguf import check_gguf, is_gguf
from errata.testbed import smollm2


def default_policy() -> str:
    """Return the folder of the policy that edits the default model; what it measures at first use takes about a minute."""
    if not smollm2.has_policy():
        resolved(smollm2.NAME)
        console().print("measuring the key preconditioner of the shipped policy: about a minute, once")
    return str(smollm2.policy())


def measured(artifact: str | None) -> str | None:
    """Return the artifact that works in the place of the shipped policy, which is then measured; others as they are."""
    is_shipped = artifact is not None and Path(artifact).resolve() == smollm2.POLICY.resolve()
    return default_policy() if is_shipped else artifact


def shipped_policy() -> str:
    """Return the folder of the default model's policy, which may have no key preconditioner yet; nothing is measured."""
    return str(smollm2.policy() if smollm2.has_policy() else smollm2.POLICY)


def ready(model: str) -> str:
    """Return what `resolved` does, or "" for a model that is yet to be made, after a check that it can be. Fast.

    Raises `ValueError` for a file that is no GGUF file, and for a missing package.
    """
    if model == smollm2.NAME:
        smollm2.check()
        return str(smollm2.fetched()) if smollm2.folder().exists() else ""
    if is_gguf(model):
        check_gguf(Path(model))
        return ""
    return model


def resolved(model: str) -> str:
    """Return the folder of a GGUF file or of the default model, which is made on first use; other names as they are.

    Raises `ValueError` for a file that cannot be converted, and for a missing package of the default model.
    """
    if model == smollm2.NAME:
        if not smollm2.folder().exists():
            smollm2.check()
            console().print("making the default model out of its package: about half a minute, once")
        return str(smollm2.fetched())
    if is_gguf(model):
        from errata.model.gguf import converted

        return str(converted(model))
    return model
