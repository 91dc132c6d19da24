"""Description of the machine, and the peak memory of a block of code."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path
from typing import Any

import torch


def hardware() -> dict[str, Any]:
    """Describe the machine and its load. A load above 0 before the start comes from other processes."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "num_cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "num_threads": torch.get_num_threads(),
        "load_at_start": round(os.getloadavg()[0], 2),
    }


class PeakMemory:
    """Peak memory inside a block: `total_bytes`, and `num_bytes` above the start; None if the system does not tell.

    On GPUs, the sum of the peaks of torch's allocators. Otherwise the resident memory as Linux counts it, which includes
    LAPACK's workspaces, unlike torch's profiler. Free memory of the allocator is first returned to the system, so the block
    runs slower.
    """

    def __init__(self, *devices: torch.device) -> None:
        self._gpus = [device for device in devices if device.type == "cuda"]
        self.num_bytes: int | None = None
        self.total_bytes: int | None = None

    def __enter__(self) -> PeakMemory:
        self._before: int | None = None
        if self._gpus:
            for gpu in self._gpus:
                torch.cuda.reset_peak_memory_stats(gpu)
            self._before = sum(map(torch.cuda.memory_allocated, self._gpus))
        elif os.access("/proc/self/clear_refs", os.W_OK):
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # The high-water mark is reset.
            self._before = _status_bytes("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is None:
            return
        peak = sum(map(torch.cuda.max_memory_allocated, self._gpus)) if self._gpus else _status_bytes("VmHWM")
        self.num_bytes, self.total_bytes = max(0, peak - self._before), peak


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))
