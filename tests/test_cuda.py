"""On a GPU: what the processor computes, without waiting for the device, compiled and played from a tape as well.

As a program, ``test_cuda.py RANK FOLDER``, this file is one of two processes that share a GPU.
"""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from spkd.data.load import load_data
from spkd.data.options import DataOptions
from spkd.data.stream import TrainStream
from spkd.distiller import Distiller
from spkd.functional import (
    attention_transfer_loss,
    similarity_blocks,
    similarity_matrix,
    similarity_preserving_loss,
    soft_target_loss,
)
from spkd.losses.methods import build_objective
from spkd.losses.weights import LossWeights
from spkd.models.classifier import Classifier, ModelInfo, Normalisation
from spkd.models.inference import ROUNDING, inference_form
from spkd.models.student_form import synchronised
from spkd.models.wrn import WideResNet
from spkd.taps import TapPair
from spkd.training.devices import make_fabric
from spkd.training.loop import Training, _looking_ahead
from spkd.training.options import Request, Runtime
from spkd.training.progress import Display
from spkd.training.recipe import Recipe, preset
from spkd.training.run import run
from spkd.training.run_folder import RunFolder
from spkd.training.waiting import Waiting

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

PAIR = TapPair("group3", "group3")
SIZES = (4, 3)  # images of each of two processes


def in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ONE_PIECE", 0), ("TILE", 1), ("LEAST_ROWS", 3)):
        monkeypatch.setattr(similarity_blocks, name, value)


def features(dtype: torch.dtype, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(8, 4, 5, 5, generator=generator, dtype=torch.float64)
    student[2] = 0
    teacher = torch.randn(8, 6, 5, 5, generator=generator, dtype=torch.float64)
    return (scale * student).to(dtype), (scale * teacher).to(dtype)


def losses(student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
    """Return every loss, and the gradient of their sum."""
    student = student.requires_grad_()
    values = (
        similarity_preserving_loss(student, teacher),
        attention_transfer_loss(student, teacher),
        soft_target_loss(student.mean((2, 3)), teacher.mean((2, 3))[:, :4]),
    )
    (gradient,) = torch.autograd.grad(torch.stack([100 * values[0], *values[1:]]).sum(), student)
    return *(value.detach().cpu() for value in values), gradient.cpu()


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize(
    ("dtype", "rtol", "atol"), [(torch.float64, 1e-9, 1e-12), (torch.float32, 1e-4, 1e-6), (torch.bfloat16, 1e-2, 1e-4)]
)
def test_losses_and_gradients_are_the_processors(
    dtype: torch.dtype, rtol: float, atol: float, blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if blocks:
        in_blocks(monkeypatch)
    given = features(dtype)
    expected = losses(*(tensor.clone() for tensor in given))
    torch.testing.assert_close(losses(*(tensor.cuda() for tensor in given)), expected, rtol=rtol, atol=atol)


def test_large_half_precision_features_do_not_overflow_under_autocast() -> None:
    student, _ = features(torch.float64, scale=1e4)
    half = student.half()
    with torch.autocast("cuda", dtype=torch.float16):
        found = similarity_matrix(half.cuda())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.cpu(), similarity_matrix(half.double()).float(), rtol=1e-4, atol=1e-5)


def wide_resnet(depth: int, width: int, *, seed: int = 0) -> Classifier:
    """Return a network on 32 x 32 images whose batch norms have seen some."""
    torch.manual_seed(seed)
    info = ModelInfo("wrn", tuple("0123456789"), 3, 32, Normalisation((0.5,) * 3, (0.25,) * 3))
    classifier = Classifier(WideResNet(depth, width), info)
    with torch.no_grad():
        for _ in range(20):
            classifier.train()(torch.rand(16, 3, 32, 32))
    return classifier.cuda().eval()


def test_a_teacher_is_folded_and_rounded_within_the_bounds() -> None:
    images = torch.rand(16, 3, 32, 32, device="cuda")
    full = inference_form(wide_resnet(16, 2), ("group3",), images, precision="32-true")
    assert full.note.startswith("7 batch norms folded"), full.note
    assert float(full.note.rpartition(" ")[2].rstrip(")")) < 1e-4
    short = inference_form(wide_resnet(16, 2), ("group3",), images, precision="auto")
    assert short.precision == "bf16-true", short.note
    assert short.network(images).dtype == torch.bfloat16
    moved = similarity_matrix(short.network(images)) - similarity_matrix(full.network(images))
    assert moved.norm() < ROUNDING * similarity_matrix(full.network(images)).norm()


def training(folder: Path, recipe: Recipe, *, method: str = "sp+kd", compiled: bool = False) -> Training:
    data = load_data(DataOptions())
    info = ModelInfo("wrn-10-1", data.classes, 1, 8, Normalisation(data.normalisation_mean, data.normalisation_std))
    torch.manual_seed(0)
    student, teacher = (Classifier(WideResNet(10, width, in_channels=1), info).cuda() for width in (1, 2))
    objective = build_objective(method, [PAIR], LossWeights(gamma=30.0, beta=3.0))
    device = torch.device("cuda")
    stream = TrainStream(data.train, image_size=8, flip=False, batch_size=recipe.batch_size, seed=0, device=device)
    fabric = make_fabric(Runtime(accelerator="cuda"), recipe.precision)
    distiller = Distiller(student, teacher, objective).to(device).train()
    place = RunFolder(folder)
    return Training(
        distiller, stream, lambda: iter(()), 10, recipe, 0, "identity", fabric, place, Display(), compiled=compiled
    )


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "recipe",
    [
        preset("digits"),
        replace(preset("digits"), precision="bf16-mixed"),
        replace(preset("digits"), optimizer="adamw", lr=1e-3, clip_norm=1.0),
    ],
    ids=["sgd", "mixed", "adamw"],
)
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_step_never_waits_for_the_device(recipe: Recipe, compiled: bool, tmp_path: Path) -> None:
    """Ten steps after the first ones, the augmented batches included."""
    made = training(tmp_path, replace(recipe, batch_size=16), compiled=compiled)
    batches = itertools.islice(_looking_ahead(made._stream.batches(0), 1), 14)
    for step in itertools.islice(batches, 4):
        made._step(*step)
    made._read_pending()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in batches:
            made._step(*step)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert len(made._pending) == 10
    made._read_pending()
    assert made.state.images == 14 * 16


def lost(made: Training) -> list[float]:
    """Return the total of every step of an epoch."""
    found = []
    for step in _looking_ahead(made._stream.batches(0), 1):
        made._step(*step)
        found.append(made._pending[-1][2].total)
    return torch.stack(found).tolist()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("method", ["none", "sp", "sp+kd+at"])
def test_cuda_graphs_change_nothing_beyond_rounding(method: str, precision: Any, tmp_path: Path) -> None:
    torch.compiler.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    recipe = replace(preset("digits"), precision=precision, lr=0.001)
    plain = lost(training(tmp_path / "plain", recipe, method=method))
    made = training(tmp_path / "compiled", recipe, method=method, compiled=True)
    found = lost(made)
    assert made._graph is not None
    assert made._graph.is_recorded
    assert found == pytest.approx(plain, rel=1e-3 if precision == "32-true" else 3e-2)
    assert not counters["graph_break"]
    # The smaller batch at the end of the epoch is not compiled for.
    assert counters["stats"]["unique_graphs"] == (1 if method == "none" else 2)


def metrics(folder: Path) -> list[float]:
    """Return the training losses of every epoch."""
    header, *rows = (folder / "metrics.csv").read_text().splitlines()
    columns = [number for number, name in enumerate(header.split(",")) if name.startswith("train_")]
    return [float(row.split(",")[column]) for row in rows for column in columns]


@pytest.fixture(scope="module")
def plain(tiny: str, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Request, Path]:
    """A request for a distillation, and the folder of its run on the GPU."""
    request = Request(
        model=f"{tiny}?dropout=0",
        teacher=str(teacher),
        method="sp+kd",
        overrides={"epochs": 2, "gamma": 30.0, "lr": 0.02, "teacher_precision": "32-true"},
    )
    folder = tmp_path_factory.mktemp("plain") / "run"
    assert run(request, folder, Runtime("cuda"), Display()) is not None
    return request, folder


@pytest.mark.parametrize(
    "runtime",
    [
        Runtime("cpu"),
        Runtime("cuda", compile=True),
        Runtime("cuda", tape="tape", tape_dtype="float32"),
        Runtime("cuda", tape="tape", compile=True),
    ],
    ids=["cpu", "compiled", "tape", "tape-compiled"],
)
def test_runs_agree_up_to_rounding(runtime: Runtime, plain: tuple[Request, Path], heard: Any, tmp_path: Path) -> None:
    request, folder = plain
    if runtime.tape:
        runtime = replace(runtime, tape=str(tmp_path / "tape"))
    for number in range(2 if runtime.tape else 1):  # recorded, then played
        assert run(request, tmp_path / str(number), runtime, heard) is not None
        assert [line for line in heard.lines if "cannot be recorded" in line] == []
        assert metrics(tmp_path / str(number)) == pytest.approx(metrics(folder), rel=1e-2)


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_stopped_run_goes_on(
    precision: str, compiled: bool, plain: tuple[Request, Path], heard: Any, tmp_path: Path
) -> None:
    request = replace(plain[0], overrides={**plain[0].overrides, "precision": precision, "clip_norm": 1.0})
    runtime = Runtime("cuda", compile=compiled)
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert run(request, straight, runtime, heard) is not None
    assert run(request, stopped, replace(runtime, max_time="0"), heard) is None
    assert run(request, stopped, runtime, heard, resume=True) is not None
    assert [line for line in heard.lines if "cannot be recorded" in line] == []
    assert metrics(stopped) == pytest.approx(metrics(straight), rel=2e-2)
    first, second = (load_file(one / "student" / "model.safetensors") for one in (straight, stopped))
    assert first.keys() == second.keys()
    assert all(value.isfinite().all() for value in second.values())


def network(channels: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    convolution, norm = nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels)
    return nn.Sequential(convolution, norm, nn.ReLU(), nn.Flatten(), nn.Linear(36 * channels, 10)).double().cuda()


def trained(rank: int | None) -> list[Tensor]:
    """Take three steps with batch norms that see the whole batch, and return losses and weights."""
    student: nn.Module = network(4, 0)
    original = copy.deepcopy(student)
    if rank is not None:
        student = DistributedDataParallel(synchronised(student))
    objective = build_objective("sp+kd+at", [TapPair("2", "2")], LossWeights(gamma=30.0, beta=3.0))
    module = Distiller(student, network(6, 1), objective).cuda().train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    found = []
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        images = torch.rand(sum(SIZES), 3, 8, 8, generator=generator, dtype=torch.float64).cuda()
        targets = torch.randint(10, (sum(SIZES),), generator=generator).cuda()
        if rank is not None:
            images, targets = images.split(SIZES)[rank], targets.split(SIZES)[rank]
        breakdown = module(images, targets)
        optimizer.zero_grad()
        breakdown.total.backward()
        optimizer.step()
        found.append(breakdown.total.detach().cpu())
    weights = [parameter.detach().cpu() for parameter in module.parameters()]
    assert not all(torch.equal(one, before.cpu()) for one, before in zip(weights, original.parameters(), strict=True))
    return [*found, *weights]


def work(rank: int, folder: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(trained(rank), folder / str(rank))
    distributed.barrier()
    distributed.destroy_process_group()


def test_a_gpu_waits_for_images_only_while_it_has_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is found out without waiting for it."""
    monkeypatch.setattr("spkd.training.waiting.INTERVAL", 0.5)

    def batches() -> Iterator[Any]:
        for number in range(20):
            time.sleep(0.05)
            yield number

    def said(cycles: int) -> list[str]:
        lines: list[str] = []
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in Waiting(torch.device("cuda", 0), 0, lines.append).watched(batches()):
                torch.cuda._sleep(cycles)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize()
        return lines

    assert len(said(10_000)) == 1
    assert said(400_000_000) == []  # a fifth of a second for each batch


def test_two_processes_with_synchronised_batch_norms_are_one(tmp_path: Path) -> None:
    command = [sys.executable, __file__]
    workers = [subprocess.Popen([*command, str(rank), str(tmp_path)]) for rank in range(2)]
    try:
        assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / str(rank)), trained(None))


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
