"""Element types of images: integers stand for value / levels, floats for themselves."""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = {torch.uint8: 255, torch.uint16: 65535}


def arithmetic_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 if any of the tensors is, else float32."""
    wide = any(t is not None and t.dtype == torch.float64 for t in tensors)
    return torch.float64 if wide else torch.float32


def decode(image: Tensor, dtype: torch.dtype) -> Tensor:
    """Pixel values as floats; integers come to lie in [0, 1]."""
    levels = LEVELS.get(image.dtype)
    return image.to(dtype) / levels if levels else image.to(dtype)


def encode(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse: integers are clamped, rounded half to even, and 0 where the value is NaN."""
    levels = LEVELS.get(dtype)
    return ((value.clamp(0, 1) * levels).round().nan_to_num(0) if levels else value).to(dtype)
