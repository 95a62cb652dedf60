"""What MoChaStereo is trained with: the error of every disparity on its way, the later the more."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class StereoLoss(nn.Module):
    """Smooth L1 of the initial disparity + sum of ``decay**(n - i) * L1`` of the i-th of n updates, a scalar.

    Each term is the mean over pixels whose true disparity is above 0 and below ``max_disparity``; others, NaN and
    infinity among them, have no say. Without any such pixel the loss is 0.

    Args:
        max_disparity: pixels; that of the model.
        decay: weight of an update relative to the next.

    Example:
        >>> import torch
        >>> truth = torch.full((1, 1, 4, 6), 3.0)
        >>> StereoLoss()(truth + 0.5, [truth + 2, truth + 1], truth)  # 0.5 ** 2 / 2 + 0.9 * 2 + 1
        tensor(2.9250)

    Source: equation (10) of Chen et al., MoCha-Stereo, CVPR 2024.
    """

    def __init__(self, max_disparity: float = 192, decay: float = 0.9) -> None:
        super().__init__()
        self.max_disparity, self.decay = max_disparity, decay

    def forward(self, first: Tensor, updates: Sequence[Tensor], truth: Tensor) -> Tensor:
        """``first`` and ``updates`` as from `MoChaStereo.predictions`; all ``[B, 1, H, W]``, pixels."""
        for found in (first, *updates):
            if found.shape != truth.shape:
                raise ValueError(
                    f"disparities must have the shape of truth, {list(truth.shape)}, got {list(found.shape)}"
                )
        known = (truth > 0) & (truth < self.max_disparity)
        truth, count = truth.where(known, 0), known.sum().clamp(min=1)

        def mean(error: Tensor) -> Tensor:
            return error.where(known, 0).sum() / count

        loss = mean(F.smooth_l1_loss(first, truth, reduction="none"))
        for i, found in enumerate(updates, 1):
            loss = loss + self.decay ** (len(updates) - i) * mean((found - truth).abs())
        return loss
