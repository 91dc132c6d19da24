"""A replica: vLLM's engine with its own OpenAI application, kept at the ledger's head.

Three things run beside the requests: `swap`, called by the edit worker on all replicas; `_watch`, which swaps by itself when
the ledger's head stays ahead (a broadcast that was missed), and ends the process when the engine has died, so that Serve
replaces it at once; and `admit`, which holds new requests back while the engine is paused.

A replica that cannot follow the head is out of rotation: first it turns requests away, then it fails its health check, and
Serve replaces it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

from prometheus_client import generate_latest
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.prometheus import get_prometheus_registry

from errata.access_keys import Keys, check_binding
from errata.history.diff import diff
from errata.ledger import DELTA, Ledger, LedgerDamaged, UnknownVersion, Version
from serving.api import routes
from serving.api.access import UNLISTED, Access, AccessLimits, role_for, served_host
from serving.api.version_stamp import OutOfRotation, RolledBack, VersionStamp
from serving.engine.checkpoint import check_architecture
from serving.engine.readiness import Readiness, max_prepare_s
from serving.engine.weight_engine import BACKEND, EXTENSION, UpdateFault
from serving.logs import attach_to_serve
from serving.metrics import ReplicaMetrics, merged
from serving.worker.edit_worker import Busy

logger = logging.getLogger("errata")

WATCH_PERIOD_S = 0.2
READING_PERIOD_S = 0.1  # how often the engine is asked whether it has read a long update
ENGINE_TIMEOUT_S = 2.0  # for what an idle engine tells within milliseconds


@dataclass(frozen=True)
class ServingOptions:
    """`pause`: what a swap does with requests in flight: `keep` freezes them, and they go on under the new weights;
    `wait` lets them end first, so that no answer spans two versions, and a long answer holds up the swap."""

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
    max_body_bytes: int = 2**20

    def vllm_arguments(self) -> list[str]:
        arguments = ["--model", self.model, "--served-model-name", self.served_name, "--dtype", self.dtype]
        arguments += ["--weight-transfer-config", f'{{"backend": "{BACKEND}"}}', "--worker-extension-cls", EXTENSION]
        arguments += ["--tensor-parallel-size", str(self.tensor_parallel), "--gpu-memory-utilization", str(self.gpu_memory)]
        if self.max_model_len is not None:
            arguments += ["--max-model-len", str(self.max_model_len)]
        return [*arguments, "--enforce-eager"] if self.enforce_eager else arguments


class Generator:
    """Serve's ingress; see the top of this file."""

    async def __init__(self, worker: DeploymentHandle, options: ServingOptions) -> None:  # type: ignore[misc]  # Serve awaits it
        attach_to_serve()
        self.worker, self.options = worker, options
        self.replica = serve.get_replica_context().replica_id.unique_id
        self.version, self.fingerprint, self.epoch = 0, "", 0
        self.boot = uuid.uuid4().hex[:12]
        self._swapping = asyncio.Lock()
        self._changed = asyncio.Condition()
        self._rotation = Readiness(options.pause)
        self._repairing: asyncio.Task[None] | None = None
        self._comparing = asyncio.Lock()
        self.metrics = ReplicaMetrics()
        self.keys = await self._keys()
        self.ledger = await self._open_ledger()
        await self._start_engine()
        result = await self.swap(self.ledger.head)
        if "error" in result:
            raise RuntimeError(f"cannot reach the ledger's head: {result['error']}")
        self._watching = asyncio.create_task(self._watch())

    async def _keys(self) -> Keys | None:
        """Raises `ValueError` if other machines can reach this one and nothing asks them for a key."""
        check_binding(await asyncio.to_thread(served_host), self.options.keys)
        return Keys.load(self.options.keys) if self.options.keys is not None else None

    async def _open_ledger(self) -> Ledger:
        try:
            return Ledger.open(self.options.ledger)
        except FileNotFoundError:  # the worker makes it, on the first start only; it must not be needed on later ones
            await self.worker.ready.remote()
            return Ledger.open(self.options.ledger)

    async def _start_engine(self) -> None:
        check_architecture(self.options.model)
        self.args = make_arg_parser(FlexibleArgumentParser()).parse_args(self.options.vllm_arguments())
        self.engine = AsyncLLM.from_engine_args(AsyncEngineArgs.from_cli_args(self.args))
        base = self.ledger.base
        init_info = {"model": self.options.model, "matrices": base["matrices"], "fingerprint": base["fingerprint"]}
        await self.engine.init_weight_transfer_engine(WeightTransferInitRequest(init_info))
        self.fingerprint = base["fingerprint"]

    async def __serve_build_asgi_app__(self) -> Any:
        tasks = await self.engine.get_supported_tasks()
        app = build_app(self.args, supported_tasks=tasks, model_config=self.engine.model_config)
        await init_app_state(self.engine, app.state, self.args, supported_tasks=tasks)
        app.state.server = SimpleNamespace()  # vLLM's error handler reads it
        app.title, app.router.routes[:] = "Errata", [route for route in app.router.routes if _is_listed(route)]
        app.middleware_stack = None  # vLLM's bootstrap has built it already; it is built again with what is added here
        routes.install(app, self)
        app.add_middleware(VersionStamp, served=self)
        app.add_middleware(Access, keys=self.keys, limits=AccessLimits(max_body_bytes=self.options.max_body_bytes))
        return app

    # -- swap ---------------------------------------------------------------------------------------------------------

    async def swap(self, version: int | None = None) -> dict[str, Any]:
        """Serve `version`, or what is the head once it is this swap's turn; idempotent.

        What went wrong is in `error`, never raised: the other replicas' answers count.

        Only a failure inside the reload, after which the weights are undefined, ends the process.
        """
        # Shielded: a caller that dies in between must not leave a half-done swap.
        return await asyncio.shield(asyncio.create_task(self._swap_alone(version)))

    async def _swap_alone(self, version: int | None) -> dict[str, Any]:
        begin = time.perf_counter()
        async with self._swapping:
            sent: dict[str, Any] = {"bytes": 0, "dense_bytes": 0}
            try:
                version = self.ledger.head if version is None else version
                if (version, self.ledger.version(version).fingerprint) != (self.version, self.fingerprint):
                    sent = await self._swap(version)
            except (UnknownVersion, LedgerDamaged, ValueError, OSError, EngineDeadError) as fault:
                # What is wrong with the files is wrong for good; the others, a disk's among them, may pass.
                sent |= {"error": f"{type(fault).__name__}: {fault}", "refused": isinstance(fault, ValueError)}
            finally:
                self._rotation.swap_ends()
        async with self._changed:
            self._changed.notify_all()
        ms = round((time.perf_counter() - begin) * 1e3, 2)
        return {"replica": self.replica, "version": self.version, "fingerprint": self.fingerprint, "ms": ms, **sent}

    async def _swap(self, version: int) -> dict[str, Any]:
        update = await self._prepared(version)
        self._rotation.swap_begins()
        is_whole = False
        try:
            # With the cache cleared, vLLM computes the keys and values of what goes on again, under the new weights.
            await self.engine.pause_generation(mode=self.options.pause, clear_cache=True)
            await self.engine.start_weight_update()
            await self.engine.update_weights(WeightTransferUpdateRequest(update))
            await self.engine.finish_weight_update(weight_version=str(version))
            # Before generation goes on: an answer must not end under new weights with the old version's stamp.
            self.version, self.fingerprint, self.epoch = version, update["fingerprint"], self.epoch + 1
            is_whole = True
        finally:
            if not is_whole:
                logger.error("the reload to version %d failed; this replica ends", version)
                os._exit(1)
            await self.engine.resume_generation()
        (state, *_) = await self.engine.collective_rpc("errata_state")
        num_bytes = sum(Path(file).stat().st_size for file in update["files"])
        return {"bytes": num_bytes, "dense_bytes": state["dense_bytes"], "reset": update["reset"]}

    async def _prepared(self, version: int) -> dict[str, Any]:
        """An update that every worker has read and accepted; the engine answers by the version it has meanwhile.

        Raises `ValueError` if none is, `OSError` if one could not be read.
        """
        faults: list[UpdateFault] = []
        for update in self._updates(version):
            read = list(map(self.ledger.version, self.ledger.chain(version) if update["reset"] else [version]))
            max_s = max_prepare_s(sum(len(one.ranks) for one in read), sum(one.num_bytes for one in read))
            self._rotation.prepare_begins(max_s)
            answers = await self.engine.collective_rpc("errata_prepare", args=(update,))
            while not all(answer["is_read"] for answer in answers):
                await asyncio.sleep(READING_PERIOD_S)
                answers = await self.engine.collective_rpc("errata_reading")
            faults = [answer["fault"] for answer in answers if answer["fault"] is not None]
            if not faults:
                return update
        is_disks = any(fault["kind"] == "io" for fault in faults)
        raise (OSError if is_disks else ValueError)("; ".join(fault["message"] for fault in faults))

    def _updates(self, version: int) -> Iterator[dict[str, Any]]:
        """What to try: only the new delta where the version follows the served one, else all from the base model, by the
        snapshots, which are copies, or without them."""
        entry = self.ledger.version(version)
        common = {"parent": self.version, "version": version, "fingerprint": entry.fingerprint}
        if version and entry.parent == self.version:
            yield {**common, "reset": False, "files": [str(entry.directory / DELTA)]}
        for snapshots in (True, False):
            yield {**common, "reset": True, "files": [str(file) for file in self.ledger.files_to(version, snapshots)]}

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_PERIOD_S)
            if self.engine.errored:
                logger.error("the engine has died; this replica ends")
                os._exit(1)
            try:
                head = self.ledger.head
            except (OSError, ValueError) as fault:  # the folder cannot be read at the moment
                logger.warning("the ledger's head cannot be read: %s", fault)
                continue
            self._rotation.look(head, self.version, self.epoch)
            if self._rotation.is_out:
                async with self._changed:  # who waits is better served by another replica
                    self._changed.notify_all()
            if self._rotation.should_repair and (self._repairing is None or self._repairing.done()):
                self._repairing = asyncio.create_task(self._repair())

    async def _repair(self) -> None:
        logger.warning("repaired from the ledger: %s", await self.swap())

    # -- requests -----------------------------------------------------------------------------------------------------

    async def admit(self, at_least: int) -> str:
        """See `stamp.Served`."""
        if self.ledger.head < at_least <= self.ledger.newest:
            raise RolledBack(at_least, self.ledger.head)
        async with self._changed:
            await self._changed.wait_for(lambda: self._rotation.is_out or self._serves(at_least))
        if self._rotation.is_out:
            raise OutOfRotation(self.version, self.ledger.head)
        return f"{self.boot}-{self.epoch}"

    def _serves(self, at_least: int) -> bool:
        return not self._rotation.is_paused and self.version >= at_least

    async def check_health(self) -> None:
        await self.engine.check_health()
        if self._watching.done():
            raise RuntimeError("the watch task has ended") from self._watching.exception()
        if (fault := self._rotation.fault()) is not None:
            raise RuntimeError(f"version {self.version} is served: {fault}")

    async def exposition(self) -> tuple[str, int, str]:
        """This replica's name, version, and its metrics and vLLM's in Prometheus's form."""
        self.metrics.serves(self.version, not self._rotation.is_out)
        return self.replica, self.version, self.metrics.exposition() + generate_latest(get_prometheus_registry()).decode()

    async def status(self) -> dict[str, Any]:
        """`intact` and `engine_version` are None where the engine does not answer."""
        own = {"replica": self.replica, "pid": os.getpid(), "version": self.version, "fingerprint": self.fingerprint}
        try:
            async with asyncio.timeout(ENGINE_TIMEOUT_S):
                (state, *_) = await self.engine.collective_rpc("errata_state")
        except (TimeoutError, EngineDeadError):
            state = {"intact": None, "version": None}
        return own | {"intact": state["intact"], "engine_version": state["version"], "in_rotation": not self._rotation.is_out}

    # -- what the gateway needs ---------------------------------------------------------------------------------------

    async def submit(self, edits: list[dict[str, Any]], wait: bool, key: str | None, by: str | None) -> list[dict[str, Any]]:
        return await self.worker.submit.remote(edits, wait, key, by)

    async def edits(self, state: str | None, limit: int, before: int | None) -> dict[str, Any]:
        return await self.worker.edits.remote(state, limit, before)

    async def edit_status(self, id: str) -> dict[str, Any]:
        return await self.worker.edit_status.remote(id)

    def edit_events(self, id: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        return _streamed(self.worker.options(stream=True).edit_events, id)

    def events(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        return _streamed(self.worker.options(stream=True).events)

    async def rollback(self, version: int, by: str | None) -> dict[str, Any]:
        return await self.worker.rollback.remote(version, by)

    async def revert(self, edits: list[str], versions: list[int], mode: str, by: str | None) -> dict[str, Any]:
        return await self.worker.revert.remote(edits, versions, mode, by)

    async def blame(self, prompt: str, max_tokens: int) -> dict[str, Any]:
        return await self.worker.blame.remote(prompt, max_tokens)

    async def diff(self, low: int, high: int) -> dict[str, Any]:
        """One at a time, since it reads every version in between. Raises `Busy`."""
        if self._comparing.locked():
            raise Busy("other versions are being compared")
        async with self._comparing:
            return await asyncio.to_thread(diff, self.ledger, low, high)

    async def unready(self) -> list[str]:
        """Why this service is not ready; empty if it is."""
        reasons = []
        if self.version != self.ledger.head:
            reasons.append(f"this replica serves version {self.version}, the head is {self.ledger.head}")
        try:
            async with asyncio.timeout(2):
                stalled = await self.worker.ready.remote()
        except (RayError, RayServeException, TimeoutError) as fault:
            stalled = f"it does not answer: {type(fault).__name__}"
        return [*reasons, f"the edit worker: {stalled}"] if stalled else reasons

    async def all_metrics(self) -> str:
        """Of all replicas and the worker; of this replica alone while the worker is being replaced."""
        try:
            async with asyncio.timeout(10):
                return await asyncio.to_thread(merged, await self.worker.expositions.remote())
        except (RayError, RayServeException, TimeoutError):
            replica, _, text = await self.exposition()
            return await asyncio.to_thread(merged, {replica: text})

    async def service_status(self) -> dict[str, Any]:
        """The worker's view of everything; this replica's own alone while the worker is being replaced."""
        own = {"head": self.ledger.head, "answered_by": await self.status()}
        try:
            async with asyncio.timeout(10):
                return own | await self.worker.status.remote()
        except (RayError, RayServeException, TimeoutError) as fault:
            return own | {"worker": {"error": f"{type(fault).__name__}"}}

    def versions(self) -> tuple[int, list[Version]]:
        return self.ledger.head, self.ledger.versions()

    def version_with_edits(self, number: int) -> Version:
        return self.ledger.version(number)


def _is_listed(route: Any) -> bool:
    """vLLM has more routes than anybody has thought about here; those that no role is named for are not served, and its
    metrics are in ours."""
    return getattr(route, "path", "") != "/metrics" and any(
        role_for(method, route.path) != UNLISTED for method in getattr(route, "methods", None) or ()
    )


async def _streamed(method: DeploymentHandle, *arguments: Any) -> AsyncIterator[Any]:
    """What another deployment yields; it is told when nobody listens any more."""
    answers = cast(DeploymentResponseGenerator[Any], method.remote(*arguments))
    try:
        async for answer in answers:
            yield answer
    finally:
        answers.cancel()
