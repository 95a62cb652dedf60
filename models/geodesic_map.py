"""Maps of points by their geodesic distances, as differentiable functions: what Isomap and its landmark form share."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

import pyops

_AT_ONCE = 1024  # columns
MOST_NEIGHBORS = 1023  # that `pyops.knn_graph` finds
_CURVE_BITS = 10  # of a coordinate along the curve


class GeodesicMap(NamedTuple):
    """Landmarks in the plane (or space) of a map, and what places other points among them."""

    embedding: Tensor  # [L, d], of the landmarks
    eigenvalues: Tensor  # [d], descending
    means: Tensor  # [L], mean squared distance of each landmark to the others

    @classmethod
    def of(cls, distances: Tensor, n_components: int, ops: Any = pyops) -> GeodesicMap:
        """The map of landmarks whose distances ``[L, L]`` are known, by classical scaling."""
        scaled = ops.classical_mds(distances, n_components)
        # A second matrix, of squares, may be too much; norms take none, and those of parts are exact enough.
        norms = torch.stack([torch.linalg.vector_norm(part, dim=1) for part in distances.split(_AT_ONCE, 1)])
        return cls(scaled.embedding, scaled.eigenvalues, norms.square().sum(0) / len(distances))

    def place(self, distances: Tensor) -> Tensor:
        """Places points ``[M, d]`` by their distances ``[M, L]`` to the landmarks; landmarks where they are.

        Source: equation 4 of de Silva and Tenenbaum, Sparse multidimensional scaling using landmark points, 2004.
        """
        return self.place_squares(distances.square())

    def place_squares(self, squares: Tensor) -> Tensor:
        """The same by squares of distances, which are overwritten: memory of their size is not asked for again."""
        # A direction without extent has no coordinates.
        positive = self.eigenvalues > torch.finfo(self.eigenvalues.dtype).eps * self.eigenvalues[:1]
        inverse = self.embedding / torch.where(positive, self.eigenvalues, torch.inf) * -0.5
        # Products with few columns are slow, with few rows fast.
        return (inverse.mT.contiguous() @ squares.sub_(self.means).mT).mT.contiguous()


def isomap_embedding(
    x: Tensor, n_neighbors: int, n_components: int = 2, *, landmarks: Tensor | None = None, ops: Any = pyops
) -> Tensor:
    """Embeds points by Isomap, differentiably.

    Neighbours make a graph, shortest paths through it distances, classical scaling of these an embedding. With
    landmarks only these are scaled, and all other points placed by their distances to them, which takes ``O(L N)``
    memory instead of ``O(N^2)``.

    Convention:
        Axes are in descending order of extent. The sign of an axis is that of `pyops.classical_mds`; a loss on
        coordinates should not depend on it. The gradient holds while the graph, the shortest paths and the order of
        axes stay what they are, which they do almost everywhere.

    Args:
        x: ``[N, D]``, float32 or float64.
        n_neighbors: of each point, from 1 to N - 1 and at most 1023.
        n_components: dimensions of the embedding.
        landmarks: int64 ``[L]``, points to scale, at least ``n_components`` of them; None for all.

    Returns:
        ``[N, n_components]``.

    Raises:
        TypeError: an argument is of another type or dtype.
        ValueError: the graph is not connected, a size is wrong, or a landmark is no point.

    Example:
        >>> import torch
        >>> from pyops.models import isomap_embedding
        >>> line = torch.linspace(0, 1, 5)[:, None] * torch.tensor([[3.0, 4.0]])
        >>> isomap_embedding(line, 2, 1).squeeze().abs()
        tensor([2.5000, 1.2500, 0.0000, 1.2500, 2.5000])

    Source: Tenenbaum, de Silva and Langford, A global geometric framework for nonlinear dimensionality reduction,
    Science 290, 2000.
    """
    _check(x, n_neighbors, n_components, landmarks)
    graph = ops.knn_graph(x, n_neighbors)
    distances = ops.geodesic_distances(graph, landmarks)
    if bool(distances[:1].isinf().any()):
        raise ValueError(
            f"x must be connected by its {n_neighbors} nearest neighbours, and is not: use more neighbours"
        )
    if landmarks is None:
        return ops.classical_mds(distances, n_components).embedding
    return GeodesicMap.of(distances[:, landmarks], n_components, ops).place(distances.mT)


def _check(x: Tensor, n_neighbors: int, n_components: int, landmarks: Tensor | None) -> None:
    """What the operators would refuse by names of their own."""
    if isinstance(x, Tensor) and x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x must be float32 or float64, got {x.dtype}")
    if landmarks is not None:
        if not isinstance(landmarks, Tensor):
            raise TypeError(f"landmarks must be a torch.Tensor or None, got {type(landmarks).__name__}")
        if landmarks.dtype != torch.int64:
            raise TypeError(f"landmarks must be int64, got {landmarks.dtype}")
        if landmarks.dim() != 1:
            raise ValueError(f"landmarks must be [L], got shape {list(landmarks.shape)}")
    for name, value in (("n_neighbors", n_neighbors), ("n_components", n_components)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {type(value).__name__}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not isinstance(x, Tensor) or x.dim() != 2 or len(x) < 2:
        return  # to be refused by the operators
    if n_neighbors > min(len(x) - 1, MOST_NEIGHBORS):
        raise ValueError(
            f"n_neighbors must be below the {len(x)} points and at most {MOST_NEIGHBORS}, got {n_neighbors}"
        )
    scaled = len(x) if landmarks is None else len(landmarks)
    if n_components > scaled:
        raise ValueError(
            f"n_components must be at most the {scaled} points that are scaled, got {n_components}"
        )
    if landmarks is not None and x.device.type == "cpu":  # a GPU would have to be waited for
        low, high = (int(value) for value in landmarks.aminmax())
        if low < 0 or high >= len(x):
            raise ValueError(f"landmarks must be from 0 to N - 1 = {len(x) - 1}, got {low} to {high}")


def along_curve(places: Tensor) -> Tensor:
    """An order of places ``[M, d]`` in which those after each other lie near each other, by their first coordinates.

    Source: Morton, A computer oriented geodetic data base and a new technique in file sequencing, 1966.
    """
    if len(places) == 0:
        return torch.arange(0, device=places.device)
    some = places[:, :3]
    low, high = some.amin(0), some.amax(0)
    extent = (high - low).clamp_min(torch.finfo(some.dtype).tiny)
    steps = ((some - low) / extent * (2**_CURVE_BITS - 1)).long()
    code = torch.zeros_like(steps[:, 0])
    for bit in range(_CURVE_BITS):
        for axis in range(some.shape[1]):
            code |= ((steps[:, axis] >> bit) & 1) << (bit * some.shape[1] + axis)
    return code.argsort()


def connected_graph(x: Tensor, n_neighbors: int, disconnected: str, ops: Any = pyops) -> pyops.Graph:
    """The graph of neighbours; where it falls apart, joined at the closest points of any two parts, or an error."""
    graph = ops.knn_graph(x, n_neighbors)
    labels = components(graph)
    count = int(labels.max()) + 1
    if count == 1:
        return graph
    message = f"the graph of the {n_neighbors} nearest neighbours falls into {count} connected components"
    if disconnected == "raise":
        raise ValueError(f'{message}: use more neighbors, or disconnected="join"')
    warnings.warn(f"{message}. They are joined at their closest points.", stacklevel=4)
    return joined(x, graph, labels, ops)


def components(graph: pyops.Graph) -> Tensor:
    """The connected component ``[N]`` of every point."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    indptr, indices = graph.indptr.cpu().numpy(), graph.indices.cpu().numpy()
    n = len(indptr) - 1
    matrix = csr_array((torch.ones(len(indices), dtype=torch.bool).numpy(), indices, indptr), (n, n))
    labels = connected_components(matrix, directed=False)[1]
    return torch.from_numpy(labels).to(graph.indices)


def joined(x: Tensor, graph: pyops.Graph, labels: Tensor, ops: Any = pyops) -> pyops.Graph:
    """`graph` with an edge between the closest points of any two components."""
    parts = [torch.nonzero(labels == i).flatten() for i in range(int(labels.max()) + 1)]
    one, other = [], []
    for i, part in enumerate(parts):
        for rest in parts[:i]:
            nearest = ops.knn(x[part][None], x[rest][None], 1)
            closest = nearest.squared_distances.flatten().argmin()
            one.append(part[closest])
            other.append(rest[nearest.indices.flatten()[closest]])
    a, b = torch.stack(one), torch.stack(other)
    lengths = (x[a] - x[b]).norm(dim=1)
    rows = torch.repeat_interleave(torch.arange(len(x), device=x.device), graph.indptr.diff())
    rows, columns = torch.cat([rows, a, b]), torch.cat([graph.indices, b, a])
    order = (rows * len(x) + columns).argsort()
    indptr = torch.cat([rows.new_zeros(1), torch.bincount(rows, minlength=len(x)).cumsum(0)])
    return pyops.Graph(indptr, columns[order], torch.cat([graph.weights, lengths, lengths])[order])
