"""What can be learnt of, and changed in, a network whoever wrote it: its input channels, logits and head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spkd.errors import InputError, one_line
from spkd.modes import evaluating, usual_defaults
from spkd.outputs import logits_of


class HeadMismatch(InputError):
    """The classes that a network tells apart are not those that are wanted.

    Attributes:
        found: how many the network or its weights tell apart; 0 for weights without a head.
        wanted: how many there should be. The counts are equal where only the names differ.
    """

    def __init__(self, line: str, *, found: int, wanted: int) -> None:
        super().__init__(line)
        self.found = found
        self.wanted = wanted


def input_channels(network: nn.Module, channels: int, image_size: int) -> int:
    """Return how many channels the network's images have.

    Its first convolution tells. Where that takes neither one, nor three, nor ``channels``, as in a network that
    rearranges pixels into channels or makes a later layer first, or where the network does not run so, as one that
    makes three channels of one itself, it is ``channels`` or three, if the network runs on such an image.

    >>> input_channels(nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3)), channels=3, image_size=8)
    1
    >>> input_channels(nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 8, 3)), channels=3, image_size=8)
    3
    """
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    told = 0 if first is None else first.in_channels  # a lazy one that has not run yet takes 0
    if told in (0, channels):
        return channels
    if told in (1, 3) and _runs(network, told, image_size):
        return told
    return next((count for count in (channels, 3) if _runs(network, count, image_size)), told)


def _runs(network: nn.Module, channels: int, image_size: int) -> bool:
    parameter = next(network.parameters())
    images = torch.full((2, channels, image_size, image_size), 0.5, device=parameter.device, dtype=parameter.dtype)
    try:
        with torch.no_grad(), evaluating(network):
            network(images)
    except Exception:
        return False
    return True


def count_logits(network: nn.Module, spec: str, channels: int, image_size: int) -> int:
    """Return how many logits the network gives, by running it on grey images in eval mode.

    ``channels`` are those of the images that it is meant for. The network is left in the mode that it was in, module by
    module.

    Raises:
        InputError: when the network cannot run on an image of this size, or puts out no ``(b, k)`` logits.
    """
    with torch.no_grad():
        return _grey_logits(network, spec, channels, image_size).shape[1]


def _grey_logits(network: nn.Module, spec: str, channels: int, image_size: int) -> Tensor:
    # Two, since some take a batch of one for an image without a batch.
    with evaluating(network), usual_defaults():
        images = torch.full((2, input_channels(network, channels, image_size), image_size, image_size), 0.5)
        try:
            logits = logits_of(network(images))
        except InputError:
            raise
        except (Exception, SystemExit) as error:
            raise InputError(
                f"model {spec}: it cannot run on an image of {images.shape[1]}x{image_size}x{image_size} "
                f"({one_line(error)}); try another --image_size or another model."
            ) from error
    if logits.ndim != 2:
        raise InputError(
            f"model {spec}: expected logits of shape (batch, classes), got {tuple(logits.shape)}; "
            "give a classification network."
        )
    return logits


def replace_head(network: nn.Module, spec: str, outputs: int, classes: int, channels: int, image_size: int) -> None:
    """Put a new, randomly initialised last layer of ``classes`` outputs in place of the one of ``outputs``.

    The last layer is the last linear or convolutional submodule with as many outputs. The network is run once, as by
    :func:`count_logits`, to see that its logits come from the new one.

    Raises:
        InputError: when no such layer is found, or the logits come from another.
    """
    for name, layer in reversed(list(network.named_modules())):
        if not name:
            continue
        new: nn.Linear | nn.Conv2d
        if isinstance(layer, nn.Linear) and layer.out_features == outputs:
            new = nn.Linear(layer.in_features, classes, bias=layer.bias is not None)
        elif isinstance(layer, nn.Conv2d) and layer.out_channels == outputs and layer.groups == 1:
            size = (layer.kernel_size[0], layer.kernel_size[1])
            new = nn.Conv2d(layer.in_channels, classes, size, bias=layer.bias is not None)
        else:
            continue
        parent, _, attribute = name.rpartition(".")
        setattr(network.get_submodule(parent), attribute, new)
        if not _gives_logits(network, new, spec, classes, channels, image_size):
            raise InputError(
                f"model {spec}: its logits do not come from {name}, its last layer of {outputs} outputs, so that it "
                "cannot be given a new head; let its callable take num_classes."
            )
        return
    raise InputError(
        f"model {spec}: found no last linear or convolutional layer of {outputs} outputs to replace; "
        "let its callable take num_classes."
    )


def _gives_logits(
    network: nn.Module, layer: nn.Linear | nn.Conv2d, spec: str, classes: int, channels: int, image_size: int
) -> bool:
    """Return whether the network has ``classes`` logits, which depend on a layer as far as gradients tell."""
    try:
        with torch.enable_grad():
            logits = _grey_logits(network, spec, channels, image_size)
    except InputError:
        return False
    if logits.shape[1] != classes or not logits.requires_grad:
        return logits.shape[1] == classes
    gradients = torch.autograd.grad(logits, layer.weight, torch.ones_like(logits), allow_unused=True)
    return gradients[0] is not None
