"""What a method names is what is built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spkd.errors import InputError
from spkd.losses.attention import AttentionTransferLoss
from spkd.losses.methods import build_objective, method_label
from spkd.losses.objective import Objective
from spkd.losses.similarity import SimilarityPreservingLoss
from spkd.losses.soft_targets import SoftTargetLoss
from spkd.losses.weights import LossWeights
from spkd.taps import Activations, TapPair

LAST = [TapPair("group3", "layer4")]
STAGES = [TapPair("group2", "layer3"), TapPair("group3", "layer4")]

OWN = """
import torch
from spkd.losses.base import DistillationLoss

class Logits(DistillationLoss):
    def __init__(self, power: float = 2.0, *, scale: float = 1.0) -> None:
        super().__init__()
        self.power, self.scale = power, scale
        if power == 0:
            raise RuntimeError("no power\\nat all")

    def remember(self, teacher):
        return teacher.logits

    def forward(self, student, remembered):
        return self.scale * (student.logits - remembered).abs().pow(self.power).mean()

class Layers(Logits):
    def __init__(self, pair, power: float = 2.0) -> None:
        super().__init__(power)
        self.pairs = (pair,)

class Unfinished(DistillationLoss):
    pass

class Leaves(Logits):
    def __init__(self) -> None:
        raise SystemExit(3)

class Foreign(torch.nn.Module):
    pass

number = 3
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    path = tmp_path / "own_losses.py"
    path.write_text(OWN, encoding="utf-8")
    return str(path)


def summary(objective: Objective) -> list[tuple[str, float, type]]:
    return [(term.name, term.weight, type(term.loss)) for term in objective.terms]


SP, KD, AT = SimilarityPreservingLoss, SoftTargetLoss, AttentionTransferLoss


@pytest.mark.parametrize(
    ("method", "terms", "cross_entropy"),
    [
        ("none", [], 1.0),
        ("sp", [("sp", 3000.0, SP)], 1.0),
        ("kd", [("kd", 0.9, KD)], 0.1),
        ("at", [("at", 1000.0, AT)], 1.0),
        ("sp+kd", [("sp", 3000.0, SP), ("kd", 0.9, KD)], 0.1),
        ("at+sp", [("at", 1000.0, AT), ("sp", 3000.0, SP)], 1.0),
        ("kd+at+sp", [("kd", 0.9, KD), ("at", 1000.0, AT), ("sp", 3000.0, SP)], 0.1),
        ("sp?weight=1e+3", [("sp", 1000.0, SP)], 1.0),
        ("sp?weight=10+at?weight=0.5", [("sp", 10.0, SP), ("at", 0.5, AT)], 1.0),
        (" SP + Kd?alpha=0.25 ", [("sp", 3000.0, SP), ("kd", 0.25, KD)], 0.75),
    ],
)
def test_methods(method: str, terms: list[tuple[str, float, type]], cross_entropy: float) -> None:
    objective = build_objective(method, LAST, LossWeights())
    assert summary(objective) == terms
    assert objective.cross_entropy == pytest.approx(cross_entropy)


def test_weights_and_temperature_reach_the_terms() -> None:
    objective = build_objective("sp+kd+at", LAST, LossWeights(gamma=7, alpha=0.5, temperature=2, beta=3))
    assert [term.weight for term in objective.terms] == [7, 0.5, 3]
    assert objective.cross_entropy == 0.5
    (loss,) = build_objective("kd?temperature=8", [], LossWeights()).losses
    assert loss.temperature == 8


def test_several_pairs_are_several_terms_of_full_weight() -> None:
    objective = build_objective("sp+kd", STAGES, LossWeights())
    assert summary(objective) == [("sp/group2", 3000.0, SP), ("sp/group3", 3000.0, SP), ("kd", 0.9, KD)]
    assert objective.student_taps == ("group2", "group3")
    assert objective.teacher_taps == ("layer3", "layer4")
    shared = [TapPair("group3", "layer3"), TapPair("group3", "layer4"), TapPair("group2", "layer4")]
    names = [term.name for term in build_objective("at", shared, LossWeights()).terms]
    assert names == ["at/group3=layer3", "at/group3=layer4", "at/group2"]


def test_own_losses(own: str) -> None:
    method = f"sp+{own}:Logits?power=3&scale=0.5&weight=10+{own}:Layers"
    objective = build_objective(method, STAGES, LossWeights())
    names = [(term.name, term.weight) for term in objective.terms]
    assert names == [
        ("sp/group2", 3000.0),
        ("sp/group3", 3000.0),
        ("Logits", 10.0),
        ("Layers/group2", 1.0),
        ("Layers/group3", 1.0),
    ]
    (value,) = (
        term.loss(Activations(torch.tensor([[3.0]]), {}), torch.tensor([[1.0]]))
        for term in objective.terms
        if term.name == "Logits"
    )
    assert value.item() == 4.0
    assert [term.name for term in build_objective(f"{own}:Layers", LAST, LossWeights()).terms] == ["Layers"]


def test_own_loss_from_a_module() -> None:
    objective = build_objective("spkd.losses.soft_targets:SoftTargetLoss?temperature=2", [], LossWeights())
    assert summary(objective) == [("SoftTargetLoss", 1.0, KD)]
    assert objective.cross_entropy == 1.0


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("spp", r"unknown term 'spp'.*Did you mean 'sp'"),
        ("", "unknown term ''"),
        ("sp+", "unknown term ''"),
        ("sp+none", r"^method 'sp\+none': none stands alone"),
        ("none+sp", r"^method 'none\+sp': none stands alone"),
        ("none?weight=2", "none stands alone, without other terms or arguments"),
        ("sp+my/loss.py", r"name the class in the file: my/loss\.py:NAME$"),
        ("sp?weight=0+kd", r"the term sp of method .* has weight 0; leave the term out$"),
        ("sp+kd?alpha=0", "the term kd .* has weight 0"),
        ("sp+kd+sp", r"'sp' 2 times"),
        ("sp?weight=1+sp?weight=2", r"'sp' 2 times"),
        ("sp?wieght=2", r"no argument 'wieght'; it takes weight and layers\. Did you mean 'weight'"),
        ("kd?weight=2", r"no argument 'weight'; it takes alpha and temperature"),
        ("sp?weight=big", r"weight of the term sp must be a number, got 'big'"),
        ("sp?weight=true", r"weight of the term sp must be a number, got True"),
        ("sp?weight=-1", "gamma must be"),
        ("kd?alpha=1.5", "alpha must lie between"),
        ("kd?temperature=0", "temperature must be above 0"),
        ("sp?weight", "name=value"),
    ],
)
def test_bad_methods(method: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_objective(method, LAST, LossWeights())


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ("Logitz", r"has no 'Logitz'.*Did you mean 'Logits'"),
        ("Foreign", r"own_losses.py:Foreign must be a class derived from .*Loss, got the class Foreign, which is not$"),
        ("number", r"must be a class derived from .*DistillationLoss, got int$"),
        ("Logits?weight=0", "the term Logits .* has weight 0"),
        ("Leaves", "could not be made: SystemExit: 3"),
        ("Logits?powr=2", r"has no argument 'powr'; its arguments: power, scale\. Did you mean 'power'"),
        ("Layers?pair=1", r"'pair' .* comes from the chosen layers"),
        ("Logits?weight=x", r"weight .* must be a number"),
        ("Logits?weight=-1", r"weight of Logits"),
        ("Logits?power=0", r"could not be made: RuntimeError: no power at all$"),
        ("Unfinished", r"could not be made: TypeError: .*abstract"),
    ],
)
def test_bad_own_losses(own: str, term: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_objective(f"{own}:{term}", LAST, LossWeights())


def test_layers_are_needed_and_may_not_be_doubled(own: str) -> None:
    for term in ("sp", "at", f"{own}:Layers"):
        with pytest.raises(InputError, match="no pair of layers"):
            build_objective(term, [], LossWeights())
    with pytest.raises(InputError, match="group3=layer4 is given 2 times"):
        build_objective("sp", LAST * 2, LossWeights())
    twin = f"{Path(own).parent}/../{Path(own).parent.name}/{Path(own).name}"
    with pytest.raises(InputError, match=r"'own_losses\.Logits' 2 times"):
        build_objective(f"{own}:Logits+{twin}:Logits", [], LossWeights())


@pytest.mark.parametrize(
    ("method", "weights"),
    [("sp", LossWeights(gamma=0)), ("kd", LossWeights(alpha=0)), ("sp+at", LossWeights(beta=0))],
)
def test_a_named_term_of_weight_zero_is_refused(method: str, weights: LossWeights) -> None:
    for pairs in (LAST, STAGES):
        with pytest.raises(InputError, match=r"^the term (sp|kd|at)\S* of method .* has weight 0; leave the term out$"):
            build_objective(method, pairs, weights)


def test_a_weight_of_zero_for_a_term_that_is_not_named_is_none_of_its_business() -> None:
    weights = LossWeights(gamma=0, beta=0)
    assert summary(build_objective("kd", LAST, weights)) == [("kd", 0.9, KD)]


def test_labels() -> None:
    assert method_label("none") == method_label(" None ") == "none"
    assert method_label("SP+kd") == "sp+kd"
    assert method_label("kd + at+ sp?weight=1e+3") == "kd+at+sp?weight=1e+3"
    assert method_label("package.Module:Loss") == "package.Module:Loss"
    with pytest.raises(InputError, match="unknown term"):
        method_label("spkd")


def test_a_term_may_compare_the_last_pair_only() -> None:
    pairs = [TapPair("a", "b"), TapPair("c", "d")]
    objective = build_objective("at+sp?layers=last&weight=7", pairs, LossWeights())
    assert [(term.name, term.weight) for term in objective.terms] == [("at/a", 1000), ("at/c", 1000), ("sp", 7)]
    assert objective.terms[-1].loss.pairs == (pairs[-1],)
    with pytest.raises(InputError, match="layers of the term sp must be all or last, got 'first'"):
        build_objective("sp?layers=first", pairs, LossWeights())
    with pytest.raises(InputError, match=r"kd has no argument 'layers'; it takes alpha and temperature\."):
        build_objective("kd?layers=last", pairs, LossWeights())


def test_classes_of_one_name_in_two_files_are_told_apart_by_their_files(own: str, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text(Path(own).read_text())
    terms = build_objective(f"{own}:Logits+{other}:Logits", [], LossWeights()).terms
    assert [term.name for term in terms] == ["own_losses.Logits", "other.Logits"]


def test_what_an_own_loss_remembers_is_named_by_code_arguments_and_layer(own: str) -> None:
    def memories(method: str, pairs: list[TapPair]) -> tuple[str, ...]:
        return build_objective(method, pairs, LossWeights()).memories

    two = [TapPair("group2", "layer3"), TapPair("group3", "layer4")]
    assert memories(f"{own}:Logits?weight=2", []) == memories(f"{own}:Logits", [])
    assert memories(f"{own}:Logits?power=3", []) != memories(f"{own}:Logits", [])
    assert len(memories(f"{own}:Layers", two)) == 2
    assert memories(f"{own}:Layers", two[1:]) == memories(f"{own}:Layers", two)[1:]


def test_a_neighbour_that_an_own_loss_imports_belongs_to_what_it_remembers(own: str) -> None:
    neighbour, path = Path(own).with_name("own_helper.py"), Path(own).with_name("with_helper.py")
    neighbour.write_text("def project(logits):\n    return logits\n")
    path.write_text(OWN.replace("import torch", "import torch\nfrom own_helper import project"))

    def memory() -> str:
        return build_objective(f"{path}:Logits", [], LossWeights()).memories[0]

    before = memory()
    assert memory() == before
    neighbour.write_text("def project(logits):\n    return 2 * logits\n")
    assert memory() != before


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_weight_of_the_labels_can_be_given(weight: float) -> None:
    for method in ("sp", "sp+kd"):
        assert build_objective(method, LAST, LossWeights(), cross_entropy=weight).cross_entropy == weight


def test_pairs_and_weights_of_another_kind_are_refused() -> None:
    for pairs in (["layer4=layer4"], TapPair("1", "1")):
        with pytest.raises(InputError, match=r"^pairs: expected a list of TapPair"):
            build_objective("sp", pairs, LossWeights())  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^weights: expected LossWeights"):
        build_objective("sp", LAST, LossWeights)  # type: ignore[arg-type]
