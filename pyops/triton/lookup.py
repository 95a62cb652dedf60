"""lookup for GPU users without a compiler: the mathematics of `csrc/lookup/lookup.h` in Triton.

A launch serves one kind of lines of one level; a program a block of pixels of one image on the lines of one channel. No
two pixels share a line, so all results are repeatable to the bit. `A` is the type of arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_PIXELS = 128

_FAR = tl.constexpr(1073741824.0)  # taps; nothing is there


class Lines(NamedTuple):
    """The costs of one level: `channels` lines of `taps` for every pixel. Strides in elements."""

    costs: Tensor
    batch: int
    channel: int
    pixel: int
    tap: int
    channels: int
    taps: int
    inverse: float  # taps a unit of position
    mirrored: bool  # the place is column - position
    out: int  # the first of the channels of the result


@triton.jit
def place_of(position, b, i, pixels, width, inverse, radius, MIRRORED: tl.constexpr, A: tl.constexpr):
    """The first tap of each pixel and the fraction; NaN has a tap, and its fraction is NaN."""
    p = tl.load(position + b * pixels + i, i < pixels, 0).to(A)
    if MIRRORED:
        p = (i % width).to(A) - p
    known = p == p
    p = tl.where(known, tl.minimum(tl.maximum(p * inverse, -_FAR), _FAR), 0.0)
    below = tl.floor(p)
    return below.to(tl.int64) - radius, tl.where(known, p - below, float("nan")), known


@triton.jit
def indices():
    """Channel, image and block of a program; 64 bits wide."""
    return tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64), tl.program_id(0).to(tl.int64)


@triton.jit
def tap(line, t, taps, stride, mask, A: tl.constexpr):
    return tl.load(line + t * stride, mask & (t >= 0) & (t < taps), 0).to(A)


@triton.jit
def look_up_kernel(
    lines, position, out, pixels, width, planes, radius, inverse,
    MIRRORED: tl.constexpr, A: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """`lines` is (data, strides of image, channel, pixel, tap, then taps, first channel of the result)."""
    c, b, block = indices()
    i = block * PIXELS + tl.arange(0, PIXELS)
    exists, window = i < pixels, 2 * radius + 1
    first, fraction, _ = place_of(position, b, i, pixels, width, inverse, radius, MIRRORED, A)
    line = lines[0] + b * lines[1] + c * lines[2] + i * lines[3]
    target = out + (b * planes + lines[6] + c * window) * pixels + i
    before = tap(line, first, lines[5], lines[4], exists, A)
    for d in range(0, window):
        after = tap(line, first + d + 1, lines[5], lines[4], exists, A)
        value = (1 - fraction) * before + fraction * after
        tl.store(target + d * pixels, value.to(out.dtype.element_ty), exists)
        before = after


@triton.jit
def spread_kernel(
    lines, position, grad, pixels, width, planes, radius, inverse,
    MIRRORED: tl.constexpr, A: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Adds to lines."""
    c, b, block = indices()
    i = block * PIXELS + tl.arange(0, PIXELS)
    exists, window = i < pixels, 2 * radius + 1
    first, fraction, _ = place_of(position, b, i, pixels, width, inverse, radius, MIRRORED, A)
    line = lines[0] + b * lines[1] + c * lines[2] + i * lines[3]
    source = grad + (b * planes + lines[6] + c * window) * pixels + i
    last = tl.zeros((PIXELS,), A)
    for j in range(0, window + 1):
        now = tl.load(source + j * pixels, exists & (j < window), 0).to(A)
        t = first + j
        inside = exists & (t >= 0) & (t < lines[5])
        to = line + t * lines[4]
        value = tl.load(to, inside, 0).to(A) + ((1 - fraction) * now + fraction * last)
        tl.store(to, value.to(lines[0].dtype.element_ty), inside)
        last = now


@triton.jit
def slope_kernel(
    lines, position, grad, out, channels, pixels, width, planes, radius, inverse,
    MIRRORED: tl.constexpr, A: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Adds to `out` what one kind of lines gives to the position; the second axis of programs has one."""
    _, b, block = indices()
    i = block * PIXELS + tl.arange(0, PIXELS)
    exists, window = i < pixels, 2 * radius + 1
    first, _, known = place_of(position, b, i, pixels, width, inverse, radius, MIRRORED, A)
    total = tl.zeros((PIXELS,), A)
    for channel in range(0, channels):
        c = tl.cast(channel, tl.int64)
        line = lines[0] + b * lines[1] + c * lines[2] + i * lines[3]
        source = grad + (b * planes + lines[6] + c * window) * pixels + i
        before = tap(line, first, lines[5], lines[4], exists, A)
        for d in range(0, window):
            after = tap(line, first + d + 1, lines[5], lines[4], exists, A)
            total += tl.load(source + d * pixels, exists, 0).to(A) * (after - before)
            before = after
    total = tl.where(known, total * (-inverse if MIRRORED else inverse), 0.0)
    to = out + b * pixels + i
    tl.store(to, tl.load(to, exists, 0) + total, exists)


def _all_lines(volumes: Sequence[Tensor], pyramid: Sequence[Tensor], radius: int) -> Iterator[Lines]:
    out, window = 0, 2 * radius + 1
    for level, correlations in enumerate(pyramid):
        inverse = 0.5**level
        if volumes:
            _, channels, taps, height, width = volumes[level].shape
            n = height * width
            yield Lines(
                volumes[level], channels * taps * n, taps * n, 1, n, channels, taps, inverse, False, out
            )
            out += channels * window
        _, height, width, taps = correlations.shape
        yield Lines(correlations, height * width * taps, 0, taps, 1, 1, taps, inverse, bool(volumes), out)
        out += window


def _planes(volumes: Sequence[Tensor], pyramid: Sequence[Tensor], radius: int) -> int:
    return sum(lines.channels for lines in _all_lines(volumes, pyramid, radius)) * (2 * radius + 1)


def _launch(
    kernel: Any,
    lines: Lines,
    position: Tensor,
    other: Sequence[Any],
    planes: int,
    radius: int,
    channels: int,
) -> None:
    batch, height, width = position.shape
    double = lines.costs.dtype == torch.float64
    options = dict(MIRRORED=lines.mirrored, A=tl.float64 if double else tl.float32, PIXELS=_PIXELS)
    view = (lines.costs, *lines[1:5], lines.taps, lines.out)
    grid = (triton.cdiv(height * width, _PIXELS), channels, batch)
    kernel[grid](
        view, position, *other, height * width, width, planes, radius, lines.inverse, num_warps=4, **options
    )


def corr1d_lookup(pyramid: Sequence[Tensor], x: Tensor, radius: int) -> Tensor:
    return geometry_lookup((), pyramid, x, radius)


def geometry_lookup(
    volumes: Sequence[Tensor], pyramid: Sequence[Tensor], disparity: Tensor, radius: int
) -> Tensor:
    volumes, pyramid = ([t.contiguous() for t in costs] for costs in (volumes, pyramid))
    planes, (batch, height, width) = _planes(volumes, pyramid, radius), disparity.shape
    out = pyramid[0].new_empty(batch, planes, height, width)
    if out.numel() == 0:
        return out
    with torch.cuda.device_of(out):
        for lines in _all_lines(volumes, pyramid, radius):
            _launch(look_up_kernel, lines, _positions(disparity, out), [out], planes, radius, lines.channels)
    return out


def lookup_backward(
    grad: Tensor, volumes: Sequence[Tensor], pyramid: Sequence[Tensor], position: Tensor, radius: int,
    need_costs: bool, need_position: bool,
) -> list[Tensor]:  # fmt: skip
    if need_costs:
        to_volumes, to_pyramid = (
            [torch.zeros_like(t, memory_format=torch.contiguous_format) for t in costs]
            for costs in (volumes, pyramid)
        )
        _spread(grad, to_volumes, to_pyramid, position, radius)
    else:
        to_volumes, to_pyramid = ([t.new_empty(0) for t in costs] for costs in (volumes, pyramid))
    return [*to_volumes, *to_pyramid, _slope(grad, volumes, pyramid, position, radius, need_position)]


def lookup_accumulate(
    grad: Tensor, to_volumes: Sequence[Tensor], to_pyramid: Sequence[Tensor], volumes: Sequence[Tensor],
    pyramid: Sequence[Tensor], position: Tensor, radius: int, need_position: bool,
) -> Tensor:  # fmt: skip
    _spread(grad, to_volumes, to_pyramid, position, radius)
    return _slope(grad, volumes, pyramid, position, radius, need_position)


def _positions(position: Tensor, costs: Tensor) -> Tensor:
    return position.to(torch.float64 if costs.dtype == torch.float64 else torch.float32).contiguous()


def _spread(
    grad: Tensor, volumes: Sequence[Tensor], pyramid: Sequence[Tensor], position: Tensor, radius: int
) -> None:
    if grad.numel() == 0:
        return
    grad, position = grad.contiguous(), _positions(position, grad)
    with torch.cuda.device_of(grad):
        for lines in _all_lines(volumes, pyramid, radius):
            _launch(spread_kernel, lines, position, [grad], grad.shape[1], radius, lines.channels)


def _slope(
    grad: Tensor,
    volumes: Sequence[Tensor],
    pyramid: Sequence[Tensor],
    position: Tensor,
    radius: int,
    need: bool,
) -> Tensor:
    if not need:
        return position.new_empty(0)
    places, grad = _positions(position, grad), grad.contiguous()
    total = torch.zeros_like(places)
    if grad.numel() > 0:
        volumes, pyramid = ([t.contiguous() for t in costs] for costs in (volumes, pyramid))
        with torch.cuda.device_of(grad):
            for lines in _all_lines(volumes, pyramid, radius):
                others = [grad, total, lines.channels]
                _launch(slope_kernel, lines, places, others, grad.shape[1], radius, 1)
    return total.to(position.dtype)
