"""Every editor with settings for a small model, for the contract, replay and parity tests. A new editor is one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from errata.delta.parts import Dense, LowRank, Part, Sparse
from errata.edit import batches_of
from errata.editors import Editor
from errata.editors.closed_form.alphaedit import AlphaEdit
from errata.editors.closed_form.locate_then_edit import LocateThenEdit
from errata.editors.closed_form.memit import MEMIT
from errata.editors.closed_form.moments import Moments, leading_outputs
from errata.editors.closed_form.nse import NSE
from errata.editors.closed_form.rome import ROME, RROME
from errata.editors.closed_form.targets import Search
from errata.editors.closed_form.ultraedit import UltraEdit
from errata.editors.fine_tuning.ftl import FTL
from errata.editors.fine_tuning.locft import LocFT
from errata.editors.fine_tuning.lora import LoRA
from errata.editors.hypernet.episode_batch import EpisodeBatch
from errata.editors.hypernet.hypernet_editor import HypernetworkEditor
from errata.editors.hypernet.malmen import MALMEN
from errata.editors.hypernet.mend import MEND
from errata.editors.hypernet.rledit import RLEdit
from errata.editors.memory_based.answer import AnswerMemory
from errata.editors.memory_based.elder import ELDER
from errata.editors.memory_based.ike import IKE
from errata.editors.memory_based.recipe import RECIPE
from errata.editors.memory_based.rtd import RTD
from errata.editors.memory_based.scr import SCR
from errata.editors.memory_based.serac import SERAC
from errata.editors.memory_based.state import StateMemory
from errata.editors.memory_based.swea import SWEA
from errata.editors.tiers import Tiers
from errata.editors.wrappers.blue import BLUE
from errata.editors.wrappers.nas import NAS
from errata.editors.wrappers.oedit import OEdit, OEditPlus
from errata.editors.wrappers.prune import PRUNE
from errata.editors.wrappers.rect import RECT
from errata.editors.wrappers.sphere import SPHERE
from errata.model.encoding import Encoded
from errata.model.key_moments import gradient_sums, key_moment
from errata.model.language_model import LanguageModel
from errata.model.matrices import find_matrices
from errata.testbed.world import World

GATE_UP = ("layers.1.mlp.gate_proj", "layers.1.mlp.up_proj")


_BUILT: dict[tuple[str, str, str], Editor] = {}
_MOMENTS: dict[tuple[str, str, tuple[str, ...]], Moments] = {}


def editor_under_test(name: str, model: LanguageModel) -> Editor:
    """Build an editor on an unedited model; once per session for each checkpoint and device, because editors are frozen."""
    key = name, model.path, str(model.device)
    if key not in _BUILT:
        _BUILT[key] = (UNDER_TEST | TIERED)[name].build(model)
    return _BUILT[key]


def learned(editor: HypernetworkEditor) -> Callable[[LanguageModel], Editor]:
    """Return a builder of the editor with an initialised policy."""

    def make(model: LanguageModel) -> Editor:
        batches = list(batches_of(World(20).edits("train", 20), 5))
        text = [EpisodeBatch(model, batch).in_scope_texts for batch in batches]
        return editor.initialised(model, text, batches, seed=0)

    return make


def measured(model: LanguageModel, modules: tuple[str, ...]) -> Moments:
    """Measure the key moments and output directions of an unedited model on a few facts."""
    names = find_matrices(model.module, modules).names
    text = [EpisodeBatch(model, batch).in_scope_texts for batch in batches_of(World(20).edits("train", 20), 5)]
    gradients = gradient_sums(model.module, text, names)
    directions = {name: leading_outputs(grad_OI) for name, grad_OI in gradients.items()}
    return Moments(key_moment(model.module, text, names), {}, directions)


def with_key_moments(
    editor: LocateThenEdit, wrap: Callable[[LocateThenEdit], Editor] = lambda inner: inner
) -> Callable[[LanguageModel], Editor]:
    """Return a builder of the editor with moments of the model, and with `wrap` around it."""

    def make(model: LanguageModel) -> Editor:
        key = model.path, str(model.device), editor.modules
        if key not in _MOMENTS:
            _MOMENTS[key] = measured(model, editor.modules)
        return wrap(editor.with_moments(_MOMENTS[key]))

    return make


def answer_tokens(encoded: Encoded) -> int:
    return int(encoded.predicts_BS.sum())


def all_tokens(encoded: Encoded) -> int:
    return int(encoded.attention_mask_BS.sum())


def one_row_an_edit(encoded: Encoded) -> int:
    return len(encoded.input_ids_BS)


class MadeOf(NamedTuple):
    """The kinds of a delta's parts, none of a memory, and the number of rows that one pass has to make them of.

    Without a number, the parts are not low-rank, or their rank is a setting.
    """

    kinds: tuple[type[Part], ...]
    num_rows: Callable[[Encoded], int] | None = None


class UnderTest(NamedTuple):
    """A builder of an editor, and what the editor's deltas are made of."""

    build: Callable[[LanguageModel], Editor]
    made_of: MadeOf


ANSWERS, TOKENS, EDITS = (MadeOf((LowRank,), count) for count in (answer_tokens, all_tokens, one_row_an_edit))
SPARSE, WHOLE, SUMMED = MadeOf((Sparse, Dense)), MadeOf((Dense,)), MadeOf((LowRank, Dense))
FACTORS = MadeOf((LowRank,))
STATES, TEXTS, SAID = (MadeOf((), count) for count in (answer_tokens, one_row_an_edit, one_row_an_edit))  # of a memory
PREFIXES, ROWS = MadeOf((), one_row_an_edit), MadeOf(())  # of a memory of embeddings; a subject has one for each token
CLASSIFIED = MadeOf((), one_row_an_edit)  # of a memory whose scope is trained, and which is tested with its training


FIRST, BOTH = ("layers.0.mlp.down_proj",), ("layers.0.mlp.down_proj", "layers.1.mlp.down_proj")
SEARCH = Search(num_steps=12, learning_rate=0.03, decay=0.0, clamp=4.0)

SMALL_MEMIT = MEMIT(FIRST, search=SEARCH, context_words=("the", "a"), context_lengths=(3,), moment_weight=1.0, floor=1e-2)
SMALL_ALPHAEDIT = AlphaEdit(
    FIRST, search=SEARCH, context_words=("the", "a"), context_lengths=(3,), ridge=1e-2, threshold=0.5, relative=True
)
SMALL_ROME = ROME(FIRST, search=SEARCH, context_words=("the", "a"), context_lengths=(2, 3), floor=1e-2)
SMALL_NSE = NSE(
    FIRST,
    search=SEARCH,
    context_words=("the",),
    context_lengths=(3,),
    moment_weight=1.0,
    floor=1e-2,
    alpha=0.01,
    upper=1e3,
    relative=True,
)

UNDER_TEST: dict[str, UnderTest] = {
    "RLEdit": UnderTest(learned(RLEdit(("layers.1.mlp.down_proj",), rank=8)), ANSWERS),
    "RLEdit-gate-up-two-passes": UnderTest(learned(RLEdit(GATE_UP, rank=8, num_passes=2, memory=0.5)), ANSWERS),
    "RLEdit-three-passes": UnderTest(learned(RLEdit(("layers.*.mlp.down_proj",), rank=8, num_passes=3)), ANSWERS),
    "RLEdit-ridge": UnderTest(learned(RLEdit(("layers.*.mlp.down_proj",), rank=8, metric_strength=0.0)), ANSWERS),
    "RLEdit-published": UnderTest(
        learned(RLEdit.preset("llama3_8b", rank=8, modules=("layers.*.mlp.gate_proj", "layers.*.mlp.up_proj"))), ANSWERS
    ),
    "MALMEN": UnderTest(learned(MALMEN(("layers.*.mlp.down_proj",), rank=8)), ANSWERS),
    "MALMEN-published": UnderTest(learned(MALMEN.preset("gpt_j", rank=8, modules=("layers.*.mlp.down_proj",))), ANSWERS),
    "UltraEdit": UnderTest(lambda model: UltraEdit(("layers.1.mlp.down_proj",), step=1e-4), ANSWERS),
    "UltraEdit-gate-up": UnderTest(lambda model: UltraEdit(GATE_UP, step=1e-4), ANSWERS),
    "MEMIT": UnderTest(with_key_moments(SMALL_MEMIT), EDITS),
    "MEMIT-with-memory": UnderTest(with_key_moments(replace(SMALL_MEMIT, context_words=("the",), memory=1.0)), EDITS),
    "AlphaEdit": UnderTest(with_key_moments(SMALL_ALPHAEDIT), EDITS),
    "BLUE": UnderTest(with_key_moments(replace(SMALL_ALPHAEDIT, modules=BOTH, position="prompt"), BLUE), EDITS),
    "BLUE-of-MEMIT": UnderTest(with_key_moments(SMALL_MEMIT, BLUE), EDITS),
    "NAS": UnderTest(with_key_moments(SMALL_ALPHAEDIT, NAS), EDITS),
    "NAS-of-MEMIT": UnderTest(with_key_moments(SMALL_MEMIT, NAS), EDITS),
    "SPHERE": UnderTest(with_key_moments(SMALL_ALPHAEDIT, SPHERE), EDITS),
    "SPHERE-of-FT-L": UnderTest(lambda model: SPHERE(FTL(("layers.1.mlp.down_proj",), num_epochs=3)), WHOLE),
    "ROME": UnderTest(with_key_moments(SMALL_ROME), EDITS),
    "ROME-without-moments": UnderTest(lambda model: replace(SMALL_ROME, use_moments=False, context_words=()), EDITS),
    "R-ROME": UnderTest(
        with_key_moments(RROME(FIRST, search=SEARCH, context_words=("the", "a"), context_lengths=(3,), floor=1e-2)), EDITS
    ),
    "R-ROME-prompt-keys": UnderTest(
        with_key_moments(
            RROME(FIRST, search=SEARCH, context_words=("the",), context_lengths=(3,), floor=1e-2, prompt_keys=True)
        ),
        EDITS,
    ),
    "NSE": UnderTest(with_key_moments(SMALL_NSE), EDITS),
    "NSE-some-neurons": UnderTest(with_key_moments(replace(SMALL_NSE, neurons=0.8)), EDITS),
    "RECT": UnderTest(with_key_moments(SMALL_MEMIT, lambda inner: RECT(inner, kept=0.2)), SPARSE),
    "RECT-of-AlphaEdit": UnderTest(with_key_moments(SMALL_ALPHAEDIT, RECT), SPARSE),
    "RECT-of-RLEdit": UnderTest(
        lambda model: RECT(learned(RLEdit(("layers.1.mlp.down_proj",), rank=8))(model), kept=0.9), SPARSE
    ),
    "PRUNE": UnderTest(with_key_moments(SMALL_MEMIT, PRUNE), SUMMED),
    "PRUNE-at-work": UnderTest(with_key_moments(SMALL_ROME, lambda inner: PRUNE(inner, restraint="linear")), SUMMED),
    "O-Edit": UnderTest(with_key_moments(SMALL_ROME, lambda inner: OEdit(inner, past_weight=0.5, knowledge_weight=0.5)), EDITS),
    "O-Edit-of-MEMIT": UnderTest(
        with_key_moments(SMALL_MEMIT, lambda inner: OEdit(inner, knowledge_rate=0.0, past_weight=0.5)), EDITS
    ),
    "O-Edit+": UnderTest(with_key_moments(SMALL_ROME, lambda inner: OEditPlus(inner, knowledge_rate=0.5)), EDITS),
    "FT-L": UnderTest(lambda model: FTL(("layers.1.mlp.down_proj",), num_epochs=3), WHOLE),
    "LocFT": UnderTest(
        lambda model: LocFT(("layers.0.mlp.down_proj", "layers.1.mlp.down_proj"), num_epochs=3, batch_size=2), WHOLE
    ),
    "LoRA": UnderTest(lambda model: LoRA(BOTH, rank=4, num_epochs=5, learning_rate=1e-2), FACTORS),
    "MEND": UnderTest(learned(MEND(("layers.*.mlp.down_proj",), rank=8, first_step=0.05)), TOKENS),
    "MEND-published": UnderTest(learned(MEND.preset("llama3_8b", rank=8, modules=GATE_UP)), TOKENS),
    "state": UnderTest(lambda model: StateMemory(("layers.1.mlp.down_proj",)), STATES),
    "state-early": UnderTest(lambda model: StateMemory(("layers.0.mlp.up_proj",), threshold=0.9999), STATES),
    "SCR": UnderTest(lambda model: SCR(("layers.1.mlp.down_proj",)), TEXTS),
    "IKE": UnderTest(lambda model: IKE(("layers.1.mlp.down_proj",)), TEXTS),
    "answer": UnderTest(lambda model: AnswerMemory(("layers.1.mlp.down_proj",)), SAID),
    "RTD": UnderTest(lambda model: RTD(("layers.1.mlp.down_proj",)), STATES),
    "SWEA": UnderTest(lambda model: SWEA(("layers.1.mlp.down_proj",), starters=("the", "every"), num_steps=8), ROWS),
    "RECIPE": UnderTest(
        lambda model: RECIPE(("layers.1.mlp.down_proj",), num_features=32).initialised(model, seed=0), PREFIXES
    ),
    "ELDER": UnderTest(lambda model: ELDER(BOTH, rank=4, num_steps=60, learning_rate=0.03, num_bits=512), STATES),
    "SERAC": UnderTest(lambda model: SERAC(("layers.1.mlp.down_proj",)).initialised(model, seed=0), CLASSIFIED),
}


# A memory before weights: `edit` writes the memory alone, so that the contract of weights is that of its weights' editor.
TIERED: dict[str, UnderTest] = {
    "RLEdit+answer": UnderTest(
        lambda model: Tiers(learned(RLEdit(("layers.1.mlp.down_proj",), rank=8))(model), AnswerMemory()), SAID
    ),
}


# Settings that write strongly enough on a random model of tests/tiny_models.py for the newest target to be the likeliest.
LAST = ("model.layers.1.mlp.down_proj",)
AT_PROMPT: dict[str, Any] = {"search": Search(40, 0.3, 0.0, 4.0, 0.0), "context_words": (), "position": "prompt", "floor": 1e-2}
STRONG_ROME, STRONG_MEMIT = ROME(LAST, **AT_PROMPT), MEMIT(LAST, moment_weight=1.0, **AT_PROMPT)
STRONG_ALPHAEDIT = AlphaEdit(LAST, search=STRONG_MEMIT.search, context_words=(), position="prompt", ridge=1.0, threshold=0.5)

STRONG: dict[str, Callable[[LanguageModel], Editor]] = {
    "RLEdit": learned(RLEdit(LAST, rank=8, num_passes=3, first_step=1.0)),
    "MALMEN": learned(MALMEN(LAST, rank=8, first_step=4.0)),
    "MEND": learned(MEND(LAST, rank=8, first_step=4.0)),
    "UltraEdit": lambda model: UltraEdit(LAST, step=4e-2),
    "ROME": with_key_moments(STRONG_ROME),
    "R-ROME": with_key_moments(RROME(LAST, **AT_PROMPT)),
    "MEMIT": with_key_moments(STRONG_MEMIT),
    "MEMIT-with-memory": with_key_moments(replace(STRONG_MEMIT, memory=1.0)),
    "RECT": with_key_moments(STRONG_MEMIT, RECT),
    "PRUNE": with_key_moments(STRONG_MEMIT, PRUNE),
    "AlphaEdit": with_key_moments(replace(STRONG_ALPHAEDIT, relative=True)),
    "BLUE": with_key_moments(replace(STRONG_ALPHAEDIT, relative=True, modules=("model.layers.0.mlp.down_proj", *LAST)), BLUE),
    "NAS": with_key_moments(STRONG_MEMIT, NAS),
    "SPHERE": with_key_moments(STRONG_MEMIT, SPHERE),
    "NSE": with_key_moments(NSE(LAST, moment_weight=1.0, alpha=0.1, upper=1e9, relative=True, **AT_PROMPT)),
    "O-Edit": with_key_moments(STRONG_ROME, lambda inner: OEdit(inner, past_weight=0.5, knowledge_weight=0.5)),
    "O-Edit+": with_key_moments(STRONG_ROME, lambda inner: OEditPlus(inner, knowledge_rate=0.0)),
    "FT-L": lambda model: FTL(LAST, num_epochs=40, epsilon=1e-1, learning_rate=2e-2),
    "LocFT": lambda model: LocFT(("model.layers.1.mlp.up_proj",), num_epochs=40, learning_rate=1e-2),
    "LoRA": lambda model: LoRA(("model.layers.1.mlp.up_proj",), num_epochs=150, learning_rate=1e-2),
}
