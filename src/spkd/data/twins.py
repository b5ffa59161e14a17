"""Which images are the same, by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path

from spkd.data.decoding import file_size, look_into, map_files
from spkd.data.images import FileImages, Images
from spkd.files import sha256

_BEGINNING = 2**12
"""Bytes of a file that are looked at before the whole is."""


def twins(images: Images, others: Images) -> dict[int, int]:
    """Return the places of the images that are among others, and where each is there first.

    Of files the content is compared, else the pixels.

    Raises:
        UnreadableImage: when a file that must be read cannot be.

    >>> import torch
    >>> from spkd.data.images import MemoryImages
    >>> images = MemoryImages(torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1), torch.zeros(4, dtype=torch.int64))
    >>> twins(images.select(torch.tensor([0, 3])), images.select(torch.tensor([2, 3, 3])))
    {1: 1}
    """
    if isinstance(images, FileImages) and isinstance(others, FileImages):
        wanted, known = _told_apart(dict(enumerate(images.paths)), dict(enumerate(others.paths)))
    else:
        wanted, known = ({place: _pixels(one, place) for place in range(len(one))} for one in (images, others))
    first: dict[Hashable, int] = {}
    for place, content in known.items():
        first.setdefault(content, place)
    return {place: first[content] for place, content in wanted.items() if content in first}


def _told_apart(wanted: dict[int, str], known: dict[int, str]) -> tuple[Mapping[int, Hashable], Mapping[int, Hashable]]:
    """Return by place the content of those files, of two lists, that may be the same.

    Most are told apart by their size, of others most by how they begin, so that few are read to the end.
    """
    found: tuple[dict[int, Hashable], dict[int, Hashable]] = ({}, {})
    for look in (file_size, _begins, sha256):
        found = _looked(look, wanted), _looked(look, known)
        common = set(found[0].values()) & set(found[1].values())
        wanted, known = (
            {place: paths[place] for place, content in one.items() if content in common}
            for paths, one in zip((wanted, known), found, strict=True)
        )
    return found


def _looked(look: Callable[[Path], Hashable], paths: Mapping[int, str]) -> dict[int, Hashable]:
    return dict(zip(paths, map_files(lambda path: look_into(path, look), list(paths.values())), strict=True))


def _begins(path: Path) -> tuple[int, bytes]:
    with path.open("rb") as file:
        return file_size(path), hashlib.sha256(file.read(_BEGINNING)).digest()


def _pixels(images: Images, place: int) -> str:
    return hashlib.sha256(images.image(place).contiguous().numpy().data).hexdigest()
