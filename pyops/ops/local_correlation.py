"""Local correlation: the cost volume of optical flow, without a slice and a launch for each displacement."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _op
from .. import reference as _reference
from ._validate import _require_device, _require_float

_MOST = 1 << 15  # displacements to a side, so that the channels of the result can be counted


def local_correlation(first: Tensor, second: Tensor, radius: int, *, dilation: int = 1) -> Tensor:
    """Correlates every pixel with the pixels of another image in a square around it.

    Convention:
        With ``n = 2 * radius + 1``, ``out[b, (dy + radius) * n + dx + radius, y, x]`` is the sum over channels c of
        ``first[b, c, y, x] * second[b, c, y + dilation * dy, x + dilation * dx]`` for dy and dx from -radius to radius,
        and 0 where that pixel lies outside of the image, whatever the features are. It is a sum, not a mean: divide by
        C for the cost volume of PWC-Net.

    Args:
        first: ``[B, C, H, W]``, features of the first image; float32, float16, bfloat16 or float64 (CPU); any strides.
        second: features of the second image; shape, dtype and device of ``first``.
        radius: the greatest displacement, in steps; from 0 to 32768. Displacements may leave the image.
        dilation: pixels to a step; at least 1.

    Returns:
        ``[B, (2 * radius + 1) ** 2, H, W]``, contiguous; dtype of the inputs. Sums are float32, or float64 for float64.
        Differentiable (twice) with respect to both images; gradients are bitwise repeatable.

    Raises:
        TypeError: features are no tensor or have an unsupported dtype, the dtypes differ, or a number is no integer.
        ValueError: a shape, size, device, the radius or the dilation is wrong.

    Example:
        >>> import torch, pyops
        >>> first = torch.randn(1, 32, 24, 40, generator=torch.Generator().manual_seed(0))
        >>> second = first.roll((1, -2), (2, 3))  # what was at (y, x) is at (y + 1, x - 2)
        >>> volume = pyops.local_correlation(first, second, 4)
        >>> volume.shape
        torch.Size([1, 81, 24, 40])
        >>> divmod(volume[0, :, 12, 20].argmax().item(), 9)  # dy + 4, dx + 4
        (5, 2)

    Cost:
        Reads both images once and writes the result once: ``2 * C + n * n`` numbers a pixel; ``C * n * n``
        multiply-adds. The gradients take twice as many, and read ``grad`` twice. Contiguous and channels_last images
        are read as they are; so is everything else.

    Source:
        Dosovitskiy et al., FlowNet: Learning Optical Flow with Convolutional Networks, ICCV 2015, section 3, equation
        (1) with patches of one pixel; as used in Sun et al., PWC-Net, CVPR 2018.
    """
    _validate(first, second, radius, dilation)
    return torch.ops.pyops.local_correlation(first, second, radius, dilation)


def _validate(first: Tensor, second: Tensor, radius: int, dilation: int) -> None:
    _require_float("first", first)
    _require_float("second", second)
    if first.dim() != 4 or 0 in first.shape[1:]:
        raise ValueError(f"first must be [B, C, H, W] with C, H and W above 0, got shape {list(first.shape)}")
    if second.shape != first.shape:
        raise ValueError(
            f"second must have the shape of first, {list(first.shape)}, got shape {list(second.shape)}"
        )
    if second.dtype != first.dtype:
        raise TypeError(f"second must have the dtype of first, {first.dtype}, got {second.dtype}")
    _require_device("second", second, first, "first")
    for name, number in (("radius", radius), ("dilation", dilation)):
        if isinstance(number, bool) or not isinstance(number, (int, torch.SymInt)):
            raise TypeError(f"{name} must be an int, got {type(number).__name__}")
    if not 0 <= radius <= _MOST:
        raise ValueError(f"radius must be from 0 to {_MOST}, got {radius}")
    if dilation < 1:
        raise ValueError(f"dilation must be at least 1, got {dilation}")


# ---- what PyTorch needs to know of the operators ---------------------------------------------------------------------


def _fake(first, second, radius, dilation):
    batch, _, height, width = first.shape
    return first.new_empty(batch, (2 * radius + 1) ** 2, height, width)


def _definition(first, second, radius, dilation):
    return _reference.local_correlation(first, second, radius, dilation=dilation)


_op.declare_pair("local_correlation", stem="local_correlation", tensors=2, fake=_fake, definition=_definition)
