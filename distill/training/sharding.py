"""The model over the processes: mesh, FSDP2 with all its options, and the gradient's norm.

Of a mesh of replicas x shards (HSDP) each replica holds the whole model, sharded over its processes: what is gathered
for every block stays inside a replica, say one machine; only gradients are summed over the replicas.
"""

import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from distill.errors import Failure, InputError
from distill.loss.inside import blocks_of
from distill.models import resolve_device
from distill.settings import TrainingSettings


def device_of(name: str) -> torch.device:
    """Return the device of this process, on a GPU that of its rank on this machine."""
    if resolve_device(name).type == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def mesh_of(device: torch.device, replicas: int) -> DeviceMesh:
    """Return the mesh of all processes: (shard,), or (replicate, shard). Raises InputError for an uneven one."""
    processes = dist.get_world_size()
    if processes % replicas:
        raise InputError(
            f"training.replicas = {replicas}: {processes} processes cannot be divided among them; "
            "choose a divisor of the number of processes"
        )
    if replicas == 1:
        return init_device_mesh(device.type, (processes,), mesh_dim_names=("shard",))
    shape = replicas, processes // replicas
    return init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))


def shard(model: nn.Module, student: Any, mesh: DeviceMesh, settings: TrainingSettings) -> Any:
    """Shard the model that holds `student`, block by block, in place. Raises InputError for what it cannot do.

    One process alone keeps it whole, unless weights are kept elsewhere or in another format than they are used: there
    is nothing to gather or to reduce, and copying every weight and gradient would be a fifth of a step's time.
    """
    blocks = blocks_of(student)
    if settings.checkpoint_activations:
        _checkpoint_activations(student)
    if settings.compile:
        _compile(blocks, torch.device(mesh.device_type))
    if mesh.size() == 1 and settings.precision == "fp32" and not settings.cpu_offload:
        return model
    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": (
            MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            if settings.precision == "bf16"
            else MixedPrecisionPolicy()
        ),
        "offload_policy": (
            CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu") if settings.cpu_offload else OffloadPolicy()
        ),
    }
    for block in blocks:
        fully_shard(block, **options)
    sharded = fully_shard(model, **options)
    if not isinstance(sharded, FSDPModule):
        raise Failure(f"{type(student).__name__} could not be sharded")
    return sharded


def reduce_gradients(model: nn.Module, now: bool) -> None:
    """Have the next backward pass reduce the gradients over the processes, or leave that to a later one of the step."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)


def _checkpoint_activations(student: Any) -> None:
    try:
        student.activation_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise InputError(
            f"training.checkpoint_activations: {type(student).__name__} does not support it ({error}): set it to false"
        ) from error


def _compile(blocks: nn.ModuleList, device: torch.device) -> None:
    """Have each block compiled when it first runs; tried out first, as that would be in the middle of a step."""
    try:
        torch.compile(_trial, dynamic=True)(torch.ones(8, device=device))
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"training.compile: torch.compile does not work here ({type(error).__name__}: {reason}): set it to false, "
            "or install what it asks for"
        ) from error
    for block in blocks:
        block.compile(dynamic=True)  # bins have many shapes


def _trial(values: torch.Tensor) -> torch.Tensor:
    return (values.sin() + 1).relu()


def clip(parameters: Iterable[nn.Parameter], limit: float, mesh: DeviceMesh) -> float:
    """Scale the gradient down to a norm of at most `limit`; returns the norm it had. Collective.

    Each replica holds all of it, and weights are sharded by rows: the rows' norms, added up in float64, do not depend
    on how.
    """
    gradients = [p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad for p in parameters if p.grad is not None]
    rows = [part.flatten(1).norm(dim=1) if part.dim() > 1 else part.flatten().abs() for part in gradients]
    squares = torch.cat(rows).double().square().sum().to(mesh.device_type)  # offloaded gradients lie elsewhere
    dist.all_reduce(squares, group=mesh.get_group("shard"))
    norm = float(squares.sqrt())
    if norm > limit:
        torch._foreach_mul_(gradients, limit / norm)
    return norm
