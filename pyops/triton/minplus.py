"""minplus for GPU users without a compiler: the mathematics of `csrc/minplus/minplus.h` in Triton.

A program makes a tile of a product; in pieces, of which each has a batch, rows and columns, matrices may be parts of
others. A graph is closed block by block by such products, a block itself by squaring. Every gradient is gathered by the
program that writes it, in one order. A matrix is given as (data, three strides).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gather import segments

_SIDE, _DEPTH, _BLOCK = 32, 32, 64  # of a tile; nodes of a block
_COLUMNS = 128  # of a program that adds up rows


@triton.jit
def place(rows, columns, SIDE: tl.constexpr):
    """Matrix, rows and columns of a tile, 64 bits wide."""
    program = tl.program_id(0).to(tl.int64)
    across, down = tl.cdiv(columns, SIDE), tl.cdiv(rows, SIDE)
    row, column = program // across % down * SIDE, program % across * SIDE
    return program // across // down, row + tl.arange(0, SIDE), column + tl.arange(0, SIDE)


@triton.jit
def entries(matrix, b, row, column, mask, other):
    start = matrix[0] + b * matrix[1]
    return tl.load(start + row * matrix[2] + column * matrix[3], mask, other)


@triton.jit
def multiply_kernel(a, b, start, out, sizes, SIDE: tl.constexpr):
    """out = a b, or the least of it and `start`, which may be `out`."""
    rows, inner, columns = sizes
    matrix, m, n = place(rows, columns, SIDE)
    m, n = m[:, None], n[None, :]
    best = tl.full((SIDE, SIDE), float("inf"), tl.float32)
    exists = (m < rows) & (n < columns)
    if start is not None:
        best = entries(start, matrix, m, n, exists, float("inf")).to(tl.float32)
    for i in range(0, inner):
        k = tl.cast(i, tl.int64)
        left = entries(a, matrix, m, k, m < rows, float("inf")).to(tl.float32)
        right = entries(b, matrix, k, n, n < columns, float("inf")).to(tl.float32)
        best = tl.minimum(best, left + right, propagate_nan=tl.PropagateNan.ALL)
    target = out[0] + matrix * out[1] + m * out[2] + n * out[3]
    tl.store(target, best.to(out[0].dtype.element_ty), exists)


@triton.jit
def indices_kernel(a, b, out, sizes, SIDE: tl.constexpr):
    """The lowest k of the least sums, -1 where there is none."""
    rows, inner, columns = sizes
    matrix, m, n = place(rows, columns, SIDE)
    m, n = m[:, None], n[None, :]
    best = tl.full((SIDE, SIDE), float("inf"), tl.float32)
    index = tl.full((SIDE, SIDE), -1, tl.int32)
    for i in range(0, inner):
        k = tl.cast(i, tl.int64)
        left = entries(a, matrix, m, k, m < rows, float("inf")).to(tl.float32)
        right = entries(b, matrix, k, n, n < columns, float("inf")).to(tl.float32)
        total = left + right
        better = (total < best) | ((total != total) & (best == best))
        best = tl.where(better, total, best)
        index = tl.where(better, i, index)
    tl.store(out + (matrix * rows + m) * columns + n, index, (m < rows) & (n < columns))


@triton.jit
def gather_kernel(grad, indices, out, sizes, LINES: tl.constexpr, PLACES: tl.constexpr):
    """out[line, i] = sum over j, in its order, of grad[line, j] where indices[line, j] = i."""
    lines, count, places = sizes
    program = tl.program_id(0).to(tl.int64)
    across, down = tl.cdiv(places, PLACES), tl.cdiv(lines, LINES)
    matrix = program // across // down
    line = program // across % down * LINES + tl.arange(0, LINES)[:, None]
    i = program % across * PLACES + tl.arange(0, PLACES)[None, :]
    total = tl.zeros((LINES, PLACES), tl.float32)
    for step in range(0, count):
        j = tl.cast(step, tl.int64)
        index = entries(indices, matrix, line, j, line < lines, -1)
        value = entries(grad, matrix, line, j, line < lines, 0).to(tl.float32)
        total += tl.where(index == i, value, 0.0)
    target = out[0] + matrix * out[1] + line * out[2] + i * out[3]
    tl.store(target, total.to(out[0].dtype.element_ty), (line < lines) & (i < places))


@triton.jit
def reach_kernel(lengths, indices, rows, out, found, sizes, SIDE: tl.constexpr):
    """The product with a sparse matrix in `out`, or in `found` the lowest j of its least sums, -1 where none is."""
    queries, each, points, columns = sizes
    matrix, m, c = place(queries, columns, SIDE)
    m, c = m[:, None], c[None, :]
    best = tl.full((SIDE, SIDE), float("inf"), tl.float32)
    index = tl.full((SIDE, SIDE), -1, tl.int32)
    for i in range(0, each):
        j = tl.cast(i, tl.int64)
        at = entries(indices, matrix, m, j, m < queries, -1)
        some = (at >= 0) & (at < points)
        length = entries(lengths, matrix, m, j, some, 0).to(tl.float32)
        row = entries(rows, matrix, at, c, some & (c < columns), float("inf")).to(tl.float32)
        total = length + row
        better = (total < best) | ((total != total) & (best == best))
        best = tl.where(better, total, best)
        index = tl.where(better, i, index)
    exists = (m < queries) & (c < columns)
    target = (matrix * queries + m) * columns + c
    if out is not None:
        tl.store(out + target, best.to(out.dtype.element_ty), exists)
    else:
        tl.store(found + target, index, exists)


@triton.jit
def sum_rows_kernel(grad, found, order, starts, out, sizes, COLUMNS: tl.constexpr):
    """A row: the gradients of the entries that lead to it, in their order, where these are the minima."""
    queries, each, columns = sizes
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for k in range(tl.load(starts + row), tl.load(starts + row + 1)):
        entry = tl.load(order + k)
        line = entry // each
        index = tl.load(found + line * columns + c, c < columns, -1)
        value = entries(grad, line // queries, line % queries, c, c < columns, 0).to(tl.float32)
        total += tl.where(index == entry % each, value, 0.0)
    tl.store(out + row * columns + c, total.to(out.dtype.element_ty), c < columns)


def _given(t: Tensor) -> tuple[Tensor, int, int, int]:
    return t, t.stride(0), t.stride(1), t.stride(2)


def _multiply(a: Tensor, b: Tensor, out: Tensor, start: Tensor | None = None) -> None:
    batch, rows, columns = out.shape
    if out.numel() == 0:
        return
    grid = (batch * triton.cdiv(rows, _SIDE) * triton.cdiv(columns, _SIDE),)
    multiply_kernel[grid](
        _given(a),
        _given(b),
        None if start is None else _given(start),
        _given(out),
        (rows, a.shape[2], columns),
        SIDE=_SIDE,
    )


def _gather(grad: Tensor, indices: Tensor, out: Tensor) -> None:
    """For the rows of ``out``; matrices may be transposed ones."""
    if out.numel() == 0:
        return
    batch, lines, places = out.shape
    grid = (batch * triton.cdiv(lines, _SIDE) * triton.cdiv(places, _DEPTH),)
    sizes = (lines, grad.shape[2], places)
    gather_kernel[grid](_given(grad), _given(indices), _given(out), sizes, LINES=_SIDE, PLACES=_DEPTH)


def min_plus_matmul(a: Tensor, b: Tensor) -> Tensor:
    out = a.new_empty(a.shape[0], a.shape[1], b.shape[2])
    with torch.cuda.device_of(a):
        _multiply(a, b, out)
    return out


def min_plus_matmul_backward(
    grad: Tensor, a: Tensor, b: Tensor, need_a: bool, need_b: bool
) -> tuple[Tensor, Tensor]:
    to_a, to_b = (t.new_empty(t.shape if need else 0) for t, need in ((a, need_a), (b, need_b)))
    batch, rows, columns = grad.shape
    indices = a.new_empty(grad.shape, dtype=torch.int32)
    with torch.cuda.device_of(a):
        if indices.numel():
            grid = (batch * triton.cdiv(rows, _SIDE) * triton.cdiv(columns, _SIDE),)
            sizes = (rows, a.shape[2], columns)
            indices_kernel[grid](_given(a), _given(b), indices, sizes, SIDE=_SIDE)
        if need_a:
            _gather(grad, indices, to_a)
        if need_b:
            _gather(grad.mT, indices.mT, to_b.mT)
    return to_a, to_b


def _reach(lengths: Tensor, indices: Tensor, rows: Tensor, out: Tensor | None, found: Tensor | None) -> None:
    (batch, queries, each), (_, points, columns) = lengths.shape, rows.shape
    if batch * queries * columns == 0:
        return
    grid = (batch * triton.cdiv(queries, _SIDE) * triton.cdiv(columns, _SIDE),)
    sizes = (queries, each, points, columns)
    reach_kernel[grid](_given(lengths), _given(indices), _given(rows), out, found, sizes, SIDE=_SIDE)


def min_plus_gather(lengths: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
    out = rows.new_empty(*lengths.shape[:2], rows.shape[2])
    with torch.cuda.device_of(rows):
        _reach(lengths, indices, rows, out, None)
    return out


def min_plus_gather_backward(
    grad: Tensor, lengths: Tensor, indices: Tensor, rows: Tensor, need_lengths: bool, need_rows: bool
) -> tuple[Tensor, Tensor]:
    to_lengths, to_rows = (
        t.new_empty(t.shape if need else 0) for t, need in ((lengths, need_lengths), (rows, need_rows))
    )
    batch, points, columns = rows.shape
    found = rows.new_empty(grad.shape, dtype=torch.int32)
    with torch.cuda.device_of(rows):
        _reach(lengths, indices, rows, None, found)
        if need_lengths:
            _gather(grad, found, to_lengths)
        if to_rows.numel():
            order, starts = segments(indices, points)
            sizes = (grad.shape[1], max(1, lengths.shape[2]), columns)
            grid = (batch * points, triton.cdiv(columns, _COLUMNS))
            sum_rows_kernel[grid](_given(grad), found, order, starts, to_rows, sizes, COLUMNS=_COLUMNS)
    return to_lengths, to_rows


def floyd_warshall(weights: Tensor) -> Tensor:
    if weights.numel() == 0:
        return weights.new_empty(weights.shape)
    nodes = weights.shape[1]
    graphs = weights.float().contiguous().clone()
    graphs.masked_fill_(~(graphs >= 0), torch.nan).diagonal(dim1=1, dim2=2).zero_()
    with torch.cuda.device_of(weights):
        for first in range(0, nodes, _BLOCK):
            some = slice(first, first + _BLOCK)
            rows, columns = graphs[:, some], graphs[:, :, some]
            block = rows[:, :, some].contiguous()
            for _ in range((block.shape[1] - 1).bit_length()):  # paths of twice as many edges each time
                longer = torch.empty_like(block)
                _multiply(block, block, longer)
                block = longer
            if block.shape[1] == nodes:
                return block.to(weights.dtype)
            # What is read must not be what is written: parts that overlap are copied.
            _multiply(block, rows.clone(), rows, rows)
            _multiply(columns.clone(), block, columns, columns)
            _multiply(columns.clone(), rows.clone(), graphs, graphs)
    return graphs.to(weights.dtype)


def floyd_warshall_backward(grad: Tensor, weights: Tensor, distances: Tensor) -> Tensor:
    """Trees of shortest paths grow from all sources at once, a node each at a time, in the order of distances."""
    out = weights.new_empty(weights.shape)
    if weights.numel() == 0:
        return out
    batch, nodes, _ = weights.shape
    edges = weights.float()
    edges = edges.masked_fill(~(edges >= 0), torch.inf)
    of_graph = torch.arange(batch, device=weights.device)[:, None]
    known = torch.full(weights.shape, torch.inf, device=weights.device)
    known.diagonal(dim1=1, dim2=2).zero_()
    done = torch.zeros(weights.shape, dtype=torch.bool, device=weights.device)
    before = torch.full(weights.shape, -1, dtype=torch.int64, device=weights.device)
    order = []
    for _ in range(nodes):
        least, nearest = known.masked_fill(done, torch.inf).min(2)
        nearest = torch.where(least < torch.inf, known.masked_fill(done, torch.inf).argmin(2), -1)
        at = nearest.clamp(min=0)[:, :, None]
        order.append(torch.where(nearest[:, :, None] >= 0, at, -1))
        done.scatter_(2, at, True)  # nothing is nearer once nothing is left
        sums = least[:, :, None] + edges[of_graph, at[:, :, 0]]
        better = (sums < known) & ~done
        known = torch.where(better, sums, known)
        before = torch.where(better, at, before)
    sums = grad.float().clone()
    for at in reversed(order):
        here = at.clamp(min=0)
        parent = before.gather(2, here)
        into = (at >= 0) & (parent >= 0)
        into &= before.gather(2, parent.clamp(min=0)) >= 0  # the source is no end of an edge
        value = torch.where(into, sums.gather(2, here), 0)
        sums.scatter_add_(2, parent.clamp(min=0), value)  # one number a row: nothing meets
    with torch.cuda.device_of(weights):
        _gather(sums.mT, before.to(torch.int32).mT, out.mT)
    return out
