"""One batch that the processes of ``torch.distributed`` have divided among them."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
