"""Other ways to multiply in the min-plus semiring, by dense and sparse matrices, and to find shortest distances."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from ..case import Contestant, Inputs, Peers
from ..ops.minplus import MinPlus, Reach, closed

PEERS = Peers()

_MOST = 1 << 28  # sums in memory at a time


def all_sums(a: Tensor, b: Tensor) -> Tensor:
    """All sums, as many rows of them at a time as memory should hold."""
    step = max(1, _MOST // (a.shape[0] * a.shape[2] * b.shape[2]))
    return torch.cat([(rows[..., None] + b[:, None]).amin(2) for rows in a.split(step, 1)], 1)


def step_by_step(weights: Tensor) -> Tensor:
    """The same as `closed`, where autograd can follow."""
    own = torch.eye(weights.shape[-1], dtype=torch.bool, device=weights.device)
    distances = weights.masked_fill(own, 0)
    for k in range(weights.shape[-1]):
        distances = torch.minimum(distances, distances[..., k, None] + distances[..., None, k, :])
    return distances


def edge_by_edge(lengths: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
    """The rows of one neighbour each point, then of the next."""
    least = rows.new_full((len(lengths), rows.shape[1]), torch.inf)
    for length, index in zip(lengths.unbind(1), indices.unbind(1), strict=True):
        least = torch.minimum(least, rows[index] + length[:, None])
    return least


def all_edges(lengths: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
    """All rows of some points at a time."""
    step = max(1, _MOST // (lengths.shape[1] * rows.shape[1]))
    parts = zip(lengths.split(step), indices.split(step), strict=True)
    return torch.cat([(rows[index] + length[..., None]).amin(1) for length, index in parts])


def _sparse(case: MinPlus | Reach) -> bool:
    return isinstance(case, Reach)


def _plain(case: MinPlus | Reach) -> bool:
    """What libraries for arrays take."""
    return case.dtype == torch.float32 and not case.backward


@cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Once, or every copy of the inputs would compile anew."""
    return torch.compile(function, dynamic=False)


@PEERS.peer("torch", stock=True, when=lambda case: not _sparse(case))
def stock(case: MinPlus, x: Inputs):
    if case.paths:
        return case.task(step_by_step if case.backward else closed, x)
    return case.task(all_sums, x)


@PEERS.peer(
    "torch.compile",
    when=lambda case: not _sparse(case) and not case.overhead and not case.paths,
    slow_start=True,
    cpu_headlines_only=True,
)
def compiled(case: MinPlus, x: Inputs):
    return case.task(_compiled(lambda a, b: (a[..., None] + b[:, None]).amin(2)), x)


@PEERS.peer(
    "scipy",
    needs="scipy",
    devices=("cpu",),
    when=lambda case: not _sparse(case) and _plain(case) and case.paths,
)
def scipy_floyd_warshall(case: MinPlus, x: Inputs):
    from scipy.sparse.csgraph import floyd_warshall

    graphs = list(x["weights"].numpy())

    def view(found):
        return [torch.stack([torch.from_numpy(t) for t in found]).float()]

    return Contestant(lambda: [floyd_warshall(graph) for graph in graphs], view=view)


@PEERS.peer(
    "tropical-gemm",
    needs="tropical_gemm",
    devices=("cpu",),
    when=lambda case: not _sparse(case) and _plain(case) and not case.paths and case.batch == 1,
)
def tropical_gemm(case: MinPlus, x: Inputs):
    from tropical_gemm import minplus_matmul

    a, b = (x[name][0].numpy() for name in ("a", "b"))
    return Contestant(
        lambda: minplus_matmul(a, b),
        view=lambda found: [torch.as_tensor(found).view(1, case.size, case.size)],
    )


@PEERS.peer("torch", stock=True, when=_sparse)
def stock_edges(case: Reach, x: Inputs):
    return case.task(edge_by_edge, x)


@PEERS.peer("torch, all edges", when=_sparse)
def gathered_edges(case: Reach, x: Inputs):
    return case.task(all_edges, x)


@PEERS.peer(
    "torch.compile",
    when=lambda case: _sparse(case) and not case.overhead,
    slow_start=True,
    cpu_headlines_only=True,
)
def compiled_edges(case: Reach, x: Inputs):
    return case.task(_compiled(edge_by_edge), x)


@PEERS.peer(
    "numpy, as scikit-learn",
    needs="numpy",
    devices=("cpu",),
    when=lambda case: _sparse(case) and _plain(case),
)
def numpy_rows(case: Reach, x: Inputs):
    import numpy as np

    lengths, indices, rows = (x[name].numpy() for name in ("lengths", "indices", "rows"))

    def run():
        least = np.zeros((case.queries, case.points), rows.dtype)
        for i in range(case.queries):
            least[i] = np.min(rows[indices[i]] + lengths[i][:, None], 0)
        return least

    return Contestant(run, view=lambda found: [torch.from_numpy(found)])
