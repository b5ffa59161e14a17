from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from spkd.errors import InputError
from spkd.models.network import count_logits, input_channels
from spkd.models.spec import construct, parse_spec, rebuild, requires, takes
from spkd.models.wrn import WideResNet

OWN = """
from torch import nn

class Own(nn.Module):
    def __init__(self, num_classes=10, in_channels=3, width=8):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_channels, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(width, num_classes)

    def forward(self, images):
        return self.head(self.body(images))

def fixed(width=8):
    return Own(4, 3, width)

def other_name(in_chans, num_classes):
    return Own(num_classes, in_chans)

def lazy(num_classes):
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(num_classes))

def fails():
    raise RuntimeError("no\\nluck")

def leaves():
    raise SystemExit("enough")

def asks(num_classes, width=8):
    return Own(num_classes, 3, width)

def nothing():
    return 3

def ready_function():
    return ready

ready = Own()
number = 3
"""

TWO = """
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 4)
        self.aux = nn.Linear(3, 4)

    def forward(self, images):
        return self.fc(images.mean((2, 3)))
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(OWN)
    return str(tmp_path / "own.py")


def build(spec: str, classes: int | None = 7, channels: int = 3, image_size: int = 32) -> nn.Module:
    return construct(parse_spec(spec), classes=classes, channels=channels, image_size=image_size)


def asks_classes(spec: str) -> bool:
    return requires(parse_spec(spec), "num_classes")


def test_makes_wide_residual_networks() -> None:
    network = build("wrn-10-2", channels=1)
    assert isinstance(network, WideResNet)
    assert network(torch.rand(1, 1, 8, 8)).shape == (1, 7)
    assert input_channels(build("wrn-10-1?in_channels=3", channels=1), 1, 8) == 3


def test_makes_library_models_with_arguments() -> None:
    network = build("torchvision/shufflenet_v2_x0_5").eval()
    assert network(torch.rand(1, 3, 32, 32)).shape == (1, 7)
    network = build("timm/test_resnet?in_chans=1&drop_rate=0.25").eval()
    assert network(torch.rand(1, 1, 32, 32)).shape == (1, 7)
    assert network.drop_rate == 0.25


@pytest.mark.parametrize("spec", ["timm/test_vit", "torchvision/vit_b_32"])
def test_makes_networks_of_one_size_for_the_images_size(spec: str) -> None:
    network = build(spec, image_size=64).eval()
    assert network(torch.rand(1, 3, 64, 64)).shape == (1, 7)


def test_keeps_a_networks_own_head_without_classes() -> None:
    network = build("torchvision/shufflenet_v2_x0_5", classes=None).eval()
    assert network(torch.rand(1, 3, 32, 32)).shape == (1, 1000)


def test_makes_a_users_own_network(own: str) -> None:
    network = build(f"{own}:Own?width=5", channels=1)
    assert network(torch.rand(1, 1, 8, 8)).shape == (1, 7)
    assert network.get_submodule("head").in_features == 5
    assert build(f"{own}:other_name", channels=1)(torch.rand(1, 1, 8, 8)).shape == (1, 7)
    assert build("spkd.models.wrn:WideResNet?depth=10&width=1")(torch.rand(1, 3, 8, 8)).shape == (1, 7)


def test_keeps_the_absolute_path_of_a_file(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(own).parent)
    architecture = parse_spec("own.py:fixed?width=2")
    assert architecture.spec == f"{own}:fixed?width=2"
    assert dict(architecture.arguments) == {"width": 2}


def test_knows_what_a_constructor_takes(own: str) -> None:
    assert takes(parse_spec("timm/test_resnet"), "num_classes")
    assert not takes(parse_spec("timm/test_resnet?num_classes=3"), "num_classes")
    assert takes(parse_spec(f"{own}:Own"), "num_classes")
    assert not takes(parse_spec(f"{own}:fixed"), "num_classes")
    required = [spec for spec in ("asks", "asks?num_classes=3", "Own", "fixed") if asks_classes(f"{own}:{spec}")]
    assert required == ["asks"]
    assert not any(map(asks_classes, ("timm/test_resnet", "torchvision/resnet18", "wrn-10-1")))
    with pytest.raises(InputError, match=r"'num_classes'.* Give it as \S*own.py:asks\?width=4&num_classes=N\.$"):
        build(f"{own}:asks?width=4", classes=None)


def test_rebuilds_with_another_head_what_has_a_fixed_one(own: str) -> None:
    for spec, classes in ((f"{own}:fixed", 4), (f"{own}:fixed", 9), (f"{own}:lazy", 9)):
        network = rebuild(parse_spec(spec), classes=classes, channels=1, image_size=8)
        assert count_logits(network, spec, 1, 8) == classes


def test_rebuilds_no_network_with_a_layer_replaced_that_gives_no_logits(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(TWO)
    with pytest.raises(InputError, match="its logits do not come from aux"):
        rebuild(parse_spec(f"{tmp_path}/two.py:Two"), classes=9, channels=3, image_size=8)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("timm/resnet19", "Did you mean 'resnet1"),
        ("timm/resnet18.a9_in1k", "a1_in1k"),
        ("torchvision/resnet19", "Did you mean 'resnet1"),
        ("torchvision/fcn_resnet50", "not an image classifier"),
        ("torchvision/fasterrcnn_resnet50_fpn", "not an image classifier"),
        ("torchvision/", "unknown"),
        ("resnet18", "torchvision/resnet18 or timm/resnet18"),
        ("resnet_18", "Did you mean"),
        ("wrn-16", "Did you mean 'wrn-16-"),
        ("wrn_16_2", "Did you mean 'wrn-16-2'"),
        ("wrn-10-x", "WIDTH is a whole number"),
        ("wrn-16-1.5", "WIDTH is a whole number"),
        ("runs/nowhere", "no folder of this name"),
        ("timm/test_resnet?pretrained=true", "give --weights pretrained"),
        ("timm/test_resnet?checkpoint_path=x.pth", "give --weights pretrained"),
        ("timm/test_resnet?drop_rate", "name=value"),
    ],
)
def test_says_what_is_wrong_with_a_spec(spec: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_spec(spec)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_says_what_a_file_is_for(own: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"own.py:NAME"):
        parse_spec(own)
    (tmp_path / "w.pt").touch()
    with pytest.raises(InputError, match="the file as weights"):
        parse_spec(str(tmp_path / "w.pt"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Own?widht=3", "Did you mean 'width'?"),
        ("Own?width=wide", "could not be made"),
        ("other_nam", "other_name"),
        ("fails", "could not be made (RuntimeError: no luck)"),
        ("leaves", "could not be made (SystemExit: enough)"),
        ("nothing", "got int"),
        ("ready", "it is a network already"),
        ("number", "expected a class or a function"),
    ],
)
def test_says_what_is_wrong_with_a_users_callable(own: str, name: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        build(f"{own}:{name}")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_says_what_is_wrong_with_arguments() -> None:
    with pytest.raises(InputError, match=r"wrn-18-1: depth: .* try 16 or 22"):
        build("wrn-18-1")
    with pytest.raises(InputError, match=r"Did you mean 'in_channels'"):
        build("wrn-10-1?in_channel=1")
    with pytest.raises(InputError, match="no_such_option"):
        build("timm/test_resnet?no_such_option=1")
    with pytest.raises(InputError, match="no_such_option"):
        build("torchvision/resnet18?no_such_option=1")
