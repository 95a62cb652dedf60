"""3D lookup tables in plain PyTorch. See :mod:`pyops.ops.lut3d` for shapes and conventions."""

from __future__ import annotations

import torch
from torch import Tensor

from ._pixels import arithmetic_dtype, decode, encode


def _locate(value: Tensor, size: int, vertices: Tensor | None) -> tuple[Tensor, Tensor]:
    """Cell number and fraction of ``value [B, P]`` on an axis; ``vertices [1 or B, N]`` or None for a uniform axis."""
    v = value.clamp(0, 1)
    if vertices is None:
        t = v * (size - 1)
        cell = torch.where(t.detach() < size - 1, t.detach(), size - 2).to(torch.int64)
        return cell, t - cell
    inner = vertices[:, 1:-1].detach().expand(len(v), -1).contiguous()
    cell = torch.searchsorted(inner, v.detach().contiguous(), right=True).clamp(max=size - 2)
    lower = vertices.expand(len(v), -1).gather(1, cell)
    upper = vertices.expand(len(v), -1).gather(1, cell + 1)
    return cell, (v - lower) / (upper - lower)


def _trilinear(f: Tensor, size: int) -> list[tuple[int | Tensor, Tensor]]:
    """``(offset, weight)`` of the eight corners; ``f [B, 3, P]`` holds the fractions of red, green, blue."""
    corners: list[tuple[int | Tensor, Tensor]] = []
    for k in range(8):
        step = (k & 1, k >> 1 & 1, k >> 2)
        weight = torch.stack([f[:, c] if step[c] else 1 - f[:, c] for c in range(3)]).prod(0)
        corners.append((step[0] + size * (step[1] + size * step[2]), weight))
    return corners


def _tetrahedral(f: Tensor, size: int) -> list[tuple[int | Tensor, Tensor]]:
    """``(offset, weight)`` of the four corners met when walking the axes in the order of falling fraction."""
    high, order = f.sort(dim=1, descending=True, stable=True)
    steps = torch.tensor([1, size, size * size], device=f.device)[order].cumsum(1)
    return [
        (0, 1 - high[:, 0]),
        (steps[:, 0], high[:, 0] - high[:, 1]),
        (steps[:, 1], high[:, 1] - high[:, 2]),
        (steps[:, 2], high[:, 2]),
    ]


def lut3d(
    image: Tensor, lut: Tensor, *, vertices: Tensor | None = None, interpolation: str = "trilinear"
) -> Tensor:
    """The definition of :func:`pyops.lut3d`: a weighted sum over the corners of the cell of each pixel."""
    if image.dim() == 3:
        return lut3d(image[None], lut, vertices=vertices, interpolation=interpolation)[0]
    size, batch, dtype = lut.shape[-1], len(image), arithmetic_dtype(image, lut, vertices)
    value = decode(image.flatten(2), dtype)
    table = lut.to(dtype).reshape(-1, 3, size**3).expand(batch, -1, -1)
    axes: list[Tensor | None] = [None] * 3
    if vertices is not None:
        axes = list(vertices.to(dtype).reshape(-1, 3, size).unbind(1))
    places = [_locate(value[:, c], size, axes[c]) for c in range(3)]
    origin = places[0][0] + size * (places[1][0] + size * places[2][0])
    fractions = torch.stack([fraction for _, fraction in places], dim=1)
    corners = {"trilinear": _trilinear, "tetrahedral": _tetrahedral}[interpolation](fractions, size)
    out = torch.zeros_like(value)
    for offset, weight in corners:
        index = (origin + offset)[:, None].expand(-1, 3, -1)
        out = out + weight[:, None] * table.gather(2, index)
    return encode(out, image.dtype).view(image.shape)


def fuse_luts(weights: Tensor, basis: Tensor) -> Tensor:
    return torch.einsum("bm,mcijk->bcijk", weights, basis)


def identity_lut(
    size: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> Tensor:
    ramp = torch.linspace(0, 1, size, dtype=torch.float64)
    blue, green, red = torch.meshgrid(ramp, ramp, ramp, indexing="ij")
    return torch.stack([red, green, blue]).to(dtype=dtype, device=device)


def lut_smoothness(lut: Tensor) -> Tensor:
    return torch.stack([lut.diff(dim=axis).square().mean() for axis in (-1, -2, -3)]).sum()


def lut_monotonicity(lut: Tensor) -> Tensor:
    return torch.stack([(-lut.diff(dim=axis)).relu().mean() for axis in (-1, -2, -3)]).sum()
