"""The cheapest form of a frozen network gives the same answers."""

import copy
import math
import threading

import pytest
import torch
import torchvision
from torch import Tensor, nn

from spkd.errors import InputError
from spkd.functional import similarity_matrix
from spkd.models import inference
from spkd.models.classifier import Classifier, ModelInfo, Normalisation
from spkd.models.inference import folded, inference_form
from spkd.models.wrn import WideResNet
from spkd.taps import Taps


def lived_in(network: nn.Module) -> nn.Module:
    """Give every batch norm statistics and scales as after training."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, generator=generator) * 0.1
            module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
            module.weight.data = torch.rand(module.num_features, generator=generator) + 0.5
            module.bias.data = torch.randn(module.num_features, generator=generator) * 0.1
    return network.eval()


def classifier(network: nn.Module, size: int) -> Classifier:
    normalisation = Normalisation((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    return Classifier(network, ModelInfo("own", ("a", "b"), 3, size, normalisation)).eval()


@pytest.mark.parametrize(
    ("network", "size", "taps", "count"),
    [
        (WideResNet(16, 1), 32, ("group1", "group3"), 6),
        (torchvision.models.resnet18(), 64, ("layer2", "layer4"), 20),
        (torchvision.models.mobilenet_v2(), 64, ("features.18",), 52),
    ],
    ids=["wrn", "resnet18", "mobilenet_v2"],
)
def test_logits_and_taps_are_the_original_s(network: nn.Module, size: int, taps: tuple[str, ...], count: int) -> None:
    original = classifier(lived_in(network), size)
    before = copy.deepcopy(original.state_dict())
    images = torch.rand(4, 3, size, size)
    form = inference_form(original, taps, images)
    twin, note = form.network, form.note
    assert twin is not original
    assert note.startswith(f"{count} batch norms folded")
    with torch.no_grad(), Taps(original, taps) as ours, Taps(twin, taps) as theirs:
        expected, got = ours(images), theirs(images)
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-4, atol=1e-4)
    for name in taps:
        torch.testing.assert_close(got.taps[name], expected.taps[name], rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())


def test_a_folded_convolution_is_the_closed_form() -> None:
    network = lived_in(nn.Sequential(nn.Conv2d(2, 3, 1, bias=True), nn.BatchNorm2d(3))).double()
    twin, count = folded(network)
    convolution, norm = network[0], network[1]
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    assert count == 1
    torch.testing.assert_close(twin[0].weight, convolution.weight * scale[:, None, None, None])
    torch.testing.assert_close(twin[0].bias, (convolution.bias - norm.running_mean) * scale + norm.bias)


class Shared(nn.Module):
    """One convolution whose output is read twice, and one batch norm that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.read_twice, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.first, self.second, self.run_twice = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        read = self.read_twice(images)
        return read + self.norm(read) + self.run_twice(self.first(images)) + self.run_twice(self.second(images))


class Branching(nn.Module):
    """A network that cannot be traced symbolically."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.convolution(images)) if images.sum() > 0 else images


@pytest.mark.parametrize("network", [Shared(), Branching()], ids=["shared", "branching"])
def test_what_cannot_be_folded_is_left_alone(network: nn.Module) -> None:
    lived_in(network)
    twin, count = folded(network)
    images = torch.rand(2, 3, 4, 4)
    assert count == 0
    torch.testing.assert_close(twin(images), network(images))


def test_a_form_that_answers_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    original = classifier(lived_in(nn.Sequential(nn.Conv2d(3, 2, 4), nn.BatchNorm2d(2), nn.Flatten())), 4)

    def spoilt(network: nn.Module) -> tuple[nn.Module, int]:
        twin = copy.deepcopy(network)
        twin[0].weight.data *= 1.01
        return twin, 1

    monkeypatch.setattr("spkd.models.inference.folded", spoilt)
    form = inference_form(original, (), torch.rand(2, 3, 4, 4))
    twin, note = form.network, form.note
    assert twin is original
    assert "differs" in note


def test_bfloat16_is_taken_where_it_moves_little_and_never_where_it_moves_more(monkeypatch: pytest.MonkeyPatch) -> None:
    original = classifier(lived_in(WideResNet(10, 1, 2)), 32)
    images = torch.rand(8, 3, 32, 32)
    monkeypatch.setattr(inference, "gains_from_bfloat16", lambda device: True)
    taken = inference_form(original, ("group3",), images, logits=False, precision="auto")
    assert taken.precision == "bf16-true"
    with torch.no_grad(), Taps(original, ("group3",)) as ours, Taps(taken.network, ("group3",)) as theirs:
        expected, got = ours(images).taps["group3"], theirs(images).taps["group3"]
    assert got.dtype == torch.bfloat16
    moved = float((similarity_matrix(got) - similarity_matrix(expected)).norm() / similarity_matrix(expected).norm())
    assert 0 < moved <= inference.ROUNDING == 0.02
    assert f"G of group3 by {moved:.1g}" in taken.note
    monkeypatch.setattr(inference, "ROUNDING", moved / 2)
    refused = inference_form(original, ("group3",), images, logits=False, precision="auto")
    assert refused.precision == "32-true"
    assert "float32, since bfloat16 would move G of group3" in refused.note
    assert inference_form(original, ("group3",), images, precision="bf16-true").precision == "bf16-true"
    monkeypatch.setattr(inference, "gains_from_bfloat16", lambda device: False)
    assert inference_form(original, ("group3",), images, precision="auto").precision == "32-true"


class SmallDifference(nn.Module):
    """Its logits are what is left of two large numbers that cancel."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten())
        self.head = nn.Linear(8 * 36, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.body(images)) + 300
        return logits - 300


def test_the_bound_is_on_the_logits_too_where_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    original, images = classifier(SmallDifference(), 8), torch.rand(8, 3, 8, 8)
    monkeypatch.setattr(inference, "gains_from_bfloat16", lambda device: True)
    read = inference_form(original, ("body.0",), images, logits=True, precision="auto")
    assert read.precision == "32-true"
    assert "float32, since bfloat16 would move logits by" in read.note
    unread = inference_form(original, ("body.0",), images, logits=False, precision="auto")
    assert unread.precision == "bf16-true"
    assert "logits" not in unread.note


def test_convolutions_are_exact_for_the_comparison_and_as_before_after_it() -> None:
    cudnn = torch.backends.cudnn
    if not hasattr(cudnn, "conv"):
        pytest.skip("PyTorch before 2.9 has one switch, which has its own tests")
    given, seen = cudnn.conv.fp32_precision, list[str]()
    network = nn.Sequential(nn.Conv2d(3, 2, 4), nn.BatchNorm2d(2), nn.Flatten())
    network[0].register_forward_hook(lambda *_: seen.append(cudnn.conv.fp32_precision))
    original = classifier(lived_in(network), 4)
    try:
        for before in ("tf32", "none"):
            cudnn.conv.fp32_precision = before
            seen.clear()
            inference_form(original, (), torch.rand(2, 3, 4, 4))
            assert "ieee" in seen
            assert cudnn.conv.fp32_precision == before
    finally:
        cudnn.conv.fp32_precision = given


def test_a_layer_that_cannot_be_read_is_told_and_not_hidden_by_a_pass_that_ends_early() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(self.layer(self.layer(images)).mean((2, 3)))

    with pytest.raises(InputError, match="ran 2 times"):
        inference_form(classifier(Twice(), 8), ("layer",), torch.rand(2, 3, 8, 8), logits=False)


@pytest.mark.parametrize(
    ("threads", "expected"),
    # 4 channels of 8 x 8 float32 are 1,024 bytes an image, which 3,000 bytes a thread hold 2.9 times.
    [(1, 3), (2, 6)],
)
def test_a_micro_batch_fills_the_caches(threads: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "OUTPUT_BYTES_PER_THREAD", 3000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten())
    images = torch.rand(2, 3, 8, 8)
    assert inference.micro_batch_size(network, images) == expected
    # Half as many bytes in bfloat16.
    halved = inference.micro_batch_size(network.to(torch.bfloat16), images.bfloat16())
    assert halved == pytest.approx(2 * expected, abs=1)
    assert not any(module._forward_hooks for module in network.modules())


def test_a_micro_batch_puts_out_twice_the_weights_that_it_reads() -> None:
    # 64 x 64 weights are 16,384 bytes; 64 outputs are 256 bytes an image.
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64, bias=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "OUTPUT_BYTES_PER_THREAD", 1)
        assert inference.micro_batch_size(network, torch.rand(2, 1, 8, 8)) == 128


def test_where_it_does_not_matter_there_are_no_micro_batches() -> None:
    assert inference.micro_batch_size(nn.Flatten(), torch.rand(2, 3, 4, 4)) is None
    assert inference.micro_batch_size(nn.Conv2d(3, 4, 1), torch.rand(2, 3, 4, 4, device="meta")) is None


def test_layers_of_a_kind_of_their_own_have_no_say_in_micro_batches() -> None:
    class Masked(nn.Conv2d):
        """Puts out a mask as well, as partial convolutions do."""

        def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            return super().forward(input), torch.ones(1)

    assert inference.micro_batch_size(Masked(3, 4, 1), torch.rand(2, 3, 4, 4)) is None


def test_a_network_whose_images_depend_on_each_other_runs_whole() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 2, 4)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.convolution(images - images.mean(0)).flatten(1)

    original = classifier(Centred(), 4)
    form = inference_form(original, (), torch.rand(4, 3, 4, 4))
    assert form.network is original
    assert form.micro_batch_size is None
    assert "differs" in form.note


def test_a_form_is_run_in_micro_batches_on_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "OUTPUT_BYTES_PER_THREAD", 1)
    original = classifier(lived_in(WideResNet(10, 1, 2)), 32)
    form = inference_form(original, ("group3",), torch.rand(4, 3, 32, 32))
    assert form.micro_batch_size == inference.micro_batch_size(form.network, torch.rand(4, 3, 32, 32))
    assert 1 <= form.micro_batch_size <= 2


class PoolsInFloat32(nn.Module):
    """A network that mixes types in bfloat16, and that cannot be copied where it holds a lock."""

    def __init__(self, lock: object = None) -> None:
        super().__init__()
        self.convolution, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.lock = lock

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.convolution(images)).float().mean((2, 3)))


def test_a_network_that_fails_in_bfloat16_stays_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "gains_from_bfloat16", lambda device: True)
    original, images = classifier(lived_in(PoolsInFloat32()), 8), torch.rand(4, 3, 8, 8)
    form = inference_form(original, ("norm",), images, precision="auto")
    assert form.precision == "32-true"
    assert "1 batch norms folded" in form.note
    assert "float32, since it fails in bfloat16: RuntimeError" in form.note
    torch.testing.assert_close(form.network(images), original(images))
    with pytest.raises(InputError, match="--teacher_precision bf16-true: the teacher does not compute in bfloat16"):
        inference_form(original, ("norm",), images, precision="bf16-true")


def test_a_network_that_cannot_be_copied_runs_as_it_is() -> None:
    original = classifier(lived_in(PoolsInFloat32(threading.Lock())), 8)
    form = inference_form(original, ("norm",), torch.rand(4, 3, 8, 8))
    assert form.network is original
    assert form.note.startswith("runs unchanged, since its faster form failed: TypeError")


@pytest.mark.parametrize("tracks", [False, True])
def test_a_norm_by_the_batch_s_own_statistics_is_left_alone(tracks: bool) -> None:
    norm = nn.BatchNorm2d(2, track_running_stats=tracks)
    norm.running_mean = norm.running_var = None
    network, images = nn.Sequential(nn.Conv2d(3, 2, 1), norm).eval(), torch.rand(4, 3, 5, 5)
    twin, count = folded(network)
    assert count == 0
    torch.testing.assert_close(twin(images), network(images))


def test_a_layer_that_somebody_listens_to_is_not_folded() -> None:
    for place in (0, 1):
        network = lived_in(nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)))
        network[place].register_forward_hook(lambda *_: None)
        assert folded(network)[1] == 0


def test_a_form_that_gives_nan_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    original = classifier(lived_in(nn.Sequential(nn.Conv2d(3, 2, 4), nn.BatchNorm2d(2), nn.Flatten())), 4)

    def spoilt(network: nn.Module) -> tuple[nn.Module, int]:
        twin = copy.deepcopy(network)
        twin[0].weight.data[:] = float("nan")
        return twin, 1

    monkeypatch.setattr(inference, "folded", spoilt)
    assert inference_form(original, (), torch.rand(2, 3, 4, 4)).network is original


@pytest.mark.parametrize("where", ["1", "logits"])
def test_nan_in_one_place_is_not_hidden_by_small_differences_elsewhere(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = classifier(lived_in(nn.Sequential(nn.Conv2d(3, 2, 4), nn.BatchNorm2d(2), nn.Flatten())), 4)
    images = torch.rand(2, 3, 4, 4)
    monkeypatch.setattr(inference, "gains_from_bfloat16", lambda device: True)
    found = {"1": 0.001, "logits": 0.002, where: float("nan")}
    monkeypatch.setattr(inference, "_rounding", lambda *_, **__: found)
    form = inference_form(original, ("1",), images, precision="auto")
    assert form.precision == "32-true"
    assert f"bfloat16 would move {where} by nan" in form.note
    differences = iter([0.0, float("nan")] if where == "1" else [float("nan"), 0.0])
    monkeypatch.setattr(inference, "_relative", lambda ours, theirs: next(differences))
    assert math.isnan(inference._difference(original, copy.deepcopy(original), ("1",), images))
