"""What a saved network takes new images for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spkd.data.checked_files import open_files
from spkd.data.folder import image_files
from spkd.data.images import Images
from spkd.errors import InputError
from spkd.files import csv_text, is_utf8
from spkd.models.exported import load_either
from spkd.modes import evaluating
from spkd.training.batches import batches_for
from spkd.training.counting import counting
from spkd.training.devices import make_fabric
from spkd.training.evaluation import check_finite, logits_on
from spkd.training.options import Runtime
from spkd.training.progress import Display


@dataclass(frozen=True)
class Prediction:
    """What one image is taken for.

    Attributes:
        path: the file.
        classes: the likeliest classes, the first before all others.
        probabilities: of each, by the softmax of the logits.
    """

    path: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Predictions:
    """What the images are taken for, in their order, and lines to say of the files."""

    predictions: tuple[Prediction, ...]
    notes: tuple[str, ...]

    def csv(self) -> str:
        """Return a line for each image: the file, then each class with its probability.

        >>> print(Predictions((Prediction("a.jpg", ("cat", "dog"), (0.75, 0.25)),), ()).csv(), end="")
        image,class,probability,class 2,probability 2
        a.jpg,cat,0.7500,dog,0.2500
        """
        places = range(1, len(self.predictions[0].classes) + 1)
        numbers = ["" if place == 1 else f" {place}" for place in places]
        rows = [["image", *(f"{what}{number}" for number in numbers for what in ("class", "probability"))]]
        for one in self.predictions:
            pairs = zip(one.classes, one.probabilities, strict=True)
            rows.append([one.path, *(text for name, share in pairs for text in (name, f"{share:.4f}"))])
        return csv_text(rows)


class Answers:
    """What a network, and a teacher beside it, said of labelled images.

    Args:
        images: in the order in which they are answered.
        classes: names of the classes.

    Raises:
        InputError: when the name of a file cannot be written as text.
    """

    def __init__(self, images: Images, classes: Sequence[str]) -> None:
        self._names: Sequence[object] = range(len(images)) if images.paths is None else images.paths
        if (damaged := next((name for name in images.paths or () if not is_utf8(name)), None)) is not None:
            raise InputError(f"--out: the name of the image {damaged!r} is not UTF-8; rename it")
        self._classes = classes
        self._rows: list[list[object]] = []

    def add(self, logits: Tensor, targets: Tensor, teacher: Tensor | None) -> None:
        """Take the logits of the next batch, its targets, and the teacher's logits where it is asked."""
        largest = logits.softmax(dim=1).max(dim=1)
        columns = [targets.tolist(), largest.indices.tolist()]
        if teacher is not None:
            columns.append(teacher.argmax(dim=1).tolist())
        named = [[self._classes[place] for place in column] for column in columns]
        shares = [f"{share:.4f}" for share in largest.values.tolist()]
        self._rows.extend(map(list, zip(*named[:2], shares, *named[2:], strict=True)))

    def csv(self) -> str:
        """Return a line for each image: the file, or its number in a set in memory, its label, and what was said."""
        has_teacher = bool(self._rows) and len(self._rows[0]) == 4
        headings = ["image", "label", "class", "probability", *["teacher"] * has_teacher]
        return csv_text([headings, *([name, *row] for name, row in zip(self._names, self._rows, strict=True))])


def predict(
    network: str | Path,
    images: Sequence[str],
    *,
    top: int = 1,
    accelerator: str = "auto",
    workers: int | None = None,
    skip_bad_images: bool = False,
    display: Display | None = None,
) -> Predictions:
    """Classify images by the network in the folder or exported ONNX file ``network``.

    They are seen as in the network's evaluation. Every file is decoded before any is classified, so that a broken one
    is found at once.

    Args:
        network: folder of a run or a saved model, or an exported ONNX file.
        images: files, and folders to be searched with all that are below.
        top: how many classes are wanted of each; with more than there are, all.
        accelerator: as of a run.
        workers: processes that read files (None: as many as threads compute, from 2 to 8, but no more than there are
            processors).
        skip_bad_images: leave out files that cannot be read.
        display: shows how many are done (None: nothing does).

    Raises:
        InputError: when there is no such network or file, no image, one that cannot be read, or a logit is not finite.
    """
    if top < 1:
        raise InputError(f"--top must be at least 1, not {top}")
    device = make_fabric(Runtime(accelerator=accelerator)).device  # which knows how many threads there may be
    classifier = load_either(network).to(device)
    info = classifier.info
    paths, notes = image_files(images)
    opened = open_files(paths, [0] * len(paths), skip_bad_images)
    paths = [paths[place] for place in opened.kept.tolist()]
    batches = batches_for(info, opened.images, device, workers=workers)
    found: list[tuple[list[float], list[int]]] = []
    shown = counting(display or Display(), "predicting", len(paths))
    with evaluating(classifier), torch.no_grad(), shown as count:
        for pixels, _ in batches:
            logits = logits_on("model", classifier, pixels)
            check_finite("model", logits)
            largest = logits.softmax(1).topk(min(top, len(info.classes)), dim=1)
            found.extend(zip(largest.values.tolist(), largest.indices.tolist(), strict=True))
            count(len(pixels))
    predictions = tuple(
        Prediction(path, tuple(info.classes[place] for place in places), tuple(shares))
        for path, (shares, places) in zip(paths, found, strict=True)
    )
    return Predictions(predictions, (*notes, *opened.notes))
