"""A frozen network in the form that is cheapest at equal answers: batch norms folded, channels last."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from spkd.models.classifier import Classifier
from spkd.modes import evaluating
from spkd.taps import Taps

TOLERANCE = 1e-3
"""Largest difference of an activation, relative to the largest, at which two forms count as equal: float32 rounding
moves it by less than 1e-5 through a hundred layers, a mistake by far more."""

_NORMS = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d}


def inference_form(classifier: Classifier, taps: Sequence[str], images: Tensor) -> tuple[Classifier, str]:
    """Return the classifier in its cheapest form, and in words what was done.

    Batch norms are folded into the convolutions that they follow, and the weights lie channels last. Logits and tapped
    layers are compared with the original's on ``images``; where they differ, the original is returned.

    Args:
        classifier: a trained network, left as it is.
        taps: the layers that will be read.
        images: a real batch (b, channels, h, w) in [0, 1], on the classifier's device.
    """
    network, count = folded(classifier.network)
    twin = Classifier(network.to(memory_format=torch.channels_last), classifier.info).to(images.device).eval()
    try:
        difference = _difference(classifier, twin, taps, images)
    except Exception as error:
        reason = " ".join(str(error).split())
        return classifier, f"runs as it is, since its cheaper form failed: {reason}"
    if not difference <= TOLERANCE:
        return classifier, f"runs as it is, since its cheaper form differs by {difference:.1g}"
    return twin, f"{count} batch norms folded, channels last (largest relative difference {difference:.1g})"


@torch.no_grad()
def _difference(original: nn.Module, twin: nn.Module, taps: Sequence[str], images: Tensor) -> float:
    """Return the largest difference of logits and taps, each relative to its largest magnitude."""
    with evaluating(original, twin), Taps(original, taps) as ours, Taps(twin, taps) as theirs:
        expected, got = ours(images), theirs(images)
    pairs = [(expected.logits, got.logits), *((expected.taps[name], got.taps[name]) for name in taps)]
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-30)) for a, b in pairs)


def folded(network: nn.Module) -> tuple[nn.Module, int]:
    """Return a copy of a network in eval mode with batch norms folded, and how many were.

    A batch norm with running statistics whose only input is the output of a convolution, which nothing else reads,
    is an affine map of it: ``γ (W x + b - μ) / √(σ² + ε) + β``. It becomes part of the convolution's weight and bias,
    and an identity takes its place, so that every module keeps its path and hooks on other layers see what they
    saw, up to rounding. Where the network cannot be traced symbolically, nothing is folded.

    Args:
        network: left as it is. The copy is in eval mode, and training it is not meant.

    >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    >>> copied, count = folded(network)
    >>> count, type(copied[1]).__name__, type(network[1]).__name__
    (1, 'Identity', 'BatchNorm2d')
    """
    twin = copy.deepcopy(network).eval()
    pairs = _foldable(twin)
    for convolution, norm in pairs:
        twin.set_submodule(convolution, _fused(twin.get_submodule(convolution), twin.get_submodule(norm)))
        twin.set_submodule(norm, nn.Identity())
    return twin, len(pairs)


def _fused(convolution: nn.Module, norm: nn.Module) -> nn.Module:
    with torch.no_grad():
        return fuse_conv_bn_eval(convolution, norm)  # type: ignore[type-var, arg-type]


def _foldable(network: nn.Module) -> list[tuple[str, str]]:
    """Return the paths of each convolution and the batch norm that is its only reader."""
    try:
        graph = fx.Tracer().trace(network)
    except Exception:
        return []
    modules = dict(network.named_modules())
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    hooked = {name for name, module in modules.items() if module._forward_hooks or module._forward_pre_hooks}
    found = []
    for node in graph.nodes:
        if node.op != "call_module" or len(node.args) != 1 or not isinstance(node.args[0], fx.Node):
            continue
        source = node.args[0]
        if source.op != "call_module" or len(source.users) != 1:
            continue
        convolution, norm = modules[source.target], modules[node.target]
        fits = _NORMS.get(type(convolution)) is type(norm) and norm.track_running_stats
        once = calls.count(source.target) == 1 and calls.count(node.target) == 1
        if fits and once and not hooked & {source.target, node.target}:
            found.append((str(source.target), str(node.target)))
    return found
