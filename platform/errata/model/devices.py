"""Placement of a model on one device, or of consecutive blocks on several, for a model that is too large for one.

This is layer-wise model parallelism without a pipeline: no weight is split, and a pass runs on one device after another. The
inputs of a block follow it to its device. Factors and sums of a delta are on the device of their module; captured rows, key
preconditioners and solves are on the first device, which takes the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

AUTO = "auto"


def devices_of(name: str) -> tuple[torch.device, ...]:
    """Read `cpu`, `cuda`, `cuda:1`, several such as `cuda:0,cuda:1`, or `auto`, which is every GPU that torch finds.

    Raises `ValueError` for a name that is not a device, a device that is missing, and a device that is named twice.
    """
    if name == AUTO:
        if not torch.cuda.device_count():
            raise ValueError(f"device auto spreads a model over the GPUs, and torch {torch.__version__} finds none: give cpu")
        return tuple(torch.device("cuda", index) for index in range(torch.cuda.device_count()))
    devices = _named(name)
    for device in devices:
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            there = f"torch {torch.__version__} finds {torch.cuda.device_count() or 'no'} GPUs"
            raise ValueError(f"there is no device {device}: {there}; cpu always exists")
    return devices


def _named(name: str) -> tuple[torch.device, ...]:
    """Read the names without looking for the devices. Raises `ValueError` as `devices_of` does."""
    try:
        devices = tuple(torch.device(part.strip()) for part in name.split(","))
    except RuntimeError as wrong:
        raise ValueError(f"{name!r} is not a device: give cpu, cuda, auto, or several such as cuda:0,cuda:1") from wrong
    if len(set(devices)) < len(devices):
        raise ValueError(f"{name} names a device twice")
    if len(devices) > 1 and any(device.index is None for device in devices):
        raise ValueError(f"give GPUs with their numbers to spread a model over, such as cuda:0,cuda:1, not {name}")
    return devices


def num_gpus(name: str) -> int:
    """Count the GPUs to reserve for a process with this device, without looking for them.

    The numbers of its GPUs start from 0. Raises `ValueError` as `devices_of` does, and for a number that a process with so
    few GPUs does not see.
    """
    if name == AUTO:
        raise ValueError("name the GPUs that are to be reserved, such as cuda:0,cuda:1: auto takes as many as it finds")
    gpus = [device.index or 0 for device in _named(name) if device.type == "cuda"]
    if gpus and max(gpus) >= len(gpus):
        there = ",".join(f"cuda:{index}" for index in range(len(gpus)))
        raise ValueError(f"GPUs are numbered from 0 among the {len(gpus)} that are reserved: give {there}, not {name}")
    return len(gpus)


def first_device(name: str) -> torch.device:
    """Return the device of the tokens, and of a hypernetwork's policy."""
    return devices_of(name)[0]


def device_of(module: nn.Module, name: str) -> torch.device:
    """Return the device of the matrix `name`."""
    weight = module.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight.device


def devices_with(module: nn.Module) -> list[torch.device]:
    """Return the devices that hold a part of the model."""
    return list(dict.fromkeys(parameter.device for parameter in module.parameters()))


def spread(module: Any, devices: Sequence[torch.device]) -> None:
    """Put the blocks onto the devices, consecutive ones together, with about the same number of bytes on each.

    Modules before the blocks go onto the first device and modules after them onto the last, but a tied output embedding goes
    with the input embedding. Raises `ValueError` for fewer blocks than devices.
    """
    blocks = _blocks(module)
    if len(blocks) < len(devices):
        raise ValueError(
            f"the model has {len(blocks)} blocks, too few for {len(devices)} devices: {', '.join(map(str, devices))}"
        )
    head, embedding = module.get_output_embeddings(), module.get_input_embeddings()
    tied = head is not None and head.weight is embedding.weight
    units = _units(module, blocks)
    last_block = max(index for index, unit in enumerate(units) if unit in blocks)
    sizes = [0 if unit is head and tied else _num_bytes(unit) for unit in units]  # A tied matrix exists once.
    total, done = sum(sizes), 0
    for index, (unit, size) in enumerate(zip(units, sizes, strict=True)):
        if unit in blocks:
            _put(unit, devices[min(len(devices) - 1, len(devices) * (2 * done + size) // (2 * total))])
        else:  # A module without parameters, such as the rotary embedding, runs before the blocks, wherever it is listed.
            is_after = index > last_block and size > 0
            _put(unit, devices[-1 if is_after else 0])
        done += size
    if tied:
        module.tie_weights()


def _blocks(module: Any) -> list[nn.Module]:
    """Return the blocks of the decoder; none if it has no list of them."""
    decoder = module.get_decoder()
    return next((list(child) for child in decoder.modules() if isinstance(child, nn.ModuleList)), [])


def _units(module: nn.Module, blocks: Sequence[nn.Module]) -> list[nn.Module]:
    """Return the blocks, and the largest modules without a block, in order."""
    found: list[nn.Module] = []
    for child in module.children():
        if child in blocks or not any(inner in blocks for inner in child.modules()):
            found.append(child)
        else:
            found += _units(child, blocks)
    return found


def _num_bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def _put(unit: nn.Module, device: torch.device) -> None:
    """Put a module onto the device, and its inputs before each pass."""

    def follow(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        return _moved(args, device), _moved(kwargs, device)

    unit.to(device)
    unit.register_forward_pre_hook(follow, with_kwargs=True)


def _moved(value: Any, device: torch.device) -> Any:
    """Move tensors and containers of tensors to the device. Other values, such as a key-value cache, stay as they are."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(_moved(one, device) for one in value)
    return {key: _moved(one, device) for key, one in value.items()} if isinstance(value, dict) else value
