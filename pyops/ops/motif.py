"""Motif channel attention of stereo matching: what repeats in the features, without their product with every motif."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _op
from .. import reference as _reference
from ._validate import _require_device, _require_float


def constant_highpass(features: Tensor) -> Tensor:
    """Subtracts from every channel a ninth of what lies in the 3x3 window around a pixel, in all channels together.

    Convention:
        ``features - F.conv2d(features, K, padding=1)`` with a dense ``[C, C, 3, 3]`` kernel K of constant 1 / 9: the
        same number is subtracted from all channels of a pixel. Beyond the image there are zeros.

    Args:
        features: ``[B, C, H, W]``; float32, float16, bfloat16 or float64 (CPU); any strides.

    Returns:
        ``[B, C, H, W]`` of the dtype of ``features``, channels_last if these are, else contiguous. Sums are float32, or
        float64 for float64. Differentiable (any number of times); gradients are bitwise repeatable.

    Raises:
        TypeError: ``features`` is no tensor or has an unsupported dtype.
        ValueError: its shape is wrong.

    Example:
        >>> import torch, pyops
        >>> features = torch.ones(1, 2, 5, 5)
        >>> pyops.constant_highpass(features)[0, 0, 2]  # 1 - 2 * 9 / 9, and less beside the edge
        tensor([-0.3333, -1.0000, -1.0000, -1.0000, -0.3333])

    Cost:
        Reads the features once (CUDA: twice) and writes as many numbers; ``2 * C + 5`` operations a pixel instead of
        ``18 * C^2``. The gradient is the same function of the gradient that comes in.

    Source:
        Chen et al., MoCha-Stereo: Motif Channel Attention Network for Stereo Matching, CVPR 2024, section 3.1: the
        high-pass filter before motif channels are found, in the form of the authors' code.
    """
    _require_float("features", features)
    _require_features(features)
    return torch.ops.pyops.constant_highpass(features)


def camp_conv(motif: Tensor, features: Tensor, kernel: Tensor) -> Tensor:
    """Convolves the products of all motifs with all channels, over channels, rows and columns, into one volume.

    Convention:
        With ``P[b, s, c] = motif[b, s] * features[b, c]``, the result is
        ``F.conv3d(P, kernel[None], padding=1)[:, 0]``: S input channels, one output channel, and a volume with the axes
        (C, H, W), zeros around it. P is never made: the kernel and the motifs around a pixel give 27 weights that all
        of its channels share. So infinities of several motifs that would meet in a sum over P, and give NaN, may have
        become one infinite weight before.

    Args:
        motif: ``[B, S, H, W]``, how much a pixel belongs to each of S motifs; float32, float16, bfloat16 or float64
            (CPU); any strides.
        features: ``[B, C, H, W]``; dtype and device of ``motif``; any strides.
        kernel: ``[S, 3, 3, 3]`` with the axes motif, channel, row, column; dtype and device of ``motif``.

    Returns:
        ``[B, C, H, W]`` of that dtype, channels_last if ``features`` is, else contiguous. Sums are float32, or float64
        for float64. Differentiable (twice) with respect to all three; gradients are bitwise repeatable.

    Raises:
        TypeError: an argument is no tensor or has an unsupported dtype, or the dtypes differ.
        ValueError: a shape or device is wrong.

    Example:
        >>> import torch, pyops
        >>> motif, features = torch.rand(1, 4, 24, 78).softmax(1), torch.randn(1, 256, 24, 78)
        >>> pyops.camp_conv(motif, features, torch.randn(4, 3, 3, 3)).shape
        torch.Size([1, 256, 24, 78])

    Cost:
        Reads features and motifs once and writes the result; ``27 * (C + S)`` multiply-adds a pixel instead of
        ``27 * C * S``, and no tensor of ``S * C`` channels. The gradients take twice as many.

    Source:
        Chen et al., MoCha-Stereo: Motif Channel Attention Network for Stereo Matching, CVPR 2024, section 3.1: the
        channel affinity matrix profile, in the form of the authors' code.
    """
    for name, t in (("motif", motif), ("features", features), ("kernel", kernel)):
        _require_float(name, t)
    _require_features(features)
    batch, _, height, width = features.shape
    if motif.dim() != 4 or motif.shape[1] == 0 or motif.shape[:1] + motif.shape[2:] != (batch, height, width):
        raise ValueError(
            f"motif must be [B={batch}, S, H={height}, W={width}] like features with S above 0, "
            f"got shape {list(motif.shape)}"
        )
    if tuple(kernel.shape) != (motif.shape[1], 3, 3, 3):
        raise ValueError(
            f"kernel must be [S={motif.shape[1]}, 3, 3, 3] like motif, got shape {list(kernel.shape)}"
        )
    for name, t in (("motif", motif), ("kernel", kernel)):
        if t.dtype != features.dtype:
            raise TypeError(f"{name} must have the dtype of features, {features.dtype}, got {t.dtype}")
        _require_device(name, t, features, "features")
    return torch.ops.pyops.camp_conv(motif, features, kernel)


def _require_features(features: Tensor) -> None:
    if features.dim() != 4 or 0 in features.shape[1:]:
        raise ValueError(
            f"features must be [B, C, H, W] with C, H and W above 0, got shape {list(features.shape)}"
        )


# ---- what PyTorch needs to know of the operators ---------------------------------------------------------------------


def _fake_camp(motif, features, kernel):
    return _op.empty_like_image(features)


def _one_by_one(op, info, in_dims, args):
    """What a kernel of its own for every element, or a gradient to it, asks for."""
    rows = [
        [t if dim is None else t.select(dim, i) for t, dim in zip(args, in_dims, strict=True)]
        for i in range(info.batch_size)
    ]
    return [op(*row) for row in rows]


def _vmap_camp(info, in_dims, *args):
    op = torch.ops.pyops.camp_conv
    if in_dims[2] is not None:
        return torch.stack(_one_by_one(op, info, in_dims, args)), 0
    tensors, sizes = _op.in_batch(info, in_dims[:2], args[:2])
    return _op.out_of_batch(op(*tensors, args[2]), sizes)


def _vmap_camp_backward(info, in_dims, *args):
    op, need_kernel = torch.ops.pyops.camp_conv_backward, args[6]
    if in_dims[3] is not None or need_kernel:
        rows = _one_by_one(op, info, in_dims, args)
        return tuple(torch.stack(grads) for grads in zip(*rows, strict=True)), (0, 0, 0)
    tensors, sizes = _op.in_batch(info, in_dims[:3], args[:3])
    return _op.out_of_batch(op(*tensors, *args[3:]), sizes)


_op.declare(
    "constant_highpass",
    stem="motif",
    fake=_op.empty_like_image,
    setup_context=lambda ctx, inputs, output: None,
    backward=lambda ctx, grad: torch.ops.pyops.constant_highpass(grad),
    batched=True,
)
_op.declare_pair(
    "camp_conv",
    stem="motif",
    tensors=3,
    fake=_fake_camp,
    definition=_reference.camp_conv,
    vmap=_vmap_camp,
    vmap_backward=_vmap_camp_backward,
)
