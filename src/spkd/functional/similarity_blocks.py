"""Similarity matrices, their distance and its gradient without autograd, in blocks of rows where they are large."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from spkd.functional.numerics import peaks, upcast

# A matrix of up to this many elements is made in one piece: 64 MiB of float32, or a batch of 4,096 images.
ONE_PIECE = 2**24
# The elements of a tile beyond that, and the least number of its rows: thinner products are slow.
TILE = 2**22
LEAST_ROWS = 128


def row_scales(features: Tensor) -> Tensor:
    """Return what the rows are divided by, ``(n, 1)``: their largest absolute values, of all rows for one of zeros.

    Any number above zero would do for a row of zeros; with a small one its gradient would be a small number's
    quotient.
    """
    peak = upcast(peaks(features))
    return torch.where(peak == 0, peak.amax().clamp_min(torch.finfo(peak.dtype).tiny), peak)


def plain_matrix(own: Tensor, batch: Tensor | None) -> Tensor:
    """Return the rows of G of the images ``own``, without gradient.

    Args:
        own: ``(r, d)``, floating point.
        batch: ``(b, d)``, the images that the columns stand for; ``None`` for those of ``own``.

    Returns:
        ``(r, b)``, float32 or float64.
    """
    rows, columns = _rows_and_columns(own, batch)
    if columns.is_whole:
        return _unit_similarities(rows.tile(slice(None)), columns)[0]
    matrix = columns.scales.new_empty(rows.count, columns.count)
    for block in _slices(rows.count, columns.block):
        matrix[block] = _unit_similarities(rows.tile(block), columns)[0]
    return matrix


def matrix_rows(features: Tensor) -> Callable[[slice], Tensor]:
    """Return a function that gives the rows of ``plain_matrix(features, None)`` for a slice of the images."""
    rows, columns = _rows_and_columns(features, None)
    return lambda images: _unit_similarities(rows.tile(images), columns)[0]


def plain_distance(own: Tensor, batch: Tensor | None, teacher_rows: Callable[[slice], Tensor]) -> Tensor:
    r"""Return the mean over the images ``own`` of :math:`\lVert G_{S,i} - G_{T,i} \rVert_2^2 / b`.

    Args:
        own: the student's features, as for :func:`plain_matrix`.
        batch: those of the whole batch, or ``None``.
        teacher_rows: gives the teacher's matrix for a slice of the images ``own``.
    """
    rows, columns = _rows_and_columns(own, batch)
    sums = [
        _sum_of_squares(_differences(rows.tile(block), columns, teacher_rows(block)))
        for block in _slices(rows.count, columns.block)
    ]
    return torch.stack(sums).sum() / (rows.count * columns.count)


def distance_and_gradients(
    own: Tensor, batch: Tensor | None, teacher_rows: Callable[[slice], Tensor]
) -> tuple[Tensor, Tensor, Tensor | None]:
    r"""Return :func:`plain_distance` and its gradients with respect to ``own`` and, unless ``None``, ``batch``.

    With :math:`\Delta = G_S - G_T`, and :math:`\tilde G` the products before they are normalised,

    .. math::
        E_i = \frac{\partial L}{\partial \tilde G_i} = \frac{2}{r b} \cdot
        \frac{\Delta_i - (\Delta_i \cdot G_i)\, G_i}{\lVert \tilde G_i \rVert_2}, \qquad
        \frac{\partial L}{\partial Q_\mathrm{own}} = E\, Q_\mathrm{batch}, \qquad
        \frac{\partial L}{\partial Q_\mathrm{batch}} = E^\top Q_\mathrm{own}

    and :math:`(E + E^\top)\, Q` where the two are one. A row of zeros has :math:`E_i = 0`.

    Returns:
        the distance, and gradients of the shapes of the features, float32 or float64.
    """
    rows, columns = _rows_and_columns(own, batch)
    weight = 1 / (rows.count * columns.count)
    if rows is columns and columns.is_whole:
        tile = rows.tile(slice(None))
        squares, slopes = _squares_and_slopes(tile, columns, teacher_rows(slice(None)))
        slopes.mul_(2 * weight * columns.factors)
        return weight * squares, (slopes + slopes.T).div_(rows.scales) @ tile, None
    gradient = rows.zeros()
    batch_gradient = gradient if rows is columns else columns.zeros()
    sums = []
    for block in _slices(rows.count, columns.block):
        tile = rows.tile(block)
        squares, slopes = _squares_and_slopes(tile, columns, teacher_rows(block))
        sums.append(squares)
        slopes.mul_(2 * weight * columns.factors)
        for part in _slices(columns.count, columns.block):
            gradient[block].addmm_(slopes[:, part], columns.column_tile(part))
            batch_gradient[part].addmm_(slopes[:, part].T, tile)
        # Not beside those of the next block.
        del slopes
    value = weight * torch.stack(sums).sum()
    gradient.div_(rows.scales)
    return value, gradient, None if rows is columns else batch_gradient.div_(columns.scales)


class _Rows:
    """Features ``(n, d)``, each row divided by its largest absolute value when a tile of them is asked for.

    Tiles and products lie in rooms that are used again for the next ones: of blocks that are allocated and freed in
    turn a processor's memory keeps pieces, several times as much as is in use.

    Attributes:
        scales: the divisors, see :func:`row_scales`.
        factors: ``(1, n)``, what undoes the division in the columns of a product, up to one number for all.
        block: how many rows a tile has.
        is_whole: whether one tile holds all rows.
    """

    def __init__(self, features: Tensor, block: int) -> None:
        self.features = features
        self.count = features.shape[0]
        self.block = block
        self.is_whole = block >= self.count
        self.scales = row_scales(features)
        self.factors = (self.scales / self.scales.amax()).T
        self._whole = features / self.scales if self.is_whole else None
        self._rooms: dict[str, Tensor] = {}

    def tile(self, rows: slice) -> Tensor:
        """Return rows, which are good until the next ones are asked for."""
        return self._tile("rows", rows)

    def column_tile(self, rows: slice) -> Tensor:
        """Return rows that stand for columns, beside those of :meth:`tile`; good until the next ones."""
        return self._tile("columns", rows)

    def products(self, rows: int) -> Tensor:
        """Return room for ``rows`` rows of products with all of these."""
        return self._room("products", rows, self.count)

    def zeros(self) -> Tensor:
        return self.scales.new_zeros(self.features.shape)

    def _tile(self, name: str, rows: slice) -> Tensor:
        if self._whole is not None:
            return self._whole[rows]
        features = self.features[rows]
        return self._room(name, *features.shape).copy_(features).div_(self.scales[rows])

    def _room(self, name: str, rows: int, width: int) -> Tensor:
        room = self._rooms.get(name)
        if room is None or len(room) < rows:
            room = self._rooms[name] = self.scales.new_empty(rows, width)
        return room[:rows]


def _rows_and_columns(own: Tensor, batch: Tensor | None) -> tuple[_Rows, _Rows]:
    """Return the rows and the columns of the matrix, the same object where ``batch`` is ``None``."""
    features = own if batch is None else batch
    count, width = features.shape
    largest = max(count, own.shape[0])
    block = largest if own.shape[0] * count <= ONE_PIECE else max(LEAST_ROWS, TILE // max(count, width))
    columns = _Rows(features, block)
    return (columns if batch is None else _Rows(own, block)), columns


def _differences(tile: Tensor, columns: _Rows, teacher_rows: Tensor) -> Tensor:
    return _unit_similarities(tile, columns)[0] - teacher_rows


def _squares_and_slopes(tile: Tensor, columns: _Rows, teacher_rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of squared differences, and half its derivative with respect to the scaled products."""
    similarities, lengths = _unit_similarities(tile, columns)
    difference = similarities - teacher_rows
    squares = _sum_of_squares(difference)
    slopes = difference.to(similarities.dtype)
    along = torch.linalg.vecdot(slopes, similarities).unsqueeze(1)
    slopes = slopes.addcmul_(along, similarities, value=-1)
    return squares, slopes.mul_(torch.where(lengths == 0, lengths, lengths.reciprocal()))


def _sum_of_squares(difference: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(difference, dim=1)
    return lengths.square().sum()


def _unit_similarities(tile: Tensor, columns: _Rows) -> tuple[Tensor, Tensor]:
    """Return rows of G, good until the next ones, and, ``(rows, 1)``, what the scaled products were divided by."""
    if columns.is_whole:
        products = tile @ columns.tile(slice(None)).T
    else:
        products = columns.products(tile.shape[0])
        for part in _slices(columns.count, columns.block):
            products[:, part] = tile @ columns.column_tile(part).T
    products.mul_(columns.factors)
    tiny = torch.finfo(products.dtype).tiny
    peak = peaks(products).clamp_min_(tiny)
    norm = torch.linalg.vector_norm(products.div_(peak), dim=1, keepdim=True)
    return products.div_(norm.clamp_min(tiny)), peak * norm


def _slices(count: int, block: int) -> Iterator[slice]:
    for start in range(0, count, block):
        yield slice(start, min(start + block, count))
