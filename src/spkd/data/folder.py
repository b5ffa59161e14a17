"""Any folder of images: one folder per class, with or without train, val and test folders above them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spkd.data.decoding import reason
from spkd.data.formats import EXTENSIONS
from spkd.data.groups import Grouping
from spkd.data.images import ImageData
from spkd.data.labelled_files import LabelledFiles, opened, with_targets
from spkd.data.splits import SPLIT_NAMES
from spkd.errors import InputError, nearest, some
from spkd.files import is_file, is_folder, is_utf8

_LITTER = frozenset(
    {
        *("thumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "__macosx", "lost+found"),
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@tmp"),
    }
)
"""Names, in lower case, of what systems, archives and network disks leave, thumbnails of the images among it."""

_USUAL = ("train", "val", "valid", "validation", "test")
"""Those that are taken for sets whatever they hold."""


@dataclass(frozen=True)
class FoundFiles:
    """The files below a folder.

    Attributes:
        images: paths of those that are images by their names.
        others: how many others there are of each ending, in lower case; hidden files do not count.
    """

    images: list[str]
    others: Counter[str]


@dataclass(frozen=True)
class _Listing:
    """The image files of one split, the class of each by name, and how many other files there are by ending."""

    paths: list[str]
    labels: list[str]
    others: Counter[str]


def load_folder(
    folder: Path, *, skip_bad_images: bool = False, divided: bool = True, groups: str | None = None
) -> ImageData:
    """Load a folder of images.

    Either ``folder`` holds ``train/`` (or ``training/``), and perhaps ``val/`` (or ``valid/``, ``validation/``) and
    ``test/`` (or ``testing/``), each with one folder per class, or it holds the class folders themselves. Sets that are
    missing are cut from the others (see :func:`spkd.data.splits.complete_splits`). Classes are in the order
    of their names; images may lie deeper in a class's folder; hidden files are passed over, and files of other endings,
    which a note counts. All images are read as RGB, upright, whatever their mode; every file is decoded once to see
    that it can be.

    Args:
        folder: an existing folder.
        skip_bad_images: leave out files that cannot be read instead of stopping.
        divided: whether sets that are missing are cut from the others. Otherwise they stay empty, and a single
            class and a single image do.
        groups: expression that tells the group of an image (see :class:`spkd.data.groups.Grouping`), of which none is
            divided where sets are cut.

    Raises:
        InputError: when there are fewer than two classes, an empty class, a class of ``val`` or ``test`` that
            ``train`` lacks, a file or folder that cannot be read, or an image that is of no group.
    """
    roots, notes = _split_roots(folder)
    listings = {split: _list_images(root) for split, root in roots.items()}
    classes = tuple(sorted(_class_folders(roots["train"])))
    _check_classes(folder, roots, listings, classes, least=2 if divided else 1)
    others = sum((listing.others for listing in listings.values()), Counter[str]())
    files = LabelledFiles(
        place=folder,
        name=folder.resolve().name,
        classes=classes,
        sets={split: with_targets(listing.paths, listing.labels, classes) for split, listing in listings.items()},
        groups=None if groups is None else Grouping(groups, folder),
        advice="say by --groups which, or give val/ and test/ of your own",
        notes=(*notes, *note_of_others(folder, others), *_note_of_loose((folder, *roots.values()))),
    )
    return opened(files, skip_bad_images=skip_bad_images, divided=divided)


def _split_roots(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Return the folder of each split that is there, and a note of folders beside them.

    It is ``folder`` itself as ``train`` when it has no splits. Names in other spellings than the usual ones are those
    of splits where they hold folders: a class may be called "Training".

    Raises:
        InputError: when a split is there twice, when there is one but no ``train``, and when what is named as a split
            is likely to be a class.
    """
    roots: dict[str, Path] = {}
    inside = sorted(_class_folders(folder))
    _refuse_ambiguous(folder, inside)
    for split, names in SPLIT_NAMES.items():
        named = [folder / name for name in inside if name.lower() in names]
        there = [path for path in named if path.name in _USUAL or _class_folders(path)]
        if len(there) > 1:
            raise InputError(f"data: {folder} has both {there[0].name}/ and {there[1].name}/; keep one of them")
        if there:
            roots[split] = there[0]
    if roots and "train" not in roots:
        has = " and ".join(f"{root.name}/" for root in roots.values())
        raise InputError(f"data: {folder} has {has} but no train/; name the folder of training images train/")
    others = sorted(set(inside) - {root.name for root in roots.values()})
    if not roots or not others:
        return roots or {"train": folder}, []
    shown = some([f"{name}/" for name in others], 5)
    return roots, [f"not used, since there is {roots['train'].name}/: {shown}"]


def _refuse_ambiguous(folder: Path, inside: Sequence[str]) -> None:
    """Refuse a single folder with the name of a split that holds images itself, as those beside it do."""
    splits = [name for name in inside if name in _USUAL]
    if len(splits) != 1 or len(inside) == 1 or _class_folders(folder / splits[0]):
        return
    if all(find_files(folder / name).images for name in inside):
        raise InputError(
            f"data: {folder / splits[0]} has the name of a set and holds images as the folders beside it do: if it is "
            f"a class, put the folders of all classes into {folder / 'train'}; if it is a set, move it elsewhere"
        )


def _class_folders(root: Path) -> list[str]:
    try:
        entries = [entry for entry in root.iterdir() if not passed_over(entry.name)]
        # A name with an ending is that of a file beside the folders.
        dead = next((one for one in entries if one.is_symlink() and not one.suffix and not one.exists()), None)
        folders = [entry.name for entry in entries if entry.is_dir()]
    except OSError as error:
        raise InputError(f"data: cannot look into {root} ({reason(error)}); check its permissions") from error
    if dead is not None:
        raise InputError(f"data: {dead} is a link to what is not there ({dead.readlink()}); mend or remove it")
    return folders


def passed_over(name: str) -> bool:
    """Tell whether a name is hidden, on any system, or that of litter."""
    return name.startswith(".") or name.lower() in _LITTER


def is_image(name: str) -> bool:
    """Tell whether a name is that of a file to be taken for an image."""
    return not passed_over(name) and Path(name).suffix.lower() in EXTENSIONS


def find_files(root: Path) -> FoundFiles:
    """Return all files below a folder, those of each folder before those deeper in it.

    Links are followed, but no folder is looked into twice, nor one that ``root`` lies in.

    Raises:
        InputError: when a folder may not be looked into.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"data: cannot look into {error.filename} ({reason(error)}); check its permissions") from error

    seen = {str(parent) for parent in Path(os.path.realpath(root)).parents}
    found = FoundFiles([], Counter())
    for above, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        place = os.path.realpath(above)
        folders[:] = [] if place in seen else sorted(name for name in folders if not passed_over(name))
        if place not in seen:
            found.images.extend(str(Path(above) / name) for name in sorted(files) if is_image(name))
            others = (name for name in files if not passed_over(name) and not is_image(name))
            found.others.update(Path(name).suffix.lower() for name in others)
        seen.add(place)
    return found


def image_files(places: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the image files that are meant by files and folders, and lines on what is passed over.

    Of a folder they are all that are below.

    Raises:
        InputError: when there is no such file or folder, no image in one, or a name is not UTF-8.
    """
    paths: list[str] = []
    notes: list[str] = []
    for place in places:
        if is_folder(place):
            inside = find_files(Path(place))
            if not inside.images:
                raise InputError(f"there is no image in {place}")
            paths.extend(inside.images)
            notes.extend(note_of_others(Path(place), inside.others))
        elif is_file(place):
            paths.append(place)
        else:
            raise InputError(f"there is no image {place}")
    if (damaged := next((path for path in paths if not is_utf8(path)), None)) is not None:
        raise InputError(f"the name of the image {damaged!r} is not UTF-8; rename it")
    return paths, notes


def note_of_others(folder: Path, others: Counter[str]) -> list[str]:
    """Return a line for the files below a folder that are passed over, by ending; none where there are none.

    >>> note_of_others(Path("photos"), Counter({".txt": 2, ".heic": 900, "": 1}))
    ["passed over 903 files without an image's ending in photos: 900 .heic, 2 .txt, 1 with none"]
    """
    if not others:
        return []
    many = f"{others.total()} file{'' if others.total() == 1 else 's'}"
    commonest = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    named = ((ending if ending.isprintable() else repr(ending), count) for ending, count in commonest)
    shown = some([f"{count} {ending or 'with none'}" for ending, count in named], 5)
    return [f"passed over {many} without an image's ending in {folder}: {shown}"]


def _note_of_loose(roots: Iterable[Path]) -> list[str]:
    """Return a line for the images that lie beside class folders, not in one."""
    counts = {root: sum(is_image(entry.name) for entry in root.iterdir()) for root in dict.fromkeys(roots)}
    shown = ", ".join(f"{count} in {root}" for root, count in counts.items() if count)
    return [f"images that lie in no class folder are not used: {shown}"] if shown else []


def _list_images(root: Path) -> _Listing:
    paths: list[str] = []
    labels: list[str] = []
    others: Counter[str] = Counter()
    for label in sorted(_class_folders(root)):
        found = find_files(root / label)
        paths.extend(sorted(found.images))
        labels.extend([label] * len(found.images))
        others += found.others
    return _Listing(paths, labels, others)


def _check_classes(
    folder: Path, roots: Mapping[str, Path], listings: Mapping[str, _Listing], classes: tuple[str, ...], least: int
) -> None:
    train = roots["train"]
    if not classes:
        loose = sum(is_image(entry.name) for entry in train.iterdir())
        found = f"{loose} images that lie in no class folder" if loose else "an empty folder"
        raise InputError(
            f"data: expected one folder per class in {train}, got {found}; "
            f"put the images into {train / 'CLASS'} for each class"
        )
    damaged = next((name for name in classes if not is_utf8(name)), None)
    if damaged is not None:
        raise InputError(f"data: the name of the class folder {damaged!r} in {train} is not UTF-8; rename it")
    for split, listing in listings.items():
        if not listing.paths:
            endings = ", ".join(sorted(ending[1:] for ending in EXTENSIONS))
            raise InputError(f"data: no image in {roots[split]} (looked for {endings})")
        unknown = sorted(set(_class_folders(roots[split])) - set(classes))
        if unknown:
            raise InputError(
                f"data: class {unknown[0]!r} of {roots[split]} is missing from the training set {train}."
                f"{nearest(unknown[0], classes)} Add training images of it or remove it"
            )
    filled = set(listings["train"].labels)
    for name in classes:
        if name not in filled:
            raise InputError(f"data: class folder {train / name} holds no image; add images or remove it")
    if len(classes) < least:
        raise InputError(
            f"data: expected at least two class folders in {train}, got only {classes[0]!r}; "
            f"if the classes lie deeper, give {train / classes[0]} as --data"
        )
