"""Networks made for photographs of 224 pixels, with the strides that images of 32 pixels need.

Each is torchvision's own network with strides of its first layers set to 1; everything else, the names of its
weights included, is torchvision's. As a spec: ``spkd.models.small_images:shufflenet_v2?width=0.5``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spkd.errors import InputError

if TYPE_CHECKING:
    from torch import nn

_SHUFFLENET_CHANNELS = {0.5: (24, 48, 96, 192, 1024), 1.0: (24, 116, 232, 464, 1024), 2.0: (24, 244, 488, 976, 2048)}


def shufflenet_v2(width: float = 1.0, num_classes: int = 10) -> nn.Module:
    """Return ShuffleNet-V2 (Ma et al. 2018) for small images.

    The first convolution has stride 1 and the max pooling after it is left out, so that images of 32 pixels are
    seen at 32, 16, 8 and 4 and not at 16, 8, 4, 2 and 1.

    Args:
        width: 0.5, 1 or 2, the factor of the paper's table of channels.
        num_classes: number of logits.

    Raises:
        InputError: for another width.

    >>> import torch
    >>> from spkd.pairing import block_ends
    >>> [end.shape for end in block_ends(shufflenet_v2(0.5), torch.rand(1, 3, 32, 32))]
    [(24, 32, 32), (48, 16, 16), (96, 8, 8), (1024, 4, 4)]
    """
    from torch import nn
    from torchvision.models.shufflenetv2 import ShuffleNetV2

    channels = _SHUFFLENET_CHANNELS.get(width)
    if channels is None:
        raise InputError(f"width: ShuffleNet-V2 is made with width 0.5, 1 or 2, got {width}.")
    made = ShuffleNetV2([4, 8, 4], list(channels), num_classes=num_classes)
    made.conv1[0].stride = (1, 1)
    made.maxpool = nn.Identity()
    network: nn.Module = made
    return network


def mobilenet_v2(width: float = 1.0, num_classes: int = 10) -> nn.Module:
    """Return MobileNet-V2 (Sandler et al. 2018) for small images.

    The first convolution and the first of the inverted residuals that shrink (24 channels at width 1) have stride 1,
    so that images of 32 pixels are seen at 32, 16, 8 and 4 and not at 16, 8, 4, 2 and 1. No dropout.

    Args:
        width: factor on the channels, above zero.
        num_classes: number of logits.

    Raises:
        InputError: for a width that is not above zero.

    >>> import torch
    >>> network = mobilenet_v2(0.35).eval()
    >>> network.features(torch.rand(1, 3, 32, 32)).shape
    torch.Size([1, 1280, 4, 4])
    """
    from torchvision.models.mobilenetv2 import MobileNetV2

    if not width > 0:
        raise InputError(f"width: expected a factor above zero, got {width}.")
    settings = [
        # expansion, channels, blocks, stride of the first
        [1, 16, 1, 1],
        [6, 24, 2, 1],
        [6, 32, 3, 2],
        [6, 64, 4, 2],
        [6, 96, 3, 1],
        [6, 160, 3, 2],
        [6, 320, 1, 1],
    ]
    made = MobileNetV2(num_classes, width, inverted_residual_setting=settings, dropout=0.0)
    made.features[0][0].stride = (1, 1)
    network: nn.Module = made
    return network
