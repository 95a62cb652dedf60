"""geodesic for GPU users without a compiler: shortest paths in Triton.

A program serves a source: it relaxes all edges in rounds, by atomic minima on the bits of distances, which have no
sign, until a round lowers none. What other threads have written is read past the first cache, after a barrier. The
gradient is made of PyTorch's operators: sums of integers up the trees, over twice as many generations in every round.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024
_PROVISIONAL, _NONE = 1 << 40, 1 << 41  # above the places of all edges
_CHUNK = 1 << 24  # numbers of the gradient at a time


@triton.jit
def search_kernel(graph, sources, sizes, above, out, BLOCK: tl.constexpr):
    """`graph` is (rows, ends, weights) of the edges; `out` holds the bits of distances."""
    rows, ends, weights = graph
    count, edges, each = sizes
    program = tl.program_id(0).to(tl.int64)
    source = tl.load(sources + program)
    lane = tl.arange(0, BLOCK).to(tl.int64)
    first_edge = program // each * edges
    distances = out + program * count
    for first in range(0, count, BLOCK):
        v = first + lane
        start = tl.where(v == source, 0.0, float("inf")).to(tl.float32)
        tl.store(distances + v, start.to(tl.int32, bitcast=True), v < count)
    tl.debug_barrier()
    lowered = 1
    while lowered > 0:
        lowered = 0
        for first in range(0, edges, BLOCK):
            e, inside = first_edge + first + lane, first + lane < edges
            u, v = tl.load(rows + e, inside, 0), tl.load(ends + e, inside, 0)
            before = tl.load(distances + u, inside, 0, volatile=True).to(tl.float32, bitcast=True)
            after = tl.load(distances + v, inside, 0, volatile=True).to(tl.float32, bitcast=True)
            found = before + tl.load(weights + e, inside, 0)
            lower = inside & (found < above) & (found < after)
            tl.atomic_min(distances + v, found.to(tl.int32, bitcast=True), lower)
            lowered = tl.maximum(lowered, tl.max(lower.to(tl.int32), 0))
        tl.debug_barrier()


@triton.jit
def tree_kernel(
    graph, sources, distances, sizes, NAMES: tl.constexpr, NONE: tl.constexpr, PROVISIONAL: tl.constexpr,
    out, BLOCK: tl.constexpr,
):  # fmt: skip
    """The edge to each vertex, or where it begins: first from nearer vertices, then round by round from equal ones."""
    rows, ends, weights = graph
    count, edges, each = sizes
    program = tl.program_id(0).to(tl.int64)
    source = tl.load(sources + program)
    lane = tl.arange(0, BLOCK).to(tl.int64)
    first_edge = program // each * edges
    distance, tree = distances + program * count, out + program * count
    for first in range(0, count, BLOCK):
        v = first + lane
        tl.store(tree + v, tl.full((BLOCK,), NONE, tl.int64), v < count)
    tl.debug_barrier()
    for first in range(0, edges, BLOCK):
        place = first + lane
        e, inside = first_edge + place, place < edges
        u, v = tl.load(rows + e, inside, 0), tl.load(ends + e, inside, 0)
        before, after = tl.load(distance + u, inside, 0), tl.load(distance + v, inside, 0)
        tight = inside & (before + tl.load(weights + e, inside, 0) == after) & (before < after)
        tl.atomic_min(tree + v, place, tight & (after < float("inf")) & (v != source))
    tl.debug_barrier()
    found = 1
    while found > 0:
        for first in range(0, edges, BLOCK):
            place = first + lane
            e, inside = first_edge + place, place < edges
            u, v = tl.load(rows + e, inside, 0), tl.load(ends + e, inside, 0)
            settled = (tl.load(tree + u, inside, NONE, volatile=True) < PROVISIONAL) | (u == source)
            open = (tl.load(tree + v, inside, 0, volatile=True) >= PROVISIONAL) & (v != source)
            before, after = tl.load(distance + u, inside, 0), tl.load(distance + v, inside, 0)
            tight = inside & (before + tl.load(weights + e, inside, 0) == after) & (after < float("inf"))
            tl.atomic_min(tree + v, place + PROVISIONAL, tight & settled & open)
        tl.debug_barrier()
        found = 0
        for first in range(0, count, BLOCK):
            v = first + lane
            edge = tl.load(tree + v, v < count, NONE, volatile=True)
            new = (edge >= PROVISIONAL) & (edge < NONE)
            tl.store(tree + v, edge - PROVISIONAL, new)
            found = tl.maximum(found, tl.max(new.to(tl.int32), 0))
        tl.debug_barrier()
    for first in range(0, count, BLOCK):
        v = first + lane
        edge = tl.load(tree + v, v < count, NONE, volatile=True)
        name = edge
        if not NAMES:
            name = tl.load(rows + first_edge + edge, (v < count) & (edge < NONE), 0)
        tl.store(tree + v, tl.where(edge < NONE, name, -1), v < count)


def _packed(indptr: Tensor, indices: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, ends and weights of the edges; those that are none have an infinite weight."""
    count = indptr.shape[1] - 1
    places = torch.arange(indices.shape[1], device=indices.device).expand_as(indices).contiguous()
    rows = torch.searchsorted(indptr.contiguous(), places, right=True) - 1
    some = (weights >= 0) & (indices >= 0) & (indices < count) & (rows >= 0) & (rows < count)
    return (
        rows.masked_fill(~some, 0),
        indices.masked_fill(~some, 0),
        weights.masked_fill(~some, math.inf).contiguous(),
    )


def geodesic_distances(
    indptr: Tensor, indices: Tensor, weights: Tensor, sources: Tensor, cutoff: float, method: str
) -> Tensor:
    shape = (*sources.shape, indptr.shape[1] - 1)
    out = weights.new_empty(shape, dtype=torch.int32)
    if out.numel() == 0:
        return out.view(weights.dtype)
    above = torch.nextafter(torch.tensor(cutoff, dtype=torch.float32), torch.tensor(math.inf)).item()
    sizes = (shape[2], indices.shape[1], shape[1])
    block = min(_BLOCK, max(16, triton.next_power_of_2(max(sizes[0], sizes[1]))))
    with torch.cuda.device_of(weights):
        search_kernel[(shape[0] * shape[1],)](
            _packed(indptr, indices, weights), sources.contiguous(), sizes, above, out, block
        )
    return out.view(torch.float32)


def geodesic_predecessors(
    indptr: Tensor, indices: Tensor, weights: Tensor, sources: Tensor, distances: Tensor, edges: bool
) -> Tensor:
    out = torch.empty(distances.shape, dtype=torch.int64, device=distances.device)
    if out.numel() == 0:
        return out
    batch, each, count = distances.shape
    sizes = (count, indices.shape[1], each)
    block = min(_BLOCK, max(16, triton.next_power_of_2(max(sizes[0], sizes[1]))))
    with torch.cuda.device_of(weights):
        tree_kernel[(batch * each,)](
            _packed(indptr, indices, weights), sources.contiguous(), distances.contiguous(), sizes,
            edges, _NONE, _PROVISIONAL, out, block,
        )  # fmt: skip
    return out


def geodesic_distances_backward(
    grad: Tensor, indptr: Tensor, indices: Tensor, weights: Tensor, sources: Tensor, distances: Tensor
) -> Tensor:
    batch, each, count = distances.shape
    sums = torch.zeros(
        (batch, indices.shape[1] + 1), dtype=torch.int64, device=grad.device
    )  # one for no edge
    broken = torch.zeros_like(sums)
    if grad.numel() == 0 or indices.shape[1] == 0:
        return sums[:, 1:].to(weights.dtype)
    # All of a graph may meet in one edge: an addend has 30 bits, or fewer.
    spare = max(0, (each * count - 1).bit_length() - 32)
    size = grad.abs().masked_fill(~grad.isfinite(), 0).amax()
    exponent = 30 - spare - torch.frexp(size).exponent
    rows, _, _ = _packed(indptr, indices, weights)
    for some in torch.arange(each, device=grad.device).split(max(1, _CHUNK // (batch * count))):
        part = (indptr, indices, weights, sources[:, some], distances[:, some])
        edges = geodesic_predecessors(*part, True)
        missing = edges < 0
        given = grad[:, some].masked_fill(missing, 0)
        up = rows[:, None].expand(-1, len(some), -1).gather(2, edges.clamp(min=0))
        up = torch.where(missing, torch.arange(count, device=grad.device), up)
        root, bad = missing, (~given.isfinite()).long()
        total = torch.ldexp(given.double().masked_fill(bad > 0, 0), exponent).round().long()
        for _ in range(max(count - 1, 0).bit_length()):
            total, bad = (t.scatter_add(2, up, t.masked_fill(root, 0)) for t in (total, bad))
            up = up.gather(2, up)
        sums.scatter_add_(1, (edges + 1).flatten(1), total.flatten(1))
        broken.scatter_add_(1, (edges + 1).flatten(1), bad.flatten(1))
    found = torch.ldexp(sums.double(), -exponent).masked_fill(broken > 0, math.nan)
    return found[:, 1:].to(weights.dtype)
