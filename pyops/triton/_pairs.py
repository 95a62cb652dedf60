"""Levels averaged in pairs, and their gradients spread again, for `corr1d`. `A` is the type of arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_ENTRIES = 256  # of a program


def wide(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def arithmetic(t: Tensor) -> Any:
    return tl.float64 if t.dtype == torch.float64 else tl.float32


@triton.jit
def pool_kernel(volume, out, columns, count, EACH: tl.constexpr, A: tl.constexpr, ENTRIES: tl.constexpr):
    """`count` means of EACH neighbouring entries of a line."""
    line = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    total = tl.zeros((ENTRIES,), A)
    for k in range(0, EACH):
        total += tl.load(volume + line * columns + j * EACH + k, j < count, 0).to(A)
    tl.store(out + line * count + j, (total / EACH).to(out.dtype.element_ty), j < count)


@triton.jit
def spread_kernel(grad, total, columns, count, EACH: tl.constexpr, A: tl.constexpr, ENTRIES: tl.constexpr):
    """Adds to each entry of level 0 its share of the mean it is part of."""
    line = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    part = tl.load(grad + line * count + i // EACH, i // EACH < count, 0).to(A) / EACH
    to = total + line * columns + i
    tl.store(to, tl.load(to, i < columns, 0) + part, i < columns)


def pool_pairs(volume: Tensor, levels: int) -> list[Tensor]:
    return pooled(volume, levels, volume.dtype)


def pooled(volume: Tensor, levels: int, dtype: torch.dtype) -> list[Tensor]:
    volume, (*lines, columns) = volume.contiguous(), volume.shape
    levels_above = [volume.new_empty(*lines, columns >> level, dtype=dtype) for level in range(1, levels)]
    if volume.numel() > 0:
        with torch.cuda.device_of(volume):
            for level, out in enumerate(levels_above, 1):
                count = columns >> level
                grid = volume.numel() // columns, triton.cdiv(count, _ENTRIES)
                pool_kernel[grid](
                    volume, out, columns, count, EACH=1 << level, A=arithmetic(volume), ENTRIES=_ENTRIES
                )
    return levels_above


def spread_pairs(grads: Sequence[Tensor]) -> Tensor:
    columns, first = grads[0].shape[-1], grads[0]
    total = torch.zeros_like(first, dtype=wide(first), memory_format=torch.contiguous_format)
    if total.numel() > 0:
        with torch.cuda.device_of(total):
            for level in reversed(range(len(grads))):
                grad = grads[level].contiguous()
                grid = total.numel() // columns, triton.cdiv(columns, _ENTRIES)
                spread_kernel[grid](
                    grad,
                    total,
                    columns,
                    columns >> level,
                    EACH=1 << level,
                    A=arithmetic(first),
                    ENTRIES=_ENTRIES,
                )
    return total.to(first.dtype)
