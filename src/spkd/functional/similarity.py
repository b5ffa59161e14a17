"""The similarity-preserving loss: a student keeps which images its teacher finds alike.

Source: F. Tung and G. Mori, *Similarity-Preserving Knowledge Distillation*, ICCV 2019 (arXiv 1907.09682).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spkd.errors import InputError
from spkd.functional.arguments import check_not_empty, check_same_batch, matched
from spkd.functional.numerics import peaks, unit_rows, upcast


def similarity_matrix(features: Tensor) -> Tensor:
    r"""Return the row-normalised similarities of the images of a batch (equations 1 to 3 of the paper).

    .. math::
        Q = \mathrm{reshape}(A) \in \mathbb{R}^{b \times d}, \qquad \tilde G = Q Q^\top, \qquad
        G_{i,:} = \tilde G_{i,:} \,/\, \lVert \tilde G_{i,:} \rVert_2

    The normalisation comes *after* the product, and is of each row by itself. G is therefore not symmetric
    in general. It does not change when the features are rotated, permuted (the same for all images) or
    multiplied by one number.

    Numerics:
        Autocast is off inside, half precision is brought to float32 first and the product is accumulated in
        float32 (at the precision that ``torch.set_float32_matmul_precision`` allows). Each row of Q is
        divided by its largest absolute value :math:`s_i` before the product, and column j of the product is
        multiplied by :math:`s_j / \max_k s_k` after it. What remains to be undone is one factor per row, and
        that the row normalisation does by itself. So no finite features overflow, and an image whose
        activations are tiny beside those of its batch still gets its row. The scales are constants for
        differentiation, which leaves the gradient exact because G does not depend on them.

        An image whose features are all zero gives a row and a column of zeros. Its row, at which the
        formula is not differentiable, passes no gradient; the entries of its column do, as the formula
        says, and are finite. NaN or infinity in any image makes every row NaN.

    Args:
        features: shape ``(b, ...)``: feature maps ``(b, c, h, w)``, tokens ``(b, n, c)``, vectors ``(b, d)``.

    Returns:
        G, shape ``(b, b)``, float32 (float64 for float64 features), rows of unit L2 length or zero.

    Raises:
        InputError: when ``features`` has no batch dimension or no element.

    >>> similarity_matrix(torch.eye(2)).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    >>> similarity_matrix(torch.tensor([[60000.0, 0.0], [0.0, 0.0]], dtype=torch.float16)).tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    """
    check_not_empty("features", features)
    with torch.autocast(device_type=features.device.type, enabled=False):
        features_bd = upcast(features).reshape(features.shape[0], -1)
        row_peaks = peaks(features_bd)
        largest = row_peaks.amax()
        largest = torch.where(largest == 0, 1.0, largest)
        scales = torch.where(row_peaks == 0, largest, row_peaks)
        scaled_bd = features_bd / scales
        return unit_rows((scaled_bd @ scaled_bd.T) * (scales / largest).T)


def similarity_distance(student_matrix: Tensor, teacher_matrix: Tensor) -> Tensor:
    r"""Return the squared Frobenius distance of two similarity matrices (one term of the paper's equation 4).

    .. math:: \frac{1}{b^2} \lVert G_T - G_S \rVert_F^2

    The division by :math:`b^2` keeps the value from growing with the batch. It lies between 0 and 4/b.

    Args:
        student_matrix: G of the student, ``(b, b)``; half precision is brought to float32.
        teacher_matrix: G of the teacher, of the same shape. It is a constant: no gradient flows to it.

    Returns:
        A scalar, float32 or float64.

    Raises:
        InputError: when either is not a square matrix or the batches differ.

    >>> similarity_distance(torch.zeros(2, 2), torch.eye(2))
    tensor(0.5000)
    """
    for name, matrix in (("student_matrix", student_matrix), ("teacher_matrix", teacher_matrix)):
        if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
            raise InputError(
                f"{name} must have shape (batch, batch), got {tuple(matrix.shape)}; "
                "pass features through similarity_matrix first"
            )
    check_same_batch(student_matrix, teacher_matrix)
    with torch.autocast(device_type=student_matrix.device.type, enabled=False):
        return (upcast(student_matrix) - upcast(teacher_matrix.detach())).square().mean()


def similarity_preserving_loss(student: Tensor | Sequence[Tensor], teacher: Tensor | Sequence[Tensor]) -> Tensor:
    r"""Return the similarity-preserving loss (the paper's equation 4).

    .. math:: L_{SP} = \frac{1}{b^2} \sum_{(l, l') \in I} \lVert G_T^{(l)} - G_S^{(l')} \rVert_F^2

    with G as in :func:`similarity_matrix`. It is a **sum** over the pairs of layers, not a mean. In the total
    loss the paper multiplies it by γ = 3000. Only the batch size must agree within a pair: channels, spatial
    sizes and architectures may differ.

    Args:
        student: features of one student layer ``(b, ...)``, or a sequence of them.
        teacher: features of the teacher's layer, or a sequence as long. No gradient flows to it.

    Returns:
        A scalar, float32 (float64 where features are float64). Zero when all similarities agree, at most
        4/b for each pair, not finite when features are not.

    Raises:
        InputError: when the numbers of layers differ or are zero, batches differ, or features are empty.

    >>> student, teacher = torch.ones(2, 5), torch.eye(2)
    >>> similarity_preserving_loss(student, teacher)  # 1 - 1/sqrt(2)
    tensor(0.2929)
    >>> similarity_preserving_loss([student, student], [teacher, teacher])
    tensor(0.5858)
    """
    distances = []
    for student_features, teacher_features in matched(student, teacher):
        teacher_matrix = similarity_matrix(teacher_features.detach())
        distances.append(similarity_distance(similarity_matrix(student_features), teacher_matrix))
    return torch.stack(distances).sum()
