"""What is measured of trained networks, held against plain loops over the same images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from spkd.data.digits import load_digits
from spkd.models.saved_model import load_classifier
from spkd.studies import measure
from spkd.taps import find_layer
from spkd.training.options import Request, Runtime
from spkd.training.progress import Display
from spkd.training.run import run

CPU = Runtime(accelerator="cpu")
LAST = "body"  # of the small network of the tests, the last block before the pooling


@pytest.fixture(scope="module")
def study(teacher: Path, tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with a teacher and a student, as the tasks leave them."""
    folder = tmp_path_factory.mktemp("study")
    shutil.copytree(teacher, folder / "none" / "teacher")
    request = Request(model=tiny, overrides={"epochs": 1})
    assert run(request, folder / "none" / "student", CPU, Display()) is not None
    return folder


def features(folder: Path, images: torch.Tensor) -> np.ndarray:
    """Return the last block's output in float64, by a hook of our own."""
    classifier = load_classifier(folder)
    kept: list[torch.Tensor] = []
    handle = find_layer(classifier, LAST).register_forward_hook(lambda layer, inputs, output: kept.append(output))
    with torch.no_grad():
        classifier(images.float() / 255)
    handle.remove()
    return kept[0].double().numpy()


def rows_of_unit_length(features_bchw: np.ndarray) -> np.ndarray:
    flat = features_bchw.reshape(len(features_bchw), -1)
    matrix = np.array([[float(np.dot(one, other)) for other in flat] for one in flat])
    return np.array([row / np.sqrt(np.dot(row, row)) for row in matrix])


def error(folder: Path) -> float:
    return float(json.loads((folder / "result.json").read_text())["test_error"])


def test_activations_are_spatial_means_of_images_sorted_by_class(study: Path) -> None:
    folder = study / "measurements" / "activations"
    result = measure.activations(folder, CPU, network="none/teacher")
    test = load_digits().test
    assert test is not None
    with np.load(folder / "activations.npz") as arrays:
        channels, targets = arrays["channels"], arrays["targets"]
    assert channels.shape == (32, 1000)
    assert targets.tolist() == sorted(test.targets.tolist())
    assert (result["layer"], result["images"], result["classes"]) == (LAST, 1000, list("0123456789"))
    threes = [place for place, label in enumerate(test.targets.tolist()) if label == 3]
    expected = features(study / "none/teacher", torch.stack([test.image(place) for place in threes])).mean(axis=(2, 3))
    np.testing.assert_allclose(channels[:, targets == 3].T, expected, rtol=1e-4, atol=1e-5)


def test_similarities_are_those_of_plain_loops_and_zero_to_oneself(study: Path) -> None:
    folder = study / "measurements" / "similarity"
    networks = {"teacher": "none/teacher", "student": "none/student"}
    result = measure.similarities(folder, CPU, networks=networks)
    with np.load(folder / "similarity.npz") as arrays:
        matrices, targets = arrays["matrices"], arrays["targets"]
    assert matrices.shape == (2, 3, 128, 128)
    assert all(labels.tolist() == sorted(labels.tolist()) for labels in targets)
    assert (result["batches"], result["batch"]) == (7, 128)
    test = load_digits().test
    assert test is not None
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(measure._ORDER_SEED)).tolist()
    expected: dict[str, list[np.ndarray]] = {name: [] for name in networks}
    for batch in (order[first : first + 128] for first in range(0, 7 * 128, 128)):
        images = torch.stack([test.image(place) for place in sorted(batch, key=lambda place: int(test.targets[place]))])
        for name, task in networks.items():
            expected[name].append(rows_of_unit_length(features(study / task, images)))
    for found, own in zip(matrices, expected.values(), strict=True):
        np.testing.assert_allclose(found, own[:3], atol=1e-5)
    distances = [((a - b) ** 2).sum() / 128**2 for a, b in zip(*expected.values(), strict=True)]
    assert result["sp_loss"] == {"teacher": 0, "student": pytest.approx(np.mean(distances), rel=1e-4)}
    assert result["test_errors"] == {name: error(study / task) for name, task in networks.items()}


def test_losses_are_those_of_plain_loops(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "BATCH", 10)
    folder = study / "measurements" / "losses"
    result = measure.losses(folder, CPU, teacher="none/teacher", students={"none/student": "none 0"})
    test = load_digits().test
    assert test is not None
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(measure._ORDER_SEED))
    expected = []
    for batch in order.view(-1, 10):
        images = torch.stack([test.image(place) for place in batch.tolist()])
        theirs, ours = (
            rows_of_unit_length(features(study / f"none/{name}", images)) for name in ("teacher", "student")
        )
        expected.append(sum((a - b) ** 2 for a, b in zip(theirs.flat, ours.flat, strict=True)) / 100)
    assert (result["batches"], result["batch"]) == (100, 10)
    (point,) = result["points"]
    assert point["sp_loss"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert (point["method"], point["seed"], point["task"]) == ("none", 0, "none/student")
    assert point["test_error"] == error(study / "none/student") != error(study / "none/teacher")
