"""A network as the content of a file, in ONNX or as torch.export keeps it."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from spkd.errors import InputError, one_line
from spkd.models.exported import Runner, of_any_number, onnx_runner

OPSET = 18  # what PyTorch's exporter writes natively; onnxruntime reads it since 1.14
_EXTRA_FILES = {"classes": "classes.json", "images": "images.txt", "temperature": "temperature.txt"}
"""What a ``torch`` file calls what is told beside it."""


def in_format(
    network: nn.Module, example: Tensor, format: str, told: dict[str, str], batch: int | None
) -> tuple[bytes, Runner]:
    """Return the content of a file, which tells this beside the network, and a function that runs it.

    Args:
        network: from images to logits, in eval mode.
        example: images to trace it with, which may remain in the file.
        format: ``onnx`` or ``torch``.
        told: as of :func:`spkd.models.exported.told_beside`.
        batch: how many images the file is to take at a time, those of the example; None for any number.

    Raises:
        InputError: when the network cannot be converted.
    """
    shapes = ({0: Dim("batch")},) if batch is None else None
    try:
        with quiet():
            program = torch.export.export(network, (example,), dynamic_shapes=shapes, strict=False)
            if format == "torch":
                return _torch_file(program, told, batch)
            return _onnx_file(program, shapes, told)
    # A network of the user's own may fail to convert in any way.
    except Exception as error:
        raise InputError(
            f"the model cannot be converted to the format {format}: {one_line(error)}; its forward must "
            f"{'work for any batch size, where none is given, and must ' if batch is None else ''}not depend on the "
            "values of the images"
        ) from error


def _torch_file(program: ExportedProgram, told: dict[str, str], batch: int | None) -> tuple[bytes, Runner]:
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)  # names files and quotes lines of this machine
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={_EXTRA_FILES[name]: text for name, text in told.items()})
    module = torch.export.load(io.BytesIO(file.getvalue())).module()

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = module(images)
            return logits

    return file.getvalue(), of_any_number(run, batch)


def _onnx_file(
    program: ExportedProgram, shapes: tuple[dict[int, Dim]] | None, told: dict[str, str]
) -> tuple[bytes, Runner]:
    import onnx

    exported = torch.onnx.export(
        program,
        dynamo=True,
        dynamic_shapes=shapes,
        input_names=["images"],
        output_names=["logits"],
        opset_version=OPSET,
        external_data=False,
        verbose=False,
    )
    if exported is None:
        raise RuntimeError("torch.onnx.export gave no program")
    model = exported.model_proto
    _remove_traces(model)
    onnx.helper.set_model_props(model, told)
    content = model.SerializeToString()
    return content, onnx_runner(content)


def _remove_traces(model: Any) -> None:
    """Drop what the exporter notes of each node: files and lines of this machine's source code."""
    graph = model.graph
    for part in (
        model,
        graph,
        *graph.node,
        *graph.value_info,
        *graph.input,
        *graph.output,
        *graph.initializer,
    ):
        del part.metadata_props[:]
        part.doc_string = ""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' progress prints and their notes to their own developers from the user."""
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        for library in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir"):
            warnings.filterwarnings("ignore", category=UserWarning, module=library.replace(".", r"\."))
        yield
