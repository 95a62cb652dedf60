"""motif for GPU users without a compiler: the mathematics of `csrc/motif/motif.h` in Triton.

A program has a block of pixels. Tensors are passed as (data, four strides). The nine pixels around one, and what
belongs to them, are the first nine of sixteen rows. Every gradient is gathered by the program that writes it, and the
sums of programs are added up by torch, so all results are repeatable to the bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_PIXELS, _CHANNELS = 128, 32  # of a program
_OPTIONS = {"PIXELS": _PIXELS, "num_warps": 4}


@triton.jit
def place_of(program, height, width, pixels, PIXELS: tl.constexpr):
    """Image, row and column of the pixels of a block, all [1, PIXELS] and 64 bits wide, and which of them exist."""
    pixel = program * PIXELS + tl.arange(0, PIXELS)[None, :]
    return pixel // width // height, pixel // width % height, pixel % width, pixel < pixels


@triton.jit
def address(t, b, channel, y, x):
    return t[0] + b * t[1] + channel * t[2] + y * t[3] + x * t[4]


@triton.jit
def window_of(y, x, mask, height, width):
    """Rows and columns of the nine pixels around each, and which of them exist; [16, PIXELS]."""
    k = tl.arange(0, 16)[:, None]
    rows, columns = y + k // 3 - 1, x + k % 3 - 1
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return rows, columns, mask & inside & (k < 9)


# ---- constant_highpass ----------------------------------------------------------------------------------


@triton.jit
def sums_kernel(features, out, channels, height, width, pixels, CHANNELS: tl.constexpr, PIXELS: tl.constexpr):
    b, y, x, mask = place_of(tl.program_id(0).to(tl.int64), height, width, pixels, PIXELS)
    total = tl.zeros((CHANNELS, PIXELS), tl.float32)
    for first in range(0, channels, CHANNELS):
        channel = first + tl.arange(0, CHANNELS)[:, None].to(tl.int64)
        exists = mask & (channel < channels)
        total += tl.load(address(features, b, channel, y, x), exists, 0).to(tl.float32)
    tl.store(out + (b * height + y) * width + x, tl.sum(total, 0)[None, :], mask)


@triton.jit
def subtract_kernel(
    features, sums, out, channels, height, width, pixels, CHANNELS: tl.constexpr, PIXELS: tl.constexpr
):
    blocks, program = tl.cdiv(pixels, PIXELS), tl.program_id(0).to(tl.int64)
    b, y, x, mask = place_of(program % blocks, height, width, pixels, PIXELS)
    rows, columns, exists = window_of(y, x, mask, height, width)
    around = tl.load(sums + (b * height + rows) * width + columns, exists, 0)
    low = tl.sum(around, 0)[None, :] * (1.0 / 9.0)
    channel = program // blocks * CHANNELS + tl.arange(0, CHANNELS)[:, None]
    mask = mask & (channel < channels)
    value = tl.load(address(features, b, channel, y, x), mask, 0).to(tl.float32) - low
    tl.store(address(out, b, channel, y, x), value.to(out[0].dtype.element_ty), mask)


def constant_highpass(features: Tensor) -> Tensor:
    _require_no_double(features)
    out = _empty(features, True)
    if out.numel() == 0:
        return out
    sizes = _sizes(features)
    sums = features.new_empty(sizes[-1], dtype=torch.float32)
    blocks = triton.cdiv(sizes[-1], _PIXELS)
    with torch.cuda.device_of(features):
        sums_kernel[(blocks,)](_view(features), sums, *sizes, CHANNELS=16, **_OPTIONS)
        subtract_kernel[(blocks * triton.cdiv(sizes[0], 16),)](
            _view(features), sums, _view(out), *sizes, CHANNELS=16, **_OPTIONS
        )
    return out


# ---- camp_conv ------------------------------------------------------------------------------------------


@triton.jit
def add_taps(taps, kernel, value, dc: tl.constexpr, OPPOSITE: tl.constexpr):
    """The weights of one dc, [16, PIXELS], with those of one more motif."""
    k = tl.arange(0, 16)[:, None]
    j = dc * 9 + k
    return taps + tl.load(kernel + (26 - j if OPPOSITE else j), k < 9, 0) * value


@triton.jit
def convolve_kernel(
    motif, features, kernel, out, motifs, channels, height, width, pixels,
    OPPOSITE: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """CHANNELS of a block of pixels. OPPOSITE: the gradient to the features from that in their place."""
    blocks, program = tl.cdiv(pixels, PIXELS), tl.program_id(0).to(tl.int64)
    b, y, x, mask = place_of(program % blocks, height, width, pixels, PIXELS)
    rows, columns, exists = window_of(y, x, mask, height, width)
    before = tl.zeros((16, PIXELS), tl.float32)
    at, after = before, before
    for i in range(motifs):
        s = tl.cast(i, tl.int64)
        if OPPOSITE:
            value = tl.load(address(motif, b, s, y, x), mask, 0).to(tl.float32)
        else:
            value = tl.load(address(motif, b, s, rows, columns), exists, 0).to(tl.float32)
        before = add_taps(before, kernel + s * 27, value, 0, OPPOSITE)
        at = add_taps(at, kernel + s * 27, value, 1, OPPOSITE)
        after = add_taps(after, kernel + s * 27, value, 2, OPPOSITE)
    first = program // blocks * CHANNELS
    last = tl.minimum(first + CHANNELS, channels)
    done = tl.zeros((1, PIXELS), tl.float32)  # what channels c - 1 and c have got by now
    current = done
    for i in range(CHANNELS + 2):
        c = first - 1 + i
        known = exists & (c >= 0) & (c < channels)
        around = tl.load(address(features, b, c, rows, columns), known, 0).to(tl.float32)
        value = (done + tl.sum(after * around, 0)[None, :]).to(out[0].dtype.element_ty)
        tl.store(address(out, b, c - 1, y, x), value, mask & (c > first) & (c <= last))
        done = current + tl.sum(at * around, 0)[None, :]
        current = tl.sum(before * around, 0)[None, :]


@triton.jit
def own(features, b, c, y, x, mask, channels):
    return tl.load(address(features, b, c, y, x), mask & (c >= 0) & (c < channels), 0).to(tl.float32)


@triton.jit
def weighted(kernel, sums, dc: tl.constexpr):
    k = tl.arange(0, 16)[:, None]
    return tl.sum(tl.load(kernel + dc * 9 + k, k < 9, 0) * sums, 0)[None, :]


@triton.jit
def store_partial(partial, motif, sums, dc: tl.constexpr):
    k = tl.arange(0, 16)
    tl.store(partial + dc * 9 + k, tl.sum(motif * sums, 1), k < 9)


@triton.jit
def correlate_kernel(
    motif, features, grad, kernel, to_motif, partial, motifs, channels, height, width, pixels,
    PIXELS: tl.constexpr,
):  # fmt: skip
    """The gradient to the motifs, and what a block adds to that of the kernel, where there is room for them."""
    program = tl.program_id(0).to(tl.int64)
    b, y, x, mask = place_of(program, height, width, pixels, PIXELS)
    rows, columns, exists = window_of(y, x, mask, height, width)
    # The window in the opposite order: tap k looks from here at what looks at this pixel.
    rows, columns = 2 * y - rows, 2 * x - columns
    exists = mask & (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    exists = exists & (tl.arange(0, 16)[:, None] < 9)
    first = tl.zeros((16, PIXELS), tl.float32)
    second, third = first, first
    for i in range(channels):
        c = tl.cast(i, tl.int64)
        around = tl.load(address(grad, b, c, rows, columns), exists, 0).to(tl.float32)
        first += around * own(features, b, c - 1, y, x, mask, channels)
        second += around * own(features, b, c, y, x, mask, channels)
        third += around * own(features, b, c + 1, y, x, mask, channels)
    for i in range(motifs):
        s = tl.cast(i, tl.int64)
        if to_motif is not None:
            weights = kernel + s * 27
            total = weighted(weights, first, 0) + weighted(weights, second, 1) + weighted(weights, third, 2)
            tl.store(address(to_motif, b, s, y, x), total.to(to_motif[0].dtype.element_ty), mask)
        if partial is not None:
            m = tl.load(address(motif, b, s, y, x), mask, 0).to(tl.float32)
            part = partial + (program * motifs + s) * 27
            store_partial(part, m, first, 0)
            store_partial(part, m, second, 1)
            store_partial(part, m, third, 2)


def camp_conv(motif: Tensor, features: Tensor, kernel: Tensor) -> Tensor:
    _require_no_double(features)
    out = _empty(features, True)
    if out.numel():
        _convolve(motif, features, kernel, out, opposite=False)
    return out


def camp_conv_backward(
    grad: Tensor,
    motif: Tensor,
    features: Tensor,
    kernel: Tensor,
    need_motif: bool,
    need_features: bool,
    need_kernel: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    _require_no_double(features)
    to_motif, to_features = _empty(motif, need_motif), _empty(features, need_features)
    to_kernel = _empty(kernel, need_kernel)
    if grad.numel() == 0:
        return to_motif, to_features, to_kernel.zero_()
    if need_features:
        _convolve(motif, grad, kernel, to_features, opposite=True)
    if need_motif or need_kernel:
        sizes = motif.shape[1], *_sizes(features)
        blocks = triton.cdiv(sizes[-1], _PIXELS)
        partial = kernel.new_empty(blocks, *kernel.shape, dtype=torch.float32) if need_kernel else None
        with torch.cuda.device_of(features):
            correlate_kernel[(blocks,)](
                _view(motif), _view(features), _view(grad), kernel.float().contiguous(),
                _view(to_motif) if need_motif else None, partial, *sizes, **_OPTIONS,
            )  # fmt: skip
        if partial is not None:
            to_kernel.copy_(partial.sum(0))
    return to_motif, to_features, to_kernel


def _convolve(motif: Tensor, features: Tensor, kernel: Tensor, out: Tensor, opposite: bool) -> None:
    sizes = motif.shape[1], *_sizes(features)
    programs = triton.cdiv(sizes[-1], _PIXELS) * triton.cdiv(sizes[1], _CHANNELS)
    with torch.cuda.device_of(features):
        convolve_kernel[(programs,)](
            _view(motif), _view(features), kernel.float().contiguous(), _view(out), *sizes,
            OPPOSITE=opposite, CHANNELS=min(_CHANNELS, triton.next_power_of_2(sizes[1])), **_OPTIONS,
        )  # fmt: skip


# ---- launches -------------------------------------------------------------------------------------------


def _sizes(features: Tensor) -> tuple[int, int, int, int]:
    """Channels, rows, columns, and pixels of all images."""
    batch, channels, height, width = features.shape
    return channels, height, width, batch * height * width


def _view(t: Tensor) -> tuple:
    return (t, *t.stride())


def _empty(like: Tensor, need: bool) -> Tensor:
    """channels_last if `like` is, and is not contiguous as well."""
    if not need:
        return like.new_empty(0)
    channels_last = not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty_like(like, memory_format=memory_format)


def _require_no_double(features: Tensor) -> None:
    if features.dtype == torch.float64:
        raise TypeError("float64 is for CPU tensors")
