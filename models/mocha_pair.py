"""MoCha-Stereo at work on a pair: features and volume once, then update after update."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .mocha_layers import GROUPS

if TYPE_CHECKING:
    from .mocha_stereo import MoChaStereo

LEVELS, RADIUS = 2, 4  # of the lookup
COARSEST = 32


class Pair:
    """What a model knows of two images before the first update, and the updates."""

    def __init__(self, model: MoChaStereo, left: Tensor, right: Tensor) -> None:
        self.model, self.shape = model, left.shape[2:]
        dtype = model.classifier.weight.dtype
        views = torch.cat([left, right]).to(dtype) / 127.5 - 1
        bottom, end = (-n % COARSEST for n in self.shape)
        views = F.pad(views, (0, end, 0, bottom), mode="replicate")
        self.left, self.right = views.chunk(2)
        views = views.contiguous(memory_format=torch.channels_last)
        stem, maps = model.stem2(views), model.features(views)
        maps[0] = torch.cat([maps[0], model.stem4(stem)], 1)
        self.stem = stem.chunk(2)[0]
        self.features = [m.chunk(2)[0] for m in maps]
        match = model.match(maps[0])
        left, right = F.group_norm(match, match.shape[1]).chunk(
            2
        )  # what all pixels have in common says nothing
        volume = self._aggregated(left, right, maps)
        cost = model.classifier(volume).squeeze(1).softmax(1)
        steps = torch.arange(cost.shape[1], dtype=dtype, device=cost.device).view(1, -1, 1, 1)
        self.first = (cost * steps).sum(1, keepdim=True)
        self.volumes = [volume.contiguous()]
        for _ in range(LEVELS - 1):
            self.volumes.append(F.avg_pool3d(self.volumes[-1], (2, 1, 1)))
        self.pyramid = model.ops.corr1d_pyramid(left, right, LEVELS)
        known = self.features if model.context is None else model.context(views[: len(self.left)])
        self.hidden = [conv(x).tanh() for conv, x in zip(model.hidden, known, strict=False)]
        self.inputs = []
        for conv, x, h in zip(model.inputs, known, self.hidden, strict=False):
            gates, candidate = conv(x).split((2 * h.shape[1], h.shape[1]), 1)
            self.inputs.append((gates, candidate))

    def _aggregated(self, left: Tensor, right: Tensor, maps: list[Tensor]) -> Tensor:
        """The cost volume ``[B, 8, max_disparity / 4, h, w]`` of descriptors, section 3.2."""
        model, ops, count = self.model, self.model.ops, self.model.max_disparity // 4
        other = [torch.cat(m.chunk(2)[::-1]) for m in maps]  # of each view the other one
        wanted = len(self.left) * (2 if model.paper else 1)
        channels = model.motifs[0](maps[0][:wanted], other[0][:wanted], ops)
        volume = self._correlation(left, right, count, GROUPS)
        if model.paper:
            here, there = channels.chunk(2)
            volume = volume * self._correlation(here, there, count, 1)
        volume = model.volume_stem(volume.contiguous(memory_format=torch.channels_last_3d))
        volume = model.volume_gate(volume, self.features[0] if model.paper else channels)
        attention = [
            motif(f, o[: len(f)], ops)
            for motif, f, o in zip(model.motifs[1:], self.features[1:3], other[1:3], strict=True)
        ]
        return model.hourglass(volume, [*attention, self.features[3]])

    def _correlation(self, left: Tensor, right: Tensor, count: int, groups: int) -> Tensor:
        seen = min(count, left.shape[3])  # beyond the width there is nothing to match
        volume = self.model.ops.groupwise_correlation(left, right, seen, groups)
        return F.pad(volume, (0, 0, 0, 0, 0, count - seen))

    def updates(self, iters: int, cuda_graph: bool = False) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Disparity at 1/4, in its pixels, and hidden states after each update; valid until the next."""
        disparity, hidden = self._step(self.first, self.hidden)
        yield disparity, hidden
        if cuda_graph and iters > 1:
            yield from self._replayed(disparity, hidden, iters - 1)
            return
        for _ in range(iters - 1):
            disparity, hidden = self._step(disparity, hidden)
            yield disparity, hidden

    def _step(self, disparity: Tensor, hidden: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        disparity = disparity.detach()
        cost = self.model.ops.geometry_lookup(self.volumes, self.pyramid, disparity.squeeze(1), RADIUS)
        hidden, change = self.model.update(hidden, self.inputs, cost, disparity)
        return disparity + change, hidden

    def _replayed(
        self, disparity: Tensor, hidden: list[Tensor], iters: int
    ) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """The first update, which is behind us, has warmed everything up that must not run within a capture."""
        state, graph = [disparity.clone(), *(h.clone() for h in hidden)], torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            after, states = self._step(state[0], state[1:])
            for old, new in zip(state, [after, *states], strict=True):
                old.copy_(new)
        for _ in range(iters):
            graph.replay()
            yield state[0], state[1:]

    def upsampled(self, disparity: Tensor, hidden: list[Tensor]) -> Tensor:
        model = self.model
        weights = model.weights(model.features_of_hidden(hidden[0]), self.stem)
        return model.ops.context_upsample(4 * disparity, weights)

    def refined(self, disparity: Tensor) -> Tensor:
        model = self.model
        residual = model.refinement(disparity, self.left, self.right, model.ops)
        if not model.paper:
            residual = (disparity + residual).relu()
        return self.cropped(disparity - residual)

    def cropped(self, full: Tensor) -> Tensor:
        return full[..., : self.shape[0], : self.shape[1]]
