"""What a network was trained to see of its images, as a user says it."""

from __future__ import annotations

from spkd.data.images import IMAGENET_MEAN, IMAGENET_STD
from spkd.errors import InputError
from spkd.models.classifier import Normalisation
from spkd.models.weights_source import is_saved_by_us
from spkd.training.options import NORMALISATIONS


def read_normalisation(option: str, text: str | None, spec: str, weights: str | None) -> Normalisation | None:
    """Return what ``text`` says, one of :data:`~spkd.training.options.NORMALISATIONS`; None where there is none.

    In MEAN/STD each is one number, or one for each channel, with commas between them.

    Args:
        option: its name on the command line, for messages.
        text: what the user said.
        spec: of the network.
        weights: as the user said them.

    Raises:
        InputError: for anything else, or for a saved model, which brings its own.

    >>> read_normalisation("normalisation", "0.5/0.25", "wrn-16-1", None)
    Normalisation(mean=(0.5,), std=(0.25,))
    """
    if text is None:
        return None
    if is_saved_by_us(spec, weights):
        raise InputError(f"--{option}: {weights or spec} is a saved model and brings its own; leave it out")
    if text == "imagenet":
        return Normalisation(IMAGENET_MEAN, IMAGENET_STD)
    if text == "none":
        return Normalisation((0.0,), (1.0,))
    try:
        mean, std = (tuple(float(value) for value in values.split(",")) for values in text.split("/"))
    except ValueError as error:
        raise InputError(f"--{option} must be {NORMALISATIONS}, not {text!r}") from error
    try:
        return Normalisation(mean, std)
    except InputError as error:
        raise InputError(f"--{option} {text}: {str(error).removeprefix('normalisation: ')}") from error
