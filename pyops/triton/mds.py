"""mds for GPU users without a compiler: products with a squared, doubly centred matrix, which is read once.

A program makes some rows of the product with all columns of a block of them. Columns are centred before and after by
torch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _SPAN, _MOST = 8, 64, 16  # of a matrix; most columns at a time


@triton.jit
def multiply_kernel(
    distances, vectors, out, sizes, ROWS: tl.constexpr, SPAN: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """`distances` is (data, three strides); `vectors` and `out` are [B, points, columns], contiguous."""
    points, columns = sizes
    program = tl.program_id(0).to(tl.int64)
    down, across = tl.cdiv(points, ROWS), tl.cdiv(columns, COLUMNS)
    b = program // down // across
    i = program % down * ROWS + tl.arange(0, ROWS)
    c = program // down % across * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(0, points, SPAN):
        j = tl.cast(step, tl.int64) + tl.arange(0, SPAN)
        place = distances[0] + b * distances[1] + i[:, None] * distances[2] + j[None, :] * distances[3]
        d = tl.load(place, (i[:, None] < points) & (j[None, :] < points), 0).to(tl.float32)
        inside = (j[:, None] < points) & (c[None, :] < columns)
        value = tl.load(vectors + (b * points + j[:, None]) * columns + c[None, :], inside, 0)
        total += tl.sum((d * d)[:, :, None] * value[None, :, :], 1)
    inside = (i[:, None] < points) & (c[None, :] < columns)
    tl.store(out + (b * points + i[:, None]) * columns + c[None, :], total, inside)


def double_centered_matmul(distances: Tensor, vectors: Tensor) -> Tensor:
    batch, points, columns = vectors.shape
    if vectors.numel() == 0:
        return torch.empty_like(vectors, memory_format=torch.contiguous_format)
    inner = _centered(vectors.float()).contiguous()
    product = torch.empty_like(inner)
    most = min(_MOST, triton.next_power_of_2(columns))
    with torch.cuda.device_of(distances):
        multiply_kernel[(batch * triton.cdiv(points, _ROWS) * triton.cdiv(columns, most),)](
            (distances, *distances.stride()),
            inner,
            product,
            (points, columns),
            ROWS=_ROWS,
            SPAN=_SPAN,
            COLUMNS=most,
        )
    return (-0.5 * _centered(product)).to(vectors.dtype).contiguous()


def _centered(t: Tensor) -> Tensor:
    """The mean of what is left is taken off too: sums of large numbers round."""
    t = t - t.mean(1, keepdim=True)
    return t - t.mean(1, keepdim=True)
