"""Single images as a network sees them, made by processes of their own and put together in batches."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spkd.data.augment import (
    Crops,
    augmented,
    crop_views,
    fixed_view,
    random_resized_crop,
    resize,
    resizing,
    side_for_crop,
    side_for_view,
    to_unit_range,
)
from spkd.data.images import Images
from spkd.data.options import Augment, View
from spkd.data.seeds import Use, mixed_seed
from spkd.errors import ReaderDied, UnreadableImage, one_line
from spkd.machine import usable_cpus
from spkd.signals import signals_blocked

_log = logging.getLogger(__name__)

MOST_READERS = 16
"""Processes that read for a GPU where nobody has said how many."""


class _Unreadable(str):
    """What is wrong with an image that cannot be had.

    Handed from a worker to the main process, where it is raised: an error raised in a worker would arrive
    with the worker's whole traceback as its text.
    """

    __slots__ = ()


_Item = tuple[list[Tensor], int] | _Unreadable
"""The views of an image, one of each size, and its target."""


@dataclass(frozen=True)
class TrainViews(Dataset[_Item]):
    """A random view of each image, a function of (seed, epoch, index)."""

    images: Images
    sizes: tuple[int, ...]
    flip: bool
    scale: float
    augment: Augment
    seed: int
    epoch: int

    def __getitem__(self, index: int) -> _Item:
        try:
            image = self.images.image(index, side_for_crop(max(self.sizes), self.scale))
        except UnreadableImage as error:
            return _Unreadable(error.brief)
        seed = mixed_seed(Use.VIEW, self.seed, self.epoch, index)
        views = [random_resized_crop(image, size, self.flip, seed, self.scale) for size in self.sizes]
        seed = mixed_seed(Use.AUGMENT, self.seed, self.epoch, index)
        return [augmented(view, self.augment, seed) for view in views], int(self.images.targets[index])


@dataclass(frozen=True, eq=False)
class SmallViews(Dataset[_Item]):
    """The view that ``crops`` says of each image drawn in memory, enlarged and augmented by (seed, epoch, index)."""

    padded: Tensor
    targets: Tensor
    drawn: Tensor
    crops: Crops
    crop_size: int
    sizes: tuple[int, ...]
    augment: Augment
    seed: int
    epoch: int

    def __getitem__(self, index: int) -> _Item:
        image = self.drawn[index : index + 1]
        view = crop_views(self.padded, image, self.crops[torch.tensor([index])], self.crop_size)[0]
        seed = mixed_seed(Use.AUGMENT, self.seed, self.epoch, index)
        views = [augmented(resize(view, size), self.augment, seed) for size in self.sizes]
        return views, int(self.targets[image])


@dataclass(frozen=True)
class FixedViews(Dataset[_Item]):
    """The whole or the centre of each image."""

    images: Images
    sizes: tuple[int]
    view: View

    def __getitem__(self, index: int) -> _Item:
        (size,) = self.sizes
        try:
            image = self.images.image(index, side_for_view(size, self.view))
            return [fixed_view(image, size, self.view)], int(self.images.targets[index])
        except UnreadableImage as error:
            return _Unreadable(error.brief)


def _collate(items: list[_Item]) -> tuple[list[Tensor], Tensor] | _Unreadable:
    views, targets = [], []
    for item in items:
        if isinstance(item, _Unreadable):
            return item
        views.append(item[0])
        targets.append(item[1])
    return [torch.stack(alike) for alike in zip(*views, strict=True)], torch.tensor(targets)


def in_batches(
    views: TrainViews | SmallViews | FixedViews, batches: Sequence[Tensor], device: torch.device, workers: int | None
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Give the views in batches, one of each size, as bytes to the device and as floats from there on."""
    largest = max((len(batch) for batch in batches), default=0)
    workers = readers(workers, device, len(batches), largest, views.sizes)
    resizing()  # or every worker would import it for itself, at every epoch
    how = _start_method() if workers else None
    on_gpu = device.type == "cuda"
    loader: DataLoader[Any] = DataLoader(
        views,
        batch_sampler=[batch.tolist() for batch in batches],
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=on_gpu,
        multiprocessing_context=how,
        # Its own, or each pass would draw a number from the generator that dropout uses.
        generator=torch.Generator(),
    )
    try:
        for batch in _started(loader, spawning=how == "spawn"):
            if isinstance(batch, _Unreadable):
                raise UnreadableImage(str(batch))
            pixels, targets = batch
            shown = [to_unit_range(alike.to(device, non_blocking=on_gpu)) for alike in pixels]
            yield shown, targets.to(device, non_blocking=on_gpu)
    except RuntimeError as error:
        if not any(sign in str(error) for sign in ("DataLoader worker", "Pin memory thread")):  # which fails with it
            raise
        raise ReaderDied(
            f"a process that reads images has died ({one_line(error)}): fewer --workers and smaller batches need less "
            "memory; in a container the shared memory may be too small (--shm-size)"
        ) from error


def readers(workers: int | None, device: torch.device, batches: int, images: int, sizes: Sequence[int]) -> int:
    """Return how many processes read so many batches of at most so many images each, in views of these sizes."""
    most = min(_usual_readers(device) if workers is None else workers, batches)
    readers = min(most, _with_shared_memory(3 * sum(size**2 for size in sizes) * images))
    if readers < most:
        _tell_of_memory(readers, most)
    return readers


def _usual_readers(device: torch.device) -> int:
    """Return how many processes read where nobody has said it.

    A network on a GPU leaves the processors to them, and PyTorch counts cores as one thread that are two processors.
    One on the processors needs these itself, and where the threads of a process are said, others want a share of them.
    """
    if device.type == "cuda" and "OMP_NUM_THREADS" not in os.environ:
        return min(usable_cpus(), MOST_READERS)
    return min(max(2, min(torch.get_num_threads(), 8)), usable_cpus())


def _with_shared_memory(batch: int) -> int:
    """Return how many processes can hand on batches of so many bytes: containers often have little memory for that.

    Each has two that are asked for ahead, and one that is being taken. Half of what is free is left to others, and the
    rest divided among the processes of a run.
    """
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:  # a system without
        return sys.maxsize
    return free // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) // max(1, 3 * batch)


@cache
def _tell_of_memory(workers: int, wanted: int) -> None:
    """Log a line, once, where there is shared memory for fewer processes than there might be."""
    reading = f"{workers} of {wanted} processes read images" if workers else "images are read one by one"
    _log.warning("%s, since there is little shared memory; in a container: docker run --shm-size=1g", reading)


def _start_method() -> str:
    """Return how workers start: by fork where there is one.

    Workers only read files and never touch a GPU, so they may be forked, which takes milliseconds; others
    import torch anew, seconds at every epoch, and fail in scripts without a main guard.
    """
    import multiprocessing

    can_fork = "fork" in multiprocessing.get_all_start_methods() and sys.platform != "darwin"
    return "fork" if can_fork else "spawn"


def _started(loader: DataLoader[Any], *, spawning: bool) -> Iterator[Any]:
    """Start the workers, which go on after a Ctrl-C or a scheduler's SIGTERM to the group: the parent finishes its
    step, saves, and ends them.
    """
    before = signal.getsignal(signal.SIGCHLD)
    with signals_blocked(spawning=spawning), warnings.catch_warnings():
        # Python 3.12 and later warn of every fork in a process with threads.
        warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
        started = iter(loader)
    if before is not None and threading.current_thread() is threading.main_thread():
        # Not PyTorch's, which raises a worker's death in the midst of a step, where nothing can be saved: without it
        # the death is found when the next batch is asked for.
        signal.signal(signal.SIGCHLD, before)
    return started
