"""Measured rates of a device and counted work of a computation: the two sides of a lower bound on time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

NUM_TRIES = 5


@dataclass(frozen=True)
class Rates:
    """Measured rates of a device.

    `tflops` by kind of number are those of products of square matrices of `matrix_size`; `fp32` as torch is configured for the
    whole run. `tf32` and `host_to_device_gb_s` (from pinned memory) exist on a GPU only. A copy counts bytes read and written.
    """

    matrix_size: int
    tflops: dict[str, float]
    copy_gb_s: float
    host_to_device_gb_s: float | None

    def floor_s(self, work: Work) -> float:
        """Lower bound of the seconds for some work: its products at the measured rates, or its bytes if they take longer."""
        products_s = work.flops / (1e12 * self.tflops[work.dtype]) + work.network_flops / (1e12 * self.tflops["fp32"])
        return max(products_s, work.num_bytes / (1e9 * self.copy_gb_s))


@dataclass
class Work:
    """Products with the model's weights (of kind `dtype`) and a policy's (fp32), and the bytes of weights read.

    Attention's products of activations, norms and solves are left out.
    """

    dtype: str = "bf16"
    flops: float = 0.0
    network_flops: float = 0.0
    num_bytes: float = 0.0


DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}


@contextmanager
def counted(model: nn.Module) -> Iterator[Work]:
    """Count the work of the passes inside: 2 FLOPs per weight and row forward, 2 more for the gradient by the input."""
    weight = next(model.parameters())
    work = Work(next(name for name, dtype in DTYPES.items() if dtype == weight.dtype))

    def count(module: nn.Linear, args: tuple[Tensor, ...], _output: Tensor) -> None:
        times = 2 if torch.is_grad_enabled() and args[0].requires_grad else 1
        num_rows = args[0].numel() // module.in_features
        work.flops += times * 2.0 * num_rows * module.weight.numel()
        work.num_bytes += times * module.weight.numel() * module.weight.element_size()

    # A hook after the module, because other hooks before it may remove rows.
    handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Linear)]
    try:
        yield work
    finally:
        for handle in handles:
            handle.remove()


def measure_rates(device: torch.device, matrix_size: int, copied_bytes: int) -> Rates:
    tflops = {name: _matrix_rate(device, matrix_size, dtype) for name, dtype in DTYPES.items()}
    if device.type == "cuda":
        allowed = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        tflops["tf32"] = _matrix_rate(device, matrix_size, torch.float32)
        torch.backends.cuda.matmul.allow_tf32 = allowed
    source, target = (torch.zeros(copied_bytes // 4, device=device) for _ in range(2))
    copy_s = _seconds(device, lambda: target.copy_(source))
    host_s = None
    if device.type == "cuda":
        pinned = torch.zeros(copied_bytes // 4).pin_memory()
        host_s = _seconds(device, lambda: target.copy_(pinned))
    return Rates(matrix_size, tflops, 2e-9 * copied_bytes / copy_s, 1e-9 * copied_bytes / host_s if host_s else None)


def _matrix_rate(device: torch.device, size: int, dtype: torch.dtype) -> float:
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2e-12 * size**3 / _seconds(device, lambda: left @ right)


def _seconds(device: torch.device, work: Callable[[], Any]) -> float:
    """Median of several tries, after one that is not counted."""
    found = []
    for _ in range(NUM_TRIES + 1):
        finish(device)
        start = time.perf_counter()
        work()
        finish(device)
        found.append(time.perf_counter() - start)
    return median(found[1:])


def finish(device: torch.device) -> None:
    """Wait until the device has finished its queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
