"""Objective: a weighted sum, broken down."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import helpers
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spkd.errors import InputError
from spkd.functional import similarity_preserving_loss, soft_target_loss
from spkd.losses.base import DistillationLoss
from spkd.losses.objective import UNLABELLED, Criterion, LossBreakdown, Objective, Term
from spkd.losses.similarity import SimilarityPreservingLoss
from spkd.losses.soft_targets import SoftTargetLoss
from spkd.taps import Activations, TapPair

random = functools.partial(helpers.random, dtype=torch.float32)

LAST, EARLY = TapPair("group3", "layer4"), TapPair("group2", "layer4")


class Fixed(DistillationLoss):
    """A loss with state that does nothing itself to stop gradients."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("value", value)

    def remember(self, teacher: Activations) -> Tensor:
        assert not torch.is_grad_enabled()
        return teacher.logits

    def forward(self, student: Activations, remembered: Tensor) -> Tensor:
        return self.scale * self.value + 0 * (student.logits.sum() + remembered.sum())


@pytest.fixture
def student() -> Activations:
    taps = {"group2": random(1, 3, 4, 2, 2).requires_grad_(), "group3": random(2, 3, 6).requires_grad_()}
    return Activations(random(3, 3, 5).requires_grad_(), taps)


@pytest.fixture
def teacher() -> Activations:
    return Activations(random(4, 3, 5).requires_grad_(), {"layer4": random(5, 3, 7).requires_grad_()})


TARGETS = torch.tensor([0, 4, 2])


def test_an_image_without_a_label_counts_as_zero_in_the_cross_entropy(student: Activations) -> None:
    targets = torch.tensor([2, UNLABELLED, 4])
    breakdown = Objective()(student, targets, {})
    log_probabilities = student.logits.detach().double().log_softmax(1).tolist()
    assert breakdown.total.item() == pytest.approx(-(log_probabilities[0][2] + log_probabilities[2][4]) / 3, rel=1e-6)
    breakdown.total.backward()
    assert student.logits.grad is not None
    assert student.logits.grad.abs().sum(1).gt(0).tolist() == [True, False, True]
    assert Objective()(student, torch.full((3,), UNLABELLED), {}).total.item() == 0


def test_total_is_the_weighted_sum_of_the_unweighted_terms(student: Activations, teacher: Activations) -> None:
    objective = Objective(
        [
            Term("sp/group2", 3000.0, SimilarityPreservingLoss(EARLY)),
            Term("sp/group3", 500.0, SimilarityPreservingLoss(LAST)),
            Term("kd", 0.9, SoftTargetLoss(2.0)),
        ],
        cross_entropy=0.1,
    )
    result = objective(student, TARGETS, objective.remember(teacher))
    early = similarity_preserving_loss(student.taps["group2"], teacher.taps["layer4"])
    late = similarity_preserving_loss(student.taps["group3"], teacher.taps["layer4"])
    kd = soft_target_loss(student.logits, teacher.logits, 2.0)
    ce = -F.log_softmax(student.logits, 1)[torch.arange(3), TARGETS].mean()
    torch.testing.assert_close(result.total, 0.1 * ce + 3000 * early + 500 * late + 0.9 * kd)
    assert list(result.terms) == ["ce", "sp/group2", "sp/group3", "kd"]
    for name, value in (("ce", ce), ("sp/group2", early), ("sp/group3", late), ("kd", kd)):
        torch.testing.assert_close(result.terms[name], value.detach())
        assert not result.terms[name].requires_grad


def test_gradient_reaches_what_the_terms_read_and_no_teacher(student: Activations, teacher: Activations) -> None:
    objective = Objective([Term("sp", 1.0, SimilarityPreservingLoss(LAST)), Term("own", 1.0, Fixed(torch.ones(())))])
    remembered = objective.remember(teacher)
    assert not any(value.requires_grad for value in remembered.values())
    objective(student, TARGETS, remembered).total.backward()
    assert student.taps["group3"].grad.any()
    assert student.logits.grad.any()
    assert student.taps["group2"].grad is None
    assert teacher.logits.grad is None
    assert teacher.taps["layer4"].grad is None


def test_without_terms_it_is_cross_entropy(student: Activations, teacher: Activations) -> None:
    objective = Objective()
    assert objective.remember(teacher) == {}
    assert objective.student_taps == objective.teacher_taps == ()
    result = objective(student, TARGETS, {})
    torch.testing.assert_close(result.total, F.cross_entropy(student.logits, TARGETS))
    assert list(result.terms) == ["ce"]


def test_taps_are_named_once_in_order() -> None:
    objective = Objective(
        [
            Term("a", 1.0, SimilarityPreservingLoss(EARLY)),
            Term("b", 1.0, SimilarityPreservingLoss(LAST)),
            Term("c", 1.0, SimilarityPreservingLoss(LAST)),
        ]
    )
    assert objective.student_taps == ("group2", "group3")
    assert objective.teacher_taps == ("layer4",)


def test_a_term_of_weight_zero_is_reported_but_cannot_poison_the_total(student: Activations) -> None:
    objective = Objective([Term("own", 0.0, Fixed(torch.tensor(math.nan)))])
    result = objective(student, TARGETS, {"own": torch.ones(())})
    result.total.backward()
    assert result.terms["own"].isnan()
    assert result.total.isfinite()
    assert student.logits.grad.isfinite().all()


def test_cross_entropy_of_weight_zero_needs_no_label(student: Activations, teacher: Activations) -> None:
    objective = Objective([Term("sp", 2.0, SimilarityPreservingLoss(LAST))], cross_entropy=0.0)
    result = objective(student, torch.full((3,), -100), objective.remember(teacher))
    torch.testing.assert_close(result.total.detach(), 2 * result.terms["sp"])


def test_a_criterion_takes_the_place_of_the_cross_entropy(student: Activations, teacher: Activations) -> None:
    smoothed = nn.CrossEntropyLoss(label_smoothing=0.1, reduction="none")
    objective = Objective([Term("kd", 0.5, SoftTargetLoss())], 2.0, criterion=smoothed)
    breakdown = objective(student, TARGETS, objective.remember(teacher))
    log_p = student.logits.detach().double().log_softmax(1)
    expected = -(0.9 * log_p[range(3), TARGETS] + 0.1 * log_p.mean(1)).mean()
    assert math.isclose(float(breakdown.terms["ce"]), float(expected), rel_tol=1e-6)
    assert math.isclose(
        float(breakdown.total.detach()), float(2 * breakdown.terms["ce"] + 0.5 * breakdown.terms["kd"]), rel_tol=1e-6
    )


def test_a_criterion_s_weights_are_the_objective_s_and_its_targets_of_any_kind() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
            losses = F.binary_cross_entropy_with_logits(logits * self.scale[:, None, None], targets, reduction="none")
            return losses.flatten(1).mean(1)

    objective = Objective(criterion=Scaled())
    maps = random(1, 2, 4, 3, 3).bfloat16().requires_grad_()
    breakdown = objective(Activations(maps, {}), (random(2, 2, 4, 3, 3) > 0).float(), {})
    breakdown.total.backward()
    (scale,) = objective.parameters()
    assert scale.grad is not None
    assert scale.grad.abs().min() > 0
    assert breakdown.terms["ce"].dtype == torch.float32  # of logits that autocast has rounded


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (nn.CrossEntropyLoss(), r"a value for each image, of shape \(3,\), got shape \(\); give it reduction=\"none\""),
        (lambda logits, targets: logits, r"got shape \(3, 5\)"),
        (lambda logits, targets: None, "got None"),
    ],
)
def test_a_criterion_gives_a_value_for_each_image(criterion: Criterion, message: str, student: Activations) -> None:
    with pytest.raises(InputError, match=message):
        Objective(criterion=criterion)(student, TARGETS, {})


def test_probabilities_as_targets(student: Activations) -> None:
    mixed = 0.7 * F.one_hot(TARGETS, 5).float() + 0.3 * F.one_hot(TARGETS.flip(0), 5).float()
    log_p = student.logits.detach().double().log_softmax(1)
    expected = -(0.7 * log_p[range(3), TARGETS] + 0.3 * log_p[range(3), TARGETS.flip(0)]).mean()
    assert math.isclose(float(Objective()(student, mixed, {}).terms["ce"]), float(expected), rel_tol=1e-6)


def test_without_targets_the_logits_may_be_anything(student: Activations, teacher: Activations) -> None:
    features = Activations(random(1, 3, 4, 2, 2).requires_grad_(), student.taps)
    objective = Objective([Term("sp", 10.0, SimilarityPreservingLoss(LAST))], cross_entropy=0)
    remembered = objective.remember(teacher)
    breakdown = objective(features, None, remembered)
    assert breakdown.terms["ce"] == 0
    assert torch.equal(breakdown.total, objective(student, TARGETS, remembered).total)
    with pytest.raises(InputError, match=r"expected logits of shape \(images, classes\), got \(3, 4, 2, 2\)"):
        objective(features, TARGETS, remembered)


def test_the_logits_are_told_without_gradient(student: Activations) -> None:
    told = Objective()(student, TARGETS, {}).logits
    assert told is not None
    assert torch.equal(told, student.logits)
    assert not told.requires_grad


def test_half_precision_logits_under_autocast() -> None:
    logits = torch.tensor([[60000.0, -60000.0], [0.0, 1.0]], dtype=torch.float16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = Objective()(Activations(logits, {}), torch.tensor([1, 1]), {})
    assert result.total.dtype == torch.float32
    assert result.total.item() == pytest.approx((120000 + math.log(1 + math.exp(-1))) / 2, rel=1e-6)
    result.total.backward()
    assert logits.grad.isfinite().all()


def test_non_finite_terms_show_in_the_total(student: Activations) -> None:
    objective = Objective([Term("own", 1.0, Fixed(torch.tensor(math.nan)))])
    assert objective(student, TARGETS, {"own": torch.ones(())}).total.isnan()


def test_state_and_copies() -> None:
    objective = Objective([Term("own.first", 1.0, Fixed(torch.tensor(3.0))), Term("kd", 1.0, SoftTargetLoss())])
    assert set(objective.state_dict()) == {"losses.0.scale", "losses.0.value"}
    twin = copy.deepcopy(objective).double()
    assert twin.terms[0].loss is twin.losses[0]
    assert twin.terms[0].loss is not objective.terms[0].loss
    assert next(twin.parameters()).dtype == torch.float64


class Free(DistillationLoss):
    """A user's loss whose two halves are given."""

    def __init__(self, remember: Callable[[], object], forward: Callable[[], object]) -> None:
        super().__init__()
        self.halves = remember, forward

    def remember(self, teacher: Activations) -> Tensor:
        return self.halves[0]()  # type: ignore[return-value]

    def forward(self, student: Activations, remembered: Tensor) -> Tensor:
        return self.halves[1]()  # type: ignore[return-value]


def broken() -> object:
    return torch.ones(2).no_such_method()  # type: ignore[operator]


def raising(error: BaseException) -> Callable[[], object]:
    def call() -> object:
        raise error

    return call


@pytest.mark.parametrize(
    ("returned", "kind"), [(0.5, "float"), (None, "None"), ([1.0], "list"), (torch.ones(1, 1), r"shape \(1, 1\)")]
)
def test_what_a_users_loss_returns_must_be_a_scalar_tensor(
    returned: object, kind: str, student: Activations, teacher: Activations
) -> None:
    for name in ("Free", "Free/group3"):
        objective = Objective([Term(name, 1.0, Free(lambda: torch.ones(3), lambda: returned))])
        with pytest.raises(InputError, match=rf"^term '{name}': forward\(\) must return a scalar tensor, got {kind}"):
            objective(student, TARGETS, objective.remember(teacher))


def test_what_a_users_loss_remembers_must_be_a_tensor(teacher: Activations) -> None:
    objective = Objective([Term("own", 1.0, Free(lambda: None, lambda: None))])
    with pytest.raises(InputError, match=r"^term 'own' \(class Free\): remember\(\) must return a tensor, got None$"):
        objective.remember(teacher)


def test_an_error_in_a_users_loss_is_one_line_that_names_it(student: Activations, teacher: Activations) -> None:
    line = broken.__code__.co_firstlineno + 1
    where = rf"\(\): AttributeError: [^\n]*no_such_method[^\n]* \(line {line} of test_objective.py\)$"
    objective = Objective([Term("Free", 1.0, Free(broken, broken))])
    with pytest.raises(InputError, match=r"^term 'Free' failed in remember" + where):
        objective.remember(teacher)
    with pytest.raises(InputError, match=r"^term 'Free' failed in forward" + where):
        objective(student, TARGETS, {"Free": torch.ones(3)})


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(1), torch.OutOfMemoryError("no memory"), InputError("as it is")]
)
def test_some_errors_pass_through_a_users_loss_as_they_are(error: BaseException, teacher: Activations) -> None:
    objective = Objective([Term("Free", 1.0, Free(raising(error), broken))])
    with pytest.raises(type(error)) as caught:
        objective.remember(teacher)
    assert caught.value is error


def test_errors_of_the_packages_own_losses_are_not_wrapped(student: Activations) -> None:
    objective = Objective([Term("kd", 1.0, SoftTargetLoss())])
    with pytest.raises(AttributeError):
        objective(student, TARGETS, {"kd": None})  # type: ignore[dict-item]


def test_a_users_loss_compiles_with_the_rest(student: Activations, teacher: Activations) -> None:
    torch.compiler.reset()
    objective = Objective([Term("own", 2.0, Fixed(torch.tensor(3.0))), Term("kd", 1.0, SoftTargetLoss())])
    remembered = objective.remember(teacher)
    compiled = torch.compile(objective, backend="eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(student, TARGETS, remembered).total, objective(student, TARGETS, remembered).total
    )


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_a_single_compiled_term_keeps_its_gradient(weight: float) -> None:
    torch.compiler.reset()
    logits = torch.randn(3, 5, requires_grad=True)
    objective = Objective(cross_entropy=weight)

    def loss(logits: torch.Tensor) -> LossBreakdown:
        return objective(Activations(logits, {}), TARGETS, {})  # type: ignore[no-any-return]

    found, expected = torch.compile(loss)(logits), loss(logits)
    torch.testing.assert_close(
        torch.autograd.grad(found.total, logits), torch.autograd.grad(expected.total, logits), check_stride=False
    )
    assert not found.terms["ce"].requires_grad


def test_errors(student: Activations) -> None:
    loss = SoftTargetLoss()
    with pytest.raises(InputError, match="'kd' 2 times"):
        Objective([Term("kd", 1.0, loss), Term("kd", 1.0, loss)])
    with pytest.raises(InputError, match="'ce'"):
        Objective([Term("ce", 1.0, loss)])
    for weight in (-1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="weight of kd"):
            Objective([Term("kd", weight, loss)])
        with pytest.raises(InputError, match="cross_entropy"):
            Objective((), weight)
    with pytest.raises(InputError, match="nothing would be learnt"):
        Objective([Term("kd", 0.0, loss)], cross_entropy=0.0)
    with pytest.raises(InputError, match=r"lacks the term 'kd' \(it holds kdd\).*Did you mean 'kdd'"):
        Objective([Term("kd", 1.0, loss)])(student, TARGETS, {"kdd": torch.ones(3, 5)})
    with pytest.raises(InputError, match=r"^term 'own' \(class Fixed\): .* scalar tensor, got shape \(2,\)"):
        Objective([Term("own", 1.0, Fixed(torch.ones(2)))])(student, TARGETS, {"own": torch.ones(())})


def test_a_user_s_loss_remembers_a_bfloat16_teacher_in_float32(teacher: Activations) -> None:
    class Own(Fixed):
        def remember(self, teacher: Activations) -> Tensor:
            assert {tap.dtype for tap in teacher.taps.values()} == {torch.float32}
            return teacher.logits

    short = Activations(teacher.logits.bfloat16(), {name: tap.bfloat16() for name, tap in teacher.taps.items()})
    remembered = Objective([Term("own", 1.0, Own(torch.ones(())))]).remember(short)
    assert remembered["own"].dtype == torch.float32


def test_terms_may_come_one_by_one() -> None:
    found = Objective(Term(f"kd{number}", 1.0, SoftTargetLoss()) for number in range(3))
    assert [term.name for term in found.terms] == ["kd0", "kd1", "kd2"]
    assert len(found.losses) == 3


@pytest.mark.parametrize(
    ("terms", "criterion", "message"),
    [
        (
            [Term("kd", 1.0, SoftTargetLoss)],
            None,
            r"^terms: expected Term\(name, weight, loss\) with a DistillationLoss",
        ),
        ([Term("x", 1.0, nn.MSELoss())], None, "^terms: expected Term"),
        (["kd"], None, "^terms: expected Term"),
        ([Term("kd", "3", SoftTargetLoss())], None, "^the weight of kd must be a finite number of at least 0, got 3"),
        ([], nn.CrossEntropyLoss, "^criterion: expected a function of logits and targets or a module that is made"),
        ([], "bce", "^criterion: expected a function"),
    ],
)
def test_what_is_no_term_or_criterion_is_refused(terms: Any, criterion: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Objective(terms, criterion=criterion)
