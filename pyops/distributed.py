"""Graphs of neighbours and shortest paths over many processes: on several machines, or one for each GPU of a machine.

    torchrun --nproc-per-node 8 embed.py            # or --nnodes 4 --rdzv-endpoint first-machine:29500, on each of them

    torch.distributed.init_process_group()          # in embed.py; gloo serves tensors on the CPU, NCCL those on a GPU
    graph = pyops.distributed.knn_graph(x, 10)      # the whole graph, on every rank
    rows = pyops.distributed.geodesic_distances(graph)  # [N / ranks, N]: distances from the vertices ...
    mine = pyops.distributed.shard(len(x))          # ... x[mine]

Every rank holds all points and the whole graph, and does its share of the searches, which is where the time goes: a
contiguous range of the rows, as `shard` says. On CPUs one process on each machine is best; where torchrun starts more,
it gives each a single thread unless OMP_NUM_THREADS says otherwise.

Every rank of the group must make the same calls with the same tensors. That is compared first, by sizes and checksums:
where ranks differ, or one refuses its arguments, each of them raises an error, and none waits. Other failures, such as
too little memory, leave other ranks waiting until torchrun ends them, or until the timeout given to
`init_process_group`, which should be longer than one rank may be behind another.

Results are the bits of one process. So are gradients, but for the order of sums over ranks: what all ranks have alike,
points and weights, gets the whole gradient on every rank, so that every rank must call backward. With the rows of its
own share each rank computes its part of a loss, and the gradient is that of the sum of the parts; a mean is a sum by
the number of all rows. With ``gather=True`` all ranks must compute the same loss, and the gradient is that of it, once.
With the same number of ranks gradients are bitwise repeatable where the sums of the backend are, as those of gloo.

The whole gradient thus reaches parameters that lead to the points, too. DistributedDataParallel takes the mean of equal
gradients then, and leaves them as they are. Where each rank computes features of its own part of a batch instead, and a
differentiable `all_gather` collects them, whose gradient is the sum over the ranks, that mean is right again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from .ops import geodesic
from .ops import knn_graph as neighbours
from .ops.knn import knn
from .reference.knn_graph import Graph

__all__ = ["geodesic_distances", "knn_graph", "shard"]

Group = Any  # torch.distributed.ProcessGroup, which not every build has; None: that of all processes
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def shard(count: int, group: Group = None) -> slice:
    """Tells which of ``count`` rows are this rank's.

    Args:
        count: of rows, at least 0.
        group: the process group; None: all processes.

    Returns:
        A slice with ``0 <= start <= stop <= count``: ``ceil(count / ranks)`` rows; the last ranks have fewer, or none.

    Raises:
        TypeError, ValueError: ``count`` is no int of at least 0, or ``group`` no group with this process.
        RuntimeError: no process group was initialised.
    """
    rank, ranks = _place(group)
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"count must be an int, got {type(count).__name__}")
    if count < 0:
        raise ValueError(f"count must be at least 0, got {count}")
    most = -(-count // ranks)
    return slice(min(rank * most, count), min((rank + 1) * most, count))


def knn_graph(x: Tensor, k: int, *, group: Group = None) -> Graph:
    """:func:`pyops.knn_graph`, for which every rank searches the neighbours of its share of the points.

    Args:
        x: ``[N, D]``, as there; all points, the same on every rank.
        k: how many neighbours.
        group: the process group; None: all processes.

    Returns:
        The whole graph on every rank, the same bits as from one process. Its lengths are differentiable (twice) with
        respect to this rank's ``x``, without communication: what this rank does with them. If that is the same on all
        ranks, or :func:`geodesic_distances` of this module, every rank has the whole gradient; if ranks use lengths
        in ways of their own, each has its part, and ``all_reduce`` of the parts of ``x.grad`` is the whole.

    Raises:
        TypeError, ValueError: as there, or ranks differ in x or k, or the group's backend serves another device.
        RuntimeError: no process group was initialised, or another rank refuses its arguments or makes another call.

    Cost:
        The search by the number of ranks. ``8 * N * (k + 1)`` bytes reach every rank, which makes the graph of them.
    """
    with _agreement("knn_graph", group) as terms:
        neighbours._validate(x, k)
        _require_backend("x", x, group)
        terms |= {"k": k, **_described("x", x)}
    points = x.detach()
    found = knn(points[None, shard(len(x), group)], points[None], k + 1).indices[0]
    indptr, indices = torch.ops.pyops.knn_graph(_gathered(found, len(x), group))
    return Graph(indptr, indices, torch.ops.pyops.edge_lengths(x, indptr, indices))


def geodesic_distances(
    graph: Sequence[Tensor],
    sources: Tensor | None = None,
    *,
    cutoff: float | None = None,
    return_predecessors: bool = False,
    gather: bool = False,
    group: Group = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`pyops.geodesic_distances`, for which every rank serves its share of the sources.

    Args:
        graph: ``Graph(indptr [N + 1], indices [E], weights [E])``, as there, the same on every rank.
        sources: ``[S]`` int64, the same on every rank; None: all vertices.
        cutoff, return_predecessors: as there.
        gather: whether every rank gets all rows, for which it needs the memory.
        group: the process group; None: all processes.

    Returns:
        Rows ``shard(S, group)`` of what there is returned, ``[S / ranks, N]``, or with ``gather`` all, ``[S, N]``: the
        same bits as from one process. Differentiable with respect to ``graph.weights`` any number of times; every
        rank gets the whole gradient, and therefore has to call backward, even if its share is empty: without
        ``gather`` that of the sum of all ranks' losses, with it that of the loss that all ranks have in common.

    Raises:
        TypeError, ValueError: as there, or ranks differ in an argument, or the group's backend serves another device.
        RuntimeError: no process group was initialised, or another rank refuses its arguments or makes another call;
            in backward, with ``gather``, the gradients of the ranks are not of the same loss.

    Example::

        rows = pyops.distributed.geodesic_distances(graph)
        mine = pyops.distributed.shard(len(target))
        loss = (rows - target[mine]).square().sum() / target.numel()  # a part of the mean; its gradient is whole

    Cost:
        The search, and that of the gradient, by the number of ranks; a gradient moves E numbers, ``gather`` all rows.
    """
    with _agreement("geodesic_distances", group) as terms:
        indptr, indices, weights = geodesic._validate(graph)
        _require_backend("graph", indptr, group)
        for name, t in zip(("graph.indptr", "graph.indices", "graph.weights"), graph, strict=True):
            terms |= _described(name, t)
        if sources is not None:
            geodesic._validate_sources(sources, indptr, len(indptr) - 1)
            terms |= _described("sources", sources)
        geodesic._validate_cutoff(cutoff)
        terms |= {"cutoff": cutoff, "return_predecessors": bool(return_predecessors), "gather": bool(gather)}
        terms["whether graph.weights need a gradient"] = weights.requires_grad and torch.is_grad_enabled()
    if sources is None:
        sources = torch.arange(len(indptr) - 1, device=indptr.device)
    count = len(sources)
    here = Graph(indptr, indices, _Between.apply(weights, _same, partial(_summed, group=group)))
    found = geodesic.geodesic_distances(
        here, sources[shard(count, group)], cutoff=cutoff, return_predecessors=return_predecessors
    )
    if not gather:
        return found
    whole, own = partial(_gathered, count=count, group=group), partial(_own, group=group)
    if isinstance(found, Tensor):
        return _Between.apply(found, whole, own)
    return _Between.apply(found[0], whole, own), whole(found[1])


# ---- ranks -----------------------------------------------------------------------------------------------------------


def _place(group: Group) -> tuple[int, int]:
    """This rank, and how many there are."""
    if not dist.is_available():
        raise RuntimeError("pyops.distributed needs a PyTorch with torch.distributed, and this one has none")
    if not dist.is_initialized():
        raise RuntimeError(
            "pyops.distributed needs a process group: start the program with torchrun, and call "
            "torch.distributed.init_process_group() in it first"
        )
    outside = group is dist.GroupMember.NON_GROUP_MEMBER
    if group is not None and not outside and not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"group must be a torch.distributed.ProcessGroup or None, got {type(group).__name__}")
    if outside or dist.get_rank(group) < 0:
        raise ValueError(f"group must hold this process, rank {dist.get_rank()} of all, and does not")
    return dist.get_rank(group), dist.get_world_size(group)


@contextmanager
def _agreement(call: str, group: Group) -> Iterator[dict[str, Any]]:
    """Collects what has to be alike on all ranks and compares it, also with ranks that refuse an argument."""
    said: list[Any] = [None] * _place(group)[1]
    terms: dict[str, Any] = {}
    refused = None
    try:
        yield terms
    except Exception as error:
        refused = error
    problem = refused and f"{type(refused).__name__}: {refused}"
    dist.all_gather_object(said, (call, problem, terms), group=group)
    if refused is not None:
        raise refused
    first, _, expected = said[0]
    for other, (name, problem, _) in enumerate(said):
        if name != first:
            raise RuntimeError(f"ranks must make the same call, got {first} on rank 0 and {name} on {other}")
        if problem is not None:
            raise RuntimeError(f"{call} has arguments on rank {other} that it refuses there: {problem}")
    for other, (_, _, given) in enumerate(said):
        for name in {**expected, **given} if given != expected else ():
            if given.get(name) != expected.get(name):
                raise ValueError(
                    f"{name} must be the same on every rank, got {expected.get(name)} on rank 0 and {given.get(name)} "
                    f"on rank {other}: give all ranks the same, for example by torch.distributed.broadcast from one"
                )


def _described(name: str, t: Tensor) -> dict[str, Any]:
    rows = t.detach().view(_BITS[t.dtype.itemsize]).unsqueeze(-1).flatten(1).sum(1)
    check = (rows * torch.arange(1, len(t) + 1, device=t.device)).sum()
    return {
        f"the shape of {name}": list(t.shape),
        f"the dtype of {name}": t.dtype,
        f"the checksum of {name}": f"{int(check) & (1 << 64) - 1:016x}",
        f"the device of {name}": t.device.type,
    }


def _require_backend(name: str, t: Tensor, group: Group) -> None:
    backends = dict(pair.split(":") for pair in dist.get_backend_config(group).split(","))
    if t.device.type in backends and (t.device.type, backends[t.device.type]) != ("cuda", "gloo"):
        return
    raise ValueError(
        f"{name} is on {t.device}, which the group's backend ({dist.get_backend_config(group)}) does not serve: move "
        'it to another device, or make the group with backend="cpu:gloo,cuda:nccl"'
    )


def _gathered(share: Tensor, count: int, group: Group) -> Tensor:
    """All rows from their shares, which are of one size but for the last, so that all rows come to their place."""
    ranks = dist.get_world_size(group)
    most = -(-count // ranks)
    out = share.new_empty(ranks * most, *share.shape[1:])
    if out.numel() > 0:
        padding = share.new_zeros(most - len(share), *share.shape[1:])
        padded = torch.cat([share, padding]) if len(padding) else share.contiguous()
        # Until torch 2.12 the name is all_gather_into_tensor.
        (getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor)(out, padded, group=group)
    return out[:count]


def _require_one_loss(grad: Tensor, group: Group) -> None:
    """Of a gradient of all rows, the norms of all shares must agree but for rounding."""
    ranks = dist.get_world_size(group)
    parts = grad.split(max(1, -(-len(grad) // ranks)))
    own = torch.stack([torch.linalg.vector_norm(part, dtype=torch.float64) for part in parts])
    norms = _gathered(own[None], ranks, group)
    little = 1e-3 * float(norms[0].nan_to_num().max())
    if not torch.allclose(norms, norms[:1], rtol=1e-3, atol=little, equal_nan=True):
        raise RuntimeError(
            "with gather=True every rank must compute the same loss of the distances, and their gradients differ: "
            "compute the same, or let each rank compute its part from its own rows, without gather"
        )


# ---- gradients -------------------------------------------------------------------------------------------------------


class _Between(Function):
    """A linear map from what all ranks have alike to parts or shares of it, or back: each is the other's gradient."""

    @staticmethod
    def forward(ctx, t, there, back):
        ctx.ways = there, back
        return there(t)

    @staticmethod
    def backward(ctx, grad):
        there, back = ctx.ways
        return _Between.apply(grad, back, there), None, None


def _same(t: Tensor) -> Tensor:
    return t.view_as(t)


def _summed(part: Tensor, group: Group) -> Tensor:
    total = part.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def _own(rows: Tensor, group: Group) -> Tensor:
    _require_one_loss(rows, group)
    return rows[shard(len(rows), group)].clone()
