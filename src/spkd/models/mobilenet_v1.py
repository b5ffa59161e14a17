"""MobileNet (version 1) of any width, which timm has at widths of 1 and above only."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from spkd.errors import InputError

if TYPE_CHECKING:
    from torch import nn

_BLOCKS = [["dsa_r1_k3_s1_c64"], ["dsa_r2_k3_s2_c128"], ["dsa_r2_k3_s2_c256"], ["dsa_r6_k3_s2_c512"]]
_BLOCKS += [["dsa_r2_k3_s2_c1024"]]


def mobilenet_v1(width: float = 1.0, num_classes: int = 1000) -> nn.Module:
    """Return MobileNet (Howard et al. 2017) with its channels multiplied by ``width``.

    It is timm's network, built from timm's blocks, so that weights in the format of ``timm/mobilenetv1_100`` fit
    it at width 1 and those of other widths have the same names. As a spec:
    ``spkd.models.mobilenet_v1:mobilenet_v1?width=0.25``.

    Args:
        width: factor on the channels, above zero.
        num_classes: number of logits.

    Raises:
        InputError: for a width that is not above zero.

    >>> network = mobilenet_v1(0.25)  # the paper's table 7 gives 0.5 million weights
    >>> round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 2)
    0.47
    """
    from timm.models._efficientnet_builder import decode_arch_def, round_channels
    from timm.models.efficientnet import EfficientNet

    if not width > 0:
        raise InputError(f"width: expected a factor above zero, got {width}.")
    network: nn.Module = EfficientNet(
        block_args=decode_arch_def(_BLOCKS),  # type: ignore[no-untyped-call]
        num_classes=num_classes,
        num_features=0,
        stem_size=32,
        round_chs_fn=functools.partial(round_channels, multiplier=width),
        act_layer="relu6",
    )
    return network
