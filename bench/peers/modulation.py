"""Relation-aware modulation as its authors write it: layer by layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..case import Inputs, Peers
from ..inputs import LEVELS
from ..ops.modulation import Modulation
from .lut3d import grid_sample_lut3d
from .sampling import decoded

PEERS = Peers()


def encoded(value: Tensor, dtype: torch.dtype) -> Tensor:
    levels = LEVELS.get(dtype)
    return (value.clamp(0, 1) * levels).round().to(dtype) if levels else value.to(dtype)


def layers(image: Tensor, lut: Tensor, query: Tensor, weights: Any) -> Tensor:
    """The layers of the definition behind `F.grid_sample`, which is a faster table than the definition's."""
    from pyops.reference.modulation import modulate

    return encoded(modulate(grid_sample_lut3d(decoded(image), lut), query, weights), image.dtype)


@PEERS.peer("torch layers", stock=True)
def stock(case: Modulation, x: Inputs):
    return case.task(layers, x)


def _wide(case: Modulation) -> bool:
    return case.dtype == torch.float32 and not case.channels_last


def in_channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t


@PEERS.peer("torch layers, channels_last", when=_wide, cpu_headlines_only=True)
def channels_last(case: Modulation, x: Inputs):
    """Norms over channels then need no copy; image and weights are put into this layout beforehand."""
    return case.task(layers, {name: in_channels_last(t) for name, t in x.items()})


@PEERS.peer("torch.compile layers", when=_wide, slow_start=True, cpu_headlines_only=True)
def compiled(case: Modulation, x: Inputs):
    return case.task(torch.compile(layers, dynamic=False), x)


@PEERS.peer("torch layers, autocast", devices=["cuda"], when=lambda case: case.dtype == torch.float16)
def autocast(case: Modulation, x: Inputs):
    work = case.task(layers, x)

    def call():
        with torch.autocast("cuda", torch.float16):
            return work()

    return call
