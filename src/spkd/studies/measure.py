"""What the paper's figures show of trained networks, measured on test images.

Each function is the work of a :class:`~spkd.studies.tasks.Measurement`, whose folder lies two levels below the study's;
the networks are named by their tasks. All networks of a call see the same images in the same batches.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spkd.data.images import ImageData
from spkd.data.load import load_data
from spkd.data.stream import evaluation_batches
from spkd.files import write_bytes_atomically
from spkd.functional.similarity import similarity_distance, similarity_matrix
from spkd.models.classifier import Classifier
from spkd.models.saved_model import load_classifier
from spkd.pairing import block_ends
from spkd.taps import Taps
from spkd.training.devices import make_fabric
from spkd.training.options import Runtime
from spkd.training.own_images import own_data
from spkd.training.run_folder import RunFolder, config_of

BATCH = 128
"""Images in a batch, as in training: the size of a similarity matrix. All test images, where there are fewer."""
DRAWN_BATCHES = 3
"""Batches whose similarity matrices are kept for the figure."""
_ORDER_SEED = 2019


def activations(folder: Path, runtime: Runtime, *, network: str) -> Mapping[str, Any]:
    """Measure how strongly each channel of the last block fires on each test image.

    ``activations.npz`` gets ``channels``, float32 of shape (c, n): the spatial mean of each channel, for the n test
    images sorted by class, and ``targets``, int64 of shape (n,).

    Args:
        folder: of the measurement.
        runtime: gives the device.
        network: the task that trained it.
    """
    path = _study(folder) / network
    data = _data(path)
    device = make_fabric(runtime).device
    classifier = load_classifier(path).to(device)
    order = data.test.targets.argsort(stable=True)
    means: list[Tensor] = []
    with _last_block(classifier, device) as taps, torch.no_grad():
        for images, _ in _batches(data, order, classifier, device):
            features = taps(images).taps[taps.names[0]].float()
            means.append(features.mean(dim=tuple(range(2, features.dim()))).cpu())
    channels_cn = torch.cat(means).T.contiguous()
    targets = data.test.targets[order]
    _save(folder / "activations.npz", {"channels": channels_cn, "targets": targets})
    return {"network": network, "layer": taps.names[0], "classes": list(data.classes), "images": len(order)}


def similarities(folder: Path, runtime: Runtime, *, networks: Mapping[str, str]) -> Mapping[str, Any]:
    """Measure the similarity matrices of several networks' last blocks, and how far they are from the first network's.

    ``similarity.npz`` gets ``matrices``, float32 of shape (networks, batches, b, b), of the first test batches, each
    sorted by class, and ``targets``, int64 of shape (batches, b). The distance is the similarity-preserving loss,
    the mean over all test batches of :data:`BATCH` images.

    Args:
        folder: of the measurement.
        runtime: gives the device.
        networks: the task that trained each, by its label; the first is the teacher.
    """
    study = _study(folder)
    data = _data(study / next(iter(networks.values())))
    measured = {label: _matrices(study / name, data, runtime) for label, name in networks.items()}
    (teacher, targets), *_ = measured.values()
    drawn = torch.stack([matrices[:DRAWN_BATCHES] for matrices, _ in measured.values()])
    _save(folder / "similarity.npz", {"matrices": drawn, "targets": targets[:DRAWN_BATCHES]})
    return {
        "networks": dict(networks),
        "classes": list(data.classes),
        "batches": len(teacher),
        "batch": teacher.shape[-1],
        "sp_loss": {label: _distance(matrices, teacher) for label, (matrices, _) in measured.items()},
        "test_errors": {label: _test_error(study / name) for label, name in networks.items()},
    }


def losses(folder: Path, runtime: Runtime, *, teacher: str, students: Mapping[str, str]) -> Mapping[str, Any]:
    """Measure the similarity-preserving loss of students to their teacher on test images, beside their test errors.

    Args:
        folder: of the measurement.
        runtime: gives the device.
        teacher: the task that trained it.
        students: what each student is called, by the task that trained it.
    """
    study = _study(folder)
    data = _data(study / teacher)
    teacher_matrices, _ = _matrices(study / teacher, data, runtime)
    points = []
    for name, label in students.items():
        method, _, seed = label.partition(" ")
        matrices, _ = _matrices(study / name, data, runtime)
        points.append(
            {
                "task": name,
                "method": method,
                "seed": int(seed),
                "sp_loss": _distance(matrices, teacher_matrices),
                "test_error": _test_error(study / name),
            }
        )
    return {
        "teacher": teacher,
        "batches": len(teacher_matrices),
        "batch": teacher_matrices.shape[-1],
        "points": points,
    }


def _matrices(path: Path, data: ImageData, runtime: Runtime) -> tuple[Tensor, Tensor]:
    """Return the similarity matrices (n, b, b) of a network's last block and the targets (n, b), sorted by class."""
    device = make_fabric(runtime).device
    classifier = load_classifier(path).to(device)
    images = len(data.test)
    batch = min(BATCH, images)
    shuffled = torch.randperm(images, generator=torch.Generator().manual_seed(_ORDER_SEED))
    # A smaller batch has a loss of another size, so the rest is left out.
    batches = shuffled[: images - images % batch].view(-1, batch)
    sorted_batches = torch.stack([one[data.test.targets[one].argsort(stable=True)] for one in batches])
    found = []
    with _last_block(classifier, device) as taps, torch.no_grad():
        for inputs, _ in _batches(data, sorted_batches.flatten(), classifier, device, batch):
            found.append(similarity_matrix(taps(inputs).taps[taps.names[0]]).cpu())
    return torch.stack(found), data.test.targets[sorted_batches]


def _distance(matrices: Tensor, teacher: Tensor) -> float:
    """Return the mean over batches of the similarity-preserving loss; matrices are (n, b, b)."""
    distances = [similarity_distance(one, other) for one, other in zip(matrices, teacher, strict=True)]
    return float(torch.stack(distances).mean())


def _last_block(classifier: Classifier, device: torch.device) -> Taps:
    info = classifier.info
    images = torch.rand(2, info.channels, info.image_size, info.image_size, device=device)
    return Taps(classifier, [block_ends(classifier, images)[-1].name])


def _batches(
    data: ImageData, order: Tensor, classifier: Classifier, device: torch.device, batch: int = BATCH
) -> Iterator[tuple[Tensor, Tensor]]:
    size = classifier.info.image_size
    return evaluation_batches(data.test.select(order), image_size=size, batch_size=batch, device=device)


def _data(path: Path) -> ImageData:
    # By name, since they are the study's: from a folder alone, none are taken that nobody has verified.
    config = config_of(path)
    return load_data(own_data(path, {name: config.get(name) for name in ("data", "data_root")}))


def _test_error(path: Path) -> float | None:
    return (RunFolder(path).result() or {}).get("test_error")


def _study(folder: Path) -> Path:
    return folder.parent.parent


def _save(path: Path, arrays: Mapping[str, Tensor]) -> None:
    content = io.BytesIO()
    named: dict[str, Any] = {name: array.numpy() for name, array in arrays.items()}
    np.savez_compressed(content, **named)
    write_bytes_atomically(path, content.getvalue())
