"""Group-wise correlation: the cost volume of stereo matching, without a slice and a launch for each disparity."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .. import _op
from .. import reference as _reference
from ._validate import _require_device, _require_float, _require_int


def groupwise_correlation(
    left: Tensor, right: Tensor, max_disparity: int, groups: int = 1, *, normalize: bool = False
) -> Tensor:
    """Correlates every pixel of a row with the pixels to the left of it in another view, group by group of channels.

    Convention:
        ``out[b, g, d, h, w]`` is the mean of ``left[b, c, h, w] * right[b, c, h, w - d]`` over the channels c of group
        g, and 0 where ``w < d``, whatever the features are. Group g holds the channels from ``g * C / groups`` on. With
        ``normalize`` it is the cosine instead: the sum of products of the two vectors after each is divided by its
        Euclidean length. A vector shorter than 1e-12 counts as zero: its cosines and its gradient are 0.

    Args:
        left: ``[B, C, H, W]``, features of the view to match; float32, float16, bfloat16 or float64 (CPU); any strides.
        right: features of the other view, rectified; shape, dtype and device of ``left``.
        max_disparity: how many disparities, from 0 on; from 1 to W.
        groups: into how many groups of neighbouring channels C is divided.
        normalize: cosines instead of means of products.

    Returns:
        ``[B, groups, max_disparity, H, W]``, contiguous; dtype of the inputs. Sums are float32, or float64 for float64.
        Differentiable (twice) with respect to both views; gradients are bitwise repeatable.

    Raises:
        TypeError: a view is no tensor or has an unsupported dtype, the dtypes differ, or a number is no integer.
        ValueError: a shape, size, device, number of groups or of disparities is wrong.

    Example:
        >>> import torch, pyops
        >>> left, right = torch.rand(2, 1, 32, 24, 80).unbind()
        >>> pyops.groupwise_correlation(left, right, 48, groups=8).shape
        torch.Size([1, 8, 48, 24, 80])
        >>> shifted = torch.nn.functional.pad(right, (5, 0))[..., :-5]  # what is at w - 5 on the right
        >>> pyops.groupwise_correlation(shifted, right, 8, normalize=True)[..., 12, 40:].mean(-1).argmax()
        tensor(5)

    Cost:
        Reads both views once and writes the result once: ``2 * C + groups * max_disparity`` numbers a pixel;
        ``C * max_disparity`` multiply-adds. The gradients take twice as many, and read ``grad`` once (CUDA: twice).
        Contiguous and channels_last views are read as they are; so is everything else.

    Source:
        Guo et al., Group-wise Correlation Stereo Network, CVPR 2019, section 3.2, equation (2); as used in Xu et al.,
        Iterative Geometry Encoding Volume for Stereo Matching, CVPR 2023, and Chen et al., MoCha-Stereo, CVPR 2024.
    """
    _validate(left, right, max_disparity, groups)
    return torch.ops.pyops.groupwise_correlation(left, right, max_disparity, groups, normalize)


def _validate(left: Tensor, right: Tensor, max_disparity: int, groups: int) -> None:
    _require_float("left", left)
    _require_float("right", right)
    if left.dim() != 4 or 0 in left.shape[1:]:
        raise ValueError(f"left must be [B, C, H, W] with C, H and W above 0, got shape {list(left.shape)}")
    if right.shape != left.shape:
        raise ValueError(
            f"right must have the shape of left, {list(left.shape)}, got shape {list(right.shape)}"
        )
    if right.dtype != left.dtype:
        raise TypeError(f"right must have the dtype of left, {left.dtype}, got {right.dtype}")
    _require_device("right", right, left, "left")
    _require_int("max_disparity", max_disparity)
    _require_int("groups", groups)
    channels, width = left.shape[1], left.shape[3]
    if not 1 <= max_disparity <= width:
        raise ValueError(f"max_disparity must be from 1 to the width of left, {width}, got {max_disparity}")
    if groups < 1 or channels % groups != 0:
        raise ValueError(
            f"groups must be at least 1 and divide the {channels} channels of left, got {groups}"
        )


# ---- what PyTorch needs to know of the operators ---------------------------------------------------------------------


def _fake(left, right, max_disparity, groups, normalize):
    batch, _, height, width = left.shape
    return left.new_empty(batch, groups, max_disparity, height, width)


def _save(ctx, inputs, output):
    left, right, _max_disparity, _groups, ctx.normalize = inputs
    ctx.save_for_backward(left, right)


def _backward(ctx, grad):
    need = ctx.needs_input_grad[:2]
    grads = torch.ops.pyops.groupwise_correlation_backward(grad, *ctx.saved_tensors, ctx.normalize, *need)
    return *(g if n else None for g, n in zip(grads, need, strict=True)), None, None, None


def _fake_backward(grad, left, right, normalize, need_left, need_right):
    return (
        _op.empty_like_image(left) if need_left else left.new_empty(0),
        _op.empty_like_image(right) if need_right else right.new_empty(0),
    )


def _save_backward(ctx, inputs, output):
    grad, left, right, ctx.normalize, *ctx.need = inputs
    ctx.save_for_backward(grad, left, right)


def _double_backward(ctx, *upstream):
    grad = ctx.saved_tensors[0]
    definition = partial(
        _reference.groupwise_correlation,
        max_disparity=grad.shape[2],
        groups=grad.shape[1],
        normalize=ctx.normalize,
    )
    needed = [g if n else None for g, n in zip(upstream, ctx.need, strict=True)]
    return *_op.second_derivative(definition, ctx.saved_tensors, needed), None, None, None


_op.declare(
    "groupwise_correlation",
    stem="groupwise",
    fake=_fake,
    setup_context=_save,
    backward=_backward,
    batched=True,
)
_op.declare(
    "groupwise_correlation_backward",
    stem="groupwise",
    fake=_fake_backward,
    setup_context=_save_backward,
    backward=_double_backward,
    batched=True,
)
