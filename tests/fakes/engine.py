"""A replica over an engine in memory: no vLLM worker, no model, no Serve; the weights are those of the ledger's tiny model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.renderers import renderer_from_config
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.input_processor import InputProcessor

from errata.delta.accumulator import Accumulator
from errata.ledger import Ledger
from errata.model.matrices import MatrixSpec, ModelSpec
from serving.engine import generator, weight_engine
from serving.engine.generator import Generator, ServingOptions
from tests.unit.conftest import MATRICES


class _Inside(nn.Module):
    """A module that gives its input back, with a weight, as those that hold a matrix have."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, vector: torch.Tensor) -> torch.Tensor:
        return vector


class OneModule(nn.Module):
    """A model as vLLM runs it: `inside` reads each token's vector, and the vectors of some tokens make logits."""

    def __init__(self, num_in: int = 96, num_tokens: int = 10) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(num_tokens, num_in), nn.Linear(num_in, num_tokens)
        self.inside = _Inside()

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        found: torch.Tensor = self.inside(self.embedding(input_ids))
        return found

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(hidden)
        return found


class InMemoryDeltaEngine(weight_engine.DeltaEngine):
    """A weight-transfer engine that reloads nothing and records the names in `reloaded`."""

    def __init__(self, fingerprint: str) -> None:
        random = torch.Generator().manual_seed(0)
        base = {name: torch.randn(64, 96, generator=random).bfloat16() for name in MATRICES}
        self.accumulator = Accumulator(base, in_place=True)
        self.base_fingerprint, self.prepared, self.bank, self.hook = fingerprint, None, None, None
        self.state = weight_engine._State(0, fingerprint)
        self.reader = ThreadPoolExecutor(1)
        self.reloaded: list[set[str]] = []
        self.model_config, self.device = SimpleNamespace(enforce_eager=True), torch.device("cpu")
        self.parallel_config = SimpleNamespace(tensor_parallel_size=1)
        self.model = OneModule()
        self.targets = dict.fromkeys(MATRICES, self.model.inside)
        self.spec = ModelSpec(tuple(MatrixSpec(name, 96, 64) for name in MATRICES))
        self.embeddings = {"embedding": 96, "head": 96}

    def _reload(self, changed: set[str]) -> int:
        self.reloaded.append(changed)
        return 1

    def swap(self, update: dict[str, Any]) -> None:
        assert self.prepare(update) is None
        self.receive_weights(self.parse_update_info(update))

    @property
    def weights(self) -> list[torch.Tensor]:
        return [self.accumulator.weight(name) for name in MATRICES]


class InMemoryEngine:
    """vLLM's engine with one worker. `seen` has each call, the longest duration of a preparation, and whether a swap runs."""

    errored = False
    model_config: Any = SimpleNamespace(max_model_len=64, get_vocab_size=lambda: 100, get_inputs_embeds_size=lambda: 96)

    def __init__(self, replica: Generator) -> None:
        self.replica, self.worker = replica, weight_engine.WorkerExtension()
        self.worker.model_runner = SimpleNamespace(enable_prompt_embeds=False)
        self.seen: list[tuple[str, float | None, bool]] = []

    def _record(self, asked: str) -> None:
        readiness = self.replica._readiness
        self.seen.append((asked, readiness._preparing and readiness._preparing[1], readiness.is_paused))

    def read_requests(self, args: Any) -> None:
        """Take vLLM's own reader of requests, for its application; no request is answered."""
        self.vllm_config = AsyncEngineArgs.from_cli_args(args).create_engine_config()
        self.model_config, self.renderer = self.vllm_config.model_config, renderer_from_config(self.vllm_config)
        self.input_processor = InputProcessor(self.vllm_config, self.renderer)

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    def check_admission(self, _: int) -> None: ...

    async def init_weight_transfer_engine(self, request: Any) -> None:
        self.worker.weight_transfer_engine = InMemoryDeltaEngine(request.init_info["fingerprint"])

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        self._record(method)
        return [getattr(self.worker, method)(*args)]

    async def pause_generation(self, mode: str, clear_cache: bool) -> None:
        self._record("pause")

    async def start_weight_update(self) -> None: ...

    async def update_weights(self, request: Any) -> None:
        self._record("update")
        self.worker.weight_transfer_engine.update_weights(request.update_info)

    async def finish_weight_update(self, weight_version: str) -> None: ...

    async def resume_generation(self) -> None:
        self._record("resume")


@asynccontextmanager
async def started(ledger: Ledger, at: int = 0, *, is_known: bool = False, **options: Any) -> AsyncIterator[Generator]:
    """Start a replica as Serve does, while the ledger's head is version `at`; it does not watch the head.

    With `is_known` a broadcast of that head has reached it, so that only swaps take it further, and no request does.
    """
    replica, head = Generator.__new__(Generator), ledger.head  # As Serve makes it, because its constructor is a coroutine.
    served = {"model": ledger.base["model"], "ledger": str(ledger.directory), "served_name": "errata", **options}
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="r"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(generator, "attach_to_serve", lambda: None)
        patched.setattr(generator, "served_host", lambda: "127.0.0.1")
        patched.setattr(generator.serve, "get_replica_context", lambda: context)
        patched.setattr(generator, "WATCH_PERIOD_S", 3600.0)
        patched.setattr(AsyncLLM, "from_engine_args", lambda _: InMemoryEngine(replica))
        ledger.move_head(at)
        await replica.__init__(None, ServingOptions(**served))  # type: ignore[misc]
        if is_known:
            await replica.swap(ledger.head_at()[0])
        ledger.move_head(head)
        yield replica
        replica._watching.cancel()
