"""What trains a network towards gaze by geodesic distances."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .sphere_alignment import SphereAlignment


class IsometricPropagator(nn.Sequential):
    """Three layers that learn what Isomap makes of features, so that gradients can pass: the paper's stand-in.

    Example:
        >>> import torch
        >>> from pyops.models import IsometricPropagator
        >>> IsometricPropagator(512)(torch.rand(4, 512)).shape
        torch.Size([4, 3])

    Source: equation 7 of Bao and Lu, CVPR 2024; the paper does not give the width.
    """

    def __init__(self, features: int = 512, width: int = 256) -> None:
        super().__init__(
            nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3)
        )

    def fit(
        self, features: Tensor, embedding: Tensor, *, epochs: int = 100, batch: int = 512, rate: float = 1e-4
    ) -> IsometricPropagator:
        """Learns ``embedding [N, 3]`` of ``features [N, D]`` by L1 and Adam, and is frozen then."""
        optimizer = torch.optim.Adam(self.requires_grad_().parameters(), lr=rate)
        with torch.enable_grad():
            for _ in range(epochs):
                for part in torch.randperm(len(features), device=features.device).split(batch):
                    optimizer.zero_grad()
                    F.l1_loss(self(features[part]), embedding[part]).backward()
                    optimizer.step()
        self.requires_grad_(False)
        return self


class SphereOrientedLoss(nn.Module):
    """How far features are embedded from where features of their gaze should be, by L1: trains a feature network.

    Args:
        alignment: fitted; stays as it is.
        embed: what embeds features ``[N, D]`` in space: an `IsometricPropagator`, or Isomap itself,
            ``lambda f: pyops.models.isomap_embedding(f, 30, 3)``, through which gradients pass, too.
        free: the embedding is known but for a rotation, a reflection and a translation, as Isomap's of a batch is;
            these are found first, and no gradient passes through them.

    Example:
        >>> import torch
        >>> from pyops.models import SphereAlignment, SphereOrientedLoss, directions
        >>> gaze = directions(*(torch.rand(2, 20) - 0.5))
        >>> SphereOrientedLoss(SphereAlignment(), lambda f: f, free=True)(gaze.flip(1) + 2, gaze).item() < 1e-5
        True

    Source: equations 6 and 8 of Bao and Lu, CVPR 2024.
    """

    def __init__(
        self, alignment: SphereAlignment, embed: Callable[[Tensor], Tensor], *, free: bool = False
    ) -> None:
        super().__init__()
        self.alignment, self.embed, self.free = alignment, embed, free

    def forward(self, features: Tensor, gaze: Tensor) -> Tensor:
        with torch.no_grad():
            ideal = self.alignment.inverse(gaze)
        places = self.embed(features)
        return F.l1_loss(laid_over(places, ideal) if self.free else places, ideal)


def laid_over(points: Tensor, target: Tensor, matched: Tensor | None = None) -> Tensor:
    """``points [N, 3]`` moved, turned and mirrored so that ``matched [M, 3]``, or themselves, come to lie on
    ``target [M, 3]`` by least squares; the motion carries no gradient."""
    with torch.no_grad():
        matched = points if matched is None else matched
        middle, aim = matched.mean(0), target.mean(0)
        u, _, v = torch.linalg.svd((matched - middle).mT @ (target - aim))
    return (points - middle) @ (u @ v) + aim
