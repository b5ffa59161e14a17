"""An exported ONNX file: what it tells of classes and images, and how it is run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spkd.data.augment import shorter_side
from spkd.data.options import View
from spkd.errors import InputError, nearest, one_line
from spkd.files import is_file, names_beside
from spkd.models.classifier import Classifier, ModelInfo, Normalisation
from spkd.models.saved_model import load_classifier

Runner = Callable[[Tensor], Tensor]
"""From images (b, channels, h, w), float32 on the CPU, to logits (b, k)."""

_VIEWS: dict[View, str] = {"whole": ", of the whole image", "centre": ", the centre of the image"}
"""Words for what is seen of an image."""


def is_exported(place: str | Path) -> bool:
    """Return whether an ONNX file is named, and not the folder of a model or an architecture."""
    return Path(place).suffix == ".onnx"


def load_either(place: str | Path) -> Classifier:
    """Return the classifier in an exported ONNX file, or else in the folder of a run or saved model, to be asked.

    Raises:
        InputError: as :func:`load_exported` and :func:`spkd.models.saved_model.load_classifier` do.
    """
    return load_exported(Path(place)) if is_exported(place) else load_classifier(place)


def load_exported(path: Path) -> Classifier:
    """Return the classifier in an ONNX file that :func:`spkd.export.export_model` or ``export_int8`` wrote.

    It is run by onnxruntime on the CPU, in as many threads as PyTorch has, wherever its images are, and has no
    gradients. Its ``info`` tells of a normalisation that changes nothing, since the file's own is inside.

    Raises:
        InputError: when the file is not there or is damaged, or tells nothing of its classes.
    """
    if not is_file(path):
        raise InputError(f"model: there is no file {path}.{nearest(path.name, names_beside(path))}")
    try:
        session = _session(str(path))
    except Exception as error:  # onnxruntime's own kinds
        raise InputError(f"model: {path} cannot be run by onnxruntime: {one_line(error)}") from error
    told = session.get_modelmeta().custom_metadata_map
    try:
        [(_, channels, size, _)] = [one.shape for one in session.get_inputs()]
        info = ModelInfo(str(path), json.loads(told["classes"]), channels, size, Normalisation((0.0,), (1.0,)))
    except (KeyError, ValueError) as error:
        raise InputError(
            f"model: {path} does not say its classes and image size: give a file made by `spkd export`"
        ) from error
    return Classifier(_Exported(_runner(session), _batch(session)), _with_view(info, told)).eval()


def fixed_batch(exported: Classifier) -> int | None:
    """Return how many images an exported file takes at a time; None where that is any number."""
    return exported.network.batch if isinstance(exported.network, _Exported) else None


class _Exported(nn.Module):
    """What an exported file computes."""

    def __init__(self, run: Runner, batch: int | None) -> None:
        super().__init__()
        self._run = run
        self.batch = batch

    def forward(self, images: Tensor) -> Tensor:
        return self._run(images.cpu()).to(images.device)


def onnx_runner(content: bytes) -> Runner:
    """Return what runs an exported ONNX file's content on the CPU, in as many threads as PyTorch."""
    return _runner(_session(content))


def _session(file: bytes | str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _batch(session: Any) -> int | None:
    """Return how many images a file takes at a time; None where that is any number, for which it has a name."""
    batch = session.get_inputs()[0].shape[0]
    return batch if isinstance(batch, int) else None


def _runner(session: Any) -> Runner:
    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    return of_any_number(run, _batch(session))


def of_any_number(run: Runner, batch: int | None) -> Runner:
    """Return what gives the logits of any number of images by what takes exactly ``batch`` at a time, if not None."""
    if batch is None:
        return run
    return lambda images: torch.cat([run(full) for full in in_full_batches(images, batch)])[: len(images)]


def in_full_batches(images: Tensor, batch: int) -> list[Tensor]:
    """Return images (n, ...) in batches of exactly so many; the last is filled up with the last image.

    >>> in_full_batches(torch.tensor([4, 7, 9]), 2)
    [tensor([4, 7]), tensor([9, 9])]
    """
    missing = -len(images) % batch
    return list(torch.split(torch.cat([images, images[-1:].repeat(missing, *[1] * (images.ndim - 1))]), batch))


def told_beside(info: ModelInfo | None, temperature: float | None, batch: int | None) -> dict[str, str]:
    """Return what is written beside an exported network: its ``classes`` as JSON, its ``images`` in words, in which
    stands how many it takes at a time where that is fixed, and the ``temperature`` that its logits were divided by.

    What is None is not.
    """
    told = {} if info is None else {"classes": json.dumps(info.classes), "images": _images(info, batch)}
    return told if temperature is None else {**told, "temperature": repr(temperature)}


def _images(info: ModelInfo, batch: int | None) -> str:
    colour = "RGB" if info.channels == 3 else f"{info.channels} channel(s)"
    seen = "" if info.view is None else _VIEWS[info.view]
    if info.view == "centre":
        seen += f" after its shorter side was resized to {shorter_side(info.image_size)}"
    how = "turned upright as EXIF data say, resized bilinearly with antialiasing"
    size = f"{info.image_size} x {info.image_size} pixels{seen}, {how}"
    at_a_time = "" if batch is None else f", exactly {batch} at a time"
    return f"float32 in [0, 1], {colour}, {size}{at_a_time}; the model normalises them"


def _with_view(info: ModelInfo, told: Mapping[str, str]) -> ModelInfo:
    """Return the same with the view that the words tell of, if they do."""
    images = told.get("images", "")
    return replace(info, view=next((view for view, words in _VIEWS.items() if words in images), None))
