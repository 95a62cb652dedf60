"""Every operator once more in plain PyTorch: the specification, the oracle of the tests, and a slow path by name.

Same names and signatures as :mod:`pyops`, so a model built with ``ops=pyops.reference`` is the plain definition.
"""

from .corr1d import corr1d_lookup_on_demand, corr1d_pyramid
from .corr2d import corr2d_lookup, corr2d_lookup_on_demand, corr2d_pyramid
from .disparity import context_upsample, disparity_warp
from .fps import farthest_point_sample
from .gather import blend_points, gather_points, three_interpolate
from .geodesic import geodesic_distances
from .groupwise import groupwise_correlation
from .knn import ball_query, chamfer_distance, knn
from .knn_graph import knn_graph
from .local_correlation import local_correlation
from .lookup import corr1d_lookup, geometry_lookup
from .lut3d import fuse_luts, identity_lut, lut3d, lut_monotonicity, lut_smoothness
from .mds import classical_mds, double_centered_matmul
from .minplus import floyd_warshall, min_plus_gather, min_plus_matmul
from .modulation import relation_aware_modulation
from .motif import camp_conv, constant_highpass
from .sampling import adaptive_grid_sample, interval_vertices, inverse_vertices, separable_grid_sample
from .tpatches import bidirectional_tpatches, extract_tpatches

__all__ = [
    "adaptive_grid_sample",
    "ball_query",
    "bidirectional_tpatches",
    "blend_points",
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
    "knn",
    "knn_graph",
    "local_correlation",
    "lut3d",
    "lut_monotonicity",
    "lut_smoothness",
    "min_plus_gather",
    "min_plus_matmul",
    "relation_aware_modulation",
    "separable_grid_sample",
    "three_interpolate",
]
