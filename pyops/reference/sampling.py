"""Sampling on separable grids in plain PyTorch. See :mod:`pyops.ops.sampling` for shapes and conventions."""

from __future__ import annotations

import torch
from torch import Tensor

from ._pixels import arithmetic_dtype, decode, encode

_FAR = 2.0**40  # pixels; a coordinate beyond is as good as infinite, and the square of this is still a float


def interval_vertices(logits: Tensor) -> Tensor:
    dtype = arithmetic_dtype(logits)
    inner = logits.to(dtype).softmax(-1).cumsum(-1)[..., :-1]
    ends = inner.new_zeros(1).expand(*logits.shape[:-1], 1)
    # A logit that is not finite leaves no vertex unharmed.
    nan = (0 * logits.to(dtype).detach()).sum(-1, keepdim=True)
    return (torch.cat([ends, inner.clamp(0, 1), ends + 1], -1) + nan).to(logits.dtype)


def inverse_vertices(vertices: Tensor, size: int, *, align_corners: bool = False) -> Tensor:
    count, dtype = vertices.shape[-1], arithmetic_dtype(vertices)
    knots = vertices.to(dtype)
    index = torch.arange(size, dtype=dtype, device=vertices.device)
    place = 2 * index / max(size - 1, 1) - 1 if align_corners else (2 * index + 1) / size - 1
    place = place.expand(*vertices.shape[:-1], size).contiguous()
    cell = torch.searchsorted(knots.detach()[..., 1:-1].contiguous(), place, right=True)
    lower, upper = knots.gather(-1, cell), knots.gather(-1, cell + 1)
    position = cell + (place - lower) / (upper - lower)
    back = 2 * position / (count - 1) - 1 if align_corners else (2 * position + 1) / count - 1
    return back.to(vertices.dtype)


def _pixel_positions(x: Tensor, size: int, align_corners: bool) -> Tensor:
    """From [-1, 1] to pixels, 0 being the centre of the first."""
    position = (x + 1) / 2 * (size - 1) if align_corners else ((x + 1) * size - 1) / 2
    return position.clamp(-_FAR, _FAR)


def _point_taps(position: Tensor, size: int, border: bool) -> list[tuple[Tensor, Tensor, Tensor]]:
    """``(pixel, whether there is one, weight)``, each ``[B, K]``: the two pixels around each position."""
    if border:  # like F.grid_sample, without a slope from the outermost pixels on
        inside = (position > 0) & (position < size - 1)
        position = torch.where(inside, position, position.detach().clamp(0, size - 1))
    position = position.clamp(-2, size + 1)
    below = position.detach().floor()
    fraction = position - below
    taps = []
    for pixel, weight in ((below, 1 - fraction), (below + 1, fraction)):
        exists = ~((pixel < 0) | (pixel >= size))  # NaN exists, and makes its sample NaN
        taps.append((pixel.nan_to_num(0).clamp(0, size - 1).to(torch.int64), exists, weight))
    return taps


def _sample_points(value: Tensor, x: Tensor, y: Tensor, border: bool) -> Tensor:
    batch, channels, height, width = value.shape
    rows, out = [], []
    for pixel, exists, weight in _point_taps(y, height, border):
        taken = value.gather(2, pixel[:, None, :, None].expand(batch, channels, -1, width))
        rows.append(torch.where(exists[:, None, :, None], taken, 0) * weight[:, None, :, None])
    line = rows[0] + rows[1]
    for pixel, exists, weight in _point_taps(x, width, border):
        taken = line.gather(3, pixel[:, None, None, :].expand(batch, channels, y.shape[1], -1))
        out.append(torch.where(exists[:, None, None, :], taken, 0) * weight[:, None, None, :])
    return out[0] + out[1]


def _cell_weights(position: Tensor, size: int, border: bool) -> tuple[Tensor, Tensor]:
    """The mean of a line over the cell of each position as weights ``[B, K, size]``, and which pixels it looks at.

    A cell reaches from midpoint to midpoint of the positions, at the ends from or to the position itself.
    """
    middle = (position[:, 1:] + position[:, :-1]) / 2
    edge = torch.cat([position[:, :1], middle, position[:, -1:]], 1)[..., None]
    begin, end = torch.minimum(edge[:, :-1], edge[:, 1:]), torch.maximum(edge[:, :-1], edge[:, 1:])
    middle, empty = (begin + end) / 2, begin == end
    # From pixel j to pixel j + 1 the line is straight, so its mean over a part is its value in the middle of the part.
    j = torch.arange(-1, size, dtype=position.dtype, device=position.device)
    first, last = j == -1, j == size - 1
    left, right = (
        (j.masked_fill(first, -torch.inf), (j + 1).masked_fill(last, torch.inf)) if border else (j, j + 1)
    )
    low = torch.minimum(torch.maximum(begin, left), right)
    high = torch.minimum(torch.maximum(end, left), right)
    inside = ((middle >= left) & (middle < right)).to(position.dtype)
    share = torch.where(empty, inside, (high - low) / torch.where(empty, 1, end - begin))
    place = torch.where(empty, middle, (low + high) / 2) - j
    if border:  # everything beyond an outermost pixel has its value
        place = place.masked_fill(first, 1).masked_fill(last, 0)
    weights = (share * (1 - place))[..., 1:] + (share * place)[..., :-1]
    looked = begin.clamp(0, size - 1), end.clamp(0, size - 1)
    seen = (j[1:] >= looked[0].floor()) & (j[1:] <= looked[1].floor() + 1)
    return weights, seen


def _sample_cells(value: Tensor, x: Tensor, y: Tensor, border: bool) -> Tensor:
    wx, seen_x = _cell_weights(x, value.shape[3], border)
    wy, seen_y = _cell_weights(y, value.shape[2], border)
    finite = value.isfinite()
    out = wy[:, None] @ torch.where(finite, value, 0) @ wx[:, None].mT
    hit = seen_y[:, None].to(x) @ (~finite).to(x) @ seen_x[:, None].to(x).mT
    return out.masked_fill(hit > 0, torch.nan)


def separable_grid_sample(
    image: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    align_corners: bool = False,
    padding_mode: str = "zeros",
    antialias: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The definition of :func:`pyops.separable_grid_sample`: what each sample takes of which pixels, axis by axis."""
    arithmetic = arithmetic_dtype(image, x, y)
    column = _pixel_positions(x.to(arithmetic), image.shape[3], align_corners)
    row = _pixel_positions(y.to(arithmetic), image.shape[2], align_corners)
    sample = _sample_cells if antialias else _sample_points
    return encode(
        sample(decode(image, arithmetic), column, row, padding_mode == "border"), dtype or image.dtype
    )


def adaptive_grid_sample(
    image: Tensor,
    x_logits: Tensor,
    y_logits: Tensor,
    *,
    align_corners: bool = False,
    padding_mode: str = "zeros",
    antialias: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The definition of :func:`pyops.adaptive_grid_sample`: vertices from logits, then a separable grid."""
    arithmetic = arithmetic_dtype(image, x_logits, y_logits)
    x, y = (2 * interval_vertices(logits.to(arithmetic)) - 1 for logits in (x_logits, y_logits))
    return separable_grid_sample(
        image, x, y, align_corners=align_corners, padding_mode=padding_mode, antialias=antialias, dtype=dtype
    )
