"""Graphs of neighbouring points in plain PyTorch."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Graph(NamedTuple):
    """A directed graph in compressed sparse rows: row ``u`` holds the edges that leave ``u``."""

    indptr: Tensor
    """``[N + 1]`` int64, where each row begins; the last entry is E."""
    indices: Tensor
    """``[E]`` int64, where each edge leads; in any order within a row."""
    weights: Tensor
    """``[E]``, the length of each edge."""
