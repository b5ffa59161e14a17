"""Networks for small images are torchvision's, with other strides and nothing else."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from spkd.errors import InputError
from spkd.models.build import build_model
from spkd.models.classifier import Normalisation
from spkd.models.mobilenet_v1 import mobilenet_v1
from spkd.models.small_images import mobilenet_v2, shufflenet_v2
from spkd.pairing import block_ends

NORMALISATION = Normalisation((0.5,), (0.25,))


def strides(network: nn.Module) -> list[tuple[int, ...]]:
    return [module.stride for module in network.modules() if isinstance(module, nn.Conv2d)]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (shufflenet_v2(0.5, 1000), torchvision.models.shufflenet_v2_x0_5()),
        (shufflenet_v2(1.0, 1000), torchvision.models.shufflenet_v2_x1_0()),
        (shufflenet_v2(2.0, 1000), torchvision.models.shufflenet_v2_x2_0()),
        (mobilenet_v2(1.0, 1000), torchvision.models.mobilenet_v2()),
        (mobilenet_v2(0.35, 1000), torchvision.models.mobilenet_v2(width_mult=0.35)),
    ],
)
def test_weights_are_torchvisions_and_the_strides_are_fewer(ours: nn.Module, theirs: nn.Module) -> None:
    ours.load_state_dict(theirs.state_dict())
    changed = [pair for pair in zip(strides(ours), strides(theirs), strict=True) if pair[0] != pair[1]]
    # ShuffleNet-V2 halves a second time by its pooling.
    assert changed == [((1, 1), (2, 2))] * (1 if hasattr(theirs, "maxpool") else 2)


@pytest.mark.parametrize("network", [shufflenet_v2(0.5), mobilenet_v2(0.35)])
def test_images_of_32_pixels_end_at_4(network: nn.Module) -> None:
    sizes = [end.shape[1:] for end in block_ends(network, torch.rand(1, 3, 32, 32))]
    assert sizes == [(32, 32), (16, 16), (8, 8), (4, 4)]


@pytest.mark.parametrize(
    "spec",
    [
        "spkd.models.small_images:shufflenet_v2?width=0.5",
        "spkd.models.small_images:mobilenet_v2?width=0.35",
        "spkd.models.mobilenet_v1:mobilenet_v1?width=0.25",
    ],
)
def test_a_spec_builds_it_for_the_datas_classes(spec: str) -> None:
    built = build_model(spec, classes=list("abcd"), channels=3, image_size=32, normalisation=NORMALISATION)
    assert built.classifier.eval()(torch.rand(2, 3, 32, 32)).shape == (2, 4)
    assert built.classifier.info.spec == spec


def test_unknown_widths_are_input_errors() -> None:
    with pytest.raises(InputError, match=r"width 0\.5, 1 or 2, got 1\.5"):
        shufflenet_v2(1.5)
    for make in (mobilenet_v2, mobilenet_v1):
        with pytest.raises(InputError, match="above zero, got 0"):
            make(0)


# Table 7 of the MobileNet paper (Howard et al. 2017), in millions of parameters.
@pytest.mark.parametrize(("width", "millions"), [(1.0, 4.2), (0.75, 2.6), (0.5, 1.3), (0.25, 0.5)])
def test_mobilenet_has_its_papers_parameters(width: float, millions: float) -> None:
    count = sum(parameter.numel() for parameter in mobilenet_v1(width).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.06)


def test_mobilenet_takes_timms_weights() -> None:
    import timm

    theirs = timm.create_model("mobilenetv1_100").eval()
    ours = mobilenet_v1().eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(ours(images), theirs(images))
