"""The processes that train together: those that an agent or the caller has brought together, or this one alone."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore
from torch.distributed.rendezvous import rendezvous

_TRAININGS = itertools.count()  # of this process


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Have a process group while it is entered; device: `training.device`.

    One that the caller has made is used and left as it is. Started by torch elastic, this process joins the others;
    else it is a group of its own, which opens no port.
    """
    if dist.is_initialized():
        yield
        return
    backend = "cuda:nccl,cpu:gloo" if device != "cpu" and torch.cuda.is_available() else "gloo"
    if dist.is_torchelastic_launched():
        store, rank, processes = next(rendezvous("env://"))
        own = PrefixStore(f"training-{next(_TRAININGS)}", store)  # else one finds the addresses of the one before
        dist.init_process_group(backend, store=own, rank=rank, world_size=processes)
        yield
        dist.destroy_process_group()  # not after an error: it would wait for the others
        return
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
