"""Editors with a policy: a network that is trained (jobs/train.py) and comes from an artifact, a folder with its record."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar, cast

from safetensors.torch import load_file, save_file
from torch import Tensor

from errata.editors.editor import Editor

Policy = TypeVar("Policy")


class TrainedEditor(Editor, ABC, Generic[Policy]):
    """Base class of the editors with a policy. Subclasses are dataclasses that have it as a field, with their settings."""

    policy: Policy | None

    is_trained: ClassVar[bool] = True

    def trained_policy(self) -> Policy:
        """Return the policy. Raises `ValueError` without one."""
        if self.policy is None:
            name = type(self).__name__
            raise ValueError(f"{name} has no trained policy: load one with {name}.load(artifact), or train one (jobs/train.py)")
        return self.policy

    @abstractmethod
    def save(self, directory: str | Path, record: Mapping[str, Any]) -> None:
        """Save the policy as an artifact; `record` describes its training: plan, seed, training curve, model."""

    @classmethod
    @abstractmethod
    def load(cls, directory: str | Path, device: Any = "cpu") -> Self:
        """Load an editor with its policy from a folder of `save`. Raises `ValueError` if it holds no artifact of this class."""

    @classmethod
    def from_artifact(cls, artifact: str | Path | None = None, preset: str | None = None, device: Any = "cpu") -> Self:
        if artifact is None or preset is not None:
            raise ValueError(f"{cls.__name__} is trained: name the folder of a trained policy (jobs/train.py), and no preset")
        return cls.load(artifact, device)

    def without_policy(self) -> Self:
        """Return the settings alone."""
        untrained: Any = replace(cast(Any, self), policy=None)
        return cast(Self, untrained)

    def write(self, directory: str | Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Write an artifact: the tensors of the policy, the settings, and `about`."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        saved = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        save_file(saved, str(directory / "policy.safetensors"))
        settings = asdict(cast(Any, self.without_policy()))
        fields = {name: value for name, value in settings.items() if name != "policy"}
        text = json.dumps({"editor": type(self).__name__, "fields": fields, **about}, indent=1)
        (directory / "artifact.json").write_text(text)

    @classmethod
    def read(cls, directory: str | Path, device: Any = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read the tensors of an artifact and its description. Raises `ValueError` if it holds no artifact of this class."""
        path = Path(directory) / "artifact.json"
        about: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"editor": None}
        if about["editor"] != cls.__name__:
            found = f"it is of {about['editor']}" if about["editor"] else "no artifact.json"
            raise ValueError(f"{directory} holds no {cls.__name__} artifact ({found}); train one with jobs/train.py")
        about["fields"]["modules"] = tuple(about["fields"]["modules"])
        return load_file(str(Path(directory) / "policy.safetensors"), device=str(device)), about
