"""A replica: vLLM's engine with its own OpenAI application, kept at the ledger's head.

Three things run beside the requests and meet at `_swapping`: `swap`, called by the edit worker on all replicas; `_watch`,
which swaps by itself when the ledger's head stays ahead (a broadcast that was missed), and ends the process when the
engine has died, so that Serve replaces it at once; and `admit`, which holds new requests back while a swap runs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from errata.ledger import DELTA, Ledger, UnknownVersion, Version
from serving import gateway
from serving.stamp import Stamp
from serving.weight_engine import BACKEND, EXTENSION

logger = logging.getLogger("ray.serve")

WATCH_PERIOD_S = 0.2
# A broadcast normally comes within this time after the head has moved; later the replica helps itself.
REPAIR_AFTER_S = 0.5


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
        self.worker, self.options = worker, options
        self.replica = serve.get_replica_context().replica_id.unique_id
        self.version, self.fingerprint, self.epoch = 0, "", 0
        self.boot = uuid.uuid4().hex[:12]
        self._swapping = asyncio.Lock()
        self._changed = asyncio.Condition()
        self.ledger = await self._open_ledger()
        await self._start_engine()
        result = await self.swap(self.ledger.head)
        if "error" in result:
            raise RuntimeError(f"cannot reach the ledger's head: {result['error']}")
        self._watching = asyncio.create_task(self._watch())

    async def _open_ledger(self) -> Ledger:
        try:
            return Ledger.open(self.options.ledger)
        except FileNotFoundError:  # the worker makes it, on the first start only; it must not be needed on later ones
            await self.worker.ready.remote()
            return Ledger.open(self.options.ledger)

    async def _start_engine(self) -> None:
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
        app.middleware_stack = None  # vLLM's bootstrap has built it already; it is built again with what is added here
        gateway.install(app, self)
        app.add_middleware(Stamp, served=self)
        return app

    # -- swap ---------------------------------------------------------------------------------------------------------

    async def swap(self, version: int) -> dict[str, Any]:
        """Serve `version`; idempotent. What went wrong is in `error`, never raised: the other replicas' answers count.

        Only a failure inside the reload, after which the weights are undefined, ends the process.
        """
        # Shielded: a caller that dies in between must not leave a half-done swap.
        return await asyncio.shield(asyncio.create_task(self._swap_alone(version)))

    async def _swap_alone(self, version: int) -> dict[str, Any]:
        begin = time.perf_counter()
        async with self._swapping:
            sent: dict[str, Any] = {"bytes": 0, "dense_bytes": 0}
            try:
                if version != self.version:
                    sent = await self._swap(version)
            except (UnknownVersion, ValueError, OSError, EngineDeadError) as fault:
                sent["error"] = f"{type(fault).__name__}: {fault}"
        async with self._changed:
            self._changed.notify_all()
        ms = round((time.perf_counter() - begin) * 1e3, 2)
        return {"replica": self.replica, "version": self.version, "fingerprint": self.fingerprint, "ms": ms, **sent}

    async def _swap(self, version: int) -> dict[str, Any]:
        update = await self._prepared(version)
        is_whole = False
        try:
            await self.engine.pause_generation(mode=self.options.pause, clear_cache=self.options.pause == "wait")
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
        """An update that every worker has read and accepted, while generation goes on. Raises `ValueError` if none is."""
        faults: list[str] = []
        for update in self._updates(version):
            answers = await self.engine.collective_rpc("errata_prepare", args=(update,))
            faults = [fault for fault in answers if fault is not None]
            if not faults:
                return update
        raise ValueError("; ".join(faults))

    def _updates(self, version: int) -> list[dict[str, Any]]:
        """What to try: only the new delta where the version follows the served one, else all from the base model."""
        entry = self.ledger.version(version)
        common = {"parent": self.version, "version": version, "fingerprint": entry.fingerprint}
        updates = []
        if version and entry.parent == self.version:
            updates = [{**common, "reset": False, "files": [str(entry.directory / DELTA)]}]
        return [*updates, {**common, "reset": True, "files": [str(file) for file in self.ledger.files_to(version)]}]

    async def _watch(self) -> None:
        behind_since: float | None = None
        while True:
            await asyncio.sleep(WATCH_PERIOD_S)
            if self.engine.errored:
                logger.error("the engine has died; this replica ends")
                os._exit(1)
            head = self.ledger.head
            if head == self.version or self._swapping.locked():
                behind_since = None
                continue
            behind_since = behind_since or time.monotonic()
            if time.monotonic() - behind_since > REPAIR_AFTER_S:
                result = await self.swap(head)
                logger.warning("repaired from the ledger: %s", result)

    # -- requests -----------------------------------------------------------------------------------------------------

    async def admit(self, at_least: int) -> str:
        """See `stamp.Served`."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._swapping.locked() and self.version >= at_least)
        return f"{self.boot}-{self.epoch}"

    async def check_health(self) -> None:
        await self.engine.check_health()
        if self._watching.done():
            raise RuntimeError("the watch task has ended") from self._watching.exception()

    async def status(self) -> dict[str, Any]:
        (state, *_) = await self.engine.collective_rpc("errata_state")
        return {
            "replica": self.replica,
            "pid": os.getpid(),
            "version": self.version,
            "fingerprint": self.fingerprint,
            "intact": state["intact"],
            "engine_version": state["version"],
        }

    # -- what the gateway needs ---------------------------------------------------------------------------------------

    async def submit(self, edits: list[dict[str, Any]], wait: bool, key: str | None) -> list[dict[str, Any]]:
        return await self.worker.submit.remote(edits, wait, key)

    async def edit_status(self, id: str) -> dict[str, Any]:
        return await self.worker.edit_status.remote(id)

    async def rollback(self, version: int) -> dict[str, Any]:
        return await self.worker.rollback.remote(version)

    async def service_status(self) -> dict[str, Any]:
        """The worker's view of everything; this replica's own alone while the worker is being replaced."""
        own = {"head": self.ledger.head, "answered_by": await self.status()}
        try:
            async with asyncio.timeout(5):
                return own | await self.worker.status.remote()
        except (RayError, RayServeException, TimeoutError) as fault:
            return own | {"worker": {"error": f"{type(fault).__name__}"}}

    def versions(self) -> tuple[int, list[Version]]:
        return self.ledger.head, self.ledger.versions()

    def version_with_edits(self, number: int) -> Version:
        return self.ledger.version(number)
