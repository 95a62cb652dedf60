"""Relation-aware modulation in plain PyTorch. See :mod:`pyops.ops.modulation` for shapes and conventions."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ._pixels import arithmetic_dtype, decode, encode
from .lut3d import lut3d


def relation_aware_modulation(image: Tensor, lut: Tensor, query: Tensor, weights: Any) -> Tensor:
    """The definition of :func:`pyops.relation_aware_modulation`: a lookup table, then `modulate`."""
    dtype = arithmetic_dtype(image, lut, query, *weights)
    graded = lut3d(decode(image, dtype), lut.to(dtype))
    return encode(
        modulate(graded, query.to(dtype), type(weights)(*(w.to(dtype) for w in weights))), image.dtype
    )


def modulate(graded: Tensor, query: Tensor, weights: Any) -> Tensor:
    """``graded [B, 3, H, W]`` refined by what relates its features to ``query [B, 8, h, w]``, layer by layer."""
    w = weights
    features = _norm(F.gelu(F.conv2d(graded, w.conv, w.conv_bias, padding=1)), w.norm1, w.norm1_bias)
    key, value = _depthwise(F.conv2d(features, w.key_value), w.key_value_depthwise).chunk(2, 1)
    attention = attention_matrix(
        F.adaptive_avg_pool2d(key, (query.shape[-2], query.shape[-1])), query, w.temperature
    )
    heads = value.unflatten(1, (attention.shape[1], -1)).flatten(3)
    attended = (attention @ heads).view(value.shape)
    features = features + F.conv2d(attended, w.project)
    hidden = _depthwise(F.conv2d(_norm(features, w.norm2, w.norm2_bias), w.expand), w.expand_depthwise)
    gate, value = hidden.chunk(2, 1)
    features = features + F.conv2d(F.gelu(gate) * value, w.contract)
    return F.conv2d(features, w.out, w.out_bias, padding=1)


def attention_matrix(key: Tensor, query: Tensor, temperature: Tensor) -> Tensor:
    """``[B, heads, c, c]``: how much each channel of the query takes of each channel of the key."""
    q, k = (F.normalize(t.unflatten(1, (len(temperature), -1)).flatten(3), dim=-1) for t in (query, key))
    return (q @ k.mT * temperature).softmax(-1)


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm over the channels of each pixel."""
    return F.layer_norm(x.movedim(1, -1), weight.shape, weight, bias, eps=1e-5).movedim(-1, 1)


def _depthwise(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=1, groups=len(weight))
