"""corr1d for GPU users without a compiler: the mathematics of `csrc/corr1d/corr1d.h` in Triton.

Right is averaged for every level first. A program then serves a block of columns of one row at one level, or a block of
channels of a row: every gradient is summed by the program that writes it, so all results are repeatable to the bit. `A`
is the type of arithmetic.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._pairs import arithmetic, pooled, wide
from ._pairs import pool_pairs as pool_pairs
from ._pairs import spread_pairs as spread_pairs
from .lookup import place_of

_COLUMNS, _CHANNELS = 64, 32  # of a program


@triton.jit
def row_of(sizes, program):
    """Image and row of a program; `sizes` is (channels, height, width, taps of the level, channels of the result)."""
    row = tl.cast(program, tl.int64)
    return row // sizes[1], row % sizes[1]


@triton.jit
def start_of(view, b, y):
    """`view` is (data, strides of image, channel, row, column)."""
    return view[0] + b * view[1] + y * view[3]


@triton.jit
def products(
    left,
    right,
    sizes,
    b,
    y,
    x,
    t,
    exists,
    A: tl.constexpr,
    COLUMNS: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK: tl.constexpr = 8,
):
    """Correlations ``[COLUMNS, TAPS]`` of columns x with entries t, 0 outside."""
    total = tl.zeros((COLUMNS, TAPS), A)
    inside = exists[:, None] & (t >= 0) & (t < sizes[3])
    left_start, right_start = start_of(left, b, y), start_of(right, b, y)
    for channel in range(0, sizes[0], BLOCK):
        c = tl.cast(channel, tl.int64) + tl.arange(0, BLOCK)
        known = c < sizes[0]
        value = tl.load(left_start + c[:, None] * left[2] + x * left[4], known[:, None] & exists, 0).to(A)
        source = right_start + c[:, None, None] * right[2] + t * right[4]
        total += tl.sum(value[:, :, None] * tl.load(source, known[:, None, None] & inside, 0).to(A), 0)
    return total


@triton.jit
def look_up_kernel(
    left, right, position, out, sizes, first_channel, radius, inverse, scale,
    A: tl.constexpr, COLUMNS: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    b, y = row_of(sizes, tl.program_id(0))
    x = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    width, pixels = sizes[2], sizes[1] * sizes[2]
    exists = x < width
    i = tl.where(exists, y * width + x, pixels)
    first, fraction, _ = place_of(position, b, i, pixels, width, inverse, radius, False, A)
    for part in range(0, 2 * radius + 1, TAPS):
        d = part + tl.arange(0, TAPS)
        t = first[:, None] + d[None, :]
        before = products(left, right, sizes, b, y, x, t, exists, A, COLUMNS, TAPS)
        after = products(left, right, sizes, b, y, x, t + 1, exists, A, COLUMNS, TAPS)
        value = scale * ((1 - fraction[:, None]) * before + fraction[:, None] * after)
        to = out + (b * sizes[4] + first_channel + d[None, :]) * pixels + i[:, None]
        tl.store(to, value.to(out.dtype.element_ty), exists[:, None] & (d[None, :] <= 2 * radius))


@triton.jit
def slope_kernel(
    left, right, position, grad, out, sizes, first_channel, radius, inverse, scale,
    A: tl.constexpr, COLUMNS: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """Adds to `out` what one level gives to the position."""
    b, y = row_of(sizes, tl.program_id(0))
    x = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    width, pixels = sizes[2], sizes[1] * sizes[2]
    exists = x < width
    i = tl.where(exists, y * width + x, pixels)
    first, _, known = place_of(position, b, i, pixels, width, inverse, radius, False, A)
    total = tl.zeros((COLUMNS,), A)
    for part in range(0, 2 * radius + 1, TAPS):
        d = part + tl.arange(0, TAPS)
        t = first[:, None] + d[None, :]
        before = products(left, right, sizes, b, y, x, t, exists, A, COLUMNS, TAPS)
        after = products(left, right, sizes, b, y, x, t + 1, exists, A, COLUMNS, TAPS)
        source = grad + (b * sizes[4] + first_channel + d[None, :]) * pixels + i[:, None]
        upstream = tl.load(source, exists[:, None] & (d[None, :] <= 2 * radius), 0).to(A)
        total += tl.sum(upstream * (after - before), 1)
    to = out + b * pixels + i
    tl.store(to, tl.load(to, exists, 0) + tl.where(known, total * inverse * scale, 0.0), exists)


@triton.jit
def factor(grad, b, i, j, sizes, first_channel, fraction, radius, exists, A: tl.constexpr):
    """What the correlation with tap j gets."""
    pixels = sizes[1] * sizes[2]
    source = grad + (b * sizes[4] + first_channel + j) * pixels + i
    now = tl.load(source, exists & (j <= 2 * radius), 0).to(A)
    last = tl.load(source - pixels, exists & (j > 0), 0).to(A)
    return (1 - fraction) * now + fraction * last


@triton.jit
def left_kernel(
    right, position, grad, out, sizes, first_channel, radius, inverse, scale,
    A: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Adds to `out [B, C, H, W]`, in the type of arithmetic, what one level gives to left."""
    b, y = row_of(sizes, tl.program_id(0))
    x = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    c = tl.program_id(2).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)[:, None]
    width, pixels = sizes[2], sizes[1] * sizes[2]
    exists = x < width
    i = tl.where(exists, y * width + x, pixels)
    first, fraction, _ = place_of(position, b, i, pixels, width, inverse, radius, False, A)
    total = tl.zeros((CHANNELS, COLUMNS), A)
    row = start_of(right, b, y) + c * right[2]
    for step in range(0, 2 * radius + 2):
        j = tl.cast(step, tl.int64)
        share = factor(grad, b, i, j, sizes, first_channel, fraction, radius, exists, A)
        t = first + j
        inside = exists & (t >= 0) & (t < sizes[3])
        value = tl.load(row + t[None, :] * right[4], inside[None, :] & (c < sizes[0]), 0).to(A)
        total += tl.where(inside, share, 0.0)[None, :] * value
    mask = exists[None, :] & (c < sizes[0])
    to = out + (b * sizes[0] + c) * pixels + i[None, :]
    tl.store(to, tl.load(to, mask, 0) + scale * total, mask)


@triton.jit
def right_kernel(
    left, position, grad, out, sizes, first_channel, radius, inverse, scale,
    A: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    """Writes a block of entries of `out [B, C, H, taps]` of a level: what all columns of left give to them."""
    b, y = row_of(sizes, tl.program_id(0))
    t = tl.program_id(1).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)[None, :]
    c = tl.program_id(2).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)[:, None]
    width, pixels, taps = sizes[2], sizes[1] * sizes[2], sizes[3]
    start = start_of(left, b, y)
    total = tl.zeros((CHANNELS, ENTRIES), A)
    for column in range(0, width, COLUMNS):
        x = tl.cast(column, tl.int64) + tl.arange(0, COLUMNS)
        exists = x < width
        i = tl.where(exists, y * width + x, pixels)
        first, fraction, _ = place_of(position, b, i, pixels, width, inverse, radius, False, A)
        j = t - first[:, None]
        near = exists[:, None] & (j >= 0) & (j < 2 * radius + 2) & (t < taps)
        if (
            tl.max(near.to(tl.int32)) > 0
        ):  # windows are narrow: most blocks of columns see none of these entries
            share = factor(grad, b, i[:, None], j, sizes, first_channel, fraction[:, None], radius, near, A)
            value = tl.load(
                start + c * left[2] + x[None, :] * left[4], exists[None, :] & (c < sizes[0]), 0
            ).to(A)
            total += tl.sum(tl.where(near[None, :, :], value[:, :, None] * share[None, :, :], 0.0), 1)
    to = out + ((b * sizes[0] + c) * sizes[1] + y) * taps + t
    tl.store(to, scale * total, (c < sizes[0]) & (t < taps))


def _view(t: Tensor) -> tuple[Any, ...]:
    return (t, *t.stride())


class _Launches:
    """The levels of right, and what every kernel wants to know of one."""

    def __init__(
        self, left: Tensor, right: Tensor, x: Tensor, radius: int, levels: int, scale: float | None
    ) -> None:
        self.left, self.radius, self.levels = left, radius, levels
        self.position = x.to(wide(left)).contiguous()
        self.scale = left.shape[1] ** -0.5 if scale is None else scale
        self.rights = [right, *pooled(right, levels, wide(right))]
        self.rows = left.shape[0] * left.shape[2]
        self.across = triton.cdiv(left.shape[3], _COLUMNS)
        self.deep = triton.cdiv(left.shape[1], _CHANNELS)
        self.taps = min(16, triton.next_power_of_2(2 * radius + 2))

    def __call__(self, kernel: Any, grid: tuple[int, ...], level: int, *tensors: Any, **options: int) -> None:
        _, channels, height, width = self.left.shape
        window = 2 * self.radius + 1
        sizes = channels, height, width, self.rights[level].shape[3], self.levels * window
        with torch.cuda.device_of(self.left):
            kernel[grid](
                *tensors, sizes, level * window, self.radius, 0.5**level, self.scale,
                A=arithmetic(self.left), num_warps=4, **options,
            )  # fmt: skip


def corr1d_lookup_on_demand(
    left: Tensor, right: Tensor, x: Tensor, radius: int, levels: int, scale: float | None
) -> Tensor:
    batch, _, height, width = left.shape
    out = left.new_empty(batch, levels * (2 * radius + 1), height, width)
    if out.numel() > 0:
        run = _Launches(left, right, x, radius, levels, scale)
        for level, view in enumerate(map(_view, run.rights)):
            run(
                look_up_kernel, (run.rows, run.across), level, _view(left), view, run.position, out,
                COLUMNS=_COLUMNS, TAPS=run.taps,
            )  # fmt: skip
    return out


def corr1d_lookup_on_demand_backward(
    grad: Tensor, left: Tensor, right: Tensor, x: Tensor, radius: int, levels: int, scale: float | None,
    need_features: bool, need_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    run, grad = _Launches(left, right, x, radius, levels, scale), grad.contiguous()
    empty = grad.numel() == 0
    slope = torch.zeros_like(run.position) if need_x else run.position.new_empty(0)
    to_left = (
        torch.zeros_like(left, dtype=wide(left), memory_format=torch.contiguous_format)
        if need_features
        else None
    )
    to_rights = [torch.zeros_like(t, dtype=wide(t)).contiguous() for t in run.rights] if need_features else []
    for level, view in enumerate(map(_view, run.rights)):
        if need_x and not empty:
            run(
                slope_kernel, (run.rows, run.across), level, _view(left), view, run.position, grad, slope,
                COLUMNS=_COLUMNS, TAPS=run.taps,
            )  # fmt: skip
        if need_features and not empty:
            run(
                left_kernel, (run.rows, run.across, run.deep), level, view, run.position, grad, to_left,
                COLUMNS=_COLUMNS, CHANNELS=_CHANNELS,
            )  # fmt: skip
            run(
                right_kernel, (run.rows, triton.cdiv(run.rights[level].shape[3], 32), triton.cdiv(left.shape[1], 8)),
                level, _view(left), run.position, grad, to_rights[level], COLUMNS=16, CHANNELS=8, ENTRIES=32,
            )  # fmt: skip
    if to_left is None:
        return left.new_empty(0), right.new_empty(0), slope.to(x.dtype)
    return to_left.to(left.dtype), spread_pairs(to_rights).to(right.dtype), slope.to(x.dtype)
