"""Relation-aware modulation: the full-resolution part of CoTF in two passes over the image."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _native, _op
from .. import reference as _reference
from .lut3d import _PIXELS, _require_device, _require_float, lut3d


class ModulationWeights(NamedTuple):
    """What `relation_aware_modulation` has learnt: 8 channels, 2 heads of attention, 2 * 16 channels inside the FFN."""

    conv: Tensor
    """``[8, 3, 3, 3]``, from the three colours to features; ``conv_bias [8]``."""
    conv_bias: Tensor
    norm1: Tensor
    """``[8]`` scale, ``norm1_bias [8]``: LayerNorm over the channels of a pixel."""
    norm1_bias: Tensor
    key_value: Tensor
    """``[16, 8, 1, 1]``, keys first; then depthwise ``key_value_depthwise [16, 1, 3, 3]``."""
    key_value_depthwise: Tensor
    temperature: Tensor
    """``[2, 1, 1]``, by head."""
    project: Tensor
    """``[8, 8, 1, 1]``, after the attention."""
    norm2: Tensor
    norm2_bias: Tensor
    expand: Tensor
    """``[32, 8, 1, 1]``, 16 gates and 16 values; then depthwise ``expand_depthwise [32, 1, 3, 3]``."""
    expand_depthwise: Tensor
    contract: Tensor
    """``[8, 16, 1, 1]``."""
    out: Tensor
    """``[3, 8, 3, 3]``, back to colours; ``out_bias [3]``."""
    out_bias: Tensor

    @classmethod
    def shapes(cls) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor, in order."""
        return dict(zip(cls._fields, _SHAPES, strict=True))

    def pack(self) -> Tensor:
        """All of them one after the other, float32: what the kernels read."""
        return torch.cat([w.detach().flatten() for w in self]).to(torch.float32)

    @classmethod
    def unpack(cls, packed: Tensor) -> ModulationWeights:
        """The inverse of `pack`, as views."""
        sizes = [torch.Size(shape).numel() for shape in _SHAPES]
        return cls(*(w.view(shape) for w, shape in zip(packed.split(sizes), _SHAPES, strict=True)))


_SHAPES = (
    *((8, 3, 3, 3), (8,), (8,), (8,), (16, 8, 1, 1), (16, 1, 3, 3), (2, 1, 1), (8, 8, 1, 1), (8,), (8,)),
    *((32, 8, 1, 1), (32, 1, 3, 3), (8, 16, 1, 1), (3, 8, 3, 3), (3,)),
)


def relation_aware_modulation(
    image: Tensor, lut: Tensor, query: Tensor, weights: ModulationWeights
) -> Tensor:
    return _reference.relation_aware_modulation(image, lut, query, weights)
