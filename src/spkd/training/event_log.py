"""A run's logs for TensorBoard, which nothing of the run reads: a disk that does not take them ends no training."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any


class EventLog:
    """The numbers of each epoch, as TensorBoard reads them.

    Args:
        folder: where they are written.
        epoch: that comes first, from 1; what an earlier process has written of it and of later ones is void.
        say: is told where they cannot be written.
    """

    def __init__(self, folder: Path, epoch: int, say: Callable[[str], None]) -> None:
        # TensorBoard's own sign that it is to do without TensorFlow, which it would import where there is one.
        sys.modules.setdefault("tensorboard.compat.notf", ModuleType("notf"))
        from torch.utils.tensorboard import SummaryWriter

        self._folder, self._say = folder, say
        self._writer: Any = None
        with self._or_without():
            self._writer = SummaryWriter(str(folder), purge_step=epoch)

    def add(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Write the numbers of an epoch."""
        if self._writer is not None:
            with self._or_without():
                for name, value in numbers.items():
                    self._writer.add_scalar(name, value, epoch)
                self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            with self._or_without():
                self._writer.close()

    @contextlib.contextmanager
    def _or_without(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writer = None
            reason = error.strerror or error
            self._say(f"warning: cannot write {self._folder}: {reason}; the run continues without TensorBoard's logs")
