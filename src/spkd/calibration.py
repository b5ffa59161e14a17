"""Probabilities that can be relied on: one temperature that the logits are divided by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spkd.errors import InputError
from spkd.training.evaluation import Evaluation, evaluate

LEAST, MOST = 0.01, 100.0
"""Between these the temperature is looked for; beyond them the images tell none."""


@dataclass(frozen=True)
class Calibration:
    """The temperature of a network, and what it changes on the images that it was chosen on.

    Attributes:
        temperature: T, by which the logits are divided.
        standard_error: of T, by the Fisher information: how much it varies between such sets of images, where the
            probabilities after are right.
        before: what was measured of the logits as they are.
        after: the same of the logits / T: other cross-entropy and calibration error, the same errors.
    """

    temperature: float
    standard_error: float
    before: Evaluation
    after: Evaluation


def temperature_of(logits: Tensor, targets: Tensor) -> float:
    r"""Return the temperature T at which softmax(logits / T) makes the targets likeliest.

    .. math::
        T = \arg\min_{T > 0} \; -\frac{1}{n} \sum_i \log \mathrm{softmax}(z_i / T)_{y_i}

    (temperature scaling: Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017). The sum is convex in
    1 / T, so T is where its derivative by that is zero: where the logits of the targets are in the mean what they are
    expected to be, :math:`\sum_i z_{i, y_i} = \sum_i \sum_k \mathrm{softmax}(z_i / T)_k \, z_{i, k}`. Computed in
    float64.

    A network that is too sure has T above 1. No decision changes. Logits times c have the temperature cT; adding one
    number to all logits of an image changes nothing. Take images that the network has not learnt, or T is too low.

    Args:
        logits: shape ``(n, k)``, two classes or more.
        targets: int64, shape ``(n,)``, in 0..k-1.

    Raises:
        InputError: when shapes, types or values are others, a logit is not finite, or no T from 0.01 to 100 is the
            best: where every target has the largest logit, the lower T the better without end, and where equal
            probabilities of all classes fit better than any, the higher.

    >>> logits = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    >>> temperature = temperature_of(logits, torch.tensor([0, 0, 0, 1]))
    >>> round(temperature, 6), [round(share, 6) for share in (logits[0] / temperature).softmax(0).tolist()]
    (0.910239, [0.75, 0.25])
    """
    from scipy.optimize import brentq  # slow to import

    _check(logits, targets)
    values = logits.detach().double().cpu()
    above = values - values.gather(1, targets.cpu().unsqueeze(1))  # (n, k), by how much a logit is above the target's

    def surplus(log_temperature: float) -> float:
        """Return the derivative of the negative log-likelihood by 1 / T, which falls as T rises."""
        shares = (above / math.exp(log_temperature)).softmax(dim=1)
        return float((shares * above).sum(dim=1).mean())

    least, most = math.log(LEAST), math.log(MOST)
    if not surplus(most) < 0:
        raise InputError(
            f"temperature: none below {MOST:g} is the best: equal probabilities of all classes fit these images "
            "better; check that the targets are numbered as the network's classes, or leave the logits as they are"
        )
    if not surplus(least) > 0:
        right = int((above.amax(dim=1) <= 0).sum())
        raise InputError(
            f"temperature: none above {LEAST:g} is the best: {right:,} of {len(above):,} images are right, and the "
            "surer the network is of these, the better; take more images, or leave the logits as they are"
        )
    return math.exp(brentq(surplus, least, most))


def standard_error_of(logits: Tensor, temperature: float) -> float:
    """Return the standard error of a temperature that :func:`temperature_of` chose on these logits (n, k).

    It is ``T / √(Σ_i Var(z_i / T))``, with the variance of an image's k values under softmax(z_i / T): the inverse of
    the Fisher information.
    """
    values = logits.double() / temperature
    shares = values.softmax(dim=1)
    around = values - (shares * values).sum(dim=1, keepdim=True)
    return temperature / math.sqrt(float((shares * around.square()).sum()))


def calibrated(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    classes: Sequence[str],
    count: Callable[[int], object] = lambda images: None,
) -> Calibration:
    """Return the temperature of a network, chosen on batches of images and targets, and what it changes on them.

    Model, batches and classes are as of :func:`spkd.training.evaluation.evaluate`; ``count`` takes the number of images
    of each batch.

    Raises:
        InputError: as that and :func:`temperature_of` do.
    """
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(logits: Tensor, targets: Tensor, _: Tensor | None) -> None:
        seen.append((logits, targets))
        count(len(targets))

    before = evaluate(model, batches, classes, each=keep)
    logits, targets = (torch.cat(parts) for parts in zip(*seen, strict=True))
    temperature = temperature_of(logits, targets)
    after = evaluate(nn.Identity(), [(logits / temperature, targets)], classes)
    return Calibration(temperature, standard_error_of(logits, temperature), before, after)


def _check(logits: Tensor, targets: Tensor) -> None:
    if logits.dim() != 2 or logits.shape[1] < 2 or not len(logits) or not logits.is_floating_point():
        raise InputError(
            "logits: expected floating-point values (images, classes) of one image and two classes or more, got "
            f"{logits.dtype} of shape {tuple(logits.shape)}"
        )
    if targets.dtype != torch.int64 or tuple(targets.shape) != (len(logits),):
        raise InputError(
            f"targets: expected class numbers, int64, one for each of {len(logits)} images, got {targets.dtype} of "
            f"shape {tuple(targets.shape)}"
        )
    if not 0 <= int(targets.min()) <= int(targets.max()) < logits.shape[1]:
        raise InputError(
            f"targets: expected class numbers 0 to {logits.shape[1] - 1}, got {int(targets.min())} to "
            f"{int(targets.max())}; leave out images without a label"
        )
    if not bool(logits.isfinite().all()):
        raise InputError("logits: expected finite values, got NaN or infinity; the network's weights are broken")
