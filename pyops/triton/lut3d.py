"""lut3d for GPU users without a compiler: the mathematics of ``csrc/lut3d/lut3d.h`` in Triton.

A program serves a block of pixels of one image. Tables are packed, ``packed[4 * vertex + c]`` with one value a vertex
unused, so that one 128-bit load brings a vertex; `lane` counts these four. Three values in parentheses, such as the
fractions `f`, are those of red, green and blue. `A` is the type of arithmetic.

Gradients of tables are sums over pixels in fixed point. Integer sums do not depend on the order in which programs
come to add, so that results are repeatable to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

_LEVELS = {torch.uint8: 255, torch.uint16: 65535}
_BLOCK = 256  # pixels a program

# ---- mathematics -----------------------------------------------------------------------------------------------------


@triton.jit
def divide(a, b):
    return tl.div_rn(a, b) if a.dtype == tl.float32 else a / b  # `/` is inexact for float32


@triton.jit
def locate(value, size, vertices, STEPS: tl.constexpr):
    """Cell, fraction, and d fraction / d value. The axis is uniform if STEPS is 0; `vertices` point to its first."""
    inside = (value >= 0) & (value <= 1)
    v = tl.where(value < 0, 0.0, tl.where(value > 1, 1.0, value))  # keeps NaN
    last = size - 2
    if STEPS == 0:
        scale = (size - 1).to(v.dtype)
        t = v * scale
        cell = tl.where(t < scale, t, last.to(v.dtype)).to(tl.int32)  # NaN takes the last cell too
        fraction = t - cell.to(v.dtype)
        slope = tl.where(inside, scale, 0.0)
    else:
        cell = tl.zeros_like(v).to(tl.int32)
        for step in tl.static_range(STEPS):
            higher = cell + (1 << (STEPS - 1 - step))
            below = tl.load(vertices + tl.minimum(higher, last)) <= v
            cell = tl.where((higher <= last) & below, higher, cell)
        cell = tl.where(v < 1, cell, last)
        lower = tl.load(vertices + cell)
        width = tl.load(vertices + cell + 1) - lower
        filled = width > 0  # an empty cell must not divide by zero
        width = tl.where(filled, width, 1.0)
        fraction = divide(v - lower, width)
        slope = tl.where(inside & filled, divide(tl.full(v.shape, 1.0, v.dtype), width), 0.0)
    return cell, fraction, slope


@triton.jit
def trilinear(f, size, K: tl.constexpr):
    """Offset and weight of corner K of 8."""
    dr: tl.constexpr = K & 1
    dg: tl.constexpr = K >> 1 & 1
    db: tl.constexpr = K >> 2
    weight = (f[0] if dr else 1 - f[0]) * (f[1] if dg else 1 - f[1]) * (f[2] if db else 1 - f[2])
    return dr + size * (dg + size * db), weight


@triton.jit
def trilinear_slopes(f, s):
    """d s / d f from the values `s` at the 8 corners."""
    r0, r1, r2, r3 = s[1] - s[0], s[3] - s[2], s[5] - s[4], s[7] - s[6]  # edges along red
    e0, e1, e2, e3 = s[0] + f[0] * r0, s[2] + f[0] * r1, s[4] + f[0] * r2, s[6] + f[0] * r3
    r01, r23 = r0 + f[1] * (r1 - r0), r2 + f[1] * (r3 - r2)
    green = (e1 - e0) + f[2] * ((e3 - e2) - (e1 - e0))
    blue = (e2 + f[1] * (e3 - e2)) - (e0 + f[1] * (e1 - e0))
    return r01 + f[2] * (r23 - r01), green, blue


@triton.jit
def order(f):
    """Axes of the largest and of the smallest fraction. Ties go to red, then green."""
    rg, gb, rb = f[0] >= f[1], f[1] >= f[2], f[0] >= f[2]
    first = tl.where(rg & rb, 0, tl.where(gb & (rg == 0), 1, 2))
    last = tl.where(gb & rb, 2, tl.where(rg & (gb == 0), 1, 0))
    return first, last


@triton.jit
def pick(f, axis):
    return tl.where(axis == 0, f[0], tl.where(axis == 1, f[1], f[2]))


@triton.jit
def tetrahedral(f, size, K: tl.constexpr):
    """Offset and weight of corner K of 4 on the path from (0, 0, 0) to (1, 1, 1) along falling fractions."""
    first, last = order(f)
    high, mid, low = pick(f, first), pick(f, 3 - first - last), pick(f, last)
    steps = (1, size, size * size)
    if K == 0:
        offset, weight = first * 0, 1 - high
    elif K == 1:
        offset, weight = pick(steps, first), high - mid
    elif K == 2:
        offset, weight = 1 + size + size * size - pick(steps, last), mid - low
    else:
        offset, weight = first * 0 + 1 + size + size * size, low
    return offset, weight


@triton.jit
def tetrahedral_slopes(f, s):
    """d s / d f from the values `s` at the 4 corners."""
    first, last = order(f)
    high, mid, low = s[1] - s[0], s[2] - s[1], s[3] - s[2]
    red = tl.where(first == 0, high, tl.where(last == 0, low, mid))
    green = tl.where(first == 1, high, tl.where(last == 1, low, mid))
    blue = tl.where(first == 2, high, tl.where(last == 2, low, mid))
    return red, green, blue


# ---- pixels ----------------------------------------------------------------------------------------------------------


@triton.jit
def block_of(pixels, BLOCK: tl.constexpr):
    """The image of this program, and its pixels in it; 64 bits wide, as offsets must be."""
    blocks = tl.cdiv(pixels, BLOCK)
    block = (tl.program_id(0) % blocks).to(tl.int64)
    return (tl.program_id(0) // blocks).to(tl.int64), block * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def offset_of(image, pixel, width, strides):
    return image * strides[0] + pixel // width * strides[2] + pixel % width * strides[3]


@triton.jit
def decode(v, A: tl.constexpr, LEVELS: tl.constexpr):
    v = v.to(A)
    return divide(v, tl.full(v.shape, LEVELS, A)) if LEVELS else v


@triton.jit
def encode(v, T: tl.constexpr, LEVELS: tl.constexpr):
    if LEVELS:
        magic: tl.constexpr = 12582912.0 if v.dtype == tl.float32 else 6755399441055744.0  # 1.5 * 2^mantissa
        scaled = tl.where(v > 0, tl.where(v < 1, v, 1.0), 0.0) * LEVELS  # NaN becomes 0
        v = ((scaled + magic) - magic).to(tl.int32)  # adding `magic` rounds half to even
    return v.to(T)


@triton.jit
def locate_colour(start, stride, mask, vertices, size, A: tl.constexpr, LEVELS: tl.constexpr, STEPS: tl.constexpr):
    """Cells, fractions and slopes of red, green and blue, whose values lie `stride` apart."""
    red = decode(tl.load(start, mask, 0), A, LEVELS)
    green = decode(tl.load(start + stride, mask, 0), A, LEVELS)
    blue = decode(tl.load(start + 2 * stride, mask, 0), A, LEVELS)
    cell_r, f_r, slope_r = locate(red, size, vertices, STEPS)
    cell_g, f_g, slope_g = locate(green, size, vertices + size, STEPS)
    cell_b, f_b, slope_b = locate(blue, size, vertices + 2 * size, STEPS)
    return (cell_r, cell_g, cell_b), (f_r, f_g, f_b), (slope_r, slope_g, slope_b)


# ---- launches --------------------------------------------------------------------------------------------------------


def _empty_like_image(image: Tensor) -> Tensor:
    """The result's memory format: channels_last if the image is, and not contiguous as well."""
    if not image.is_contiguous() and image.is_contiguous(memory_format=torch.channels_last):
        return torch.empty_like(image, memory_format=torch.channels_last)
    return image.new_empty(image.shape)


def _tables(image: Tensor, lut: Tensor, vertices: Tensor | None) -> tuple[list[Any], dict[str, Any]]:
    """What all kernels take of a LUT and its vertices: arguments and constants."""
    size = lut.shape[-1]
    double = any(t is not None and t.dtype == torch.float64 for t in (image, lut, vertices))
    dtype = torch.float64 if double else torch.float32
    packed = F.pad(lut.to(dtype).reshape(-1, 3, size**3).transpose(1, 2), (0, 1)).contiguous()
    axes = packed if vertices is None else vertices.to(dtype).reshape(-1, 3, size).contiguous()
    steps = 0 if vertices is None else max(1, (size - 2).bit_length())
    constants = {"A": tl.float64 if double else tl.float32, "STEPS": steps, "BLOCK": _BLOCK}
    # without fused multiply-adds fractions, and with them the choice of a cell or tetrahedron, are those of a CPU
    return [packed, len(packed), axes, len(axes), size], {**constants, "enable_fp_fusion": False}


def _unroll(*images: Tensor) -> Sequence[Tensor]:
    """The same images, one pixel wide where their layouts allow: then Triton drops the division by the width."""
    height, width = images[0].shape[2:]
    if height == 1 or width == 1 or all(t.stride(2) == t.stride(3) * width for t in images):
        return [t.flatten(2).unsqueeze(3) for t in images]
    return images


def _grid(image: Tensor) -> tuple[int]:
    return (len(image) * triton.cdiv(image[0, 0].numel(), _BLOCK),)  # the only axis that may exceed 65535


# ---- forward ---------------------------------------------------------------------------------------------------------


@triton.jit
def forward_kernel(
    image, strides, out, out_strides, width, pixels, lut, luts, vertices, axes, size,
    A: tl.constexpr, LEVELS: tl.constexpr, STEPS: tl.constexpr, TETRAHEDRAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b, pixel = block_of(pixels, BLOCK)
    mask = pixel < pixels
    start = image + offset_of(b, pixel, width, strides)
    cell, f, _ = locate_colour(start, strides[1], mask, vertices + b % axes * 3 * size, size, A, LEVELS, STEPS)
    vertex = cell[0] + size * (cell[1] + size * cell[2])
    lane = tl.arange(0, 4)[None, :]
    table = lut + b % luts * size * size * size * 4 + lane
    result = tl.zeros((BLOCK, 4), A)
    for k in tl.static_range(4 if TETRAHEDRAL else 8):
        offset, weight = tetrahedral(f, size, k) if TETRAHEDRAL else trilinear(f, size, k)
        result += weight[:, None] * tl.load(table + 4 * (vertex + offset)[:, None])
    target = out + offset_of(b, pixel, width, out_strides)[:, None] + lane * out_strides[1]
    tl.store(target, encode(result, out.dtype.element_ty, LEVELS), mask[:, None] & (lane < 3))


def lut3d(image: Tensor, lut: Tensor, vertices: Tensor | None, tetrahedral: bool) -> Tensor:
    out = _empty_like_image(image)
    if image.numel() == 0:
        return out
    arguments, constants = _tables(image, lut, vertices)
    source, target = _unroll(image, out)
    with torch.cuda.device_of(image):
        forward_kernel[_grid(image)](
            source, source.stride(), target, target.stride(), source.shape[3], image[0, 0].numel(), *arguments,
            LEVELS=_LEVELS.get(image.dtype, 0), TETRAHEDRAL=tetrahedral, **constants,
        )  # fmt: skip
    return out


# ---- backward --------------------------------------------------------------------------------------------------------


class _Sums:
    """Sums over pixels, as integers in units of 1 / scale, some copies of each to keep programs out of each other's way.

    Args:
        shape: tables, then the sums of one table.
        bound: scalar tensor that contributions keep to; rounding and extrapolation may take them to 8 times that.
            What lies beyond, or is not finite, spoils its sum, which becomes NaN.
        count: contributions to a sum, at most.
    """

    def __init__(self, shape: tuple[int, ...], bound: Tensor, count: int, dtype: torch.dtype) -> None:
        copies = max(1, min(32, (1 << 20) // math.prod(shape)))
        bits = 59 - (count - 1).bit_length()
        bound = bound.double().clamp(min=2.0 ** (bits - 126))  # a greater scale would overflow float32
        self.scale = 2.0**bits * torch.frexp(bound).mantissa / bound  # a power of two, so that scaling is exact
        self.total = torch.zeros(copies, *shape, dtype=torch.int64, device=bound.device)
        self.spoiled = torch.zeros(copies, *shape, dtype=torch.uint8, device=bound.device)
        self.arguments = (self.total, self.spoiled, self.scale.to(dtype), 8.0 * 2.0**bits, copies, shape[0])

    def result(self) -> Tensor:
        return (self.total.sum(0) / self.scale).masked_fill(self.spoiled.amax(0).bool(), math.nan)


@triton.jit
def begin(sums, b, LENGTH):
    """What `add` needs to know of `_Sums.arguments`, for this program and the table of image `b`."""
    total, spoiled, scale, limit, copies, tables = sums
    start = (tl.program_id(0) % copies * tables + b % tables) * LENGTH
    return total + start, spoiled + start, tl.load(scale), limit


@triton.jit
def add(sums, index, value, mask):
    total, spoiled, scale, limit = sums
    scaled = value * scale
    fits = tl.abs(scaled) <= limit  # NaN does not
    rounded = tl.where(fits, scaled + tl.where(scaled < 0, -0.5, 0.5), 0.0).to(tl.int64)
    tl.atomic_add(total + index, rounded, mask & (rounded != 0), sem="relaxed")
    tl.store(spoiled + index, 1, mask & (fits == 0))


@triton.jit
def backward_kernel(
    grad, grad_strides, image, strides, out, out_strides, width, pixels, lut, luts, vertices, axes, size,
    lut_sums, vertex_sums,
    A: tl.constexpr, STEPS: tl.constexpr, TETRAHEDRAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b, pixel = block_of(pixels, BLOCK)
    mask = pixel < pixels
    start = image + offset_of(b, pixel, width, strides)
    cell, f, slope = locate_colour(start, strides[1], mask, vertices + b % axes * 3 * size, size, A, 0, STEPS)
    vertex = cell[0] + size * (cell[1] + size * cell[2])
    lane = tl.arange(0, 4)[None, :]
    lane_mask = mask[:, None] & (lane < 3)
    g = tl.load(grad + offset_of(b, pixel, width, grad_strides)[:, None] + lane * grad_strides[1], lane_mask, 0).to(A)
    cells = size * size * size
    if lut_sums is not None:
        into = begin(lut_sums, b, 4 * cells)
    s = ()
    for k in tl.static_range(4 if TETRAHEDRAL else 8):
        offset, weight = tetrahedral(f, size, k) if TETRAHEDRAL else trilinear(f, size, k)
        index = 4 * (vertex + offset)[:, None] + lane
        if lut_sums is not None:
            add(into, index, weight[:, None] * g, lane_mask)
        s = s + (tl.sum(g * tl.load(lut + b % luts * 4 * cells + index), axis=1),)  # noqa: RUF005
    d = tetrahedral_slopes(f, s) if TETRAHEDRAL else trilinear_slopes(f, s)
    for c in tl.static_range(3):
        if vertex_sums is not None:
            into = begin(vertex_sums, b, 6 * size)
            add(into, 2 * c * size + cell[c], (1 - f[c]) * d[c], mask)
            add(into, (2 * c + 1) * size + cell[c], f[c] * d[c], mask)
        if out is not None:
            target = out + offset_of(b, pixel, width, out_strides) + c * out_strides[1]
            tl.store(target, tl.where(slope[c] != 0, d[c] * slope[c], 0.0).to(out.dtype.element_ty), mask)


def lut3d_backward(
    grad: Tensor,
    image: Tensor,
    lut: Tensor,
    vertices: Tensor | None,
    tetrahedral: bool,
    need_image: bool,
    need_lut: bool,
    need_vertices: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_image = _empty_like_image(image) if need_image else image.new_empty(0)
    grad_lut = lut.new_zeros(lut.shape if need_lut else 0)
    grad_vertices = lut.new_zeros(0) if vertices is None else vertices.new_zeros(vertices.shape if need_vertices else 0)
    if image.numel() == 0:
        return grad_image, grad_lut, grad_vertices
    arguments, constants = _tables(image, lut, vertices)
    packed, luts, axes, axis_sets, size = arguments
    pixels, lut_sums, vertex_sums = image[:, 0].numel(), None, None
    with torch.cuda.device_of(image):
        greatest = _greatest(grad)
        if need_lut:
            lut_sums = _Sums((luts, size**3, 4), greatest, pixels // luts, packed.dtype)
        if need_vertices and vertices is not None:  # d s / d f is a difference of two s, each of three products
            bound = 6 * greatest * _greatest(lut)
            vertex_sums = _Sums((axis_sets, 3, 2, size), bound, pixels // axis_sets, packed.dtype)
        up, source, target = _unroll(grad, image, grad_image if need_image else grad)
        backward_kernel[_grid(image)](
            up, up.stride(), source, source.stride(), target if need_image else None, target.stride(),
            source.shape[3], image[0, 0].numel(), *arguments,
            lut_sums and lut_sums.arguments, vertex_sums and vertex_sums.arguments,
            TETRAHEDRAL=tetrahedral, **constants,
        )  # fmt: skip
        if lut_sums:
            grad_lut.copy_(lut_sums.result()[..., :3].transpose(1, 2).reshape(lut.shape))
        if vertex_sums:
            width = axes.double().diff(dim=-1).unsqueeze(2)
            lower, upper = torch.where(width > 0, vertex_sums.result()[..., :-1] / width, 0.0).unbind(2)
            grad_vertices.copy_(-(F.pad(lower, (0, 1)) + F.pad(upper, (1, 0))).view(grad_vertices.shape))
    return grad_image, grad_lut, grad_vertices


def _greatest(t: Tensor) -> Tensor:
    """The greatest finite magnitude, in float64."""
    return torch.linalg.vector_norm(t.nan_to_num(0.0, 0.0, 0.0), math.inf).double()
