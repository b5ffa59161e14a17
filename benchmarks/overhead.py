"""What the loop adds to each step of a small network: seeds, learning rate, losses read, display; over bare PyTorch."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.timing import interleaved
from spkd.data.load import load_data
from spkd.data.options import DataOptions
from spkd.data.stream import TrainStream
from spkd.distiller import Distiller
from spkd.losses.objective import Objective
from spkd.models.classifier import Classifier, ModelInfo, Normalisation
from spkd.models.wrn import WideResNet
from spkd.training.devices import make_fabric
from spkd.training.loop import Training
from spkd.training.options import Runtime
from spkd.training.progress import Display
from spkd.training.recipe import preset
from spkd.training.run_folder import RunFolder


def measure(*, smoke: bool) -> dict[str, Any]:
    """Return seconds of a step of WRN-10-1 alone on 64 digits, by the loop and by bare PyTorch."""
    data, recipe, fabric = load_data(DataOptions()), preset("digits"), make_fabric(Runtime())
    info = ModelInfo("wrn-10-1", data.classes, 1, 8, Normalisation(data.normalisation_mean, data.normalisation_std))
    torch.manual_seed(0)
    network = Classifier(WideResNet(10, 1, in_channels=1), info).to(fabric.device)
    network.to(memory_format=torch.channels_last)
    stream = TrainStream(
        data.train, image_size=8, flip=False, batch_size=recipe.batch_size, seed=0, device=fabric.device
    )
    batch = next(iter(stream.batches(0)))
    bare = _bare_step(copy.deepcopy(network).train(), batch.images, batch.targets)
    with tempfile.TemporaryDirectory() as folder:
        training = Training(
            Distiller(network, None, Objective()),
            stream,
            lambda: iter(()),
            len(data.classes),
            recipe,
            0,
            "overhead",
            fabric,
            RunFolder(Path(folder)),
            Display(),
        )
        network.train()

        def ours() -> None:
            training.state.batch = 0
            training._step(batch)

        timings = interleaved(
            {"bare PyTorch": bare, "spkd": ours}, rounds=2 if smoke else 500, warmup=1 if smoke else 50
        )
    return {
        "what": f"one step of WRN-10-1 alone, {recipe.batch_size} images of 8 × 8, {fabric.device.type}",
        "seconds": {name: vars(timing) for name, timing in timings.items()},
        "overhead_ms": 1e3 * (timings["spkd"].median - timings["bare PyTorch"].median),
    }


def _bare_step(network: Classifier, images: Tensor, targets: Tensor) -> Any:
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
    )

    def step() -> None:
        F.cross_entropy(network(images), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
