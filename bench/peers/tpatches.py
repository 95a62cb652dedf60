"""Other ways to follow chains of patches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..case import Inputs, Peers
from ..ops.tpatches import TPatches

PEERS = Peers()

Search = Callable[
    [Tensor, Tensor, int], tuple[Tensor, Tensor]
]  # queries, cloud, k: squared distances, indices


def both(case: TPatches, x: Inputs, search: Search) -> tuple[Tensor, Tensor]:
    """Frame by frame, one direction after the other."""
    points, found = x["points"], []
    for start, order in (
        (x["first"], range(case.frames)),
        (x["last"], range(case.frames - 1, -1, -1)),
    ):
        query = points[:, order[0]].gather(1, start[..., None].expand(-1, -1, 3))
        rows = {}
        for t in order:
            rows[t] = search(query, points[:, t], case.k)
            nearest = rows[t][1][..., :1]
            query = points[:, t].gather(1, nearest.expand(-1, -1, 3))
        found.append([torch.stack([rows[t][i] for t in range(case.frames)], 1) for i in (1, 0)])
    indices, distances = (torch.cat(pair, 2) for pair in zip(*found, strict=True))
    return indices, distances


def differences(query: Tensor, cloud: Tensor, k: int) -> tuple[Tensor, Tensor]:
    squares = (query[:, :, None] - cloud[:, None]).square().sum(-1)
    return squares.topk(k, largest=False)


def pairwise(query: Tensor, cloud: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Not by a product of matrices, which loses digits."""
    lengths = torch.cdist(query, cloud, compute_mode="donot_use_mm_for_euclid_dist")
    nearest, indices = lengths.topk(k, largest=False)
    return nearest.square(), indices


@PEERS.peer("torch loop, cdist and topk", stock=True)
def stock(case: TPatches, x: Inputs):
    return lambda: both(case, x, pairwise)


@PEERS.peer("the paper's loop in torch", when=lambda case: case.points < 4096)
def published(case: TPatches, x: Inputs):
    """All differences and their smallest, with the patches themselves, as the published code has it."""

    def search(query: Tensor, cloud: Tensor, k: int) -> tuple[Tensor, Tensor]:
        distances, indices = differences(query, cloud, k)
        cloud.gather(1, indices.flatten(1)[..., None].expand(-1, -1, 3))
        return distances, indices

    return lambda: both(case, x, search)


@PEERS.peer("loop over cKDTree", needs="scipy", devices=("cpu",))
def trees(case: TPatches, x: Inputs):
    from scipy.spatial import cKDTree

    workers = torch.get_num_threads()

    def search(query: Tensor, cloud: Tensor, k: int) -> tuple[Tensor, Tensor]:
        pairs = zip(query.numpy(), cloud.numpy(), strict=True)
        found = [cKDTree(c).query(q, [*range(1, k + 1)], workers=workers) for q, c in pairs]
        distances, indices = (torch.stack([torch.from_numpy(f[i]) for f in found]) for i in range(2))
        return distances.float().square(), indices

    return lambda: both(case, x, search)
