"""A step of one process is what Fabric's wrapper, through which several processes go, would make of it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spkd.data.load import load_data
from spkd.data.options import DataOptions
from spkd.data.stream import TrainStream
from spkd.distiller import Distiller, Remembered
from spkd.losses.objective import Objective
from spkd.models.classifier import Classifier, ModelInfo, Normalisation
from spkd.models.wrn import WideResNet
from spkd.training.devices import make_fabric
from spkd.training.loop import Training, _looking_ahead
from spkd.training.options import Runtime
from spkd.training.progress import Silent
from spkd.training.recipe import Precision, preset
from spkd.training.run_folder import RunFolder


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_one_process_sees_what_fabrics_wrapper_shows(precision: Precision, dtype: torch.dtype, tmp_path: Path) -> None:
    data = load_data(DataOptions())
    info = ModelInfo("wrn-10-1", data.classes, 1, 8, Normalisation(data.normalisation_mean, data.normalisation_std))
    network = Classifier(WideResNet(10, 1, in_channels=1), info)
    stream = TrainStream(data.train, image_size=8, flip=False, batch_size=16, seed=0, device=torch.device("cpu"))
    images, targets = next(iter(stream.epoch(0)))
    training = Training(
        Distiller(network, None, Objective()),
        stream,
        lambda student: 0.0,
        replace(preset("digits"), precision=precision),
        0,
        "identity",
        make_fabric(Runtime(accelerator="cpu"), precision),
        RunFolder(tmp_path),
        Silent(),
    )
    network.train()
    before = copy.deepcopy(network.state_dict())
    seen: list[Tensor] = []
    network.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    wrapped = training._module(images, targets, Remembered({}))
    network.load_state_dict(before)  # the running means of the batch norms have moved
    training._step(images, targets)
    assert [shown.dtype for shown in seen] == [dtype, dtype]
    assert torch.equal(*seen)
    assert training.state.sums["total"] / training.state.images == pytest.approx(wrapped.total.item(), rel=1e-12)


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("ahead", [0, 1])
def test_batches_come_with_the_images_of_the_next(count: int, ahead: int) -> None:
    batches = [(torch.tensor(step), torch.tensor(-step)) for step in range(count)]
    given = list(_looking_ahead(iter(batches), ahead))
    assert [(images, targets) for images, targets, _ in given] == batches
    following = [images for images, _ in batches[1:]] if ahead else [None] * (count - 1)
    assert [upcoming for *_, upcoming in given] == [*following, None][:count]
