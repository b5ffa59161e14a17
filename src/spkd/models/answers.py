"""What a network answers to a made-up picture: so a change in the code that builds it is noticed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from spkd.modes import evaluating, keeping_buffers, usual_defaults
from spkd.outputs import logits_of

KEPT = 16
"""Logits that are kept."""
TOLERANCE = 0.05
"""Difference, relative to the largest of them, that another device or library may make."""


def answer(network: nn.Module, channels: int, image_size: int) -> tuple[float, ...] | None:
    """Return the first logits that a network gives for a picture, always the same one, in eval mode.

    None where it cannot look at it. Network and random generators are left as they were.
    """
    with _generators_kept(network):
        return _looked(network, channels, image_size)


def steady_answer(network: nn.Module, channels: int, image_size: int) -> tuple[float, ...] | None:
    """Return the same, and None where it is another the second time or is not finite."""
    with _generators_kept(network):
        first, second = (_looked(network, channels, image_size) for _ in range(2))
    return first if first is not None and second is not None and agree(first, second) else None


def agree(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether two answers are the same but for rounding; those that are not finite never are."""
    if len(one) != len(other):
        return False
    largest = max((abs(value) for value in (*one, *other)), default=0.0)
    return all(abs(a - b) <= TOLERANCE * largest < float("inf") for a, b in zip(one, other, strict=True))


def _looked(network: nn.Module, channels: int, image_size: int) -> tuple[float, ...] | None:
    parameter = next((one for one in network.parameters() if one.is_floating_point()), None)
    picture = _picture(channels, image_size).to(_device(network), None if parameter is None else parameter.dtype)
    try:
        with evaluating(network), keeping_buffers(network), torch.no_grad():
            logits: list[float] = logits_of(network(picture)).float().flatten()[:KEPT].tolist()
    except Exception:  # a user's own network, which may want what this picture is not
        return None
    return tuple(float(f"{value:.6g}") for value in logits)


def _generators_kept(network: nn.Module) -> AbstractContextManager[None]:
    device = _device(network)
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def _device(network: nn.Module) -> torch.device:
    parameter = next(network.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _picture(channels: int, image_size: int) -> Tensor:
    """Return waves in [0, 1], other ones in each channel: (1, channels, image_size, image_size)."""
    count = channels * image_size**2
    with usual_defaults():
        return (torch.arange(count).mul(0.37).sin() / 2 + 0.5).view(1, channels, image_size, image_size)
