"""Inspector of a copy of a model: it measures beside the inspector of the model itself, in another thread."""

from __future__ import annotations

import copy

from errata.guard.earlier_edits import EarlierEdits
from errata.guard.inspector import Inspector
from errata.guard.probe_answers import AnswerPasses
from errata.model.language_model import LanguageModel
from errata.model.prefix_cache import PrefixCache


def inspector_of_copy(inspector: Inspector, model: LanguageModel) -> Inspector:
    """Return an inspector of a copy of the model at the same version; what the version answers stays known.

    The unedited model's answers and norms are shared, because nothing changes them.
    """
    other = copy.copy(inspector)
    other.model, other.prefix_cache = model, PrefixCache(model.module, inspector.spec.names)
    other.passes = AnswerPasses(model.module)
    other.passes.is_pointwise = inspector.passes.is_pointwise
    other.memory = inspector.memory.of_copy(model)
    other.earlier = EarlierEdits(other, inspector.earlier.size, inspector.seed)
    known = inspector.earlier.held
    other.at_version(held.edit for held in known)
    for held in other.earlier.held:
        before = known.by_edit[held.edit]
        held.written, held.is_answered, held.says = before.written, before.is_answered, before.says
    return other
