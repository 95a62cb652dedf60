"""lut3d for GPU users without a compiler: the mathematics of `csrc/lut3d/lut3d.h` in Triton.

A program serves a block of pixels of one image. Tables are packed with one value of four unused, so that one
128-bit load brings a vertex, `packed[4 * vertex + lane]`. Tuples such as the fractions `f` hold red, green
and blue. `A` is the type of arithmetic.

Gradients of tables are sums over pixels in fixed point: those of integers do not depend on the order of
additions, so they are repeatable to the bit.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

_BLOCK, _WARPS = 256, 8  # one pixel for each thread, so that no value moves between threads on its way

# ---- mathematics ----------------------------------------------------------------------------------------


@triton.jit
def divide(a, b):
    return tl.div_rn(a, b) if a.dtype == tl.float32 else a / b  # `/` is inexact for float32


@triton.jit
def locate(value, size, vertices, STEPS: tl.constexpr):
    """Cell, fraction and d fraction / d value. STEPS of binary search; 0 means a uniform axis."""
    inside = (value >= 0) & (value <= 1)
    v = tl.where(value < 0, 0.0, tl.where(value > 1, 1.0, value))  # keeps NaN
    last = size - 2
    if STEPS == 0:
        scale = (size - 1).to(v.dtype)
        t = v * scale
        cell = tl.where(t < scale, t, last.to(v.dtype)).to(tl.int32)  # NaN takes the last cell too
        return cell, t - cell.to(v.dtype), tl.where(inside, scale, 0.0)
    else:
        cell = tl.zeros_like(v).to(tl.int32)
        for step in tl.static_range(STEPS):
            higher = cell + (1 << (STEPS - 1 - step))
            below = tl.load(vertices + higher, higher <= last, float("inf")) <= v
            cell = tl.where(below, higher, cell)
        cell = tl.where(v < 1, cell, last)
        lower = tl.load(vertices + cell)
        width = tl.load(vertices + cell + 1) - lower
        inside &= width > 0
        width = tl.where(width > 0, width, 1.0)  # an empty cell must not divide by zero
        return cell, divide(v - lower, width), divide(inside.to(v.dtype), width)


@triton.jit
def trilinear(f, size):
    """Offsets and weights of the 8 corners."""
    r, g, b, area = f[0], f[1], f[2], size * size
    dark, none, red, green, both = 1 - b, (1 - r) * (1 - g), r * (1 - g), (1 - r) * g, r * g
    weights = (none * dark, red * dark, green * dark, both * dark, none * b, red * b, green * b, both * b)
    return (0, 1, size, 1 + size, area, 1 + area, size + area, 1 + size + area), weights


@triton.jit
def trilinear_slopes(f, s):
    """d s / d f from the values `s` at the corners."""
    r0, r1, r2, r3 = s[1] - s[0], s[3] - s[2], s[5] - s[4], s[7] - s[6]  # edges along red
    e0, e1, e2, e3 = s[0] + f[0] * r0, s[2] + f[0] * r1, s[4] + f[0] * r2, s[6] + f[0] * r3
    r01, r23 = r0 + f[1] * (r1 - r0), r2 + f[1] * (r3 - r2)
    green = (e1 - e0) + f[2] * ((e3 - e2) - (e1 - e0))
    return r01 + f[2] * (r23 - r01), green, (e2 + f[1] * (e3 - e2)) - (e0 + f[1] * (e1 - e0))


@triton.jit
def order(f):
    """Axes of the largest and of the smallest fraction. Ties go to red, then green."""
    rg, gb, rb = f[0] >= f[1], f[1] >= f[2], f[0] >= f[2]
    first = tl.where(rg & rb, 0, tl.where(gb & (rg == 0), 1, 2))
    return first, tl.where(gb & rb, 2, tl.where(rg & (gb == 0), 1, 0))


@triton.jit
def pick(x, axis):
    return tl.where(axis == 0, x[0], tl.where(axis == 1, x[1], x[2]))


@triton.jit
def tetrahedral(f, size):
    """Offsets and weights of the 4 corners met from (0, 0, 0) to (1, 1, 1) along falling fractions."""
    first, last = order(f)
    high, mid, low = pick(f, first), pick(f, 3 - first - last), pick(f, last)
    steps, end = (1, size, size * size), 1 + size + size * size
    return (0, pick(steps, first), end - pick(steps, last), end), (1 - high, high - mid, mid - low, low)


@triton.jit
def tetrahedral_slopes(f, s):
    """d s / d f from the values `s` at the corners."""
    first, last = order(f)
    high, mid, low = s[1] - s[0], s[2] - s[1], s[3] - s[2]
    red = tl.where(first == 0, high, tl.where(last == 0, low, mid))
    green = tl.where(first == 1, high, tl.where(last == 1, low, mid))
    return red, green, tl.where(first == 2, high, tl.where(last == 2, low, mid))


# ---- forward --------------------------------------------------------------------------------------------


@triton.jit
def block_of(pixels, BLOCK: tl.constexpr):
    """The image of this program and its pixels in it, 64 bits wide as offsets must be."""
    blocks = tl.cdiv(pixels, BLOCK)
    block = (tl.program_id(0) % blocks).to(tl.int64)
    return (tl.program_id(0) // blocks).to(tl.int64), block * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def offset_of(b, c, pixel, width, strides):
    plane = b * strides[0] + tl.cast(c, tl.int64) * strides[1]
    return plane + pixel // width * strides[2] + pixel % width * strides[3]


@triton.jit
def load(start, mask, LEVELS: tl.constexpr, A: tl.constexpr):
    value = tl.load(start, mask, 0).to(A)
    return divide(value, tl.full(value.shape, LEVELS, A)) if LEVELS else value


@triton.jit
def locate_colour(start, step, mask, axes, size, LEVELS: tl.constexpr, A: tl.constexpr, STEPS: tl.constexpr):
    """The vertex at the origin of the cell, then cells, fractions and slopes; channels lie `step` apart."""
    r = locate(load(start, mask, LEVELS, A), size, axes, STEPS)
    g = locate(load(start + step, mask, LEVELS, A), size, axes + size, STEPS)
    b = locate(load(start + step + step, mask, LEVELS, A), size, axes + 2 * size, STEPS)
    vertex = r[0] + size * (g[0] + size * b[0])
    return vertex, (r[0], g[0], b[0]), (r[1], g[1], b[1]), (r[2], g[2], b[2])


@triton.jit
def forward_kernel(
    image, strides, out, out_strides, width, pixels, lut, luts, vertices, lattices, size,
    LEVELS: tl.constexpr, TETRAHEDRAL: tl.constexpr, A: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    b, pixel = block_of(pixels, BLOCK)
    mask, lane = pixel < pixels, tl.arange(0, 4)[None, :]
    start, axes = image + offset_of(b, 0, pixel, width, strides), vertices + b % lattices * 3 * size
    vertex, _, f, _ = locate_colour(start, strides[1], mask, axes, size, LEVELS, A, STEPS)
    offset, weight = tetrahedral(f, size) if TETRAHEDRAL else trilinear(f, size)
    table = lut + b % luts * (4 * size * size * size)
    result = tl.zeros((BLOCK, 4), A)
    for k in tl.static_range(4 if TETRAHEDRAL else 8):
        result += weight[k][:, None] * tl.load(table + (4 * (vertex + offset[k])[:, None] + lane))
    if LEVELS:
        magic: tl.constexpr = 12582912.0 if A == tl.float32 else 6755399441055744.0  # 1.5 * 2^mantissa
        result = tl.where(result > 0, tl.where(result < 1, result, 1.0), 0.0) * LEVELS  # NaN becomes 0
        result = ((result + magic) - magic).to(tl.int32)  # adding `magic` rounds half to even
    target = out + offset_of(b, lane, pixel[:, None], width, out_strides)
    tl.store(target, result.to(out.dtype.element_ty), mask[:, None] & (lane < 3))


def lut3d(image: Tensor, lut: Tensor, vertices: Tensor | None, tetrahedral: bool) -> Tensor:
    out = _empty_like_image(image)
    if image.numel() == 0:
        return out
    grid, arguments, constants = _launch(image, lut, vertices)
    levels = {torch.uint8: 255, torch.uint16: 65535}.get(image.dtype, 0)
    x, y = _unroll(image, out)
    with torch.cuda.device_of(image):
        forward_kernel[grid](
            x, x.stride(), y, y.stride(), x.shape[3], image[0, 0].numel(), *arguments,
            LEVELS=levels, TETRAHEDRAL=tetrahedral, **constants,
        )  # fmt: skip
    return out


def _empty_like_image(image: Tensor) -> Tensor:
    """The memory format of results: channels_last if the image is, and is not contiguous as well."""
    channels_last = not image.is_contiguous() and image.is_contiguous(memory_format=torch.channels_last)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty_like(image, memory_format=memory_format)


def _launch(image: Tensor, lut: Tensor, vertices: Tensor | None) -> tuple[tuple, tuple, dict]:
    """The grid; tables as kernels take them; constants and options."""
    size = lut.shape[-1]
    double = any(t is not None and t.dtype == torch.float64 for t in (image, lut, vertices))
    dtype, A = (torch.float64, tl.float64) if double else (torch.float32, tl.float32)
    packed = F.pad(lut.to(dtype).reshape(-1, 3, size**3).transpose(1, 2), (0, 1)).contiguous()
    axes = packed if vertices is None else vertices.to(dtype).reshape(-1, 3, size).contiguous()
    steps = 0 if vertices is None else max(1, (size - 2).bit_length())
    # fused multiply-adds would move fractions, and so at edges choose other cells than the definition does
    constants = {"A": A, "STEPS": steps, "BLOCK": _BLOCK, "num_warps": _WARPS, "enable_fp_fusion": False}
    grid = (len(image) * triton.cdiv(image[0, 0].numel(), _BLOCK),)
    return grid, (packed, len(packed), axes, len(axes), size), constants


def _unroll(*images: Tensor) -> tuple[Tensor, ...]:
    """The images one pixel wide, where their layouts allow: then Triton drops the division by the width."""
    if all(1 in t.shape[2:] or t.stride(2) == t.stride(3) * t.shape[3] for t in images):
        return tuple(t.flatten(2).unsqueeze(3) for t in images)
    return images


# ---- backward -------------------------------------------------------------------------------------------


class _Sums:
    """Sums as integers, in units of 1 / scale; several copies keep programs out of each other's way.

    Each sum has at most `count` contributions, within `factor` times the product of the greatest finite
    magnitudes of `tensors`. Rounding or extrapolation may take one to 8 times that; beyond, the sum is NaN.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, count: int, factor: int, *tensors: Tensor):
        copies = max(1, min(32, (1 << 20) // math.prod(shape)))
        bits = 59 - (count - 1).bit_length()
        greatest = [torch.linalg.vector_norm(t.nan_to_num(0.0, 0.0, 0.0), math.inf).double() for t in tensors]
        bound = (factor * math.prod(greatest)).clamp(min=2.0 ** (bits - 126))  # scale fits float32
        self.scale = torch.frexp(bound).mantissa / bound * 2.0**bits  # a power of two: scaling is exact
        self.total = torch.zeros(copies, *shape, dtype=torch.int64, device=bound.device)
        self.spoiled = torch.zeros(copies, *shape, dtype=torch.uint8, device=bound.device)
        self.arguments = (self.total, self.spoiled, self.scale.to(dtype), 8.0 * 2.0**bits, copies, shape[0])

    def result(self) -> Tensor:
        return (self.total.sum(0) / self.scale).masked_fill(self.spoiled.amax(0).bool(), math.nan)


@triton.jit
def add(sums, b, index, value, mask, LENGTH):
    """Adds to element `index` of the LENGTH sums in the table of image `b`."""
    total, spoiled, scale, limit, copies, tables = sums
    index += (tl.program_id(0) % copies * tables + b % tables) * LENGTH
    scaled = value * tl.load(scale)
    fits = tl.abs(scaled) <= limit  # NaN does not
    rounded = tl.where(fits, scaled + tl.where(scaled < 0, -0.5, 0.5), 0.0).to(tl.int64)
    tl.atomic_add(total + index, rounded, mask & (rounded != 0), sem="relaxed")
    tl.store(spoiled + index, 1, mask & (fits == 0))


@triton.jit
def backward_kernel(
    grad, grad_strides, image, strides, out, out_strides, width, pixels, lut, luts, vertices, lattices, size,
    lut_sums, axis_sums, TETRAHEDRAL: tl.constexpr, A: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    b, pixel = block_of(pixels, BLOCK)
    mask, lane = pixel < pixels, tl.arange(0, 4)[None, :]
    start, axes = image + offset_of(b, 0, pixel, width, strides), vertices + b % lattices * 3 * size
    vertex, cell, f, slope = locate_colour(start, strides[1], mask, axes, size, 0, A, STEPS)
    offset, weight = tetrahedral(f, size) if TETRAHEDRAL else trilinear(f, size)
    length, lanes = 4 * size * size * size, mask[:, None] & (lane < 3)
    g = tl.load(grad + offset_of(b, lane, pixel[:, None], width, grad_strides), lanes, 0).to(A)
    s = ()
    for k in tl.static_range(4 if TETRAHEDRAL else 8):
        index = 4 * (vertex + offset[k])[:, None] + lane
        if lut_sums is not None:
            add(lut_sums, b, index, weight[k][:, None] * g, lanes, length)
        s += (tl.sum(g * tl.load(lut + b % luts * length + index), axis=1),)  # type: ignore[assignment]
    d = tetrahedral_slopes(f, s) if TETRAHEDRAL else trilinear_slopes(f, s)
    for c in tl.static_range(3):
        if axis_sums is not None:
            add(axis_sums, b, 2 * c * size + cell[c], (1 - f[c]) * d[c], mask, 6 * size)
            add(axis_sums, b, (2 * c + 1) * size + cell[c], f[c] * d[c], mask, 6 * size)
        if out is not None:
            target = out + offset_of(b, c, pixel, width, out_strides)
            tl.store(target, tl.where(slope[c] != 0, d[c] * slope[c], 0.0).to(out.dtype.element_ty), mask)


def lut3d_backward(
    grad: Tensor, image: Tensor, lut: Tensor, vertices: Tensor | None, tetrahedral: bool,
    need_image: bool, need_lut: bool, need_vertices: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    like = lut if vertices is None else vertices
    need_vertices = need_vertices and vertices is not None
    grad_image = _empty_like_image(image) if need_image else image.new_empty(0)
    grad_lut = lut.new_zeros(lut.shape if need_lut else 0)
    grad_vertices = like.new_zeros(like.shape if need_vertices else 0)
    if image.numel() == 0:
        return grad_image, grad_lut, grad_vertices
    grid, arguments, constants = _launch(image, lut, vertices)
    packed, luts, axes, lattices, size = arguments
    pixels, dtype = image[:, 0].numel(), packed.dtype
    lut_sums = _Sums((luts, size**3, 4), dtype, pixels // luts, 1, grad) if need_lut else None
    shape, count = (lattices, 3, 2, size), pixels // lattices  # a slope subtracts two sums of three products
    axis_sums = _Sums(shape, dtype, count, 6, grad, lut) if need_vertices else None
    g, x, y = _unroll(grad, image, grad_image if need_image else grad)
    with torch.cuda.device_of(image):
        backward_kernel[grid](
            g, g.stride(), x, x.stride(), y if need_image else None, y.stride(), x.shape[3],
            image[0, 0].numel(), *arguments, lut_sums and lut_sums.arguments,
            axis_sums and axis_sums.arguments, TETRAHEDRAL=tetrahedral, **constants,
        )  # fmt: skip
    if lut_sums:
        grad_lut.copy_(lut_sums.result()[..., :3].transpose(1, 2).reshape(lut.shape))
    if axis_sums:
        width = axes.double().diff(dim=-1).unsqueeze(2)
        lower, upper = torch.where(width > 0, axis_sums.result()[..., :-1] / width, 0.0).unbind(2)
        grad_vertices.copy_(-(F.pad(lower, (0, 1)) + F.pad(upper, (1, 0))).view(like.shape))
    return grad_image, grad_lut, grad_vertices
