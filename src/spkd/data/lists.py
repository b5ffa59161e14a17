"""Lists of images and labels in CSV files, with or without columns of sets and groups."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spkd.data.decoding import map_files
from spkd.data.formats import EXTENSIONS
from spkd.data.groups import Grouping, Groups, ListedGroups
from spkd.data.images import ImageData
from spkd.data.labelled_files import LabelledFiles, opened, with_targets
from spkd.data.list_spec import ListSpec
from spkd.data.splits import SPLIT_NAMES
from spkd.data.table import Table, read_table
from spkd.errors import InputError, nearest, some
from spkd.files import is_file, is_folder

_USUAL = {
    "path": ("path", "image", "file", "filename", "file_name", "filepath", "file_path", "image_path"),
    "label": ("label", "class"),
    "split": ("split",),
    "group": ("group",),
}
"""Names of columns by what they tell, in lower case; an underscore may be a space."""


@dataclass(frozen=True)
class _Columns:
    """What the rows of a list tell; None where they do not.

    Attributes:
        root: folder in which relative paths begin.
        paths: the file of each image, below ``root`` or where an absolute path leads.
        labels: its class.
        splits: its set.
        groups: its group.
    """

    root: Path
    paths: list[str]
    labels: list[str]
    splits: list[str] | None
    groups: list[str] | None


def load_list(
    spec: ListSpec,
    file: Path,
    *,
    skip_bad_images: bool = False,
    divided: bool = True,
    groups: str | None = None,
) -> ImageData:
    """Load the images of a list, as :func:`spkd.data.folder.load_folder` does those of a folder.

    The same images in the same sets and classes, by the same paths, give the same data as a folder of them does: the
    order of the rows does not matter.

    Args:
        spec: how the list is to be read.
        file: where it is.
        skip_bad_images: leave out files that are not there or cannot be read instead of stopping.
        divided: as of a folder.
        groups: as of a folder; of a path below the folder in which the list's paths begin.

    Raises:
        InputError: when the list is no table, has no column of paths or of labels, or a cell of those that are used is
            empty; when an image is there twice, a set is unknown, there are fewer than two classes, or a class of
            ``val`` or ``test`` that ``train`` lacks; when groups are told twice, or there is no folder ``root`` or no
            file of an image; and as :func:`spkd.data.labelled_files.opened` does.
    """
    files = _read(spec, file, skip_bad_images=skip_bad_images, divided=divided, groups=groups)
    return opened(files, skip_bad_images=skip_bad_images, divided=divided)


def paths_begin(spec: ListSpec, file: Path) -> Path:
    """Return the folder in which the relative paths of a list begin.

    Raises:
        InputError: when there is no such folder.
    """
    root = file.parent if spec.root is None else Path(spec.root).expanduser()
    if not is_folder(root):
        raise InputError(f"data: no folder {root.resolve()}, in which the paths of {file} are to begin; check root=")
    return root.absolute()


def _read(spec: ListSpec, file: Path, *, skip_bad_images: bool, divided: bool, groups: str | None) -> LabelledFiles:
    usual = [name for names in _USUAL.values() for name in names]
    given: dict[str, str | None] = {part: getattr(spec, part) for part in _USUAL}
    table = read_table(file, {*usual, *(name for name in given.values() if name is not None)})
    places = {part: _find_column(table, spec, part, given) for part in _USUAL}
    columns = _read_columns(table, spec, places)
    if groups is not None and columns.groups is not None:
        raise InputError(
            f"groups: the column {_named(table, places['group'])} of {file} tells which images belong together; leave "
            "--groups out, or the column"
        )
    ordered = sorted(range(len(table.rows)), key=lambda row: (columns.labels[row], columns.paths[row]))
    _refuse_repeated(table, columns)
    sets = _sets(table, columns, ordered)
    classes = tuple(sorted({columns.labels[row] for row in sets["train"]}))
    _check_classes(table, columns, sets, classes, _named(table, places["label"]), least=2 if divided else 1)
    _require_files(table, columns.paths, spec, skip_bad_images)
    told: Groups | None = None if groups is None else Grouping(groups, columns.root)
    if columns.groups is not None:
        told = ListedGroups({path: (group,) for path, group in zip(columns.paths, columns.groups, strict=True)})
    unused = [repr(name) for place, name in enumerate(table.columns) if place not in places.values()]
    return LabelledFiles(
        place=file,
        name=file.stem,
        classes=classes,
        sets={
            split: with_targets([columns.paths[row] for row in rows], [columns.labels[row] for row in rows], classes)
            for split, rows in sets.items()
        },
        groups=told,
        advice="say which in a column group or by --groups, or name the sets in a column split",
        notes=(f"columns of {file} that are not used: {some(unused, 5)}",) if unused else (),
    )


def _find_column(table: Table, spec: ListSpec, part: str, given: Mapping[str, str | None]) -> int | None:
    """Return the place of the column that tells a part; None where it may be missing and is.

    It is the one of the name that is given for it, else the one of a usual name that is given for no other.
    """
    name = given[part]
    there = some([repr(column) for column in table.columns], 8)
    example = f"'{_told(spec, part, 'COLUMN')}'"
    if name is None:
        plain = ["" if one in given.values() else one.lower().replace(" ", "_") for one in table.columns]
        names = _USUAL[part]
        if part == "label":  # what a network said may stand in a column class beside the label
            names = next(((usual,) for usual in names if usual in plain), names)
        places = [place for place, column in enumerate(plain) if column in names]
        if not places and part in ("path", "label"):
            raise InputError(
                f"data: {table.file} has no column of {'images' if part == 'path' else 'classes'} "
                f"({', '.join(names)}) but {there}: name it as in {example}, or put names above the columns where "
                "there are none"
            )
    else:
        places = [place for place, column in enumerate(table.columns) if column == name]
        if not places:
            raise InputError(
                f"data: {table.file} has no column {name!r}, which {part}= names, but {there}."
                f"{nearest(name, table.columns)} Give one of them"
            )
    if len(places) > 1:
        found = " and ".join(repr(table.columns[place]) for place in places)
        advice = f"name one as in {example}" if name is None else "give each another name"
        raise InputError(f"data: {table.file} has several columns that may be its {part}, {found}; {advice}")
    return places[0] if places else None


def _named(table: Table, place: int | None) -> str:
    return "" if place is None else repr(table.columns[place])


def _read_columns(table: Table, spec: ListSpec, places: Mapping[str, int | None]) -> _Columns:
    missing = {
        "path": "give the file of each image",
        "label": "give each image its class; those without one can be given by --unlabelled",
        "split": "give each image its set, train, val or test",
        "group": "give an image that belongs to no other a group of its own",
    }
    cells: dict[str, list[str]] = {}
    for part, place in places.items():
        if place is None:
            continue
        cells[part] = [row[place] for row in table.rows]
        empty = [number for number, cell in zip(table.numbers, cells[part], strict=True) if not cell]
        if empty:
            raise InputError(
                f"data: in {len(empty)} of the {len(table.rows)} rows of {table.file} the column "
                f"{_named(table, place)} is empty, first in row {empty[0]}; {missing[part]}"
            )
    root = paths_begin(spec, table.file)
    paths = [str(root / f"{path}{spec.suffix or ''}") for path in cells["path"]]
    return _Columns(root, paths, cells["label"], cells.get("split"), cells.get("group"))


def _refuse_repeated(table: Table, columns: _Columns) -> None:
    """Refuse an image that is listed twice: it would be learnt twice, or be in two sets."""
    first: dict[str, int] = {}
    repeated = []
    for row, path in enumerate(map(os.path.normpath, columns.paths)):
        if (before := first.setdefault(path, row)) != row:
            repeated.append((before, row))
    if not repeated:
        return
    unlike = [(before, row) for before, row in repeated if columns.labels[before] != columns.labels[row]]
    before, row = (unlike or repeated)[0]
    one, other = columns.labels[before], columns.labels[row]
    labels = f"with the label {other!r} instead of {one!r}" if unlike else "with the same label"
    rows = f"1 row of {table.file} names" if len(repeated) == 1 else f"{len(repeated)} rows of {table.file} name"
    raise InputError(
        f"data: {rows} an image that is already listed: row {table.numbers[row]} repeats row {table.numbers[before]} "
        f"({columns.paths[row]}), {labels}; keep one row for each image"
    )


def _sets(table: Table, columns: _Columns, ordered: Sequence[int]) -> dict[str, list[int]]:
    """Return the places of the rows of each set that there is."""
    if columns.splits is None:
        return {"train": list(ordered)}
    meant = {name: split for split, names in SPLIT_NAMES.items() for name in names}
    for row, name in enumerate(columns.splits):
        if name.lower() not in meant:
            raise InputError(
                f"data: row {table.numbers[row]} of {table.file} is of the set {name!r}, not {', '.join(meant)}."
                f"{nearest(name, meant)} Write one of these in each row; leave split= out, or give the column another "
                "name if it tells no sets"
            )
    of_rows = [meant[name.lower()] for name in columns.splits]
    sets = {split: [row for row in ordered if of_rows[row] == split] for split in SPLIT_NAMES}
    found = {split: rows for split, rows in sets.items() if rows}
    if "train" not in found:
        raise InputError(
            f"data: {table.file} has images of {' and '.join(found)} but none of train; name the set of the training "
            "images train"
        )
    return found


def _check_classes(
    table: Table,
    columns: _Columns,
    sets: dict[str, list[int]],
    classes: tuple[str, ...],
    column: str,
    least: int,
) -> None:
    known = set(classes)
    for split, rows in sets.items():
        unknown = next((row for row in rows if columns.labels[row] not in known), None)
        if unknown is not None:
            label = columns.labels[unknown]
            raise InputError(
                f"data: class {label!r} of the {split} set (row {table.numbers[unknown]} of {table.file}) is missing "
                f"from the training set.{nearest(label, classes)} Add training images of it or remove it"
            )
    if len(classes) < least:
        raise InputError(
            f"data: expected at least two classes in the column {column} of {table.file}, got only {classes[0]!r}; "
            "name another column by label=, or add images of others"
        )


def _require_files(table: Table, paths: Sequence[str], spec: ListSpec, skip_bad: bool) -> None:
    """Refuse a list of images that are not there; with ``skip_bad`` only where none is."""
    missing = [row for row, there in enumerate(map_files(is_file, paths)) if not there]
    if not missing or (skip_bad and len(missing) < len(paths)):
        return
    path = str(Path(paths[missing[0]]).absolute())
    left_out = "" if skip_bad else ", or leave such images out by --skip_bad_images"
    raise InputError(
        f"data: {len(missing)} of the {len(paths)} images of {table.file} {'is' if len(missing) == 1 else 'are'} not "
        f"there, the first in row {table.numbers[missing[0]]}: no file {path}; {_advice(path, spec)}{left_out}"
    )


def _advice(path: str, spec: ListSpec) -> str:
    """Return what to do where there is no image of this path."""
    ending = next((ending for ending in sorted(EXTENSIONS) if is_file(path + ending)), None)
    if ending is not None and spec.suffix is None:
        return f"it is there with {ending} behind it, so say '{_told(spec, 'suffix', ending)}'"
    if "\\" in path and os.sep == "/":
        return "write paths with / and not \\"
    if spec.root is None:
        return f"where the paths begin in another folder, say '{_told(spec, 'root', 'FOLDER')}'"
    return "check the paths and root="


def _told(spec: ListSpec, argument: str, value: str) -> str:
    """Return how a list is named with another argument."""
    return str(replace(spec, **{argument: value}))
