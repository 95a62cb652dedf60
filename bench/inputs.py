"""Deterministic inputs that look like real ones.

Caches make the speed of a table lookup depend on its data. Photographs are smooth, so neighbouring
pixels meet neighbouring table entries; uniform noise touches the whole table and is the worst case.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = {torch.uint8: 255, torch.uint16: 65535}
MARGIN = 1e-3  # of a pixel: what rounding does to a position on an axis of 4K


def photo(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    """A photo-like image [B, 3, H, W] in (0, 1): 1/f detail, correlated colours, a light falloff, grain.

    Never exactly 0 or 1, where the derivative of clamping is a convention in which libraries differ.
    """
    return _photo(batch, height, width, seed).clone()


@lru_cache(maxsize=1)  # cases of one size follow one another, and a 4K image takes seconds
def _photo(batch: int, height: int, width: int, seed: int) -> Tensor:
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


def encoded(pixels: Tensor, dtype: torch.dtype, channels_last: bool = False) -> Tensor:
    """Pixels in [0, 1] as an image of `dtype`."""
    levels = LEVELS.get(dtype)
    memory = torch.channels_last if channels_last else torch.contiguous_format
    return ((pixels * levels).round() if levels else pixels).to(dtype).contiguous(memory_format=memory)


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


def warp_logits(
    batch: int, count: int, pixels: int, align_corners: bool = False, off_pixels: bool = False, seed: int = 0
) -> Tensor:
    """Logits [B, count - 1] of a smooth warp, as a network finds it: the widest interval is ten times the narrowest.

    With `off_pixels` no vertex comes near the centre of one of the axis' pixels, where the derivative of a bilinear
    sample jumps: there float32 and float64 may fall on different sides.
    """
    while True:
        generator = torch.Generator().manual_seed(seed)
        coarse = 0.6 * torch.randn(batch, 1, 12, generator=generator)
        logits = F.interpolate(coarse, count - 1, mode="linear", align_corners=True)[:, 0]
        share = (warp_vertices(logits)[:, 1:-1] + 1) / 2
        position = share * (pixels - 1) if align_corners else share * pixels - 0.5
        if not off_pixels or ((position - position.round()).abs() > MARGIN).all():
            return logits
        seed += 1


def warp_vertices(logits: Tensor) -> Tensor:
    """The coordinates [B, count] from -1 to 1 that belong to logits, in float64."""
    inner = logits.double().softmax(-1).cumsum(-1)
    return 2 * F.pad(inner, (1, 0)).clamp(max=1) - 1
