"""Gaze from features by geodesic distances instead of a last linear layer (AGG)."""

from __future__ import annotations

from typing import Any

import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from .gaze_loss import laid_over
from .isomap import Isomap, Matrix
from .sphere_alignment import SphereAlignment, angular_error, require_directions


class GeodesicProjection(RegressorMixin, BaseEstimator):
    """Predicts gaze from features: Isomap into space, where they lie near a sphere, and an alignment of that sphere.

    Takes the place of the last linear layer of a gaze network. It has ten parameters, so it has little to learn by
    heart, and keeps more of its accuracy on other people and cameras.

    Args:
        n_neighbors: of each feature in the graph; the paper takes 300 for 2000 features.
        joint: embed what is to be predicted together with what was fitted, as the paper does, instead of placing it
            among that. As slow as a fit, and a prediction depends on what else is predicted with it.
        disconnected, verbose, ops: as of `pyops.models.Isomap`.

    Attributes:
        isomap_: the fitted `Isomap`, of 3 components.
        alignment_: the fitted `SphereAlignment`.
        embedding_: where the fitted features lie, ``[N, 3]``.

    Example:
        >>> import torch
        >>> from pyops.models import GeodesicProjection, angular_error, directions
        >>> angles = torch.rand(2, 300, generator=torch.Generator().manual_seed(0)) - 0.5
        >>> gaze = directions(*angles)
        >>> model = GeodesicProjection(n_neighbors=12).fit(gaze @ torch.eye(3, 8), gaze)
        >>> bool(angular_error(model.predict(gaze @ torch.eye(3, 8)), gaze).mean().rad2deg() < 1)
        True

    Source: section 4.1 of Bao and Lu, From Feature to Gaze: A Generalizable Replacement of Linear Layer, CVPR 2024.
    """

    def __init__(
        self,
        n_neighbors: int = 300,
        *,
        joint: bool = False,
        disconnected: str = "join",
        verbose: bool = False,
        ops: Any = None,
    ) -> None:
        self.n_neighbors = n_neighbors
        self.joint = joint
        self.disconnected = disconnected
        self.verbose = verbose
        self.ops = ops

    def fit(self, X: Matrix, y: Matrix) -> GeodesicProjection:
        """Embeds features ``X [N, D]`` and aligns them with their gaze ``y [N, 3]``, of any length but 0."""
        if y is None:
            raise ValueError("y must be gaze [N, 3], got None")
        gaze = torch.as_tensor(y)
        if gaze.shape != (len(X), 3):
            raise ValueError(
                f"y must be [N, 3] with as many rows as X, {len(X)}, got shape {list(gaze.shape)}"
            )
        require_directions("y", gaze)
        self.isomap_ = self._isomap().fit(X)
        self.embedding_ = self.isomap_.embedding_
        self.n_features_in_ = self.isomap_.n_features_in_
        places = torch.as_tensor(self.embedding_)
        self.alignment_ = SphereAlignment().to(places).fit(places, gaze.to(places))
        self._X = X
        return self

    def transform(self, X: Matrix) -> Matrix:
        """Where features ``X [M, D]`` lie on the map, ``[M, 3]``."""
        check_is_fitted(self)
        return self._together(X) if self.joint else self.isomap_.transform(X)

    @torch.no_grad()
    def predict(self, X: Matrix) -> Matrix:
        """Gaze ``[M, 3]``, unit vectors, of features ``X [M, D]``."""
        places = self.transform(X)
        gaze = self.alignment_(torch.as_tensor(places))
        return gaze if isinstance(X, Tensor) else gaze.numpy(force=True)

    def score(self, X: Matrix, y: Matrix, sample_weight: Any = None) -> float:
        """Minus the mean angle between prediction and ``y [M, 3]``, in degrees: more is better."""
        found = torch.as_tensor(self.predict(X))
        error = angular_error(found, torch.as_tensor(y).to(found)).rad2deg()
        weight = torch.ones_like(error) if sample_weight is None else torch.as_tensor(sample_weight).to(error)
        return -float((error * weight).sum() / weight.sum())

    def _isomap(self) -> Isomap:
        return Isomap(
            self.n_neighbors,
            n_components=3,
            disconnected=self.disconnected,
            verbose=self.verbose,
            ops=self.ops,
        )

    def _together(self, X: Matrix) -> Matrix:
        fitted, new = torch.as_tensor(self._X), torch.as_tensor(X)
        places = self._isomap().fit_transform(torch.cat([fitted, new.to(fitted)]))
        moved = laid_over(places, torch.as_tensor(self.embedding_), places[: len(fitted)])[len(fitted) :]
        return moved if isinstance(X, Tensor) else moved.numpy(force=True)
