from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from spkd.distiller import Distiller, Remembered
from spkd.errors import InputError
from spkd.functional import attention_transfer_loss, similarity_preserving_loss, soft_target_loss
from spkd.losses.attention import AttentionTransferLoss
from spkd.losses.base import DistillationLoss
from spkd.losses.methods import build_objective
from spkd.losses.objective import LossBreakdown, Objective, Term
from spkd.losses.similarity import SimilarityPreservingLoss
from spkd.losses.soft_targets import SoftTargetLoss
from spkd.losses.weights import LossWeights
from spkd.models.classifier import Classifier, ModelInfo, Normalisation
from spkd.pairing import block_ends
from spkd.taps import Activations, TapPair


def network(channels: int = 4, classes: int = 10, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, channels, 3),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * channels, classes),
    )


PAIR = TapPair("1", "2")
# Most are rehearsed in eval mode, so that two calls can be compared.
pytestmark = pytest.mark.filterwarnings("ignore:the student is in eval mode")


def objective(pair: str = "2") -> Objective:
    tapped = TapPair.parse(pair)
    return Objective(
        [
            Term("sp", 3000.0, SimilarityPreservingLoss(tapped)),
            Term("kd", 0.9, SoftTargetLoss()),
            Term("at", 1000.0, AttentionTransferLoss(tapped)),
        ],
        cross_entropy=0.1,
    )


def batch(count: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, 8, 8, generator=generator)
    return images, torch.randint(10, (count,), generator=generator)


def distiller(**names: str) -> Distiller:
    return Distiller(network(4), network(6, seed=1), objective(**names)).eval()


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same_state(module: nn.Module, before: dict[str, Tensor]) -> None:
    after = module.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name


def test_the_total_is_the_weighted_sum_of_the_losses() -> None:
    images, targets = batch()
    module = distiller()
    student, teacher = module.student, module.teacher
    assert teacher is not None
    features_student, features_teacher = student[:3](images), teacher[:3](images)  # type: ignore[operator]
    logits_student, logits_teacher = student(images), teacher(images)
    breakdown = module(images, targets)
    expected = {
        "ce": F.cross_entropy(logits_student, targets),
        "sp": similarity_preserving_loss(features_student, features_teacher),
        "kd": soft_target_loss(logits_student, logits_teacher),
        "at": attention_transfer_loss(features_student, features_teacher),
    }
    assert breakdown.terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(breakdown.terms[name], value.detach())
    weights = {"ce": 0.1, "sp": 3000.0, "kd": 0.9, "at": 1000.0}
    total = torch.stack([weights[name] * value for name, value in expected.items()]).sum()
    torch.testing.assert_close(breakdown.total, total)


def test_a_plain_loop_learns() -> None:
    images, targets = batch(16)
    module = distiller().train()
    assert module.teacher is not None
    before = state_of(module.teacher)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    totals = []
    for _ in range(20):
        optimizer.zero_grad()
        breakdown = module(images, targets)
        breakdown.total.backward()
        optimizer.step()
        totals.append(float(breakdown.total.detach()))
    assert min(totals[-5:]) < 0.8 * totals[0]
    assert_same_state(module.teacher, before)


def test_the_teacher_is_frozen_and_in_eval_mode() -> None:
    images, targets = batch()
    module = distiller()
    teacher = module.teacher
    assert teacher is not None
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    module.train()
    assert module.student.training
    assert not any(layer.training for layer in teacher.modules())
    teacher.train()
    module(images, targets).total.backward()
    assert not any(layer.training for layer in teacher.modules())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    module.requires_grad_(True)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_the_teacher_is_no_part_of_the_state() -> None:
    module = distiller()
    assert module.teacher is not None
    assert {name.split(".")[0] for name in module.state_dict()} == {"student"}
    hidden = {id(part) for part in (*module.teacher.modules(), *module.teacher.parameters())}
    assert not hidden & {id(part) for part in (*module.modules(), *module.parameters(), *module.children())}
    assert sum(1 for _ in module.parameters()) == sum(1 for _ in module.student.parameters())


def test_the_objectives_own_weights_are_part_of_the_state() -> None:
    class Projected(SoftTargetLoss):
        def __init__(self) -> None:
            super().__init__()
            self.projection = nn.Linear(10, 10)

    module = Distiller(network(), network(seed=1), Objective([Term("own", 1.0, Projected())]))
    names = [name for name in module.state_dict() if not name.startswith("student.")]
    assert names == ["objective.losses.0.projection.weight", "objective.losses.0.projection.bias"]


def test_the_teacher_moves_along() -> None:
    images, targets = batch()
    module = distiller().double()
    assert module.teacher is not None
    assert {parameter.dtype for parameter in module.teacher.parameters()} == {torch.float64}
    assert module(images.double(), targets).total.dtype == torch.float64
    assert module.to("meta") is module
    assert {parameter.device.type for parameter in module.teacher.parameters()} == {"meta"}


def test_remembering_is_what_the_teacher_said_in_this_batch() -> None:
    images, targets = batch()
    module = distiller()
    remembered = module.remember(images)
    assert {name: tuple(value.shape) for name, value in remembered.items()} == {
        "sp": (8, 8),
        "kd": (8, 10),
        "at": (8, 6, 6),
    }
    assert not any(value.requires_grad for value in remembered.values())
    expected = module(images, targets).total
    assert module.teacher is not None
    with torch.no_grad():
        for parameter in module.teacher.parameters():
            parameter.fill_(float("nan"))
    torch.testing.assert_close(module(images, targets, remembered).total, expected)


def test_training_alone_is_the_same_thing_without_a_teacher() -> None:
    images, targets = batch()
    student = network().eval()
    module = Distiller(student, None, Objective())
    assert module.teacher is None
    assert module.remember(images) == {}
    breakdown = module(images, targets)
    torch.testing.assert_close(breakdown.total, F.cross_entropy(student(images), targets))
    module.check(images, targets)


def test_an_objective_with_terms_needs_a_teacher_or_what_it_said() -> None:
    images, targets = batch()
    taught = distiller()
    alone = Distiller(taught.student, None, objective())
    with pytest.raises(InputError, match=r"teacher: the objective compares with one \(sp, kd, at\), got None"):
        alone(images, targets)
    said = taught.remember(images)
    expected = taught(images, targets).total
    assert torch.equal(alone(images, targets, said).total, expected)
    assert torch.equal(alone(images, targets, Remembered(said)).total, expected)


@pytest.mark.parametrize("with_logits", [False, True])
def test_no_more_of_the_teacher_runs_than_is_read(with_logits: bool) -> None:
    images, targets = batch()
    teacher = network(6, seed=1)
    ran: list[str] = []
    for name, module in teacher.named_children():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))  # type: ignore[misc]
    terms = [Term("sp", 1.0, SimilarityPreservingLoss(TapPair("2", "2")))]
    if with_logits:
        terms.append(Term("kd", 1.0, SoftTargetLoss()))
    Distiller(network(), teacher, Objective(terms))(images, targets)
    assert ran == (["0", "1", "2", "3", "4", "5", "6"] if with_logits else ["0", "1", "2"])


def test_the_teacher_sees_no_more_images_at_a_time_than_it_may_and_says_the_same() -> None:
    images, targets = batch(7)
    student, teacher = network(4).double(), network(6, seed=1).double()
    whole = Distiller(student, teacher, objective()).eval()(images.double(), targets)
    seen: list[int] = []
    teacher.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    module = Distiller(student, teacher, objective(), teacher_micro_batch_size=4).eval()
    parts = module(images.double(), targets)
    assert seen == [4, 3]
    torch.testing.assert_close(parts.total, whole.total)
    torch.testing.assert_close(parts.terms, whole.terms)
    with pytest.raises(InputError, match="micro_batch_size"):
        Distiller(student, teacher, objective(), teacher_micro_batch_size=0)


def test_shared_weights_are_an_error() -> None:
    student = network()
    with pytest.raises(InputError, match="teacher: it shares weights with the student"):
        Distiller(student, student, objective())
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_unknown_layers_are_an_error() -> None:
    with pytest.raises(InputError, match="no layer 'layer4'"):
        distiller(pair="layer4")


def test_closing_takes_the_hooks_off() -> None:
    module = distiller()
    assert module.teacher is not None
    module.close()
    module.close()
    for model in (module.student, module.teacher):
        assert not any(layer._forward_hooks for layer in model.modules())


def test_a_copy_is_independent() -> None:
    images, targets = batch()
    module = distiller()
    expected = module(images, targets).total
    twin = copy.deepcopy(module)
    module.close()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    torch.testing.assert_close(twin(images, targets).total, expected)


@pytest.mark.parametrize("mode", [True, False])
def test_checking_leaves_everything_as_it_was(mode: bool) -> None:
    images, targets = batch()
    module = distiller().train(mode)
    module(images, targets).total.backward()
    gradients = [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]
    before, generator = state_of(module), torch.get_rng_state()
    module.check(images, targets)
    assert_same_state(module, before)
    assert torch.equal(torch.get_rng_state(), generator)
    kept = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    assert len(kept) == len(gradients) > 0
    for old, new in zip(gradients, kept, strict=True):
        assert torch.equal(old, new)
    assert module.student.training is mode


def test_checking_puts_back_a_buffer_that_a_pass_has_replaced() -> None:
    class Centre(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("centre", torch.zeros(3, 1, 1))
            self.register_buffer("cache", torch.zeros(1))
            self.register_buffer("made", None)
            self.cached = 1

        def forward(self, images: Tensor) -> Tensor:
            self.centre = 0.9 * self.centre + 0.1 * images.mean((0, 2, 3)).view(3, 1, 1)
            if self.cached < images.shape[3]:
                self.cached = images.shape[3]
                self.cache, self.made = torch.zeros(self.cached), torch.zeros(1)
            return images - self.centre + self.cache[: images.shape[3]] + self.made

    module = Distiller(nn.Sequential(Centre(), *network()), network(seed=1), objective("3=2"))
    module.check(*batch())
    assert not module.student[0].centre.any()  # type: ignore[index, union-attr, operator]
    assert len(module.student[0].cache) == 8  # type: ignore[index, union-attr, arg-type]
    assert [found.name for found in block_ends(module.student, batch()[0])] == ["3"]
    assert not module.student[0].centre.any()  # type: ignore[index, union-attr, operator]


def test_checking_leaves_everything_as_it_was_on_errors() -> None:
    images, targets = batch()
    module = distiller().train()
    before, generator = state_of(module), torch.get_rng_state()
    images[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError):
        module.check(images, targets)
    assert_same_state(module, before)
    assert torch.equal(torch.get_rng_state(), generator)


def test_checking_finds_a_term_that_is_not_finite() -> None:
    images, targets = batch()
    module = distiller()
    assert module.teacher is not None
    with torch.no_grad():
        next(module.teacher.parameters())[0].fill_(float("inf"))
    with pytest.raises(InputError, match=r"term 'sp': expected a finite loss on the first batch, got nan"):
        module.check(images, targets)
    images[0] = float("nan")
    with pytest.raises(InputError, match=r"term 'ce': expected a finite loss"):
        module.check(images, targets)


def test_checking_finds_a_gradient_that_is_not_finite() -> None:
    class Root(SoftTargetLoss):
        def forward(self, student: object, remembered: Tensor) -> Tensor:
            return (student.logits * 0).abs().sqrt().sum()  # type: ignore[attr-defined, no-any-return]

    module = Distiller(network(), network(seed=1), Objective([Term("root", 1.0, Root())]))
    with pytest.raises(InputError, match=r"term 'root': its gradient .* is not finite"):
        module.check(*batch())


def test_checking_finds_a_term_without_gradient() -> None:
    frozen = distiller()
    frozen.student.requires_grad_(False)
    frozen.student[6].requires_grad_(True)  # type: ignore[index]
    with pytest.raises(InputError, match="term 'sp': its gradient with respect to the student is zero"):
        frozen.check(*batch())
    dead = distiller()
    with torch.no_grad():
        dead.student[1].weight.zero_()  # type: ignore[index, union-attr]
        dead.student[1].bias.fill_(-1.0)  # type: ignore[index, union-attr]
    with pytest.raises(InputError, match="term 'sp': its gradient"):
        dead.check(*batch())
    with pytest.raises(InputError, match="one image in the batch"):
        distiller().check(*batch(1))


def test_checking_finds_targets_without_a_logit() -> None:
    images, targets = batch()
    with pytest.raises(InputError, match=r"targets: expected class indices from 0 to 9, .*got -?\d+ to 10"):
        distiller().check(images, torch.full_like(targets, 10))
    with pytest.raises(InputError, match="got -1 to -1"):
        distiller().check(images, torch.full_like(targets, -1))
    some = targets.clone()
    some[0] = -100
    distiller().check(images, some)
    distiller().check(images, torch.full_like(targets, -100))
    with pytest.raises(InputError, match=r"got -?\d+ to 10"):
        distiller().check(images, some.index_fill(0, torch.tensor([1]), 10))


def test_checking_knows_probabilities_from_other_targets() -> None:
    images, targets = batch(4)
    mixed = 0.5 * (F.one_hot(targets, 10) + F.one_hot(targets.flip(0), 10))
    distiller().check(images, mixed)
    for wrong, message in (
        (torch.tensor([[1.0, 1.0, *[0.0] * 8]] * 4), "whose sum is 1 for each image"),
        (torch.tensor([[-1.0, 2.0, *[0.0] * 8]] * 4), "probabilities of the classes"),
        (targets.float(), r"got torch.float32 of shape \(4,\)"),
        (torch.zeros(4, 9), r"as many probabilities as the student has logits \(10\)"),
        (
            F.one_hot(targets, 10),
            r"one for each of 4 images, or rows of probabilities, got torch.int64 of shape \(4, 10\)",
        ),
        (targets.int(), "got torch.int32"),
        (targets[:, None], r"of shape \(4, 1\)"),
        (targets[:2], r"of shape \(2,\)"),
    ):
        with pytest.raises(InputError, match=message):
            distiller().check(images, wrong)


def test_checking_takes_what_a_teacher_said_in_its_box_too() -> None:
    images, targets = batch()
    module = distiller()
    said = module.remember(images)
    alone = Distiller(module.student, None, module.objective)
    for remembered in (said, Remembered(said)):
        alone.check(images, targets, remembered)
        assert alone.unused_parameters(images, targets, remembered) == ()


def test_what_a_teacher_said_is_exact_in_its_box_where_fabric_rounds_what_goes_in() -> None:
    class Kept(DistillationLoss):
        def remember(self, teacher: Activations) -> Tensor:
            return teacher.logits

        def forward(self, student: Activations, remembered: Tensor) -> Tensor:
            met.append(remembered)
            return (student.logits - remembered).square().mean()

    met: list[Tensor] = []
    images, targets = batch()
    module = Distiller(network(), network(6, seed=1), Objective([Term("kept", 1.0, Kept())]))
    said = module.remember(images)
    wrapped = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed").setup(module)
    wrapped(images, targets, Remembered(said))
    wrapped(images, targets, said)
    assert torch.equal(met[0], said["kept"])
    assert torch.equal(met[1], said["kept"].bfloat16().float())


def test_a_segmentation_s_targets_are_no_classes_of_images() -> None:
    student = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1))
    module = Distiller(student, network(6, seed=1), Objective([Term("sp", 1.0, SimilarityPreservingLoss(PAIR))]))
    images, maps = batch(4)[0], torch.zeros(4, 6, 6, dtype=torch.int64)
    with pytest.raises(InputError, match=r"expected logits of shape \(images, classes\), got \(4, 5, 6, 6\)"):
        module.check(images, maps)
    module.check(images, None)

    def pixels(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, reduction="none").mean((1, 2))

    own = Objective([Term("sp", 1.0, SimilarityPreservingLoss(PAIR))], criterion=pixels)
    module = Distiller(student, network(6, seed=1), own)
    module.check(images, maps)
    assert torch.allclose(module(images, maps).terms["ce"], F.cross_entropy(student(images), maps))


def test_a_student_that_is_wrapped_later_is_run_wrapped() -> None:
    class Counting(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module, self.runs = module, 0

        def forward(self, images: Tensor) -> Any:
            self.runs += 1
            return self.module(images)

    module = distiller()
    images, targets = batch()
    before = module(images, targets).total
    wrapped = Counting(module.student)
    module.student = wrapped
    assert torch.equal(module(images, targets).total, before)
    module.check(images, targets)
    assert module.unused_parameters(images, targets) == ()
    assert wrapped.runs == 3
    module.student = wrapped.module
    module(images, targets)
    assert wrapped.runs == 3


def test_another_network_in_the_student_s_place_is_an_error_never_one_that_does_not_learn() -> None:
    module = distiller()
    before = module(*batch()).total
    for other in (copy.deepcopy(module.student), None):
        with pytest.raises(InputError, match="student: another network is put in its place"):
            module.student = other  # type: ignore[assignment]
    assert torch.equal(module(*batch()).total, before)
    module.add_module("student", network(4))
    for use in (module, module.check, module.unused_parameters, module):
        with pytest.raises(InputError, match="student: another network is put in its place"):
            use(*batch())


@pytest.mark.parametrize("later", [False, True])
def test_a_compiled_student_in_a_compiled_distiller(later: bool) -> None:
    images, targets = batch()
    expected = distiller()(images, targets).total
    student = network(4).eval()
    compiled = torch.compile(student, backend="eager")
    module = Distiller(student if later else compiled, network(6, seed=1), objective()).eval()  # type: ignore[arg-type]
    if later:
        module.student = compiled  # type: ignore[assignment]
    torch.testing.assert_close(torch.compile(module, backend="eager")(images, targets).total, expected)


def test_a_sound_distiller_passes_its_check_in_half_precision() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distiller().train().check(*batch())


def test_gradients_that_only_float16_loses_are_no_zeros() -> None:
    class Small(SoftTargetLoss):
        def forward(self, student: object, remembered: Tensor) -> Tensor:
            # The backward pass of a cast rounds to float16, which ends at 6e-8.
            return 1e-9 * student.logits.half().float().sum()  # type: ignore[attr-defined, no-any-return]

    def with_slope(slope: float) -> Distiller:
        loss = Small()
        if not slope:
            loss.forward = lambda student, remembered: 0.0 * student.logits.sum()  # type: ignore[method-assign]
        return Distiller(network(), network(seed=1), Objective([Term("small", 1.0, loss)]))

    with_slope(1.0).check(*batch())
    with pytest.raises(InputError, match=r"term 'small': its gradient .* is zero"):
        with_slope(0.0).check(*batch())


class Blocks(nn.Module):
    """A network whose first block is recomputed in the backward pass."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 3)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())
        self.head = nn.Linear(4, 10)
        self.reentrant = reentrant

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = checkpoint(self.block, self.stem(images), use_reentrant=self.reentrant)  # type: ignore[no-untyped-call]
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


def test_a_layer_that_runs_without_gradients_is_an_error_never_a_term_that_teaches_nothing() -> None:
    images, targets = batch()
    terms = Objective([Term("sp", 3000.0, SimilarityPreservingLoss(TapPair("block", "2")))])
    wrong = Distiller(Blocks(reentrant=True), network(), terms)
    with pytest.raises(InputError, match=r"tap 'block': the layer runs without gradients, .* use_reentrant=False"):
        wrong(images, targets)
    # Where nobody wants any; PyTorch says that there will be none.
    with torch.no_grad(), pytest.warns(UserWarning, match="None of the inputs"):
        assert wrong(images, targets).terms["sp"] > 0
    right = Distiller(Blocks(reentrant=False), network(), terms)
    right(images, targets).total.backward()
    got = [parameter.grad for parameter in right.student.parameters()]
    plain = Blocks(reentrant=False)
    features = plain.block(plain.stem(images))
    assert right.teacher is not None
    loss = F.cross_entropy(plain.head(features.mean((2, 3))), targets)
    (loss + 3000 * similarity_preserving_loss(features, right.teacher[:3](images))).backward()  # type: ignore[operator]
    for gradient, parameter in zip(got, plain.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_a_part_of_the_teacher_that_another_module_has_put_into_training_is_in_eval_mode_too() -> None:
    images, targets = batch()
    teacher = nn.Sequential(network(6, seed=1)).eval()
    module = Distiller(network(), teacher, objective("2=0.2")).eval()
    expected = module(images, targets).terms
    nn.ModuleList([teacher[0]]).train()
    assert not teacher.training
    assert teacher[0][1].training  # type: ignore[index]
    before = state_of(teacher)
    torch.testing.assert_close(module(images, targets).terms, expected)
    assert_same_state(teacher, before)
    assert not any(one.training for one in teacher.modules())


def test_a_teacher_that_changes_the_images_is_an_error() -> None:
    class Normalising(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network(seed=1)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.network(images.sub_(0.5))
            return logits

    for most in (None, 3):
        teacher = Normalising()
        module = Distiller(network(), teacher, objective("2=network.2"), teacher_micro_batch_size=most)
        with pytest.raises(InputError, match="teacher: it changes the images in place"):
            module(*batch())


def test_several_gpus_by_data_parallel_are_refused() -> None:
    wrapped = nn.DataParallel(network())
    wrapped.device_ids = [0, 1]
    with pytest.raises(InputError, match=r"student: nn.DataParallel .* use DistributedDataParallel"):
        Distiller(wrapped, network(seed=1), objective())
    with pytest.raises(InputError, match=r"teacher: nn\.DataParallel"):
        Distiller(network(), wrapped, objective())
    module = distiller()
    given_back = nn.DataParallel(module.student)
    module.student = given_back
    given_back.device_ids = [0, 1]
    with pytest.raises(InputError, match=r"student: nn\.DataParallel"):
        module.student = given_back


def test_a_student_without_values_leaves_the_teacher_its_own() -> None:
    with torch.device("meta"):
        student = network()
    teacher = network(6, seed=1)
    before = state_of(teacher)
    module = Distiller(student, teacher, objective()).to_empty(device="cpu")
    assert_same_state(teacher, before)
    assert {parameter.device.type for parameter in module.parameters()} == {"cpu"}
    module.load_state_dict(distiller().state_dict())
    assert torch.isfinite(module(*batch()).total)
    with torch.device("meta"):
        both = Distiller(network(), network(seed=1), objective())
    both.to_empty(device="cpu")
    assert both.teacher is not None
    assert {parameter.device.type for parameter in both.teacher.parameters()} == {"cpu"}


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # where the compiler gives up, since an error is to be raised
@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_layer_under_no_grad_is_refused_in_a_compiled_distiller_too(without: Any, compiled: bool) -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)

        def forward(self, images: Tensor) -> Tensor:
            with without():
                features = self.body(images)
            logits: Tensor = self.head(features.clone().mean((2, 3)))
            return logits

    terms = Objective([Term("sp", 3000.0, SimilarityPreservingLoss(TapPair("body", "2")))])
    module: Any = Distiller(Frozen(), network(), terms)
    torch.compiler.reset()
    with pytest.raises(InputError, match="tap 'body': the layer runs without gradients"):
        (torch.compile(module, backend="eager") if compiled else module)(*batch())


def test_a_module_of_both_networks_follows_the_student() -> None:
    shared = nn.Dropout(0.5)
    student, teacher = network(), network(seed=1)
    student[3] = teacher[3] = shared
    module = Distiller(student, teacher, objective()).train()
    module(*batch())
    assert shared.training


def test_a_sharded_student_trains_and_is_not_checked(tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        whole = distiller().train()
        student = copy.deepcopy(whole.student)
        fully_shard(student[0], mesh=init_device_mesh("cpu", (1,)))  # type: ignore[index]
        fully_shard(student, mesh=init_device_mesh("cpu", (1,)))
        assert whole.teacher is not None
        module = Distiller(student, whole.teacher, objective())
        for call in (module.check, module.unused_parameters):
            with pytest.raises(InputError, match=r"divided among processes \(fully_shard\)"):
                call(*batch())
        gradients = []
        for one in (whole, module):
            torch.manual_seed(0)
            one.train()(*batch()).total.backward()
            gradients.append([parameter.grad for parameter in one.parameters()])
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(theirs.full_tensor(), ours)  # type: ignore[union-attr]
    finally:
        torch.distributed.destroy_process_group()


def test_the_whole_distiller_compiles_without_a_break() -> None:
    torch.compiler.reset()
    images, targets = batch()
    plain, module = distiller(), distiller()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    expected = plain(images, targets)
    expected.total.backward()
    given = compiled(images, targets)
    given.total.backward()
    assert isinstance(given, LossBreakdown)
    torch.testing.assert_close(given.total, expected.total)
    torch.testing.assert_close(given.terms, expected.terms)
    for one, other in zip(plain.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("part", ["student", "teacher"])
def test_images_that_a_saved_model_would_normalise_again_are_noticed(part: str) -> None:
    info = ModelInfo("net.py:network", tuple("0123456789"), 3, 8, Normalisation((0.5,), (0.25,)))
    networks = {"student": network(4), "teacher": network(6, seed=1)}
    networks[part] = Classifier(networks[part], info)
    module = Distiller(networks["student"], networks["teacher"], objective())
    images, targets = batch()
    module.check(images, targets)
    module.check(1.2 * images - 0.1, targets)  # as after a change of contrast
    for wrong in ((images - 0.5) / 0.25, 255 * images):
        with pytest.raises(InputError, match=f"^images: the {part} is a saved model, which takes values in "):
            module.check(wrong, targets)
    networks[part] = network(4)
    Distiller(networks["student"], networks["teacher"], objective()).check((images - 0.5) / 0.25, targets)


def test_a_backward_pass_that_fails_is_met_in_the_rehearsal() -> None:
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(192, 10)

        def forward(self, images: Tensor) -> Tensor:
            logits = torch.sigmoid(self.head(images.flatten(1)))
            return logits.add_(1)  # which sigmoid needs as it was

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        Distiller(Overwrites(), None, Objective()).check(*batch())


def test_a_student_that_cannot_learn_is_met_in_the_rehearsal() -> None:
    frozen = Distiller(network().requires_grad_(False), None, Objective())
    with pytest.raises(InputError, match=r"^student: its logits depend on no trainable weight, so it cannot learn"):
        frozen.check(*batch())
    frozen.student[6].bias.requires_grad_(True)  # type: ignore[index, union-attr]
    frozen.check(*batch())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_student_in_fabrics_wrapper_is_checked(precision: str, compiled: bool) -> None:
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    student: nn.Module = network(4)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    if compiled:
        student = cast(nn.Module, torch.compile(student, backend="eager"))
    wrapped, optimizer = fabric.setup(student, optimizer)
    module = Distiller(wrapped, network(6, seed=1), objective())
    images, targets = batch()
    module.check(images, targets)
    assert module.unused_parameters(images, targets) == ()
    breakdown = module(images, targets)
    fabric.backward(breakdown.total)
    assert all(parameter.grad is not None for parameter in wrapped.parameters())


def test_a_compiled_student_that_has_learnt_is_checked() -> None:
    """Its backward pass was compiled to be run once."""
    student = cast(nn.Module, torch.compile(network(4), backend="aot_eager"))
    module = Distiller(student, network(6, seed=1), objective())
    module(*batch()).total.backward()
    module.check(*batch())
    assert module.unused_parameters(*batch()) == ()


def test_networks_of_maps_need_put_out_no_logits_where_nothing_reads_them() -> None:
    class Maps(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.network = network(channels)[:3]
            self.head = nn.Conv2d(channels, 2, 1)

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            maps = self.network(images)
            return {"maps": maps, "boxes": self.head(maps)}

    images, targets = batch()
    terms = [Term("sp", 3.0, SimilarityPreservingLoss(TapPair("network.0", "network.0")))]
    module = Distiller(Maps(4), Maps(6), Objective(terms, cross_entropy=0))
    module.check(images, None)
    breakdown = module(images, None)
    breakdown.total.backward()
    assert breakdown.terms["sp"] > 0
    torch.compiler.reset()  # or what other tests have compiled counts
    compiled = torch.compile(module, backend="eager")(images, None)
    torch.testing.assert_close(compiled.terms["sp"], breakdown.terms["sp"], rtol=1e-4, atol=0)
    for one in (Objective(terms), Objective([*terms, Term("kd", 1.0, SoftTargetLoss())], cross_entropy=0)):
        with pytest.raises(InputError, match="expected logits as a tensor"):
            Distiller(Maps(4), Maps(6), one)(images, targets)


def test_a_batch_that_is_no_tensor_is_told_in_one_line() -> None:
    images, targets = batch()
    module = Distiller(network(4), network(6, seed=1), objective())
    for call in (module, module.check):
        with pytest.raises(InputError, match=r"^images: expected a tensor with the batch first, got dict;"):
            call({"images": images}, targets)


def test_a_term_that_is_only_watched_is_not_checked() -> None:
    class Broken(SoftTargetLoss):
        def forward(self, student: object, remembered: Tensor) -> Tensor:
            return torch.tensor(float("nan"))

    terms = [Term("kd", 0.9, SoftTargetLoss()), Term("watch", 0.0, Broken())]
    Distiller(network(), network(seed=1), Objective(terms)).check(*batch())
    with pytest.raises(InputError, match="term 'watch': expected a finite loss"):
        Distiller(network(), network(seed=1), Objective([*terms[:1], Term("watch", 1.0, Broken())])).check(*batch())


@pytest.mark.parametrize("part", ["student", "teacher"])
def test_a_network_that_is_elsewhere_than_the_images_is_named(part: str) -> None:
    networks = {"student": network(4), "teacher": network(6, seed=1)}
    networks[part] = networks[part].to("meta")
    module = Distiller(networks["student"], networks["teacher"], objective())
    with pytest.raises(InputError, match=f"^{part}: its weights are on meta and the images on cpu; move all to one"):
        module.check(*batch())


def test_what_a_teacher_said_in_inference_mode_can_be_learnt_from() -> None:
    module, (images, targets) = distiller(), batch()
    expected = module(images, targets).total
    with torch.inference_mode():
        remembered = module.remember(images)
    total = module(images, targets, remembered).total
    assert torch.equal(total, expected)
    total.backward()


@pytest.mark.parametrize("wrong", ["sp+kd", None])
def test_what_is_no_objective_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"^objective: expected an Objective, as build_objective makes it, got "):
        Distiller(network(), network(seed=1), wrong)


def test_the_weights_of_an_objective_may_change_during_training() -> None:
    """By one that reads the same; the layers are read by what was there when the distiller was made."""
    distiller = Distiller(network(), network(6, seed=1), build_objective("sp+kd", [PAIR], LossWeights(gamma=10)))
    distiller.eval()
    images, targets = torch.rand(4, 3, 8, 8), torch.arange(4)
    before = distiller(images, targets)
    distiller.objective = build_objective("sp+kd", [PAIR], LossWeights(gamma=30))
    after = distiller(images, targets)
    assert after.terms == before.terms
    torch.testing.assert_close(after.total - before.total, 20 * before.terms["sp"])


@pytest.mark.parametrize(
    "between", [build_objective("kd", [], LossWeights()), build_objective("sp", [PAIR], LossWeights(), cross_entropy=0)]
)
def test_an_objective_that_reads_less_may_stand_in_its_place_for_a_time(between: Objective) -> None:
    first = build_objective("sp+kd", [PAIR], LossWeights())
    distiller = Distiller(network(), network(6, seed=1), first).eval()
    images, targets = torch.rand(4, 3, 8, 8), torch.arange(4)
    before = distiller(images, targets)
    distiller.objective = between
    own = Distiller(distiller.student, network(6, seed=1), between).eval()
    torch.testing.assert_close(distiller(images, targets).total, own(images, targets).total)
    distiller.objective = first
    assert torch.equal(distiller(images, targets).total, before.total)


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (build_objective("sp", [TapPair("4", "2")], LossWeights()), r"layers of the student \(4, not 1\)"),
        (build_objective("sp", [TapPair("1", "4")], LossWeights()), r"layers of the teacher \(4, not 2\)"),
        (
            build_objective("sp+kd", [PAIR], LossWeights()),
            r"logits \(the student's and the teacher's, not the student's\)",
        ),
        (nn.Identity(), "expected an Objective"),
    ],
)
def test_an_objective_that_reads_something_else_is_not_put_in_its_place(other: Any, line: str) -> None:
    objective = build_objective("sp", [PAIR], LossWeights())
    distiller = Distiller(network(), network(6, seed=1), objective)
    with pytest.raises(InputError, match=rf"^objective: .*{line}"):
        distiller.objective = other
    assert distiller.objective is objective


def test_a_distiller_that_dataparallel_copies_says_what_to_use() -> None:
    """As PyTorch copies it: by its attributes, without its constructor."""
    module = distiller()
    replica = module._replicate_for_data_parallel()
    with pytest.raises(InputError, match="DataParallel copies a Distiller for each GPU"):
        replica.student = network(4)


def test_probabilities_in_the_place_of_logits_are_noticed() -> None:
    module = Distiller(
        nn.Sequential(network(4), nn.Softmax(1)), network(6, seed=1), build_objective("kd", [], LossWeights())
    )
    with pytest.raises(InputError, match=r"^student: it returns probabilities"):
        module.check(*batch())
    module = Distiller(
        network(4), nn.Sequential(network(6, seed=1), nn.Softmax(1)), build_objective("kd", [], LossWeights())
    )
    with pytest.raises(InputError, match=r"^teacher: it returns probabilities"):
        module.check(*batch())
    for criterion, refused in (
        (None, True),
        (nn.CrossEntropyLoss(reduction="none"), True),
        (lambda *_: torch.ones(8), False),
    ):
        objective = build_objective("sp", [PAIR], LossWeights(gamma=1), criterion=criterion)
        ending = nn.Sequential(*network(4), nn.Softmax(1))
        module = Distiller(ending, network(6, seed=1), objective)
        if refused:
            with pytest.raises(InputError, match=r"^student: it returns probabilities"):
                module.check(*batch())
        else:
            module.check(*batch())
        module.check(batch()[0], None)  # nothing takes a softmax of it
    for last in (nn.LogSoftmax(1), nn.Identity()):
        Distiller(network(4), nn.Sequential(network(6, seed=1), last), build_objective("kd", [], LossWeights())).check(
            *batch()
        )


def test_a_student_in_eval_mode_is_told_of() -> None:
    module = Distiller(network(4).eval(), network(6, seed=1), build_objective("kd", [], LossWeights()))
    with pytest.warns(UserWarning, match=r"the student is in eval mode, .*distiller\.train\(\)"):
        module.check(*batch())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.train().check(*batch())


def test_labels_that_weigh_nothing_are_not_asked_to_fit() -> None:
    images, targets = batch()
    module = Distiller(network(), network(6, seed=1), build_objective("sp", [PAIR], LossWeights(), cross_entropy=0))
    module.check(images, targets)
    with pytest.raises(
        InputError, match=r"^targets: give None, as the cross-entropy, which cannot read these, weighs 0"
    ):
        module.check(images, targets + 1000)
    module.check(images, None)


def test_labels_that_a_loss_of_one_s_own_reads_are_not_said_to_be_superfluous() -> None:
    images, _ = batch()

    class Several(DistillationLoss):
        mean_over_images = True

        def remember(self, teacher: Activations) -> Tensor:
            return teacher.logits

        def forward(self, student: Activations, remembered: Tensor) -> Tensor:
            assert student.targets is not None
            return F.binary_cross_entropy_with_logits(student.logits, student.targets)

    module = Distiller(network(), network(6, seed=1), Objective([Term("several", 1.0, Several())], cross_entropy=0))
    with pytest.raises(InputError, match=r"for labels that do not exclude each other, give the objective a criterion"):
        module.check(images, torch.ones(len(images), network()(images).shape[1]))


def test_shares_of_classes_that_were_rounded_are_read_in_float32() -> None:
    """As Fabric's wrapper rounds them in mixed precision."""
    images, _ = batch()
    seen: list[Tensor] = []

    def criterion(logits: Tensor, targets: Tensor) -> Tensor:
        seen.append(targets)
        return F.cross_entropy(logits, targets, reduction="none")

    shares = torch.full((len(images), network()(images).shape[1]), 0.1)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        given = build_objective("sp", [PAIR], LossWeights(), criterion=criterion)
        Distiller(network(), network(6, seed=1), given)(images, shares.to(dtype))
    assert [targets.dtype for targets in seen] == [torch.float32, torch.float32, torch.float64]


def test_a_cross_entropy_that_weighs_nothing_need_not_be_finite() -> None:
    images, targets = batch()

    def criterion(logits: Tensor, targets: Tensor) -> Tensor:
        return torch.full((len(logits),), float("nan"))

    given = build_objective("sp", [PAIR], LossWeights(), cross_entropy=0, criterion=criterion)
    Distiller(network(), network(6, seed=1), given).check(images, targets)
    given = build_objective("sp", [PAIR], LossWeights(), criterion=criterion)
    with pytest.raises(InputError, match=r"term 'ce': expected a finite loss"):
        Distiller(network(), network(6, seed=1), given).check(images, targets)
