"""fps for GPU users without a compiler: the mathematics of `csrc/fps/fps.h` in Triton.

A program serves a cloud. Where the cloud fits into one tile, its distances stay in registers; otherwise in memory, each
of them always in the hands of the thread that wrote it. Nothing is fused, so that all backends find the same ties.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_SINGLE, _TILE = 4096, 2048  # points that stay in registers, and of a tile where they do not


@triton.jit
def squares(points, b, place, inside, center, sizes, TILE: tl.constexpr):
    """Squared distances of a tile of points to the point `center`."""
    data, batch, point, axis = points
    total = tl.zeros((TILE,), tl.float32)
    for d in range(0, sizes[1]):
        x = tl.load(data + b * batch + place * point + d * axis, inside, 0).to(tl.float32)
        difference = x - tl.load(data + b * batch + center * point + d * axis).to(tl.float32)
        total += difference * difference
    return total


@triton.jit
def first_ranks(points, b, place, length, start, sizes, TILE: tl.constexpr):
    """2 for the start, 1 for other candidates, -1 for what is none."""
    data, batch, point, axis = points
    candidate = place < length
    for d in range(0, sizes[1]):
        x = tl.load(data + b * batch + place * point + d * axis, place < length, 0).to(tl.float32)
        candidate = candidate & (x == x)
    return tl.where(candidate, tl.where(place == start, 2.0, 1.0), -1.0)


@triton.jit
def sample_kernel(points, sizes, lengths, starts, scratch, out, SINGLE: tl.constexpr, TILE: tl.constexpr):
    count, _, samples = sizes
    b = tl.program_id(0).to(tl.int64)
    length = tl.cast(count, tl.int64)
    if lengths is not None:
        length = tl.minimum(tl.maximum(tl.load(lengths + b), 0), length)
    start = tl.cast(0, tl.int64)
    if starts is not None:
        start = tl.load(starts + b)
    lane = tl.arange(0, TILE).to(tl.int64)
    nearest = tl.zeros((TILE,), tl.float32)
    best, chosen = tl.cast(-1.0, tl.float32), tl.cast(count, tl.int64)
    for sample in range(0, samples):
        if sample == 0:
            for first in range(0, length, TILE):
                place = first + lane
                ranks = first_ranks(points, b, place, length, start, sizes, TILE)
                nearest = tl.where(ranks < 0, -1.0, float("inf"))
                if not SINGLE:
                    tl.store(scratch + b * count + place, nearest, place < length)
                most = tl.max(ranks, 0)
                at = tl.min(tl.where(ranks == most, place, count), 0)
                chosen = tl.where(most > best, at, chosen)
                best = tl.maximum(most, best)
        else:
            center = tl.where(best < 0, 0, chosen)
            best, chosen = tl.cast(-1.0, tl.float32), tl.cast(count, tl.int64)
            for first in range(0, length, TILE):
                place = first + lane
                if not SINGLE:
                    nearest = tl.load(scratch + b * count + place, place < length, -1.0)
                found = squares(points, b, place, place < length, center, sizes, TILE)
                nearest = tl.where(found < nearest, found, nearest)
                nearest = tl.where(place == center, -1.0, nearest)
                if not SINGLE:
                    tl.store(scratch + b * count + place, nearest, place < length)
                most = tl.max(nearest, 0)
                at = tl.min(tl.where(nearest == most, place, count), 0)
                chosen = tl.where(most > best, at, chosen)
                best = tl.maximum(most, best)
        tl.store(out + b * samples + sample, tl.where(best < 0, -1, chosen))


def farthest_point_sample(points: Tensor, m: int, lengths: Tensor | None, start: Tensor | None) -> Tensor:
    batch, count, dims = points.shape
    out = points.new_empty((batch, m), dtype=torch.int64)
    if out.numel() == 0:
        return out
    single = count <= _SINGLE
    tile = max(16, triton.next_power_of_2(count)) if single else _TILE
    scratch = None if single else points.new_empty((batch, count), dtype=torch.float32)
    lengths, start = (None if t is None else t.contiguous() for t in (lengths, start))
    with torch.cuda.device_of(points):
        sample_kernel[(batch,)](
            (points, *points.stride()), (count, dims, m), lengths, start, scratch, out,
            SINGLE=single, TILE=tile, num_warps=8 if tile > 1024 else 4, enable_fp_fusion=False,
        )  # fmt: skip
    return out
