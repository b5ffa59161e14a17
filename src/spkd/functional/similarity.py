"""The similarity-preserving loss: a student keeps which images its teacher finds alike.

Source: F. Tung and G. Mori, *Similarity-Preserving Knowledge Distillation*, ICCV 2019 (arXiv 1907.09682).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spkd.errors import InputError
from spkd.functional import closed_form
from spkd.functional.arguments import check_not_empty, check_not_exchanged, check_same_batch, matched
from spkd.functional.numerics import upcast


def similarity_matrix(features: Tensor, batch: Tensor | None = None) -> Tensor:
    r"""Return the row-normalised similarities of the images of a batch (equations 1 to 3 of the paper).

    .. math::
        Q = \mathrm{reshape}(A) \in \mathbb{R}^{b \times d}, \qquad \tilde G = Q Q^\top, \qquad
        G_{i,:} = \tilde G_{i,:} \,/\, \lVert \tilde G_{i,:} \rVert_2

    The normalisation comes *after* the product, and is of each row by itself. G is therefore not symmetric
    in general. It does not change when the features are rotated, permuted (the same for all images) or
    multiplied by one number.

    With ``batch`` only the rows of the images in ``features`` are computed: of a batch that is divided among
    several processes each can compute its part.

    Numerics:
        Autocast is off inside, half precision is brought to float32 first and the product is accumulated in
        float32 (at the precision that ``torch.set_float32_matmul_precision`` allows). Each row of Q is
        divided by its largest absolute value :math:`s_i` before the product, and column j of the product is
        multiplied by :math:`s_j / \max_k s_k` after it. What remains to be undone is one factor per row, and
        that the row normalisation does by itself. So no finite features overflow, and an image whose
        activations are tiny beside those of its batch still gets its row (in float32 down to
        :math:`10^{-38}` of them). The scales are constants for differentiation, which leaves the gradient
        exact because G does not depend on them.

        An image whose features are all zero gives a row and a column of zeros. Its row, at which the
        formula is not differentiable, passes no gradient; the entries of its column do, as the formula
        says, and are finite. NaN or infinity in any image makes every row NaN.

    Without gradients, a matrix of more than 2^24 elements is made in blocks, with no copy of the features.

    Args:
        features: shape ``(b, ...)``: feature maps ``(b, c, h, w)``, tokens ``(b, n, c)``, vectors ``(b, d)``.
        batch: the features of the whole batch, ``(b, ...)``, where ``features`` are those of r of its images,
            ``(r, ...)``; by default they are all of it. Gradients flow to both.

    Returns:
        G, shape ``(b, b)``, float32 (float64 for float64 features), rows of unit L2 length or zero; with
        ``batch`` its rows of those images, ``(r, b)``.

    Raises:
        InputError: when ``features`` or ``batch`` has no batch dimension or no element, or when they differ in
            dtype or in a dimension after the first.

    >>> similarity_matrix(torch.eye(2)).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    >>> similarity_matrix(torch.tensor([[60000.0, 0.0], [0.0, 0.0]], dtype=torch.float16)).tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    >>> similarity_matrix(torch.eye(3)[:1], torch.eye(3)).tolist()
    [[1.0, 0.0, 0.0]]
    """
    return closed_form.matrix(*_own_and_batch("features", features, batch))


def similarity_distance(student_matrix: Tensor, teacher_matrix: Tensor) -> Tensor:
    r"""Return the squared Frobenius distance of two similarity matrices (one term of the paper's equation 4).

    .. math:: \frac{1}{b^2} \lVert G_T - G_S \rVert_F^2

    The division by :math:`b^2` keeps the value from growing with the batch. It lies between 0 and 4/b. Of
    matrices that hold r of the b rows the distance is divided by r b: it is a mean over images.

    Args:
        student_matrix: G of the student, ``(b, b)`` or ``(r, b)``; half precision is brought to float32.
        teacher_matrix: G of the teacher, of the same shape. It is a constant: no gradient flows to it.

    Returns:
        A scalar, float32 or float64.

    Raises:
        InputError: when either is not a matrix, the shapes differ, or student and teacher look exchanged.

    >>> similarity_distance(torch.zeros(2, 2), torch.eye(2))
    tensor(0.5000)
    """
    for name, matrix in (("student_matrix", student_matrix), ("teacher_matrix", teacher_matrix)):
        if matrix.dim() != 2:
            raise InputError(
                f"{name} must have shape (images, batch), got {tuple(matrix.shape)}; "
                "pass features through similarity_matrix first"
            )
    check_same_batch(student_matrix, teacher_matrix)
    _check_same_shape(tuple(student_matrix.shape), teacher_matrix)
    check_not_exchanged(student_matrix, teacher_matrix)
    with torch.autocast(device_type=student_matrix.device.type, enabled=False):
        return (upcast(student_matrix) - upcast(teacher_matrix.detach())).square().mean()


def matrix_preserving_loss(student: Tensor, teacher_matrix: Tensor, batch: Tensor | None = None) -> Tensor:
    r"""Return ``similarity_distance(similarity_matrix(student, batch), teacher_matrix)``, computed as one.

    This is :func:`similarity_preserving_loss` of one pair of layers whose teacher's matrix is known already,
    or of a part of its rows. With r images ``student`` of b in the batch it is the mean over those,

    .. math:: \frac{1}{r} \sum_{i=1}^{r} \frac{1}{b} \lVert G_{T,i} - G_{S,i} \rVert_2^2

    so that the parts of a divided batch, weighted by their numbers of images, average to the whole's value
    and gradient.

    Cost and second derivatives are those of :func:`similarity_preserving_loss`.

    Args:
        student: the student's features ``(b, ...)``, or ``(r, ...)`` with ``batch``.
        teacher_matrix: the teacher's rows of the same images ``(b, b)`` or ``(r, b)``, of any floating-point
            dtype. No gradient flows to it.
        batch: the student's features of the whole batch ``(b, ...)``; by default ``student`` is all of it.
            Gradients flow to both.

    Returns:
        A scalar, float32 (float64 where an argument is float64).

    Raises:
        InputError: when the matrix has another shape, or as :func:`similarity_matrix` does.

    >>> matrix_preserving_loss(torch.ones(2, 5), torch.eye(2))  # 1 - 1/sqrt(2)
    tensor(0.2929)
    """
    own, whole = _own_and_batch("student", student, batch)
    if teacher_matrix.dim() == 2:
        check_same_batch(own, teacher_matrix)
    _check_same_shape((own.shape[0], (own if whole is None else whole).shape[0]), teacher_matrix)
    return closed_form.distance(own, whole, teacher_matrix.detach(), teacher_is_matrix=True)


def similarity_preserving_loss(student: Tensor | Sequence[Tensor], teacher: Tensor | Sequence[Tensor]) -> Tensor:
    r"""Return the similarity-preserving loss (the paper's equation 4).

    .. math:: L_{SP} = \frac{1}{b^2} \sum_{(l, l') \in I} \lVert G_T^{(l)} - G_S^{(l')} \rVert_F^2

    with G as in :func:`similarity_matrix`. It is a **sum** over the pairs of layers, not a mean. In the total
    loss the paper multiplies it by γ = 3000. Only the batch size must agree within a pair: channels, spatial
    sizes and architectures may differ.

    Value and gradient are computed together, with a closed form for the gradient. Above 2^24 elements, a batch
    of 4,096, no matrix is kept whole: memory beyond the features and the student's gradient stays at a
    few blocks of rows. A second derivative (``create_graph=True``) is right, by ordinary operations, and costs
    what those do. Transforms of ``torch.func`` need those from the start: ``similarity_distance`` of two matrices.

    Args:
        student: features of one student layer ``(b, ...)``, or a sequence of them.
        teacher: features of the teacher's layer, or a sequence as long. No gradient flows to it.

    Returns:
        A scalar, float32 (float64 where features are float64). Zero when all similarities agree, at most
        4/b for each pair, not finite when features are not.

    Raises:
        InputError: when the numbers of layers differ or are zero, batches differ, features are empty, or student and
            teacher look exchanged: gradients are on, and only the teacher's features require one.

    >>> student, teacher = torch.ones(2, 5), torch.eye(2)
    >>> similarity_preserving_loss(student, teacher)  # 1 - 1/sqrt(2)
    tensor(0.2929)
    >>> similarity_preserving_loss([student, student], [teacher, teacher])
    tensor(0.5858)
    """
    pairs, distances = matched(student, teacher), []
    check_not_exchanged(*zip(*pairs, strict=True))
    for student_features, teacher_features in pairs:
        own, _ = _own_and_batch("student", student_features, None)
        remembered, _ = _own_and_batch("teacher", teacher_features.detach(), None)
        check_same_batch(own, remembered)
        distances.append(closed_form.distance(own, None, remembered, teacher_is_matrix=False))
    return torch.stack(distances).sum()


def _own_and_batch(name: str, features: Tensor, batch: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return both as rows; no batch where it is the features themselves, which is cheaper."""
    check_not_empty(name, features)
    own = _as_rows(features)
    if batch is None or batch is features:
        return own, None
    check_not_empty("batch", batch)
    if features.shape[1:] != batch.shape[1:] or features.dtype != batch.dtype:
        raise InputError(
            f"{name} and batch must hold images of one shape and dtype, got {tuple(features.shape)} of "
            f"{features.dtype} and {tuple(batch.shape)} of {batch.dtype}; pass outputs of one layer"
        )
    return own, _as_rows(batch)


def _as_rows(features: Tensor) -> Tensor:
    return (features if features.is_floating_point() else upcast(features)).reshape(features.shape[0], -1)


def _check_same_shape(shape: tuple[int, ...], teacher_matrix: Tensor) -> None:
    if tuple(teacher_matrix.shape) != shape:
        raise InputError(
            f"teacher_matrix must have the shape of the student's, {shape}, got {tuple(teacher_matrix.shape)}; "
            "pass the teacher's features of the same images, and of the same whole batch, through "
            "similarity_matrix"
        )
