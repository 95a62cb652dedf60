"""Layers of MoChaStereo: motif channel attention, aggregation of the volume, update, upsampling and refinement."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOTIFS = 4
GROUPS = 8
VOLUME = (8, 16, 32, 48)  # channels of the volume at 1/4, 1/8, 1/16 and 1/32


def _norm(channels: int) -> nn.GroupNorm:
    """Of one image at a time, so that a batch of one trains; 8 channels together, so that 1 x 1 pixel does."""
    return nn.GroupNorm(channels // 8 if channels % 8 == 0 else 1, channels)


def conv2d(before: int, after: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    layer = nn.Conv2d(before, after, kernel, stride, padding, dilation, bias=False)
    return nn.Sequential(layer, _norm(after), nn.LeakyReLU(inplace=True))


def conv3d(before: int, after: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    layer = nn.Conv3d(before, after, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(layer, _norm(after), nn.LeakyReLU(inplace=True))


class Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.convs = nn.Sequential(conv2d(before, after, 3, stride), conv2d(after, after))
        same = stride == 1 and before == after
        self.shortcut = nn.Identity() if same else nn.Conv2d(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.convs(x) + self.shortcut(x))


class Up(nn.Module):
    """Twice the size, beside what had that size before: ``skip`` channels each."""

    def __init__(self, before: int, skip: int, after: int) -> None:
        super().__init__()
        self.up = nn.Sequential(
            nn.ConvTranspose2d(before, skip, 4, 2, 1, bias=False), _norm(skip), nn.LeakyReLU(inplace=True)
        )
        self.mix = conv2d(2 * skip, after)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.mix(torch.cat([self.up(x), skip], 1))


# ---- motif channels and the volume -----------------------------------------------------------------------------------


class MotifAttention(nn.Module):
    """Section 3.2: motif channels of both views, projected onto the features of one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.windows = nn.Conv2d(2 * channels, MOTIFS, 3, padding=1, bias=False)
        self.kernel = nn.Parameter(torch.empty(MOTIFS, 3, 3, 3).uniform_(-1, 1) / (27 * MOTIFS) ** 0.5)
        # Each window sums over all channels what the high-pass has summed over them: softmax must not start saturated.
        nn.init.normal_(self.windows.weight, std=1 / (18 * channels))

    def forward(self, features: Tensor, other: Tensor, ops: Any) -> Tensor:
        motif = self.windows(ops.constant_highpass(torch.cat([features, other], 1))).softmax(1)
        # One channel of a volume [C, H, W]: its instance norm is a group norm here.
        return F.leaky_relu(F.group_norm(ops.camp_conv(motif, features, self.kernel), 1))


class Gate(nn.Module):
    """Weights the channels of a volume, the same for all disparities, by features."""

    def __init__(self, volume: int, features: int) -> None:
        super().__init__()
        self.attend = nn.Sequential(conv2d(features, features // 2, 1), nn.Conv2d(features // 2, volume, 1))

    def forward(self, volume: Tensor, features: Tensor) -> Tensor:
        return volume * self.attend(features).sigmoid().unsqueeze(2)


class Hourglass(nn.Module):
    """3D convolutions down to 1/32 and back to 1/4, gated at 1/8, 1/16 and 1/32, added to what they started from.

    The sum is not in the paper: with it the features learn to match much sooner.
    """

    def __init__(self, features: Sequence[int]) -> None:
        super().__init__()
        coarse = VOLUME[1:]
        self.down = nn.ModuleList(
            nn.Sequential(conv3d(c, d, stride=2), conv3d(d, d)) for c, d in itertools.pairwise(VOLUME)
        )
        self.gates = nn.ModuleList(Gate(c, f) for c, f in zip(coarse, features, strict=True))
        self.up = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose3d(d, c, 4, 2, 1, bias=False), _norm(c), nn.LeakyReLU(inplace=True))
            for c, d in itertools.pairwise(coarse)
        )
        self.mix = nn.ModuleList(
            nn.Sequential(conv3d(2 * c, c, 1), conv3d(c, c), conv3d(c, c)) for c in coarse[:-1]
        )
        self.up_gates = nn.ModuleList(Gate(c, f) for c, f in zip(coarse[:-1], features[:-1], strict=True))
        self.last = nn.ConvTranspose3d(coarse[0], VOLUME[0], 4, 2, 1, bias=False)

    def forward(self, volume: Tensor, features: Sequence[Tensor]) -> Tensor:
        x, skips = volume, []
        for down, gate, f in zip(self.down, self.gates, features, strict=True):
            skips.append(x := gate(down(x), f))
        for i in (1, 0):
            x = self.mix[i](torch.cat([self.up[i](x), skips[i]], 1))
            x = self.up_gates[i](x, features[i])
        return volume + self.last(x)


# ---- update ----------------------------------------------------------------------------------------------------------


class ConvGRU(nn.Module):
    def __init__(self, hidden: int, inputs: int) -> None:
        super().__init__()
        self.gates = nn.Conv2d(hidden + inputs, 2 * hidden, 3, padding=1)
        self.candidate = nn.Conv2d(hidden + inputs, hidden, 3, padding=1)

    def forward(self, h: Tensor, context: tuple[Tensor, Tensor], *inputs: Tensor) -> Tensor:
        x = torch.cat(inputs, 1)
        update, reset = (self.gates(torch.cat([h, x], 1)) + context[0]).sigmoid().chunk(2, 1)
        new = (self.candidate(torch.cat([reset * h, x], 1)) + context[1]).tanh()
        return h + update * (new - h)


class MotionEncoder(nn.Module):
    """What the lookup found, and the disparity where it looked."""

    def __init__(self, taps: int, inside: int, after: int) -> None:
        super().__init__()
        relu = nn.ReLU(inplace=True)
        self.cost = nn.Sequential(
            nn.Conv2d(taps, inside, 1), relu, nn.Conv2d(inside, inside, 3, padding=1), relu
        )
        self.disparity = nn.Sequential(
            nn.Conv2d(1, inside, 7, padding=3), relu, nn.Conv2d(inside, inside, 3, padding=1), relu
        )
        self.mix = nn.Sequential(nn.Conv2d(2 * inside, after - 1, 3, padding=1), relu)

    def forward(self, cost: Tensor, disparity: Tensor) -> Tensor:
        found = torch.cat([self.cost(cost), self.disparity(disparity)], 1)
        return torch.cat([self.mix(found), disparity], 1)


class Update(nn.Module):
    """Section 3.3: recurrent units at 1/16, 1/8 and 1/4, from coarse to fine, then a step of the disparity."""

    def __init__(self, taps: int, hidden: int, motion: tuple[int, int], head: int) -> None:
        super().__init__()
        self.motion = MotionEncoder(taps, *motion)
        self.gru4 = ConvGRU(hidden, motion[1] + hidden)
        self.gru8 = ConvGRU(hidden, 2 * hidden)
        self.gru16 = ConvGRU(hidden, hidden)
        self.head = nn.Sequential(
            nn.Conv2d(hidden, head, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(head, 1, 3, padding=1)
        )

    def forward(
        self,
        hidden: Sequence[Tensor],
        context: Sequence[tuple[Tensor, Tensor]],
        cost: Tensor,
        disparity: Tensor,
    ) -> tuple[list[Tensor], Tensor]:
        h4, h8, h16 = hidden
        h16 = self.gru16(h16, context[2], _halved(h8))
        h8 = self.gru8(h8, context[1], _halved(h4), _resized(h16, h8))
        h4 = self.gru4(h4, context[0], self.motion(cost, disparity), _resized(h8, h4))
        return [h4, h8, h16], self.head(h4)


def _halved(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 2, 1)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=True)


# ---- full resolution -------------------------------------------------------------------------------------------------


class UpsampleWeights(nn.Module):
    """``[B, 9, H, W]``: how much of each of the 3 x 3 coarse neighbours a pixel takes."""

    def __init__(self, before: int, stem: int) -> None:
        super().__init__()
        self.twice = Up(before, stem, 2 * stem)
        self.last = nn.ConvTranspose2d(2 * stem, 9, 4, 2, 1)

    def forward(self, features: Tensor, stem: Tensor) -> Tensor:
        return self.last(self.twice(features, stem)).softmax(1)


class Refinement(nn.Module):
    """Section 3.4, reconstruction error motif penalty; ``widths`` are those of its U-Net at 1, 1/2, 1/4 and so on."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        c = widths[0]
        self.error, self.disparity = conv2d(6, c // 2), conv2d(1, c // 2)
        self.first = conv2d(c, c, dilation=2)
        self.down = nn.ModuleList(conv2d(a, b, stride=2) for a, b in itertools.pairwise(widths))
        self.up = nn.ModuleList(Up(b, a, a) for a, b in itertools.pairwise(widths))
        self.low = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, 2 * c, 1), nn.ReLU(), nn.Conv2d(2 * c, c, 1), nn.Sigmoid()
        )
        sizes = ((c, c), (c, 2 * c), (2 * c, c))
        a, b, d = (nn.Conv2d(before, after, 3, padding=1) for before, after in sizes)
        self.motif = nn.Sequential(a, b, nn.ReLU(inplace=True), d, nn.Sigmoid())
        self.last = nn.Conv2d(c, 1, 3, padding=1)

    def forward(self, disparity: Tensor, left: Tensor, right: Tensor, ops: Any) -> Tensor:
        error = ops.disparity_warp(right, disparity) - left
        x = self.first(torch.cat([self.error(torch.cat([error, left], 1)), self.disparity(disparity)], 1))
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(x)
        for up in reversed(self.up):
            x = up(x, skips.pop())
        motif = self.motif(x)
        return self.last((1 - motif) * self.low(x) + motif * x)
