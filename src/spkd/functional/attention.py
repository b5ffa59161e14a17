"""Attention transfer: a student looks where its teacher looks.

Source: S. Zagoruyko and N. Komodakis, *Paying More Attention to Attention*, ICLR 2017 (arXiv 1612.03928).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from spkd.errors import InputError
from spkd.functional.arguments import check_not_empty, check_not_exchanged, check_same_batch, matched
from spkd.functional.numerics import scale_to_unit_peak, unit_rows, upcast


def attention_map(features: Tensor) -> Tensor:
    r"""Return how strongly each position is excited: the sum over channels of squared activations.

    .. math:: F(A)_{i,y,x} = \sum_c A_{i,c,y,x}^2

    Half precision is brought to float32 before it is squared, with autocast off. In float32 the squares
    overflow for activations above 1.8e19; :func:`relative_attention_map` has no such limit.

    Args:
        features: feature maps ``(b, c, h, w)`` or tokens ``(b, n, c)``. Channels-last maps ``(b, h, w, c)``
            must be permuted first.

    Returns:
        ``(b, h, w)`` or ``(b, n)``, not normalised, float32 (float64 for float64 features).

    Raises:
        InputError: for vectors ``(b, d)`` or any other shape, and for empty features.

    >>> attention_map(torch.full((1, 3, 2, 2), 2.0)).tolist()
    [[[12.0, 12.0], [12.0, 12.0]]]
    """
    check_not_empty("features", features)
    if features.dim() not in (3, 4):
        raise InputError(
            f"attention needs feature maps (batch, channels, height, width) or tokens "
            f"(batch, tokens, channels), got {tuple(features.shape)}; tap a layer before the "
            "pooling, or use sp, which takes any shape"
        )
    with torch.autocast(device_type=features.device.type, enabled=False):
        return upcast(features).square().sum(dim=1 if features.dim() == 4 else 2)


def relative_attention_map(features: Tensor) -> Tensor:
    r"""Return :func:`attention_map` divided, image by image, by its largest value: between 0 and 1.

    The loss normalises the map of each image afterwards, so this loses nothing; and the result can be kept in
    float16. Activations are divided by their largest absolute value before they are squared: no finite
    activation overflows or vanishes. A map of zeros stays zero. The divisors are constants for
    differentiation: gradients are right for whatever does not depend on the scale of a map, such as
    :func:`attention_distance`.

    Shapes and errors are those of :func:`attention_map`. NaN or infinity makes the image's map NaN.

    >>> relative_attention_map(torch.tensor([[[[3e30, 6e30]]]])).tolist()
    [[[0.25, 1.0]]]
    """
    check_not_empty("features", features)
    with torch.autocast(device_type=features.device.type, enabled=False):
        return scale_to_unit_peak(attention_map(scale_to_unit_peak(upcast(features))))


def attention_distance(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    r"""Return the mean squared difference of two attention maps, each of unit L2 length per image.

    .. math::
        \frac{1}{b\,n} \sum_i \left\lVert \frac{m_{S,i}}{\lVert m_{S,i} \rVert_2} -
        \frac{m_{T,i}}{\lVert m_{T,i} \rVert_2} \right\rVert_2^2,
        \qquad m_i = \mathrm{vec}(F(A)_i) \in \mathbb{R}^n

    with n = hw positions. The mean is over elements, so that the value falls as 1/n where maps grow: a
    weight chosen for 32x32 images is not right for 8x8 ones. Multiplying an image's map by a positive number
    changes nothing. Spatial maps of unlike size are average-pooled to the smaller height and width before
    they are normalised. A map of zeros counts as zero and passes no gradient.

    Args:
        student_map: ``(b, h, w)`` or ``(b, n)``; half precision is brought to float32.
        teacher_map: the same kind. It is a constant: no gradient flows to it.

    Returns:
        A scalar, float32 (float64 where maps are float64).

    Raises:
        InputError: when batches, the kinds of map or the token counts differ, maps are empty, or student and teacher
            look exchanged.

    >>> attention_distance(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 7.0]]))
    tensor(1.)
    """
    for name, values in (("student_map", student_map), ("teacher_map", teacher_map)):
        check_not_empty(name, values)
        if values.dim() not in (2, 3):
            raise InputError(
                f"{name} must have shape (batch, height, width) or (batch, tokens), "
                f"got {tuple(values.shape)}; pass features through attention_map first"
            )
    check_same_batch(student_map, teacher_map)
    check_not_exchanged(student_map, teacher_map)
    with torch.autocast(device_type=student_map.device.type, enabled=False):
        student_map = scale_to_unit_peak(upcast(student_map))
        teacher_map = scale_to_unit_peak(upcast(teacher_map.detach()))
        if student_map.shape != teacher_map.shape:
            student_map, teacher_map = _pooled_to_smaller(student_map, teacher_map)
        difference = unit_rows(student_map.flatten(1)) - unit_rows(teacher_map.flatten(1))
        return difference.square().mean()


def attention_transfer_loss(student: Tensor | Sequence[Tensor], teacher: Tensor | Sequence[Tensor]) -> Tensor:
    r"""Return the attention transfer loss, a sum over pairs of layers of :func:`attention_distance`.

    The loss of the authors' code, which takes the mean over elements and is multiplied by β = 1000 whole
    (their paper's formula says β/2).

    Args:
        student: features of one student layer, ``(b, c, h, w)`` or ``(b, n, c)``, or a sequence of them.
        teacher: features of the teacher's layer, or a sequence as long. No gradient flows to it. Channel
            counts may differ, and so may heights and widths (the larger map is average-pooled).

    Returns:
        A scalar, float32 (float64 where features are float64); not finite when features are not.

    Raises:
        InputError: when the numbers of layers differ or are zero, student and teacher look exchanged (gradients are
            on, and only the teacher's features require one), or as :func:`attention_map` and
            :func:`attention_distance` do.

    >>> features = torch.arange(16.0).reshape(1, 4, 2, 2)
    >>> attention_transfer_loss(2 * features, features)
    tensor(0.)
    """
    pairs, distances = matched(student, teacher), []
    check_not_exchanged(*zip(*pairs, strict=True))
    for student_features, teacher_features in pairs:
        teacher_map = relative_attention_map(teacher_features.detach())
        distances.append(attention_distance(relative_attention_map(student_features), teacher_map))
    return torch.stack(distances).sum()


def _pooled_to_smaller(student_map: Tensor, teacher_map: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool two spatial maps to the smaller height and the smaller width."""
    if student_map.dim() != 3 or teacher_map.dim() != 3:
        raise InputError(
            f"attention maps of the student, {tuple(student_map.shape)}, and the teacher, "
            f"{tuple(teacher_map.shape)}, cannot be brought to one size: only (batch, height, width) "
            "maps can; tap layers with the same number of tokens, or use sp, which takes any shape"
        )
    height = min(student_map.shape[1], teacher_map.shape[1])
    width = min(student_map.shape[2], teacher_map.shape[2])
    student_pooled = F.adaptive_avg_pool2d(student_map, (height, width))
    return student_pooled, F.adaptive_avg_pool2d(teacher_map, (height, width))
