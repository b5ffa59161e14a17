"""Which images are the same, by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from pathlib import Path

from spkd.data.images import FileImages, Images
from spkd.files import sha256


def twins(images: Images, others: Images) -> dict[int, int]:
    """Return the places of the images that are among others, and where each is there first.

    Of files the content is compared, else the pixels.

    >>> pixels = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1)
    >>> images = MemoryImages(pixels, torch.zeros(4, dtype=torch.int64))
    >>> twins(images.select(torch.tensor([0, 3])), images.select(torch.tensor([2, 3, 3])))
    {1: 1}
    """
    if isinstance(images, FileImages) and isinstance(others, FileImages):
        # Only files of one size can be the same, so that not all need be read.
        sizes, known_sizes = ([Path(path).stat().st_size for path in one.paths] for one in (images, others))
        common = set(sizes) & set(known_sizes)
        wanted = {place: sha256(Path(images.paths[place])) for place, size in enumerate(sizes) if size in common}
        known = {place: sha256(Path(others.paths[place])) for place, size in enumerate(known_sizes) if size in common}
    else:
        wanted, known = ({place: _pixels(one, place) for place in range(len(one))} for one in (images, others))
    first: dict[Hashable, int] = {}
    for place, content in known.items():
        first.setdefault(content, place)
    return {place: first[content] for place, content in wanted.items() if content in first}


def _pixels(images: Images, place: int) -> str:
    return hashlib.sha256(images.image(place).contiguous().numpy().data).hexdigest()
