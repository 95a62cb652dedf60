"""TPatchNet: an action for every frame of a sequence of point clouds, from patches that follow the body through time.

    points ── t-patches ── shared layers, max over neighbours ── over time ── centres and features   (three times)
    features ── max over patches ── layers ── smoothing over time ── log-probabilities of the actions

Source: Ben-Shabat, Shrout, Gould, 3DInAction: Understanding Human Actions in 3D Point Clouds, CVPR 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyops

from ._operators import UsesOperators

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Level:
    """One of the modules of the network."""

    patches: int | None
    """How many are followed; None: as many as there are points."""
    neighbours: int
    widths: tuple[int, ...]


PUBLISHED = (
    Level(512, 16, (64, 64, 128)),
    Level(128, 16, (128, 128, 256)),
    Level(None, 16, (256, 512, 1024)),
)
SMALL = (Level(64, 16, (32, 32, 64)), Level(32, 8, (64, 128)), Level(None, 8, (128, 256)))


class TPatchNet(UsesOperators):
    """Log-probabilities of actions for each frame.

    Convention:
        Half of the patches of a level start at points of the first frame, spread by farthest point sampling, and half
        at points of the last frame, from where they are followed backwards. Points of a patch are seen from the centre
        where it starts, so that its way through time shows. In training the chains are jittered.

    Args:
        classes: how many actions there are.
        features: numbers that come with each point, beside its place.
        levels: ``PUBLISHED`` (10.5 million parameters, and 65,536 for each frame of ``smoothing``), ``SMALL``, or your
            own.
        temporal: ``"convolution"`` (of 8 frames) or ``"attention"`` (4 heads), over the frames of a patch.
        smoothing: frames over which what was found is smoothed at the end, usually those of a clip.
        jitter: standard deviation of the noise in training, in units of the points.
        max_radius: neighbours farther than that give way to the nearest.
        patches: ``"temporal"``; or ``"frame"``: found anew in each frame, as a network without them does.
        shifted_features: features of the later levels come from the frame before, as in the published code.
        dropout: of the classifier.
        ops: where the operators come from: ``pyops``, or ``pyops.reference`` for plain PyTorch.

    Differences:
        From the published code: queries are sampled before the chains are walked instead of after, which is exact and
        faster; the halves of both directions are those that sampling spreads best instead of random ones.

    Example:
        >>> model = TPatchNet(10, levels=SMALL).eval()
        >>> with torch.inference_mode():
        ...     model(torch.rand(2, 12, 100, 3)).shape
        torch.Size([2, 12, 10])
    """

    def __init__(
        self,
        classes: int,
        features: int = 0,
        *,
        levels: Sequence[Level] = PUBLISHED,
        temporal: str = "convolution",
        smoothing: int = 64,
        jitter: float = 0.005,
        max_radius: float | None = None,
        patches: str = "temporal",
        shifted_features: bool = False,
        dropout: float = 0.4,
        ops: Any = pyops,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("classes", classes, 1),
            ("features", features, 0),
            ("smoothing", smoothing, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {type(value).__name__}")
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if temporal not in ("convolution", "attention"):
            raise ValueError(f"temporal must be 'convolution' or 'attention', got {temporal!r}")
        if patches not in ("temporal", "frame"):
            raise ValueError(f"patches must be 'temporal' or 'frame', got {patches!r}")
        self.features, self.jitter, self.max_radius = features, jitter, max_radius
        self.patches, self.shifted_features, self.ops = patches, shifted_features, ops
        self.levels = tuple(levels)
        self.shared, self.temporal = nn.ModuleList(), nn.ModuleList()
        width = features
        for level in self.levels:
            widths = (3 + width, *level.widths)
            self.shared.append(nn.Sequential(*(Layer(a, b) for a, b in pairwise(widths))))
            width = level.widths[-1]
            over_time = Convolution(width, width, 8) if temporal == "convolution" else Attention(width)
            self.temporal.append(nn.Sequential(over_time, Norm(width), nn.ReLU()))
        self.head = nn.Sequential(
            Layer(width, width // 2), nn.Dropout(dropout), Layer(width // 2, width // 4), nn.Dropout(dropout)
        )
        self.smoothing = Convolution(width // 4, width // 4, smoothing)
        self.classifier = nn.Linear(width // 4, classes)

    def forward(self, points: Tensor, features: Tensor | None = None) -> Tensor:
        """``[B, T, classes]`` for ``points [B, T, N, 3]`` and, if there are any, ``features [B, T, N, C]``."""
        self._check(points, features)
        for i, level in enumerate(self.levels):
            patches, origin = self.patches_of(points, level)
            local = self._gather(points, patches.indices) - origin[:, :, :, None]
            if features is not None:
                shifted = self.shifted_features and i > 0
                carried = torch.cat([features[:, :1], features[:, :-1]], 1) if shifted else features
                local = torch.cat([local, self._gather(carried, patches.indices)], -1)
            points, features = patches.centers, self.temporal[i](self.shared[i](local).amax(3))
        assert features is not None
        found = self.smoothing(self.head(features.amax(2))[:, :, None])[:, :, 0]
        return F.log_softmax(self.classifier(found), -1)

    def patches_of(self, points: Tensor, level: Level) -> tuple[Any, Tensor]:
        """The patches of a level, and for each ``[B, T, M, 3]`` the centre from where it is seen."""
        batch, frames, size, _ = points.shape
        count, k = min(level.patches or size, size), min(level.neighbours, size)
        if self.patches == "frame":
            alone = points.flatten(0, 1)
            queries = self.ops.farthest_point_sample(alone, count)
            found = self.ops.extract_tpatches(alone[:, None], queries, k, max_radius=self.max_radius)
            found = type(found)(*(t.unflatten(0, (batch, frames)).squeeze(2) for t in found))
            return found, found.centers
        back = count // 2
        starts = [
            self.ops.farthest_point_sample(points[:, at], share)
            for at, share in ((0, count - back), (-1, back))
        ]
        noise = points.new_empty(batch, frames, count, 3).normal_() * self.jitter if self.training else None
        found = self.ops.bidirectional_tpatches(points, *starts, k, noise=noise, max_radius=self.max_radius)
        first, last = found.centers[:, :1, : count - back], found.centers[:, -1:, count - back :]
        return found, torch.cat([first, last], 2).expand(-1, frames, -1, -1)

    def _gather(self, values: Tensor, indices: Tensor) -> Tensor:
        """Of ``values [B, T, N, C]`` those of each frame's indices, ``[B, T, M, k, C]``."""
        rows = self.ops.gather_points(values.flatten(0, 1), indices.flatten(0, 1))
        return rows.unflatten(0, values.shape[:2])

    def _check(self, points: Tensor, features: Tensor | None) -> None:
        if not isinstance(points, Tensor):
            raise TypeError(f"points must be a torch.Tensor, got {type(points).__name__}")
        if points.dtype not in DTYPES:
            raise TypeError(f"points must be floating point, got {points.dtype}")
        if points.dim() != 4 or points.shape[3] != 3 or 0 in points.shape:
            raise ValueError(f"points must be [B, T, N, 3], none of them 0, got shape {list(points.shape)}")
        if (features is None) != (self.features == 0):
            raise ValueError(f"features must be [B, T, N, {self.features}], or None where there are none")
        if features is not None and features.shape != (*points.shape[:3], self.features):
            shape = [*points.shape[:3], self.features]
            raise ValueError(f"features must have the shape {shape}, got {list(features.shape)}")


class Norm(nn.BatchNorm1d):
    """Over the last axis, whatever is before."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, -2)).view(x.shape)


class Layer(nn.Sequential):
    """The same for every point: what a convolution of size one is, where channels are the last axis."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Linear(inputs, outputs, bias=False), Norm(outputs), nn.ReLU(inplace=True))


class Convolution(nn.Module):
    """Over the frames of ``[B, T, M, C]``; before the first and after the last there are zeros."""

    def __init__(self, inputs: int, outputs: int, frames: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(inputs, outputs, frames)
        self.margins = (frames - 1) // 2, frames // 2

    def forward(self, x: Tensor) -> Tensor:
        images = F.pad(x, (0, 0, 0, 0, *self.margins)).permute(0, 3, 1, 2)  # as channels_last
        weight, bias = self.convolution.weight[..., None], self.convolution.bias
        return F.conv2d(images, weight, bias).permute(0, 2, 3, 1)


class Attention(nn.Module):
    """Over the frames of ``[B, T, M, C]``, beside what was there."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.transpose(1, 2).flatten(0, 1)
        found = rows + self.attention(rows, rows, rows, need_weights=False)[0]
        return found.unflatten(0, (len(x), -1)).transpose(1, 2)
