"""A tape: what a teacher said of every batch of a training stream, on disk, to be played to any number of students."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spkd.errors import InputError, UnusableFolder
from spkd.files import not_now, open_to_write, reserve, write_json_atomically

FORMAT = 1
_HASHED = {
    "teacher_files": "with other weights or code of the teacher",
    "teacher_weights_loaded": "with other weights of the teacher",
    "images": "of other images",
    "unlabelled": "of other images without a label",
}
TapeDtype = Literal["float16", "float32"]


@dataclass(frozen=True)
class Memory:
    """What one kind of loss remembers of a batch.

    Attributes:
        file: stem of its two files.
        dtype: of the values on disk, a numpy name.
        full: shape for a full batch.
        last: shape for the last batch of an epoch, which may be smaller.

    Raises:
        ValueError: when the stem is none that :meth:`Tape.add` gives: it may lead out of the folder.
    """

    file: str
    dtype: str
    full: tuple[int, ...]
    last: tuple[int, ...]

    def __post_init__(self) -> None:
        if re.search(r"[^\w.-]", self.file):
            raise ValueError(f"a memory's file cannot be {self.file!r}")

    @property
    def slot_bytes(self) -> int:
        """Bytes that a batch takes."""
        return int(np.prod(self.full)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Manifest:
    """What ``tape.json`` holds besides the format's number.

    Attributes:
        identity: everything that decides what the teacher says, by name.
        dtype: in which floating-point values are stored.
        batches_per_epoch: of the stream.
        precision: in which the teacher computed: ``32-true`` or ``bf16-true``.
        block_ends: the teacher's layers that can be compared, in order of execution.
        teacher: facts for reports: its errors, and in which view of the images they were measured.
        memories: by the names that :class:`~spkd.losses.objective.Term` gives them.

    Raises:
        ValueError: when there is no batch in an epoch.
    """

    identity: Mapping[str, Any]
    dtype: TapeDtype
    batches_per_epoch: int
    precision: Literal["32-true", "bf16-true"]
    block_ends: tuple[str, ...]
    teacher: Mapping[str, Any]
    memories: Mapping[str, Memory] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.batches_per_epoch < 1:
            raise ValueError(f"it has {self.batches_per_epoch} batches in an epoch")


class Tape:
    """The tape in a folder: ``tape.json``, and for each memory a file of values and one of check sums.

    A batch's values lie at a place that its step in the run gives, so that they can be written in any order and read
    without an index. A check sum is written after them: values that a kill, a full disk or a fault left incomplete do
    not fit it and count as not recorded.

    Args:
        folder: of the tape.
        manifest: what ``tape.json`` holds.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._maps: dict[Path, NDArray[np.uint8]] = {}

    @classmethod
    def open(cls, folder: Path) -> Tape | None:
        """Return the tape in ``folder``, None where there is no folder or one without files, hidden ones aside.

        Raises:
            UnusableFolder: for a folder that holds something else, or a tape of another format.
            InputError: for a tape that cannot be read at the moment.
        """
        path = folder / "tape.json"
        if not path.exists():
            if folder.exists() and (not folder.is_dir() or any(entry.name[0] != "." for entry in folder.iterdir())):
                raise UnusableFolder(f"{folder} is not a tape, and not empty", "give another folder")
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("format") != FORMAT:
                raise UnusableFolder(f"{path} was written by another version", "record to another folder")
            memories = {
                name: Memory(**{**one, "full": tuple(one["full"]), "last": tuple(one["last"])})
                for name, one in content.pop("memories").items()
            }
            ends = tuple(content.pop("block_ends"))
            return cls(folder, Manifest(**content, block_ends=ends, memories=memories))
        except OSError as error:
            raise not_now(path, error) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, UnusableFolder):
                raise
            raise UnusableFolder(f"{path} is damaged ({error})", f"remove {folder} and record again") from error

    @staticmethod
    def erase(folder: Path) -> None:
        """Remove the tape in ``folder``, if there is one, and no other file."""
        for path in [folder / "tape.json", *folder.glob("*.data"), *folder.glob("*.sums")]:
            path.unlink(missing_ok=True)

    def save(self) -> None:
        """Write ``tape.json``."""
        write_json_atomically(self.folder / "tape.json", {"format": FORMAT, **asdict(self.manifest)})

    def check(self, identity: Mapping[str, Any], precision: str, dtype: str | None) -> None:
        """Refuse to be played to, or recorded for, a run of another identity.

        Raises:
            UnusableFolder: naming the first field that differs.
        """
        own = self.manifest.identity
        wanted = {"teacher_precision": precision, "tape_dtype": dtype}
        there = {"teacher_precision": self.manifest.precision, "tape_dtype": self.manifest.dtype}
        noted = [name for name in identity if name not in own and name != "teacher_weights_loaded"]  # of late only
        for name in [*own, *noted]:
            if own.get(name) != identity.get(name):
                self._refuse(name, own.get(name), identity.get(name))
        for name, value in wanted.items():
            if value not in (None, "auto", there[name]):
                self._refuse(name, there[name], value)

    def _refuse(self, name: str, there: object, wanted: object) -> None:
        if name in _HASHED:
            raise UnusableFolder(f"{self.folder} was recorded {_HASHED[name]}", f"give another --tape folder ({name})")
        raise UnusableFolder(
            f"{self.folder} was recorded with {name} {_short(there)}, this run has {_short(wanted)}",
            "give another --tape folder, or run with the same",
        )

    def slot_bytes(self, full: Tensor) -> int:
        """Return the bytes that a step takes of which ``full`` is what is remembered of a full batch."""
        return full.numel() * np.dtype(self._dtype_of(full)).itemsize

    def _dtype_of(self, value: Tensor) -> str:
        return self.manifest.dtype if value.is_floating_point() else str(value.cpu().numpy().dtype)

    def add(self, name: str, full: Tensor, last: Tensor) -> None:
        """Make room for a memory; ``full`` and ``last`` are what it is for a full and for an epoch's last batch."""
        stem = re.sub(r"[^\w.]+", "-", name)
        memory = Memory(stem, self._dtype_of(full), tuple(full.shape), tuple(last.shape))
        self.manifest = replace(self.manifest, memories={**self.manifest.memories, name: memory})

    def reserve(self, names: Iterable[str], steps: int) -> None:
        """Have the disk keep room for so many steps of these memories, where it can, or for none of them.

        Raises:
            OSError: when there is too little.
        """
        before: dict[Path, int | None] = {}
        try:
            for memory in map(self.manifest.memories.__getitem__, names):
                path = self._path(memory, "data")
                before[path] = path.stat().st_size if path.exists() else None
                reserve(path, steps * memory.slot_bytes)
        except OSError:
            for path, size in before.items():
                path.unlink(missing_ok=True) if size is None else os.truncate(path, size)
            raise

    def room_of(self, name: str) -> int:
        """Return the bytes that the disk keeps for a memory, whether they have been written or not."""
        memory = self.manifest.memories.get(name)
        path = None if memory is None else self._path(memory, "data")
        return 0 if path is None or not path.exists() else 512 * path.stat().st_blocks

    def steps_in(self, epochs: int) -> int:
        """Return how many steps so many epochs have, each with a place on the tape."""
        return epochs * self.manifest.batches_per_epoch

    def bytes_of(self, names: Iterable[str], epochs: int) -> int:
        """Return the bytes that these memories take for so many epochs."""
        return self.steps_in(epochs) * sum(self.manifest.memories[name].slot_bytes for name in names)

    def steps(self, name: str) -> int:
        """Return up to which step a memory has been recorded, with or without gaps."""
        return len(self._sums(self.manifest.memories[name]))

    def is_recorded(self, names: Sequence[str], steps: int) -> NDArray[np.bool_]:
        """Return for each of the first ``steps`` steps whether all of these memories have been written."""
        done = np.ones(steps, dtype=bool)
        for name in names:
            memory = self.manifest.memories.get(name)
            sums = np.zeros(0, np.uint64) if memory is None else self._sums(memory)[:steps]
            done[: len(sums)] &= sums != 0
            done[len(sums) :] = False
        return done

    def recorded(self, names: Sequence[str], steps: int) -> int:
        """Return for how many of the first ``steps`` steps all of these memories have been written."""
        return int(self.is_recorded(names, steps).sum())

    def read(self, step: int, names: Iterable[str]) -> dict[str, Tensor] | None:
        """Return what was written of a step, or None where any of it is missing or incomplete."""
        found = {}
        for name in names:
            memory = self.manifest.memories[name]
            shape, sums = self._shape(memory, step), self._sums(memory)
            if step >= len(sums) or sums[step] == 0:
                return None
            size = int(np.prod(shape)) * np.dtype(memory.dtype).itemsize
            first = step * memory.slot_bytes
            content = self._map(self._path(memory, "data"), first + size)[first : first + size].tobytes()
            if len(content) < size or _check_sum(content) != sums[step]:
                return None
            found[name] = torch.frombuffer(bytearray(content), dtype=getattr(torch, memory.dtype)).view(shape)
        return found

    def write(self, step: int, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Write what a teacher said of a step, and return it as :meth:`read` will.

        Raises:
            InputError: when the disk is full, or as :meth:`rounded`.
        """
        stored = self.rounded(step, values)
        for name, value in stored.items():
            memory, content = self.manifest.memories[name], value.numpy().tobytes()
            self._put(self._path(memory, "data"), step * memory.slot_bytes, content)
            self._put(self._path(memory, "sums"), 8 * step, np.uint64(_check_sum(content)).tobytes())
        return stored

    def rounded(self, step: int, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what a teacher said of a step as the tape keeps it, in the main memory.

        Raises:
            InputError: when a value is too large for the tape's precision, or has another shape than there is room
                for.
        """
        stored = {}
        for name, value in values.items():
            memory = self.manifest.memories[name]
            rounded = value.detach().cpu().to(getattr(torch, memory.dtype)).contiguous()
            if rounded.is_floating_point() and not _is_kept(value.detach().cpu(), rounded):
                raise InputError(
                    f"--tape {self.folder}: the memory {name!r} holds values that {memory.dtype} cannot: "
                    "record to another folder with --tape_dtype float32"
                )
            if tuple(rounded.shape) != self._shape(memory, step):
                raise InputError(
                    f"--tape {self.folder}: the memory {name!r} had shape {self._shape(memory, step)}, now "
                    f"{tuple(rounded.shape)}; what a loss remembers must depend on the batch's size alone"
                )
            stored[name] = rounded
        return stored

    def forget(self, step: int, names: Iterable[str]) -> None:
        """Mark a step as not recorded."""
        for name in names:
            self._put(self._path(self.manifest.memories[name], "sums"), 8 * step, bytes(8))

    def damaged(self, name: str) -> list[int]:
        """Read all that was written of a memory and return the steps whose values do not fit their check sums."""
        written = np.flatnonzero(self._sums(self.manifest.memories[name])).tolist()
        return [step for step in written if self.read(step, [name]) is None]

    def forget_damaged(self) -> int:
        """Mark the damaged steps of all memories as not recorded, and return how many there are."""
        damaged = 0
        for name in self.manifest.memories:
            for step in self.damaged(name):
                self.forget(step, [name])
                damaged += 1
        return damaged

    def _shape(self, memory: Memory, step: int) -> tuple[int, ...]:
        is_last = (step + 1) % self.manifest.batches_per_epoch == 0
        return memory.last if is_last else memory.full

    def _path(self, memory: Memory, kind: Literal["data", "sums"]) -> Path:
        return self.folder / f"{memory.file}.{kind}"

    def _sums(self, memory: Memory) -> NDArray[np.uint64]:
        path = self._path(memory, "sums")
        size = path.stat().st_size if path.exists() else 0
        return self._map(path, size)[: size // 8 * 8].view(np.uint64)

    def _map(self, path: Path, size: int) -> NDArray[np.uint8]:
        """Return the file memory-mapped, mapped anew when it has grown and more is wanted."""
        known = self._maps.get(path)
        if known is None or len(known) < size:
            empty = not path.exists() or path.stat().st_size == 0
            known = np.zeros(0, np.uint8) if empty else np.memmap(path, np.uint8, mode="r")
            self._maps[path] = known
        return known

    def _put(self, path: Path, offset: int, content: bytes) -> None:
        # Not through the map: a full disk would then be a bus error.
        try:
            handle = open_to_write(path)
            try:
                written = os.pwrite(handle, content, offset)
                if written != len(content):
                    raise OSError(28, "no space left on the device")
            finally:
                os.close(handle)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}; what was recorded before stays") from error


def _is_kept(value: Tensor, rounded: Tensor) -> bool:
    """Return whether rounding kept what is finite finite, and all within 1 % of the largest magnitude."""
    if not bool((rounded.isfinite() == value.isfinite()).all()):
        return False
    finite = value[value.isfinite()].double()
    error = (rounded[value.isfinite()].double() - finite).abs()
    return not finite.numel() or bool(error.max() <= 0.01 * finite.abs().max())


def _check_sum(content: bytes) -> int:
    """Return the CRC-32 of a step's bytes, above zero, which stands for not recorded."""
    return zlib.crc32(content) | 1 << 32


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
