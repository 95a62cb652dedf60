"""What CoTF is trained with: distance, features and structure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WINDOW, SIGMA = 11, 1.5


class CoTFLoss(nn.Module):
    """L1 + 0.1 perceptual + 0.5 (1 - SSIM) of images in [0, 1], a scalar.

    Args:
        features: a network, or anything else that makes a feature map or several of an image; outputs and targets are
            compared by the mean of the L1 distances of their maps. None leaves the perceptual term out.

    Example:
        >>> image = torch.rand(1, 3, 16, 16)
        >>> CoTFLoss()(image, image).item()
        0.0

    Source: section 4.1 of Li et al., Real-Time Exposure Correction via Collaborative Transformations and Adaptive
    Sampling, CVPR 2024.
    """

    def __init__(self, features: Callable[[Tensor], Tensor | Sequence[Tensor]] | None = None) -> None:
        super().__init__()
        self.features = features

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        loss = F.l1_loss(output, target) + 0.5 * (1 - ssim(output, target).mean())
        if self.features is not None:
            with torch.no_grad():
                wanted = _maps(self.features(target))
            pairs = zip(_maps(self.features(output)), wanted, strict=True)
            loss = loss + 0.1 * torch.stack([F.l1_loss(a, b) for a, b in pairs]).mean()
        return loss


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity ``[B]`` of images ``[B, C, H, W]`` in [0, 1], wherever the window lies inside the image.

    Gaussian window of 11 x 11, sigma 1.5; mean over channels and places.

    Raises:
        ValueError: the shapes differ, or a side is shorter than the window.

    Source: Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, TIP 2004.
    """
    if x.shape != y.shape or x.dim() != 4 or min(x.shape[2:]) < WINDOW:
        raise ValueError(
            f"x and y must be [B, C, H, W] of one shape with H and W at least {WINDOW}, "
            f"got {list(x.shape)} and {list(y.shape)}"
        )
    mx, my, xx, yy, xy = _blur(torch.stack([x, y, x * x, y * y, x * y]))
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mx * my + c1) / (mx * mx + my * my + c1)
    structure = (2 * (xy - mx * my) + c2) / (xx - mx * mx + yy - my * my + c2)
    return (luminance * structure).mean((1, 2, 3))


def _blur(images: Tensor) -> Tensor:
    offset = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - WINDOW // 2
    window = (-0.5 * (offset / SIGMA) ** 2).exp()
    window = (window / window.sum()).expand(images[:, 0, :, 0, 0].numel(), 1, 1, -1)
    planes = images.movedim(0, 1).flatten(1, 2)  # as channels: one depthwise convolution for each axis
    planes = F.conv2d(F.conv2d(planes, window.mT, groups=len(window)), window, groups=len(window))
    return planes.unflatten(1, (len(images), -1)).movedim(1, 0)


def _maps(features: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [features] if isinstance(features, Tensor) else features
