"""disparity for GPU users without a compiler: the mathematics of `csrc/disparity/disparity.h` in Triton.

A program has a tile of 8 x 64 pixels. Images and gradients are passed as (data, four strides). The gradient to a
warped image is a scatter along one row: sums of 64-bit integers in units that follow from the row's greatest gradient,
so their order does not matter.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .lut3d import divide

_ROWS, _COLUMNS = 8, 64  # of a tile
_LEVELS = {torch.uint8: 255, torch.uint16: 65535}
# fused multiply-adds would round otherwise than the definition does
_OPTIONS = {"ROWS": _ROWS, "COLUMNS": _COLUMNS, "num_warps": 4, "enable_fp_fusion": False}

# ---- context_upsample -----------------------------------------------------------------------------------


@triton.jit
def place_of(rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Image, rows [ROWS, 1] and columns [1, COLUMNS] of this program, and which of these pixels exist."""
    across, down = tl.cdiv(columns, COLUMNS), tl.cdiv(rows, ROWS)
    program = tl.program_id(0).to(tl.int64)
    column = (program % across * COLUMNS).to(tl.int32) + tl.arange(0, COLUMNS)[None, :]
    row = program // across % down * ROWS + tl.arange(0, ROWS)[:, None]
    return program // across // down, row, column, (row < rows) & (column < columns)


@triton.jit
def address(image, b, channel, row, column):
    return image[0] + b * image[1] + channel * image[2] + row * image[3] + column.to(tl.int64) * image[4]


@triton.jit
def near_of(disparity, b, row, column, height, width, k: tl.constexpr):
    """Coarse neighbour `k`, 0 beyond the image."""
    y, x = row + k // 3 - 1, column + k % 3 - 1
    exists = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return tl.load(address(disparity, b, 0, y, x), exists, 0).to(tl.float32)


@triton.jit
def upsample_kernel(disparity, weights, out, height, width, scale, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    b, y, x, mask = place_of(height * scale, width * scale, ROWS, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for k in tl.static_range(9):
        near = near_of(disparity, b, y // scale, x // scale, height, width, k)
        total += tl.load(address(weights, b, k, y, x), mask, 0).to(tl.float32) * near
    tl.store(address(out, b, 0, y, x), total.to(out[0].dtype.element_ty), mask)


@triton.jit
def weights_kernel(grad, disparity, to, height, width, scale, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    b, y, x, mask = place_of(height * scale, width * scale, ROWS, COLUMNS)
    g = tl.load(address(grad, b, 0, y, x), mask, 0).to(tl.float32)
    for k in tl.static_range(9):
        near = near_of(disparity, b, y // scale, x // scale, height, width, k)
        tl.store(address(to, b, k, y, x), (g * near).to(to[0].dtype.element_ty), mask)


@triton.jit
def gather_kernel(
    grad, weights, to, height, width, scale, LANES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """A coarse pixel's gradient from the fine pixels that look at it; LANES of their 3 * scale columns at once."""
    COUNT: tl.constexpr = ROWS * COLUMNS // LANES
    b, row, column, mask = place_of(height, width, 1, COUNT)
    y, x = tl.max(row), tl.reshape(column, (COUNT, 1))
    mask = tl.reshape(mask, (COUNT, 1))
    total = tl.zeros((COUNT, LANES), tl.float32)
    for fine in range(max(y - 1, 0) * scale, min(y + 2, height) * scale):
        for start in range(0, 3 * scale, LANES):
            j = start + tl.arange(0, LANES)[None, :]
            k = 3 * (y - fine // scale + 1) + 2 - j // scale
            at = (x - 1) * scale + j
            exists = mask & (j < 3 * scale) & (at >= 0) & (at < width * scale)
            g = tl.load(address(grad, b, 0, fine, at), exists, 0).to(tl.float32)
            total += g * tl.load(address(weights, b, k, fine, at), exists, 0).to(tl.float32)
    sums = tl.sum(total, 1)[:, None].to(to[0].dtype.element_ty)
    tl.store(address(to, b, 0, y, x), sums, mask)


def context_upsample(disparity: Tensor, weights: Tensor) -> Tensor:
    out = disparity.new_empty(*disparity.shape[:2], *weights.shape[2:])
    sizes = _sizes(disparity, weights)
    _launch(upsample_kernel, out[:, 0], disparity, weights, out, *sizes)
    return out


def context_upsample_backward(
    grad: Tensor, disparity: Tensor, weights: Tensor, need_disparity: bool, need_weights: bool
) -> tuple[Tensor, Tensor]:
    to_disparity, to_weights = _empty(disparity, need_disparity), _empty(weights, need_weights)
    sizes = _sizes(disparity, weights)
    if need_weights:
        _launch(weights_kernel, grad[:, 0], grad, disparity, to_weights, *sizes)
    if need_disparity:
        lanes = min(64, triton.next_power_of_2(3 * sizes[2]))
        _launch(gather_kernel, to_disparity[:, 0], grad, weights, to_disparity, *sizes, LANES=lanes)
    return to_disparity, to_weights


def _sizes(disparity: Tensor, weights: Tensor) -> tuple[int, int, int]:
    """Rows and columns of the coarse image, and the scale."""
    height, width = disparity.shape[2:]
    return height, width, weights.shape[2] // height


# ---- disparity_warp -------------------------------------------------------------------------------------


@triton.jit
def taps_of(disparity, b, y, x, mask, width):
    """The left one of two pixels, the fraction beyond it, and whether these move with the disparity."""
    position = x.to(tl.float32) - tl.load(address(disparity, b, 0, y, x), mask, 0).to(tl.float32)
    last = tl.cast(width - 1, tl.float32)
    inside = (position > 0) & (position < last)
    held = tl.where(inside, position, tl.where(position >= last, last, 0.0))
    left = held.to(tl.int32)
    return left, tl.where(position == position, held - left.to(tl.float32), position), inside


@triton.jit
def pair_of(image, b, channel, y, left, mask, width):
    first = tl.load(address(image, b, channel, y, left), mask, 0).to(tl.float32)
    second = tl.load(address(image, b, channel, y, left + 1), mask & (left + 1 < width), 0).to(tl.float32)
    return first, second


@triton.jit
def warp_kernel(
    image,
    disparity,
    out,
    channels,
    height,
    width,
    LEVELS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    b, y, x, mask = place_of(height, width, ROWS, COLUMNS)
    left, fraction, _ = taps_of(disparity, b, y, x, mask, width)
    dtype: tl.constexpr = out[0].dtype.element_ty
    for c in range(channels):
        channel = tl.full((), c, tl.int64)
        first, second = pair_of(image, b, channel, y, left, mask, width)
        if LEVELS:
            levels = tl.full((ROWS, COLUMNS), LEVELS, tl.float32)
            first, second = divide(first, levels), divide(second, levels)
        value = (1 - fraction) * first + fraction * second
        if LEVELS:
            value = tl.where(value > 0, tl.where(value < 1, value, 1.0), 0.0) * LEVELS  # NaN becomes 0
            value = ((value + 12582912.0) - 12582912.0).to(tl.int32)  # 1.5 * 2^23: rounds half to even
        tl.store(address(out, b, channel, y, x), value.to(dtype), mask)


@triton.jit
def slopes_kernel(
    grad, image, disparity, to, channels, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    b, y, x, mask = place_of(height, width, ROWS, COLUMNS)
    left, _, inside = taps_of(disparity, b, y, x, mask, width)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for c in range(channels):
        channel = tl.full((), c, tl.int64)
        first, second = pair_of(image, b, channel, y, left, mask & inside, width)
        total += tl.load(address(grad, b, channel, y, x), mask & inside, 0).to(tl.float32) * (first - second)
    tl.store(address(to, b, 0, y, x), total.to(to[0].dtype.element_ty), mask)


@triton.jit
def add(sums, spoiled, at, value, mask, scale):
    finite = tl.abs(value) < float("inf")  # NaN is not
    scaled = tl.where(finite, value * scale, 0.0)
    rounded = (scaled + tl.where(scaled < 0, -0.5, 0.5)).to(tl.int64)
    tl.atomic_add(sums + at, rounded, mask & (rounded != 0), sem="relaxed")
    tl.store(spoiled + at, 1, mask & (finite == 0))


@triton.jit
def scatter_kernel(
    grad, disparity, sums, spoiled, scales, channels, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    b, y, x, mask = place_of(height, width, ROWS, COLUMNS)
    left, fraction, _ = taps_of(disparity, b, y, x, mask, width)
    mask &= fraction == fraction
    for c in range(channels):
        channel = tl.full((), c, tl.int64)
        g = tl.load(address(grad, b, channel, y, x), mask, 0).to(tl.float32)
        line = (b * channels + channel) * height + y
        scale = tl.load(scales + line, y < height, 1)
        at = line * width + left
        add(sums, spoiled, at, (1 - fraction) * g, mask, scale)
        add(sums, spoiled, at + 1, fraction * g, mask & (left + 1 < width), scale)


def disparity_warp(image: Tensor, disparity: Tensor) -> Tensor:
    out = _empty(image, True)
    _launch(
        warp_kernel, disparity[:, 0], image, disparity, out, *image.shape[1:],
        LEVELS=_LEVELS.get(image.dtype, 0),
    )  # fmt: skip
    return out


def disparity_warp_backward(
    grad: Tensor, image: Tensor, disparity: Tensor, need_image: bool, need_disparity: bool
) -> tuple[Tensor, Tensor]:
    to_image, to_disparity = _empty(image, need_image), _empty(disparity, need_disparity)
    if need_disparity:
        _launch(slopes_kernel, disparity[:, 0], grad, image, disparity, to_disparity, *image.shape[1:])
    if need_image and grad.numel():
        to_image.copy_(_scattered(grad, disparity))
    return to_image, to_disparity


def _scattered(grad: Tensor, disparity: Tensor) -> Tensor:
    """Every sum in units of 1 / scale; there are 2^30 of them, and the sign, to the greatest gradient of a row."""
    bound = grad.nan_to_num(0, 0, 0).abs().amax(-1, keepdim=True).float()
    scale = torch.ldexp(torch.ones_like(bound), (30 - torch.frexp(bound).exponent).clamp(max=126))
    sums = torch.zeros(grad.shape, dtype=torch.int64, device=grad.device)
    spoiled = torch.zeros(grad.shape, dtype=torch.uint8, device=grad.device)
    with torch.cuda.device_of(grad):
        programs = len(grad) * triton.cdiv(grad.shape[2], _ROWS) * triton.cdiv(grad.shape[3], _COLUMNS)
        scatter_kernel[(programs,)](
            _view(grad), _view(disparity), sums, spoiled, scale, *grad.shape[1:], **_OPTIONS
        )
    return (sums / scale.double()).masked_fill(spoiled.bool(), torch.nan)


# ---- launches -------------------------------------------------------------------------------------------


def _view(t: Tensor) -> tuple:
    return (t, *t.stride())


def _empty(like: Tensor, need: bool) -> Tensor:
    """channels_last if `like` is, and is not contiguous as well."""
    if not need:
        return like.new_empty(0)
    channels_last = not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty_like(like, memory_format=memory_format)


def _launch(kernel, tiled: Tensor, *arguments, **constants) -> None:
    """One program for each tile of `tiled [B, rows, columns]`; where there are LANES, a tile is of one row."""
    if tiled.numel() == 0:
        return
    tensors = [_view(t) for t in arguments if isinstance(t, Tensor)]
    if any(t[0].dtype == torch.float64 for t in tensors):
        raise TypeError("float64 is for CPU tensors")
    rest = [n for n in arguments if not isinstance(n, Tensor)]
    lanes = constants.get("LANES")
    rows, columns = (1, _ROWS * _COLUMNS // lanes) if lanes else (_ROWS, _COLUMNS)
    programs = tiled.shape[0] * triton.cdiv(tiled.shape[1], rows) * triton.cdiv(tiled.shape[2], columns)
    with torch.cuda.device_of(tiled):
        kernel[(programs,)](*tensors, *rest, **constants, **_OPTIONS)
