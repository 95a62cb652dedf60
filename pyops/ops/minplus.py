"""Products of matrices where sums are minima and products are sums, and what they are for: shortest distances."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _op
from .. import reference as _reference
from ._validate import _require_device, _require_float


def min_plus_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Multiplies matrices in the min-plus (tropical) semiring: the least sum over all ways of two steps.

    Convention:
        ``out[m, n]`` is the least of ``a[m, k] + b[k, n]`` over all k, inf where there is no k. Each sum is rounded
        once, so all backends find the same values. Infinities are numbers like others; NaN, also of inf - inf, makes
        NaN of the results whose sums it is in, and of no others.

        The gradient of a result goes to the two numbers of its least sum; of equal ones, to those of the lowest k (of
        the first NaN, if the result is one). A result of inf stands for "no way", and has no gradient.

    Args:
        a: ``[..., M, K]``; float32, float16, bfloat16 or float64 (CPU), any strides.
        b: ``[..., K, N]``; dtype and device of ``a``. Batch dimensions broadcast, as for ``torch.matmul``.

    Returns:
        ``[..., M, N]``, contiguous, in the dtype of the inputs; halves are added in float32. Differentiable (twice)
        with respect to both; gradients are bitwise repeatable.

    Raises:
        TypeError: an argument is no tensor or has an unsupported dtype, or the dtypes differ.
        ValueError: a shape or a device is wrong.

    Example:
        >>> import torch, pyops
        >>> a = torch.tensor([[0.0, 4.0], [torch.inf, 1.0]])
        >>> pyops.min_plus_matmul(a, a)  # two steps in place of one
        tensor([[0., 4.],
                [inf, 2.]])

    Cost:
        ``M * N * K`` additions and as many minima; on a CPU, both operands are packed once. The gradients first find
        where the minima were, which takes about twice as long.

    Source:
        Aho, Hopcroft and Ullman, The Design and Analysis of Computer Algorithms, Addison-Wesley 1974, section 5.9.
    """
    _validate_matrix("a", a)
    _validate_matrix("b", b)
    if b.dtype != a.dtype:
        raise TypeError(f"b must have the dtype of a, {a.dtype}, got {b.dtype}")
    if b.shape[-2] != a.shape[-1]:
        raise ValueError(
            f"b must have as many rows as a has columns, {a.shape[-1]}, got shape {list(b.shape)}"
        )
    _require_device("b", b, a, "a")
    try:
        batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except RuntimeError:
        raise ValueError(
            f"b must have batch dimensions that broadcast with those of a, {list(a.shape[:-2])}, "
            f"got shape {list(b.shape)}"
        ) from None
    left, right = (_as_batch(t, batch) for t in (a, b))
    product = torch.ops.pyops.min_plus_matmul(left, right)
    return product if len(batch) == 1 else product.reshape(*batch, *product.shape[1:])


def floyd_warshall(weights: Tensor) -> Tensor:
    """Finds the shortest distances between all nodes of dense graphs, differentiably.

    Convention:
        ``weights[i, j]`` is the length of the edge from i to j, inf where there is none; graphs are directed. Lengths
        must not be negative. The distance of a node to itself is 0 whatever the weight there, and inf stands for "no
        path". Distances are sums of lengths along paths, in an order that depends on the backend: they are those of
        another backend, or of exact arithmetic, but for rounding.

        The gradient of a distance goes to every edge of one shortest path. Which one, if several are the shortest, is
        always the same, and depends on the backend.

    Args:
        weights: ``[..., N, N]``, at least 0; float32, float16, bfloat16 or float64 (CPU), any strides.

    Returns:
        ``[..., N, N]``, contiguous, in the dtype of ``weights``; halves are added in float32. Differentiable (twice)
        with respect to ``weights``; gradients are bitwise repeatable.

    Raises:
        TypeError: ``weights`` is no tensor or has an unsupported dtype.
        ValueError: the shape is wrong, or a length is negative or NaN (on a CPU; in a compiled graph this is a
            RuntimeError). On CUDA nobody looks: a negative or NaN length makes NaN of its graph's distances.

    Example:
        >>> import torch, pyops
        >>> weights = torch.tensor([[0.0, 1, 9], [torch.inf, 0, 2], [torch.inf, torch.inf, 0]])
        >>> pyops.floyd_warshall(weights)
        tensor([[0., 1., 3.],
                [inf, 0., 2.],
                [inf, inf, 0.]])

    Cost:
        ``N ** 3`` additions and minima a graph, in blocks of nodes, by the kernel of :func:`pyops.min_plus_matmul`;
        small graphs of a batch each by one core, or one block of threads. The gradient finds the edges of the paths by
        one more product, and keeps two numbers for each pair of nodes. For a sparse graph there are better algorithms.

    Source:
        Floyd, Algorithm 97: Shortest Path, Communications of the ACM 5(6), 1962; in blocks: Venkataraman, Sahni and
        Mukhopadhyaya, A Blocked All-Pairs Shortest-Paths Algorithm, Journal of Experimental Algorithmics 8, 2003.
    """
    _validate_matrix("weights", weights)
    if weights.shape[-1] != weights.shape[-2]:
        raise ValueError(f"weights must be [..., N, N], got shape {list(weights.shape)}")
    if weights.numel() and _op.values_visible(weights):
        least = weights.detach().amin().item()
        if not least >= 0:
            raise ValueError(f"weights must be at least 0 and not NaN, got {least}")
    batch = weights.shape[:-2]
    distances = torch.ops.pyops.floyd_warshall(_as_batch(weights, batch))
    return distances if len(batch) == 1 else distances.reshape(weights.shape)


def _validate_matrix(name: str, t: Tensor) -> None:
    _require_float(name, t)
    if t.dim() < 2:
        raise ValueError(f"{name} must have at least 2 dimensions, got shape {list(t.shape)}")
    if t.dtype == torch.float64 and t.device.type == "cuda":
        raise TypeError(f"{name} must be float32, float16 or bfloat16 on {t.device}, got {t.dtype}")


def _as_batch(t: Tensor, batch: torch.Size) -> Tensor:
    """``[B, rows, columns]``; one matrix for all stays one in memory."""
    if len(batch) == 1:
        return t.expand(*batch, *t.shape[-2:])
    if not batch:
        return t[None]
    return t.expand(*batch, *t.shape[-2:]).reshape(batch.numel(), *t.shape[-2:])


# ---- what PyTorch needs to know of the operators ---------------------------------------------------------------------


def _fake_product(a, b):
    return a.new_empty(a.shape[0], a.shape[1], b.shape[2])


def _fake_distances(weights):
    return weights.new_empty(weights.shape)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs, output)


def _backward(ctx, grad):
    return torch.ops.pyops.floyd_warshall_backward(grad, *ctx.saved_tensors)


def _fake_backward(grad, weights, distances):
    return weights.new_empty(weights.shape)


def _save_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])


def _double_backward(ctx, upstream):
    """The gradient is a sum over edges of paths, so that only the gradient of distances has one in turn."""
    return *_op.second_derivative(_reference.floyd_warshall, ctx.saved_tensors, [upstream]), None


_op.declare_pair(
    "min_plus_matmul",
    stem="minplus",
    tensors=2,
    fake=_fake_product,
    definition=_reference.min_plus_matmul,
    keeps_layout=False,
)
_op.declare(
    "floyd_warshall",
    stem="minplus",
    fake=_fake_distances,
    setup_context=_save,
    backward=_backward,
    batched=True,
)
_op.declare(
    "floyd_warshall_backward",
    stem="minplus",
    fake=_fake_backward,
    setup_context=_save_backward,
    backward=_double_backward,
    batched=True,
)
