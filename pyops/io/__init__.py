"""Readers and writers of the file formats that colour and vision tools exchange."""

from pyops.io.cube import CubeLUT, read_cube, write_cube

__all__ = ["CubeLUT", "read_cube", "write_cube"]
