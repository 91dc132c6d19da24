"""The replica: vLLM's engine with its own OpenAI application, kept at the ledger's head.

Three things run beside the requests. `swap` is called by the edit worker on all replicas. `_watch` swaps when the ledger's
head stays ahead (a missed broadcast), and ends the process when the engine has died, so that Serve replaces it immediately.
`admit` holds new requests back while the engine is paused.

A replica that cannot follow the head is out of rotation: first it refuses requests, then it fails its health check, and Serve
replaces it.

vLLM is imported by the functions that use it: its import takes seconds, and the process that deploys this class needs none
of it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from prometheus_client import generate_latest
from ray import serve
from ray.serve.handle import DeploymentHandle

from errata.access_keys import Keys, check_binding
from errata.edit_memory.bank import EMBEDDED, PER_TOKEN, Kind
from errata.edit_memory.embedding_reader import EmbeddingSizes
from errata.ledger import Ledger, LedgerDamaged, UnknownVersion
from errata.local.service_limits import ServiceLimits
from serving.api import routes
from serving.api.access import UNLISTED, Access, role_for, served_host
from serving.api.version_stamp import NotQueued, OutOfRotation, RolledBack, VersionStamp
from serving.console import routes as console
from serving.engine.backend import ServiceBackend
from serving.engine.checkpoint import check_architecture
from serving.engine.edit_memory.served_memory import ServedMemory
from serving.engine.fence import HeadFence
from serving.engine.highest_version import HighestVersion
from serving.engine.preparation import Preparation
from serving.engine.readiness import Readiness
from serving.engine.replica_watch import name_this_replica
from serving.engine.served_lineage import ServedLineage
from serving.logs import attach_to_serve
from serving.metrics import ReplicaMetrics

logger = logging.getLogger("errata")

WATCH_PERIOD_S = 0.2
NO_HOST = "none.invalid"  # A name that no host has (RFC 2606).
MAX_VERSIONS_KEPT = 256  # Of the ledger's versions in memory, with their edits.
ENGINE_TIMEOUT_S = 2.0  # An idle engine answers within milliseconds.


@dataclass(frozen=True)
class ServingOptions:
    """Settings of a replica.

    `pause` is the treatment of running requests during a swap: `keep` freezes them, and they continue under the new weights;
    `wait` lets them end first, so that no answer spans two versions and a long answer delays the swap. `images` may be sent
    with a request, as `data:` addresses: the engine fetches no address, which might be one of this machine's network.
    `threads` are those of the engine while edits are made, and at other times. `max_num_batched_tokens` is vLLM's: the tokens
    of a step. `memory` is the kind of the memory that the editor writes, None for one that changes weights.
    """

    model: str
    ledger: str
    served_name: str
    dtype: str = "float32"
    max_model_len: int | None = None
    tensor_parallel: int = 1
    gpu_memory: float = 0.9
    enforce_eager: bool = True
    pause: Literal["keep", "wait"] = "keep"
    keys: str | None = None
    threads: tuple[int, int] = (1, 1)
    max_num_batched_tokens: int | None = None
    memory: Kind | None = None
    images: int = 0
    limits: ServiceLimits = field(default_factory=ServiceLimits)

    def vllm_arguments(self) -> list[str]:
        from serving.engine.edit_memory.said_answer import PROCESSOR
        from serving.engine.weight_engine import BACKEND, EXTENSION

        arguments = ["--model", self.model, "--served-model-name", self.served_name, "--dtype", self.dtype]
        arguments += ["--weight-transfer-config", f'{{"backend": "{BACKEND}"}}', "--worker-extension-cls", EXTENSION]
        arguments += ["--tensor-parallel-size", str(self.tensor_parallel), "--gpu-memory-utilization", str(self.gpu_memory)]
        arguments += ["--max-logprobs", str(self.limits.max_logprobs)]
        for name in ("max_model_len", "max_num_batched_tokens"):
            if (value := getattr(self, name)) is not None:
                arguments += [f"--{name.replace('_', '-')}", str(value)]
        if self.memory == "answer":
            arguments += ["--logits-processors", PROCESSOR]
        arguments += ["--allowed-media-domains", NO_HOST]  # An empty list would allow all.
        arguments += ["--limit-mm-per-prompt", f'{{"image": {self.images}, "video": 0, "audio": 0}}']
        return [*arguments, "--enforce-eager"] if self.enforce_eager else arguments


class Generator:
    """Serve's ingress deployment, one engine each; `epoch` counts the swaps and `boot` names this process."""

    async def __init__(self, worker: DeploymentHandle, options: ServingOptions) -> None:  # type: ignore[misc]  # Serve awaits it
        attach_to_serve()
        self.worker, self.options = worker, options
        self._highest_version = HighestVersion(worker)
        self.replica = serve.get_replica_context().replica_id.unique_id
        self.version, self.fingerprint, self.epoch, self._weights_epoch = 0, "", 0, 0
        self.running_epoch = 0
        self.boot = uuid.uuid4().hex[:12]
        self._swapping = asyncio.Lock()
        self._changed = asyncio.Condition()
        self._readiness = Readiness(options.pause)
        self._repairing: asyncio.Task[None] | None = None
        self._is_known = False  # To the worker, as its first broadcast shows.
        self.metrics = ReplicaMetrics()
        self.keys = await self._keys()
        await asyncio.to_thread(check_architecture, options.model)
        await self._start_engine()
        self.ledger = await self._open_ledger()  # Only now: on the first start the worker makes it meanwhile.
        await self._start_weight_transfer()
        self._fence, self._lineage = HeadFence(self.ledger), ServedLineage(self.ledger)
        self._preparation = Preparation(self.engine, self.ledger, self._readiness)
        self._memory = await self._started_memory()
        result = await self.swap()
        if "error" in result:
            raise RuntimeError(f"cannot reach the ledger's head: {result['error']}")
        self._watching = asyncio.create_task(self._watch())

    async def _keys(self) -> Keys | None:
        """Load the access keys. Raises `ValueError` if other machines can reach this one and no keys are configured."""
        check_binding(await asyncio.to_thread(served_host), self.options.keys)
        return Keys.load(self.options.keys) if self.options.keys is not None else None

    async def _open_ledger(self) -> Ledger:
        """Open the ledger, and on the first start wait for the worker to create it. Later starts work without the worker."""
        worker: asyncio.Task[Any] | None = None
        while True:
            has_started = worker is not None and worker.done()  # It answers once it has started, which is after the creation.
            try:
                return Ledger.open(self.options.ledger, max_kept=MAX_VERSIONS_KEPT)
            except FileNotFoundError:
                worker = worker or asyncio.ensure_future(_answered(self.worker.ready.remote()))
                if has_started:
                    worker.result()  # The worker's own fault, if it could not start, says more.
                    raise
                await asyncio.wait([worker], timeout=WATCH_PERIOD_S)

    async def _start_engine(self) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
        from vllm.utils.argparse_utils import FlexibleArgumentParser
        from vllm.v1.engine.async_llm import AsyncLLM

        name_this_replica()
        self.args = make_arg_parser(FlexibleArgumentParser()).parse_args(self.options.vllm_arguments())
        self.engine = AsyncLLM.from_engine_args(AsyncEngineArgs.from_cli_args(self.args))

    async def _start_weight_transfer(self) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        base = self.ledger.base
        init_info = {"model": self.options.model, "matrices": base["matrices"], "fingerprint": base["fingerprint"]}
        await self.engine.init_weight_transfer_engine(WeightTransferInitRequest(init_info))
        self.fingerprint = base["fingerprint"]

    async def _started_memory(self) -> ServedMemory:
        config, kind = self.engine.model_config, self.options.memory
        sizes = EmbeddingSizes(config.get_vocab_size(), config.get_inputs_embeds_size(), config.max_model_len)
        memory = ServedMemory(self.options.model, sizes, kind)
        if kind is not None and kind not in PER_TOKEN:
            await asyncio.to_thread(memory.warm)
        if kind in EMBEDDED:
            await self.engine.collective_rpc("errata_read_embeddings", args=(True,))
        elif kind in PER_TOKEN:
            await self.engine.collective_rpc("errata_note_fired")
        return memory

    async def __serve_build_asgi_app__(self) -> Any:
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.app import build_app

        from serving.engine.edit_memory.request_hook import HookedEngine

        tasks = await self.engine.get_supported_tasks()
        app = build_app(self.args, supported_tasks=tasks, model_config=self.engine.model_config)
        # An `EngineClient` by delegation, which has no type.
        hook: Any = HookedEngine(self.engine, lambda: self._memory.now, self.metrics)
        await init_app_state(hook, app.state, self.args, supported_tasks=tasks)
        app.state.server = SimpleNamespace()  # vLLM's error handler reads it.
        self._app = app
        app.title, app.router.routes[:] = "Errata", [route for route in app.router.routes if _is_listed(route)]
        app.middleware_stack = None  # vLLM has built it already; it is built again with the middlewares below.
        limits = self.options.limits
        routes.install(app, ServiceBackend(self.worker, self.ledger, self, limits), limits)
        console.install(app)
        app.add_middleware(VersionStamp, served=self)
        app.add_middleware(Access, keys=self.keys, limits=limits, on_refused=self.metrics.refused)
        return app

    # -- swap ---------------------------------------------------------------------------------------------------------

    async def swap(self, epoch: int = 0) -> dict[str, Any]:
        """Serve the head at the time when this swap's turn comes, which is that of `epoch` or a newer one; idempotent.

        A fault is returned in `error` and never raised, because the answers of all replicas are compared. Only a failure inside
        the reload, after which the weights are undefined, ends the process.
        """
        self._is_known |= epoch > 0
        # Shielded, because a caller that dies in between must not leave a half-done swap.
        return await asyncio.shield(asyncio.create_task(self._swap_alone(epoch)))

    async def _swap_alone(self, epoch: int) -> dict[str, Any]:
        from vllm.v1.engine.exceptions import EngineDeadError

        begin = time.perf_counter()
        async with self._swapping:
            sent: dict[str, Any] = {"bytes": 0, "dense_bytes": 0}
            try:
                version = self._fence.target(epoch)
                if (version, self.ledger.fingerprint_on_disk(version)) != (self.version, self.fingerprint):
                    sent = await self._swap(version)
            except (UnknownVersion, LedgerDamaged, ValueError, OSError, EngineDeadError) as fault:
                # A fault of the files is permanent; other faults, such as a disk's, may pass.
                sent |= {"error": f"{type(fault).__name__}: {fault}", "refused": isinstance(fault, ValueError)}
            finally:
                self._readiness.swap_ends()
        async with self._changed:
            self._changed.notify_all()
        ms = round((time.perf_counter() - begin) * 1e3, 2)
        return {"replica": self.replica, "version": self.version, "fingerprint": self.fingerprint, "ms": ms, **sent}

    async def _swap(self, version: int) -> dict[str, Any]:
        accepted = await self._preparation.accepted(self.version, version)
        update, memory = accepted.update, await self._memory.prepare(accepted.update)
        ancestry = await self._lineage.prepare(version)
        is_whole = False
        try:
            if accepted.changes_weights:
                state = await self._reloaded(update)
                self._weights_epoch += 1
            else:  # The engine goes on: its weights stay, and with them its cache.
                state = of_all_ranks(await self.engine.collective_rpc("errata_follow", args=(update,)))
            if not state["intact"] or state["version"] != version:
                raise RuntimeError("a worker of the engine did not reload")
            # Before generation resumes: an answer must not end under new weights with the old version's stamp.
            self.version, self.fingerprint, self.epoch = version, update["fingerprint"], self.epoch + 1
            self.running_epoch += accepted.changes_weights or self.options.memory in PER_TOKEN
            self._memory.serves(memory)
            self._lineage.serves(ancestry)
            is_whole = True
        finally:
            if not is_whole:
                logger.error("the swap to version %d failed; this replica ends", version)
                os._exit(1)
            if accepted.changes_weights:
                await self.engine.resume_generation()
        num_bytes = sum(Path(file).stat().st_size for file in update["files"])
        return {"bytes": num_bytes, "dense_bytes": state["dense_bytes"], "reset": update["reset"]}

    async def _reloaded(self, update: dict[str, Any]) -> dict[str, Any]:
        """Pause the engine and reload its weights; returns the state of all ranks."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        self._readiness.swap_begins()
        # With the cache cleared, vLLM recomputes the keys and values of running requests under the new weights.
        await self.engine.pause_generation(mode=self.options.pause, clear_cache=True)
        await self.engine.start_weight_update()
        await self.engine.update_weights(WeightTransferUpdateRequest(update))
        await self.engine.finish_weight_update(weight_version=str(update["version"]))
        return of_all_ranks(await self.engine.collective_rpc("errata_state"))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_PERIOD_S)
            if self.engine.errored:
                logger.error("the engine has died; this replica ends")
                os._exit(1)
            try:
                head = self.ledger.head
                fingerprint = self.ledger.fingerprint_on_disk(head)
            except (OSError, ValueError, UnknownVersion, LedgerDamaged) as fault:  # The folder cannot be read at the moment.
                logger.warning("the ledger's head cannot be read: %s", fault)
                continue
            self._readiness.look((head, fingerprint), (self.version, self.fingerprint), self.epoch)
            if self._readiness.is_out:
                async with self._changed:  # Waiting requests are refused, so that another replica answers them.
                    self._changed.notify_all()
            if self._readiness.should_repair and (self._repairing is None or self._repairing.done()):
                self._repairing = asyncio.create_task(self._repair())

    async def _repair(self) -> None:
        logger.warning("repaired from the ledger: %s", await self.swap())

    # -- requests -----------------------------------------------------------------------------------------------------

    async def admit(self, at_least: int) -> str:
        """Wait until a request may start; see `serving.api.version_stamp.Served`."""
        if at_least >= self.ledger.next_number:
            highest = await self._highest_version()
            if highest is not None and at_least > highest:
                raise NotQueued(at_least, highest)
        # The worker may have acknowledged the head without having asked this new replica for it.
        if not self._is_known and self.ledger.head != self.version and "error" in await self.swap():
            raise OutOfRotation(self.version, self.ledger.head)
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._readiness.is_out or self._may_start(at_least))
            if self._readiness.is_out:
                raise OutOfRotation(self.version, self.ledger.head)
            if self._lineage.has(at_least):
                return self._salt
            version = self.version
            if not await self._lineage.has_again(at_least) and self.version == version:
                raise RolledBack(at_least, version)

    @property
    def _salt(self) -> str:
        """The cache salt that only this state of the weights has."""
        return f"{self.boot}-{self._weights_epoch}"

    def _may_start(self, at_least: int) -> bool:
        return not self._readiness.is_paused and self._lineage.is_decided(at_least)

    async def answer(self, asked: list[dict[str, Any]]) -> dict[str, Any]:
        """Answer bodies of completions or chats as the OpenAI routes do, with the version that gave all answers.

        `version` is None if it changed meanwhile, or if a request was refused.
        """
        from serving.engine.answers import answered

        epoch, version = self.epoch, self.version
        bodies = [{**body, "cache_salt": self._salt} for body in asked]
        try:
            texts = await asyncio.gather(*(answered(self._app.state, self.options.served_name, body) for body in bodies))
        except ValueError as refused:
            logger.warning("a sample of edits was not answered: %s", type(refused).__name__)
            return {"version": None, "texts": []}
        return {"version": version if epoch == self.epoch else None, "texts": texts}

    async def share_cores(self, is_editing: bool) -> int:
        """Leave the editor its cores while it edits, and compute with all of them otherwise; returns the threads in use."""
        while_editing, otherwise = self.options.threads
        (count, *_) = await self.engine.collective_rpc("errata_threads", args=(while_editing if is_editing else otherwise,))
        return int(count)

    async def check_health(self) -> None:
        await self.engine.check_health()
        if self._watching.done():
            raise RuntimeError("the watch task has ended") from self._watching.exception()
        if (fault := self._readiness.fault()) is not None:
            raise RuntimeError(f"version {self.version} is served: {fault}")

    async def exposition(self) -> tuple[str, int, str]:
        """Return the replica's name, its version, and its metrics with vLLM's as a Prometheus exposition."""
        from vllm.v1.metrics.prometheus import get_prometheus_registry

        self.metrics.serves(self.version, not self._readiness.is_out, self._memory.now.num_records)
        return self.replica, self.version, self.metrics.exposition() + generate_latest(get_prometheus_registry()).decode()

    async def status(self) -> dict[str, Any]:
        """Return the replica's state; `intact` and `engine_version` are None if the engine does not answer."""
        from vllm.v1.engine.exceptions import EngineDeadError

        own = {"replica": self.replica, "pid": os.getpid(), "version": self.version, "fingerprint": self.fingerprint}
        # Of the same moment as the version: a swap may run while the engine is asked.
        memory = {"kind": self._memory.now.kind, "records": self._memory.now.num_records}
        try:
            async with asyncio.timeout(ENGINE_TIMEOUT_S):
                state = of_all_ranks(await self.engine.collective_rpc("errata_state"))
        except (TimeoutError, EngineDeadError):
            state = {"intact": None, "version": None}
        own |= {"intact": state["intact"], "engine_version": state["version"], "in_rotation": not self._readiness.is_out}
        return own | {"memory": memory}


def of_all_ranks(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Combine the states of all ranks of an engine: `version` is None unless all have the same."""
    versions = {(state["version"], state["fingerprint"]) for state in states}
    intact = all(state["intact"] for state in states)
    version = states[0]["version"] if len(versions) == 1 else None
    return {"intact": intact, "version": version, "dense_bytes": max(state["dense_bytes"] for state in states)}


async def _answered(response: Awaitable[Any]) -> Any:
    return await response


def _is_listed(route: Any) -> bool:
    """Decide whether a route of vLLM's is served: only those that a role is named for; its metrics are part of ours."""
    return getattr(route, "path", "") != "/metrics" and any(
        role_for(method, route.path) != UNLISTED for method in getattr(route, "methods", None) or ()
    )
