"""knn for GPU users without a compiler: the mathematics of `csrc/knn/knn.h` in Triton.

A program serves one query, or one point of the cloud in the gradient to it. Neighbours are keys of 64 bits, the bits of
the distance above the index. A cloud is given as (data, three strides); lengths as a tensor, or None. Nothing is fused,
so that distances have the bits that every backend gives them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_POINTS, _PAIRS = 256, 32  # of a block

_NOTHING = tl.constexpr(2**63 - 1)
_LARGEST = tl.constexpr(3.4028234663852886e38)


@triton.jit
def count_of(lengths, b, most):
    count = tl.cast(most, tl.int64)
    if lengths is not None:
        count = tl.minimum(tl.maximum(tl.load(lengths + b), 0), count)
    return count


@triton.jit
def search_of(program, query_lengths, lengths, queries, most):
    """Cloud, query, and how many points it is compared with."""
    b, m = program // queries, program % queries
    return b, m, tl.where(m < count_of(query_lengths, b, queries), count_of(lengths, b, most), 0)


@triton.jit
def keys_of(query, points, b, m, j, mask, dims, limit):
    """Of points j as neighbours of query m; nothing where one is too far, no number, or beyond the mask."""
    total = tl.zeros(j.shape, tl.float32)
    for i in range(0, dims):
        d = tl.cast(i, tl.int64)
        own = tl.load(query[0] + b * query[1] + m * query[2] + d * query[3]).to(tl.float32)
        other = tl.load(points[0] + b * points[1] + j * points[2] + d * points[3], mask, 0).to(tl.float32)
        offset = own - other
        total += offset * offset
    bits = total.to(tl.int32, bitcast=True).to(tl.int64)
    return tl.where(mask & (total <= limit) & (total <= _LARGEST), (bits << 32) | j, _NOTHING)


@triton.jit
def store(distances, indices, at, key, mask):
    """A neighbour, or its absence."""
    found = key != _NOTHING
    distance = (key >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    distance = tl.where(found, distance, float("inf"))
    tl.store(distances + at, distance.to(distances.dtype.element_ty), mask)
    tl.store(indices + at, tl.where(found, key & 0xFFFFFFFF, -1), mask)


@triton.jit
def nearest_kernel(
    query, points, query_lengths, lengths, sizes, limit, distances, indices, K: tl.constexpr, POINTS: tl.constexpr
):  # fmt: skip
    queries, most, dims, k = sizes
    program = tl.program_id(0).to(tl.int64)
    b, m, count = search_of(program, query_lengths, lengths, queries, most)
    slot = tl.arange(0, K)
    # Empty places all differ from one another, and from every neighbour.
    best = tl.where(slot < k, _NOTHING - 1 - slot.to(tl.int64), -1)
    farthest = tl.max(best, 0)
    begin = tl.cast(0, tl.int64)
    while begin < count:
        j = begin + tl.arange(0, POINTS)
        keys = keys_of(query, points, b, m, j, j < count, dims, limit)
        least = tl.min(keys, 0)
        while least < farthest:
            best = tl.where(best == farthest, least, best)
            farthest = tl.max(best, 0)
            keys = tl.where(keys == least, _NOTHING, keys)
            least = tl.min(keys, 0)
        begin += POINTS
    best = tl.where(slot < k, best, _NOTHING)
    for i in range(0, k):
        least = tl.min(best, 0)
        found = tl.where(least < _NOTHING - K, least, _NOTHING)
        store(distances, indices, program * k + i, found, True)
        best = tl.where(best == least, _NOTHING, best)


@triton.jit
def ball_kernel(
    query, points, query_lengths, lengths, sizes, limit, distances, indices, K: tl.constexpr, POINTS: tl.constexpr
):  # fmt: skip
    queries, most, dims, k = sizes
    program = tl.program_id(0).to(tl.int64)
    b, m, count = search_of(program, query_lengths, lengths, queries, most)
    begin, found = tl.cast(0, tl.int64), tl.cast(0, tl.int32)
    while (begin < count) & (found < k):
        j = begin + tl.arange(0, POINTS)
        keys = keys_of(query, points, b, m, j, j < count, dims, limit)
        inside = keys != _NOTHING
        place = found + tl.cumsum(inside.to(tl.int32), 0) - 1
        store(distances, indices, program * k + place, keys, inside & (place < k))
        found += tl.sum(inside.to(tl.int32), 0)
        begin += POINTS
    slot = tl.arange(0, K)
    nothing = tl.full((K,), _NOTHING, tl.int64)
    store(distances, indices, program * k + slot, nothing, (slot >= found) & (slot < k))


@triton.jit
def sum_kernel(
    grad, own, other, starts, order, sizes, out, QUERY: tl.constexpr, PAIRS: tl.constexpr, DIMS: tl.constexpr
):  # fmt: skip
    """Gradient to the cloud `own`: the sum of what its pairs with `other` give, in the order of the pairs.

    Of a query they are its row of `order`, the indices; of point i those at places starts[i] to starts[i + 1] of
    `order`.
    """
    count, others, dims, k, pairs = sizes
    program = tl.program_id(0).to(tl.int64)
    b, i = program // count, program % count
    d = tl.arange(0, DIMS)[None, :]
    if QUERY:
        begin = i * k
        end = begin + k
    else:
        begin = tl.load(starts + b * (count + 1) + i)
        end = tl.load(starts + b * (count + 1) + i + 1)
    for first in range(0, dims, DIMS):
        dim = (tl.cast(first, tl.int64) + d).to(tl.int64)
        place = own[0] + b * own[1] + i * own[2] + dim * own[3]
        value = tl.load(place, dim < dims, 0).to(tl.float32)
        total = tl.zeros((1, DIMS), tl.float32)
        at = begin
        while at < end:
            e = (at + tl.arange(0, PAIRS))[:, None]
            exists = e < end
            pair = tl.load(order + b * pairs + e, exists, -1)
            if QUERY:
                partner = pair
                factor = tl.load(grad + b * pairs + e, exists, 0).to(tl.float32)
            else:
                partner = pair // k
                factor = tl.load(grad + b * pairs + pair, exists, 0).to(tl.float32)
            exists = exists & (partner >= 0) & (partner < others)
            source = other[0] + b * other[1] + partner * other[2] + dim * other[3]
            offset = value - tl.load(source, exists & (dim < dims), 0).to(tl.float32)
            total += tl.sum(tl.where(exists, 2 * factor * offset, 0.0), 0)[None, :]
            at += PAIRS
        tl.store(out + (b * count + i) * dims + dim, total.to(out.dtype.element_ty), dim < dims)


def _search(
    kernel: triton.JITFunction,
    query: Tensor,
    points: Tensor,
    k: int,
    query_lengths: Tensor | None,
    lengths: Tensor | None,
    limit: float,
) -> tuple[Tensor, Tensor]:
    batch, queries, dims = query.shape
    distances = query.new_empty(batch, queries, k)
    indices = query.new_empty((batch, queries, k), dtype=torch.int64)
    if distances.numel() == 0:
        return distances, indices
    with torch.cuda.device_of(query):
        kernel[(batch * queries,)](
            (query, *query.stride()),
            (points, *points.stride()),
            None if query_lengths is None else query_lengths.contiguous(),
            None if lengths is None else lengths.contiguous(),
            (queries, points.shape[1], dims, k),
            min(limit, _LARGEST.value),
            distances,
            indices,
            K=triton.next_power_of_2(k),
            POINTS=_POINTS,
            enable_fp_fusion=False,
        )
    return distances, indices


def knn(
    query: Tensor,
    points: Tensor,
    k: int,
    query_lengths: Tensor | None,
    lengths: Tensor | None,
    limit: float,
) -> tuple[Tensor, Tensor]:
    return _search(nearest_kernel, query, points, k, query_lengths, lengths, limit)


def ball_query(
    query: Tensor,
    points: Tensor,
    limit: float,
    k: int,
    query_lengths: Tensor | None,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return _search(ball_kernel, query, points, k, query_lengths, lengths, limit)


def knn_backward(
    grad: Tensor, query: Tensor, points: Tensor, indices: Tensor, need_query: bool, need_points: bool
) -> tuple[Tensor, Tensor]:
    (batch, queries, dims), count, k = query.shape, points.shape[1], indices.shape[2]
    to_query = query.new_empty(query.shape if need_query else 0)
    to_points = points.new_empty(points.shape if need_points else 0)
    grad, indices = grad.contiguous(), indices.contiguous()
    clouds = (query, *query.stride()), (points, *points.stride())
    options = {"PAIRS": _PAIRS, "DIMS": min(32, triton.next_power_of_2(dims))}
    with torch.cuda.device_of(query):
        if to_query.numel():
            sizes = (queries, count, dims, k, queries * k)
            sum_kernel[(batch * queries,)](
                grad, *clouds, None, indices, sizes, to_query, QUERY=True, **options
            )
        if to_points.numel():
            targets, order = indices.flatten(1).sort(dim=1, stable=True)
            edges = torch.arange(count + 1, device=query.device).expand(batch, -1).contiguous()
            starts = torch.searchsorted(targets, edges)
            sizes = (count, queries, dims, k, queries * k)
            sum_kernel[(batch * count,)](
                grad, *reversed(clouds), starts, order, sizes, to_points, QUERY=False, **options
            )
    return to_query, to_points
