"""What processes that divide a batch among them say to each other.

Imported only where there are several: what compilers are to leave out brings the compiler, which takes a second.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, distributed

from spkd.errors import InputError


@dataclasses.dataclass(frozen=True)
class Division:
    """Which images of the batch are this process's: process 0 has the first ones, process 1 the next.

    Every method that communicates must be called by all processes, in the same order. Compilers leave these methods
    out, since they could change that order.

    Attributes:
        sizes: how many images each process has, at least one.
        rank: which process this is.
        alike: whether the images of all have one size.
    """

    sizes: tuple[int, ...]
    rank: int
    alike: bool = True

    @property
    def share(self) -> float:
        """This process's images as a fraction of all."""
        return self.sizes[self.rank] / sum(self.sizes)

    @property
    def processes(self) -> int:
        """How many processes there are."""
        return len(self.sizes)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def gather(self, own: Tensor) -> Tensor:
        """Return the tensors of all processes one after another, ``(b, ...)`` from this process's ``(r, ...)``.

        Backwards each process gets the sum over the processes of their gradients for its part.

        Raises:
            InputError: in every process, when images of unlike sizes have made tensors of unlike shapes.
        """
        # Where the images are alike, so is what is made of them.
        if not self.alike and len(set(_told([_hash_of(own)], own.device))) > 1:
            raise InputError(
                "images: the processes have images of unlike sizes, whose features cannot be compared; give all of them"
                " one size in each step."
            )
        if not own[:1].numel():
            return own.new_empty(sum(self.sizes), *own.shape[1:])
        whole: Tensor = _Gather.apply(own, self)
        return whole

    def gather_any(self, own: Tensor) -> Tensor:
        """Return the same without gradient, of any type: bytes are sent, since gloo and nccl cannot send int16, say."""
        rows: Tensor = self.gather(own.detach().reshape(len(own), -1).contiguous().view(torch.uint8))
        return rows.view(own.dtype).reshape(-1, *own.shape[1:])

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of the processes' tensors of one shape, without gradient."""
        total = values.detach().clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    def any(self, flags: Tensor) -> Tensor:
        """Return which of the flags, booleans, any process has."""
        counts: Tensor = self.sum(flags.int())
        return counts > 0


@torch.compiler.disable  # type: ignore[untyped-decorator]
def exchanged(images: Tensor) -> Division:
    """Tell the processes of each other's batches; :func:`spkd.processes.divide` says how.

    Raises:
        InputError: in every process, when one of them has no image.
    """
    sizes, shapes = zip(*_told([len(images), _hash_of(images)], images.device), strict=True)
    division = Division(sizes, distributed.get_rank(), alike=len(set(shapes)) == 1)
    if not all(division.sizes):
        raise InputError(
            f"images: expected at least one in every process, got {', '.join(map(str, division.sizes))}; leave out a "
            "last batch that is smaller than the number of processes."
        )
    return division


def _told(numbers: list[int], device: torch.device) -> list[tuple[int, ...]]:
    """Return the whole numbers of every process, over the main memory if there is a way."""
    in_main_memory = "cpu:" in distributed.get_backend_config()
    own = torch.tensor(numbers, device="cpu" if in_main_memory else device)
    told = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(told, own)
    return [tuple(one) for one in torch.stack(told).tolist()]


def _hash_of(tensor: Tensor) -> int:
    """Return a hash of the shape but for the number of images; of whole numbers it is the same in all processes."""
    return hash(tuple(tensor.shape[1:]))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, division: Division) -> Tensor:
        ctx.division = division
        largest = max(division.sizes)
        padded = own.new_zeros(largest, *own.shape[1:])
        padded[: own.shape[0]] = own
        parts = [torch.empty_like(padded) for _ in division.sizes]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, division.sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        division: Division = ctx.division
        total: Tensor = _Sum.apply(gradient)
        start = sum(division.sizes[: division.rank])
        return total[start : start + division.sizes[division.rank]], None


class _Sum(torch.autograd.Function):
    """The sum over the processes; its own derivative is such a sum again."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total: Tensor = _Sum.apply(gradient)
        return total
