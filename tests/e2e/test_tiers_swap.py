"""Two tiers through vLLM: a replica answers from the memory, then by the weights, and goes to any of these versions.

One replica without Serve, over the toy model and the ledger of a live model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from errata.edit import Edit
from errata.editors.tiers import Tiers
from errata.guard.inspector_copy import inspector_of_copy
from errata.history.consolidation import consolidate, published
from serving.engine import generator
from serving.engine.generator import Generator, ServingOptions
from serving.worker.live_model import LiveModel, LiveModelOptions
from tests.e2e.test_served_memory import Replica
from tests.e2e.toy import MAX_TOKENS, WORLD, make_checkpoint

pytestmark = pytest.mark.e2e
A, B, C = (Edit(e.prompt, e.target, e.subject, id=f"e{i}") for i, e in enumerate(WORLD.edits("test", 30)) if i in (0, 5, 10))
OTHER = replace(A, target=B.target, id="other")


def moved(live: LiveModel, *edits: Edit) -> int:
    """Let the weights learn edits of the memory; returns the version."""
    assert isinstance(live.editor, Tiers)
    inspector = inspector_of_copy(live.inspector, live.copied()[1])
    made = consolidate(live.editor, edits, live.state, inspector, live.version)
    candidate = published(made, live.editor, live.state, live.inspector, live.ledger, live.version)
    assert candidate is not None
    return live.append(candidate).number


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> LiveModel:
    """Make the ledger: 1 memory, 2 weights of A and B, 3 a correction of A, 4 the weights of it, 5 without B."""
    folder = tmp_path_factory.mktemp("tiers")
    model, guard = str(make_checkpoint(folder / "model")), {"change.refuse": "1e9", "growth.refuse": "1e9"}
    live = LiveModel(LiveModelOptions(model, str(folder / "ledger"), "tests.e2e.toy:Ending", guard=guard, memory="answer"))
    live.append(live.make((A, B, C)))
    assert moved(live, A, B) == 2
    live.append(live.make((OTHER,)))
    assert moved(live, OTHER) == 4
    assert live.append(live.revert(["e5"], [])).number == 5
    return live


@pytest.fixture(scope="module")
def replica(live: LiveModel) -> Iterator[Replica]:
    def end(code: int) -> None:
        raise RuntimeError("the replica ended")

    with pytest.MonkeyPatch.context() as patched, asyncio.Runner() as runner:
        patched.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patched.setattr(generator, "attach_to_serve", lambda: None)
        patched.setattr(generator, "served_host", lambda: "127.0.0.1")
        context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="r"))
        patched.setattr(generator.serve, "get_replica_context", lambda: context)
        patched.setattr(generator, "WATCH_PERIOD_S", 3600.0)
        patched.setattr(generator.os, "_exit", end)
        paths = live.options.model, str(Path(live.options.ledger))
        options = ServingOptions(*paths, "errata", max_model_len=MAX_TOKENS, memory="answer")
        made = Generator.__new__(Generator)  # As Serve makes it, because its constructor is a coroutine.
        runner.run(made.__init__(None, options))  # type: ignore[misc, arg-type]
        made._is_known = True
        yield Replica(runner, made, runner.run(made.__serve_build_asgi_app__()))
        made._watching.cancel()
        made.engine.shutdown()


def test_a_replica_answers_by_both_tiers_of_each_version(live: LiveModel, replica: Replica) -> None:
    """The right answers, and which of them a record of the memory gave, over every way from one version to another."""
    assert replica.generator.version == 5, "a replica that starts late reaches weights and memory together"
    expected = {
        1: ([A.target, B.target, C.target], ["e0", "e5", "e10"]),
        2: ([A.target, B.target, C.target], ["", "", "e10"]),
        3: ([OTHER.target, B.target, C.target], ["other", "", "e10"]),
        4: ([OTHER.target, B.target, C.target], ["", "", "e10"]),
        5: ([OTHER.target, None, C.target], ["", "", "e10"]),
    }
    for version in (5, 1, 2, 3, 4, 1, 4, 5):
        live.ledger.move_head(version)
        answer = replica.runner.run(replica.generator.swap())
        assert answer.get("error") is None and answer["version"] == version
        assert answer["fingerprint"] == live.ledger.version(version).fingerprint
        answers = replica.answers([edit.prompt for edit in (A, B, C)], max_tokens=4)
        texts, named = expected[version]
        said = [one.json()["choices"][0]["text"].strip() for one in answers]
        assert [text for text, wanted in zip(said, texts, strict=True) if wanted] == [text for text in texts if text], version
        assert version != 5 or said[1] != B.target
        assert [one.headers.get("X-Errata-Edit", "").partition(";")[0] for one in answers] == named, version
