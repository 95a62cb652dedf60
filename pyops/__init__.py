"""Fused vision operators that stock PyTorch lacks or runs badly, as ordinary PyTorch functions on CPU and CUDA."""

from . import distributed, reference
from ._memory import keep_memory
from ._native import __version__, build_info
from .ops._minplus_gather import min_plus_gather
from .ops.corr1d import corr1d_lookup_on_demand, corr1d_pyramid
from .ops.corr2d import corr2d_lookup, corr2d_lookup_on_demand, corr2d_pyramid
from .ops.disparity import context_upsample, disparity_warp
from .ops.fps import farthest_point_sample
from .ops.gather import blend_points, gather_points, three_interpolate
from .ops.geodesic import geodesic_distances
from .ops.groupwise import groupwise_correlation
from .ops.knn import Neighbors, ball_query, chamfer_distance, knn
from .ops.knn_graph import Graph, knn_graph
from .ops.local_correlation import local_correlation
from .ops.lookup import corr1d_lookup, geometry_lookup
from .ops.lut3d import fuse_luts, identity_lut, lut3d, lut_monotonicity, lut_smoothness
from .ops.mds import ClassicalMDS, classical_mds, double_centered_matmul
from .ops.minplus import floyd_warshall, min_plus_matmul
from .ops.modulation import ModulationWeights, relation_aware_modulation
from .ops.motif import camp_conv, constant_highpass
from .ops.sampling import adaptive_grid_sample, interval_vertices, inverse_vertices, separable_grid_sample
from .ops.tpatches import TPatches, bidirectional_tpatches, extract_tpatches

__all__ = [
    "ClassicalMDS",
    "Graph",
    "ModulationWeights",
    "Neighbors",
    "TPatches",
    "__version__",
    "adaptive_grid_sample",
    "ball_query",
    "bidirectional_tpatches",
    "blend_points",
    "build_info",
    "camp_conv",
    "chamfer_distance",
    "classical_mds",
    "constant_highpass",
    "context_upsample",
    "corr1d_lookup",
    "corr1d_lookup_on_demand",
    "corr1d_pyramid",
    "corr2d_lookup",
    "corr2d_lookup_on_demand",
    "corr2d_pyramid",
    "disparity_warp",
    "distributed",
    "double_centered_matmul",
    "extract_tpatches",
    "farthest_point_sample",
    "floyd_warshall",
    "fuse_luts",
    "gather_points",
    "geodesic_distances",
    "geometry_lookup",
    "groupwise_correlation",
    "identity_lut",
    "interval_vertices",
    "inverse_vertices",
    "keep_memory",
    "knn",
    "knn_graph",
    "local_correlation",
    "lut3d",
    "lut_monotonicity",
    "lut_smoothness",
    "min_plus_gather",
    "min_plus_matmul",
    "reference",
    "relation_aware_modulation",
    "separable_grid_sample",
    "three_interpolate",
]
