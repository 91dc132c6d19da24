"""An engine of two ranks ends when its replica is killed: its core and both workers, which hold a GPU's memory elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.e2e.toy import make_checkpoint

pytestmark = [pytest.mark.e2e, pytest.mark.long]

ROOT = Path(__file__).parents[2]
TWO_RANKS = {"VLLM_CPU_OMP_THREADS_BIND": "0|1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
# A file, because vLLM's processes import the main module of the process that starts them.
REPLICA = """
import asyncio, sys
from serving.engine.generator import Generator, ServingOptions

async def serve() -> None:
    replica = Generator.__new__(Generator)
    replica.options = ServingOptions(sys.argv[1], "", "errata", max_model_len=64, tensor_parallel=2)
    await replica._start_engine()
    print("up", flush=True)
    await asyncio.sleep(3600)

if __name__ == "__main__":
    asyncio.run(serve())
"""


def test_no_process_of_an_engine_of_two_ranks_outlives_its_replica(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model")
    (tmp_path / "replica.py").write_text(REPLICA)
    environment = {**os.environ, **TWO_RANKS, "PYTHONPATH": f"{ROOT}/platform:{ROOT}"}
    with (tmp_path / "log").open("wb") as log:
        command = [sys.executable, str(tmp_path / "replica.py"), str(model)]
        replica = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT)
    engine: list[psutil.Process] = []
    try:
        assert replica.stdout is not None
        assert any(line == "up\n" for line in replica.stdout), (tmp_path / "log").read_text()[-4000:]
        engine = psutil.Process(replica.pid).children(recursive=True)
        large = [one for one in engine if one.memory_info().rss > 200 * 2**20]
        assert len(large) >= 3, "the core and two workers"
        replica.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(engine, timeout=20)
        assert alive == []
    finally:
        for one in engine:
            if one.is_running():
                one.kill()
        replica.kill()
        replica.wait()
