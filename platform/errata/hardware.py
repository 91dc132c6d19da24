"""The machine in words, and the memory that a piece of work needs on it."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path
from typing import Any

import torch


def hardware() -> dict[str, Any]:
    """The machine, the threads in use, and how busy it is: a load above 0 before the start is somebody else's."""
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
    """`num_bytes`: the highest memory inside the block above what was in use when it began, `total_bytes` with that; None where
    it is not known.

    On a GPU as torch counts allocations there. Otherwise the resident memory as Linux counts it: it sees LAPACK's workspaces,
    which torch's profiler does not. What the allocator kept of earlier work is handed back first, so the block runs slower.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._cuda = device if device is not None and device.type == "cuda" else None
        self.num_bytes: int | None = None
        self.total_bytes: int | None = None

    def __enter__(self) -> PeakMemory:
        self._before: int | None = None
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)
            self._before = torch.cuda.memory_allocated(self._cuda)
        elif os.access("/proc/self/clear_refs", os.W_OK):
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts from here
            self._before = _status_bytes("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is None:
            return
        peak = _status_bytes("VmHWM") if self._cuda is None else torch.cuda.max_memory_allocated(self._cuda)
        self.num_bytes, self.total_bytes = max(0, peak - self._before), peak


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))
