"""What a saved network takes new images for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spkd.data.checked_files import open_files
from spkd.data.folder import image_files
from spkd.data.images import Images
from spkd.errors import InputError
from spkd.files import is_utf8
from spkd.models.exported import load_either
from spkd.modes import evaluating
from spkd.rows import Rows
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


class Answers:
    """What a network, and a teacher beside it, said of labelled images, in rows.

    They have the file, or its number in a set in memory, its label, the network's class with its probability, the
    teacher's class where that is asked, and the probability of every class.

    Args:
        images: in the order in which they are answered.
        classes: names of the classes.
        rows: get a row for each image.

    Raises:
        InputError: when the name of a file cannot be written as text.
    """

    def __init__(self, images: Images, classes: Sequence[str], rows: Rows) -> None:
        if (damaged := next((name for name in images.paths or () if not is_utf8(name)), None)) is not None:
            raise InputError(f"--out: the name of the image {damaged!r} is not UTF-8; rename it")
        self._names: Iterator[object] = iter(range(len(images)) if images.paths is None else images.paths)
        self._classes = classes
        self._rows = rows
        self._has_begun = False

    def add(self, shares: Tensor, targets: Tensor, teacher: Tensor | None) -> None:
        """Take the probabilities of the next batch, its targets, and the teacher's logits where it is asked."""
        if not self._has_begun:
            headings = ["image", "label", "class", "probability", *["teacher"] * (teacher is not None)]
            self._rows.add([*headings, *_headings(self._classes)])
            self._has_begun = True
        columns = [targets, *(one.argmax(dim=1) for one in (shares, teacher) if one is not None)]
        numbers = zip(*(column.tolist() for column in columns), strict=True)
        for (label, decision, *taught), own in zip(numbers, shares.tolist(), strict=True):
            said = [_text(own[decision]), *(self._classes[place] for place in taught), *map(_exact, own)]
            self._rows.add([next(self._names), self._classes[label], self._classes[decision], *said])


def probabilities_of(logits: Tensor) -> Tensor:
    """Return the softmax, in float64: in float32 many a small probability would be 0, or the largest ones alike."""
    return logits.cpu().double().softmax(dim=1)


def _headings(classes: Sequence[str]) -> list[str]:
    """Return the headings of the classes' own probabilities, of which none is another column's."""
    return [f"p({name})" for name in classes]


def _text(probability: float) -> str:
    return f"{probability:.6g}"


def _exact(probability: float) -> str:
    return f"{probability:.12g}"  # near 1 the last places tell which of two is the surer


def predict(
    network: str | Path,
    images: Sequence[str],
    *,
    top: int = 1,
    accelerator: str = "auto",
    workers: int | None = None,
    skip_bad_images: bool = False,
    display: Display | None = None,
    rows: Rows | None = None,
    probabilities: bool = False,
) -> Predictions:
    """Classify images by the network in the folder or exported ONNX file ``network``.

    They are seen as in the network's evaluation. Every file is decoded before any is classified, so that a broken one
    is found at once.

    Args:
        network: folder of a run or a saved model, or an exported ONNX file.
        images: files, and folders to be searched with all that are below.
        top: how many classes are wanted of each; with more than there are, all.
        accelerator: as of a run.
        workers: processes that read files (None: for a GPU as many as there are processors, up to 16; else, and where
            OMP_NUM_THREADS is set, as many as threads compute, from 2 to 8, but no more than there are processors).
        skip_bad_images: leave out files that cannot be read.
        display: shows how many are done (None: nothing does).
        rows: get a row for each image: the file, then each wanted class with its probability.
        probabilities: whether the probability of every class follows there.

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
    top = min(top, len(info.classes))
    if rows is not None:
        numbers = ["", *(f" {place}" for place in range(2, top + 1))]
        wanted = [f"{what}{number}" for number in numbers for what in ("class", "probability")]
        rows.add(["image", *wanted, *(_headings(info.classes) if probabilities else [])])
    found: list[Prediction] = []
    shown = counting(display or Display(), "predicting", len(paths))
    with evaluating(classifier), torch.no_grad(), shown as count:
        for pixels, _ in batches:
            logits = logits_on("model", classifier, pixels)
            check_finite("model", logits)
            shares = probabilities_of(logits)
            largest = shares.topk(top, dim=1)
            for own, values, places in zip(shares, largest.values.tolist(), largest.indices.tolist(), strict=True):
                one = Prediction(paths[len(found)], tuple(info.classes[place] for place in places), tuple(values))
                found.append(one)
                if rows is not None:
                    pairs = zip(one.classes, map(_text, values), strict=True)
                    every = map(_exact, own.tolist()) if probabilities else ()
                    rows.add([one.path, *(cell for pair in pairs for cell in pair), *every])
            count(len(pixels))
    return Predictions(tuple(found), (*notes, *opened.notes))
