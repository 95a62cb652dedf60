"""Graphs of nearest neighbours, with lengths that are differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _op
from ..reference.knn_graph import Graph, edge_lengths, others, rows_of
from ._validate import _require_float, _require_int
from .knn import knn

_MOST = 1023  # neighbours: one less than `knn` finds, which finds the point itself
_CHUNK = 1 << 26  # differences of coordinates held at a time


def knn_graph(x: Tensor, k: int) -> Graph:
    """Connects every point with its k nearest others, in both directions.

    Convention:
        There is an edge from i to j where j is among the k nearest others of i, or i among those of j: the symmetric
        union. Neighbours are those of :func:`pyops.knn`, exact, with ties by the lowest index; a point itself is left
        out by its index, so that points that coincide are each other's neighbours at distance 0. Rows are ascending,
        without an edge twice and without loops. A point at a distance that is no finite number is no neighbour.

    Args:
        x: ``[N, D]``, N at least 2; float32, float16, bfloat16 or float64 (CPU), any strides.
        k: how many neighbours, from 1 to the least of N - 1 and 1023.

    Returns:
        ``Graph(indptr, indices, weights)``: ``[N + 1]`` and ``[E]`` int64, and the Euclidean lengths ``[E]`` in the
        dtype of ``x``, computed in float32 (float64 for float64). E is from ``N * k`` to ``2 * N * k``. Lengths are
        differentiable (twice) with respect to ``x``; an edge of length 0 has the gradient 0, and gradients are bitwise
        repeatable.

    Raises:
        TypeError: x is no tensor or has an unsupported dtype, or k is no int.
        ValueError: x has another shape or less than two points, k is out of range, or a feature is not finite; the
            first such row is named. In compiled functions values are not looked at, and such a point has no edges.

    Example:
        >>> import torch, pyops
        >>> graph = pyops.knn_graph(torch.tensor([[0.0], [1], [3], [3]]), 1)
        >>> graph.indptr, graph.indices, graph.weights
        (tensor([0, 1, 2, 3, 4]), tensor([1, 0, 3, 2]), tensor([1., 1., 0., 0.]))

    Cost:
        That of ``knn``, and then two passes over the neighbours: memory is proportional to ``N * (D + k)``. The number
        of edges depends on the values, so that a GPU waits for it, ``vmap`` cannot map it, and a compiled graph breaks
        here unless ``torch._dynamo.config.capture_dynamic_output_shape_ops`` is set. On a GPU all but the search
        consists of PyTorch's operators: the union is one sort of the up to ``2 * N * k`` pairs, as 64-bit numbers, with
        some five arrays of that size at a time (for a million points and k = 10 five times 160 MB), and the gradient
        looks for the reverse of every edge by bisection and sums rows with the differences of as many dimensions at a
        time as make 2^26 numbers. No array has ``N * N`` elements.

    Source:
        Tenenbaum, de Silva, Langford, A Global Geometric Framework for Nonlinear Dimensionality Reduction, Science 290,
        2000.
    """
    _validate(x, k)
    points = x.detach()[None]
    indptr, indices = torch.ops.pyops.knn_graph(knn(points, points, k + 1).indices[0])
    return Graph(indptr, indices, torch.ops.pyops.edge_lengths(x, indptr, indices))


def _validate(x: Tensor, k: int) -> None:
    _require_float("x", x)
    if x.dim() != 2 or x.shape[1] == 0:
        raise ValueError(f"x must be [N, D] with D above 0, got shape {list(x.shape)}")
    if x.dtype == torch.float64 and x.device.type == "cuda":
        raise TypeError(f"x must be float32, float16 or bfloat16 on {x.device}, got {x.dtype}")
    _require_int("k", k)
    if x.shape[0] < 2:
        raise ValueError(f"x must have at least 2 points, got {x.shape[0]}")
    if k < 1 or k > _MOST or k >= x.shape[0]:
        raise ValueError(f"k must be from 1 to {_MOST} and below the {x.shape[0]} points of x, got {k}")
    if _op.is_plain(x):  # elsewhere looking would break a trace; a GPU waits for the edges anyway
        finite = x.detach().isfinite().all(1)
        if not finite.all():
            row = int((~finite).nonzero()[0])
            raise ValueError(f"x must be finite, got NaN or infinity in row {row}")


# ---- what PyTorch needs to know of the operators ---------------------------------------------------------------------


def _fake(neighbours):
    edges = torch.library.get_ctx().new_dynamic_size()
    return neighbours.new_empty(neighbours.shape[0] + 1), neighbours.new_empty(edges)


def _no_vmap(info, in_dims, *args):
    raise RuntimeError(
        "knn_graph cannot be mapped by vmap: graphs differ in their numbers of edges; call it in a loop"
    )


def _one_by_one(op):
    """The lengths of one graph for points or gradients that are mapped."""

    def vmap(info, in_dims, *args):
        folded = [_op.fold(t, dim, info.batch_size) for t, dim in zip(args, in_dims, strict=True)]
        return torch.stack([op(*row) for row in zip(*folded, strict=True)]), 0

    return vmap


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    return torch.ops.pyops.edge_lengths_backward(grad, *ctx.saved_tensors), None, None


def _double_backward(ctx, upstream):
    grad, x, indptr, indices = ctx.saved_tensors
    found = _op.second_derivative(lambda x: edge_lengths(x, indptr, indices), [grad, x], [upstream])
    return *found, None, None


# ---- CUDA: PyTorch's operators, of which none adds in an order of its own --------------------------------------------


def _union(neighbours: Tensor) -> tuple[Tensor, Tensor]:
    count = len(neighbours)
    rows, ends = others(neighbours)
    edges = torch.cat([rows * count + ends, ends * count + rows]).unique()
    firsts = torch.arange(count + 1, device=edges.device) * count
    return torch.searchsorted(edges, firsts), edges % max(1, count)


def _lengths(x: Tensor, indptr: Tensor, indices: Tensor) -> Tensor:
    with torch.no_grad():
        return edge_lengths(x, indptr, indices)


def _lengths_backward(grad: Tensor, x: Tensor, indptr: Tensor, indices: Tensor) -> Tensor:
    count, rows = len(x), rows_of(indptr, indices)
    if not len(indices):
        return torch.zeros_like(x, memory_format=torch.contiguous_format)
    edges = rows * count + indices
    reverse = indices * count + rows
    places = torch.searchsorted(edges, reverse).clamp(max=len(edges) - 1)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    upstream = grad.to(wide.dtype)
    both = upstream + upstream[places].where(edges[places] == reverse, 0)
    lengths = _lengths(wide, indptr, indices)
    factors = torch.where(lengths > 0, both / lengths, 0)[:, None]
    sums = [
        torch.segment_reduce(
            factors * (part[rows] - part[indices]), "sum", offsets=indptr, axis=0, unsafe=True, initial=0
        )
        for part in wide.split(max(1, _CHUNK // len(indices)), 1)
    ]
    return torch.cat(sums, 1).to(x.dtype)


_op.declare("knn_graph", stem="knn_graph", fake=_fake, vmap=_no_vmap, plain=_union)
_op.declare(
    "edge_lengths",
    stem="knn_graph",
    fake=lambda x, indptr, indices: x.new_empty(indices.shape),
    vmap=_one_by_one(torch.ops.pyops.edge_lengths),
    setup_context=_save,
    backward=_backward,
    plain=_lengths,
)
_op.declare(
    "edge_lengths_backward",
    stem="knn_graph",
    fake=lambda grad, x, indptr, indices: x.new_empty(x.shape),
    vmap=_one_by_one(torch.ops.pyops.edge_lengths_backward),
    setup_context=_save,
    backward=_double_backward,
    plain=_lengths_backward,
)
