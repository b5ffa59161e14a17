"""One file to deploy: the student alone, its normalisation inside, checked against PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from spkd.calibration import Calibration, calibrated
from spkd.conversion import in_format
from spkd.errors import InputError, nearest, one_line
from spkd.export_options import TOLERANCE
from spkd.files import write_bytes_atomically
from spkd.models.classifier import ModelInfo, require_unit_range
from spkd.models.cost import latency_ms
from spkd.models.exported import Runner, in_full_batches, told_beside
from spkd.models.saved_model import load_classifier
from spkd.modes import evaluating, usual_defaults

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
LATENCY_REPEATS = 30


@dataclass(frozen=True)
class ExportReport:
    """What was exported, and how it compares with the network it came from.

    Attributes:
        path: the file.
        format: ``onnx`` or ``torch``.
        bytes: its size.
        source_bytes: size of the network's parameters and buffers.
        max_difference: largest absolute difference of a logit over all checked batches.
        relative_difference: the same relative to the largest logit, which ``tolerance`` bounds.
        latency_torch_ms: median time of one image in PyTorch on the CPU; where the file takes several at a time, the
            time of these divided by their number.
        latency_exported_ms: the same of the file, in onnxruntime for ``onnx``, with as many threads.
        calibration: the temperature that its logits were divided by, and what that changed; None where they were not.
    """

    path: Path
    format: str
    bytes: int
    source_bytes: int
    max_difference: float
    relative_difference: float
    latency_torch_ms: float
    latency_exported_ms: float
    calibration: Calibration | None = None


def export_model(
    folder: str | Path,
    out: str | Path | None = None,
    format: str = "onnx",
    *,
    images: Tensor,
    tolerance: float = TOLERANCE,
    batch: int | None = None,
    labelled: Iterable[tuple[Tensor, Tensor]] | None = None,
    shown: AbstractContextManager[Callable[[int], object]] | None = None,
) -> ExportReport:
    """Export the classifier saved in ``folder``, a run folder or a saved model.

    The file takes float32 images (batch, channels, image_size, image_size) in [0, 1], of any batch size unless one is
    given, and gives logits (batch, classes). An ONNX file is self-contained and calls them ``images`` and ``logits``.
    Its metadata hold the names of the classes, as JSON under ``classes``, and under ``images``, in words, what the
    images are to be; a ``torch`` file holds the same as the extra files ``classes.json`` and ``images.txt`` and is read
    by :func:`torch.export.load`.

    Args:
        folder: where the classifier is.
        out: the file, or an existing folder for it; ``<folder>/export/model.onnx`` or ``.pt2`` by default.
        format: ``onnx`` or ``torch``.
        images: real images (n, channels, image_size, image_size) in [0, 1] for the check.
        tolerance: greatest difference of a logit from PyTorch's, relative to the greatest absolute logit.
        batch: how many images the file is to take at a time, exactly, for converters and runtimes that need a fixed
            shape; who has fewer fills them up. None for any number.
        labelled: batches of such images and targets, which the network has not learnt, as of a validation: the logits
            are divided by the temperature that :func:`spkd.calibration.temperature_of` gives of these, and the metadata
            hold it under ``temperature``, the extra files as ``temperature.txt``. None leaves them as they are.
        shown: entered while these are gone through; gives what takes the number of images of each batch then
            (:func:`spkd.training.counting.counting`).

    Raises:
        InputError: when there is no saved model, the images are others, the batch is below 1, there is no best
            temperature, the network cannot be converted, its logits are not finite, the exported ones differ by more
            than the tolerance, or the file cannot be written. Nothing is written then.
    """
    # Before the network is loaded: a mistyped option is answered at once.
    path = export_path(Path(folder), None if out is None else Path(out), format)
    require_batch(batch)
    classifier = load_classifier(folder)
    require_own_images(classifier.info, images)
    found = None
    if labelled is not None:
        with shown or nullcontext(lambda images: None) as count:
            found = calibrated(classifier, labelled, classifier.info.classes, count)
    return export_network(
        classifier,
        path,
        format,
        images=images,
        tolerance=tolerance,
        batch=batch,
        info=classifier.info,
        calibration=found,
    )


def require_batch(batch: int | None) -> None:
    """Refuse a number of images, for a file to take at a time, that there is none of.

    Raises:
        InputError: when it is below 1.
    """
    if batch is not None and batch < 1:
        raise InputError(f"batch: expected 1 image or more, got {batch}; leave it out for any number")


def require_own_images(info: ModelInfo, images: Tensor) -> None:
    """Refuse images for the check of a file that are not those which the network takes, and the file would then.

    Raises:
        InputError: when they have another shape, or are not in [0, 1].
    """
    wanted = (info.channels, info.image_size, info.image_size)
    if images.ndim != 4 or tuple(images.shape[1:]) != wanted:
        raise InputError(f"images: expected (n, {', '.join(map(str, wanted))}), got {tuple(images.shape)}")
    require_unit_range(images, "the network")


def export_path(folder: Path, out: Path | None, format: str, name: str = "model") -> Path:
    """Return where an export of ``folder`` goes, to a file of this ``name`` where none is said.

    Raises:
        InputError: for an unknown format, or a file name that does not end as the format's files do.

    >>> export_path(Path("runs/student"), None, "onnx").as_posix()
    'runs/student/export/model.onnx'
    """
    if format not in SUFFIXES:
        raise InputError(f"format: expected {' or '.join(SUFFIXES)}, got {format!r}.{nearest(format, SUFFIXES)}")
    suffix = SUFFIXES[format]
    if out is None:
        return folder / "export" / f"{name}{suffix}"
    if out.is_dir():
        return out / f"{name}{suffix}"
    if out.suffix != suffix:
        raise InputError(
            f"out: expected a file name ending in {suffix} for the format {format}, got {out.name!r}; "
            f"try {out.with_suffix(suffix).name!r}"
        )
    return out


def export_network(
    network: nn.Module,
    path: Path,
    format: str = "onnx",
    *,
    images: Tensor,
    tolerance: float = TOLERANCE,
    batch: int | None = None,
    info: ModelInfo | None = None,
    calibration: Calibration | None = None,
) -> ExportReport:
    """Export any network from images to logits; :func:`export_model` says what the file is like.

    The file's content is run on the images in batches of one, of two and of all (fewer than three are
    repeated), or where a ``batch`` is given in such, of which the last is filled up. It is moved into place only when
    every logit is within ``tolerance`` times the largest absolute logit of PyTorch's. The network is left as it was,
    its mode included. Without ``info`` the file tells nothing of classes and images. With a ``calibration`` all logits
    are those divided by its temperature.

    Raises:
        InputError: when there are no images, the network cannot be converted, its logits are not finite, the
            exported ones differ, or the file cannot be written. Nothing is written then.
    """
    temperature = None if calibration is None else calibration.temperature
    exported = converted(
        network, format, images=images, tolerance=tolerance, batch=batch, info=info, temperature=temperature
    )
    report = ExportReport(
        path=path,
        format=format,
        bytes=len(exported.content),
        source_bytes=weight_bytes(network),
        max_difference=exported.max_difference,
        relative_difference=exported.relative_difference,
        latency_torch_ms=latency_of_one(network, images, batch),
        latency_exported_ms=latency_of_one(exported.run, images, batch),
        calibration=calibration,
    )
    write_bytes_atomically(path, exported.content)
    return report


def latency_of_one(run: Runner, images: Tensor, batch: int | None) -> float:
    """Return the median time of an image in milliseconds: by itself, or where ``batch`` is given as one of these."""
    number = batch or 1
    (shown,) = in_full_batches(images[:number].to("cpu", torch.float32), number)
    return latency_ms(run, shown, LATENCY_REPEATS) / number


@dataclass(frozen=True)
class Converted:
    """A network in another format, which gives the same logits.

    Attributes:
        content: what the file is to hold.
        run: gives the logits of images (n, channels, h, w), from the content alone.
        max_difference: as of :class:`ExportReport`.
        relative_difference: as of :class:`ExportReport`.
    """

    content: bytes
    run: Runner
    max_difference: float
    relative_difference: float


class _Tempered(nn.Module):
    """A network whose logits are divided by a temperature."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits / self.temperature


def converted(
    network: nn.Module,
    format: str,
    *,
    images: Tensor,
    tolerance: float,
    info: ModelInfo | None,
    batch: int | None = None,
    temperature: float | None = None,
) -> Converted:
    """Convert a network and check the outcome, as :func:`export_network` says, without writing anything.

    Its logits are divided by a ``temperature``.

    Raises:
        InputError: as :func:`export_network` does.
    """
    if format not in SUFFIXES:
        raise InputError(f"format: expected {' or '.join(SUFFIXES)}, got {format!r}")
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise InputError(f"tolerance: expected a number above 0, got {tolerance}; the default is {TOLERANCE:g}")
    require_batch(batch)
    batches = _batches_to_check(images, batch)
    if temperature is not None:
        network = _Tempered(network, temperature)
    with evaluating(network), usual_defaults():
        with torch.no_grad():
            expected = [network(shown) for shown in batches]
        # Made up, since a file of torch.export keeps what it was traced with, and the images are the user's.
        shape = (batch or 2, *images.shape[1:])
        example = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        content, run = in_format(network, example, format, told_beside(info, temperature, batch), batch)
    difference = _check(run, batches, expected, tolerance, format)
    relative = difference / max(1e-30, *(float(logits.abs().max()) for logits in expected))
    return Converted(content, run, difference, relative)


def _batches_to_check(images: Tensor, batch: int | None) -> list[Tensor]:
    """Return images in batches of one, of two and of all, three at the least, or in such as a file takes them."""
    if images.ndim != 4 or len(images) == 0 or not images.is_floating_point():
        raise InputError(
            "images: expected floating-point images (n, channels, height, width) with n of 1 or more for "
            f"the check, got {images.dtype} of shape {tuple(images.shape)}"
        )
    images = images.detach().to("cpu", torch.float32)
    if batch is not None:
        return in_full_batches(images, batch)
    images = images.repeat(-(-3 // len(images)), 1, 1, 1)
    return [images[:size] for size in (1, 2, len(images))]


def _check(run: Runner, batches: list[Tensor], expected: list[Tensor], tolerance: float, format: str) -> float:
    """Return the largest difference; an InputError when it is too large at any batch size."""
    largest = 0.0
    for batch, logits in zip(batches, expected, strict=True):
        if not bool(logits.isfinite().all()):
            raise InputError("model: expected finite logits to check the export with, got NaN or infinity")
        try:
            exported = run(batch)
        except Exception as error:
            raise InputError(
                f"the exported model does not run on a batch of {len(batch)}: {one_line(error)}; "
                f"nothing was written, try the format {_other(format)}"
            ) from error
        if exported.shape != logits.shape:
            raise InputError(
                f"the exported model gives logits of shape {tuple(exported.shape)} for a batch of "
                f"{len(batch)}, PyTorch {tuple(logits.shape)}; nothing was written, "
                f"try the format {_other(format)}"
            )
        difference = float((exported - logits).abs().max())
        allowed = tolerance * float(logits.abs().max())
        # Written so that a NaN fails.
        if not difference <= allowed:
            raise InputError(
                f"the exported model's logits differ from PyTorch's by {difference:.3g} on a batch of "
                f"{len(batch)}, more than the {allowed:.3g} that a tolerance of {tolerance:g} allows; "
                f"nothing was written, try the format {_other(format)}, or a larger tolerance if that is small enough"
            )
        largest = max(largest, difference)
    return largest


def weight_bytes(network: nn.Module) -> int:
    """Return the size of a network's parameters and buffers."""
    tensors = (*network.parameters(), *network.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _other(format: str) -> str:
    return next(other for other in SUFFIXES if other != format)
