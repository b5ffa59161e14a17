"""What the processes of ``torch.distributed`` share: a batch that they have divided, a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from spkd.division import Division


def divide(images: Tensor) -> Division | None:
    """Tell the processes of each other's batches; ``None`` where there is one process only.

    Numbers of images are exchanged in the main memory where the process group has a backend for it, as by default
    and with gloo. With nccl alone they go over the device, and the program waits for what is queued there.

    Raises:
        InputError: in every process, when one of them has no image.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return None
    from spkd.division import exchanged

    division: Division = exchanged(images)
    return division


def in_ddp(network: nn.Module) -> DistributedDataParallel | None:
    """Return the wrapper of PyTorch that averages a network's gradients over the processes, if it has one."""
    wrapped: object = network
    for place in ("_orig_mod", "_forward_module", "_orig_mod"):  # compiled, in Fabric's wrapper, compiled in that
        wrapped = getattr(wrapped, place, wrapped)
    return wrapped if isinstance(wrapped, DistributedDataParallel) else None


@torch.no_grad()
def share_buffers(network: nn.Module) -> None:
    """Give the network of every process the buffers of the first one's, as PyTorch's wrapper does before each step.

    Batch norms have other statistics in each, since each has seen its own images.
    """
    for buffer in network.buffers():
        shared = buffer.contiguous()
        distributed.broadcast(shared, 0)
        buffer.copy_(shared)


def first_said(own: Sequence[str]) -> str:
    """Return the first text that any process has, which one must: all of them get the same."""
    said: list[list[str]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(said, list(own))
    return next(text for texts in said for text in texts)
