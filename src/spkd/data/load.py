"""From what a user says to images."""

from __future__ import annotations

import os
from pathlib import Path

from spkd.data.digits import load_digits
from spkd.data.folder import load_folder
from spkd.data.images import ImageData
from spkd.data.kept import kept
from spkd.data.options import DataOptions
from spkd.data.vision_sets import DEFAULT_ROOT, VISION_SETS, load_vision_set
from spkd.errors import InputError, nearest


def load_data(options: DataOptions) -> ImageData:
    """Find and load the images that the options name.

    ``digits`` and torchvision's names go before folders of the same name; ``./name`` is always a folder.
    Other spellings of the names (``CIFAR-10``) do where there is no such folder. A folder is looked for in
    the working folder, then in ``data_root``.

    Raises:
        InputError: when there is no such set or folder, or it cannot be used; see
            :func:`spkd.data.folder.load_folder` and :func:`spkd.data.vision_sets.load_vision_set`.
    """
    return kept(options, _load)


def _load(options: DataOptions) -> ImageData:
    name = options.data
    if not Path(name).is_dir():
        name = name.lower().replace("-", "").replace("_", "")
    if name == "digits":
        return load_digits()
    if name in VISION_SETS:
        root = Path(options.data_root or DEFAULT_ROOT).expanduser()
        return load_vision_set(name, root, download=options.download, skip_bad_images=options.skip_bad_images)
    return load_folder(_find_folder(options), skip_bad_images=options.skip_bad_images)


def _find_folder(options: DataOptions) -> Path:
    candidates = [Path(options.data).expanduser()]
    if options.data_root is not None:
        candidates.append(Path(options.data_root).expanduser() / options.data)
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
        if candidate.exists():
            raise InputError(f"data: expected a folder, got the file {candidate}; unpack it if it is an archive")
    looked = " and ".join(str(candidate.resolve()) for candidate in candidates)
    if os.sep in options.data:
        raise InputError(f"data: no folder {looked}; check the path")
    known = ["digits", *VISION_SETS]
    raise InputError(
        f"data: {options.data!r} is neither a known data set nor a folder (looked for {looked})."
        f"{nearest(options.data, known)} Known sets: {', '.join(known)}"
    )
