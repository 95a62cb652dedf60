"""minplus: products in the min-plus semiring, dense and sparse; shortest distances. Peers: `bench/peers/minplus.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..case import Case, Contestant, Inputs, Tolerance, dtype_name, forward_backward
from ..limits import Bound, Chip


@dataclass(frozen=True)
class MinPlus(Case):
    arithmetic: ClassVar[str] = "add, min"
    size: int = 1024
    batch: int = 1
    paths: bool = False  # shortest distances in place of a product
    dtype: torch.dtype = torch.float32
    seconds: float = 6.0

    @property
    def words(self) -> list[str]:
        return [
            "shortest distances" if self.paths else "product",
            *([f"{self.batch} x"] if self.batch > 1 else []),
            f"{self.size} nodes" if self.paths else f"{self.size}x{self.size}x{self.size}",
            dtype_name(self.dtype),
        ]

    def inputs(self, device: torch.device, seed: int = 0) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        shape = self.batch, self.size, self.size
        names = ("weights",) if self.paths else ("a", "b")
        tensors = {name: torch.rand(shape, generator=generator) + 0.01 for name in names}
        grad = torch.randn(shape, generator=generator) if self.backward else None
        return {
            **{name: t.to(device, self.dtype) for name, t in tensors.items()},
            "grad": None if grad is None else grad.to(device, self.dtype),
        }

    def task(self, function: Callable[..., Tensor], x: Inputs) -> Callable[[], Any]:
        given = [t for name, t in x.items() if name != "grad"]
        return forward_backward(function, given, x["grad"]) if self.backward else lambda: function(*given)

    def ours(self, device: torch.device) -> dict[str, Callable[[Inputs], Contestant]]:
        import pyops

        function = pyops.floyd_warshall if self.paths else pyops.min_plus_matmul
        ours = {"pyops": lambda x: Contestant(self.task(function, x))}
        return ours | ({"pyops (Triton)": self.triton} if device.type == "cuda" else {})

    def triton(self, x: Inputs) -> Contestant:
        """The Triton kernels by name: with the CUDA library installed, a plain call does not reach them."""
        from pyops.triton import minplus as kernels

        def both() -> list[Tensor]:
            if self.paths:
                found = kernels.floyd_warshall(x["weights"])
                return [found, kernels.floyd_warshall_backward(x["grad"], x["weights"], found)]
            found = kernels.min_plus_matmul(x["a"], x["b"])
            return [found, *kernels.min_plus_matmul_backward(x["grad"], x["a"], x["b"], True, True)]

        if self.backward:
            return Contestant(both)
        return Contestant(self.task(kernels.floyd_warshall if self.paths else kernels.min_plus_matmul, x))

    def reference(self, inputs: Inputs) -> list[Tensor]:
        from pyops import reference

        wide = {name: None if t is None else t.double() for name, t in inputs.items()}
        if not self.paths or self.backward:
            result = self.task(reference.floyd_warshall if self.paths else reference.min_plus_matmul, wide)()
            return result if self.backward else [result]
        return [closed(inputs["weights"].double())]

    def tolerances(self) -> list[Tolerance]:
        """Of the largest value; a rounded sum can move the gradient of a result to another path."""
        limit = {torch.float16: 2e-3, torch.bfloat16: 1e-2}.get(self.dtype, 1e-5)
        gradient = Tolerance(limit, flips=1e-3, of_peak=True)
        return [
            Tolerance(limit, of_peak=True),
            *([gradient] * (2 - self.paths) if self.backward else []),
        ]

    @property
    def bytes(self) -> int:
        """Operands and result; backward reads operands and a gradient, and writes the others."""
        matrix = self.batch * self.size**2 * self.dtype.itemsize
        operands = 2 - self.paths
        return matrix * (operands + 1 + (2 * operands + 1 if self.backward else 0))

    @property
    def flops(self) -> int:
        """An addition and a minimum for each; the gradients need none in principle."""
        return 2 * self.batch * self.size**3

    def bound(self, chip: Chip) -> Bound | None:
        """Of shortest distances: 64 nodes at a time, whose own distances take 64 steps of one block; then every tile is
        read and written once more. Graphs of up to 128 nodes take a step a node."""
        if not self.paths:
            return None
        if self.size <= 128:
            waves = -(-self.batch // (2 * chip.multiprocessors))
            return Bound(waves * self.size * chip.step_s, f"{self.size} steps of a block, {waves} times")
        passes = -(-self.size // 64)
        matrix = self.batch * self.size**2 * 4
        moved = 2 * matrix * passes / (chip.copied if matrix > chip.l2_bytes else chip.l2)
        steps = passes * (64 * chip.step_s + 3 * chip.launch_s)
        work = max(moved, self.flops / chip.flops(self.arithmetic))
        return Bound(steps + work, f"{passes} passes of three launches, and the work itself")


@dataclass(frozen=True)
class Reach(Case):
    """Distances of new points by those of their neighbours: a sparse matrix times a dense one."""

    arithmetic: ClassVar[str] = "add, min"

    queries: int = 2000
    neighbours: int = 10
    points: int = 5000
    dtype: torch.dtype = torch.float32
    seconds: float = 6.0

    @property
    def words(self) -> list[str]:
        return [
            "sparse product",
            f"{self.queries}x{self.neighbours} of {self.points}x{self.points}",
            dtype_name(self.dtype),
        ]

    def inputs(self, device: torch.device, seed: int = 0) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        edges = self.queries, self.neighbours
        lengths = torch.rand(edges, generator=generator)
        indices = torch.randint(self.points, edges, generator=generator)
        rows = torch.rand(self.points, self.points, generator=generator)
        grad = torch.randn(self.queries, self.points, generator=generator) if self.backward else None
        return {
            "lengths": lengths.to(device, self.dtype),
            "indices": indices.to(device),
            "rows": rows.to(device, self.dtype),
            "grad": None if grad is None else grad.to(device, self.dtype),
        }

    def task(self, function: Callable[..., Tensor], x: Inputs) -> Callable[[], Any]:
        if self.backward:
            return forward_backward(
                lambda lengths, rows: function(lengths, x["indices"], rows),
                [x["lengths"], x["rows"]],
                x["grad"],
            )
        return lambda: function(x["lengths"], x["indices"], x["rows"])

    def ours(self, device: torch.device) -> dict[str, Callable[[Inputs], Contestant]]:
        import pyops

        ours = {"pyops": lambda x: Contestant(self.task(pyops.min_plus_gather, x))}
        return ours | ({"pyops (Triton)": self.triton} if device.type == "cuda" else {})

    def triton(self, x: Inputs) -> Contestant:
        """The Triton kernels by name, as above."""
        from pyops.triton import minplus as kernels

        lengths, indices, rows = (x[name][None] for name in ("lengths", "indices", "rows"))

        def both() -> list[Tensor]:
            found = kernels.min_plus_gather(lengths, indices, rows)
            grad = x["grad"][None]
            grads = kernels.min_plus_gather_backward(grad, lengths, indices, rows, True, True)
            return [t[0] for t in (found, *grads)]

        return Contestant(
            both if self.backward else lambda: kernels.min_plus_gather(lengths, indices, rows)[0]
        )

    def reference(self, inputs: Inputs) -> list[Tensor]:
        from pyops import reference

        wide = {k: t.double() if t is not None and t.is_floating_point() else t for k, t in inputs.items()}
        result = self.task(reference.min_plus_gather, wide)()
        return result if self.backward else [result]

    def tolerances(self) -> list[Tolerance]:
        """As of products."""
        limit = {torch.float16: 2e-3, torch.bfloat16: 1e-2}.get(self.dtype, 1e-5)
        gradient = Tolerance(limit, flips=1e-3, of_peak=True)
        return [Tolerance(limit, of_peak=True), *([gradient, gradient] if self.backward else [])]

    @property
    def bytes(self) -> int:
        """Everything once; the rows come from a cache where they are read again."""
        edges, results = self.queries * self.neighbours, self.queries * self.points
        once = edges * (8 + self.dtype.itemsize) + (self.points**2 + results) * self.dtype.itemsize
        return once * (1 + 2 * self.backward)

    @property
    def flops(self) -> int:
        return 2 * self.queries * self.neighbours * self.points

    def bound(self, chip: Chip) -> Bound:
        rows = self.queries * self.neighbours * self.points * self.dtype.itemsize
        return Bound(rows / chip.l2, "rows from the second-level cache")


def closed(weights: Tensor) -> Tensor:
    """Shortest distances, a step for each node, in place."""
    distances = weights.clone()
    distances.diagonal(dim1=-2, dim2=-1).zero_()
    for k in range(weights.shape[-1]):
        torch.minimum(distances, distances[..., k, None] + distances[..., None, k, :], out=distances)
    return distances


CASES = (
    MinPlus(headline=True),
    MinPlus(size=512, backward=True, headline=True),
    MinPlus(size=2048),
    MinPlus(dtype=torch.float16),
    MinPlus(size=32, batch=1000),
    MinPlus(size=200, quick=True),
    MinPlus(size=100, backward=True, quick=True),
    MinPlus(paths=True, headline=True),
    MinPlus(paths=True, size=200, backward=True, headline=True),
    MinPlus(paths=True, size=2000),
    MinPlus(paths=True, size=10000, headline=True, devices=("cuda",), goal="150 ms"),
    MinPlus(paths=True, size=32, batch=1000, headline=True),
    MinPlus(paths=True, size=150, quick=True),
    MinPlus(paths=True, size=40, backward=True, quick=True),
    MinPlus(size=1, overhead=True, quick=True),
    Reach(headline=True),
    Reach(points=2000, backward=True, headline=True),
    Reach(dtype=torch.float16),
    Reach(queries=200, points=500, quick=True),
    Reach(queries=100, points=300, backward=True, quick=True),
    Reach(queries=1, neighbours=1, points=1, overhead=True, quick=True),
)
