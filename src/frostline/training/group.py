"""This process among the others."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from frostline.errors import DeviceError

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """The processes of one run; alone, every exchange is free and changes nothing.

    Attributes:
        device: This process's device.
        rank: Its number.
        world_size: How many there are.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @classmethod
    def open(cls, device: str) -> Group:
        """Join the processes that ``torchrun`` started, or be alone.

        Host tensors travel by gloo also on GPUs: counts and flags then cost no synchronisation of the device.

        Args:
            device: ``cpu`` or ``cuda``; each process takes the GPU of its local rank.

        Raises:
            DeviceError: There is no such GPU.
        """
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        place = torch.device(device, local_rank) if device == "cuda" else torch.device(device)
        if place.type == "cuda":
            if local_rank >= torch.cuda.device_count():
                raise DeviceError(
                    f"there is no {place}: torch sees {torch.cuda.device_count()} GPUs",
                    do="use the device cpu, or start at most one process a GPU",
                )
            torch.cuda.set_device(place)
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls(place)
        dist.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo")
        return cls(place, dist.get_rank(), dist.get_world_size())

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and speaks to the user."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace a contiguous tensor by its sum over all processes; returns it."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def total(self, value: float) -> float:
        """The sum of a host number over all processes."""
        return self.sum_(torch.tensor(value, dtype=torch.float64)).item()

    def gather(self, value: T) -> list[T]:
        """Every process's picklable value, by rank."""
        values: list[T | None] = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return cast(list[T], values)

    @torch.no_grad()
    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the values that the main one has."""
        if self.world_size > 1:
            for tensor in tensors:
                dense = tensor.detach().contiguous()
                dist.broadcast(dense, src=0)
                tensor.copy_(dense)

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.total(0.0)

    def close(self) -> None:
        """Leave the group."""
        if self.world_size > 1:
            dist.destroy_process_group()
