"""placeholder"""
from ..reference import adaptive_grid_sample, interval_vertices, inverse_vertices, separable_grid_sample
