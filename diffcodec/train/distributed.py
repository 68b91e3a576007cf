"""One training run over several processes, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def bounds(count: int, parts: int, number: int) -> tuple[int, int]:
    """First and past-last of ``count`` things in part ``number`` of ``parts`` nearly equal ones."""
    return number * count // parts, (number + 1) * count // parts


@dataclass(frozen=True)
class World:
    """This process among the ``size`` that train together; rank 0 is the one that writes."""

    rank: int = 0
    size: int = 1

    @property
    def writes(self) -> bool:
        return self.rank == 0

    def share_out(self, model: nn.Module) -> nn.Module:
        """The model with its gradients averaged over all processes."""
        return DistributedDataParallel(model) if self.size > 1 else model

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether any process says so: all of them leave the loop at the same step."""
        return bool(self.total(torch.tensor(float(flag), device=device))) if self.size > 1 else flag


def unsynchronised(model: nn.Module) -> AbstractContextManager[None]:
    """Gradients inside are added up in this process only."""
    if isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return nullcontext()


@contextmanager
def join(device: str) -> Iterator[tuple[World, str]]:
    """The processes torchrun started, or this one alone, and the device of this one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield World(), device
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()
