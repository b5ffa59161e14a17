from __future__ import annotations

import copy
import itertools

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from spkd.errors import InputError
from spkd.models.wrn import WideResNet
from spkd.pairing import Candidate, block_ends, pair_taps
from spkd.taps import TapPair, Taps


def images(size: int, channels: int = 3) -> Tensor:
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))


def names(model: nn.Module, size: int) -> list[str]:
    return [candidate.name for candidate in block_ends(model, images(size))]


def create(spec: str, size: int) -> nn.Module:
    library, name = spec.split("/")
    if library == "torchvision":
        options = {"image_size": size} if name.startswith("vit") else {}
        return torchvision.models.get_model(name, weights=None, **options)  # type: ignore[no-any-return]
    options = {"img_size": size} if name.startswith("vit") else {}
    return timm.create_model(name, **options)  # type: ignore[no-any-return]


# What a person would name who reads the network's source: the last block at each resolution.
BLOCK_ENDS = [
    ("torchvision/resnet18", 64, ["relu", "layer1", "layer2", "layer3", "layer4"]),
    ("torchvision/resnet18", 32, ["relu", "layer1", "layer2", "layer3", "layer4"]),
    ("torchvision/resnet18", 8, ["relu", "layer1", "layer4"]),
    ("torchvision/mobilenet_v2", 64, [f"features.{n}" for n in (1, 3, 6, 13, 18)]),
    ("torchvision/mobilenet_v3_small", 64, [f"features.{n}" for n in (0, 1, 3, 8, 12)]),
    ("torchvision/shufflenet_v2_x0_5", 64, ["conv1", "stage2", "stage3", "conv5"]),
    ("torchvision/shufflenet_v2_x0_5", 8, ["conv1", "conv5"]),
    ("torchvision/squeezenet1_1", 64, [f"features.{n}" for n in (1, 4, 7, 12)]),
    ("torchvision/vgg11", 32, [f"features.{n}" for n in (1, 4, 9, 14, 19)]),
    ("torchvision/vgg11_bn", 32, [f"features.{n}" for n in (2, 6, 13, 20, 27)]),
    ("torchvision/densenet121", 64, ["features.relu0", *(f"features.denseblock{n}" for n in (1, 2, 3, 4))]),
    ("torchvision/densenet121", 32, ["features.relu0", *(f"features.denseblock{n}" for n in (1, 2, 3, 4))]),
    ("torchvision/efficientnet_b0", 32, [f"features.{n}" for n in (1, 2, 3, 5, 8)]),
    ("torchvision/convnext_tiny", 64, [f"features.{n}" for n in (1, 3, 5, 7)]),
    ("torchvision/swin_t", 64, [f"features.{n}" for n in (1, 3, 5, 7)]),
    ("torchvision/vit_b_16", 32, [f"encoder.layers.encoder_layer_{n}" for n in range(12)]),
    ("timm/resnet18", 32, ["act1", "layer1", "layer2", "layer3", "layer4"]),
    ("timm/resnetv2_18", 64, ["stem.conv", *(f"stages.{n}" for n in range(4))]),
    ("timm/mobilenetv3_small_050", 64, ["bn1", *(f"blocks.{n}" for n in (0, 1, 3, 5))]),
    ("timm/efficientnet_lite0", 64, [f"blocks.{n}" for n in (0, 1, 2, 4, 6)]),
    ("timm/convnext_atto", 32, [f"stages.{n}" for n in range(4)]),
    ("timm/vit_tiny_patch16_224", 32, [f"blocks.{n}" for n in range(12)]),
    ("timm/vgg11_bn", 32, [f"features.{n}" for n in (2, 6, 13, 20, 27)]),
    ("timm/vgg11_bn", 224, [f"features.{n}" for n in (2, 6, 13, 20, 27)]),
    ("timm/levit_128s", 224, [*(f"stem.conv{n}" for n in (1, 2, 3)), *(f"stages.{n}" for n in range(3))]),
    ("timm/efficientformer_l1", 224, ["stem.act1", *(f"stages.{n}" for n in range(4))]),
]


@pytest.mark.parametrize(("spec", "size", "expected"), BLOCK_ENDS, ids=[f"{s}@{n}" for s, n, _ in BLOCK_ENDS])
def test_block_ends_of_real_networks(spec: str, size: int, expected: list[str]) -> None:
    model = create(spec, size).eval()
    candidates = block_ends(model, images(size))
    assert [candidate.name for candidate in candidates] == expected
    # Each of them can be tapped, and has the shape that was said.
    with torch.no_grad():
        activations = Taps(model, expected)(images(size))
    assert {name: tuple(tap.shape[1:]) for name, tap in activations.taps.items()} == {
        candidate.name: candidate.shape for candidate in candidates
    }


@pytest.mark.parametrize("size", [8, 32])
def test_the_last_tap_of_a_wide_residual_network_comes_before_its_final_norm(size: int) -> None:
    assert names(WideResNet(10, 1), size) == ["group1", "group2", "group3"]


class PreActivation(nn.Module):
    """The same within one container, and with the norm and ReLU of the end as functions and layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            *(self.block(stride) for stride in (1, 2, 2)),
            nn.BatchNorm2d(4),
            nn.ReLU(),
        )
        self.head = nn.Linear(4, 10)

    @staticmethod
    def block(stride: int) -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, stride, 1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(F.adaptive_avg_pool2d(self.features(images), 1).flatten(1))
        return logits


def test_a_final_norm_inside_the_container_of_stages_is_not_taken() -> None:
    assert names(PreActivation(), 32) == ["features.1", "features.2", "features.3"]


class Gated(nn.Module):
    """A residual block with squeeze-and-excitation written out."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, stride, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.squeeze = nn.Conv2d(4, 2, 1)
        self.excite = nn.Conv2d(2, 4, 1)

    def forward(self, features: Tensor) -> Tensor:
        features = self.conv(features)
        gate: Tensor = self.excite(F.relu(self.squeeze(self.pool(features))))
        return features * gate.sigmoid()


def test_gates_are_no_stages() -> None:
    model = nn.Sequential(Gated(1), Gated(2), Gated(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    for size in (16, 4):  # of 4, the last map has but one position
        candidates = block_ends(model, images(size, channels=4))
        assert [candidate.name for candidate in candidates] == ["0", "1", "2"]


def test_a_classifier_of_convolutions_is_no_stage() -> None:
    head = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 10, 1), nn.Flatten()]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *head)
    assert names(model, 8) == ["1"]
    assert names(model, 3) == ["1"]
    in_one = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 10, 1), nn.AdaptiveAvgPool2d(1)))
    assert names(in_one, 8) == ["0"]


def test_a_dropout_is_no_part_of_the_stage_before_it() -> None:
    body = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Dropout()]
    assert names(nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)), 8) == ["1"]


def test_a_body_that_ends_in_a_vector_is_looked_into() -> None:
    body = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()]
    vector = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    for extra in ([nn.Linear(16, 4)], []):
        model = nn.Sequential(nn.Sequential(*body, *vector, *extra), nn.LazyLinear(10))
        model(torch.rand(2, 1, 8, 8))
        assert [found.name for found in block_ends(model, torch.rand(2, 1, 8, 8))] == ["0.1", "0.4"]


def test_tokens_that_are_added_make_no_pyramid() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, reg_tokens=4, no_embed_class=True)
    assert names(model, 32) == [f"blocks.{n}" for n in range(12)]


def test_a_list_of_blocks_is_looked_into() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Gated(2), nn.ModuleList([Gated(1), Gated(2)])])

        def forward(self, images: Tensor) -> Tensor:
            features = torch.cat([images, images[:, :1]], 1)
            for block in itertools.chain(self.blocks[:1], self.blocks[1]):
                features = block(features)
            return features.mean((2, 3))

    assert names(Listed(), 16) == ["blocks.1.0", "blocks.1.1"]


def test_a_norm_that_does_not_follow_directly_is_not_taken() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.norm = nn.BatchNorm2d(3)

        def forward(self, images: Tensor) -> Tensor:
            return self.norm(images + self.conv(images)).mean((2, 3))

    assert names(Sum(), 16) == ["conv"]


def test_a_layer_that_runs_twice_is_passed_over() -> None:
    class Shares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3)
            self.second = nn.Conv2d(4, 4, 3)
            self.shared = nn.Conv2d(4, 4, 1)
            self.relu = nn.ReLU()

        def forward(self, images: Tensor) -> Tensor:
            features = self.relu(self.shared(self.first(images)))
            return self.relu(self.shared(self.second(features))).mean((2, 3))

    assert names(Shares(), 16) == ["first", "second"]


def test_a_context_of_one_position_before_larger_maps_is_no_stage() -> None:
    class Context(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before = Gated(1)
            self.context = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
            self.after = Gated(1)

        def forward(self, images: Tensor) -> Tensor:
            features = self.before(images)
            return self.after(features + self.context(features.mean((2, 3), keepdim=True))).mean((2, 3))

    candidates = block_ends(Context(), images(4, channels=4))
    assert [candidate.name for candidate in candidates] == ["after"]


class Tokens(nn.Module):
    """Blocks on patches, then more of them on a class token alone."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True) for _ in range(2)))
        self.token_blocks = nn.ModuleList([nn.TransformerEncoderLayer(8, 2, 8, batch_first=True) for _ in range(3)])

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.blocks(self.patches(images).flatten(2).transpose(1, 2))
        token = tokens.mean(1, keepdim=True)
        for block in self.token_blocks:
            token = block(token)
        return token[:, 0]


def test_blocks_on_a_class_token_alone_are_not_taken() -> None:
    assert block_ends(Tokens(), images(16)) == [Candidate("blocks.0", (16, 8)), Candidate("blocks.1", (16, 8))]


def test_two_images_are_enough() -> None:
    model = WideResNet(10, 1)
    seen: list[int] = []
    model.group1.register_forward_hook(lambda layer, inputs, output: seen.append(len(output)))
    block_ends(model, images(8).repeat(4, 1, 1, 1))
    assert seen == [2]


def test_an_output_that_is_overwritten_is_passed_over() -> None:
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stage = nn.Sequential(Gated(2), Gated(1))
            self.stem = nn.Conv2d(3, 4, 1)

        def forward(self, images: Tensor) -> Tensor:
            return F.relu(self.stage(self.stem(images)), inplace=True).mean((2, 3))

    model = Overwrites()
    candidates = names(model, 16)
    assert "stage" not in candidates
    Taps(model, candidates)(images(16))


def test_a_module_that_puts_out_a_number_is_passed_over() -> None:
    class Temperature(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return features.mean()

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.temperature = WideResNet(10, 1), Temperature()

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.body(images)
            return logits / (1 + self.temperature(images))

    found = [candidate.name for candidate in block_ends(Scaled(), images(32))]
    assert found == ["body.group1", "body.group2", "body.group3"]


def test_shapes_are_of_one_image() -> None:
    assert block_ends(WideResNet(10, 2), images(32))[-1] == Candidate("group3", (128, 8, 8))
    assert block_ends(create("torchvision/swin_t", 64), images(64))[-1] == Candidate("features.7", (2, 2, 768))
    assert block_ends(create("timm/vit_tiny_patch16_224", 32), images(32))[0] == Candidate("blocks.0", (5, 192))


def test_images_need_not_be_square() -> None:
    wide = torch.rand(2, 3, 32, 96)
    assert [c.shape for c in block_ends(WideResNet(10, 1), wide)] == [(16, 32, 96), (32, 16, 48), (64, 8, 24)]
    assert [c.shape for c in block_ends(create("torchvision/swin_t", 64), wide)][-1] == (1, 3, 768)


def test_the_network_is_left_as_it_was() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, features: Tensor) -> Tensor:
            self.calls += 1
            return features

    model = nn.Sequential(Counter(), WideResNet(10, 1), nn.Dropout())
    model[1].norm.eval()  # type: ignore[union-attr]
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    generator = torch.get_rng_state()
    block_ends(model, images(32))
    assert [module.training for module in model.modules()] == modes
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), generator)
    with pytest.raises(InputError):
        block_ends(model, images(32, channels=5))
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())


def test_wrapped_networks_have_the_same_block_ends() -> None:
    torch.compiler.reset()
    model = WideResNet(10, 1).eval()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(images(16))
    wrapped = nn.DataParallel(nn.Sequential())
    wrapped.module = compiled
    assert names(wrapped, 16) == ["group1", "group2", "group3"]


def test_a_perceptron_has_no_block_ends_and_says_what_it_has() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 10))
    with pytest.raises(InputError, match=r"Sequential has no block ends; name the layers .*1 \(16,\)"):
        block_ends(model, images(4))


def test_the_last_blocks_are_paired() -> None:
    student, teacher = create("timm/mobilenetv3_small_050", 64), create("torchvision/resnet18", 64)
    assert pair_taps(student, teacher, images(64)) == [TapPair("blocks.5", "layer4")]
    assert pair_taps(student, teacher, images(64), "last") == [TapPair("blocks.5", "layer4")]  # type: ignore[arg-type]


def test_stages_are_paired_from_the_output_backwards() -> None:
    student, teacher = WideResNet(10, 1), create("torchvision/resnet18", 32)
    assert pair_taps(student, teacher, images(32), ("stages",)) == [
        TapPair("group1", "layer2"),
        TapPair("group2", "layer3"),
        TapPair("group3", "layer4"),
    ]
    assert pair_taps(teacher, student, images(32), ("stages",))[0] == TapPair("layer2", "group1")


def test_explicit_pairs_are_taken_as_they_are() -> None:
    student, teacher = WideResNet(10, 1), create("torchvision/resnet18", 32)
    given = pair_taps(student, teacher, images(32), ("group3=layer4", "group1.0=layer1.0"))
    assert given == [TapPair("group3", "layer4"), TapPair("group1.0", "layer1.0")]
    assert pair_taps(student, student, images(32), ("group2",)) == [TapPair("group2", "group2")]


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ((), "taps: expected 'last', 'stages' or .* got none"),
        (("group3=a=b",), "taps: expected 'student_path=teacher_path'"),
        (("group4=layer4",), r"WideResNet has no layer 'group4'\. Did you mean 'group3'"),
        (("group3=layer5",), r"ResNet has no layer 'layer5'\. Did you mean 'layer4'"),
        (("stage",), "Did you mean 'stages'"),
        (("last", "group3=layer4"), "taps: expected 'last' alone or explicit pairs"),
        (("group3=layer4", "group3=layer4"), "taps: the pair 'group3=layer4' is given twice"),
    ],
)
def test_wrong_selections_are_answered(select: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        pair_taps(WideResNet(10, 1), create("torchvision/resnet18", 32), images(32), select)
    assert "\n" not in str(caught.value)


def test_images_that_a_network_does_not_take_are_told_in_one_line() -> None:
    grey, coloured = WideResNet(10, 1, 10, 1), WideResNet(10, 1)
    for student, teacher in ((grey, coloured), (coloured, grey)):
        with pytest.raises(
            InputError, match=r"^WideResNet: it fails on images of 3 × 16 × 16: RuntimeError: Given gro"
        ):
            pair_taps(student, teacher, images(16))


def test_of_a_network_with_a_recurrent_head_the_maps_are_found() -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU())
            self.read = nn.LSTM(16, 12, batch_first=True)
            self.head = nn.Linear(12, 5)

        def forward(self, images: Tensor) -> Tensor:
            steps, _ = self.read(self.body(images).flatten(2).transpose(1, 2))
            logits: Tensor = self.head(steps[:, -1])
            return logits

    assert [candidate.name for candidate in block_ends(Reading(), torch.rand(2, 3, 16, 16))] == ["body.1", "body.4"]
