"""Where a model's layers are: on one device, or its blocks in runs over several, for a model too large for one.

No weight is split and no two devices work at once: a pass goes from one to the next. What goes into a block follows it; what
is added to a module is where the module is, and so are factors and sums. What is measured comes to the first device, where the
tokens go in: rows and metrics, and what is solved from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

AUTO = "auto"


def devices_of(name: str) -> tuple[torch.device, ...]:
    """`cpu`, `cuda`, `cuda:1`, several such as `cuda:0,cuda:1`, or `auto`, every GPU that torch sees.

    Raises `ValueError` for what is no device, is not there, or stands twice.
    """
    if name == AUTO:
        if not torch.cuda.device_count():
            raise ValueError(f"device auto spreads a model over the GPUs, and torch {torch.__version__} finds none: give cpu")
        return tuple(torch.device("cuda", index) for index in range(torch.cuda.device_count()))
    devices = _named(name)
    for device in devices:
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            there = f"torch {torch.__version__} finds {torch.cuda.device_count() or 'no'} GPUs"
            raise ValueError(f"the device {device} is not there: {there}; cpu always is")
    return devices


def _named(name: str) -> tuple[torch.device, ...]:
    """Without looking for them. Raises `ValueError` for what is no device, or stands twice."""
    try:
        devices = tuple(torch.device(part.strip()) for part in name.split(","))
    except RuntimeError as wrong:
        raise ValueError(f"{name!r} is no device: give cpu, cuda, auto, or several such as cuda:0,cuda:1") from wrong
    if len(set(devices)) < len(devices):
        raise ValueError(f"a device stands twice in {name}")
    if len(devices) > 1 and any(device.index is None for device in devices):
        raise ValueError(f"devices that a model is spread over are GPUs with their numbers, such as cuda:0,cuda:1, not {name}")
    return devices


def num_gpus(name: str) -> int:
    """How many GPUs a process needs for this device, without looking for them. Their numbers count from 0 among those that are
    reserved for it.

    Raises `ValueError` for what is no device, stands twice, or has a number that a process with so few GPUs does not see.
    """
    if name == AUTO:
        raise ValueError("name the GPUs that are to be reserved, such as cuda:0,cuda:1: auto takes as many as it finds")
    gpus = [device.index or 0 for device in _named(name) if device.type == "cuda"]
    if gpus and max(gpus) >= len(gpus):
        there = ",".join(f"cuda:{index}" for index in range(len(gpus)))
        raise ValueError(f"GPUs are numbered from 0 among the {len(gpus)} that are reserved: give {there}, not {name}")
    return len(gpus)


def first_device(name: str) -> torch.device:
    """Where tokens go in, and where a policy of a learned editor is."""
    return devices_of(name)[0]


def device_of(module: nn.Module, name: str) -> torch.device:
    """Where the matrix `name` is."""
    weight = module.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight.device


def devices_with(module: nn.Module) -> list[torch.device]:
    """All that hold a part of the model."""
    return list(dict.fromkeys(parameter.device for parameter in module.parameters()))


def spread(module: Any, devices: Sequence[torch.device]) -> None:
    """Put the model's blocks onto the devices in runs of about equal bytes, what comes before them onto the first, behind them
    onto the last, and an output embedding that is the input's with that one. Raises `ValueError` for too few blocks.
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
    sizes = [0 if unit is head and tied else _num_bytes(unit) for unit in units]  # a shared matrix is there once
    total, done = sum(sizes), 0
    for index, (unit, size) in enumerate(zip(units, sizes, strict=True)):
        if unit in blocks:
            _put(unit, devices[min(len(devices) - 1, len(devices) * (2 * done + size) // (2 * total))])
        else:  # what has no parameters, such as the rotation of positions, is run before the blocks wherever it is written
            is_behind = index > last_block and size > 0
            _put(unit, devices[-1 if is_behind else 0])
        done += size
    if tied:
        module.tie_weights()


def _blocks(module: Any) -> list[nn.Module]:
    """Of the decoder; none where it is no list of them."""
    decoder = module.get_decoder()
    return next((list(child) for child in decoder.modules() if isinstance(child, nn.ModuleList)), [])


def _units(module: nn.Module, blocks: Sequence[nn.Module]) -> list[nn.Module]:
    """The blocks, and the largest modules without any, in their order."""
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
    """Onto the device, for good, and before each pass what goes into it, too."""

    def follow(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        return _moved(args, device), _moved(kwargs, device)

    unit.to(device)
    unit.register_forward_pre_hook(follow, with_kwargs=True)


def _moved(value: Any, device: torch.device) -> Any:
    """Its tensors on the device. Other things than tensors and their containers, such as a cache, are left as they are."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(_moved(one, device) for one in value)
    return {key: _moved(one, device) for key, one in value.items()} if isinstance(value, dict) else value
