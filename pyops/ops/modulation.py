"""Relation-aware modulation: the full-resolution part of CoTF in two passes over the image."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _native, _op
from ..reference._pixels import arithmetic_dtype, decode, encode
from ..reference.modulation import modulate
from ._validate import _require_device, _require_float
from .lut3d import _validate as _validate_table
from .lut3d import lut3d


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
    """Maps an image through a lookup table and refines the result by attention between its features and a query.

    Convention:
        ``graded = lut3d(image, lut)``; features of it (a convolution, gelu, LayerNorm over channels) give keys, pooled
        to the size of ``query``, and values; attention runs over the 2 x 4 channels, not over positions; a gated
        feed-forward network and a convolution give the result. Every 3 x 3 convolution sees zeros outside the image.
        Colours are meant to lie in [0, 1]; the result is not clamped. Integer images scale by 255 or 65535; their
        results are clamped and rounded to nearest, ties to even.

    Args:
        image: ``[B, 3, H, W]``, H and W at least 1; float32, float16, bfloat16, float64 (CPU), uint8 or uint16; any
            strides. Contiguous and channels_last images are read and written without a copy.
        lut: ``[B, 3, N, N, N]`` or ``[3, N, N, N]`` as for `lut3d`; float; N from 2 to 129.
        query: ``[B, 8, h, w]``, float, h and w at least 1: features of the surroundings at low resolution.
        weights: see `ModulationWeights`; float.

    Returns:
        Shape, dtype and device of ``image``; channels_last if ``image`` is. Arithmetic is float32, or float64 if any
        input is. Where a gradient is wanted, in float64, and for CUDA tensors without the CUDA library, the layers run
        one by one, differentiable any number of times; otherwise two fused passes, bitwise repeatable and equal to the
        layers up to rounding.

    Raises:
        TypeError: an argument is no tensor or has an unsupported dtype.
        ValueError: a shape, size or device is wrong.

    Example:
        >>> import torch, pyops
        >>> weights = pyops.ModulationWeights(*(torch.rand(s) for s in pyops.ModulationWeights.shapes().values()))
        >>> image, lut = torch.rand(1, 3, 90, 120), pyops.identity_lut(17)
        >>> pyops.relation_aware_modulation(image, lut, torch.rand(1, 8, 32, 32), weights).shape
        torch.Size([1, 3, 90, 120])

    Cost:
        Reads the image twice and writes the result once: ``9 * bytes per element * H * W`` bytes; about 1550
        multiply-adds a pixel. No full-resolution tensor in between: layer by layer there are a dozen of up to 32
        channels.

    Source:
        Li et al., Real-Time Exposure Correction via Collaborative Transformations and Adaptive Sampling, CVPR 2024,
        section 3.3, equations (3) and (4).
    """
    _validate(image, lut, query, weights)
    if _layer_by_layer(image, lut, query, weights):
        return _layers(image, lut, query, weights)
    return torch.ops.pyops.relation_aware_modulation(image, lut, query.to(torch.float32), weights.pack())


def _layer_by_layer(image: Tensor, lut: Tensor, query: Tensor, weights: ModulationWeights) -> bool:
    tensors = (image, lut, query, *weights)
    if any(t.dtype == torch.float64 for t in tensors) or (image.is_cuda and not _native.cuda_loaded):
        return True
    return torch.is_grad_enabled() and any(_op.wants_gradient(t) for t in tensors)


def _layers(image: Tensor, lut: Tensor, query: Tensor, weights: ModulationWeights) -> Tensor:
    with torch.autocast(image.device.type, enabled=False):
        dtype = arithmetic_dtype(image, lut, query, *weights)
        graded = lut3d(decode(image, dtype).contiguous(), lut)
        typed = ModulationWeights(*(w.to(dtype) for w in weights))
        return encode(modulate(graded, query.to(dtype), typed), image.dtype)


def _validate(image: Tensor, lut: Tensor, query: Tensor, weights: ModulationWeights) -> None:
    if isinstance(image, Tensor) and (image.dim() != 4 or 0 in image.shape[2:]):
        raise ValueError(f"image must be [B, 3, H, W] with H and W at least 1, got shape {list(image.shape)}")
    _validate_table(image, lut, None, "trilinear")
    _require_float("query", query)
    if query.dim() != 4 or query.shape[:2] != (image.shape[0], 8) or 0 in query.shape[2:]:
        raise ValueError(
            f"query must be [B={image.shape[0]}, 8, h, w] with h and w at least 1, got shape {list(query.shape)}"
        )
    _require_device("query", query, image, "image")
    if not isinstance(weights, ModulationWeights):
        raise TypeError(f"weights must be pyops.ModulationWeights, got {type(weights).__name__}")
    for (name, shape), weight in zip(ModulationWeights.shapes().items(), weights, strict=True):
        _require_float(f"weights.{name}", weight)
        if weight.shape != shape:
            raise ValueError(f"weights.{name} must be {list(shape)}, got shape {list(weight.shape)}")
        _require_device(f"weights.{name}", weight, image, "image")


# ---- what PyTorch needs to know of the operator ----------------------------------------------------------------------


def _fake(image, lut, query, parameters):
    return _op.empty_like_image(image)


def _vmap(info, in_dims, image, lut, query, parameters):
    size = info.batch_size
    if in_dims[3] is not None:  # weights of their own: nothing to share
        rows = zip(
            *(_op.fold(t, d, size) for t, d in zip((image, lut, query, parameters), in_dims, strict=True)),
            strict=True,
        )
        return torch.stack([torch.ops.pyops.relation_aware_modulation(*row) for row in rows]), 0
    image, query = (_op.fold(t, d, size) for t, d in ((image, in_dims[0]), (query, in_dims[2])))
    batch = image.shape[1]
    if in_dims[1] is not None or lut.dim() == 5:
        lut = _op.fold(lut, in_dims[1], size)
        if lut.dim() == 5:
            lut = lut.unsqueeze(1).expand(size, batch, *lut.shape[1:])
        lut = lut.flatten(0, 1)
    out = torch.ops.pyops.relation_aware_modulation(image.flatten(0, 1), lut, query.flatten(0, 1), parameters)
    return out.unflatten(0, (size, batch)), 0


_op.declare("relation_aware_modulation", stem="modulation", fake=_fake, vmap=_vmap)
