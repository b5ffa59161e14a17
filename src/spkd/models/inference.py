"""A frozen network in the form that is cheapest at equal answers: batch norms folded, channels last, bfloat16, and
few enough images at a time for the caches."""

from __future__ import annotations

import contextlib
import copy
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from spkd.errors import InputError, one_line
from spkd.functional import similarity_matrix
from spkd.models.bfloat16 import gains_from_bfloat16
from spkd.models.classifier import Classifier
from spkd.modes import evaluating
from spkd.taps import Taps

TOLERANCE = 1e-3
"""Largest difference of an activation, relative to the largest, at which two forms count as equal: float32 rounding
moves it by less than 1e-5 through a hundred layers, a mistake by far more."""
ROUNDING = 0.02
"""Largest difference that bfloat16 may make of itself: of a tap's similarity matrix, relative to its length, and of the
logits, relative to the largest. Measured on trained networks: docs/performance.md."""

OUTPUT_BYTES_PER_THREAD = 1.5e6
"""How much the layers of a micro-batch put out in the mean, for each of a processor's threads: much more leaves the
caches. Measured on ten networks: docs/performance.md."""

_NORMS = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d}


@dataclass(frozen=True)
class InferenceForm:
    """A frozen network in the form in which it runs.

    Attributes:
        network: takes what the original takes, under the same module paths.
        precision: in which its layers compute.
        note: in words, what was done.
        micro_batch_size: how many images to run at a time; None for whole batches.
    """

    network: nn.Module
    precision: Literal["32-true", "bf16-true"]
    note: str
    micro_batch_size: int | None = None


def inference_form(
    classifier: Classifier,
    taps: Sequence[str],
    images: Tensor,
    *,
    logits: bool = True,
    precision: Literal["auto", "32-true", "bf16-true"] = "32-true",
) -> InferenceForm:
    """Return the classifier in its cheapest form.

    Batch norms are folded into the convolutions that they follow, and the weights lie channels last. Logits and tapped
    layers are compared with the original's on ``images``, which the cheaper form is given in two parts; where they
    differ, the original is returned. In bfloat16 the images are normalised in float32 first.

    Args:
        classifier: a trained network, left as it is.
        taps: the layers that will be read.
        images: a real batch (b, channels, h, w) in [0, 1], on the classifier's device.
        logits: whether the logits will be read as well.
        precision: of the layers' arithmetic. ``auto`` takes bfloat16 where the device is quicker in it and it moves
            nothing that is read by more than :data:`ROUNDING` on ``images``.

    Raises:
        InputError: when a layer cannot be read in a whole pass of the original (see :class:`~spkd.taps.Taps`), or the
            network fails in bfloat16 and ``precision`` leaves no choice.
    """
    with torch.no_grad(), evaluating(classifier), Taps(classifier, taps) as whole:
        whole(images)
    # A network of the user's own may fail in any way: one that cannot be copied, say, or that mixes types.
    try:
        network, count = folded(classifier.network)
        network.to(memory_format=torch.channels_last)
        twin = Classifier(network, classifier.info).to(images.device).eval()
        difference = _difference(classifier, twin, taps, images)
    except Exception as error:
        return InferenceForm(classifier, "32-true", f"runs unchanged, since its faster form failed: {one_line(error)}")
    if not difference <= TOLERANCE:
        return InferenceForm(
            classifier, "32-true", f"runs unchanged, since its faster form differs by {difference:.1g}"
        )
    note = f"{count} batch norms folded, channels last"
    full = InferenceForm(
        twin,
        "32-true",
        f"{note} (changes its outputs by at most {difference:.1g} of the largest)",
        micro_batch_size(twin, images),
    )
    if precision == "32-true" or (precision == "auto" and not gains_from_bfloat16(images.device)):
        return full
    try:
        rounded = copy.deepcopy(network).to(torch.bfloat16)
        short = Classifier(_InBfloat16(rounded), classifier.info).to(images.device).eval()
        rounding = _rounding(classifier, short, taps, images, logits=logits)
    except Exception as error:
        if precision == "auto":
            return replace(full, note=f"{full.note}; in float32, since it fails in bfloat16: {one_line(error)}")
        raise InputError(
            f"--teacher_precision {precision}: the teacher does not compute in bfloat16: {one_line(error)}; give "
            "32-true, or auto"
        ) from error
    if precision == "auto" and not all(value <= ROUNDING for value in rounding.values()):
        worst = max(rounding, key=lambda name: math.inf if math.isnan(rounding[name]) else rounding[name])
        return replace(
            full, note=f"{full.note}; in float32, since bfloat16 would move {worst} by {rounding[worst]:.1g}"
        )
    said = ", ".join(f"{name} by {value:.1g}" for name, value in rounding.items())
    return InferenceForm(
        short, "bf16-true", f"{note}, in bfloat16 (which moves {said})", micro_batch_size(short, images)
    )


@torch.no_grad()
def micro_batch_size(network: nn.Module, images: Tensor) -> int | None:
    """Return how many images a pass of the network should hold to be quick, or None for as many as there are.

    On a processor, what a layer puts out is read soonest from the caches, so a pass should be small; but it should
    put out twice as much as the weights that it reads. Both are means over convolutions and linear layers.

    Args:
        network: in eval mode, on the images' device.
        images: (b, channels, h, w), of the size that will be run.
    """
    if images.device.type != "cpu":
        return None
    outputs: list[float] = []
    weights: list[float] = []

    def weigh(layer: nn.Module, inputs: object, output: object) -> None:
        if not isinstance(output, Tensor):  # of a layer of the user's own kind
            return
        outputs.append(output.nbytes / len(images))
        weights.append(layer.weight.nbytes)  # type: ignore[arg-type]

    layers = [layer for layer in network.modules() if isinstance(layer, (*_NORMS, nn.Linear))]
    handles = [layer.register_forward_hook(weigh) for layer in layers]
    try:
        network(images)
    finally:
        for handle in handles:
            handle.remove()
    if not outputs:
        return None
    wanted = max(OUTPUT_BYTES_PER_THREAD * torch.get_num_threads(), 2 * statistics.fmean(weights))
    return max(1, round(wanted / statistics.fmean(outputs)))


class _InBfloat16(nn.Module):
    """Rounds the normalised images to the network's precision."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.module = network  # a name that taps see through

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.module(images.to(torch.bfloat16))
        return output


@torch.no_grad()
def _rounding(
    original: nn.Module, short: nn.Module, taps: Sequence[str], images: Tensor, *, logits: bool
) -> dict[str, float]:
    """Return how far bfloat16 moves each tap's similarity matrix and the logits, relatively."""
    with evaluating(original, short), Taps(original, taps) as ours, Taps(short, taps) as theirs:
        expected, got = ours(images), theirs(images)
    moved = {}
    for name in taps:
        exact, rounded = similarity_matrix(expected.taps[name]), similarity_matrix(got.taps[name])
        moved[f"G of {name}"] = float((exact - rounded).norm() / exact.norm().clamp_min(1e-30))
    if logits:
        moved["logits"] = _relative(expected.logits, got.logits)
    return moved


@torch.no_grad()
def _difference(original: nn.Module, twin: nn.Module, taps: Sequence[str], images: Tensor) -> float:
    """Return the largest difference of logits and taps, each relative to its largest magnitude."""
    half = (len(images) + 1) // 2
    with (
        _exact_convolutions(),
        evaluating(original, twin),
        Taps(original, taps) as ours,
        Taps(twin, taps, micro_batch_size=half) as theirs,
    ):
        expected, got = ours(images), theirs(images)
    pairs = [(expected.logits, got.logits), *((expected.taps[name], got.taps[name]) for name in taps)]
    return float(torch.tensor([_relative(a, b) for a, b in pairs]).max())  # which a NaN anywhere makes one


@contextlib.contextmanager
def _exact_convolutions() -> Iterator[None]:
    """Have GPUs multiply float32 as it is; they round it to 10 bits by default, which would hide a mistake or look like
    one."""
    cudnn = torch.backends.cudnn
    if not hasattr(cudnn, "conv"):  # before torch 2.9
        with cudnn.flags(enabled=cudnn.enabled, allow_tf32=False):
            yield
        return
    before = cudnn.conv.fp32_precision
    cudnn.conv.fp32_precision = "ieee"
    try:
        yield
    finally:
        cudnn.conv.fp32_precision = before


def _relative(expected: Tensor, got: Tensor) -> float:
    return float((expected - got.float()).abs().max() / expected.abs().max().clamp_min(1e-30))


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
        fits = _NORMS.get(type(convolution)) is type(norm) and norm.running_mean is not None
        once = calls.count(source.target) == 1 and calls.count(node.target) == 1
        if fits and once and not hooked & {source.target, node.target}:
            found.append((str(source.target), str(node.target)))
    return found
