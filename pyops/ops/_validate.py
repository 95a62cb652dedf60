"""Checks of arguments that several operators share: what errors say of dtypes and devices."""

from __future__ import annotations

import torch
from torch import Tensor

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_PIXELS = (*_FLOATS, torch.uint8, torch.uint16)


def _require_float(name: str, t: Tensor) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(t).__name__}")
    if t.dtype not in _FLOATS:
        raise TypeError(f"{name} must be float32, float16, bfloat16 or float64, got {t.dtype}")


def _require_pixels(name: str, t: Tensor) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(t).__name__}")
    if t.dtype not in _PIXELS:
        raise TypeError(f"{name} must be float32, float16, bfloat16, float64, uint8 or uint16, got {t.dtype}")


def _require_device(name: str, t: Tensor, other: Tensor, other_name: str) -> None:
    if t.device != other.device:
        raise ValueError(f"{name} must be on the device of {other_name}, {other.device}, got {t.device}")


def _require_int(name: str, number: int) -> None:
    if isinstance(number, bool) or not isinstance(number, (int, torch.SymInt)):
        raise TypeError(f"{name} must be an int, got {type(number).__name__}")
