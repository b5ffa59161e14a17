"""A student is laid channels last where it can run so, and no conversion loses what a batch norm computes."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from spkd.errors import InputError
from spkd.models.classifier import Classifier, ModelInfo, Normalisation
from spkd.models.student_form import lay_channels_last, synchronised
from spkd.models.wrn import WideResNet

INFO = ModelInfo("net.py:Net", ("a", "b", "c"), 3, 8, Normalisation((0.5,), (0.25,)))


class Viewed(nn.Module):
    """Takes what its convolution puts out for contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Linear(6 * 64, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(images)
        logits: Tensor = self.head(features.view(len(features), -1))
        return logits


class Branching(Viewed):
    """Takes an output for contiguous in training only, as auxiliary heads do."""

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(images)
        side = features.view(len(features), -1).mean() if self.training else 0.0
        logits: Tensor = self.head(features.flatten(1)) + side
        return logits


class Deep(Viewed):
    """Has a weight of five dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.rand(1, 1, 6, 8, 8))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head((self.body(images) + self.place[0]).flatten(1))
        return logits


def lies_channels_last(network: nn.Module) -> bool:
    weights = [one for one in network.parameters() if one.dim() == 4 and min(one.shape[1:]) > 1]
    assert weights
    return all(one.is_contiguous(memory_format=torch.channels_last) for one in weights)


@pytest.mark.parametrize(
    ("kind", "laid"), [(Viewed, False), (Branching, False), (Deep, False), (lambda: WideResNet(10, 1, 3), True)]
)
def test_weights_lie_channels_last_where_the_network_runs_so(kind: type[nn.Module], laid: bool) -> None:
    torch.manual_seed(0)
    student = Classifier(kind(), INFO).train()
    before = copy.deepcopy(student)
    assert lay_channels_last(student, on_processor=True) is laid
    assert lies_channels_last(student) is laid
    assert all(module.training for module in student.modules())
    state = before.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in student.state_dict().items())
    images = torch.rand(4, 3, 8, 8)
    assert torch.allclose(student(images), before(images), atol=1e-5)
    student(images).sum().backward()


@pytest.mark.parametrize("name", ["repvgg_b0", "resnet18"])
def test_gradients_are_those_of_weights_that_lie_as_they_did(name: str) -> None:
    """With AVX2 PyTorch's own, channels last, are wrong for RepVGG, or end the process."""
    torch.manual_seed(0)
    info = ModelInfo(f"timm/{name}", ("a", "b", "c"), 3, 64, Normalisation((0.5,), (0.25,)))
    student = Classifier(timm.create_model(name, num_classes=3), info).train()
    before = copy.deepcopy(student)
    assert lay_channels_last(student, on_processor=True) is (name == "resnet18")
    assert lay_channels_last(copy.deepcopy(student), on_processor=False)
    images = torch.rand(4, 3, 64, 64)
    for network in (student, before):
        network(images).square().sum().backward()
    for (place, one), other in zip(student.named_parameters(), before.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert (one.grad - other.grad).abs().max() <= 1e-3 * other.grad.abs().max() + 1e-6, place


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "resnet18"])
def test_synchronised_batch_norms_compute_what_those_before_did(name: str) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=3).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(images)
        names = list(network.state_dict())
        found = synchronised(network).eval()
        assert torch.equal(found(images), expected)
    assert list(found.state_dict()) == names
    norms = [one for one in found.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(one, nn.SyncBatchNorm) for one in norms)


def test_a_batch_norm_of_its_own_kind_is_not_replaced() -> None:
    class Shifted(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    network = nn.Sequential(nn.Conv2d(3, 4, 3), Shifted(4))
    with pytest.raises(InputError, match=r"^--sync_batchnorm: 1 is a batch norm of its own kind \(Shifted\), which"):
        synchronised(network)
    assert isinstance(network[1], Shifted)
    # Which has an activation, and would be made one without.
    network = nn.Sequential(nn.Conv2d(3, 4, 3), timm.layers.SyncBatchNormAct(4))
    with pytest.raises(InputError, match=r"1 is a batch norm of its own kind \(SyncBatchNormAct\)"):
        synchronised(network)
    own = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4))
    assert isinstance(synchronised(own)[1], nn.SyncBatchNorm)
