"""How a list of images and labels is named: ``labels.csv``, or with arguments as in ``labels.csv?label=diagnosis``."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import unquote

from spkd.errors import InputError, nearest
from spkd.imports import argument_texts

ENDINGS = (".csv", ".tsv")
"""Endings, in any case, of the files that are lists."""
_NAMED = re.compile(r"(?P<file>.+?(?:\.csv|\.tsv))(?:\?(?P<arguments>.*))?", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class ListSpec:
    """Which file is a list, and how it is to be read.

    Attributes:
        file: its path.
        path: name of the column of the images' paths (None, here and below: one of the usual names).
        label: name of the column of classes.
        split: name of the column of sets.
        group: name of the column of groups.
        root: folder in which relative paths begin (None: that of the file).
        suffix: what is put behind each path.
    """

    file: str
    path: str | None = None
    label: str | None = None
    split: str | None = None
    group: str | None = None
    root: str | None = None
    suffix: str | None = None

    def __str__(self) -> str:
        given = {field.name: getattr(self, field.name) for field in fields(self)[1:]}
        arguments = "&".join(f"{name}={_quoted(value)}" for name, value in given.items() if value is not None)
        return f"{self.file}?{arguments}" if arguments else self.file


def list_named(data: str) -> ListSpec | None:
    """Return the list that a text names, None where it does not name one.

    In its arguments ``%26`` is read as ``&``, and ``%25`` as ``%``, as in an address.

    Raises:
        InputError: when an argument is unknown, given twice or without a value.

    >>> list_named("my/labels.csv?label=diagnosis&root=my/photos")
    ListSpec(file='my/labels.csv', path=None, label='diagnosis', split=None, group=None, root='my/photos', suffix=None)
    >>> str(list_named("labels.TSV?suffix=.jpg&path=id")), list_named("photos")
    ('labels.TSV?path=id&suffix=.jpg', None)
    """
    found = _NAMED.fullmatch(data)
    if found is None:
        return None
    arguments = argument_texts(found["arguments"] or "")
    known = [field.name for field in fields(ListSpec)[1:]]
    if unknown := next((name for name in arguments if name not in known), None):
        raise InputError(
            f"data: the list {found['file']} takes {', '.join(known[:-1])} and {known[-1]} after '?', not {unknown!r}."
            f"{nearest(unknown, known)}"
        )
    return ListSpec(found["file"], **{name: unquote(value) for name, value in arguments.items()})


def _quoted(value: str) -> str:
    return value.replace("%", "%25").replace("&", "%26")


def place_of(data: str) -> str:
    """Return the path in a text that names a folder or a list.

    >>> place_of("my/labels.csv?label=diagnosis"), place_of("photos")
    ('my/labels.csv', 'photos')
    """
    listed = list_named(data)
    return data if listed is None else listed.file


def short_name(data: str) -> str:
    """Return what images are called in the names of folders.

    >>> short_name("my/labels.csv?label=diagnosis"), short_name("my/photos"), short_name("dtd?partition=3")
    ('labels', 'photos', 'dtd?partition=3')
    """
    listed = list_named(data)
    return Path(data).name if listed is None else Path(listed.file).stem
