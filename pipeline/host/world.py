"""The processes of one run: `torchrun --nproc-per-node=N -m pipeline …`, or one process alone.

torch's own process group and DistributedDataParallel, without a library between: the training loop is ours, and what
such libraries add (launching, precision, loaders) is here already. gloo between CPUs, nccl between GPUs.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.host import terminal, torchrun
from pipeline.host.errors import ProcessLost, UserError

# How long the other processes wait for rank 0, which evaluates and exports alone. One that dies is noticed at once.
_PATIENCE = datetime.timedelta(days=7)
# What gloo and nccl say when another process has ended, or its machine has left the network.
_OF_LOST_PEERS = ("closed by peer", "connection reset", "broken pipe", "remote process", "timed out", "timeout caused")


@dataclass(frozen=True)
class World:
    """The processes that train together, seen from one of them.

    Attributes:
        rank: this process's number; 0 alone writes, logs and speaks.
        size: how many they are.
        control: the group for what rank 0 tells the others outside of training.
    """

    rank: int = 0
    size: int = 1
    control: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes, logs and speaks."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's part of `count` items in a row: equal parts, without repeats.

        What is left over of an equal division belongs to nobody.
        """
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of each number over all processes."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.size

    def gather(self, mine: Tensor) -> Tensor:
        """What all processes have, end to end in the order of their ranks; on the CPU."""
        if self.size == 1:
            return mine
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, mine.cpu(), group=self.control)
        return torch.cat(parts)

    def extremes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The least of `low` and the greatest of `high` in all processes, number by number."""
        if self.size == 1:
            return low, high
        both = torch.stack([-low, high])
        dist.all_reduce(both, dist.ReduceOp.MAX)
        return -both[0], both[1]

    def __deepcopy__(self, memo: dict[int, Any]) -> World:
        return self  # whoever copies a model copies no processes

    def tell(self, what: Any = None) -> Any:
        """What rank 0 tells: given by it, received by the others."""
        if self.size == 1:
            return what
        told = [what]
        dist.broadcast_object_list(told, src=0, group=self.control)
        return told[0]


SOLO = World()


@contextmanager
def join(device: torch.device) -> Iterator[World]:
    """Meet the other processes that torchrun has started, for the block; alone without torchrun.

    Raises:
        UserError: when the processes cannot meet, or there are more of them than GPUs.
        ProcessLost: when another of them ends within the block.
    """
    rank, size = torchrun.rank(), torchrun.world_size()
    if size == 1:
        yield SOLO
        return
    if device.type == "cuda":
        gpus = torch.cuda.device_count()
        if torchrun.local_rank() >= gpus:
            raise UserError(f"torchrun: more processes than GPUs; allowed: --nproc-per-node={gpus}, or device=cpu")
        torch.cuda.set_device(torchrun.local_rank())
    if (address := torchrun.unreachable_name()) is not None:
        raise UserError(
            f"GLOO_SOCKET_IFNAME is not set, and this machine's name stands for {address}, where other machines do not "
            f"reach it; allowed: the network interface between them ({', '.join(torchrun.interfaces())})"
        )
    if rank > 0:
        terminal.mute()
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        raise UserError(f"torchrun: the {size} processes cannot meet: {_first_line(error)}") from error
    try:
        yield World(rank, size, dist.new_group(backend="gloo", timeout=_PATIENCE))
    except RuntimeError as error:
        if not _is_lost_peer(error):
            raise
        raise ProcessLost(
            f"torchrun: another of the {size} processes has ended ({_first_line(error)}); "
            "the same command goes on from the last finished epoch"
        ) from error
    dist.destroy_process_group()


def _is_lost_peer(error: BaseException) -> bool:
    text = str(error).lower()
    return any(words in text for words in _OF_LOST_PEERS)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
