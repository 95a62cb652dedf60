"""Other ways to connect nearest neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from ..case import Inputs, Peers
from ..ops.knn_graph import KnnGraph

PEERS = Peers()


def _forward(case: KnnGraph) -> bool:
    return not case.backward


def composed(x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """torch.cdist and topk, some points at a time, and the union as sorted numbers of edges."""
    count, found = len(x), []
    for part in x.detach().split(max(1, (1 << 24) // count)):
        distances = torch.cdist(part, x.detach(), compute_mode="donot_use_mm_for_euclid_dist")
        found.append(distances.topk(k + 1, largest=False).indices[:, 1:])
    ends = torch.cat(found).flatten()
    rows = torch.arange(count, device=x.device).repeat_interleave(k)
    edges = torch.cat([rows * count + ends, ends * count + rows]).unique()
    rows, ends = edges // count, edges % count
    indptr = torch.searchsorted(edges, torch.arange(count + 1, device=x.device) * count)
    return indptr, ends, (x[rows] - x[ends]).norm(dim=1)


@PEERS.peer("torch.cdist, topk, unique", stock=True)
def stock(case: KnnGraph, x: Inputs):
    return case.task(composed, x)


@PEERS.peer("scikit-learn", needs="sklearn", devices=("cpu",), when=_forward)
def scikit_learn(case: KnnGraph, x: Inputs):
    from sklearn.neighbors import kneighbors_graph

    def graph(points, k):
        one_way = kneighbors_graph(points.numpy(), k, mode="distance", n_jobs=torch.get_num_threads())
        both = one_way.maximum(one_way.T)
        both.sort_indices()
        return both.indptr, both.indices, both.data

    return case.task(graph, x)


@PEERS.peer(
    "scipy cKDTree", needs="scipy", devices=("cpu",), when=lambda case: _forward(case) and case.dims <= 16
)
def scipy_tree(case: KnnGraph, x: Inputs):
    from scipy.sparse import csr_array
    from scipy.spatial import cKDTree

    def graph(points, k):
        array = points.numpy()
        distances, indices = cKDTree(array).query(array, k + 1, workers=torch.get_num_threads())
        begins = torch.arange(0, len(array) * k + 1, k).numpy()
        one_way = csr_array(
            (distances[:, 1:].ravel(), indices[:, 1:].ravel(), begins), shape=(len(array), len(array))
        )
        both = one_way.maximum(one_way.T.tocsr())
        both.sort_indices()
        return both.indptr, both.indices, both.data

    return case.task(graph, x)
