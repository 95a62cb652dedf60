"""Features of MoChaStereo: maps at 1/4, 1/8, 1/16 and 1/32 of an image."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .mocha_layers import Residual, Up, conv2d


class Encoder(nn.Module):
    """Residual blocks, ``[B, 3, H, W]`` to maps at 1/4, 1/8 and so on; ``widths`` are those at 1/2, 1/4, ..."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(widths[1:])
        self.first = conv2d(3, widths[0], stride=2)
        self.stages = nn.ModuleList(Residual(c, d, 2) for c, d in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> list[Tensor]:
        x, maps = self.first(x), []
        for stage in self.stages:
            maps.append(x := stage(x))
        return maps


class TimmEncoder(nn.Module):
    """Maps at 1/4, 1/8, 1/16 and 1/32 by a network of timm; with pretrained weights it stays as it is (section 3.1)."""

    def __init__(self, name: str, pretrained: bool) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise ImportError(f"backbone {name!r} is a network of timm: pip install timm") from error
        self.frozen = pretrained
        network: Any = timm.create_model(name, features_only=True, pretrained=pretrained)
        reductions = network.feature_info.reduction()
        if not {4, 8, 16, 32} <= set(reductions):
            raise ValueError(f"backbone must have maps at 1/4, 1/8, 1/16 and 1/32, {name!r}: {reductions}")
        self.indices = [reductions.index(r) for r in (4, 8, 16, 32)]
        self.channels = tuple(network.feature_info.channels()[i] for i in self.indices)
        self.network = network.requires_grad_(not pretrained)

    def train(self, mode: bool = True) -> TimmEncoder:
        super().train(mode)
        self.network.train(mode and not self.frozen)
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self.network(x)
        return [maps[i] for i in self.indices]


class Features(nn.Module):
    """Brings what coarse maps of an encoder know to the finer ones."""

    def __init__(self, encoder: Encoder | TimmEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        c4, c8, c16, c32 = encoder.channels
        self.channels = (2 * c4, 2 * c8, 2 * c16, c32)
        self.up = nn.ModuleList(
            Up(before, skip, 2 * skip) for before, skip in ((c32, c16), (2 * c16, c8), (2 * c8, c4))
        )
        self.last = conv2d(2 * c4, 2 * c4)

    def forward(self, image: Tensor) -> list[Tensor]:
        *skips, x = self.encoder(image)
        maps = [x]
        for up in self.up:
            maps.insert(0, up(maps[0], skips.pop()))
        maps[0] = self.last(maps[0])
        return maps
