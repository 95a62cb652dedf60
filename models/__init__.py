"""Thin models that show the operators at work."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .cotf import CoTF
from .cotf_loss import CoTFLoss
from .gaze_loss import IsometricPropagator, SphereOrientedLoss
from .geodesic_map import isomap_embedding
from .mocha_loss import StereoLoss
from .mocha_stereo import MoChaStereo
from .sphere_alignment import (
    Sphere,
    SphereAlignment,
    angles,
    angular_error,
    directions,
    fit_sphere,
    sphere_error,
)
from .tpatch_loss import ActionLoss
from .tpatchnet import TPatchNet

if TYPE_CHECKING:
    from .gaze import GeodesicProjection
    from .isomap import Isomap, LandmarkIsomap

__all__ = [
    "ActionLoss",
    "CoTF",
    "CoTFLoss",
    "GeodesicProjection",
    "Isomap",
    "IsometricPropagator",
    "LandmarkIsomap",
    "MoChaStereo",
    "Sphere",
    "SphereAlignment",
    "SphereOrientedLoss",
    "StereoLoss",
    "TPatchNet",
    "angles",
    "angular_error",
    "directions",
    "fit_sphere",
    "isomap_embedding",
    "sphere_error",
]

# Estimators, which need scikit-learn (the extra "manifold").
_ESTIMATORS = {"GeodesicProjection": "gaze", "Isomap": "isomap", "LandmarkIsomap": "isomap"}


def __getattr__(name: str) -> Any:
    if name not in _ESTIMATORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f".{_ESTIMATORS[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "sklearn":
            raise
        raise ImportError(f"{name} is an estimator of scikit-learn: pip install pyops[manifold]") from error


def __dir__() -> list[str]:
    return sorted({*globals(), *_ESTIMATORS})
