"""What TPatchNet is trained with: the error of every frame, and that of the sequence as a whole."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ActionLoss(nn.Module):
    """Cross-entropy of the frames + ``sequence`` times that of the sequence, a scalar.

    The sequence's log-probabilities are the mean of those of its frames, normalised, and its truth is the shares that
    the actions have of its frames.

    Args:
        sequence: weight of the second term.

    Example:
        >>> found = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()[None]
        >>> ActionLoss()(found, torch.tensor([[0, 1]])).exp()  # log 2 twice
        tensor(4.)

    Source: section 3.4 of Ben-Shabat, Shrout, Gould, 3DInAction, CVPR 2024.
    """

    def __init__(self, sequence: float = 1.0) -> None:
        super().__init__()
        self.sequence = sequence

    def forward(self, found: Tensor, truth: Tensor) -> Tensor:
        """``found [B, T, classes]`` as from `TPatchNet`, ``truth [B, T]`` int64."""
        if found.dim() != 3 or found.shape[:2] != truth.shape:
            raise ValueError(
                f"found must be [B, T, classes] with the B and T of truth, {list(truth.shape)}, "
                f"got shape {list(found.shape)}"
            )
        frames = F.nll_loss(found.flatten(0, 1), truth.flatten())
        shares = F.one_hot(truth, found.shape[2]).to(found.dtype).mean(1)
        whole = -(shares * torch.log_softmax(found.mean(1), -1)).sum(-1).mean()
        return frames + self.sequence * whole
