"""A batch divided among real processes gives what one process gives: values, gradients and weights after steps.

As a program, ``test_processes.py RANK PROCESSES FOLDER``, this file is one of the processes.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from spkd.distiller import Distiller
from spkd.errors import InputError
from spkd.losses.attention import AttentionTransferLoss
from spkd.losses.base import DistillationLoss
from spkd.losses.objective import UNLABELLED, Objective, Term
from spkd.losses.similarity import SimilarityPreservingLoss
from spkd.losses.soft_targets import SoftTargetLoss
from spkd.processes import divide, first_said, share_buffers
from spkd.taps import Activations, TapPair

PAIR = TapPair("2", "2")
# Images of each process in each step; the last batch of an epoch is often smaller.
STEPS = {2: [(4, 4), (3, 4), (1, 2)], 3: [(3, 3, 3), (3, 2, 2), (1, 4, 2)]}
KINDS = (torch.int16, torch.bool, torch.bfloat16, torch.float64)
METHODS = ("all", "whole", "alone")
# Which module DDP wraps, and whether what the teacher says is passed (then DDP is told of a static graph, too).
WAYS = [("student", False), ("distiller", False), ("student", True), ("student later", False)]


class Spread(DistillationLoss):
    """A loss that is no mean over images: it compares variances over the batch, by a layer of its own."""

    reads_teacher_logits = False

    def __init__(self) -> None:
        super().__init__()
        self.pairs = (PAIR,)
        self.factors = nn.Parameter(torch.linspace(0.5, 1.5, 4))

    def remember(self, teacher: Activations) -> Tensor:
        return teacher.taps["2"].mean((1, 2, 3)).var().expand(1)

    def forward(self, student: Activations, remembered: Tensor) -> Tensor:
        assert student.targets is not None
        labels = (student.targets % 3 + 1)[:, None]
        return (student.taps["2"].mean((2, 3)) * self.factors * labels).var(0).sum().sub(remembered).square().sum()


class Projected(SoftTargetLoss):
    """A mean over images, with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.projection = nn.Linear(10, 10)

    def forward(self, student: Activations, remembered: Tensor) -> Tensor:
        return super().forward(replace(student, logits=self.projection(student.logits)), remembered)


class First(SoftTargetLoss):
    """A loss that teaches nothing in any process but the first."""

    def forward(self, student: Activations, remembered: Tensor) -> Tensor:
        return super().forward(student, remembered) * (distributed.get_rank() == 0)


class Scaled(nn.Module):
    """A criterion that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.scale * logits, targets, reduction="none")


def network(channels: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, channels, 3),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * channels, 10),
    )


def objective(method: str) -> Objective:
    if method == "alone":
        return Objective()
    if method == "sp":
        return Objective([Term("sp", 3000.0, SimilarityPreservingLoss(PAIR))])
    if method == "learns":
        return Objective([Term("own", 2.0, Projected())], 0.5)
    if method == "whole":
        return Objective([Term("own", 3.0, Spread())], 0.5)
    terms = [
        Term("sp", 3000.0, SimilarityPreservingLoss(PAIR)),
        Term("kd", 0.9, SoftTargetLoss()),
        Term("own", 3.0, Spread()),
        Term("at", 100.0, AttentionTransferLoss(PAIR)),
    ]
    return Objective(terms, 0.1)


def batch(count: int, step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.rand(count, 3, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.randint(10, (count,), generator=generator)


def train(
    method: str, processes: int, rank: int | None, wrap: str = "", remembers: bool = False, compiled: bool = False
) -> dict[str, Any]:
    """Take the steps, as one process or as the one of that rank, and return all that is to be equal."""
    student = network(4, 0)
    taught = DistributedDataParallel(student.double(), static_graph=remembers) if wrap == "student" else student
    module = Distiller(taught, network(6, 1), objective(method)).double().eval()
    called: nn.Module = torch.compile(module, backend="aot_eager") if compiled else module
    called = DistributedDataParallel(called) if wrap == "distiller" else called
    if wrap == "student later":
        module.student = DistributedDataParallel(module.student)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    found: dict[str, Any] = {"values": [], "gradients": []}
    for step, sizes in enumerate(STEPS[processes][: 1 if method == "sp" else None]):
        images, targets = batch(sum(sizes), step)
        targets[0] = UNLABELLED  # in the last step the first process has no label at all
        if rank is not None:
            images, targets = images.split(sizes)[rank], targets.split(sizes)[rank]
        if step == 0 and rank is not None and wrap != "student later":
            module.check(images, targets)
        breakdown = called(images, targets, module.remember(images) if remembers else None)
        optimizer.zero_grad()
        breakdown.total.backward()
        optimizer.step()
        found["values"].append([breakdown.total.detach(), breakdown.terms])
        found["gradients"].append([parameter.grad.clone() for parameter in module.parameters()])
    found["weights"] = [parameter.detach() for parameter in module.parameters()]
    return found


def message(call: Any, *arguments: object) -> str:
    try:
        call(*arguments)
    except InputError as error:
        return str(error)
    return ""


def errors(processes: int, rank: int) -> list[str]:
    """Make mistakes that only the last process sees, and return what this one is told."""
    last = rank == processes - 1
    module = Distiller(network(4, 0), network(6, 1), objective("all")).double().eval()
    images, targets = batch(2, rank)
    told = [message(module.check, images, torch.full_like(targets, 10) if last else targets)]
    told.append(message(module.check, images * float("nan") if last else images, targets))
    told.append(message(module, images[: 0 if last else 2], targets[: 0 if last else 2]))
    told.append(message(module.check, images, None if last else targets))
    smaller = images[..., : 7 if last else 8]
    told.append(message(module, smaller, targets))
    pooled = Objective([Term("sp", 1.0, SimilarityPreservingLoss(TapPair("3", "3")))])
    told.append(message(Distiller(network(4, 0), network(6, 1), pooled).double().eval(), smaller, targets))
    module.student[:2].requires_grad_(False)  # type: ignore[index, operator]
    told.append(message(module.check, images, targets))
    one_sided = Distiller(network(4, 0), network(6, 1), Objective([Term("first", 1.0, First())])).double().eval()
    told.append(message(one_sided.check, images, targets))
    learns = DistributedDataParallel(network(4, 0))
    told.append(message(Distiller, learns, network(6, 1), Objective([Term("own", 1.0, Projected())])))
    told.append(message(Distiller, learns, network(6, 1), objective("all")))
    told.append(message(Distiller, learns, network(6, 1), Objective(criterion=Scaled())))
    later = Distiller(network(4, 0), network(6, 1), objective("learns"))
    return [*told, message(setattr, later, "student", DistributedDataParallel(later.student))]


def gathered(processes: int, rank: int) -> list[Tensor]:
    """Return the first and second derivative, for this process's part, of a sum over the processes."""
    sizes = STEPS[processes][-1]
    division = divide(torch.empty(sizes[rank], 1))
    assert division is not None
    assert division.sizes == sizes
    own = torch.arange(1.0, 1 + 2 * sum(sizes)).view(-1, 2).split(sizes)[rank].clone().requires_grad_()
    value = (rank + 1) * division.gather(own).pow(3).sum()
    (first,) = torch.autograd.grad(value, own, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), own)
    kinds = [division.gather_any(own.detach().to(kind)) for kind in KINDS]
    return [division.gather(own.half()).detach(), first.detach(), second, *kinds]


def work(rank: int, processes: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes)
    found: dict[str, Any] = {"errors": errors(processes, rank), "gathered": gathered(processes, rank)}
    norm = nn.BatchNorm2d(3)
    norm.running_mean.fill_(rank + 1.0)  # type: ignore[union-attr]
    norm.register_buffer("table", torch.full((2, 3, 4, 5), rank + 1).to(memory_format=torch.channels_last))
    share_buffers(norm)
    found["shared"] = [*norm.buffers(), first_said([] if rank == 0 else [f"process {rank}"])]
    for method in METHODS:
        found[method] = [train(method, processes, rank, *way) for way in WAYS]
    found["learns"] = train("learns", processes, rank, "distiller")
    if processes == 2:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's own, where it leaves the communication out
            found["compiled"] = train("sp", processes, rank, "distiller", compiled=True)
    if rank == 0:  # must not wait for the others
        with torch.no_grad():
            Distiller(network(4, 0), network(6, 1), objective("all")).double()(*batch(3, 0))
    torch.save(found, folder / str(rank))
    distributed.destroy_process_group()


@pytest.fixture(scope="module", params=STEPS)
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found, of two and of three."""
    processes, folder = request.param, tmp_path_factory.mktemp("processes")
    # Rehearsed in eval mode, so that one process's steps can be compared.
    command = [sys.executable, "-W", "error", "-W", "ignore:the student is in eval mode", __file__]
    workers = [subprocess.Popen([*command, str(rank), str(processes), str(folder)]) for rank in range(processes)]
    try:
        assert [worker.wait(timeout=300) for worker in workers] == [0] * processes
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    return [torch.load(folder / str(rank)) for rank in range(processes)]


def test_values_gradients_and_weights_are_those_of_one_process(results: list[dict[str, Any]]) -> None:
    for method in METHODS:
        expected = train(method, len(results), None)
        for found in results:
            assert len(found[method]) == len(WAYS)
            for given in found[method]:
                torch.testing.assert_close(given, expected)


def test_what_a_loss_learns_is_averaged_where_the_distiller_is_wrapped(results: list[dict[str, Any]]) -> None:
    expected = train("learns", len(results), None)
    for found in results:
        torch.testing.assert_close(found["learns"], expected)
        assert "term 'own': its loss learns" in found["errors"][8]
        assert found["errors"][9] == ""
        assert "criterion: it learns, and the processes would each learn something else" in found["errors"][10]
        assert "term 'own': its loss learns" in found["errors"][11]


@pytest.mark.parametrize("results", [2], indirect=True)
def test_compilation_changes_nothing(results: list[dict[str, Any]]) -> None:
    expected = train("sp", len(results), None)
    for found in results:
        torch.testing.assert_close(found["compiled"], expected)


def test_all_processes_are_told_of_a_mistake_in_one(results: list[dict[str, Any]]) -> None:
    first = results[0]["errors"]
    assert all(found["errors"] == first for found in results)
    assert "to 10" in first[0]
    assert "term 'ce': expected a finite loss" in first[1]
    assert "expected at least one in every process" in first[2]
    assert "targets: some processes have targets and others None" in first[3]
    assert "images: the processes have images of unlike sizes" in first[4]
    assert first[5] == "", "what is pooled has one shape"
    assert "term 'sp': its gradient with respect to the student is zero" in first[6]
    assert first[7] == ""


def test_what_is_gathered_is_differentiated_once_and_twice(results: list[dict[str, Any]]) -> None:
    sizes = STEPS[len(results)][-1]
    whole = torch.arange(1.0, 1 + 2 * sum(sizes)).view(-1, 2)
    factor = sum(rank + 1 for rank in range(len(results)))
    for found, part in zip(results, whole.split(sizes), strict=True):
        assert torch.equal(found["gathered"][0], whole.half())
        torch.testing.assert_close(found["gathered"][1], 3 * factor * part.square())
        # Each process asks for the sum over its own part, and gets what the others' sums ask for as well.
        torch.testing.assert_close(found["gathered"][2], 6 * factor * part)
        for kind, values in zip(KINDS, found["gathered"][3:], strict=True):
            assert values.dtype == kind
            assert torch.equal(values, whole.to(kind))


def test_buffers_are_the_first_one_s_and_texts_the_first_that_is_said(results: list[dict[str, Any]]) -> None:
    for found in results:
        mean, _, _, table, text = found["shared"]
        assert mean.tolist() == [1.0] * 3
        assert torch.equal(table, torch.ones(2, 3, 4, 5, dtype=torch.int64))
        assert table.is_contiguous(memory_format=torch.channels_last)
        assert text == "process 1"


def test_one_process_has_no_division() -> None:
    assert divide(torch.empty(3, 1)) is None


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
