"""gather for GPU users without a compiler: rows of point clouds in Triton.

A program serves a few rows and a block of channels. What scatters is turned round: entries are sorted by the point they
come from, in a stable order, and each point sums its own one after the other.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _CHANNELS = 16, 128  # of a program, at most


@triton.jit
def place_rows(rows, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    return row, channel, (row < rows)[:, None] & (channel < channels)[None, :]


@triton.jit
def gather_kernel(values, places, sizes, out, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """`values` is (data, three strides), `sizes` (rows, queries of a cloud, points, channels)."""
    row, channel, mask = place_rows(sizes[0], sizes[3], ROWS, CHANNELS)
    place = tl.load(places + row, row < sizes[0], -1)
    start = row // sizes[1] * values[1] + place * values[2]
    exists = ((place >= 0) & (place < sizes[2]))[:, None] & mask
    found = tl.load(values[0] + start[:, None] + (channel * values[3])[None, :], exists, 0)
    tl.store(out + row[:, None] * sizes[3] + channel[None, :], found, mask)


@triton.jit
def blend_kernel(values, places, weights, sizes, each, out, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    row, channel, mask = place_rows(sizes[0], sizes[3], ROWS, CHANNELS)
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    for k in range(0, each):
        place = tl.load(places + row * each + k, row < sizes[0], -1)
        some = (place >= 0) & (place < sizes[2])
        weight = tl.load(weights + row * each + k, some, 0)
        start = row // sizes[1] * values[1] + place * values[2]
        found = tl.load(values[0] + start[:, None] + (channel * values[3])[None, :], some[:, None] & mask, 0)
        total += weight[:, None] * found.to(tl.float32)
    tl.store(out + row[:, None] * sizes[3] + channel[None, :], total.to(out.dtype.element_ty), mask)


@triton.jit
def sum_kernel(grad, weights, order, starts, sizes, each, out, CHANNELS: tl.constexpr):
    """A point: the rows of the gradient from which its entries come, in their order."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    queries, channels = sizes
    mask = channel < channels
    total = tl.zeros((CHANNELS,), tl.float32)
    for i in range(tl.load(starts + row), tl.load(starts + row + 1)):
        entry = tl.load(order + i)
        query = entry // each
        start = query // queries * grad[1] + query % queries * grad[2]
        found = tl.load(grad[0] + start + channel * grad[3], mask, 0).to(tl.float32)
        if weights is not None:
            found *= tl.load(weights + entry)
        total += found
    tl.store(out + row * channels + channel, total.to(out.dtype.element_ty), mask)


@triton.jit
def weigh_kernel(grad, values, places, sizes, each, out, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    entry = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = entry < sizes[0] * each
    place = tl.load(places + entry, inside, -1)
    row = entry // each
    some = (place >= 0) & (place < sizes[2])
    b = row // sizes[1]
    upstream, start = b * grad[1] + row % sizes[1] * grad[2], b * values[1] + place * values[2]
    total = tl.zeros((ROWS,), tl.float32)
    for first in range(0, sizes[3], CHANNELS):
        channel = first + tl.arange(0, CHANNELS).to(tl.int64)
        mask = some[:, None] & (channel < sizes[3])[None, :]
        a = tl.load(grad[0] + upstream[:, None] + (channel * grad[3])[None, :], mask, 0).to(tl.float32)
        v = tl.load(values[0] + start[:, None] + (channel * values[3])[None, :], mask, 0).to(tl.float32)
        total += tl.sum(a * v, 1)
    tl.store(out + entry, total, inside)


def _view(t: Tensor) -> tuple:
    return (t, *t.stride())


def _blocks(channels: int) -> int:
    return min(_CHANNELS, triton.next_power_of_2(channels))


def gather_points(values: Tensor, indices: Tensor) -> Tensor:
    (batch, points, channels), queries = values.shape, indices.shape[1]
    out = values.new_empty((batch, queries, channels))
    if out.numel() == 0:
        return out
    rows, block = batch * queries, _blocks(channels)
    with torch.cuda.device_of(values):
        gather_kernel[(triton.cdiv(rows, _ROWS), triton.cdiv(channels, block))](
            _view(values), indices.contiguous(), (rows, queries, points, channels), out, _ROWS, block
        )
    return out


def blend_points(values: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    (batch, points, channels), (queries, each) = values.shape, indices.shape[1:]
    out = values.new_empty((batch, queries, channels))
    if out.numel() == 0:
        return out
    rows, block = batch * queries, _blocks(channels)
    with torch.cuda.device_of(values):
        blend_kernel[(triton.cdiv(rows, _ROWS), triton.cdiv(channels, block))](
            _view(values), indices.contiguous(), weights.float().contiguous(),
            (rows, queries, points, channels), each, out, _ROWS, block,
        )  # fmt: skip
    return out


def segments(indices: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """Entries of all clouds sorted by the point that each names, in a stable order, and where those of each begin."""
    flat = indices.flatten(1)
    batch = len(flat)
    first = torch.arange(batch, device=flat.device)[:, None] * points
    missing = (flat < 0) | (flat >= points)
    keys, order = (flat + first).masked_fill(missing, batch * points).flatten().sort(stable=True)
    return order, torch.searchsorted(keys, torch.arange(batch * points + 1, device=keys.device))


def _scatter(grad: Tensor, indices: Tensor, weights: Tensor | None, each: int, points: int) -> Tensor:
    batch, queries, channels = grad.shape
    out = grad.new_empty((batch, points, channels))
    if out.numel() == 0:
        return out
    order, starts = segments(indices, points)
    block = _blocks(channels)
    with torch.cuda.device_of(grad):
        sum_kernel[(batch * points, triton.cdiv(channels, block))](
            _view(grad), weights, order, starts, (queries, channels), each, out, block
        )
    return out


def gather_points_backward(grad: Tensor, indices: Tensor, points: int) -> Tensor:
    return _scatter(grad, indices, None, 1, points)


def blend_points_backward(
    grad: Tensor, values: Tensor, indices: Tensor, weights: Tensor, need_values: bool, need_weights: bool
) -> tuple[Tensor, Tensor]:
    (batch, points, channels), (queries, each) = values.shape, indices.shape[1:]
    grad_values, grad_weights = values.new_empty(0), weights.new_empty(0)
    if need_values:
        grad_values = _scatter(grad, indices, weights.float().contiguous(), max(each, 1), points)
    if need_weights:
        wide = weights.new_empty(weights.shape, dtype=torch.float32)
        if wide.numel():
            block = _blocks(max(channels, 1))
            with torch.cuda.device_of(values):
                weigh_kernel[(triton.cdiv(wide.numel(), _ROWS),)](
                    _view(grad), _view(values), indices.contiguous(),
                    (batch * queries, queries, points, channels), each, wide, _ROWS, block,
                )  # fmt: skip
        grad_weights = wide.to(weights.dtype)
    return grad_values, grad_weights
