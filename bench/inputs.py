"""Deterministic inputs that look like real ones.

Caches make the speed of a table lookup depend on its data. Photographs are smooth, so neighbouring
pixels meet neighbouring table entries; uniform noise touches the whole table and is the worst case.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def photo(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    """A photo-like image [B, 3, H, W] in (0, 1): 1/f detail, correlated colours, a light falloff, grain.

    Never exactly 0 or 1, where the derivative of clamping is a convention in which libraries differ.
    """
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(batch, 3, height, width)
    cells = 3
    while cells <= max(height, width) // 4:
        rows = max(2, round(cells * height / max(height, width)))
        columns = max(2, round(cells * width / max(height, width)))
        luma = torch.randn(batch, 1, rows, columns, generator=generator)
        chroma = 0.35 * torch.randn(batch, 3, rows, columns, generator=generator)
        detail = F.interpolate(luma + chroma, (height, width), mode="bilinear", align_corners=True)
        image += detail / math.sqrt(cells)
        cells *= 2
    y = torch.linspace(-1, 1, height)[:, None]
    x = torch.linspace(-1, 1, width)
    image = 0.45 + 0.22 * image - 0.12 * (x * x + y * y) + 0.15 * y
    image += 0.006 * torch.randn(image.shape, generator=generator)
    return image.clamp_(0.002, 0.998)


def noise(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Independent uniform pixels [B, 3, H, W]: every lookup lands somewhere else."""
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def grading_lut(size: int, seed: int = 0) -> Tensor:
    """A film-like grade [3, N, N, N], red fastest: contrast curve, channel crosstalk, a little roughness."""
    ramp = torch.linspace(0, 1, size)
    blue, green, red = torch.meshgrid(ramp, ramp, ramp, indexing="ij")
    rgb = torch.stack([red, green, blue])
    curve = rgb + 0.12 * torch.sin(2 * math.pi * (rgb - 0.5)) / 2
    crosstalk = torch.tensor([[0.92, 0.06, 0.02], [0.03, 0.94, 0.03], [0.01, 0.09, 0.90]])
    lut = torch.einsum("cd,dijk->cijk", crosstalk, curve)
    generator = torch.Generator().manual_seed(seed)
    return (lut + 0.01 * torch.randn(lut.shape, generator=generator)).clamp_(0, 1).contiguous()


def vertices(size: int) -> Tensor:
    """An increasing lattice [3, N] from 0 to 1, denser in the shadows, a little different per channel."""
    ramp = torch.linspace(0, 1, size)
    return torch.stack([ramp ** (1.2 + 0.2 * channel) for channel in range(3)])
