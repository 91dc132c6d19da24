"""The papers' table and the plans made of it: on the real architectures at full depth, without their weights.

Layers and constants are written down here again, from the papers and their code, and not taken from the table.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from errata.datasets.reader import read_edits, write_parquet
from errata.edit import batches_of
from errata.editors import EDITORS, make_editor
from errata.editors.closed_form.memit import MEMIT
from errata.editors.closed_form.rome import ROME
from errata.editors.fine_tuning.ftl import FTL
from errata.editors.hypernet.net import Hypernetwork
from errata.editors.hypernet.rledit import RLEdit
from errata.editors.hypernet.training import Schedule, Trainer
from errata.editors.presets import MODELS, PRESETS, in_short, presets_of
from errata.guard.limits import Guard
from errata.model.language_model import LanguageModel
from errata.model.matrices import ModelSpec, find_matrices
from errata.overrides import with_fields
from errata.testbed.language_model import Shape, make_tokenizer
from errata.testbed.world import World
from jobs import arguments, moments, plan, plans, train
from jobs.suites import Suite

ROOT = Path(__file__).parents[3]
(ZSRE,), (FEVER,) = (list((ROOT / "tests" / "data" / "formats").glob(f"{name}.json*")) for name in ("zsre-mend", "fever"))

LLAMA = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
# As in each model's config.json.
CONFIGS: dict[str, Any] = {
    "llama3_8b": LlamaConfig(**LLAMA, num_key_value_heads=8, vocab_size=128256),
    "mistral_7b": MistralConfig(**LLAMA, num_key_value_heads=8, vocab_size=32768),
    "gemma2_9b": Gemma2Config(
        hidden_size=3584,
        intermediate_size=14336,
        num_hidden_layers=42,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=256,
        vocab_size=256000,
    ),
    "qwen2_5_7b": Qwen2Config(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
    ),
    "qwen3_8b": Qwen3Config(
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
    ),
    "phi4": Phi3Config(
        hidden_size=5120,
        intermediate_size=17920,
        num_hidden_layers=40,
        num_attention_heads=40,
        num_key_value_heads=10,
        vocab_size=100352,
    ),
    "gpt_j": GPTJConfig(n_embd=4096, n_layer=28, n_head=16, rotary_dim=64, vocab_size=50400),
    "gpt2_xl": GPT2Config(n_embd=1600, n_layer=48, n_head=25, vocab_size=50257),
}
SIZES = {  # hidden, intermediate
    "llama3_8b": (4096, 14336),
    "mistral_7b": (4096, 14336),
    "gemma2_9b": (3584, 14336),
    "qwen2_5_7b": (3584, 18944),
    "qwen3_8b": (4096, 12288),
    "phi4": (5120, 17920),
    "gpt_j": (4096, 16384),
    "gpt2_xl": (1600, 6400),
}
INTO_THE_MIDDLE = {"gate_proj", "up_proj", "fc_in", "c_fc"}


def both(first: int, last: int) -> dict[str, range]:
    return {"gate_proj": range(first, last + 1), "up_proj": range(first, last + 1)}


def one(matrix: str, first: int, last: int | None = None) -> dict[str, range]:
    return {matrix: range(first, (first if last is None else last) + 1)}


ZSRE_PLACES = {**one("gate_proj", 11, 15), **one("up_proj", 18, 24)}
PLACES: dict[str, dict[str, Mapping[str, range]]] = {
    "RLEdit": {
        "llama3_8b": both(22, 30),
        "llama3_8b_zsre": ZSRE_PLACES,
        "llama3_8b_counterfact": both(22, 30),
        "llama3_8b_fever": both(22, 30),
        **{f"gemma2_9b{data}": both(32, 40) for data in ("", "_zsre", "_counterfact", "_fever")},
        **{f"mistral_7b{data}": one("down_proj", 17, 18) for data in ("", "_zsre", "_counterfact", "_fever")},
        "gpt_j": one("fc_out", 22, 27),
        "gpt2_xl": one("c_proj", 32, 40),
        "qwen2_5_7b": both(18, 26),
        "qwen3_8b": both(26, 34),
        "phi4": one("down_proj", 30, 38),
    },
    "MALMEN": {
        **{f"gpt_j{data}": one("fc_out", 22, 27) for data in ("", "_zsre", "_fever")},
        "gpt2_xl": one("c_proj", 42, 47),
    },
    "MEND": {
        "gpt_j": {**one("fc_in", 25, 27), **one("fc_out", 25, 27)},
        "gpt2_xl": {**one("c_fc", 45, 47), **one("c_proj", 45, 47)},
        "llama3_8b": {**both(29, 31), **one("down_proj", 29, 31)},
        "mistral_7b": {**both(29, 31), **one("down_proj", 29, 31)},
        "qwen2_5_7b": {**both(25, 27), **one("down_proj", 25, 27)},
    },
    "UltraEdit": {
        **{f"llama3_8b{data}": ZSRE_PLACES for data in ("", "_zsre", "_wikibigedit")},
        "llama3_8b_fever": both(22, 30),
        **{f"mistral_7b{data}": one("down_proj", 29, 30) for data in ("", "_zsre", "_fever", "_wikibigedit")},
        **{f"qwen2_5_7b{data}": both(18, 26) for data in ("", "_zsre", "_fever")},
        "qwen2_5_7b_wikibigedit": both(19, 26),
        "phi4": one("down_proj", 30, 38),
        "phi4_wikibigedit": one("down_proj", 30, 38),
        "gpt_j": one("fc_out", 18, 26),
        "gpt_j_zsre": one("fc_out", 18, 26),
        "gpt_j_fever": one("fc_out", 25, 26),
        "gpt_j_wikibigedit": one("fc_out", 19, 26),
        "gemma2_9b": both(32, 40),
        "gpt2_xl": one("c_proj", 32, 40),
        "qwen3_8b": both(26, 34),
    },
    "ROME": {
        "gpt2_xl": one("c_proj", 17),
        "gpt_j": one("fc_out", 5),
        **{model: one("down_proj", 5) for model in ("llama3_8b", "mistral_7b", "qwen2_5_7b")},
    },
    "MEMIT": {
        "gpt2_xl": one("c_proj", 13, 17),
        "gpt_j": one("fc_out", 3, 8),
        **{model: one("down_proj", 4, 8) for model in ("llama3_8b", "mistral_7b", "qwen2_5_7b")},
    },
    "AlphaEdit": {
        "gpt2_xl": one("c_proj", 13, 17),
        "gpt_j": one("fc_out", 3, 8),
        **{model: one("down_proj", 4, 8) for model in ("llama3_8b", "qwen2_5_7b")},
    },
    "NSE": {"gpt2_xl": one("c_proj", 13, 17), "gpt_j": one("fc_out", 3, 8), "llama3_8b": one("down_proj", 4, 8)},
    "FT-L": {
        "gpt2_xl": one("c_proj", 0),
        "gpt_j": one("fc_out", 0),
        "llama3_8b": one("down_proj", 21),
        "mistral_7b": one("down_proj", 21),
        "qwen2_5_7b": one("down_proj", 27),
    },
}
PLACES["R-ROME"] = PLACES["ROME"]
ROWS = [(editor, name) for editor, names in PLACES.items() for name in names]
LEARNED = [(editor, name) for editor, name in ROWS if editor in ("RLEdit", "MALMEN", "MEND")]


@cache
def architecture(model: str) -> nn.Module:
    """Every module of the model in its real size, and no number."""
    with torch.device("meta"):
        made: nn.Module = AutoModelForCausalLM.from_config(CONFIGS[model])
    return made


def model_of(name: str) -> str:
    return next(model for model in CONFIGS if name == model or name.startswith(f"{model}_"))


def check_places(spec: ModelSpec, model: str, places: Mapping[str, range]) -> None:
    hidden, middle = SIZES[model]
    found = {(name.rpartition(".")[2], int(re.findall(r"\.(\d+)\.", name)[0])) for name in spec.names}
    assert found == {(matrix, layer) for matrix, numbers in places.items() for layer in numbers}
    assert len(spec.matrices) == sum(map(len, places.values()))
    for matrix in spec.matrices:
        inward = matrix.name.rpartition(".")[2] in INTO_THE_MIDDLE
        assert matrix.shape == ((middle, hidden) if inward else (hidden, middle)), matrix.name
        assert matrix.transposed == (model == "gpt2_xl")


def test_the_table_has_these_rows_and_no_others() -> None:
    found = {name: set(presets_of(kind)) - {"testbed"} for name, kind in EDITORS.items()}
    assert {name: names for name, names in found.items() if names} == {editor: set(names) for editor, names in PLACES.items()}
    assert {row.model for row in PRESETS} == {*MODELS, "testbed"} and set(MODELS) == set(CONFIGS)
    names = [(row.editor, name) for row in PRESETS for name in row.names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("editor", "name"), ROWS)
def test_a_row_fits_its_model_at_full_depth(editor: str, name: str) -> None:
    model = model_of(name)
    chosen: Any = EDITORS[editor]
    check_places(find_matrices(architecture(model), chosen.preset(name).modules), model, PLACES[editor][name])


# --- constants


@pytest.mark.parametrize("name", PLACES["RLEdit"])
def test_rledits_constants(name: str) -> None:
    editor = RLEdit.preset(name)
    assert (editor.rank, editor.num_blocks, editor.learning_rate) == (1024, 4, 1e-5)
    assert (editor.centred, editor.first_step, editor.first_ridge, editor.metric_strength) == (True, None, None, 0.0)
    reward = editor.reward
    assert (reward.locality_weight, reward.update_penalty) == (0.6, 1e-4)
    assert (reward.backtrack_decay, reward.backtrack_depth) == (0.95, 9)
    assert (reward.discount, reward.edit_weight, reward.score_prompts, reward.backtrack_uniform) == (1.0, 1.0, False, False)


@pytest.mark.parametrize(("editor", "rate", "weight"), [("MALMEN", 1e-5, 1.0), ("MEND", 1e-6, 0.1)])
def test_malmens_and_mends_constants(editor: str, rate: float, weight: float) -> None:
    chosen: Any = EDITORS[editor]
    for name in PLACES[editor]:
        made = chosen.preset(name)
        assert (made.rank, made.num_blocks, made.learning_rate, made.centred) == (1920, 2, rate, True)
        assert (made.first_step, made.first_ridge, made.metric_strength) == (None, None, 0.0)
        reward = made.reward
        assert (reward.edit_weight, reward.locality_weight) == (weight, 1.0)
        assert (reward.update_penalty, reward.score_prompts) == (0.0, False)


def test_ultraedits_constants() -> None:
    for name in PLACES["UltraEdit"]:
        editor: Any = make_editor("UltraEdit", preset=name)
        assert (editor.step, editor.ridge) == (1e-6, 1.0)


@pytest.mark.parametrize(
    ("name", "epsilon"),
    [("gpt2_xl", 5e-4), ("gpt_j", 5e-5), *((model, float("inf")) for model in ("llama3_8b", "mistral_7b", "qwen2_5_7b"))],
)
def test_ftls_constants(name: str, epsilon: float) -> None:
    editor = FTL.preset(name)
    assert (editor.num_epochs, editor.learning_rate, editor.loss_floor, editor.epsilon) == (25, 5e-4, 1e-2, epsilon)


@pytest.mark.parametrize("model", ["mistral_7b", "qwen2_5_7b"])
@pytest.mark.parametrize("editor", ["ROME", "R-ROME", "MEMIT", "AlphaEdit"])
def test_easyedits_constants(editor: str, model: str) -> None:
    """For every method the same search. What the methods' own papers have is tested in test_composed.py."""
    if model not in PLACES[editor]:
        return
    made: Any = make_editor(editor, preset=model)
    search = made.search
    assert (search.num_steps, search.learning_rate, search.decay) == (25, 0.5, 1e-3)
    assert (search.clamp, search.kl_weight) == (4.0, 0.0625)
    if isinstance(made, ROME):
        assert not made.use_moments
    elif isinstance(made, MEMIT):
        assert made.moment_weight == 15_000.0
    else:
        assert (made.ridge, made.threshold, made.relative) == (1.0, 2e-2, False)


# --- plans


@pytest.mark.parametrize(("editor", "name"), LEARNED)
def test_a_plan_is_its_row(editor: str, name: str) -> None:
    plan = plans.PLANS[f"{editor.lower()}_{name}"]()
    model = model_of(name)
    chosen: Any = EDITORS[editor]
    assert plan.editor == chosen.preset(name)
    assert (plan.model, plan.use_gpu, plan.dtype) == (MODELS[model].hub, True, "float32" if model == "gpt2_xl" else "bfloat16")
    assert plan.dataset == (name.removeprefix(model).removeprefix("_") or "any")
    schedules = {
        "RLEdit": Schedule(train_steps=400, batches=20, batch_size=20),
        "MEND": Schedule(train_steps=10_000, episodes=10, batches=1, batch_size=1),
        "MALMEN": Schedule(train_steps=318, episodes=1, batches=1, batch_size=512),
    }
    fever = Schedule(train_steps=102, episodes=1, batches=1, batch_size=1024)
    assert plan.schedule == (fever if name == "gpt_j_fever" else schedules[editor])


@pytest.mark.parametrize("model", CONFIGS)
def test_a_models_plan_has_rledits_matrices_and_our_settings(model: str) -> None:
    plan = plans.PLANS[model]()
    check_places(find_matrices(architecture(model), plan.editor.modules), model, PLACES["RLEdit"][model])
    ours = RLEdit(plan.editor.modules, rank=1024, num_blocks=4, learning_rate=1e-4)
    assert plan.editor == ours and plan.editor.metric_strength == 1000.0
    assert plan.dataset == "any" and plan.model == MODELS[model].hub


@pytest.mark.parametrize(("name", "millions"), [("llama3_8b", 154), ("llama3_8b_zsre", 153), ("mistral_7b", 151)])
def test_rledits_networks_are_as_large_as_the_papers(name: str, millions: int) -> None:
    """4 blocks of 2 x 18,432 x 1,024 numbers, a bias each, and a scale and a shift for every matrix."""
    editor = RLEdit.preset(name)
    with torch.device("meta"):
        spec = find_matrices(architecture(model_of(name)), editor.modules)
        net = Hypernetwork(spec, editor.rank, editor.num_blocks, editor.centred, seed=0)
    assert len(net.nets) == 1, "gate and up are of one shape"
    assert round(sum(parameter.numel() for parameter in net.parameters()) / 1e6) == millions


def refusal(*arguments: str) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as refused:
        train.check(arguments.from_arguments(arguments))
    return str(refused.value)


def test_a_plan_of_a_dataset_needs_a_file_of_it(tmp_path: Path) -> None:
    plain = tmp_path / "edits.parquet"
    write_parquet(read_edits(FEVER), plain)
    plan = "plan=rledit_llama3_8b_zsre"
    assert "trains on edits of zsre: name a file of them, edits=PATH" in refusal(plan)
    assert "has the layers for zsre" in (said := refusal(plan, f"edits={FEVER}")) and "of the format fever" in said
    assert "nowhere.json" in refusal(plan, f"edits={tmp_path / 'nowhere.json'}")
    for accepted in ([f"edits={ZSRE}"], [f"edits={plain}"], [f"edits={FEVER}", "dataset=any"]):
        train.check(arguments.from_arguments([plan, *accepted]))
    train.check(arguments.from_arguments(["plan=rledit_llama3_8b_fever", f"edits={FEVER}"]))


@pytest.mark.parametrize(("size", "batches"), [(1, 100), (4, 25), (10, 10), (20, 10)])
def test_a_normaliser_is_set_by_enough_edits(size: int, batches: int) -> None:
    plan = replace(plans.PLANS["mend_llama3_8b"](), schedule=Schedule(batches=1, batch_size=size))
    found = train.first_batches(plan, World(300).edits("train", 300))
    assert [len(batch) for batch in found] == [size] * batches


def test_a_models_plan_needs_edits_and_text() -> None:
    edits = f"edits={ZSRE}"
    assert "plan qwen3_8b trains on edits: name a file" in refusal("plan=qwen3_8b")
    assert "text=PATH" in refusal("plan=qwen3_8b", edits)
    train.check(arguments.from_arguments(["plan=qwen3_8b", edits, "text=sentences.txt"]))
    train.check(arguments.from_arguments(["plan=qwen3_8b", edits, "editor.metric_strength=0"]))


def test_the_dataset_is_no_part_of_what_a_policy_is() -> None:
    plan = plans.PLANS["rledit_gemma2_9b_zsre"]()
    assert plan.digest() == replace(plan, dataset="any").digest() == plans.PLANS["rledit_gemma2_9b_fever"]().digest()


def test_an_unknown_plan_is_told_what_there_is() -> None:
    with pytest.raises(ValueError, match="did you mean rledit_llama3_8b_zsre") as refused:
        arguments.from_arguments(["plan=rledit_llama_8b_zsre"])
    assert all(name in str(refused.value) for name in plans.PLANS)
    assert max(map(len, str(refused.value).splitlines())) <= 128


def test_plans_are_listed() -> None:
    command = [sys.executable, "jobs/train.py", "plans"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(plans.PLANS)
    line = next(line for line in lines if line.startswith("rledit_qwen3_8b "))
    assert "Qwen/Qwen3-8B" in line and "gate_proj + up_proj 26-34" in line and "extrapolated: the nine blocks" in line


# --- presets elsewhere


@pytest.mark.parametrize(
    ("editor", "preset", "says"),
    [
        ("UltraEdit", "llama4", "UltraEdit has no preset 'llama4'; there are llama3_8b, llama3_8b_zsre"),
        ("FT-L", "phi4", "FTL has no preset 'phi4'; there are gpt2_xl, gpt_j"),
        ("NSE", "mistral_7b", "NSE has no preset 'mistral_7b'; there are gpt2_xl"),
        ("LocFT", "gpt_j", "it has none: set its fields"),
    ],
)
def test_an_unknown_preset_is_told_what_there_is(editor: str, preset: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_editor(editor, preset=preset)


def test_what_is_made_from_an_editor_has_its_presets() -> None:
    class Mine(MEMIT):
        pass

    published = MEMIT.preset("gpt_j")
    assert Mine.preset("gpt_j") == Mine(modules=published.modules, search=published.search)


def test_moments_are_measured_where_a_preset_edits() -> None:
    measured = moments.from_command_line(["plan=llama3_8b", "text=a.txt", "preset=AlphaEdit:llama3_8b"])
    assert measured.modules == tuple(f"layers.{layer}.mlp.down_proj" for layer in range(4, 9))
    with pytest.raises(ValueError, match="give one of them"):
        moments.from_command_line(["plan=tiny", "preset=AlphaEdit:llama3_8b", "modules=a"])
    with pytest.raises(ValueError, match="AlphaEdit has no preset ''; there are"):
        moments.from_command_line(["plan=tiny", "preset=AlphaEdit"])
    with pytest.raises(ValueError, match="text=PATH"):
        moments.from_command_line(["plan=llama3_8b", "modules=a"])


def test_fields_are_set_by_name() -> None:
    editor = with_fields(RLEdit(), {"rank": 3, "reward.discount": 0.5})
    assert (editor.rank, editor.reward.discount, editor.reward.backtrack_depth) == (3, 0.5, 10)
    with pytest.raises(ValueError, match=r"reward\.colour: Reward has no field 'colour'"):
        with_fields(RLEdit(), {"reward.colour": 1})


@pytest.mark.parametrize(
    ("editor", "field", "value", "wanted"),
    [
        ("FT-L", "epsilon", "inf", math.inf),
        ("FT-L", "epsilon", "2", 2.0),
        ("FT-L", "epsilon", "nan", "'nan' is not of type float"),
        ("FT-L", "epsilon", "True", "'True' is not of type float"),
        ("MEMIT", "bare_share", "None", None),
        ("MEMIT", "bare_share", "half", "'half' is not of type float or None"),
        ("ROME", "bare_share", "0.25", 0.25),
        ("O-Edit", "past_rank", "12", 12),
        ("O-Edit", "past_rank", "None", None),
        ("O-Edit", "past_rank", "many", "'many' is not of type int or None"),
        ("O-Edit", "past_rank", "1.5", "'1.5' is not of type int or None"),
        ("MEMIT", "seed", "None", "'None' is not of type int"),
        ("MEMIT", "position", "either", "either"),
        ("MEMIT", "position", "promt", "position is one of subject, either, prompt, not 'promt'"),
    ],
)
def test_fields_are_read_from_text(editor: str, field: str, value: str, wanted: Any) -> None:
    if isinstance(wanted, str) and " " in wanted:
        with pytest.raises(ValueError, match=re.escape(wanted)):
            make_editor(editor, settings={field: value})
    else:
        found = getattr(make_editor(editor, settings={field: value}), field)
        assert found == wanted and type(found) is type(wanted)


@pytest.mark.parametrize("kind", [*EDITORS.values(), plan.Plan, Guard, Suite])
def test_every_field_has_a_type_to_read_it_as(kind: type) -> None:
    assert get_type_hints(kind).keys() >= {one.name for one in fields(kind)}


@pytest.mark.parametrize(
    ("modules", "short"),
    [
        (("layers.3.mlp.down_proj",), "down_proj 3"),
        (("h.1.mlp.c_fc", "h.1.mlp.c_proj", "h.2.mlp.c_fc", "h.2.mlp.c_proj"), "c_fc + c_proj 1-2"),
        (("layers.9.a", "layers.1.a", "layers.2.a", "layers.2.b"), "a 1-2, 9, b 2"),
        (("mlp.down_proj",), "down_proj every block"),
    ],
)
def test_matrices_in_short(modules: tuple[str, ...], short: str) -> None:
    assert in_short(modules) == short


def test_the_document_has_every_row() -> None:
    lines = (ROOT / "docs" / "plans.md").read_text().splitlines()
    for row in PRESETS:
        editor = next(name for name, kind in EDITORS.items() if kind.__name__ == row.editor)
        wanted = [f"| `{editor}`", *(f"`{name}`" for name in row.names), in_short(row.modules), row.source]
        assert any(all(part in line for part in wanted) for line in lines if line.startswith("|")), wanted


# --- at the models' full depth, with few and random numbers in each block


def narrow(model: str) -> LanguageModel:
    tokenizer = make_tokenizer(World(20), Shape(max_tokens=48))
    words = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 1}
    config: Any = GPT2Config(n_embd=16, n_layer=48, n_head=2, n_positions=48, **words)
    if model == "llama3_8b":
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 32, "num_attention_heads": 2}
        config = LlamaConfig(**sizes, max_position_embeddings=48, **words)
    torch.manual_seed(0)
    return LanguageModel(AutoModelForCausalLM.from_config(config).eval().requires_grad_(False), tokenizer, model)


@pytest.mark.parametrize("name", ["rledit_llama3_8b_zsre", "mend_llama3_8b", "malmen_gpt2_xl", "rledit_gpt2_xl"])
def test_a_plan_trains(name: str, tmp_path: Path) -> None:
    write_parquet(World(20).edits("train", 8), tmp_path / "edits.parquet")
    few = ["schedule.batch_size=2", "schedule.episodes=1", "schedule.train_steps=2", "editor.rank=4", "use_gpu=False"]
    few += ["schedule.batches=2"] if name.startswith("rledit") else []  # the others are trained on single batches
    plan = arguments.from_arguments([f"plan={name}", f"edits={tmp_path / 'edits.parquet'}", *few])
    train.check(plan)
    model = narrow(plans.ROWS[name][2].model)
    editor, folds = train.begin(plan, model)
    trainer = Trainer(editor, model, folds, plan.schedule, plan.seed)
    losses = trainer.step()
    assert all(torch.isfinite(torch.tensor(list(losses.values()))))
    batch = next(iter(batches_of(World(20).edits("test", 2), 2)))
    delta, state = editor.edit(model, batch, editor.start(model, find_matrices(model.module, editor.modules)))
    assert set(delta.parts) == set(find_matrices(model.module, plan.editor.modules).names) and state.num_edits == 2


@pytest.mark.parametrize("name", ["llama3_8b", "llama3_8b_fever"])
def test_ultraedit_edits_where_its_preset_says(name: str) -> None:
    model, editor = narrow("llama3_8b"), make_editor("UltraEdit", preset=name, settings={"max_batch": "4"})
    batch = next(iter(batches_of(World(20).edits("test", 4), 4)))
    delta, _ = editor.edit(model, batch, editor.start(model, find_matrices(model.module, editor.modules)))
    places = {(n.rpartition(".")[2], int(n.split(".")[2])) for n, norm in delta.norms().items() if norm > 0}
    assert places == {(matrix, layer) for matrix, numbers in PLACES["UltraEdit"][name].items() for layer in numbers}
