"""A network with its own input normalisation and class names."""

from __future__ import annotations

import math
import operator
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spkd.data.options import View
from spkd.errors import InputError
from spkd.models.network import input_channels
from spkd.outputs import logits_of


@dataclass(frozen=True)
class Normalisation:
    """What is subtracted from images in [0, 1], and what they are then divided by.

    One value per channel, or a single one for all channels.

    Raises:
        InputError: when the lengths differ, a value is not finite or a deviation is not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            try:
                values = tuple(float(value) for value in getattr(self, name))
            except (TypeError, ValueError) as error:
                raise InputError(
                    f"normalisation: expected a number for each channel as {name}, got {getattr(self, name)!r}."
                ) from error
            object.__setattr__(self, name, values)
        if not self.mean or len(self.mean) != len(self.std):
            raise InputError(
                f"normalisation: expected as many means as deviations, got {len(self.mean)} and {len(self.std)}."
            )
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise InputError(
                "normalisation: expected finite means and deviations above zero, "
                f"got mean {self.mean} and std {self.std}."
            )


@dataclass(frozen=True)
class ModelInfo:
    """What is to be known of a classifier besides its weights.

    Attributes:
        spec: the string from which :func:`spkd.models.build.build_model` makes the same architecture.
        classes: the names of the classes, in the order of the logits.
        channels: channels of the images that it takes.
        image_size: side length, in pixels, of the images that it was made for.
        normalisation: what the classifier does to images in [0, 1] before the network sees them.
        view: what it was made to see of an image: the ``whole``, or the ``centre``, the shorter side at 8/7 of
            ``image_size`` before cutting; None where that is not known.

    Raises:
        InputError: for another view, no classes, or a number of channels or a size that there is none of.
    """

    spec: str
    classes: tuple[str, ...]
    channels: int
    image_size: int
    normalisation: Normalisation
    view: View | None = None

    def __post_init__(self) -> None:
        classes: object = self.classes
        if not isinstance(classes, list | tuple) or not classes or not all(isinstance(one, str) for one in classes):
            raise InputError(f"classes: expected a list of the classes' names, got {classes!r}.")
        object.__setattr__(self, "classes", tuple(classes))
        if not isinstance(self.normalisation, Normalisation):
            raise InputError(f"normalisation: expected Normalisation(mean, std), got {self.normalisation!r}.")
        for name, least, most in (("channels", 1, 4096), ("image_size", 1, 65536)):
            value = getattr(self, name)
            try:
                number = operator.index(value)
            except TypeError as error:
                raise InputError(f"{name}: expected a whole number, got {value!r}.") from error
            if not least <= number <= most:
                raise InputError(f"{name}: expected {least} to {most}, got {number}.")
            object.__setattr__(self, name, number)
        if self.view not in ("whole", "centre", None):
            raise InputError(f"view: expected 'whole' or 'centre', or None where it is not known, got {self.view!r}.")


class Classifier(nn.Module):
    """A network that takes images in [0, 1] and normalises them itself.

    The state dict is the network's under ``network.``; the normalisation is part of ``info`` instead.

    Args:
        network: any network from images to logits: a tensor ``(b, k)``, or an output with ``.logits``,
            ``["logits"]`` or the logits first in a tuple.
        info: see :class:`ModelInfo`. A normalisation of three channels on a network that takes one is
            averaged over the channels.

    Shapes:
        Floating-point images ``(b, channels, h, w)`` in [0, 1] to logits ``(b, k)``. Grey images
        ``(b, 1, h, w)`` are repeated to three channels when the network's first convolution takes three.

    Raises:
        InputError: when the network's first convolution takes another number of channels than
            ``info.channels``; on a forward pass, for images of another number of channels or integers.

    >>> from spkd.models.wrn import WideResNet
    >>> normalisation = Normalisation(mean=(0.5,), std=(0.25,))
    >>> info = ModelInfo("wrn-10-1", ("cat", "dog"), channels=3, image_size=32, normalisation=normalisation)
    >>> classifier = Classifier(WideResNet(10, 1, num_classes=2), info)
    >>> classifier(torch.rand(4, 3, 32, 32)).shape
    torch.Size([4, 2])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, info: ModelInfo) -> None:
        super().__init__()
        self.network = network
        self.info = info
        self.network_channels = input_channels(network, info.channels, info.image_size)
        repeated = info.channels == 1 and self.network_channels == 3
        if info.channels != self.network_channels and not repeated:
            way_out = f"build the model for {info.channels} (with timm: ?in_chans={info.channels})"
            if self.network_channels == 1:
                way_out += ", or read the images as grey ones (--grey)"
            raise InputError(
                f"model {info.spec}: its first convolution takes {self.network_channels} channel(s) and the "
                f"images have {info.channels}; {way_out}."
            )
        for name, values in (("mean", info.normalisation.mean), ("std", info.normalisation.std)):
            self.register_buffer(name, _per_channel(values, self.network_channels), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(b, k)`` of images ``(b, channels, h, w)`` in [0, 1]."""
        grey = images.ndim == 4 and images.shape[1] == 1 and self.network_channels == 3
        if not grey and (images.ndim != 4 or images.shape[1] != self.network_channels):
            raise InputError(
                f"images: expected (batch, {self.info.channels}, height, width), got {tuple(images.shape)}."
            )
        if not images.is_floating_point():
            raise InputError(
                f"images: expected floating-point values in [0, 1], got {images.dtype}; divide bytes by 255."
            )
        if grey:
            images = images.expand(-1, 3, -1, -1)
        logits = logits_of(self.network((images - self.mean) / self.std))
        return logits.unsqueeze(0) if logits.ndim == 1 and len(images) == 1 else logits  # of one that squeezes


def require_unit_range(images: Tensor, who: str) -> None:
    """Refuse images that are further from [0, 1] than augmentation takes them: they have been normalised before.

    Args:
        images: floating-point ones; others are let pass.
        who: takes them, in words.

    Raises:
        InputError: when they are.
    """
    if not images.is_floating_point() or not images.numel():
        return
    least, most = float(images.min()), float(images.max())
    if least < -0.5 or most > 1.5:
        raise InputError(
            f"images: {who} takes values in [0, 1] and normalises them itself, got {least:.3g} to {most:.3g}; leave "
            "the loader's normalisation out."
        )


def same_classes(one: Classifier, other: Classifier) -> bool:
    """Return whether two networks tell the same classes apart, in the same order."""
    return composed(one.info.classes) == composed(other.info.classes)


def composed(names: Sequence[str]) -> list[str]:
    """Return names with accents as part of the letters, which some systems write as letters of their own.

    >>> composed(["cafe\u0301"]) == composed(["caf\u00e9"])
    True
    """
    return [unicodedata.normalize("NFC", name) for name in names]


def _per_channel(values: Sequence[float], channels: int) -> Tensor:
    """Return ``values`` as (1, channels, 1, 1): as they are, repeated from one, or averaged to one."""
    if len(values) not in (1, channels) and channels != 1:
        raise InputError(f"normalisation: expected one value or {channels} for {channels} channels, got {len(values)}.")
    if channels == 1:
        values = (sum(values) / len(values),)
    return torch.tensor(values, dtype=torch.float32).expand(channels).clone().view(1, channels, 1, 1)
