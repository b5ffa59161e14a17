"""An exported file in 8-bit integers: a quarter of the size, and what that costs, measured on images."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spkd.calibration import Calibration, calibrated
from spkd.conversion import quiet
from spkd.errors import InputError, one_line
from spkd.export import (
    converted,
    export_path,
    latency_of_one,
    require_batch,
    require_own_images,
    weight_bytes,
)
from spkd.export_options import TOLERANCE, WEIGHT_BITS, WeightBits
from spkd.files import write_bytes_atomically
from spkd.models.exported import in_full_batches, onnx_runner
from spkd.models.saved_model import load_classifier
from spkd.training.evaluation import errors_of_counts


@dataclass(frozen=True)
class ClassLoss:
    """What 8 bits cost one class.

    Attributes:
        name: the class.
        images: how many images of it both were tried on, one or more.
        error: percent of them that the file in 8 bits gives another class.
        float_error: the same of the float32 file.
    """

    name: str
    images: int
    error: float
    float_error: float


@dataclass(frozen=True)
class Int8Report:
    """What was exported in 8 bits, and how it compares with the network it came from.

    Attributes:
        path: the file.
        bytes: its size.
        float_bytes: size of the same as a float32 ONNX file.
        source_bytes: size of the network's parameters and buffers.
        latency_ms: median time of one image in onnxruntime on the CPU; where the file takes several at a time, the time
            of these divided by their number.
        float_latency_ms: the same of the float32 ONNX file.
        source_latency_ms: the same of PyTorch.
        images: number of labelled images that both were tried on.
        error: percent of them that the file gives another class than the label.
        float_error: the same of the float32 file.
        agreement: percent of them that both give the same class.
        balanced_error: mean of the classes' own ``error`` in percent, over those that there are images of.
        float_balanced_error: the same of the float32 file.
        per_class: of each of these classes.
        calibration: the temperature that the logits in 8 bits were divided by, and what that changed; None where they
            were not.
    """

    path: Path
    bytes: int
    float_bytes: int
    source_bytes: int
    latency_ms: float
    float_latency_ms: float
    source_latency_ms: float
    images: int
    error: float
    float_error: float
    agreement: float
    balanced_error: float
    float_balanced_error: float
    per_class: tuple[ClassLoss, ...]
    calibration: Calibration | None = None


def export_int8(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    images: Tensor,
    typical: Iterable[Tensor],
    labelled: Iterable[tuple[Tensor, Tensor]],
    tolerance: float = TOLERANCE,
    weight_bits: WeightBits = WEIGHT_BITS,
    batch: int | None = None,
    calibrate: bool = False,
    shown: AbstractContextManager[Callable[[int], object]] | None = None,
) -> Int8Report:
    """Export the classifier saved in ``folder`` as an ONNX file that computes in 8-bit integers.

    Weights are signed with a scale for each output channel and use seven of the eight bits, unless all are asked for:
    processors without instructions for 8-bit products (VNNI) add two of them in 16 bits, which would overflow, and
    answer wrongly then. Activations are unsigned with a scale for each tensor, from the least and greatest value that
    it takes on the typical images (Jacob et al. 2018, post-training); logits are float32 again; layer and unfused
    batch norms stay in float32. Inputs, outputs and metadata are those of :func:`spkd.export.export_model`. What it
    gains in time and costs in accuracy differs between networks, and the time between processors, so the report tells
    both: plain convolutions gain most, transformers lose most.

    Args:
        folder: where the classifier is.
        out: the file, or an existing folder for it; ``<folder>/export/model-int8.onnx`` by default.
        images: real images (n, channels, h, w) in [0, 1], to check the float32 conversion with.
        typical: batches of images like those that it will see, as of the training images.
        labelled: batches of images and targets to measure the errors on: not those of a test, where the choice
            between the two forms is still to be made.
        tolerance: of the float32 conversion; see :func:`spkd.export.export_network`.
        weight_bits: of the weights: 7, or 8 for a file that only processors with VNNI will run.
        batch: how many images the file is to take at a time; None for any number.
        calibrate: whether the logits, float32 again, are divided by the temperature that those in 8 bits have on
            ``labelled`` (:func:`spkd.calibration.temperature_of`).
        shown: entered while the errors are measured; gives what takes the number of images of each batch then
            (:func:`spkd.training.counting.counting`).

    Raises:
        InputError: as :func:`spkd.export.export_model` does, and when onnxruntime cannot quantise the network.
    """
    path = export_path(Path(folder), None if out is None else Path(out), "onnx", name="model-int8")
    require_batch(batch)
    classifier = load_classifier(folder)
    require_own_images(classifier.info, images)
    exported = converted(classifier, "onnx", images=images, tolerance=tolerance, batch=batch, info=classifier.info)
    if batch is not None:
        typical = (full for some in typical for full in in_full_batches(some, batch))
    content = quantised(exported.content, typical, weight_bits)
    run = onnx_runner(content)
    differing = 0
    said: list[tuple[Tensor, Tensor]] = []  # logits in 8 bits and targets, where they are to be calibrated
    names = classifier.info.classes
    counts = torch.zeros(3, len(names), dtype=torch.int64)  # of each class, images, errors, and errors in float32
    with shown or nullcontext(lambda images: None) as count:
        for pixels, targets in labelled:
            logits = run(pixels)
            decisions, float_decisions = logits.argmax(dim=1), exported.run(pixels).argmax(dim=1)
            for place, some in enumerate((targets, targets[decisions != targets], targets[float_decisions != targets])):
                counts[place] += torch.bincount(some, minlength=len(names))
            differing += int((decisions != float_decisions).sum())
            if calibrate:
                said.append((logits, targets))
            count(len(targets))
    number = int(counts[0].sum())
    if not number:
        raise InputError("labelled: expected at least one image to compare on, got none")
    found = calibrated(nn.Identity(), said, names) if calibrate else None
    if found is not None:
        content = _tempered(content, found.temperature)
        run = onnx_runner(content)
    images_of, wrong, float_wrong = counts.tolist()
    errors, float_errors = (errors_of_counts(list(zip(one, images_of, strict=True))) for one in (wrong, float_wrong))
    report = Int8Report(
        path=path,
        bytes=len(content),
        float_bytes=len(exported.content),
        source_bytes=weight_bytes(classifier),
        latency_ms=latency_of_one(run, images, batch),
        float_latency_ms=latency_of_one(exported.run, images, batch),
        source_latency_ms=latency_of_one(classifier, images, batch),
        images=number,
        error=errors.error,
        float_error=float_errors.error,
        agreement=100.0 * (number - differing) / number,
        balanced_error=errors.balanced,
        float_balanced_error=float_errors.balanced,
        per_class=tuple(
            ClassLoss(name, own, 100.0 * lost / own, 100.0 * float_lost / own)
            for name, own, lost, float_lost in zip(names, images_of, wrong, float_wrong, strict=True)
            if own
        ),
        calibration=found,
    )
    write_bytes_atomically(path, content)
    return report


def quantised(content: bytes, typical: Iterable[Tensor], weight_bits: WeightBits = WEIGHT_BITS) -> bytes:
    """Return the content of a float32 ONNX file in 8-bit integers, with the same metadata.

    ``weight_bits`` is as of :func:`export_int8`.

    Raises:
        InputError: when onnxruntime cannot do it.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.registry import QDQRegistry
    from onnxruntime.quantization.shape_inference import quant_pre_process

    # Normalisations by values of their own lose most by 8 bits and gain no time: onnxruntime has no kernels for them.
    kinds = [kind for kind in QDQRegistry if not kind.endswith("Normalization")]

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(typical)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    with tempfile.TemporaryDirectory() as name:
        source, prepared, result = (Path(name) / f"{part}.onnx" for part in ("source", "prepared", "result"))
        source.write_bytes(content)
        try:
            with quiet():
                quant_pre_process(source, prepared, skip_symbolic_shape=True)
                quantize_static(
                    prepared,
                    result,
                    Reader(),
                    quant_format=QuantFormat.QDQ,
                    op_types_to_quantize=kinds,
                    per_channel=True,
                    reduce_range=weight_bits == 7,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                )
        except InputError:  # of reading an image
            raise
        except Exception as error:
            raise InputError(f"onnxruntime cannot put the network into 8-bit integers: {one_line(error)}") from error
        model = onnx.load(result)
    del model.metadata_props[:]
    model.metadata_props.extend(onnx.load_from_string(content).metadata_props)
    quantised: bytes = model.SerializeToString()
    return quantised


def _tempered(content: bytes, temperature: float) -> bytes:
    """Return an ONNX file's content with its logits divided by a temperature, in float32, which its metadata tell."""
    import onnx

    model = onnx.load_from_string(content)
    graph = model.graph
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = ["spkd.undivided" if name == "logits" else name for name in names]
    graph.initializer.append(onnx.helper.make_tensor("spkd.temperature", onnx.TensorProto.FLOAT, [], [temperature]))
    graph.node.append(onnx.helper.make_node("Div", ["spkd.undivided", "spkd.temperature"], ["logits"]))
    model.metadata_props.add(key="temperature", value=repr(temperature))
    tempered: bytes = model.SerializeToString()
    return tempered
