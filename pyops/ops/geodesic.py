"""Shortest paths from many sources in weighted graphs, differentiable with respect to the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from .. import _op
from ..reference.geodesic import path_sums, rows_of_edges
from ._validate import _require_device

_METHODS = ("auto", "sweeps", "dijkstra")


@overload
def geodesic_distances(
    graph: Sequence[Tensor],
    sources: Tensor | None = None,
    *,
    cutoff: float | None = None,
    return_predecessors: Literal[False] = False,
    method: str = "auto",
) -> Tensor: ...


@overload
def geodesic_distances(
    graph: Sequence[Tensor],
    sources: Tensor | None = None,
    *,
    cutoff: float | None = None,
    return_predecessors: bool,
    method: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]: ...


def geodesic_distances(
    graph: Sequence[Tensor],
    sources: Tensor | None = None,
    *,
    cutoff: float | None = None,
    return_predecessors: bool = False,
    method: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Lengths of the shortest paths from some vertices of a graph, or from all, to every vertex.

    Convention:
        The length of a path is the sum of its weights, added one after the other from the source on and rounded at each
        step; the distance is the least of them. It does not depend on the order of a search: every backend and method
        finds the same bits. Edges lead one way only: a symmetric graph holds both directions. Of parallel edges the
        shortest counts, and loops never do. Edges of infinite weight are none.

        The predecessor of v is the vertex before it on a shortest path: of the edges that attain the distance, the
        first (and so the predecessor of lowest index) that begins nearer to the source. Where none does, because edges
        have no length or are too short to change a sum, it is the first of those with the fewest such edges to a vertex
        that has one, or to the source. Predecessors thus form a tree for every source, and the same on every backend.

        The gradient with respect to a weight is the sum of the gradients of all distances whose path in these trees
        contains the edge. Where several paths are shortest that is one of the subgradients. The second derivative is
        zero; the gradient of a gradient with respect to what came in is the sum along the path.

    Args:
        graph: ``Graph(indptr [N + 1], indices [E], weights [E])`` or any three tensors: int64, int64, and float32 or
            float64 (CPU), in compressed rows, in any order within a row. Weights are not negative and not NaN.
        sources: ``[S]`` int64, from 0 to N - 1, in any order, repeated or not; None: all vertices.
        cutoff: distances above it become inf (it is rounded to the dtype of the weights); None: no limit.
        return_predecessors: whether to return predecessors too.
        method: "auto", or on a CPU how to search: "sweeps" relaxes edges for many sources at a time, "dijkstra" serves
            one source after the other. The result is the same.

    Returns:
        ``[S, N]`` distances in the dtype of the weights, inf where no path leads; differentiable with respect to
        ``graph.weights`` any number of times, with bitwise repeatable gradients. With ``return_predecessors`` a pair:
        these, and ``[S, N]`` int64, -1 at the source and where no path leads.

    Raises:
        TypeError: an argument is of another type or dtype.
        ValueError: a shape, device, number or method is wrong; ``indptr`` does not rise from 0 to E, an index or source
            is out of range, a weight is negative or NaN. On a GPU, and inside compiled or transformed functions, values
            are not looked at: there an edge that is none is left out, and a source that is none has no distances.

    Example:
        >>> import torch, pyops
        >>> indptr, indices = torch.tensor([0, 2, 3, 3, 3]), torch.tensor([1, 2, 2])
        >>> graph = pyops.Graph(indptr, indices, torch.tensor([1.0, 5.0, 2.0]))
        >>> pyops.geodesic_distances(graph, torch.tensor([0, 2]), return_predecessors=True)
        (tensor([[0., 1., 3., inf],
                [inf, inf, 0., inf]]), tensor([[-1,  0,  1, -1],
                [-1, -1, -1, -1]]))

    Cost:
        A CPU relaxes the edges for 8 to 32 sources at a time, which lie near each other, in the order of the distances
        from one of them, forwards and backwards: about twice to three times each edge on graphs of neighbours. One
        source after the other, by Dijkstra's algorithm, is faster for up to two sources (five in graphs of 64 edges a
        vertex and more), and where a cutoff or a small component leaves a fiftieth of the vertices in reach: "auto"
        takes it then. CUDA keeps the distances of a source in shared memory and relaxes near vertices before far ones.
        Predecessors, and the gradient, which finds them again, take one more look at every edge; the gradient keeps
        nothing but the distances.

    Source:
        Dijkstra, A note on two problems in connexion with graphs, Numerische Mathematik 1959; Bellman, On a routing
        problem, Quarterly of Applied Mathematics 1958; as used in Tenenbaum, de Silva and Langford, A global geometric
        framework for nonlinear dimensionality reduction, Science 2000.
    """
    indptr, indices, weights = _validate(graph)
    count = indptr.shape[0] - 1
    if sources is None:
        sources = torch.arange(count, device=indptr.device)
    else:
        _validate_sources(sources, indptr, count)
    _validate_cutoff(cutoff)
    if method not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(_METHODS)}, got {method!r}")
    given = [t[None] for t in (indptr, indices, weights, sources)]
    limit = math.inf if cutoff is None else float(cutoff)
    distances = torch.ops.pyops.geodesic_distances(*given, limit, method)
    if not return_predecessors:
        return distances[0]
    found = torch.ops.pyops.geodesic_predecessors(*(t.detach() for t in (*given, distances)), False)
    return distances[0], found[0]


def _validate(graph: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    if not isinstance(graph, (tuple, list)) or len(graph) != 3:
        raise TypeError(f"graph must be (indptr, indices, weights), got {type(graph).__name__}")
    indptr, indices, weights = graph
    for name, t in (("indptr", indptr), ("indices", indices)):
        if not isinstance(t, Tensor):
            raise TypeError(f"graph.{name} must be a torch.Tensor, got {type(t).__name__}")
        if t.dtype != torch.int64:
            raise TypeError(f"graph.{name} must be int64, got {t.dtype}")
    if not isinstance(weights, Tensor):
        raise TypeError(f"graph.weights must be a torch.Tensor, got {type(weights).__name__}")
    if weights.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"graph.weights must be float32 or float64, got {weights.dtype}")
    if weights.dtype == torch.float64 and weights.device.type == "cuda":
        raise TypeError(f"graph.weights must be float32 on {weights.device}, got torch.float64")
    if indptr.dim() != 1 or indptr.shape[0] < 1:
        raise ValueError(f"graph.indptr must be [N + 1], got shape {list(indptr.shape)}")
    if indices.dim() != 1:
        raise ValueError(f"graph.indices must be [E], got shape {list(indices.shape)}")
    if weights.shape != indices.shape:
        raise ValueError(
            f"graph.weights must be [E={indices.shape[0]}] like graph.indices, got shape {list(weights.shape)}"
        )
    _require_device("graph.indices", indices, indptr, "graph.indptr")
    _require_device("graph.weights", weights, indptr, "graph.indptr")
    count, edges = indptr.shape[0] - 1, indices.shape[0]
    if _op.values_visible(indptr):
        first, last = int(indptr[0]), int(indptr[-1])
        if first != 0 or last != edges:
            raise ValueError(f"graph.indptr must run from 0 to E={edges}, got {first} to {last}")
        if bool((indptr[1:] < indptr[:-1]).any()):
            at = int((indptr[1:] < indptr[:-1]).nonzero()[0])
            raise ValueError(
                f"graph.indptr must not fall, got {int(indptr[at])}, {int(indptr[at + 1])} at {at}"
            )
    if edges > 0 and _op.values_visible(indices):
        low, high = (int(value) for value in indices.aminmax())
        if low < 0 or high >= count:
            raise ValueError(f"graph.indices must be from 0 to N - 1 = {count - 1}, got {low} to {high}")
    if edges > 0 and _op.values_visible(weights):
        least = weights.detach().amin().item()  # NaN where one is
        if not least >= 0:
            raise ValueError(f"graph.weights must be at least 0, got {least}")
    return indptr, indices, weights


def _validate_sources(sources: Tensor, indptr: Tensor, count: int) -> None:
    if not isinstance(sources, Tensor):
        raise TypeError(f"sources must be a torch.Tensor or None, got {type(sources).__name__}")
    if sources.dtype != torch.int64:
        raise TypeError(f"sources must be int64, got {sources.dtype}")
    if sources.dim() != 1:
        raise ValueError(f"sources must be [S], got shape {list(sources.shape)}")
    _require_device("sources", sources, indptr, "graph.indptr")
    if sources.shape[0] > 0 and _op.values_visible(sources):
        low, high = (int(value) for value in sources.aminmax())
        if low < 0 or high >= count:
            raise ValueError(f"sources must be from 0 to N - 1 = {count - 1}, got {low} to {high}")


def _validate_cutoff(cutoff: float | None) -> None:
    if cutoff is None:
        return
    if isinstance(cutoff, bool) or not isinstance(cutoff, (int, float)):
        raise TypeError(f"cutoff must be a float or None, got {type(cutoff).__name__}")
    if not cutoff >= 0:
        raise ValueError(f"cutoff must be at least 0, got {cutoff}")


# ---- what PyTorch needs to know of the operators ---------------------------------------------------------------------


def _shape(indptr, sources):
    return (*sources.shape, indptr.shape[1] - 1)


def _fake(indptr, indices, weights, sources, cutoff, method):
    return weights.new_empty(_shape(indptr, sources))


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:4], output)


def _backward(ctx, grad):
    return None, None, torch.ops.pyops.geodesic_distances_backward(grad, *ctx.saved_tensors), None, None, None


def _fake_predecessors(indptr, indices, weights, sources, distances, edges):
    return indices.new_empty(distances.shape)


def _fake_backward(grad, indptr, indices, weights, sources, distances):
    return weights.new_empty(weights.shape)


def _save_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs[1:])


def _double_backward(ctx, upstream):
    """It is linear in what came in: each distance gathers from the edges of its path."""
    indptr, indices, *_ = ctx.saved_tensors
    edges = torch.ops.pyops.geodesic_predecessors(*(t.detach() for t in ctx.saved_tensors), True)
    rows = [rows_of_edges(i, indices.shape[1]) for i in indptr.unbind()]
    sums = [path_sums(*of_graph) for of_graph in zip(upstream.unbind(), edges.unbind(), rows, strict=True)]
    return torch.stack(sums) if sums else upstream.new_zeros(edges.shape), None, None, None, None, None


_op.declare(
    "geodesic_distances", stem="geodesic", fake=_fake, setup_context=_save, backward=_backward, batched=True
)
_op.declare("geodesic_predecessors", stem="geodesic", fake=_fake_predecessors, batched=True)
_op.declare(
    "geodesic_distances_backward",
    stem="geodesic",
    fake=_fake_backward,
    setup_context=_save_backward,
    backward=_double_backward,
    batched=True,
)
