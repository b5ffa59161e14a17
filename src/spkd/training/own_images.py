"""The images that go with a trained network: its run's own or others, as it is to see them."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO

import torch
from PIL import Image
from torch import Tensor

from spkd.data.augment import fixed_view, side_for_view, to_unit_range
from spkd.data.checked_files import SMALL
from spkd.data.decoding import Picture, header_size, read_image
from spkd.data.folder import image_files
from spkd.data.images import ImageData, Images, joined
from spkd.data.list_spec import place_of
from spkd.data.load import load_data, named_set
from spkd.data.options import DataOptions, View
from spkd.data.vision_sets import DEFAULT_ROOT
from spkd.errors import InputError, UnreadableImage, some
from spkd.files import is_there
from spkd.models.classifier import ModelInfo, composed
from spkd.models.exported import is_exported
from spkd.models.saved_model import find_meant, find_saved, not_saved, saved_info
from spkd.training.batches import batches_for
from spkd.training.identity import absolute_data
from spkd.training.run_folder import config_of, what_changed

SPLITS = ("test", "val", "train", "all")
"""On what a network may be evaluated; all is the three together."""
TYPICAL = 512
"""Images that the ranges of a quantised network's activations are taken from, at most."""
COMPARED = 10_000
"""Images that a network is measured on before it is exported, at most: an error is sure to half a point then."""
Batches = Iterator[tuple[Tensor, Tensor]]
_NOT_OF_A_RUN = {"image_size", "download", "workers"}


def own_data(folder: str | Path, given: Mapping[str, Any]) -> DataOptions:
    """Return the images that the run in ``folder`` was made with, with the ``given`` options (None: not given) over it.

    Another ``data`` than the run's starts from the defaults; a folder or list in the place of the run's own, which is
    gone, is taken for it. How images are fetched and read is never taken from the folder, which may be a stranger's.

    Raises:
        InputError: when no ``data`` is given and the run's own are not known, their folder or list is not there, or
            they are pickles that are read without checksums.
    """
    given = {name: value for name, value in given.items() if value is not None}
    config = config_of(folder)
    own = config.get("data")
    if "data" not in given:
        if is_exported(folder):
            raise InputError(f"{folder} does not say which images to use: name them by --data")
        if own is None and find_saved(folder) is None:
            raise InputError(not_saved(Path(folder)))
        if own is None:
            raise InputError(f"{folder} does not say which images it was trained on: name them by --data")
        if Path(own).is_absolute() and not is_there(place_of(own)):
            raise InputError(f"the images of {folder} are no longer in {own}: give --data to say where they are")
        if not _is_verified(own):
            raise InputError(
                f"the images of {folder}, {own} in {config.get('data_root') or DEFAULT_ROOT}, are pickles that "
                "nobody has verified and that can run code: if you trust them, name them by --data and --data_root"
            )
    if own is not None and _is_own(own, DataOptions(**{"data": own, **given})):
        names = {field.name for field in fields(DataOptions)} - _NOT_OF_A_RUN
        if not _is_verified(own):
            names -= {"data_root"}
        given = {**{name: config[name] for name in names & set(config)}, **given}
    return DataOptions(**given)


def data_to_evaluate_on(network: str, weights: str | None, given: Mapping[str, Any]) -> DataOptions:
    """Return the images to evaluate a network on: as :func:`own_data`, but of one with other weights those given.

    Raises:
        InputError: as :func:`own_data`, and when no ``data`` is given for a network that is no saved model.
    """
    if weights is None or find_meant(network) is not None:
        return own_data(network, given)
    if given.get("data") is None:
        raise InputError(f"{network} with {weights} does not say which images it was trained on: name them by --data")
    return DataOptions(**{name: value for name, value in given.items() if value is not None})


def _is_verified(data: str) -> bool:
    """Return whether images of this name are no pickles that are read without checksums."""
    _, arguments = named_set(DataOptions(data)) or (data, {})
    return bool(arguments.get("verify", True))


def _is_own(own: str, named: DataOptions) -> bool:
    """Return whether the data that are named are a run's own, whose name or absolute path this is."""
    if named.data == own or not Path(own).is_absolute():
        return named.data == own
    is_gone = not is_there(place_of(own))
    texts = (named.data, str(Path(named.data_root or ".") / named.data))
    return any(is_there(place_of(text)) and (is_gone or absolute_data(text) == own) for text in texts)


def part_of(data: ImageData, split: str) -> Images:
    """Return the images of one of ``SPLITS``."""
    if split == "all":
        return functools.reduce(joined, [data.test, data.val, data.train])
    return {"test": data.test, "val": data.val, "train": data.train}[split]


def numbered_as(info: ModelInfo, images: Images, data: ImageData, say: Callable[[str], None]) -> Images:
    """Return the images with the network's numbers of their classes, which may be some of those that it knows.

    Raises:
        InputError: when the network does not know one of them.
    """
    ours, theirs = composed(info.classes), composed(data.classes)
    if ours == theirs:
        return images
    if not set(theirs) <= set(ours):
        if len(ours) != len(theirs):
            unknown = [repr(name) for name in data.classes if composed([name])[0] not in ours]
            raise InputError(
                f"the network knows {len(ours)} classes, {data.name} has {len(theirs)}, of which it does not know "
                f"{some(unknown, 5)}"
            )
        different = next(f"{a!r} is {b!r}" for a, b in zip(ours, theirs, strict=True) if a != b)
        raise InputError(f"the network's classes are not those of {data.name}: {different} there")
    if len(theirs) < len(ours):
        say(f"{data.name} has images of {len(theirs)} of the {len(ours)} classes that the network knows")
    return images.relabelled(torch.tensor([ours.index(name) for name in theirs])[images.targets])


def load_image(picture: str | Path | BinaryIO | Image.Image, info: ModelInfo) -> Tensor:
    """Return a picture as the model with this ``info`` is to see it: float32, (1, channels, s, s), in [0, 1].

    It is read as in training (upright as its EXIF data say, transparent pixels white, 16 bits as 8) and cut and resized
    as in evaluation.

    Args:
        picture: the path of its file, the file opened to read bytes, or ``io.BytesIO`` with its content, or a picture
            that Pillow has opened. What is open stays so. Of a path or an open file a large JPEG is read at a part of
            its size, as in training, of which Pillow's picture, read whole, may differ by about a grey level.
        info: :attr:`~spkd.models.classifier.Classifier.info` of a loaded model. Where that does not tell which view it
            was made for, a square of at most 96 pixels is given whole, and of others the centre.

    Raises:
        InputError: when it cannot be read.
    """
    given = str(picture) if isinstance(picture, (str, Path)) else picture
    if not isinstance(given, (str, Image.Image)) and not given.seekable():
        given = io.BytesIO(given.read())  # which is opened twice
    view = info.view or _usual_view(given)
    try:
        image = read_image(given, info.channels, side_for_view(info.image_size, view))
    except UnreadableImage as error:
        raise InputError(error.brief) from error  # of a single file, which is not to be left out
    return to_unit_range(fixed_view(image, info.image_size, view)).unsqueeze(0).contiguous()


def _usual_view(picture: Picture) -> View:
    width, height = header_size(picture) or (0, 0)
    return "whole" if width == height <= SMALL else "centre"


def images_in(places: Sequence[str], folder: str | Path, count: int) -> Tensor:
    """Return up to ``count`` of the images in files and folders as the network saved in ``folder`` takes them.

    They are evenly spread over what is given, (n, channels, h, w) in [0, 1].

    Raises:
        InputError: when there is no such network or image, or one cannot be read.
    """
    info = saved_info(folder)
    paths, _ = image_files(places)
    return torch.cat([load_image(path, info) for path in paths[:: math.ceil(len(paths) / count)]])


def real_images(folder: str | Path, options: DataOptions, count: int) -> Tensor:
    """Return up to ``count`` test images as the network saved in ``folder`` takes them, (n, channels, h, w) in [0, 1].

    They are evenly spread over the set, which a folder lists class by class.

    Raises:
        InputError: when there is no such network, or its images have another number of channels.
    """
    info, data = _network_and_images(folder, options)
    few = _evenly(part_of(data, "test"), count)
    return torch.cat([pixels for pixels, _ in _seen(few, info, options.workers)])


def images_to_quantise_with(
    folder: str | Path, options: DataOptions, say: Callable[[str], None]
) -> tuple[Iterator[Tensor], Batches, int]:
    """Return typical training images, and labelled validation images, as the network in ``folder`` takes them.

    The former are up to ``TYPICAL`` in number, evenly spread over their set, and without augmentation; the latter
    and ``say`` are as of :func:`validation_images`.

    Returns:
        Batches (n, channels, h, w) in [0, 1]; pairs of such batches and targets, numbered as the network does; and how
        many images these have.

    Raises:
        InputError: when there is no such network, or it does not know the images.
    """
    info, data = _network_and_images(folder, options)
    learnt = _seen(_evenly(data.train, TYPICAL), info, options.workers)
    return (pixels for pixels, _ in learnt), *_validation(folder, info, data, options, say)


def validation_images(folder: str | Path, options: DataOptions, say: Callable[[str], None]) -> tuple[Batches, int]:
    """Return labelled validation images, as the network in ``folder`` takes and numbers them, and how many they are.

    They are up to ``COMPARED`` in number, evenly spread over their set. ``say`` is given a line where the images are of
    some of the network's classes only, have changed since training, or are not all of the validation images.

    Raises:
        InputError: when there is no such network, or it does not know the images.
    """
    return _validation(folder, *_network_and_images(folder, options), options, say)


def _validation(
    folder: str | Path, info: ModelInfo, data: ImageData, options: DataOptions, say: Callable[[str], None]
) -> tuple[Batches, int]:
    if changed := what_changed(folder, data, options):
        say(f"warning: {changed[1]}; it may have learnt some of the images that it is measured on")
    labelled = _evenly(numbered_as(info, data.val, data, say), COMPARED)
    if len(labelled) < len(data.val):
        say(f"measured on {len(labelled):,} of the {len(data.val):,} validation images, evenly spread")
    return _seen(labelled, info, options.workers), len(labelled)


def _evenly(images: Images, most: int) -> Images:
    """Return up to so many of the images, evenly spread."""
    if len(images) <= most:
        return images
    return images.select(torch.linspace(0, len(images) - 1, most, dtype=torch.float64).round().long())


def _seen(images: Images, info: ModelInfo, workers: int | None) -> Batches:
    """Iterate over images as a network takes them, and their targets."""
    batches = batches_for(info, images, torch.device("cpu"), workers=workers)
    return ((pixels.expand(-1, info.channels, -1, -1), targets) for pixels, targets in batches)


def _network_and_images(folder: str | Path, options: DataOptions) -> tuple[ModelInfo, ImageData]:
    """Return what is told of the network saved in a folder, and images that have channels for it."""
    info = saved_info(folder)
    data = load_data(options)
    if info.channels not in (1, 3, data.channels):
        raise InputError(
            f"--data {options.data} has images of {data.channels} channels, the network takes {info.channels}"
        )
    return info, data
