"""Triton kernels, under the names of the operators they stand in for."""
