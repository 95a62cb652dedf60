"""Two steps of stereo matching: a coarse disparity becomes a fine one, and the right image is warped to the left."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _op
from .. import reference as _reference
from ._validate import _require_device, _require_float, _require_pixels

_WIDEST = 2**24  # pixels of a warped row, so that every column is a float32


def context_upsample(disparity: Tensor, weights: Tensor) -> Tensor:
    """Upsamples a disparity by weights of its own for every fine pixel: a sum over the 3x3 coarse pixels around it.

    Convention:
        Fine pixel (y, x) lies in coarse pixel (y // s, x // s). Weight k = 3 * (dy + 1) + (dx + 1) belongs to the
        coarse pixel dy rows below and dx columns right of that one, dy and dx from -1 to 1; beyond the image there is
        0. This is the order of ``F.unfold(disparity, 3, padding=1)``. Softmax, and the factor by which a disparity
        grows with the image, are the caller's: usually ``context_upsample(s * disparity, logits.softmax(1))``.

    Args:
        disparity: ``[B, 1, h, w]``; float32, float16, bfloat16 or float64 (CPU), any strides.
        weights: ``[B, 9, s * h, s * w]`` for any integer s of at least 1; any of these dtypes, any strides.

    Returns:
        ``[B, 1, s * h, s * w]``, contiguous; dtype of ``disparity``. Arithmetic is float32, or float64 if any input is.
        Differentiable (twice) with respect to both; gradients are bitwise repeatable.

    Raises:
        TypeError: an argument is no tensor or has an unsupported dtype.
        ValueError: a shape, size or device is wrong.

    Example:
        >>> disparity, logits = torch.rand(1, 1, 96, 312), torch.randn(1, 9, 384, 1248)
        >>> context_upsample(4 * disparity, logits.softmax(1)).shape
        torch.Size([1, 1, 384, 1248])

    Cost:
        Reads each weight once, and 17 operations a fine pixel. Nothing is unfolded or replicated. The gradient to
        ``disparity`` reads each weight once more, that to ``weights`` writes each once.

    Source:
        Xu et al., Iterative Geometry Encoding Volume for Stereo Matching, CVPR 2023, section 3.4 (spatial upsampling);
        Teed and Deng, RAFT: Recurrent All-Pairs Field Transforms for Optical Flow, ECCV 2020, section 3.3.
    """
    _require_float("disparity", disparity)
    _require_float("weights", weights)
    if disparity.dim() != 4 or disparity.shape[1] != 1 or 0 in disparity.shape[2:]:
        raise ValueError(
            f"disparity must be [B, 1, h, w] with h and w above 0, got shape {list(disparity.shape)}"
        )
    if weights.dim() != 4 or weights.shape[0] != disparity.shape[0] or weights.shape[1] != 9:
        raise ValueError(
            f"weights must be [B={disparity.shape[0]}, 9, s * h, s * w] like disparity, "
            f"got shape {list(weights.shape)}"
        )
    (height, width), (rows, columns) = disparity.shape[2:], weights.shape[2:]
    scale = rows // height
    if scale < 1 or rows != scale * height or columns != scale * width:
        raise ValueError(
            f"weights must have s times the rows and columns of disparity, {height} x {width}, for one integer s of at "
            f"least 1, got shape {list(weights.shape)}"
        )
    _require_device("weights", weights, disparity, "disparity")
    _require_no_double_on_gpu(disparity=disparity, weights=weights)
    return torch.ops.pyops.context_upsample(disparity, weights)


def disparity_warp(image: Tensor, disparity: Tensor) -> Tensor:
    """Warps the right image of a rectified pair to the left one: pixel x of a row is the right image at x - disparity.

    Convention:
        Disparities are in pixels and positive where the left view sees a point farther right. Between two pixels of a
        row the image is linear; beyond the outermost it is constant, so infinities sample the border. A NaN disparity
        gives NaN (0 in an integer image) and no gradient. Integer images scale by 255 or 65535 and round to nearest,
        ties to even.

    Args:
        image: ``[B, C, H, W]``, W at most 2^24; float32, float16, bfloat16, float64 (CPU), uint8 or uint16; any
            strides.
        disparity: ``[B, 1, H, W]``; any float dtype (float64 on a CPU), any strides.

    Returns:
        ``[B, C, H, W]`` of the dtype of ``image``, channels_last if that is, else contiguous. Arithmetic is float32, or
        float64 if any input is. Differentiable (twice) with respect to ``disparity`` and a floating-point ``image``;
        gradients are bitwise repeatable. A disparity that leads to the outermost pixels or beyond them has none.

    Raises:
        TypeError: an argument is no tensor or has an unsupported dtype.
        ValueError: a shape, size or device is wrong.

    Example:
        >>> right, disparity = torch.rand(1, 3, 96, 128), torch.full((1, 1, 96, 128), 5.0)
        >>> warped = disparity_warp(right, disparity)
        >>> torch.equal(warped[..., 5:], right[..., :-5])
        True

    Cost:
        Reads two neighbouring pixels a sample, and each disparity once for all channels; no grid is built.

    Source:
        Jaderberg et al., Spatial Transformer Networks, NeurIPS 2015, section 3.3, along one axis; Chen et al.,
        MoCha-Stereo: Motif Channel Attention Network for Stereo Matching, CVPR 2024, section 3.4.
    """
    _require_pixels("image", image)
    _require_float("disparity", disparity)
    if image.dim() != 4 or 0 in image.shape[1:]:
        raise ValueError(f"image must be [B, C, H, W] with C, H and W above 0, got shape {list(image.shape)}")
    if image.shape[3] > _WIDEST:
        raise ValueError(f"image must be at most 2^24 pixels wide, got {image.shape[3]}")
    batch, _, height, width = image.shape
    if tuple(disparity.shape) != (batch, 1, height, width):
        raise ValueError(
            f"disparity must be [B={batch}, 1, H={height}, W={width}] like image, got shape {list(disparity.shape)}"
        )
    _require_device("disparity", disparity, image, "image")
    _require_no_double_on_gpu(image=image, disparity=disparity)
    return torch.ops.pyops.disparity_warp(image, disparity)


def _require_no_double_on_gpu(**tensors: Tensor) -> None:
    for name, t in tensors.items():
        if t.dtype == torch.float64 and t.device.type == "cuda":
            raise TypeError(f"{name} must be float32, float16 or bfloat16 on {t.device}, got {t.dtype}")


# ---- what PyTorch needs to know of the operators ---------------------------------------------------------------------


def _fake_upsampled(disparity, weights):
    return disparity.new_empty((*disparity.shape[:2], *weights.shape[2:]))


def _fake_warped(image, disparity):
    return _op.empty_like_image(image)


_op.declare_pair(
    "context_upsample",
    stem="disparity",
    tensors=2,
    fake=_fake_upsampled,
    definition=_reference.context_upsample,
)
_op.declare_pair(
    "disparity_warp", stem="disparity", tensors=2, fake=_fake_warped, definition=_reference.disparity_warp
)
