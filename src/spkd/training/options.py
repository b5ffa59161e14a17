"""What a user asks for in a run: the request, and how it is carried out."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from spkd.data.options import LARGEST_SIZE, DataOptions
from spkd.errors import InputError

DEFAULT_TEACHER = "wrn-28-2"
"""The network that is trained on the digits where none is said, and their own teacher."""
DEFAULT_STUDENT = "wrn-10-1"
"""The digits' own student."""
NORMALISATIONS = (
    "imagenet, none (pixels in [0, 1]), or MEAN/STD, each one number, or one for each channel with commas, as in "
    "0.5/0.25"
)
"""What a user may say of the images that a network was trained with."""


@dataclass(frozen=True)
class Request:
    """One network to train, alone or distilled: all that decides the result, as the user said it.

    ``overrides`` holds recipe fields and loss weights by name (see :class:`spkd.training.recipe.Recipe`);
    a value of ``None`` leaves the recipe's own.
    """

    model: str
    weights: str | None = None
    normalisation: str | None = None
    replace_head: bool = False
    teacher: str | None = None
    teacher_weights: str | None = None
    teacher_normalisation: str | None = None
    teacher_size: int | None = None
    method: str = "none"
    taps: tuple[str, ...] = ("last",)
    data: DataOptions = field(default_factory=DataOptions)
    unlabelled: str | None = None
    recipe: str | None = None
    overrides: Mapping[str, object] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        for option in ("teacher_normalisation", "teacher_size"):
            if getattr(self, option) is not None and self.teacher is None:
                raise InputError(f"--{option}: there is no teacher; give --teacher")
        if self.teacher_size is not None and not 2 <= self.teacher_size <= LARGEST_SIZE:
            raise InputError(f"--teacher_size must be from 2 to {LARGEST_SIZE} pixels, not {self.teacher_size}")


@dataclass(frozen=True)
class Runtime:
    """How a run is carried out, which is no part of what it is.

    Results are the same but for rounding, with three exceptions: on several devices batch norms see their device's part
    of a batch, or with ``sync_batchnorm`` the whole; dropout and stochastic depth draw other numbers on others or
    several; and a float16 tape rounds what the teacher says.

    Args:
        accelerator: cpu, cuda, mps, or auto for the best available.
        devices: number of devices of this machine that share each batch (under torchrun: as torchrun says).
        sync_batchnorm: on several GPUs, let batch norm see the whole batch, not only its device's part.
        timeout_seconds: how long the processes of one run wait for each other before they give up.
        compile: compile student and loss with torch.compile, and on a GPU also the teacher. On a single GPU a step is
            then one CUDA graph, unless the teacher sees larger images: what Python code decides in a forward pass is
            decided only once.
        max_time: stop with a checkpoint after this time, written as 90s, 30m, 1h30m or 01:30:00.
        checkpoint_seconds: time between checkpoints, checked after each step and each epoch; at least twenty times what
            writing one takes.
        tape: folder of a tape, which records what the teacher says when first used, and later plays it to any student
            and method on the same batches.
        tape_dtype: precision of a new tape, float16 or float32 (default: float16; an existing tape keeps its own).
    """

    accelerator: str = "auto"
    devices: int = 1
    sync_batchnorm: bool = False
    timeout_seconds: float = 600.0
    compile: bool = False
    max_time: str | None = None
    checkpoint_seconds: float = 30.0
    tape: str | None = None
    tape_dtype: Literal["float16", "float32"] | None = None

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise InputError(f"--devices must be at least 1, not {self.devices}")
        if not self.timeout_seconds > 0:
            raise InputError(f"--timeout_seconds must be above 0, not {self.timeout_seconds}")
        if not self.checkpoint_seconds >= 0:
            raise InputError(f"--checkpoint_seconds must be 0 or more, not {self.checkpoint_seconds}")

    def deadline(self) -> float | None:
        """Return the time (as of ``time.time()``) at which ``max_time`` from now is over, or None."""
        limit = seconds(self.max_time)
        return None if limit is None else time.time() + limit

    def without_tape(self) -> Runtime:
        """Return the same for a network that has no teacher."""
        return replace(self, tape=None, tape_dtype=None)

    def until(self, deadline: float | None) -> Runtime:
        """Return the same with the time that is left until ``deadline``."""
        return self if deadline is None else replace(self, max_time=f"{max(0.0, deadline - time.time()):.3f}")


def seconds(text: str | None) -> float | None:
    """Return a duration in seconds: ``90``, ``90s``, ``30m``, ``1h30m``, ``1:30:00``; ``None`` for none.

    >>> seconds("1h30m"), seconds("00:10:00"), seconds("45")
    (5400.0, 600.0, 45.0)

    Raises:
        InputError: for anything else.
    """
    if text is None:
        return None
    text = str(text).strip()
    if match := re.fullmatch(r"(?:(\d+):)?(\d+):(\d+)", text):
        hours, minutes, rest = (float(part or 0) for part in match.groups())
        return hours * 3600 + minutes * 60 + rest
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)", text):
        return float(match[1])
    match = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?", text)
    if not text or match is None:
        raise InputError(f"--max_time {text!r} is no duration: write 90s, 30m, 1h30m or 01:30:00")
    days, hours, minutes, rest = (float(part or 0) for part in match.groups())
    return days * 86400 + hours * 3600 + minutes * 60 + rest
