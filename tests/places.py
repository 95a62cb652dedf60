"""Coordinates to sample at, for tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rand(*shape: int, low: float = 0.0, high: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, dtype=dtype) * (high - low) + low


def exact_places(*shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
    """Coordinates whose positions in pixels float32 holds without rounding."""
    return (rand(*shape, low=low, high=high) * 1024).round() / 1024


def uneven(batch: int, count: int, low: float = -1.0, high: float = 1.0) -> Tensor:
    """Coordinates at uneven distances from `low` to `high`: float64."""
    steps = F.pad((rand(batch, count - 1, dtype=torch.float64) + 0.2).cumsum(-1), (1, 0))
    return low + (high - low) * steps / steps[:, -1:]


def pixel_centres(size: int, align_corners: bool, dtype: torch.dtype = torch.float32) -> Tensor:
    index = torch.arange(size, dtype=dtype)
    return 2 * index / max(size - 1, 1) - 1 if align_corners else (2 * index + 1) / size - 1


def cell_edges(places: Tensor) -> Tensor:
    """``[B, K + 1]``: cells reach from midpoint to midpoint, at the ends from or to the place itself."""
    return torch.cat([places[:, :1], (places[:, 1:] + places[:, :-1]) / 2, places[:, -1:]], 1)
