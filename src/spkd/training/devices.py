"""The device of a run, or the devices and processes that share its batches."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast

from spkd.errors import InputError, PeerLost, ReaderDied, RunFailed, UnreadableImage, one_line
from spkd.machine import is_launched, usable_cpus
from spkd.training.options import Runtime

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import Tensor

_KNOWN = ("auto", "cpu", "cuda", "gpu", "mps")
AGREE_EVERY = 10
"""Steps after which several processes ask each other whether to stop."""


def make_fabric(runtime: Runtime, precision: str = "32-true") -> Fabric:
    """Return Fabric for one device, or in a launched process for all of its run's, connected.

    Raises:
        InputError: for a device that is not there, or a precision that it does not know.
        RunFailed: when the processes of a run cannot be connected.
    """
    import torch
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.strategies.ddp import DDPStrategy

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # or it tells of every process
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > usable_cpus():
        torch.set_num_threads(usable_cpus())  # PyTorch does not know of a container's quota
    if runtime.accelerator not in _KNOWN:
        raise InputError(f"--accelerator must be one of {', '.join(_KNOWN)}, not {runtime.accelerator!r}")
    there = _accelerators()
    if runtime.accelerator not in ("auto", *there):
        raise InputError(
            f"--accelerator {runtime.accelerator} cannot be used here: PyTorch finds {' and '.join(there)} only; "
            "give --accelerator auto for the best available"
        )
    if runtime.devices > 1 and not is_launched():
        raise InputError(
            f"--devices {runtime.devices}: only `spkd train`, `distill` and `tape record` divide a batch among "
            "devices; in Python, start the processes with torchrun"
        )
    devices = int(os.environ["LOCAL_WORLD_SIZE"]) if is_launched() else 1
    nodes = int(os.environ["WORLD_SIZE"]) // devices if is_launched() else 1

    def build(precision: str) -> Fabric:
        several = devices * nodes > 1
        strategy = DDPStrategy(timeout=timedelta(seconds=runtime.timeout_seconds)) if several else "auto"
        return Fabric(
            accelerator=runtime.accelerator,
            strategy=strategy,
            devices=devices,
            num_nodes=nodes,
            precision=precision,  # type: ignore[arg-type]
            # One device needs no other process, whatever Slurm or MPI has started beside this one.
            plugins=None if several else LightningEnvironment(),
        )

    asked = f"--accelerator {runtime.accelerator} cannot be used here with --devices {devices} --precision {precision}"
    try:
        fabric = build("32-true")
        if precision == "16-mixed" and fabric.device.type == "cpu":
            # Fabric takes bfloat16 instead.
            raise InputError(f"{asked}: float16 needs a GPU, bf16-mixed does not. Try --precision bf16-mixed")
        if precision != "32-true":
            fabric = build(precision)
    except InputError:
        raise
    except Exception as error:  # Fabric raises errors of any kind
        reason = one_line(error).partition(": ")[2].rstrip(".")
        raise InputError(f"{asked}: {reason}. Try --accelerator cpu --precision 32-true") from error
    if fabric.world_size > 1:
        try:
            fabric.launch()
        except Exception as error:
            raise RunFailed(
                f"the {fabric.world_size} processes of this run cannot reach each other: {one_line(error)}"
            ) from error
    return fabric


def _accelerators() -> list[str]:
    """Return the names of the kinds of device that are there."""
    from lightning_fabric.accelerators.cuda import CUDAAccelerator
    from lightning_fabric.accelerators.mps import MPSAccelerator

    cuda, mps = CUDAAccelerator.is_available(), MPSAccelerator.is_available()
    return ["cpu", *["cuda"] * cuda, *["mps"] * mps, *["gpu"] * (cuda or mps)]


def notes_of_srun() -> list[str]:
    """Return a line where Slurm has started this command several times, each of which is a run of its own."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if is_launched() or tasks == "1":
        return []
    return [
        f"warning: srun has started this command {tasks} times, each a run of its own; for one run on several devices, "
        "use srun -n 1 with --devices, or torchrun"
    ]


def sum_of_all(fabric: Fabric, values: Tensor) -> Tensor:
    """Return the sum of the processes' tensors of one shape, on the device; all must ask for it."""
    return cast("Tensor", fabric.all_reduce(values.to(fabric.device), reduce_op="sum"))


def require_one_folder(fabric: Fabric, option: str, path: Path, found: Sequence[bool]) -> None:
    """Return when all processes of the run have looked into the folder of ``option``, and have found there the same.

    Raises:
        InputError: in all of them, when some have found what others have not.
    """
    if fabric.world_size == 1:
        return
    import torch

    counts = sum_of_all(fabric, torch.tensor([int(flag) for flag in found])).tolist()
    if any(count not in (0, fabric.world_size) for count in counts):
        raise InputError(
            f"{path} is not the same folder for all {fabric.world_size} processes: some find what was written there "
            f"before, others do not; give {option} a folder that all machines share"
        )


def agreed(fabric: Fabric, step: int, stop: bool) -> bool:
    """Return whether to stop after this step: with several processes, all of them at the same one."""
    if fabric.world_size == 1:
        return stop
    if step % AGREE_EVERY:
        return False
    import torch

    return bool(sum_of_all(fabric, torch.tensor(float(stop))) > 0)


def leave() -> None:
    """Wait for the other processes of the run, if there are any, and end the connection with them.

    A process that ends without this may tear down a connection that another one still uses.
    """
    torch = sys.modules.get("torch")
    if is_launched() and torch is not None and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def is_full_memory(error: BaseException) -> bool:
    """Return whether an error says that a device has no memory left."""
    torch = sys.modules.get("torch")
    return torch is not None and (
        isinstance(error, torch.OutOfMemoryError) or "MPS backend out of memory" in str(error)  # no type of its own
    )


def failure_to_compile(error: BaseException) -> BaseException | None:
    """Return what PyTorch's compiler has failed of, as where no C++ compiler is installed; None for another error."""
    dynamo = sys.modules.get("torch._dynamo.exc")
    is_of_compiler = dynamo is not None and isinstance(error, dynamo.BackendCompilerFailed)
    return error.inner_exception if is_of_compiler else None  # type: ignore[attr-defined]


@contextlib.contextmanager
def told_in_one_line(runtime: Runtime, to_go_on: str) -> Iterator[None]:
    """Raise what ends a run in its midst as :class:`RunFailed`.

    That is a full memory, the death of a process that reads images, and another process of the run that no longer
    answers; ``to_go_on`` then says to the user how what was done is not lost. Of an image that can no longer be read
    it does so too, as an :class:`InputError`.
    """
    try:
        yield
    except ReaderDied as error:
        raise ReaderDied(f"{error}; {to_go_on}") from error
    except RunFailed:
        raise
    except UnreadableImage as error:
        raise InputError(f"{error.brief}, though it could before; once it can be read again, {to_go_on}") from error
    except RuntimeError as error:
        if is_full_memory(error):
            raise RunFailed(
                f"the device's memory is full ({one_line(error)}); smaller batches or images, mixed precision, or a "
                f"run without --compile need less; if other programs hold the memory, {to_go_on} once it is free"
            ) from error
        if (why := failure_to_compile(error)) is not None:
            raise InputError(f"--compile: PyTorch cannot compile this here ({one_line(why)}); leave it out") from error
        text = str(error).lower()
        if "expected to have finished reduction" in text:
            raise RunFailed(
                "a step left weights of the student without a gradient, as when a network skips layers at random; "
                "train it in one process"
            ) from error
        signs = ("timed out", "timeout", "connection closed", "connection reset", "nccl", "gloo", "broken pipe")
        if not is_launched() or not any(sign in text for sign in signs):
            raise
        raise PeerLost(
            f"another process of this run has died or has not answered for {runtime.timeout_seconds:g} s "
            f"({one_line(error)[:120]}); {to_go_on}"
        ) from error
