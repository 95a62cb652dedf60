"""tpatches for GPU users without a compiler: the chains of `csrc/tpatches/tpatches_args.h` in Triton, in one launch.

A program takes some chains of one sequence and direction through all frames. A patch is found neighbour by neighbour:
the next one is the nearest of the points behind the last, in the order of distance and index, so nothing need be kept.
Tensors are given as (data, strides), or as (None,) where there are none. Distances are sums of rounded products, as
everywhere.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_CHAINS, _POINTS = 8, 1024  # of a program, of a tile

_NO_INDEX = tl.constexpr(0x7FFFFFFF)


@triton.jit
def place_of(points, b, t, i, mask):
    """Coordinates of points i of a frame; NaN where the mask is not set."""
    start = points[0] + b * points[1] + t * points[2] + i * points[3]
    x = tl.load(start, mask, float("nan")).to(tl.float32)
    y = tl.load(start + points[4], mask, float("nan")).to(tl.float32)
    return x, y, tl.load(start + 2 * points[4], mask, float("nan")).to(tl.float32)


@triton.jit
def next_neighbour(points, b, t, count, query, last, last_index, CHAINS: tl.constexpr, POINTS: tl.constexpr):
    """The nearest point behind the last one, for each chain; inf where there is none."""
    x, y, z = query
    nearest = tl.full((CHAINS,), float("inf"), tl.float32)
    index = tl.full((CHAINS,), _NO_INDEX, tl.int32)
    for first in range(0, count, POINTS):
        i = first + tl.arange(0, POINTS)
        px, py, pz = place_of(points, b, t, i.to(tl.int64), i < count)
        dx, dy, dz = x[:, None] - px[None, :], y[:, None] - py[None, :], z[:, None] - pz[None, :]
        distance = dx * dx + dy * dy + dz * dz
        behind = (distance > last[:, None]) | (
            (distance == last[:, None]) & (i[None, :] > last_index[:, None])
        )
        distance = tl.where(behind & (distance < float("inf")), distance, float("inf"))  # NaN too
        least = tl.min(distance, 1)
        at = tl.min(tl.where(distance == least[:, None], i[None, :], _NO_INDEX), 1)
        index = tl.where(least < nearest, at, index)  # earlier tiles have lower indices
        nearest = tl.minimum(nearest, least)
    return nearest, index


@triton.jit
def walk_kernel(
    points, queries, noise, lengths, indices, distances, centers,
    sizes, k, limit, CHAINS: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    frames, size, total, forward = sizes
    ahead = tl.cdiv(forward, CHAINS)
    blocks = ahead + tl.cdiv(total - forward, CHAINS)
    program = tl.program_id(0).to(tl.int64)
    b, block = program // blocks, program % blocks
    back = block >= ahead
    begin = tl.where(back, forward + (block - ahead) * CHAINS, block * CHAINS)
    chain = begin + tl.arange(0, CHAINS)
    exists = chain < tl.where(back, total, forward)
    x = tl.full((CHAINS,), float("nan"), tl.float32)
    y, z = x, x
    for step in range(0, frames):
        t = tl.where(back, frames - 1 - step, step).to(tl.int64)
        count = size
        if lengths[0] is not None:
            given = tl.load(lengths[0] + b * lengths[1] + t * lengths[2])
            count = tl.minimum(tl.maximum(given, 0), size).to(tl.int32)
        if step == 0:
            start = tl.load(queries[0] + b * queries[1] + chain * queries[2], exists, -1)
            x, y, z = place_of(points, b, t, start, (start >= 0) & (start < count))
        row = (b * frames + t) * total + chain
        last = tl.full((CHAINS,), -1, tl.float32)
        last_index = tl.full((CHAINS,), -1, tl.int32)
        nearest = last_index
        for j in range(0, k):
            last, last_index = next_neighbour(
                points, b, t, count, (x, y, z), last, last_index, CHAINS, POINTS
            )
            found = last < float("inf")
            index = tl.where(found, last_index, -1)
            nearest = tl.where(j == 0, index, nearest)
            far = found & (last > limit) & (j > 0)
            target = row * k + j
            tl.store(indices + target, tl.where(far, nearest, index).to(tl.int64), exists)
            tl.store(distances + target, tl.where(far, 0.0, last).to(distances.dtype.element_ty), exists)
        found = exists & (nearest >= 0)
        cx, cy, cz = place_of(points, b, t, nearest.to(tl.int64), found)
        x, y, z = tl.where(found, cx, x), tl.where(found, cy, y), tl.where(found, cz, z)
        tl.store(centers + row * 3, x.to(centers.dtype.element_ty), exists)
        tl.store(centers + row * 3 + 1, y.to(centers.dtype.element_ty), exists)
        tl.store(centers + row * 3 + 2, z.to(centers.dtype.element_ty), exists)
        if noise[0] is not None:
            nx, ny, nz = place_of(noise, b, t, chain, exists)
            x, y, z = x + nx, y + ny, z + nz


def extract_tpatches(
    points: Tensor,
    queries: Tensor,
    k: int,
    forward: int,
    noise: Tensor | None,
    lengths: Tensor | None,
    max_radius: float,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, frames, size, _ = points.shape
    total = queries.shape[1]
    indices = queries.new_empty(batch, frames, total, k)
    distances, centers = points.new_empty(indices.shape), points.new_empty(batch, frames, total, 3)
    if centers.numel() == 0:
        return indices, distances, centers
    with torch.cuda.device_of(points):
        blocks = triton.cdiv(forward, _CHAINS) + triton.cdiv(total - forward, _CHAINS)
        walk_kernel[(batch * blocks,)](
            _given(points), _given(queries), _given(noise), _given(lengths), indices, distances, centers,
            (frames, size, total, forward), k, max_radius * max_radius,
            CHAINS=_CHAINS, POINTS=min(_POINTS, max(16, triton.next_power_of_2(size))), enable_fp_fusion=False,
        )  # fmt: skip
    return indices, distances, centers


def _given(t: Tensor | None) -> tuple:
    return (None,) if t is None else (t, *t.stride())
