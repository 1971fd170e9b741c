"""The processes of a run: one, or as many as `accelerate launch` started.

Every process draws the whole step's samples from the seed and takes its own share of them, so the
data is sharded without being repeated, and the same step is computed whatever their number.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mgsd_core.config import ComputeConfig

T = TypeVar("T")


def start_processes(compute: ComputeConfig) -> Accelerator:
    """Join the processes that were launched together and return their accelerator."""
    # Where DeepSpeed is installed it is loaded here, and logs to what is stdout then.
    with redirect_stdout(sys.stderr):
        # Unless it is told, accelerate takes no notice of processes that torchrun starts on CPUs:
        # each would train by itself, all into one directory.
        return Accelerator(
            mixed_precision="bf16" if compute.precision == "bf16" else "no",
            cpu=not torch.accelerator.is_available(),
        )


def end_processes(processes: Accelerator) -> None:
    """Leave the processes that were launched together, once all of them have done their work.

    torch asks for it: else one may end while another waits for it on a GPU. Not where one failed:
    leaving would wait for those that wait for it in an exchange.
    """
    processes.end_training()


def share(processes: Accelerator, items: Sequence[T]) -> list[T]:
    """Return this process's part of what all work on together."""
    return list(items[processes.process_index :: processes.num_processes])


def sums(processes: Accelerator, values: Sequence[float]) -> list[float]:
    """Return the sums of values over all processes, the same in all of them."""
    if processes.num_processes == 1 or not values:
        return list(values)
    # A GPU's sum may depend on the order; Python's over the gathered values does not.
    gathered = gather_object([list(values)])
    return [sum(column) for column in zip(*gathered, strict=True)]


def together(processes: Accelerator, items: Sequence[T]) -> list[T]:
    """Return all processes' items, the same list in all of them."""
    return list(items) if processes.num_processes == 1 else list(gather_object(list(items)))


def wants_shards(processes: Accelerator) -> bool:
    """Return whether parameters are to be split over the processes: launched with FSDP."""
    return _launched_with(processes, DistributedType.FSDP, "ACCELERATE_USE_FSDP")


def wants_deepspeed(processes: Accelerator) -> bool:
    """Return whether DeepSpeed is to update the parameters: launched with it."""
    return _launched_with(processes, DistributedType.DEEPSPEED, "ACCELERATE_USE_DEEPSPEED")


def _launched_with(processes: Accelerator, kind: DistributedType, switch: str) -> bool:
    if processes.distributed_type == DistributedType.MULTI_CPU:  # where accelerate has neither
        return os.environ.get(switch, "").lower() == "true"
    return bool(processes.distributed_type == kind)


def shard(
    processes: Accelerator,
    module: torch.nn.Module,
    layers: Iterable[torch.nn.Module],
    compute: ComputeConfig,
) -> None:
    """Split a module's parameters over the processes (FSDP2): each layer by itself, then the rest.

    Gradients are then averaged over the processes as they arise. Every process must make the same
    forward and backward passes.
    """
    mesh = init_device_mesh(processes.device.type, (processes.num_processes,))
    policy = MixedPrecisionPolicy()
    if compute.precision == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for part in (*layers, module):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    # Else the first layer that is called by itself, in a rollout, would take itself for the root.
    module._get_fsdp_state()._lazy_init()  # type: ignore[operator]


@contextmanager
def whole_weights(module: torch.nn.Module) -> Iterator[None]:
    """Keep split parameters gathered meanwhile, for what calls parts of the module by itself."""
    parts = [m for m in module.modules() if isinstance(m, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)


def sum_gradients(processes: Accelerator, parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace every gradient by its sum over the processes; those of split parameters are sums."""
    wanted = [p for p in parameters if not isinstance(p, DTensor)]
    if processes.num_processes == 1 or not wanted:
        return
    for parameter in wanted:  # another process may have used it
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([p.grad.flatten() for p in wanted if p.grad is not None])
    torch.distributed.all_reduce(flat)
    for parameter, part in zip(wanted, flat.split([p.numel() for p in wanted]), strict=True):
        parameter.grad = part.view_as(parameter)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as one process would have it, on the CPU; all processes must call this."""
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.detach().cpu().contiguous()


def like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Return a whole tensor as a parameter is kept here: on its device, split as it is."""
    if isinstance(parameter, DTensor):
        return distribute_tensor(
            value.to(parameter.device), parameter.device_mesh, parameter.placements
        )
    return value.to(parameter.device)


def agree(processes: Accelerator, error: Exception | None) -> None:
    """Raise in every process the first error that one of them met, so that none waits for it."""
    found: list[Any] = together(processes, [error])
    for other in found:
        if other is not None:
            raise other
