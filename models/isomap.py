"""Isomap and Landmark Isomap as scikit-learn estimators, of arrays or of torch tensors on any device."""

from __future__ import annotations

import importlib
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

import pyops

from .geodesic_map import MOST_NEIGHBORS, GeodesicMap, along_curve, connected_graph
from .memory_plan import SOURCES, free_memory, memory_plan, require_memory

Matrix = Any  # a tensor, or what scikit-learn takes for an array
_AT_ONCE = 512  # points: their distances then come from a cache when they are placed


class Isomap(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Embeds points so that distances between them are those along the manifold that they lie on.

    A drop-in for scikit-learn's estimator in its usual form: pipelines, `clone`, `set_output`, pickles. Tensors in
    give tensors out, on their device, and are computed in their dtype (float32 or float64), as are arrays. For
    gradients see `pyops.models.isomap_embedding`.

    Args:
        n_neighbors: of each point, itself left out; up to 1023.
        n_components: dimensions of the embedding.
        disconnected: what to do where the graph of neighbours falls apart: "join" the closest points of any two
            parts, with a warning, as scikit-learn does, or "raise".
        verbose: says before a fit how much memory it takes, and shows progress.
        ops: the operators, `pyops` if None; `pyops.reference` for the plain definition.

    Attributes:
        embedding_: ``[N, n_components]``, of the kind of what was fitted.
        dist_matrix_: geodesic distances ``[N, N]``.
        n_features_in_, feature_names_in_: as everywhere in scikit-learn.

    Raises:
        ValueError: X is no matrix of finite numbers, has no more rows than neighbours, or falls apart.
        MemoryError: there is too little memory; nothing has been computed yet. Where it is tight, a ResourceWarning.

    Example:
        >>> from sklearn.datasets import make_swiss_roll
        >>> from pyops.models import Isomap
        >>> points, _ = make_swiss_roll(300, random_state=0)
        >>> Isomap(n_neighbors=10).fit_transform(points).shape
        (300, 2)

    Cost:
        Memory for ``N * N`` distances; time for their shortest paths, about ``N * E`` additions with E edges. Of a new
        point ``n_neighbors * N``.

    Source: Tenenbaum, de Silva and Langford, A global geometric framework for nonlinear dimensionality reduction,
    Science 290, 2000.
    """

    def __init__(
        self,
        n_neighbors: int = 5,
        *,
        n_components: int = 2,
        disconnected: str = "join",
        verbose: bool = False,
        ops: Any = None,
    ) -> None:
        self.n_neighbors = n_neighbors
        self.n_components = n_components
        self.disconnected = disconnected
        self.verbose = verbose
        self.ops = ops

    @torch.no_grad()
    def fit(self, X: Matrix, y: Any = None) -> Isomap:
        """Embeds the points ``X [N, D]``; ``y`` is ignored."""
        x = self._points(X, reset=True)
        self._check_parameters(len(x))
        landmarks = self._choose(len(x))
        self._require_memory(x, landmarks)
        graph = connected_graph(x, self.n_neighbors, self.disconnected, self._ops)
        distances = self._distances(graph, landmarks)
        # A row per point: of all distances, which are symmetric, or of those to the landmarks.
        rows = distances if landmarks is None else distances.mT.contiguous()
        del distances  # in the first of two orders
        among = rows if landmarks is None else rows[landmarks]
        self._x, self._rows, self._map = x, rows, GeodesicMap.of(among, self.n_components, self._ops)
        self.dist_matrix_ = _like(X, rows.mT)
        placed = [] if landmarks is None else [self._map.place(part) for part in rows.split(_AT_ONCE)]
        self.embedding_ = _like(X, torch.cat(placed) if placed else self._map.embedding)
        self._n_features_out = self.n_components
        return self

    def fit_transform(self, X: Matrix, y: Any = None) -> Matrix:
        """Embeds the points ``X [N, D]`` and returns where they are, ``[N, n_components]``."""
        return self.fit(X).embedding_

    @torch.no_grad()
    def transform(self, X: Matrix) -> Matrix:
        """Places new points ``X [M, D]`` in the embedding, ``[M, n_components]``, by their nearest fitted ones."""
        check_is_fitted(self)
        x = self._points(X, reset=False)
        near = self._ops.knn(x[None], self._x[None], self.n_neighbors)
        # Points that lie near each other share neighbours, whose distances then come from a cache.
        order = along_curve(torch.as_tensor(self.embedding_, device=x.device)[near.indices[0, :, 0]])
        lengths, indices = near.squared_distances[0, order].sqrt(), near.indices[0, order]
        placed = x.new_empty(len(x), self.n_components)
        for some, edges, places in zip(*(t.split(_AT_ONCE) for t in (order, lengths, indices)), strict=True):
            reached = self._ops.min_plus_gather(edges, places, self._rows)
            placed[some] = self._map.place_squares(reached.square_())
        return _like(X, placed)

    def reconstruction_error(self) -> float:
        """How far the distances in the embedding are from the geodesic ones: the Frobenius norm of what the embedding
        leaves of the kernel, by the number of points."""
        check_is_fitted(self)
        n, kernel = len(self._rows), 0.0
        means = torch.empty(n, dtype=torch.float64, device=self._rows.device)
        for begin in range(0, n, _AT_ONCE):
            squares = self._rows[begin : begin + _AT_ONCE].double().square()
            means[begin : begin + _AT_ONCE] = squares.mean(1)
            kernel += float(squares.square().sum())
        kernel += n * (n * float(means.mean()) ** 2 - 2 * float(means.square().sum()))
        left = kernel / 4 - float(self._map.eigenvalues.double().square().sum())
        return max(0.0, left) ** 0.5 / n

    # ---- parts ------------------------------------------------------------------------------------

    _counts: tuple[str, ...] = ("n_neighbors", "n_components")

    @property
    def _ops(self) -> Any:
        return pyops if self.ops is None else self.ops

    def _choose(self, n: int) -> Tensor | None:
        """The landmarks among `n` points; None for all."""
        return None

    def _distances(self, graph: pyops.Graph, landmarks: Tensor | None) -> Tensor:
        sources = torch.arange(len(graph.indptr) - 1) if landmarks is None else landmarks
        sources = sources.to(graph.indices.device)
        if not self.verbose:
            return self._ops.geodesic_distances(graph, sources)
        from rich.progress import track

        distances = graph.weights.new_empty(len(sources), len(graph.indptr) - 1)
        for begin in track(range(0, len(sources), SOURCES), "shortest paths"):
            some = slice(begin, begin + SOURCES)
            distances[some] = self._ops.geodesic_distances(graph, sources[some])
        return distances

    def _require_memory(self, x: Tensor, landmarks: Tensor | None) -> None:
        """Says what the fit takes, and refuses one that there is too little memory for."""
        count = None if landmarks is None else len(landmarks)
        plan_of = partial(memory_plan, len(x), self.n_neighbors, self.n_components, x.dtype)
        plan, free = plan_of(count), free_memory(x.device)
        if self.verbose:
            to = "all" if count is None else f"{count:,}"
            there = "" if free is None else f", {free / 1e9:,.3g} GB are free"
            print(f"{len(x):,} points, distances to {to} of them: {plan}{there}")
        require_memory(plan, plan_of, free)

    def _points(self, X: Matrix, reset: bool) -> Tensor:
        """``X`` as a tensor of floats, checked as scikit-learn checks it."""
        least = 2 if reset else 1
        if not isinstance(X, Tensor):
            array = validate_data(
                self, X, dtype=(np.float64, np.float32), reset=reset, ensure_min_samples=least
            )
            x = torch.tensor(array)
            return x if reset else x.to(self._x)
        if X.dim() != 2 or len(X) < least or X.is_complex():
            raise ValueError(
                f"X must be [N, D] of real numbers with N >= {least}, got {list(X.shape)} of {X.dtype}"
            )
        x = X.detach() if X.dtype in (torch.float32, torch.float64) else X.detach().float()
        if not bool(x.isfinite().all()):
            row = int(x.isfinite().all(1).logical_not().nonzero()[0])
            raise ValueError(f"X must be finite, row {row} is not")
        if reset:
            self.n_features_in_ = x.shape[1]
        elif x.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {x.shape[1]} features, but {type(self).__name__} is expecting {self.n_features_in_} "
                "features as input"
            )
        return x if reset else x.to(self._x)

    def _check_parameters(self, n: int) -> None:
        for name in self._counts:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        if self.n_neighbors >= n:
            raise ValueError(f"n_neighbors must be less than n_samples = {n}, got {self.n_neighbors}")
        if self.n_neighbors > MOST_NEIGHBORS:
            raise ValueError(f"n_neighbors must be at most {MOST_NEIGHBORS}, got {self.n_neighbors}")
        if self.disconnected not in ("join", "raise"):
            raise ValueError(f'disconnected must be "join" or "raise", got {self.disconnected!r}')

    # Modules have no copies and no pickles, so operators go by name.

    def __sklearn_clone__(self) -> Isomap:
        parameters: dict[str, Any] = {
            name: value if isinstance(value, ModuleType) else clone(value, safe=False)
            for name, value in self.get_params(deep=False).items()
        }
        twin = type(self)(**parameters)
        if hasattr(self, "_sklearn_output_config"):
            twin._sklearn_output_config = self._sklearn_output_config.copy()
        return twin

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {**state, "ops": self.ops.__name__} if isinstance(self.ops, ModuleType) else state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if isinstance(self.ops, str):
            self.ops = importlib.import_module(self.ops)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


class LandmarkIsomap(Isomap):
    """Isomap for more points than a matrix of distances allows: landmarks are embedded, the others placed by them.

    Args:
        n_neighbors, n_components, disconnected, verbose, ops: as of `Isomap`.
        n_landmarks: how many points are scaled; with more of them than points this is `Isomap`.
        random_state: which; as everywhere in scikit-learn.

    Attributes:
        embedding_: ``[N, n_components]``, of the kind of what was fitted.
        dist_matrix_: geodesic distances ``[n_landmarks, N]``.
        landmarks_: which points, ascending, ``[n_landmarks]``.

    Example:
        >>> from sklearn.datasets import make_swiss_roll
        >>> from pyops.models import LandmarkIsomap
        >>> points, _ = make_swiss_roll(300, random_state=0)
        >>> LandmarkIsomap(n_neighbors=10, n_landmarks=50, random_state=0).fit(points).dist_matrix_.shape
        (50, 300)

    Cost:
        Memory for ``2 * n_landmarks * N`` distances.

    Source: de Silva and Tenenbaum, Sparse multidimensional scaling using landmark points, 2004.
    """

    def __init__(
        self,
        n_neighbors: int = 5,
        *,
        n_components: int = 2,
        n_landmarks: int = 512,
        disconnected: str = "join",
        random_state: Any = None,
        verbose: bool = False,
        ops: Any = None,
    ) -> None:
        super().__init__(
            n_neighbors, n_components=n_components, disconnected=disconnected, verbose=verbose, ops=ops
        )
        self.n_landmarks = n_landmarks
        self.random_state = random_state

    _counts = (*Isomap._counts, "n_landmarks")

    def _choose(self, n: int) -> Tensor:
        if self.n_landmarks < self.n_components:
            raise ValueError(
                f"n_landmarks must be at least n_components = {self.n_components}, got {self.n_landmarks}"
            )
        order = check_random_state(self.random_state).permutation(n)
        self.landmarks_ = np.sort(order[: self.n_landmarks])
        return torch.from_numpy(self.landmarks_)


def _like(X: Matrix, result: Tensor) -> Matrix:
    return result if isinstance(X, Tensor) else result.numpy(force=True)
