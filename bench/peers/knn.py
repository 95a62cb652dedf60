"""Other ways to find nearest neighbours."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..case import Contestant, Inputs, Peers
from ..ops.knn import Knn, nearest

PEERS = Peers()


def _plain(case: Knn) -> bool:
    """What libraries for arrays take."""
    return case.dtype == torch.float32 and not case.backward


def _few_dimensions(case: Knn) -> bool:
    return _plain(case) and case.dims <= 16


def cloud_by_cloud(search, query: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Squared distances and indices by a library that knows no batches."""
    found = [search(q, p, k) for q, p in zip(query.numpy(), points.numpy(), strict=True)]
    squared, indices = (torch.stack([torch.as_tensor(f[side]) for f in found]) for side in (0, 1))
    return squared, indices


@PEERS.peer("torch.cdist, topk", stock=True)
def stock(case: Knn, x: Inputs):
    """From differences; products of matrices are faster, and wrong far from the origin."""
    if case.dtype == torch.float32:
        return case.task(nearest, x)

    def in_float(query, points, k):
        squared, indices = nearest(query.float(), points.float(), k)
        return squared.to(query.dtype), indices

    return case.task(in_float, x)


def _affordable(case: Knn) -> bool:
    """On a GPU, where a reference and another of its kind have had their seconds."""
    return _plain(case) and case.batch * case.queries * case.points <= 1 << 31


@PEERS.peer("torch.cdist by products, topk", when=_affordable)
def products(case: Knn, x: Inputs):
    def search(query, points, k):
        parts = []
        for part in query.split(max(1, (1 << 24) // (points.shape[0] * points.shape[1])), 1):
            distances = torch.cdist(part, points, compute_mode="use_mm_for_euclid_dist")
            parts.append(distances.topk(k, largest=False, sorted=True))
        return torch.cat([p.values for p in parts], 1).square(), torch.cat([p.indices for p in parts], 1)

    return case.task(search, x)


@PEERS.peer(
    "torch matmul, nothing else (a part)", when=lambda case: _plain(case) and case.dims >= 64, part=True
)
def product(case: Knn, x: Inputs):
    """The GEMM that a search among descriptors rests on; the neighbours themselves outside the clock."""
    found = case.task(nearest, x)
    points = x["points"].mT
    return Contestant(lambda: x["query"] @ points, view=lambda _: found.view(found.call()))


@PEERS.peer("scipy cKDTree", needs="scipy", devices=("cpu",), when=_few_dimensions)
def scipy_tree(case: Knn, x: Inputs):
    from scipy.spatial import cKDTree

    def one(query, points, k):
        distances, indices = cKDTree(points).query(query, k, workers=torch.get_num_threads())
        return distances**2, indices

    return case.task(lambda *given: cloud_by_cloud(one, *given), x)


@PEERS.peer("scikit-learn", needs="sklearn", devices=("cpu",), when=_plain)
def scikit_learn(case: Knn, x: Inputs):
    from sklearn.neighbors import NearestNeighbors

    def one(query, points, k):
        searched = NearestNeighbors(n_neighbors=k, n_jobs=torch.get_num_threads()).fit(points)
        distances, indices = searched.kneighbors(query)
        return distances**2, indices

    return case.task(lambda *given: cloud_by_cloud(one, *given), x)


@PEERS.peer("faiss flat", needs="faiss", devices=("cpu",), when=_plain)
def faiss_flat(case: Knn, x: Inputs):
    import faiss

    def one(query, points, k):
        index = faiss.IndexFlatL2(points.shape[1])
        index.add(points)
        return index.search(query, k)

    return case.task(lambda *given: cloud_by_cloud(one, *given), x)


@PEERS.peer("flashlib", needs="flashlib", devices=("cuda",), when=_plain, slow_start=True)
def flash(case: Knn, x: Inputs):
    """Exact but for rounding: neighbours by products of matrices, then their distances from differences."""
    from flashlib import flash_knn

    return case.task(lambda query, points, k: flash_knn(query, points, k), x)


@PEERS.peer("CuPy KDTree", needs="cupy", devices=("cuda",), when=_few_dimensions, slow_start=True)
def cupy_tree(case: Knn, x: Inputs):
    import cupy
    from cupyx.scipy.spatial import KDTree

    def search(query: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
        with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
            pairs = [(cupy.from_dlpack(q), cupy.from_dlpack(p)) for q, p in zip(query, points, strict=True)]
            found = [KDTree(p).query(q, k) for q, p in pairs]
        squared, indices = (torch.stack([torch.from_dlpack(f[i]) for f in found]) for i in (0, 1))
        return squared.square(), indices

    return replace(case.task(search, x), graph=False)


@PEERS.peer("pykeops", needs="pykeops", when=_plain, slow_start=True)
def keops(case: Knn, x: Inputs):
    from pykeops.torch import LazyTensor

    def search(query, points, k):
        offsets = LazyTensor(query[:, :, None].contiguous()) - LazyTensor(points[:, None].contiguous())
        return (offsets**2).sum(-1).Kmin_argKmin(k, dim=2)

    return case.task(search, x)


@PEERS.peer("torch-cluster", needs="torch_cluster", when=lambda case: _few_dimensions(case) and case.k <= 100)
def cluster(case: Knn, x: Inputs):
    from torch_cluster import knn

    def search(query, points, k):
        (batch, queries, _), count = query.shape, points.shape[1]
        clouds = [torch.arange(batch, device=query.device).repeat_interleave(n) for n in (count, queries)]
        _, found = knn(points.flatten(0, 1), query.flatten(0, 1), k, *clouds)
        offsets = query[:, :, None] - points.flatten(0, 1)[found].view(batch, queries, k, -1)
        first = count * torch.arange(batch, device=query.device)[:, None, None]
        return offsets.square().sum(-1), found.view(batch, queries, k) - first

    return case.task(search, x)
