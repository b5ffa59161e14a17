"""Which images belong together, as those of one patient, object or video do: their paths tell, or a list."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from spkd.data.images import Images
from spkd.errors import InputError

Group = tuple[str | None, ...]
"""Name of a group: what the capture groups of an expression match in a path, or its whole match."""


@dataclass(frozen=True)
class Grouping:
    """What tells the group of an image.

    Args:
        expression: a regular expression of Python's, which is searched in the path.
        folder: the path begins below it; its parts are divided by ``/``.
    """

    expression: str
    folder: Path

    def of(self, paths: Iterable[str]) -> list[Group | None]:
        r"""Return the group of each image, None for one in whose path the expression is not found.

        >>> Grouping(r"(\w+)/patient(\d+)", Path("photos")).of(["photos/cat/patient7-1.png", "photos/cat/1.png"])
        [('cat', '7'), None]
        >>> Grouping(r"patient\d+", Path("photos")).of(["photos/cat/patient7-1.png"])
        [('patient7',)]
        """
        search = re.compile(self.expression).search
        above = str(self.folder / "_").removesuffix("_")
        found = (search(path.removeprefix(above).replace(os.sep, "/")) for path in paths)
        return [None if match is None else _named(match) for match in found]

    def of_sets(self, sets: Mapping[str, Images]) -> dict[str, list[Group]]:
        """Return the group of each image of several sets.

        Raises:
            InputError: when the expression is not found in an image's path.
        """
        paths = {name: images.paths or () for name, images in sets.items()}
        found = {name: self.of(of_set) for name, of_set in paths.items()}
        without = [
            path
            for name, groups in found.items()
            for path, group in zip(paths[name], groups, strict=True)
            if group is None
        ]
        if without:
            total = sum(map(len, paths.values()))
            raise InputError(
                f"groups: {self.expression} is not found in the paths of {len(without)} of the {total} images, the "
                f"first: {os.path.relpath(without[0], self.folder)} in {self.folder}; give an expression that is found "
                "in all"
            )
        return {name: [group for group in groups if group is not None] for name, groups in found.items()}


@dataclass(frozen=True)
class ListedGroups:
    """Groups of images that a list tells.

    Args:
        groups: the group of each image by its path.
    """

    groups: Mapping[str, Group]

    def of_sets(self, sets: Mapping[str, Images]) -> dict[str, list[Group]]:
        """Return the group of each image of several sets, all of which are listed."""
        return {name: [self.groups[path] for path in images.paths or ()] for name, images in sets.items()}


Groups = Grouping | ListedGroups
"""What tells which images belong together."""


def _named(match: re.Match[str]) -> Group | None:
    """Return what names the group, None where all that could name it takes no part."""
    groups: Group = match.groups() or (match[0],)
    return None if set(groups) == {None} else groups


def numbered(sets: Mapping[str, Sequence[Group]]) -> dict[str, Tensor]:
    """Return numbers for the groups of several sets, int64, shape (n,) for each: their places in the order of names.

    >>> numbered({"train": [("b",), ("a",), ("b",)], "val": [("c",)]})
    {'train': tensor([1, 0, 1]), 'val': tensor([2])}
    """
    names = sorted({group for groups in sets.values() for group in groups}, key=repr)  # of which parts may be None
    places = {name: place for place, name in enumerate(names)}
    return {name: torch.tensor([places[group] for group in groups], dtype=torch.int64) for name, groups in sets.items()}


def note_of_parted(sets: Mapping[str, Sequence[Group]]) -> list[str]:
    """Return a line where a group has images in more than one of the sets that were given.

    >>> note_of_parted({"train": [("p1",), ("p2",)], "test": [("p2",)]})[0][:83]
    "warning: 1 of 2 groups has images in several of the sets (the first: 'p2' in train "
    """
    distinct = {name: set(groups) for name, groups in sets.items()}
    shared = {pair: distinct[pair[0]] & distinct[pair[1]] for pair in combinations(sets, 2)}
    parted = set().union(*shared.values())
    if not parted:
        return []
    (one, other), groups = next((pair, groups) for pair, groups in shared.items() if groups)
    first = ", ".join(map(repr, min(groups, key=repr)))
    many = f"{len(parted)} of {len(set().union(*distinct.values()))} groups {'has' if len(parted) == 1 else 'have'}"
    return [
        f"warning: {many} images in several of the sets (the first: {first} in {one} and {other}), so that errors are "
        "too low: keep the images of each in one set"
    ]
