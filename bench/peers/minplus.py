"""Other ways to multiply in the min-plus semiring, and to find shortest distances of dense graphs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from ..case import Contestant, Inputs, Peers
from ..ops.minplus import MinPlus, closed

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


def _plain(case: MinPlus) -> bool:
    """What libraries for arrays take."""
    return case.dtype == torch.float32 and not case.backward


@cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Once, or every copy of the inputs would compile anew."""
    return torch.compile(function, dynamic=False)


@PEERS.peer("torch", stock=True)
def stock(case: MinPlus, x: Inputs):
    if case.paths:
        return case.task(step_by_step if case.backward else closed, x)
    return case.task(all_sums, x)


@PEERS.peer(
    "torch.compile",
    when=lambda case: not case.overhead and not case.paths,
    slow_start=True,
    cpu_headlines_only=True,
)
def compiled(case: MinPlus, x: Inputs):
    return case.task(_compiled(lambda a, b: (a[..., None] + b[:, None]).amin(2)), x)


@PEERS.peer("scipy", needs="scipy", devices=("cpu",), when=lambda case: _plain(case) and case.paths)
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
    when=lambda case: _plain(case) and not case.paths and case.batch == 1,
)
def tropical_gemm(case: MinPlus, x: Inputs):
    from tropical_gemm import minplus_matmul

    a, b = (x[name][0].numpy() for name in ("a", "b"))
    return Contestant(
        lambda: minplus_matmul(a, b),
        view=lambda found: [torch.as_tensor(found).view(1, case.size, case.size)],
    )
