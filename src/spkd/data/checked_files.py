"""Opening lists of image files: every file is checked before anything is done with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from spkd.data.decoding import header_size, map_files, most_of_16_bits, read_if_square
from spkd.data.faults import faults_of
from spkd.data.images import FileImages, Images, MemoryImages
from spkd.errors import InputError, UnreadableImage, some

SMALL = 96
"""Greatest side length, in pixels, of what counts as a small image."""
MEMORY_LIMIT = 2 * 2**30
"""Greatest number of bytes that a set of small images may take in memory."""
LOOKED_AT = 16
"""Of how many files the size is looked at where they are too many for that, and the depth."""
DARK = 65535 // 8
"""Greatest value of images of 16 bits that are nearly black, as those of 10 or 12 bits in such files are."""


@dataclass(frozen=True)
class CheckedFiles:
    """Image files that can be read.

    Args:
        images: in memory when all are squares of one size of at most ``SMALL`` pixels, else as files.
        kept: places of the images in the list that was given, int64, shape (len(images),).
        notes: what was left out, and what is nearly black.
        notes_of_size: what to know in training of small images that are too many for the memory.
    """

    images: Images
    kept: Tensor
    notes: tuple[str, ...]
    notes_of_size: tuple[str, ...] = ()


def open_files(paths: Sequence[str], targets: Sequence[int], skip_bad: bool) -> CheckedFiles:
    """Decode every file once, so that a broken one is found now and not hours into training.

    Args:
        paths: the files.
        targets: class of each.
        skip_bad: leave out files that cannot be read, and say so in the notes.

    Raises:
        InputError: naming the first file that cannot be read, unless ``skip_bad``; or when none can.
    """
    pixels, faults = _decode_small(paths)
    if pixels is None:
        faults = faults_of(paths)
    notes = (*_judge(paths, faults, skip_bad), *_notes_of_depth(paths))
    kept = torch.tensor([place for place, fault in enumerate(faults) if fault is None], dtype=torch.int64)
    kept_targets = torch.tensor(targets, dtype=torch.int64)[kept]
    kept_paths = [paths[place] for place in kept.tolist()]
    if pixels is None:
        return CheckedFiles(FileImages(kept_paths, kept_targets), kept, notes, _notes_of_size(paths))
    return CheckedFiles(MemoryImages(pixels, kept_targets, kept_paths), kept, notes)


def _decode_small(paths: Sequence[str]) -> tuple[Tensor | None, list[str | None]]:
    """Return the pixels of the files that can be read, (n, 3, size, size), and each file's fault or None.

    There are no pixels when the images are not all small squares of one size, or too many for the memory.
    """
    size = _small_size(paths)
    if size is None or _bytes(size, len(paths)) > MEMORY_LIMIT:
        return None, []
    found = map_files(partial(read_if_square, size=size), paths)
    if any(item is None for item in found):
        return None, []
    pixels = [item for item in found if isinstance(item, np.ndarray)]
    if not pixels:
        return None, []
    stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    return stacked, [item if isinstance(item, str) else None for item in found]


def _small_size(paths: Sequence[str]) -> int | None:
    """Return the side length of the first image that can be looked at; None where that is no small square."""
    width, height = next((size for size in map(header_size, paths) if size is not None), (0, 0))
    return width if 0 < width == height <= SMALL else None


def _bytes(size: int, count: int) -> int:
    return 3 * size * size * count


def _notes_of_size(paths: Sequence[str]) -> tuple[str, ...]:
    """Return a line where small images of one size are not held in memory because they are too many."""
    size = _small_size(paths)
    if size is None or _bytes(size, len(paths)) <= MEMORY_LIMIT:
        return ()
    if any(found not in (None, (size, size)) for found in map(header_size, paths[:: -(-len(paths) // LOOKED_AT)])):
        return ()
    return (
        f"{len(paths):,} images of {size} × {size} pixels are too many to hold in memory, and are read from their "
        f"files in every epoch; --image_size {size} --view whole shows them unchanged",
    )


def _notes_of_depth(paths: Sequence[str]) -> tuple[str, ...]:
    """Return a line where the images of 16 bits among some of the files, evenly spread, are all nearly black."""
    few = paths[:: max(1, -(-len(paths) // LOOKED_AT))]
    found = [(most, path) for path in few if (most := most_of_16_bits(path)) is not None]
    if not found or max(found)[0] > DARK:
        return ()
    most, path = max(found)
    return (
        f"warning: {len(found)} of {len(few)} image files that were checked have 16 bits, but no value above {most:,} "
        f"of 65,535 ({path}), so they are nearly black: scale their values up to the whole range",
    )


def _judge(paths: Sequence[str], faults: Sequence[str | None], skip_bad: bool) -> tuple[str, ...]:
    """Raise for the files that cannot be read, or return the note on leaving them out."""
    bad = [(path, fault) for path, fault in zip(paths, faults, strict=True) if fault is not None]
    if not bad:
        return ()
    path, fault = bad[0]
    if skip_bad and len(bad) < len(paths):
        return (f"left out {len(bad)} of {len(paths)} files that cannot be read, the first: {path} ({fault})",)
    if skip_bad:
        raise InputError(
            f"data: none of {len(paths)} files can be read, the first: {path} ({fault}); check that they are images"
        )
    others = ""
    if len(bad) > 1:
        named = some([other for other, _ in bad[1:]], 5)
        others = f", nor can {len(bad) - 1} more of {len(paths)} files: {named}"
    raise UnreadableImage(f"image {path} cannot be read ({fault}){others}")
